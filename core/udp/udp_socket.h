/*
 * UDP sockets towards the world, in batches: datagrams are gathered over one batch of packets
 * and leave with few sendmmsg() calls, what arrives is read with recvmmsg(). Runs of datagrams of
 * one size travel through the kernel as one (UDP_SEGMENT, UDP_GRO), where it can.
 */
#ifndef CULVERT_UDP_SOCKET_H
#define CULVERT_UDP_SOCKET_H

#include "core/proxy/resolver.h"

/* A socket and what waits to be sent by it; embedded. udp_socket_init() makes it closed. */
struct udp_socket {
    int fd; /* -1: closed */
    struct loop_io io;
    struct link dirty;              /* among the sender's sockets with waiting datagrams */
    uint16_t first_unit, last_unit; /* the sender's chain of them */
    uint32_t gso_limit;             /* datagrams of this size or more cannot be sent as a run */
    bool retried;                   /* the last error was taken for a pending one */
    uint8_t failures;               /* receive errors in a row */
    void *owner;                    /* the user's own */
};

void udp_socket_init(struct udp_socket *s);
/*
 * Open it for `family`, non-blocking, mark and interface applied, connected to `peer` unless that
 * is NULL. 0 or -errno.
 */
int udp_socket_open(struct udp_socket *s, int family, const struct endpoint *peer,
                    const struct outbound_options *outbound);
/* Stop watching, forget what waits, close. Harmless when closed. */
void udp_socket_close(struct udp_socket *s);

/* --- sending ---------------------------------------------------------------------------------- */

struct udp_sender;
struct udp_sender *udp_sender_new(void); /* NULL when out of memory */
void udp_sender_free(struct udp_sender *sender);

/* One datagram: a header and a payload, which may follow it in memory. */
struct udp_unit {
    const uint8_t *header; /* NULL: none */
    size_t header_len;
    const uint8_t *payload;
    size_t len;
    const struct endpoint *to; /* NULL: the connected peer; else copied */
};
/*
 * Gather a datagram. Its bytes stay the caller's and must stay as they are until
 * udp_sender_flush(), which happens by itself when there is no more room.
 */
void udp_sender_add(struct udp_sender *sender, struct udp_socket *s, const struct udp_unit *unit);
/* Send all that was gathered. What a socket does not take is lost, as datagrams are. */
void udp_sender_flush(struct udp_sender *sender);

/* --- receiving -------------------------------------------------------------------------------- */

/* A received datagram lies in a buffer that ends at `end`; all before `end` is the callee's. */
struct udp_received {
    uint8_t *bytes;
    size_t len;
    uint8_t *end;
    struct endpoint from;
};
typedef void udp_receive_fn(void *arg, const struct udp_received *received);

struct udp_receiver;
struct udp_receiver *udp_receiver_new(void); /* NULL when out of memory */
void udp_receiver_free(struct udp_receiver *receiver);
/* Give the buffers' memory back to the system; it returns by itself when needed. */
void udp_receiver_trim(struct udp_receiver *receiver);
/*
 * Read at most one batch from a socket that is watched level-triggered, and call `fn` for each
 * datagram. The buffers are valid until the next call. Returns how many datagrams there were, or
 * -errno when the socket has failed for good.
 */
int udp_receiver_read(struct udp_receiver *receiver, struct udp_socket *s, udp_receive_fn *fn,
                      void *arg);

#endif
