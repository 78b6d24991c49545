/*
 * Host names to addresses, asynchronously: c-ares' only home (resolver.c). For the proxy's own
 * name, and for `serve` and direct://, never for what an application asks through the tunnel.
 * Answers are cached by their TTL (clamped to 1 s .. 1 h; failures 5 s); /etc/hosts counts.
 */
#ifndef CULVERT_RESOLVER_H
#define CULVERT_RESOLVER_H

#include "core/base/addr.h"
#include "core/loop.h"

struct resolver;
struct resolver_request;

/* What every socket that culvert opens towards the world carries; kept by reference. */
struct outbound_options {
    uint32_t mark;           /* SO_MARK, 0: none */
    char bind_interface[16]; /* SO_BINDTODEVICE, empty: none */
    bool allow_loopback;     /* may direct:// and serve lead to the host's own loopback? */
    unsigned connect_timeout_ms;
    struct broker *broker; /* who makes the sockets (core/worker/broker.h); NULL: this process */
};
/*
 * A socket towards the world, non-blocking and close-on-exec, of `family` and `type` (SOCK_STREAM,
 * SOCK_DGRAM), with mark and interface applied. The descriptor, or -errno.
 */
int outbound_open(const struct outbound_options *options, int family, int type);
/* A datagram socket of the same kind towards a client of ours: neither mark nor interface. */
int outbound_open_inner(const struct outbound_options *options, int family);
/* Apply mark and interface to a socket of one's own. 0 or -errno. */
int outbound_prepare_socket(int fd, const struct outbound_options *options);
/*
 * Let the kernel notice a peer of the TCP socket `fd` that has vanished, after two minutes of
 * silence. Four system calls: not worth it for a connection that is over in a moment.
 */
void outbound_keep_alive(int fd);
/*
 * One gathered send to the stream socket `fd`: how many bytes it took, or -1 with errno. Of a
 * single piece, as in small exchanges, it is send(2), which costs them less than sendmsg(2).
 */
ssize_t outbound_send(int fd, const struct iovec *iov, int count);
/*
 * How many bytes the TCP socket `fd` would take at once, less a sixteenth for what the kernel needs
 * to keep them, and less still where TCP's memory runs short. A kernel that does not tell (before
 * 4.12): UINT32_MAX.
 */
uint32_t outbound_room(int fd);
/*
 * Give the TCP socket `fd` a send buffer of half a mebibyte, unless it has that. The kernel
 * enlarges a buffer by itself, and may go on from there, but only for who fills it: without this,
 * who sends no more than there is room for would be kept at some 40 KiB. Does nothing before
 * Linux 5.14.
 */
void outbound_widen(int fd);
/*
 * Is `fd` writable, which for TCP means that a third of its buffer is free? If not, an epoll
 * instance that watches for it will tell when it is: the kernel does so only for who was refused,
 * or has asked.
 */
bool outbound_writable(int fd);

enum { RESOLVER_ADDRS_MAX = 16 };

/* `count` 0: the name does not resolve, `error` says why (static text). Numeric names work too. */
struct resolver_answer {
    size_t count;
    struct addr addrs[RESOLVER_ADDRS_MAX]; /* in RFC 6724 order */
    const char *error;
};
typedef void resolver_fn(void *arg, const struct resolver_answer *answer);

struct resolver *resolver_new(struct loop *loop, const struct outbound_options *options);
/* Pending requests are dropped without a call. Not from a resolver_fn. */
void resolver_free(struct resolver *r);
/*
 * Take the name servers from the file `conf_path` (kept by reference) instead of
 * /etc/resolv.conf, and ask them on UDP and TCP `port` (0: 53). Before the first look-up.
 */
void resolver_set_servers(struct resolver *r, const char *conf_path, uint16_t port);
/*
 * Calls `fn` exactly once, never before this function returns (a cached answer comes at the
 * turn's end). NULL when out of memory.
 */
struct resolver_request *resolver_lookup(struct resolver *r, const char *name, resolver_fn *fn,
                                         void *arg);
/* `fn` will not be called. Not after it was. */
void resolver_cancel(struct resolver_request *request);

#endif
