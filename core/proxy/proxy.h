/*
 * The proxy as a whole: where it is, what was learned about it, and connections through it.
 */
#ifndef CULVERT_PROXY_H
#define CULVERT_PROXY_H

#include "core/loop.h"
#include "core/proxy/resolver.h"
#include "socks/client.h"
#include "socks/url.h"

struct proxy;

/* `url` and `outbound` are kept by reference. `pipeline` allows pipelined handshakes. */
struct proxy *proxy_new(struct loop *loop, struct resolver *resolver, const struct proxy_url *url,
                        const struct outbound_options *outbound, bool pipeline);
void proxy_free(struct proxy *p);
bool proxy_is_direct(const struct proxy *p);
const struct outbound_options *proxy_outbound(const struct proxy *p);

/* UDP refused by the proxy (reply 7, or closed without a reply) is remembered for a minute. */
bool proxy_udp_refused(const struct proxy *p);
void proxy_note_udp_refused(struct proxy *p, const char *why);

enum dial_status {
    DIAL_OK,
    DIAL_REPLY,        /* the proxy said no: see `reply` (direct://: errno as a reply code) */
    DIAL_NO_PROXY,     /* its name does not resolve, or no address of it accepts */
    DIAL_AUTH,         /* no method in common, or credentials rejected */
    DIAL_CLOSED,       /* it closed without an answer: a refusal, to ssh -D */
    DIAL_NONSENSE,     /* what it said is not SOCKS5 */
    DIAL_TIMEOUT,      /* connect-timeout ran out */
    DIAL_NO_RESOURCES, /* descriptors, ports or memory */
};
const char *dial_status_name(enum dial_status status);

struct dial_result {
    enum dial_status status;
    uint8_t reply;         /* enum socks5_reply; valid with DIAL_OK and DIAL_REPLY */
    int error;             /* errno behind NO_PROXY, NO_RESOURCES and CLOSED, 0 if none */
    int fd;                /* DIAL_OK: connected, non-blocking, TCP_NODELAY, without keep-alive
                              (outbound_keep_alive()); the callee's from now on. Nothing past the
                              reply has been read from it. Else -1 */
    bool hung_up;          /* DIAL_OK: the peer's end has come already, perhaps behind data */
    struct loop_io *watch; /* DIAL_OK: with dial_keep_watch(), what watches `fd`; else NULL */
    struct endpoint peer;  /* DIAL_OK: the address of the proxy that was reached */
    struct endpoint bound; /* DIAL_OK: BND.ADDR, BND.PORT */
};
typedef void dial_fn(void *arg, const struct dial_result *result);

struct dial;
/*
 * Reach `target` through the proxy (CONNECT), or ask it for an association (UDP_ASSOCIATE).
 * Every address of the proxy is tried in turn within connect-timeout. The target is copied.
 * `fn` is called exactly once, never before dial_start() returns. With direct:// a CONNECT goes to
 * the target itself (names through the resolver, loopback refused as reply 2 unless allowed). NULL
 * when out of memory.
 */
struct dial *dial_start(struct proxy *p, enum socks5_command command, const struct target *target,
                        dial_fn *fn, void *arg);
/*
 * Let what watches the socket be taken over (loop_take_over()), which saves the kernel forgetting
 * and learning of it again. `fn` must do that, or loop_ignore() it; it ends as `fn` returns.
 */
void dial_keep_watch(struct dial *d);
/* Give up: `fn` will not be called, the socket is closed. Not after `fn` was called. */
void dial_cancel(struct dial *d);

#endif
