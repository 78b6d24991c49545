/*
 * Whom one UDP source talks to by name.
 *
 * With --dns fake an application sends to a fake address, culvert sends on to the name, and the
 * answer comes back from a real address, or from the name, as the proxy likes it. The
 * application has to see its fake address as the answer's source. So each association notes
 * the fake destinations in use, which also keeps their names from being recycled, and learns
 * which real address stands behind each.
 *
 * A proxy that answers from a real address does not say which name that belongs to. The answer is
 * taken to come from the fake destination with the same port that was used last and whose real
 * address is not known yet, unless the application itself sends to that real address. From then
 * on the pair is fixed, and other real addresses are strangers: full-cone answers that reach the
 * application as themselves. Two names with one address on one socket cannot be told apart.
 */
#ifndef CULVERT_UDP_PEERS_H
#define CULVERT_UDP_PEERS_H

#include "core/dns/dns.h"
#include "core/proxy/resolver.h"

enum { UDP_PEERS_MAX = 128, UDP_DIRECT_PEERS_MAX = 4 };

struct udp_peer {
    struct link link;                 /* used last first */
    struct endpoint fake;             /* where the application sends */
    struct endpoint real;             /* where answers come from; port 0: not known yet */
    struct resolver_request *request; /* direct://: while the name is being resolved */
    void *owner;                      /* for the request's callback */
    char name[];
};

struct udp_peers {
    struct dns *dns;
    struct link named; /* struct udp_peer */
    unsigned named_count;
    unsigned direct_count; /* real addresses that the application sent to lately, */
    struct endpoint direct[UDP_DIRECT_PEERS_MAX]; /* the last first */
};

void udp_peers_init(struct udp_peers *p, struct dns *dns);
/* Release every name. */
void udp_peers_clear(struct udp_peers *p);

enum udp_peer_kind {
    UDP_PEER_DIRECT,  /* a real address: to be taken as it is */
    UDP_PEER_NAMED,   /* `*peer` is set */
    UDP_PEER_UNKNOWN, /* a fake address that stands for nothing, or out of memory: refuse */
};
/*
 * The application sends to `to`. Past UDP_PEERS_MAX names the one used longest ago is forgotten.
 * A peer is valid until the next call that may forget one.
 */
enum udp_peer_kind udp_peers_find(struct udp_peers *p, const struct endpoint *to,
                                  struct udp_peer **peer);
void udp_peers_forget(struct udp_peers *p, struct udp_peer *peer);

/* An answer came from a real address: turn it into what the application shall see. */
void udp_peers_map_address(struct udp_peers *p, struct endpoint *from);
/* An answer came from a name (and from->port): false when nobody sent there. */
bool udp_peers_map_name(struct udp_peers *p, const char *name, struct endpoint *from);

#endif
