/*
 * One TCP connection of a dial: to one address, with at most one SOCKS5 handshake on it. It only
 * tells what happens; what follows from it is decided in dial.c.
 */
#ifndef CULVERT_ATTEMPT_H
#define CULVERT_ATTEMPT_H

#include "core/loop.h"
#include "core/proxy/resolver.h"
#include "socks/client.h"

enum attempt_event {
    ATTEMPT_CONNECTED,   /* the address accepted; the attempt goes on */
    ATTEMPT_METHOD_SEEN, /* the proxy chose a method and said no more yet; the attempt goes on */
    /* Ends: the attempt says nothing after them. */
    ATTEMPT_SUCCEEDED,   /* `fd` may be taken: nothing past the reply was read from it */
    ATTEMPT_UNREACHED,   /* no connection: see `error` */
    ATTEMPT_REPLIED,     /* the proxy said no: see `client.reply` */
    ATTEMPT_NO_METHOD,   /* it takes none of the methods offered */
    ATTEMPT_NOT_TRUSTED, /* it rejected the credentials */
    ATTEMPT_CLOSED,      /* it closed, or reset, before its answer */
    ATTEMPT_NONSENSE,    /* what it said is not SOCKS5 */
};

struct attempt;
/* `fn` may close any attempt, this one too; it must not free it before the turn's end. */
typedef void attempt_fn(void *arg, struct attempt *a, enum attempt_event event);

struct attempt {
    struct link link; /* its owner's */
    struct loop *loop;
    struct loop_io io;
    struct loop_timer doubt; /* whether a short read emptied the socket */
    attempt_fn *fn;
    void *arg;
    struct endpoint peer;
    int fd;    /* -1: none, or taken */
    int error; /* errno of UNREACHED, and of CLOSED where it was no orderly end */
    bool connected;
    bool speaks_socks; /* `client` is in use, else connecting is all there is to do */
    bool told_method;
    bool watches_write;
    bool hung_up;                /* LOOP_CLOSED was told */
    struct socks5_client client; /* initialised by the owner */
};

/*
 * Connect `a`, whose peer, fn, arg, speaks_socks and client are set, everything else zero. 0, or
 * an errno (positive) when that failed at once; `fn` is not called from here: `connected` tells
 * that the connection is there already.
 */
int attempt_start(struct attempt *a, struct loop *loop, const struct outbound_options *outbound);
/* Unhook and close; harmless when it is closed already, or its socket was taken. */
void attempt_close(struct attempt *a);
/* Take the connected socket out of it, which `io` goes on watching: for loop_take_over(). */
int attempt_take_socket(struct attempt *a);

#endif
