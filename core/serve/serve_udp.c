/*
 * Theory of operation
 *
 * An association (RFC 1928, 6 and 7) is two UDP sockets: `inner`, bound to the address at which
 * the client has reached us, and `outer` towards the world, one port for both address families
 * and all destinations, which is what makes the mapping endpoint-independent (RFC 4787, 4.1). Any
 * remote may answer (endpoint-independent filtering: full cone).
 *
 *   client -- header + payload --> inner | outer -- payload --> target
 *   client <-- header + payload -- inner | outer <-- payload -- anyone
 *
 * Only the address that the control connection comes from may use it. Its port is the one that
 * the request named, else that of its first datagram; then `inner` is connected to it, and the
 * kernel drops what others send.
 *
 * Both directions work in batches (udp_batch.h). What comes joined from the kernel has one source
 * and segments of one size, and is sent on as joined as it came, headers added or taken off.
 *
 * Targets that are names: an association keeps the few that it has sent to, with their address,
 * as long as they are used, so that a flow stays with the address that it began with. While a
 * name is being resolved its datagrams wait, a bounded number of them.
 */
#include "core/serve/serve_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/base/log.h"
#include "socks/datagram.h"

enum {
    BATCHES_A_TURN = 4,
    NAMES_MAX = 64,
    NAME_UNUSED_MS = 60 * 1000, /* then a name is resolved again */
    WAITING_MAX = 16,           /* datagrams a name */
    WAITING_BYTES_MAX = 128 * 1024,
};

struct waiting {
    struct link link;
    size_t len;
    uint8_t bytes[];
};

struct udp_name {
    struct link link; /* in association->names, the one used last first */
    struct association *association;
    struct resolver_request *request; /* NULL once resolved */
    struct addr addr;
    uint64_t used_ms;
    struct link waiting;
    unsigned waiting_count;
    size_t waiting_bytes;
    char text[];
};

struct association {
    struct server *server;
    struct link link; /* in server->associations */
    uint64_t used_ms;
    struct association_request request;
    struct endpoint client; /* port 0: not known yet */
    struct batch_socket inner, outer;
    struct loop_io inner_io, outer_io;
    struct link names;
    unsigned name_count;
    struct loop_timer idle_timer;
    uint64_t passed, passed_before; /* datagrams, both ways; as of the last look at it */
    uint64_t dropped;
};

/* --- towards the world ---------------------------------------------------------------------- */

static bool may_reach(const struct association *a, const struct endpoint *to)
{
    if (to->port == 0)
        return false;
    if (addr_is_loopback(&to->addr))
        return a->server->options->outbound->allow_loopback;
    return addr_is_routable(&to->addr);
}

static void send_out(struct association *a, const struct endpoint *to, const uint8_t *payload,
                     size_t len)
{
    const struct iovec piece = {(void *)(uintptr_t)payload, len};

    if (!may_reach(a, to) || (!a->outer.v6 && !addr_is_v4(&to->addr))) {
        a->dropped++;
        return;
    }
    a->passed++;
    udp_batch_send(a->server->batch, &a->outer, to, &piece, 1);
}

static void free_name(struct udp_name *n)
{
    if (n->request)
        resolver_cancel(n->request);
    LIST_EACH (it, &n->waiting)
        free(CONTAINER_OF(it, struct waiting, link));
    list_remove(&n->link);
    n->association->name_count--;
    free(n);
}

/* The first address that may be reached; resolver answers are in the order of RFC 6724. */
static const struct addr *choose(const struct association *a, const struct resolver_answer *answer)
{
    for (size_t i = 0; i < answer->count; i++) {
        const struct endpoint e = {answer->addrs[i], 1};
        if (may_reach(a, &e) && (a->outer.v6 || addr_is_v4(&e.addr)))
            return &answer->addrs[i];
    }
    return NULL;
}

static void on_resolved(void *arg, const struct resolver_answer *answer)
{
    struct udp_name *n = arg;
    struct association *a = n->association;
    const struct addr *found = choose(a, answer);

    n->request = NULL;
    if (!found) {
        a->dropped += n->waiting_count;
        free_name(n);
        return;
    }
    n->addr = *found;
    struct udp_batch *batch = a->server->batch;
    LIST_EACH (it, &n->waiting) {
        struct waiting *w = CONTAINER_OF(it, struct waiting, link);
        uint16_t port = (uint16_t)(w->bytes[0] << 8 | w->bytes[1]);
        send_out(a, &(struct endpoint){n->addr, port}, w->bytes + 2, w->len - 2);
    }
    udp_batch_flush(batch);
    LIST_EACH (it, &n->waiting)
        free(CONTAINER_OF(it, struct waiting, link));
    list_init(&n->waiting);
    n->waiting_count = 0;
    n->waiting_bytes = 0;
}

static struct udp_name *find_name(struct association *a, const char *text)
{
    uint64_t now = loop_now(a->server->loop);

