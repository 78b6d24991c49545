/*
 * The parts of `culvert serve`, to one another:
 *
 *   serve.c          listeners, signals, the life of the server
 *   serve_session.c  one client's connection: handshake, then relay or association
 *   serve_udp.c      one client's UDP association
 *   splice.c         the bytes of a CONNECT
 */
#ifndef CULVERT_SERVE_PARTS_H
#define CULVERT_SERVE_PARTS_H

#include "core/loop.h"
#include "core/proxy/proxy.h"
#include "core/serve/serve.h"
#include "core/serve/splice.h"
#include "core/serve/udp_batch.h"

struct server {
    const struct serve_options *options;
    struct loop *loop;
    struct resolver *resolver;
    struct proxy_url direct;
    struct proxy *proxy; /* direct://: how CONNECT reaches its target */
    struct relay_pool *pool;
    struct udp_batch *batch; /* all associations' */
    struct link sessions;
    struct link handshakes;   /* those that have not asked for anything yet, oldest first */
    struct link associations; /* the one used longest ago first */
    uint64_t next_id;
    uint64_t resources_quiet_until; /* ms of the loop's clock */
};

/* Descriptors or memory have run out, with the errno `error`: say so, if that is not said already.
 */
void server_note_no_resources(struct server *s, int error);

/*
 * Take a client's connection, a non-blocking socket, which is consumed in any case. 0 or -errno.
 */
int session_open(struct server *s, int fd, const struct endpoint *client);
/* Close all, as at the end of the server. */
void session_close_all(struct server *s);
/*
 * Descriptors have run out: close the connection that has been in its handshake longest, if it
 * has been there for a second at least. False if there is none.
 */
bool session_evict(struct server *s);
enum { EVICT_AFTER_MS = 1000 };

/* --- associations --------------------------------------------------------------------------- */

struct association;
struct association_request {
    struct endpoint client;  /* the control connection's remote end */
    struct endpoint local;   /* and its local end: where the client can reach us */
    struct endpoint hint;    /* DST of the request: where datagrams will come from, or all zeros */
    uint64_t id;             /* for the log */
    void (*idle)(void *arg); /* called when nothing passed for the idle timeout */
    void *arg;
};
/*
 * Open an association. NULL with `*error` a -errno; else `*bound` is where the client is to send.
 */
struct association *association_new(struct server *s, const struct association_request *request,
                                    struct endpoint *bound, int *error);
/*
 * Descriptors have run out: close the sockets of the association that was used longest ago, if that
 * is a second ago at least, and tell its owner that it is idle. False if there is none.
 */
bool association_evict(struct server *s);
/* Not from a callback of its own. */
void association_free(struct association *a);

#endif
