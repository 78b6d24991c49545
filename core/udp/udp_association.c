#include "core/udp/udp_association.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "socks/datagram.h"

enum {
    BACKOFF_MS = 1000,
    NOISE_MAX = 64 << 10, /* bytes that a proxy may say on a control connection, for nothing */
    YIELD_MS = 1000,      /* idle for so long, an association gives its descriptors to a new one */
    KEEPALIVE_S = 60,     /* first probe of an idle control connection, for the sake of NATs */
};

static const struct outbound_options *outbound(const struct udp_flows *u)
{
    return proxy_outbound(u->worker->proxy);
}

/* Tell the application that what waits will not get through; `dst` NULL: to wherever it goes. */
static void refuse_queue(struct association *a, const struct endpoint *dst)
{
    LIST_EACH (it, &a->queue.items) {
        struct udp_queued *item = CONTAINER_OF(it, struct udp_queued, link);
        if (dst && !endpoint_equal(dst, &item->datagram.dst))
            continue;
        udp_refuse(a->flows, &a->source, &item->datagram);
        udp_queue_take(&a->queue, item);
        free(item);
    }
}

static void close_descriptors(struct association *a)
{
    loop_ignore(&a->control_io);
    if (a->control_fd >= 0)
        close(a->control_fd);
    a->control_fd = -1;
    udp_socket_close(&a->sockets[0]);
    udp_socket_close(&a->sockets[1]);
}

void association_release(struct association *a)
{
    if (a->dial)
        dial_cancel(a->dial);
    a->dial = NULL;
    close_descriptors(a);
    udp_queue_clear(&a->queue);
    udp_peers_clear(&a->peers);
}

/* --- from the world --------------------------------------------------------------------------- */

/* Hand a datagram to the application, unless nothing can have come from there. */
static void deliver(struct association *a, const struct endpoint *from, uint8_t *payload,
                    size_t len, uint8_t *end)
{
    bool possible = from->port != 0 && addr_is_routable(&from->addr) &&
                    !addr_is_loopback(&from->addr) &&
                    addr_is_v4(&from->addr) == addr_is_v4(&a->source.addr);
    if (possible)
        udp_train_add(&a->flows->train, from, &a->source, payload, len, end);
}

/* From the relay: a header, then the payload (RFC 1928, 7). */
static void on_relayed(void *arg, const struct udp_received *received)
{
    struct association *a = arg;
    struct socks5_datagram d;
    if (!socks5_datagram_parse(received->bytes, received->len, &d))
        return;
    if (!d.is_name)
        udp_peers_map_address(&a->peers, &d.from);
    else if (!udp_peers_map_name(&a->peers, d.name, &d.from))
        return;
    uint8_t *payload = received->bytes + (d.payload - received->bytes);
    deliver(a, &d.from, payload, d.payload_len, received->end);
}

static void on_direct(void *arg, const struct udp_received *received)
{
    struct association *a = arg;
    struct endpoint from = received->from;
    udp_peers_map_address(&a->peers, &from);
    deliver(a, &from, received->bytes, received->len, received->end);
}

static void on_socket_ready(void *arg, unsigned ready)
{
    (void)ready;
    struct udp_socket *s = arg;
    struct association *a = s->owner;
    struct udp_flows *u = a->flows;
    int n = udp_receiver_read(u->receiver, s, udp_is_direct(u) ? on_direct : on_relayed, a);
    udp_train_flush(&u->train);
    if (n > 0)
        association_touch(a);
    if (n >= 0)
        return;
    log_limited(LOG_LEVEL_WARN, &udp_trouble_limit, "udp %" PRIu64 ": its socket failed: %s", a->id,
                strerror(-n));
    association_close(a);
}

/* Buffers that are shared by all associations, made as the first needs them. */
static int prepare_buffers(struct udp_flows *u)
{
    if (u->sender && u->receiver)
        return 0;
    if (!u->sender)
        u->sender = udp_sender_new();
    if (!u->receiver)
        u->receiver = udp_receiver_new();
    udp_train_init(&u->train, u->worker->stack, u->worker->device);
    return u->sender && u->receiver ? 0 : -ENOMEM;
}