    LIST_EACH (it, &a->names) {
        struct udp_name *n = CONTAINER_OF(it, struct udp_name, link);
        if (strcmp(n->text, text) != 0)
            continue;
        if (!n->request && now - n->used_ms > NAME_UNUSED_MS) {
            free_name(n);
            return NULL;
        }
        n->used_ms = now;
        list_remove(&n->link);
        list_push_front(&a->names, &n->link);
        return n;
    }
    return NULL;
}

static struct udp_name *new_name(struct association *a, const char *text)
{
    size_t size = strlen(text) + 1;
    struct udp_name *n = calloc(1, sizeof *n + size);

    if (!n)
        return NULL;
    if (a->name_count == NAMES_MAX)
        free_name(CONTAINER_OF(a->names.prev, struct udp_name, link));
    n->association = a;
    n->used_ms = loop_now(a->server->loop);
    memcpy(n->text, text, size);
    list_init(&n->waiting);
    list_push_front(&a->names, &n->link);
    a->name_count++;
    n->request = resolver_lookup(a->server->resolver, text, on_resolved, n);
    if (n->request)
        return n;
    free_name(n);
    return NULL;
}

static void wait_for_name(struct udp_name *n, uint16_t port, const uint8_t *payload, size_t len)
{
    struct waiting *w = NULL;

    if (n->waiting_count < WAITING_MAX && n->waiting_bytes + len <= WAITING_BYTES_MAX)
        w = malloc(sizeof *w + 2 + len);
    if (!w) {
        n->association->dropped++;
        return;
    }
    w->len = 2 + len;
    w->bytes[0] = (uint8_t)(port >> 8);
    w->bytes[1] = (uint8_t)port;
    memcpy(w->bytes + 2, payload, len);
    list_push_back(&n->waiting, &w->link);
    n->waiting_count++;
    n->waiting_bytes += len;
}

static void send_to_name(struct association *a, const struct socks5_datagram *d)
{
    struct udp_name *n = find_name(a, d->name);

    if (!n)
        n = new_name(a, d->name);
    if (!n)
        a->dropped++;
    else if (n->request)
        wait_for_name(n, d->from.port, d->payload, d->payload_len);
    else
        send_out(a, &(struct endpoint){n->addr, d->from.port}, d->payload, d->payload_len);
}

/* Is this the client? Its first datagram tells its port. */
static bool is_client(struct association *a, const struct endpoint *from)
{
    if (!addr_equal(&from->addr, &a->request.client.addr))
        return false;
    if (a->client.port != 0)
        return from->port == a->client.port;
    a->client = *from;
    return batch_socket_connect(&a->inner, from) == 0;
}

static void relay_out(struct association *a, const struct udp_received *item)
{
    struct socks5_datagram d;

    if (item->len == 0 || !is_client(a, &item->from)) {
        a->dropped++;
        return;
    }
    for (size_t at = 0; at < item->len; at += item->segment) {
        size_t left = item->len - at;
        size_t len = left < item->segment ? left : item->segment;
        if (!socks5_datagram_parse(item->payload + at, len, &d))
            a->dropped++;
        else if (d.is_name)
            send_to_name(a, &d);
        else
            send_out(a, &d.from, d.payload, d.payload_len);
    }
}

/* --- towards the client --------------------------------------------------------------------- */

static void relay_in(struct association *a, const struct udp_received *item)
{
    const struct target from = {.addr = item->from.addr, .port = item->from.port};
    size_t header = socks5_datagram_prepend(item->payload, &from);
    struct udp_batch *batch = a->server->batch;

    /* Behind its header lies the first datagram already; the others borrow it. */
    struct iovec whole = {item->payload - header, header + item->segment};
    if (item->segment >= item->len) {
        a->passed++;
        udp_batch_send(batch, &a->inner, NULL, &whole, 1);
        return;
    }
    for (size_t at = 0; at < item->len; at += item->segment) {
        size_t left = item->len - at;
        const struct iovec pieces[2] = {
            {item->payload - header, header},
            {item->payload + at, left < item->segment ? left : item->segment},
        };
        a->passed++;
        udp_batch_send(batch, &a->inner, NULL, pieces, 2);
    }
}

/* --- sockets -------------------------------------------------------------------------------- */

static void note_use(struct association *a)
{
    a->used_ms = loop_now(a->server->loop);
    list_remove(&a->link);
    list_push_back(&a->server->associations, &a->link);
}

static void on_inner(void *arg, unsigned ready)
{
    struct association *a = arg;
    struct udp_batch *batch = a->server->batch;
    (void)ready;

    note_use(a);

    for (int i = 0; i < BATCHES_A_TURN; i++) {
        int count = udp_batch_receive(batch, &a->inner);
        for (int n = 0; n < count; n++)
            relay_out(a, udp_batch_item(batch, n));
        udp_batch_flush(batch);
        if (!udp_batch_was_full(batch))
            return;
    }
}

