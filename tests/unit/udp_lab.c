#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/udp_lab.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* --- what is replaced ------------------------------------------------------------------------- */

struct record sent[RECORDS_MAX]; /* to the application */
unsigned sent_count;
struct record unreachables[RECORDS_MAX];
unsigned unreachable_count;

static void record(struct record *list, unsigned *count, const struct endpoint *src,
                   const struct endpoint *dst, const void *payload, size_t len, uint16_t gso_size)
{
    assert_true(*count < RECORDS_MAX);
    struct record *r = &list[(*count)++];
    *r = (struct record){.src = *src, .dst = *dst, .len = len, .gso_size = gso_size};
    r->bytes = malloc(len + 1);
    assert_non_null(r->bytes);
    memcpy(r->bytes, payload, len);
}

int stack_send_datagram(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                        const void *payload, size_t len, uint16_t gso_size)
{
    (void)s;
    record(sent, &sent_count, src, dst, payload, len, gso_size);
    return 0;
}

void stack_send_unreachable(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                            const void *payload, size_t len, enum unreachable why)
{
    (void)s;
    assert_int_equal(why, UNREACHABLE_PORT);
    record(unreachables, &unreachable_count, src, dst, payload, len, 0);
}

struct dial dials[DIALS_MAX];
unsigned dial_count;
bool dial_out_of_memory;
bool direct;
bool udp_refused;
unsigned refused_notes;
struct outbound_options out;

struct dial *dial_start(struct proxy *p, enum socks5_command command, const struct target *target,
                        dial_fn *fn, void *arg)
{
    (void)p;
    assert_int_equal(command, SOCKS5_UDP_ASSOCIATE);
    assert_int_equal(target->port, 0);
    assert_true(addr_is_unspecified(&target->addr));
    if (dial_out_of_memory)
        return NULL;
    assert_true(dial_count < DIALS_MAX);
    dials[dial_count] = (struct dial){.fn = fn, .arg = arg};
    return &dials[dial_count++];
}

void dial_cancel(struct dial *d)
{
    d->cancelled = true;
}

const char *dial_status_name(enum dial_status status)
{
    return status == DIAL_OK ? "ok" : "failed";
}

bool proxy_is_direct(const struct proxy *p)
{
    (void)p;
    return direct;
}

const struct outbound_options *proxy_outbound(const struct proxy *p)
{
    (void)p;
    return &out;
}

bool proxy_udp_refused(const struct proxy *p)
{
    (void)p;
    return udp_refused;
}

void proxy_note_udp_refused(struct proxy *p, const char *why)
{
    (void)p;
    assert_non_null(why);
    udp_refused = true;
    refused_notes++;
}

int outbound_prepare_socket(int fd, const struct outbound_options *options)
{
    (void)fd;
    assert_ptr_equal(options, &out);
    return 0;
}

bool tcp_flows_evict(struct tcp_flows *t)
{
    (void)t;
    return false;
}

int holds;

enum dns_fake dns_fake_lookup(struct dns *d, const struct addr *a, char name[256])
{
    (void)d;
    if (!addr_is_v4(a))
        return DNS_FAKE_NOT;
    const uint8_t *b = addr_v4_bytes(a);
    if (b[0] != 198 || b[1] != 18 || b[2] != 1)
        return DNS_FAKE_NOT;
    if (b[3] >= 200)
        return DNS_FAKE_UNKNOWN;
    (void)snprintf(name, 256, "n%d.example", b[3]);
    return DNS_FAKE_KNOWN;
}

void dns_fake_hold(struct dns *d, const struct addr *a)
{
    (void)d;
    (void)a;
    holds++;
}

void dns_fake_release(struct dns *d, const struct addr *a)
{
    (void)d;
    (void)a;
    holds--;
}

struct resolver_request lookups[RECORDS_MAX];
unsigned lookup_count;

struct resolver_request *resolver_lookup(struct resolver *r, const char *name, resolver_fn *fn,
                                         void *arg)
{
    (void)r;
    assert_true(lookup_count < RECORDS_MAX);
    struct resolver_request *request = &lookups[lookup_count++];
    *request = (struct resolver_request){.fn = fn, .arg = arg};
    (void)snprintf(request->name, sizeof(request->name), "%s", name);
    return request;
}

void resolver_cancel(struct resolver_request *request)
{
    request->cancelled = true;
}

/* --- the laboratory --------------------------------------------------------------------------- */

struct endpoint at(const char *text)
{
    struct endpoint e;
    if (!endpoint_parse(text, 0, &e))
        fail_msg("bad endpoint %s", text);
    return e;
}

int udp_bound_to_loopback(struct endpoint *address)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&sa, address));
    int size = 4 << 20;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    return fd;
}

static void forget_records(struct record *list, unsigned *count)
{
    for (unsigned i = 0; i < *count; i++)
        free(list[i].bytes);
    *count = 0;
}

int lab_set_up(void **state)
{
    struct lab *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    dial_count = lookup_count = refused_notes = 0;
    dial_out_of_memory = direct = udp_refused = false;
    holds = 0;
    memset(&out, 0, sizeof(out));
    l->limits = (struct flow_limits){.udp_idle_timeout_s = 60, .max_flows = 100};
    l->device.mtu = 1500;
    l->worker.loop = loop_new();
    l->worker.device = &l->device;
    l->worker.limits = &l->limits;
    l->worker.udp = udp_flows_new(&l->worker);
    assert_non_null(l->worker.loop);
    assert_non_null(l->worker.udp);
    l->relay = udp_bound_to_loopback(&l->relay_address);
    l->control[0] = l->control[1] = -1;
    *state = l;
    return 0;
}

