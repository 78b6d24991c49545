/*
 * One UDP association: what core/udp/udp_flow.c, which keeps them all, and
 * core/udp/udp_association.c, which does one's work, know of each other. The theory is at the head
 * of udp_flow.c.
 */
#ifndef CULVERT_UDP_ASSOCIATION_H
#define CULVERT_UDP_ASSOCIATION_H

#include "core/flows.h"
#include "core/udp/udp_peers.h"
#include "core/udp/udp_queue.h"
#include "core/udp/udp_socket.h"
#include "core/udp/udp_train.h"

enum association_state {
    ASSOCIATION_DIALING,
    ASSOCIATION_OPEN,
    ASSOCIATION_BACKOFF,
    ASSOCIATION_CLOSED,
};

struct udp_flows {
    struct worker *worker;
    struct map by_source;
    struct link lru;  /* idle longest first */
    struct link dead; /* CLOSED, to be freed */
    struct loop_timer idle_timer;
    struct loop_deferred reap;
    struct udp_sender *sender;     /* NULL until something can be sent */
    struct udp_receiver *receiver; /* NULL until something can be received */
    struct udp_train train;
    size_t queued_bytes; /* in all queues */
};

struct association {
    struct map_entry by_source;
    struct link lru; /* or in `dead` */
    struct udp_flows *flows;
    struct endpoint source; /* the application */
    uint64_t id;            /* for the log */
    uint64_t last_active_ms;
    uint64_t retry_at_ms; /* BACKOFF */
    enum association_state state;
    struct dial *dial; /* DIALING */
    int control_fd;    /* OPEN, through a proxy; else -1 */
    uint32_t noise;    /* bytes that came there for nothing */
    struct loop_io control_io;
    struct udp_socket sockets[2]; /* the relay's is the first; direct://: IPv4, IPv6 */
    struct udp_peers peers;
    struct udp_queue queue;
};

/* --- udp_flow.c ------------------------------------------------------------------------------- */

/* One line when UDP is in trouble, not one a datagram. */
extern struct log_limit udp_trouble_limit;
bool udp_is_direct(const struct udp_flows *u);
/* Port unreachable, which a UDP application hears as ECONNREFUSED. */
void udp_refuse(struct udp_flows *u, const struct endpoint *source, const struct udp_datagram *d);
/* The one door to a state. */
void association_set_state(struct association *a, enum association_state state);
/* A datagram moved, in whatever direction (RFC 4787, 4.3). */
void association_touch(struct association *a);
/* Whatever state it is in: unhook it, free it at the turn's end. What waits is lost. */
void association_close(struct association *a);

/* --- udp_association.c ------------------------------------------------------------------------ */

/* A new association, or one in BACKOFF: afterwards it is DIALING, OPEN or again in BACKOFF. */
void association_start(struct association *a);
/* A datagram from the tunnel, valid until udp_sender_flush(). */
void association_relay(struct association *a, const struct udp_datagram *d);
/* Let go of descriptors, names and what waits. */
void association_release(struct association *a);

#endif