static void on_outer(void *arg, unsigned ready)
{
    struct association *a = arg;
    struct udp_batch *batch = a->server->batch;
    (void)ready;

    note_use(a);

    for (int i = 0; i < BATCHES_A_TURN; i++) {
        int count = udp_batch_receive(batch, &a->outer);
        for (int n = 0; n < count; n++) {
            if (a->client.port != 0)
                relay_in(a, udp_batch_item(batch, n));
            else
                a->dropped++;
        }
        udp_batch_flush(batch);
        if (!udp_batch_was_full(batch))
            return;
    }
}

static void on_idle_timer(void *arg)
{
    struct association *a = arg;

    if (a->passed == a->passed_before) {
        a->request.idle(a->request.arg);
        return;
    }
    a->passed_before = a->passed;
    loop_timer_start(a->server->loop, &a->idle_timer,
                     1000ull * a->server->options->udp_idle_timeout_s, on_idle_timer, a);
}

static int take_socket(const struct association *a, struct batch_socket *s, int fd, bool v6,
                       bool v6_only)
{
    if (fd < 0)
        return fd;
    batch_socket_init(s, fd, v6, v6_only);
    if (!a->server->options->outbound->broker) /* whose sockets have large buffers already */
        batch_socket_widen(s);
    return 0;
}

static int open_inner(struct association *a)
{
    struct endpoint local = {a->request.local.addr, 0};
    bool v6 = !addr_is_v4(&local.addr);
    int fd = outbound_open_inner(a->server->options->outbound, v6 ? AF_INET6 : AF_INET);
    int error = take_socket(a, &a->inner, fd, v6, true);
    if (error == 0)
        error = batch_socket_bind(&a->inner, &local);
    if (error == 0)
        error = loop_watch(a->server->loop, &a->inner_io, a->inner.fd, LOOP_READ, on_inner, a);
    return error;
}

static int open_outer(struct association *a)
{
    const struct outbound_options *outbound = a->server->options->outbound;
    int fd = outbound_open(outbound, AF_INET6, SOCK_DGRAM);
    bool v6 = fd != -EAFNOSUPPORT; /* a kernel without IPv6 */
    if (!v6)
        fd = outbound_open(outbound, AF_INET, SOCK_DGRAM);
    int error = take_socket(a, &a->outer, fd, v6, false);
    if (error == 0)
        error = loop_watch(a->server->loop, &a->outer_io, a->outer.fd, LOOP_READ, on_outer, a);
    return error;
}

/* RFC 1928, 4: the request may name the port that the client will send from. */
static int take_hint(struct association *a)
{
    const struct endpoint *hint = &a->request.hint;
    bool about_client =
        addr_is_unspecified(&hint->addr) || addr_equal(&hint->addr, &a->request.client.addr);

    if (hint->port == 0 || !about_client)
        return 0;
    a->client = (struct endpoint){a->request.client.addr, hint->port};
    return batch_socket_connect(&a->inner, &a->client);
}

static void close_sockets(struct association *a)
{
    loop_timer_stop(&a->idle_timer);
    loop_ignore(&a->inner_io);
    loop_ignore(&a->outer_io);
    batch_socket_close(&a->inner);
    batch_socket_close(&a->outer);
}

bool association_evict(struct server *s)
{
    struct link *first = list_first(&s->associations);

    if (!first)
        return false;
    struct association *a = CONTAINER_OF(first, struct association, link);
    if (loop_now(s->loop) - a->used_ms < EVICT_AFTER_MS)
        return false;
    close_sockets(a);
    list_remove(&a->link);
    a->request.idle(a->request.arg);
    return true;
}

static int open_sockets(struct association *a)
{
    int error = open_inner(a);
    if (error == 0)
        error = open_outer(a);
    if (error < 0)
        close_sockets(a);
    return error;
}

struct association *association_new(struct server *s, const struct association_request *request,
                                    struct endpoint *bound, int *error)
{
    struct association *a = calloc(1, sizeof *a);

    if (!a) {
        *error = -ENOMEM;
        return NULL;
    }
    a->server = s;
    a->request = *request;
    a->inner.fd = a->outer.fd = -1;
    list_init(&a->link);
    list_init(&a->names);
    *error = open_sockets(a);
    if ((*error == -EMFILE || *error == -ENFILE) && association_evict(s))
        *error = open_sockets(a);
    if (*error == 0)
        *error = take_hint(a);
    if (*error == 0)
        *error = batch_socket_name(&a->inner, bound);
    if (*error < 0) {
        association_free(a);
        return NULL;
    }
    note_use(a);
    if (s->options->udp_idle_timeout_s > 0)
        loop_timer_start(s->loop, &a->idle_timer, 1000ull * s->options->udp_idle_timeout_s,
                         on_idle_timer, a);
    return a;
}

void association_free(struct association *a)
{
    log_debug("serve %llu: association over, %llu datagrams passed, %llu dropped",
              (unsigned long long)a->request.id, (unsigned long long)a->passed,
              (unsigned long long)a->dropped);
    close_sockets(a);
    list_remove(&a->link);
    while (!list_empty(&a->names))
        free_name(CONTAINER_OF(a->names.next, struct udp_name, link));
    free(a);
}
