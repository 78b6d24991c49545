/*
 * UDP ASSOCIATE, and what the proxy does to ports (RFC 4787, 4 and 5).
 *
 * One association serves all steps, as one serves all of an application's datagrams. Full cone is
 * two things: the mapping (two destinations see one port) and the filtering (an answer of somebody
 * who was never sent to arrives). STUN servers tell of both; for the second one is needed that
 * has two addresses (RFC 5780), and it is tested before anything is sent to the other one.
 */
#include "core/check/check_parts.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "socks/datagram.h"

enum {
    REPEAT_MS = 500,      /* a datagram may get lost */
    ANSWER_MAX_MS = 5000, /* for a DNS answer */
    STUN_MAX_MS = 2000,   /* for one STUN server */
    DATAGRAM_MAX = 2048,
};

/* --- the association -------------------------------------------------------------------------- */

/* A socket of ours, connected to the relay. 0 or -errno. */
static int open_socket(struct check *c)
{
    struct sockaddr_storage sa;
    socklen_t len = endpoint_to_sockaddr(&c->relay, &sa);
    int fd = outbound_open(&c->outbound, sa.ss_family, SOCK_DGRAM);
    if (fd < 0)
        return fd;
    if (connect(fd, (struct sockaddr *)&sa, len) != 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    c->udp_fd = fd;
    return 0;
}

/* Without UDP `up` works, save where DNS is to be relayed as UDP. */
static enum check_verdict udp_failure(const struct check *c)
{
    return c->options->dns == DNS_RELAY ? CHECK_FAIL : CHECK_WARN;
}

static const char *why_not(const struct check *c)
{
    if (check_is_direct(c))
        return "direct:// has no proxy";
    if (c->options->limits.udp_mode == UDP_BLOCK)
        return "--udp block";
    return c->accepted ? NULL : "the proxy does not let us in";
}

void check_associate(struct check *c, struct check_result *r)
{
    static const struct target nowhere = {.addr = {{[10] = 0xff, [11] = 0xff}}};
    struct dial_result d;
    char text[CHECK_DIAL_TEXT_MAX]; /* or an endpoint's */
    if (why_not(c)) {
        check_say(r, CHECK_SKIPPED, "%s", why_not(c));
        return;
    }
    if (check_dial(c, SOCKS5_UDP_ASSOCIATE, &nowhere, &d) != DIAL_OK) {
        check_say(r, udp_failure(c), "no UDP: %s", check_describe_dial(&d, text));
        check_remedy(r,
                     "use a proxy that relays UDP. Else applications are told so at once and use "
                     "TCP (QUIC falls back); --udp block saves asking");
        return;
    }
    c->control_fd = d.fd;
    c->relay = d.bound;
    if (addr_is_unspecified(&c->relay.addr)) /* "where you have reached me" */
        c->relay.addr = d.peer.addr;
    int error = c->relay.port == 0 ? -EADDRNOTAVAIL : open_socket(c);
    if (error == 0) {
        check_say(r, CHECK_OK, "the relay is %s", endpoint_format(&c->relay, text));
        return;
    }
    check_say(r, udp_failure(c), "the relay %s cannot be sent to: %s",
              endpoint_format(&c->relay, text), strerror(-error));
    check_remedy(r, "the proxy announces an address that is not reachable from here: set the "
                    "address that it tells its clients");
}

/* --- a question and its answer ---------------------------------------------------------------- */

struct question {
    const struct target *to;
    const uint8_t *bytes;
    size_t len;
    /* Is this what was waited for? */
    bool (*take)(void *arg, const struct socks5_datagram *d);
    void *arg;
};

static int send_question(const struct check *c, const struct question *q)
{
    uint8_t buf[SOCKS5_DATAGRAM_HEADER_MAX + CHECK_QUERY_MAX];
    uint8_t *payload = buf + SOCKS5_DATAGRAM_HEADER_MAX;
    memcpy(payload, q->bytes, q->len);
    size_t head = socks5_datagram_prepend(payload, q->to);
    return send(c->udp_fd, payload - head, head + q->len, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* One datagram, if it is there: 0 when it is what was waited for, -EAGAIN, or another -errno. */
static int take_answer(const struct check *c, const struct question *q)
{
    uint8_t bytes[DATAGRAM_MAX];
    struct socks5_datagram d;
    ssize_t n = recv(c->udp_fd, bytes, sizeof(bytes), 0);
    if (n < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    return socks5_datagram_parse(bytes, (size_t)n, &d) && q->take(q->arg, &d) ? 0 : -EAGAIN;
}

/* Ask, again every REPEAT_MS, until the answer comes. 0 or -errno, -ETIMEDOUT among others. */
static int ask(const struct check *c, const struct question *q, unsigned ms)
{
    double began = check_now();
    while (check_left(began, ms) > 0) {
        double sent = check_now();
        int error = send_question(c, q);
        if (error < 0 && error != -EAGAIN)
            return error;
        while (check_left(sent, REPEAT_MS) > 0 && check_left(began, ms) > 0) {
            unsigned repeat = check_left(sent, REPEAT_MS);
            unsigned left = check_left(began, ms);
            if (!check_poll(c->udp_fd, POLLIN, repeat < left ? repeat : left))
                break;
            error = take_answer(c, q);
            if (error != -EAGAIN)
                return error;
        }
    }
    return -ETIMEDOUT;
}

static bool take_dns(void *arg, const struct socks5_datagram *d)
{
    const uint16_t *id = arg;
    return check_is_dns_answer(d->payload, d->payload_len, *id);
}

/* NULL: there is an association. Resolvers may be out of its reach, and others not. */
static const char *udp_is_missing(const struct check *c)
{
    if (why_not(c))
        return why_not(c);
    return c->udp_fd >= 0 ? NULL : "no association";
}

void check_udp_answer(struct check *c, struct check_result *r)
{
    const struct options *o = c->options;
    const struct target to = {.addr = o->dns_server.addr, .port = o->dns_server.port};
    uint8_t query[CHECK_QUERY_MAX];
    uint16_t id = 0;
    char text[ENDPOINT_TEXT_MAX];
    if (udp_is_missing(c)) {
        check_say(r, CHECK_SKIPPED, "%s", udp_is_missing(c));
        return;
    }
    check_random(&id, sizeof(id));
    struct question q = {.to = &to, .bytes = query, .take = take_dns, .arg = &id};
    q.len = check_write_query(query, o->check.host.name, id);
    double began = check_now();
    int error = ask(c, &q, c->timeout_ms < ANSWER_MAX_MS ? c->timeout_ms : (unsigned)ANSWER_MAX_MS);
    if (error == 0) {
        check_say(r, CHECK_OK, "%s answers a DNS query after %.1f ms",
                  endpoint_format(&o->dns_server, text), check_now() - began);
        return;
    }
    check_say(r, udp_failure(c), "no DNS answer from %s: %s", endpoint_format(&o->dns_server, text),
              strerror(-error));
    check_remedy(r,
                 "a firewall before the relay %s drops UDP, or the resolver cannot be reached "
                 "from the proxy (--dns-server); --udp block tells applications at once",
                 endpoint_format(&c->relay, text));
}

/* --- STUN ------------------------------------------------------------------------------------- */

struct stun_exchange {
    uint8_t id[STUN_ID_SIZE];
    struct stun_answer answer;
    bool from_is_known;
    struct endpoint from;
};

static bool take_stun(void *arg, const struct socks5_datagram *d)
{
    struct stun_exchange *x = arg;
    x->from_is_known = !d->is_name;
    x->from = d->from;
    return stun_parse_answer(d->payload, d->payload_len, x->id, &x->answer);
}

static bool ask_stun(const struct check *c, const struct target *to, bool from_elsewhere,
                     unsigned ms, struct stun_exchange *x)
{
    uint8_t request[STUN_REQUEST_MAX];
    *x = (struct stun_exchange){0};
    check_random(x->id, sizeof(x->id));
    struct question q = {.to = to, .bytes = request, .take = take_stun, .arg = x};
    q.len = stun_write_request(request, x->id, from_elsewhere);
    return ask(c, &q, ms < STUN_MAX_MS ? ms : STUN_MAX_MS) == 0;
}

/*
 * Where a STUN server is. Looked up here, preferably IPv4, so that servers are compared within one
 * address family; a name that does not resolve here may do so at the proxy.
 */
static struct target locate(struct check *c, const struct host_port *h, unsigned ms)
{
    struct target to = {.addr = h->addr, .port = h->port};
    struct resolver_answer answer;
    if (h->is_addr)
        return to;
    if (!check_resolve(c, h->name, ms, &answer) || check_is_fake(c, &answer.addrs[0])) {
        to.name = h->name;
        return to;
    }
    to.addr = answer.addrs[0];
    for (size_t i = 0; i < answer.count && !addr_is_v4(&to.addr); i++)
        to.addr = answer.addrs[i];
    return to;
}

static bool was_sent_to(const struct check *c, const struct endpoint *e)
{
    for (size_t i = 0; i < c->stun_count; i++) {
        const struct target *to = &c->stun[i].to;
        if (!to->name && addr_equal(&to->addr, &e->addr))
            return true;
    }
    return false;
}

/* Ask a server who we are. NULL: it does not answer. */
static const struct check_stun *ask_server(struct check *c, const struct target *to, unsigned ms)
{
    struct stun_exchange x;
    struct check_stun *s = &c->stun[c->stun_count++];
    *s = (struct check_stun){.to = *to};
    s->answered = ask_stun(c, to, false, ms, &x);
    s->answer = x.answer;
    return s->answered ? s : NULL;
}

static void judge_filtering(const struct check *c, struct check_result *r,
                            const struct check_stun *s, unsigned ms)
{
    struct stun_exchange x;
    char text[ENDPOINT_TEXT_MAX];
    double began = check_now();
    bool came = ask_stun(c, &s->to, true, ms, &x);
    r->ms = check_now() - began;
    if (came && x.from_is_known && was_sent_to(c, &x.from)) {
        check_say(r, CHECK_SKIPPED, "the STUN server does not answer from its other address");
    } else if (came && x.from_is_known) {
        check_say(r, CHECK_OK, "an answer from %s, which was never sent to, arrives (full cone)",
                  endpoint_format(&x.from, text));
    } else if (came) {
        check_say(r, CHECK_OK,
                  "an answer from another address than was sent to arrives (full "
                  "cone)");
    } else {
        check_say(r, CHECK_WARN, "an answer from %s, which was never sent to, does not arrive",
                  endpoint_format(&s->answer.other, text));
        check_remedy(r, "not full cone: what others begin (games, calls between peers) fails or "
                        "takes a detour. The proxy, or the NAT or firewall before it, filters");
    }
}

void check_udp_filtering(struct check *c, struct check_result *r)
{
    const struct host_port_list *servers = &c->options->check.stun;
    double began = check_now();
    if (udp_is_missing(c)) {
        check_say(r, CHECK_SKIPPED, "%s", udp_is_missing(c));
        return;
    }
    bool answered = false;
    bool judged = false;
    for (size_t i = 0; i < servers->count && check_left(began, c->timeout_ms) > 0; i++) {
        struct target to = locate(c, &servers->items[i], check_left(began, c->timeout_ms));
        const struct check_stun *s = ask_server(c, &to, check_left(began, c->timeout_ms));
        answered = answered || s;
        if (!s || judged || !s->answer.has_other || was_sent_to(c, &s->answer.other))
            continue;
        judge_filtering(c, r, s, check_left(began, c->timeout_ms));
        judged = true;
    }
    if (judged)
        return;
    check_say(r, CHECK_SKIPPED, "%s",
              answered ? "no STUN server with an address that was not sent to"
                       : "no STUN server answers");
    check_remedy(r, "give one that has two addresses (RFC 5780): --stun HOST:PORT");
}

/* --- the mapping ------------------------------------------------------------------------------ */

static bool same_target(const struct target *a, const struct target *b)
{
    if (a->port != b->port || !a->name != !b->name)
        return false;
    return a->name ? strcmp(a->name, b->name) == 0 : addr_equal(&a->addr, &b->addr);
}

/* Another answer of the same address family from somewhere else than `one`; NULL: none. */
static const struct check_stun *find_second(const struct check *c, const struct check_stun *one)
{
    const struct check_stun *found = NULL;
    for (size_t i = 0; i < c->stun_count; i++) {
        const struct check_stun *s = &c->stun[i];
        if (!s->answered || same_target(&s->to, &one->to) ||
            addr_is_v4(&s->answer.mapped.addr) != addr_is_v4(&one->answer.mapped.addr))
            continue;
        if (!endpoint_equal(&s->answer.mapped, &one->answer.mapped))
            return s; /* one that differs says more */
        found = s;
    }
    return found;
}

/* Two answers to be compared; a server's other address is as good as a second server. */
static bool find_pair(struct check *c, const struct check_stun **one, const struct check_stun **two)
{
    *two = NULL;
    for (size_t i = 0; i < c->stun_count && !*two; i++) {
        *one = &c->stun[i];
        *two = (*one)->answered ? find_second(c, *one) : NULL;
    }
    for (size_t i = 0; i < c->stun_count && !*two && c->stun_count <= OPTIONS_LIST_MAX; i++) {
        *one = &c->stun[i];
        if (!(*one)->answered || !(*one)->answer.has_other)
            continue;
        struct target to = {.addr = (*one)->answer.other.addr, .port = (*one)->answer.other.port};
        *two = ask_server(c, &to, c->timeout_ms);
        break;
    }
    return *two != NULL;
}

void check_udp_mapping(struct check *c, struct check_result *r)
{
    const struct check_stun *one;
    const struct check_stun *two;
    char first[ENDPOINT_TEXT_MAX];
    char second[ENDPOINT_TEXT_MAX];
    if (udp_is_missing(c)) {
        check_say(r, CHECK_SKIPPED, "%s", udp_is_missing(c));
        return;
    }
    if (!find_pair(c, &one, &two)) {
        check_say(r, CHECK_SKIPPED, "answers of two STUN servers are needed");
        check_remedy(r, "give two that the proxy reaches: --stun HOST:PORT --stun HOST:PORT");
        return;
    }
    endpoint_format(&one->answer.mapped, first);
    endpoint_format(&two->answer.mapped, second);
    if (endpoint_equal(&one->answer.mapped, &two->answer.mapped)) {
        check_say(r, CHECK_OK, "two destinations see the same source, %s (endpoint-independent)",
                  first);
        return;
    }
    check_say(r, CHECK_WARN, "two destinations see different sources, %s and %s (symmetric)", first,
              second);
    check_remedy(r, "connections between peers (games, calls) need a relay. The proxy, or a NAT "
                    "before it, takes a new port for each destination");
}
