/*
 * Theory of operation: UDP associations.
 *
 * A SOCKS5 association (RFC 1928, 7) is a control connection, over which it was asked for, and a
 * relay address, to which datagrams go with a header that names the target and from which answers
 * come with a header that names their origin. Each source address and port in the tunnel gets
 * one association, whatever number of destinations it talks to, and everything that comes back
 * through it is handed to that source: mapping and filtering are endpoint-independent (RFC 4787,
 * 4.1 and 5), as far as the proxy's are.
 *
 *            datagram                proxy's reply
 *   (none) ----------> DIALING ------------------------> OPEN
 *     ^                 ^   | cannot be made              | control connection closed, idle,
 *     |        datagram,|   v                             | evicted, socket failed
 *     |        not too  BACKOFF                           v
 *     |        early        `--------- idle ----------> CLOSED
 *     `-------------------------------------------------'  freed at the turn's end
 *
 *   DIALING  a dial is under way; datagrams wait in the queue, which is bounded for each
 *            association and for all together
 *   OPEN     control connection and relay socket exist; nothing waits, no buffer is owned
 *   BACKOFF  the dial failed a moment ago: datagrams are answered with port unreachable; the
 *            first one after BACKOFF_MS dials again. Owns no descriptor
 *   CLOSED   unhooked from everything; only its memory is left
 *
 * A proxy that does not do UDP (reply 7, or closing without one) is remembered by proxy.c for a
 * minute, during which no association is made at all: port unreachable comes at once, and QUIC
 * falls back to TCP.
 *
 * direct:// has no proxy: an association is OPEN from the beginning and has one unconnected
 * socket for each address family in use. Datagrams to names wait in the queue until the
 * resolver has answered.
 *
 * This file keeps the associations; udp_association.c does the work of one. Destinations and
 * answers go through udp_peers.h, which knows about fake addresses; sockets through
 * udp_socket.h, which sends and receives in batches; what comes back is joined to super-packets
 * by udp_train.h; what has to wait lies in a udp_queue.h.
 *
 * Time: associations lie in one list, idle longest first, and one timer is set for the first of
 * them. A datagram in either direction moves its association to the list's end and nothing else.
 */
#include "core/udp/udp_association.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "socks/datagram.h"

static const char *const state_names[] = {
    [ASSOCIATION_DIALING] = "dialing",
    [ASSOCIATION_OPEN] = "open",
    [ASSOCIATION_BACKOFF] = "backing off",
    [ASSOCIATION_CLOSED] = "closed",
};
static_assert(sizeof(state_names) / sizeof(state_names[0]) == ASSOCIATION_CLOSED + 1,
              "every state has a name");

struct log_limit udp_trouble_limit = LOG_LIMIT(5);

bool udp_is_direct(const struct udp_flows *u)
{
    return proxy_is_direct(u->worker->proxy);
}

void association_set_state(struct association *a, enum association_state state)
{
    char text[ENDPOINT_TEXT_MAX];
    log_trace("udp %" PRIu64 " %s: %s -> %s", a->id, endpoint_format(&a->source, text),
              state_names[a->state], state_names[state]);
    a->state = state;
}

void udp_refuse(struct udp_flows *u, const struct endpoint *source, const struct udp_datagram *d)
{
    size_t len = d->gso_size != 0 && d->gso_size < d->len ? d->gso_size : d->len;
    stack_send_unreachable(u->worker->stack, source, &d->dst, d->payload, len, UNREACHABLE_PORT);
}

/* --- life and death --------------------------------------------------------------------------- */

static bool source_equal(const struct map_entry *entry, const void *key)
{
    const struct association *a = CONTAINER_OF(entry, struct association, by_source);
    return endpoint_equal(&a->source, key);
}

static uint64_t source_hash(const struct endpoint *source)
{
    uint8_t key[sizeof(source->addr.bytes) + sizeof(source->port)];
    memcpy(key, source->addr.bytes, sizeof(source->addr.bytes));
    memcpy(key + sizeof(source->addr.bytes), &source->port, sizeof(source->port));
    return hash_bytes(key, sizeof(key));
}

static void reap(void *arg)
{
    struct udp_flows *u = arg;
    LIST_EACH (it, &u->dead) {
        list_remove(it);
        free(CONTAINER_OF(it, struct association, lru));
    }
}

void association_close(struct association *a)
{
    struct udp_flows *u = a->flows;
    assert(a->state != ASSOCIATION_CLOSED);
    association_release(a);
    map_remove(&u->by_source, &a->by_source);
    list_remove(&a->lru);
    u->worker->flow_count--;
    association_set_state(a, ASSOCIATION_CLOSED);
    list_push_back(&u->dead, &a->lru);
    loop_defer(u->worker->loop, &u->reap, reap, u);
}

static uint64_t idle_timeout_ms(const struct udp_flows *u)
{
    return (uint64_t)u->worker->limits->udp_idle_timeout_s * 1000;
}

static void on_idle_timer(void *arg)
{
    struct udp_flows *u = arg;
    uint64_t now = loop_now(u->worker->loop);
    struct link *first;
    while ((first = list_first(&u->lru)) != NULL) {
        struct association *a = CONTAINER_OF(first, struct association, lru);
        uint64_t due = a->last_active_ms + idle_timeout_ms(u);
        if (due > now) {
            loop_timer_start(u->worker->loop, &u->idle_timer, due - now, on_idle_timer, u);
            return;
        }
        association_close(a);
    }
    if (u->receiver)
        udp_receiver_trim(u->receiver); /* nobody is left: nothing need stay in memory */
    if (u->worker->on_quiet)
        u->worker->on_quiet(u->worker);
}