static int open_socket(struct association *a, struct udp_socket *s, int family,
                       const struct endpoint *peer)
{
    struct udp_flows *u = a->flows;
    int error = prepare_buffers(u);
    if (error == 0)
        error = udp_socket_open(s, family, peer, outbound(u));
    if (error == 0)
        error = loop_watch(u->worker->loop, &s->io, s->fd, LOOP_READ, on_socket_ready, s);
    if (error == 0)
        return 0;
    udp_socket_close(s);
    log_limited(LOG_LEVEL_WARN, &udp_trouble_limit, "udp %" PRIu64 ": no socket: %s", a->id,
                strerror(-error));
    return error;
}

/* --- to the world ----------------------------------------------------------------------------- */

/* `to` NULL: to the relay, each datagram with the header that lies before the payload. */
static void gather(struct association *a, struct udp_socket *s, const struct udp_datagram *d,
                   size_t header_len, const struct endpoint *to)
{
    struct udp_unit unit = {
        .header = header_len ? d->payload - header_len : NULL,
        .header_len = header_len,
        .payload = d->payload,
        .to = to,
    };
    size_t size = d->gso_size ? d->gso_size : d->len;
    size_t left = d->len;
    do {
        unit.len = left < size ? left : size;
        udp_sender_add(a->flows->sender, s, &unit);
        unit.payload += unit.len;
        left -= unit.len;
    } while (left > 0);
}

static void send_to_relay(struct association *a, const struct udp_datagram *d)
{
    struct udp_peer *peer = NULL;
    struct target target = {.addr = d->dst.addr, .port = d->dst.port};
    switch (udp_peers_find(&a->peers, &d->dst, &peer)) {
    case UDP_PEER_UNKNOWN:
        udp_refuse(a->flows, &a->source, d);
        return;
    case UDP_PEER_NAMED:
        target.name = peer->name;
        break;
    case UDP_PEER_DIRECT:
        break;
    }
    size_t header_len = socks5_datagram_prepend(d->payload, &target);
    gather(a, &a->sockets[0], d, header_len, NULL);
}

static bool is_allowed(const struct udp_flows *u, const struct addr *to)
{
    return addr_is_routable(to) && (outbound(u)->allow_loopback || !addr_is_loopback(to));
}

static void send_directly(struct association *a, const struct udp_datagram *d,
                          const struct endpoint *to)
{
    bool v4 = addr_is_v4(&to->addr);
    struct udp_socket *s = &a->sockets[v4 ? 0 : 1];
    if (!is_allowed(a->flows, &to->addr) ||
        (s->fd < 0 && open_socket(a, s, v4 ? AF_INET : AF_INET6, NULL) < 0)) {
        udp_refuse(a->flows, &a->source, d);
        return;
    }
    gather(a, s, d, 0, to);
}

static void on_resolved(void *arg, const struct resolver_answer *answer);

/* direct://, to a fake address: false while the name is being resolved. */
static bool send_to_named(struct association *a, const struct udp_datagram *d,
                          struct udp_peer *peer)
{
    if (peer->real.port != 0) {
        send_directly(a, d, &peer->real);
        return true;
    }
    if (peer->request)
        return false;
    peer->owner = a;
    peer->request = resolver_lookup(a->flows->worker->resolver, peer->name, on_resolved, peer);
    if (peer->request)
        return false;
    udp_refuse(a->flows, &a->source, d);
    return true;
}

/* direct://: false if it has to wait. */
static bool try_direct(struct association *a, const struct udp_datagram *d)
{
    struct udp_peer *peer = NULL;
    switch (udp_peers_find(&a->peers, &d->dst, &peer)) {
    case UDP_PEER_UNKNOWN:
        udp_refuse(a->flows, &a->source, d);
        return true;
    case UDP_PEER_NAMED:
        return send_to_named(a, d, peer);
    case UDP_PEER_DIRECT:
        break;
    }
    send_directly(a, d, &d->dst);
    return true;
}