int lab_tear_down(void **state)
{
    struct lab *l = *state;
    udp_flows_free(l->worker.udp);
    assert_int_equal(l->worker.flow_count, 0);
    assert_int_equal(holds, 0);
    loop_free(l->worker.loop);
    close(l->relay);
    if (l->control[1] >= 0)
        close(l->control[1]);
    forget_records(sent, &sent_count);
    forget_records(unreachables, &unreachable_count);
    free(l);
    return 0;
}

int lab_set_up_uso(void **state)
{
    lab_set_up(state);
    struct lab *l = *state;
    l->device.caps.uso = true;
    udp_flows_free(l->worker.udp);
    l->worker.udp = udp_flows_new(&l->worker);
    return l->worker.udp ? 0 : -1;
}

void turns(struct lab *l, int count)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    for (int i = 0; i < count; i++) {
        loop_turn(l->worker.loop, false);
        (void)nanosleep(&moment, NULL);
    }
}

void fill(uint8_t *bytes, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(i * 31 + seed + (i >> 8));
}

uint8_t *payload_of(struct lab *l)
{
    return l->buffer + HEADROOM;
}

void app_sends_bytes(struct lab *l, const char *src, const char *dst, size_t len, uint16_t gso_size)
{
    struct endpoint from = at(src);
    struct endpoint to = at(dst);
    udp_flows_datagram(l->worker.udp, &from, &to, payload_of(l), len, gso_size, HEADROOM);
    udp_flows_batch_end(l->worker.udp);
}

void app_sends(struct lab *l, const char *src, const char *dst, const char *text)
{
    memcpy(payload_of(l), text, strlen(text));
    app_sends_bytes(l, src, dst, strlen(text), 0);
}

void proxy_accepts_at(struct lab *l, unsigned i, const struct endpoint *relay)
{
    if (l->control[1] >= 0)
        close(l->control[1]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, l->control),
                     0);
    struct dial_result result = {
        .status = DIAL_OK, .fd = l->control[0], .peer = at("127.0.0.1:1080"), .bound = *relay};
    assert_true(i < dial_count && !dials[i].cancelled);
    dials[i].fn(dials[i].arg, &result);
}

void proxy_accepts(struct lab *l, unsigned i)
{
    proxy_accepts_at(l, i, &l->relay_address);
}

void proxy_fails(unsigned i, enum dial_status status, uint8_t reply, int error)
{
    struct dial_result result = {.status = status, .reply = reply, .error = error, .fd = -1};
    assert_true(i < dial_count && !dials[i].cancelled);
    dials[i].fn(dials[i].arg, &result);
}

static uint8_t relay_buffer[PAYLOAD_MAX];
bool relay_gets(struct lab *l, struct socks5_datagram *d)
{
    l->relay_client_len = sizeof(l->relay_client);
    ssize_t n = recvfrom(l->relay, relay_buffer, sizeof(relay_buffer), 0,
                         (struct sockaddr *)&l->relay_client, &l->relay_client_len);
    if (n < 0)
        return false;
    assert_true(socks5_datagram_parse(relay_buffer, (size_t)n, d));
    return true;
}

void expect_relayed(struct lab *l, const char *target, const char *text)
{
    struct socks5_datagram d;
    char got[300];
    char address[ENDPOINT_TEXT_MAX];
    assert_true(relay_gets(l, &d));
    if (d.is_name)
        (void)snprintf(got, sizeof(got), "%s:%u", d.name, d.from.port);
    else
        (void)snprintf(got, sizeof(got), "%s", endpoint_format(&d.from, address));
    assert_string_equal(got, target);
    assert_int_equal(d.payload_len, strlen(text));
    assert_memory_equal(d.payload, text, strlen(text));
}

void relay_sends(struct lab *l, const struct target *from, const void *bytes, size_t len)
{
    static uint8_t packet[SOCKS5_DATAGRAM_HEADER_MAX + PAYLOAD_MAX];
    uint8_t *payload = packet + SOCKS5_DATAGRAM_HEADER_MAX;
    memcpy(payload, bytes, len);
    size_t header = socks5_datagram_prepend(payload, from);
    ssize_t n = sendto(l->relay, payload - header, header + len, 0,
                       (struct sockaddr *)&l->relay_client, l->relay_client_len);
    assert_int_equal(n, header + len);
}

void relay_sends_from(struct lab *l, const char *from, const char *text)
{
    struct endpoint e = at(from);
    struct target t = {.addr = e.addr, .port = e.port};
    relay_sends(l, &t, text, strlen(text));
    turns(l, 3);
}

void expect_sent(unsigned i, const char *src, const char *dst, const char *text)
{
    char address[ENDPOINT_TEXT_MAX];
    assert_true(i < sent_count);
    assert_string_equal(endpoint_format(&sent[i].src, address), src);
    assert_string_equal(endpoint_format(&sent[i].dst, address), dst);
    assert_int_equal(sent[i].len, strlen(text));
    assert_memory_equal(sent[i].bytes, text, strlen(text));
}

void expect_unreachable(unsigned i, const char *src, const char *dst)
{
    char address[ENDPOINT_TEXT_MAX];
    assert_true(i < unreachable_count);
    assert_string_equal(endpoint_format(&unreachables[i].src, address), src);
    assert_string_equal(endpoint_format(&unreachables[i].dst, address), dst);
}

void open_association(struct lab *l)
{
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "hello");
    proxy_accepts(l, 0);
    expect_relayed(l, "192.0.2.1:7", "hello");
}
