#include "core/udp/udp_peers.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/base/memory.h"

void udp_peers_init(struct udp_peers *p, struct dns *dns)
{
    memset(p, 0, sizeof(*p));
    p->dns = dns;
    list_init(&p->named);
}

void udp_peers_forget(struct udp_peers *p, struct udp_peer *peer)
{
    if (peer->request)
        resolver_cancel(peer->request);
    dns_fake_release(p->dns, &peer->fake.addr);
    list_remove(&peer->link);
    p->named_count--;
    free(peer);
}

void udp_peers_clear(struct udp_peers *p)
{
    LIST_EACH (it, &p->named)
        udp_peers_forget(p, CONTAINER_OF(it, struct udp_peer, link));
}

static struct udp_peer *add_peer(struct udp_peers *p, const struct endpoint *fake, const char *name)
{
    if (p->named_count >= UDP_PEERS_MAX)
        udp_peers_forget(p, CONTAINER_OF(p->named.prev, struct udp_peer, link));
    size_t size = strlen(name) + 1;
    struct udp_peer *peer = memory_zeroed(sizeof(*peer) + size);
    if (!peer)
        return NULL;
    memcpy(peer->name, name, size);
    peer->fake = *fake;
    dns_fake_hold(p->dns, &fake->addr);
    list_push_front(&p->named, &peer->link);
    p->named_count++;
    return peer;
}

/* Note that the application sends to a real address, the last first. */
static void note_direct(struct udp_peers *p, const struct endpoint *to)
{
    unsigned at = 0;
    while (at < p->direct_count && !endpoint_equal(&p->direct[at], to))
        at++;
    if (at == UDP_DIRECT_PEERS_MAX)
        at--;
    else if (at == p->direct_count)
        p->direct_count++;
    memmove(&p->direct[1], &p->direct[0], at * sizeof(p->direct[0]));
    p->direct[0] = *to;
}

static struct udp_peer *find_named(struct udp_peers *p, const struct endpoint *fake)
{
    LIST_EACH (it, &p->named) {
        struct udp_peer *peer = CONTAINER_OF(it, struct udp_peer, link);
        if (!endpoint_equal(&peer->fake, fake))
            continue;
        list_remove(it);
        list_push_front(&p->named, it);
        return peer;
    }
    return NULL;
}

enum udp_peer_kind udp_peers_find(struct udp_peers *p, const struct endpoint *to,
                                  struct udp_peer **peer)
{
    if (p->direct_count > 0 && endpoint_equal(&p->direct[0], to))
        return UDP_PEER_DIRECT;
    *peer = find_named(p, to);
    if (*peer)
        return UDP_PEER_NAMED;
    char name[256];
    switch (dns_fake_lookup(p->dns, &to->addr, name)) {
    case DNS_FAKE_NOT:
        note_direct(p, to);
        return UDP_PEER_DIRECT;
    case DNS_FAKE_KNOWN:
        *peer = add_peer(p, to, name);
        return *peer ? UDP_PEER_NAMED : UDP_PEER_UNKNOWN;
    case DNS_FAKE_UNKNOWN:
        break;
    }
    return UDP_PEER_UNKNOWN;
}

static bool sends_directly_to(const struct udp_peers *p, const struct endpoint *to)
{
    for (unsigned i = 0; i < p->direct_count; i++) {
        if (endpoint_equal(&p->direct[i], to))
            return true;
    }
    return false;
}

void udp_peers_map_address(struct udp_peers *p, struct endpoint *from)
{
    if (list_empty(&p->named))
        return;
    struct udp_peer *candidate = NULL;
    LIST_EACH (it, &p->named) {
        struct udp_peer *peer = CONTAINER_OF(it, struct udp_peer, link);
        if (endpoint_equal(&peer->real, from)) {
            *from = peer->fake;
            return;
        }
        if (!candidate && peer->real.port == 0 && peer->fake.port == from->port)
            candidate = peer;
    }
    if (!candidate || sends_directly_to(p, from))
        return;
    candidate->real = *from;
    *from = candidate->fake;
}

bool udp_peers_map_name(struct udp_peers *p, const char *name, struct endpoint *from)
{
    LIST_EACH (it, &p->named) {
        struct udp_peer *peer = CONTAINER_OF(it, struct udp_peer, link);
        if (peer->fake.port != from->port || strcasecmp(peer->name, name) != 0)
            continue;
        *from = peer->fake;
        return true;
    }
    return false;
}
