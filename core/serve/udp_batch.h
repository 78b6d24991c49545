/*
 * Datagrams in batches: received by recvmmsg(2), sent by sendmmsg(2). Runs of datagrams of one
 * size that go to one place are sent as one, to be cut up by the kernel or the card
 * (UDP_SEGMENT), and what the kernel has joined (UDP_GRO) is received so.
 */
#ifndef CULVERT_UDP_BATCH_H
#define CULVERT_UDP_BATCH_H

#include <sys/uio.h>

#include "core/base/addr.h"

enum { UDP_BATCH_HEADROOM = 32 };

/* The buffers; one serves all sockets of a loop. */
struct udp_batch;
struct udp_batch *udp_batch_new(void); /* NULL when out of memory */
void udp_batch_free(struct udp_batch *b);

/*
 * A socket and what is known of it. Embedded; batch_socket_close() when done.
 */
struct batch_socket {
    int fd;             /* non-blocking; -1: none */
    bool v6;            /* AF_INET6: IPv4 is reached by mapped addresses */
    size_t segment_max; /* bytes; datagrams up to this size are joined when sent, 0: never */
};

/*
 * Make one of `fd`, a datagram socket of AF_INET or AF_INET6 (`v6`), which is the batch socket's
 * from now on: what makes batches work is set where the kernel has it. For AF_INET6 both families
 * are served unless `v6_only`.
 */
void batch_socket_init(struct batch_socket *s, int fd, bool v6, bool v6_only);
/* Make room for a burst, more than the system's limit where we may. */
void batch_socket_widen(const struct batch_socket *s);
void batch_socket_close(struct batch_socket *s);
/* bind(2), connect(2) and getsockname(2) in our terms: 0 or -errno. */
int batch_socket_bind(const struct batch_socket *s, const struct endpoint *to);
int batch_socket_connect(const struct batch_socket *s, const struct endpoint *to);
int batch_socket_name(const struct batch_socket *s, struct endpoint *out);

/* One or several datagrams from one place, behind one another, each of `segment` bytes but the
 * last. */
struct udp_received {
    uint8_t *payload; /* UDP_BATCH_HEADROOM bytes in front of it may be written */
    size_t len;       /* bytes, 0 and more */
    size_t segment;   /* bytes; `len` where it is one datagram */
    struct endpoint from;
};
/*
 * Receive what is there, without waiting. Returns how many items, 0 when there is nothing, or
 * -errno. Items are valid until the next call.
 */
int udp_batch_receive(struct udp_batch *b, const struct batch_socket *s);
const struct udp_received *udp_batch_item(const struct udp_batch *b, int i);
/* Was the last batch full, so that more may be waiting? */
bool udp_batch_was_full(const struct udp_batch *b);

/*
 * Send a datagram made of `count` pieces, 1 or 2, at the next flush; their bytes must live until
 * then. `to` NULL: where the socket is connected to. Another socket than before flushes first.
 */
void udp_batch_send(struct udp_batch *b, struct batch_socket *s, const struct endpoint *to,
                    const struct iovec *pieces, size_t count);
/* Send what was queued. What the kernel does not take is lost, as datagrams may be. */
void udp_batch_flush(struct udp_batch *b);
/* Datagrams that the kernel did not take since the start. */
uint64_t udp_batch_lost(const struct udp_batch *b);

#endif
