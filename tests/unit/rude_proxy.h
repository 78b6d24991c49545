/*
 * A SOCKS5 proxy for unit tests, served by the test's own loop, that behaves as it is told. It
 * connects to nothing: what it "relays" is the payload it sends right behind its reply.
 */
#ifndef CULVERT_TESTS_RUDE_PROXY_H
#define CULVERT_TESTS_RUDE_PROXY_H

#include "core/base/addr.h"
#include "core/base/list.h"
#include "core/loop.h"
#include "socks/server.h"

enum rudeness {
    PROXY_POLITE,
    PROXY_DRIPS,          /* its answers come byte by byte */
    PROXY_CLOSES_AT_ONCE, /* accepts and closes */
    PROXY_CUTS_REPLY,     /* sends half a reply and resets the connection */
    PROXY_CLOSES_UNASKED, /* reads the request, then closes without a reply */
    PROXY_TALKS_HTTP,
    PROXY_NONSENSE_REPLY, /* a proper method, then rubbish in the reply's place */
    PROXY_SILENT,
    PROXY_SLOW,            /* replies a while after the request */
    PROXY_ONE_MESSAGE,     /* takes what one recv() gives for one message, like microsocks */
    PROXY_CLOSES_PIPELINE, /* closes when more than the greeting is there, else polite */
    PROXY_NOISE_PIPELINE,  /* answers nonsense then, else polite */
    PROXY_CHOOSES,         /* no method in common unless "none" is offered */
};

enum { PROXY_DRIP_MS = 2, PROXY_SLOW_MS = 100 };

struct rude_proxy {
    struct loop *loop;
    struct loop_io io;
    int fd;
    uint16_t port;
    enum rudeness rudeness;
    uint8_t reply;                                /* enum socks5_reply */
    const struct socks5_credentials *credentials; /* asked for unless NULL */
    const char *payload;                          /* sent in one write with the reply, or NULL */
    struct link sessions;
    unsigned accepted;     /* connections so far */
    unsigned requests;     /* requests read so far */
    char target[300];      /* of the last request */
    struct endpoint bound; /* what it replies */
};

/* Listen on ADDR:`port` (0: any). */
void rude_proxy_start(struct rude_proxy *p, struct loop *loop, const char *addr, uint16_t port);
void rude_proxy_stop(struct rude_proxy *p);

#endif
