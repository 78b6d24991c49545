/*
 * Sockets for those who may not make them.
 *
 * SO_MARK and buffers beyond the system's limit ask for CAP_NET_ADMIN, which a process that reads
 * packets and proxies' answers must not have. The broker is a process that has it and does
 * nothing else: it is asked for a socket of a family and a type, and passes one that carries
 * the mark, the interface and the buffers that it was told when it was started.
 *
 * Of what it is asked only three small numbers count, each compared with what is allowed.
 *
 * The other ways are worse: CAP_NET_ADMIN for the worker is the power over all interfaces, routes
 * and rules; a rule for the worker's user would catch others of that user; a cgroup of its own
 * takes programs out of those that rules name. The price is 14 us of CPU (94 to 108) for a
 * connection with --mark that is made, used and closed; without a mark or an interface only UDP
 * sockets, one a source, come from here.
 */
#ifndef CULVERT_BROKER_H
#define CULVERT_BROKER_H

#include "core/proxy/resolver.h"

enum { BROKER_BUFFER = 1 << 20 }; /* bytes of a datagram socket's buffers, each way */

/* The asking end of a SOCK_SEQPACKET pair. Zero but for `fd`. */
struct broker {
    int fd;
    uint32_t asked; /* requests so far: an answer that comes too late is told by its number */
};

enum broker_side {
    BROKER_OUTER, /* towards the world: with the mark and the interface */
    BROKER_INNER, /* towards a client of our own: with large buffers only */
};

/*
 * A socket, non-blocking and close-on-exec, of `family` (AF_INET, AF_INET6) and `type`
 * (SOCK_STREAM, SOCK_DGRAM). Waits for it, at most 2 s. -errno: the broker's own error,
 * -EPIPE when it has gone, -ETIMEDOUT.
 */
int broker_ask(struct broker *b, int family, int type, enum broker_side side);

/* The broker: answer on `fd`, the pair's other end, until the first one is closed. */
void broker_serve(int fd, const struct outbound_options *options);

#endif
