/*
 * Datagrams that wait for an association or for a name: bounded for each association, and for
 * all associations together by a budget that they share. What does not fit is lost, as
 * datagrams are.
 */
#ifndef CULVERT_UDP_QUEUE_H
#define CULVERT_UDP_QUEUE_H

#include "core/base/addr.h"
#include "core/base/list.h"

enum {
    UDP_QUEUE_COUNT_MAX = 64,       /* datagrams in one queue */
    UDP_QUEUE_BYTES_MAX = 1 << 16,  /* their payload: at least the largest datagram */
    UDP_QUEUES_BYTES_MAX = 4 << 20, /* in all queues together */
};

/* A datagram with room for a SOCKS5 header before `payload`; or several of `gso_size` bytes. */
struct udp_datagram {
    struct endpoint dst;
    uint8_t *payload;
    size_t len;
    uint16_t gso_size;
};

struct udp_queued {
    struct link link;
    struct udp_datagram datagram; /* a single one */
    uint8_t bytes[];
};

struct udp_queue {
    struct link items; /* struct udp_queued, the oldest first */
    uint32_t count, bytes;
    size_t *shared_bytes; /* the budget, kept by the owner of all queues */
};

void udp_queue_init(struct udp_queue *q, size_t *shared_bytes);
/* Copy the datagram, or each of them. */
void udp_queue_push(struct udp_queue *q, const struct udp_datagram *d);
/* Take it out; it is the caller's, to be given to free(). */
void udp_queue_take(struct udp_queue *q, struct udp_queued *item);
void udp_queue_clear(struct udp_queue *q);

#endif