void association_touch(struct association *a)
{
    struct udp_flows *u = a->flows;
    a->last_active_ms = loop_now(u->worker->loop);
    u->worker->relayed = true;
    list_remove(&a->lru);
    list_push_back(&u->lru, &a->lru);
}

/* May one more flow be? An association gives way first, where there is one. */
static bool make_room(struct udp_flows *u)
{
    struct worker *w = u->worker;
    if (w->flow_count < w->limits->max_flows || udp_flows_evict(u) || tcp_flows_evict(w->tcp))
        return true;
    log_limited(LOG_LEVEL_WARN, &udp_trouble_limit,
                "a UDP source is dropped: all %u flows are in use (--max-flows)",
                w->limits->max_flows);
    return false;
}

static struct association *association_new(struct udp_flows *u, const struct endpoint *source)
{
    struct worker *w = u->worker;
    struct association *a = make_room(u) ? memory_zeroed(sizeof(*a)) : NULL;
    if (!a)
        return NULL;
    a->flows = u;
    a->source = *source;
    a->id = w->next_flow_id++;
    a->control_fd = -1;
    for (size_t i = 0; i < 2; i++) {
        udp_socket_init(&a->sockets[i]);
        a->sockets[i].owner = a;
    }
    udp_peers_init(&a->peers, w->dns);
    udp_queue_init(&a->queue, &u->queued_bytes);
    list_init(&a->lru);
    map_insert(&u->by_source, &a->by_source, source_hash(source));
    w->flow_count++;
    association_touch(a);
    if (!u->idle_timer.pending)
        loop_timer_start(w->loop, &u->idle_timer, idle_timeout_ms(u), on_idle_timer, u);
    return a;
}

/* --- from the tunnel -------------------------------------------------------------------------- */

static struct association *find(struct udp_flows *u, const struct endpoint *source)
{
    struct map_entry *entry = map_find(&u->by_source, source_hash(source), source);
    return entry ? CONTAINER_OF(entry, struct association, by_source) : NULL;
}

/* Is UDP refused as such, whatever the source? */
static bool udp_is_refused(const struct udp_flows *u)
{
    switch (u->worker->limits->udp_mode) {
    case UDP_BLOCK:
        return true;
    case UDP_ASSOCIATE:
        break;
    }
    return !udp_is_direct(u) && proxy_udp_refused(u->worker->proxy);
}

/* The first datagram of a source; NULL when it was refused or dropped. */
static struct association *begin(struct udp_flows *u, const struct endpoint *source,
                                 const struct udp_datagram *d)
{
    char name[256];
    if (udp_is_refused(u) ||
        dns_fake_lookup(u->worker->dns, &d->dst.addr, name) == DNS_FAKE_UNKNOWN) {
        udp_refuse(u, source, d);
        return NULL;
    }
    struct association *a = association_new(u, source);
    if (a)
        association_start(a);
    return a;
}

void udp_flows_datagram(struct udp_flows *u, const struct endpoint *src, const struct endpoint *dst,
                        uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom)
{
    assert(headroom >= SOCKS5_DATAGRAM_HEADER_MAX);
    (void)headroom;
    struct udp_datagram d = {.dst = *dst, .payload = payload, .len = len, .gso_size = gso_size};
    struct association *a = find(u, src);
    if (!a)
        a = begin(u, src, &d);
    if (!a)
        return;
    association_touch(a);
    if (a->state == ASSOCIATION_BACKOFF && loop_now(u->worker->loop) >= a->retry_at_ms &&
        !udp_is_refused(u))
        association_start(a);
    association_relay(a, &d);
}

void udp_flows_batch_end(struct udp_flows *u)
{
    if (u->sender)
        udp_sender_flush(u->sender);
}

enum { SETTLE_MS = 100 };

bool udp_flows_sending(const struct udp_flows *u)
{
    if (u->queued_bytes > 0)
        return true;
    if (list_empty(&u->lru))
        return false;
    const struct association *latest = CONTAINER_OF(u->lru.prev, struct association, lru);
    return loop_now(u->worker->loop) - latest->last_active_ms < SETTLE_MS;
}

bool udp_flows_evict(struct udp_flows *u)
{
    struct link *first = list_first(&u->lru);
    if (!first)
        return false;
    association_close(CONTAINER_OF(first, struct association, lru));
    return true;
}

struct udp_flows *udp_flows_new(struct worker *w)
{
    struct udp_flows *u = memory_zeroed(sizeof(*u));
    if (!u || map_init(&u->by_source, 64, source_equal) < 0) {
        free(u);
        return NULL;
    }
    u->worker = w;
    list_init(&u->lru);
    list_init(&u->dead);
    return u;
}

void udp_flows_free(struct udp_flows *u)
{
    if (!u)
        return;
    while (udp_flows_evict(u))
        continue;
    loop_undefer(&u->reap);
    reap(u);
    loop_timer_stop(&u->idle_timer);
    udp_sender_free(u->sender);
    udp_receiver_free(u->receiver);
    map_free(&u->by_source);
    free(u);
}