/* Send what waited, as far as it need not wait longer. */
static void send_queue(struct association *a)
{
    struct udp_flows *u = a->flows;
    struct link sent;
    list_init(&sent);
    LIST_EACH (it, &a->queue.items) {
        struct udp_queued *item = CONTAINER_OF(it, struct udp_queued, link);
        if (!udp_is_direct(u))
            send_to_relay(a, &item->datagram);
        else if (!try_direct(a, &item->datagram))
            continue;
        udp_queue_take(&a->queue, item);
        list_push_back(&sent, it);
    }
    if (u->sender)
        udp_sender_flush(u->sender);
    LIST_EACH (it, &sent)
        free(CONTAINER_OF(it, struct udp_queued, link));
}

static void on_resolved(void *arg, const struct resolver_answer *answer)
{
    struct udp_peer *peer = arg;
    struct association *a = peer->owner;
    peer->request = NULL;
    for (size_t i = 0; i < answer->count && peer->real.port == 0; i++) {
        if (is_allowed(a->flows, &answer->addrs[i]))
            peer->real = (struct endpoint){.addr = answer->addrs[i], .port = peer->fake.port};
    }
    if (peer->real.port == 0) {
        refuse_queue(a, &peer->fake);
        udp_peers_forget(&a->peers, peer);
        return;
    }
    send_queue(a);
}

/* --- making an association -------------------------------------------------------------------- */

/*
 * Out of descriptors: the association that was idle longest makes room for the next attempt,
 * unless all are busy.
 */
static void yield_descriptors(struct udp_flows *u, int error)
{
    struct link *first = list_first(&u->lru);
    if (!first || (error != EMFILE && error != ENFILE))
        return;
    struct association *idle = CONTAINER_OF(first, struct association, lru);
    if (idle->last_active_ms + YIELD_MS < loop_now(u->worker->loop))
        association_close(idle);
}

/* What waited is refused; the next datagram may try again in a moment. */
static void back_off(struct association *a)
{
    close_descriptors(a);
    refuse_queue(a, NULL);
    a->retry_at_ms = loop_now(a->flows->worker->loop) + BACKOFF_MS;
    association_set_state(a, ASSOCIATION_BACKOFF);
}

static void give_up_on_udp(struct association *a, const char *why)
{
    proxy_note_udp_refused(a->flows->worker->proxy, why);
    refuse_queue(a, NULL);
    association_close(a);
}

static void on_control_ready(void *arg, unsigned ready)
{
    (void)ready;
    struct association *a = arg;
    uint8_t ignored[4096]; /* nothing is defined to come here */
    ssize_t n = recv(a->control_fd, ignored, sizeof(ignored), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        a->noise += (uint32_t)n;
        if (a->noise <= NOISE_MAX)
            return;
        log_limited(LOG_LEVEL_WARN, &udp_trouble_limit,
                    "the proxy floods an association's control connection: given up");
        back_off(a);
        return;
    }
    log_debug("udp %" PRIu64 ": the proxy has ended the association%s%s", a->id, n < 0 ? ": " : "",
              n < 0 ? strerror(errno) : "");
    association_close(a);
}

static void keep_alive(int fd)
{
    int on = 1;
    int idle = KEEPALIVE_S;
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof(idle));
}

/*
 * Where datagrams go: BND.ADDR (RFC 1928, 6), or the proxy's own address where that is not said,
 * or where it is a loopback address that makes sense to the proxy only. False: it makes none.
 */
static bool relay_address(const struct dial_result *result, struct endpoint *relay)
{
    *relay = result->bound;
    bool misses = addr_is_unspecified(&relay->addr) ||
                  (addr_is_loopback(&relay->addr) && !addr_is_loopback(&result->peer.addr));
    if (misses)
        relay->addr = result->peer.addr;
    return relay->port != 0 && !addr_is_multicast(&relay->addr) && !addr_is_broadcast(&relay->addr);
}

static void on_dialed_ok(struct association *a, const struct dial_result *result)
{
    struct loop *loop = a->flows->worker->loop;
    char source[ENDPOINT_TEXT_MAX];
    char text[ENDPOINT_TEXT_MAX];
    struct endpoint relay;
    a->control_fd = result->fd;
    a->noise = 0;
    keep_alive(result->fd);
    if (!relay_address(result, &relay)) {
        log_limited(LOG_LEVEL_WARN, &udp_trouble_limit,
                    "the proxy's relay address for UDP makes no sense: %s",
                    endpoint_format(&relay, text));
        back_off(a);
        return;
    }
    int family = addr_is_v4(&relay.addr) ? AF_INET : AF_INET6;
    if (loop_watch(loop, &a->control_io, a->control_fd, LOOP_READ, on_control_ready, a) < 0 ||
        open_socket(a, &a->sockets[0], family, &relay) < 0) {
        back_off(a);
        return;
    }
    log_debug("udp %" PRIu64 ": %s is relayed by %s", a->id, endpoint_format(&a->source, source),
              endpoint_format(&relay, text));
    association_set_state(a, ASSOCIATION_OPEN);
    send_queue(a);
}

static void on_dialed(void *arg, const struct dial_result *result)
{
    struct association *a = arg;
    a->dial = NULL;
    switch (result->status) {
    case DIAL_OK:
        on_dialed_ok(a, result);
        return;
    case DIAL_CLOSED:
        if (result->error == 0) {
            give_up_on_udp(a, "it closes the connection without an answer");
            return;
        }
        break; /* cut off, as by the proxy's end: that says nothing about UDP */
    case DIAL_REPLY:
        if (result->reply == SOCKS5_REPLY_COMMAND_NOT_SUPPORTED) {
            give_up_on_udp(a, socks5_reply_name(result->reply));
            return;
        }
        log_limited(LOG_LEVEL_WARN, &udp_trouble_limit, "the proxy refuses an association: %s",
                    socks5_reply_name(result->reply));
        back_off(a);
        return;
    case DIAL_NO_PROXY:
    case DIAL_AUTH:
    case DIAL_NONSENSE:
    case DIAL_TIMEOUT:
        break;
    case DIAL_NO_RESOURCES: /* our own trouble is no news about the target: lost in silence */
        udp_queue_clear(&a->queue);
        log_limited(LOG_LEVEL_WARN, &udp_trouble_limit, "UDP datagrams are lost: %s: %s",
                    dial_status_name(result->status), strerror(result->error));
        back_off(a);
        yield_descriptors(a->flows, result->error);
        return;
    }
    log_limited(LOG_LEVEL_WARN, &udp_trouble_limit, "no association: %s%s%s",
                dial_status_name(result->status), result->error ? ": " : "",
                result->error ? strerror(result->error) : "");
    back_off(a);
}

void association_start(struct association *a)
{
    static const uint8_t any[4] = {0};
    if (udp_is_direct(a->flows)) {
        association_set_state(a, ASSOCIATION_OPEN);
        return;
    }
    struct target nowhere = {.addr = addr_from_v4(any)};
    association_set_state(a, ASSOCIATION_DIALING);
    a->dial = dial_start(a->flows->worker->proxy, SOCKS5_UDP_ASSOCIATE, &nowhere, on_dialed, a);
    if (!a->dial)
        back_off(a);
}

/* --- from the tunnel -------------------------------------------------------------------------- */

/* Finding the peer now keeps its name from being recycled meanwhile. */
static void wait_for_relay(struct association *a, const struct udp_datagram *d)
{
    struct udp_peer *peer = NULL;
    if (udp_peers_find(&a->peers, &d->dst, &peer) == UDP_PEER_UNKNOWN)
        udp_refuse(a->flows, &a->source, d);
    else
        udp_queue_push(&a->queue, d);
}

void association_relay(struct association *a, const struct udp_datagram *d)
{
    switch (a->state) {
    case ASSOCIATION_DIALING:
        wait_for_relay(a, d);
        return;
    case ASSOCIATION_OPEN:
        if (!udp_is_direct(a->flows))
            send_to_relay(a, d);
        else if (!try_direct(a, d))
            udp_queue_push(&a->queue, d);
        return;
    case ASSOCIATION_BACKOFF:
        udp_refuse(a->flows, &a->source, d);
        return;
    case ASSOCIATION_CLOSED:
        return;
    }
}
