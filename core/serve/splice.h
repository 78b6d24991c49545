/*
 * A relay between two connected TCP sockets: bytes both ways, half-close both ways, resets
 * passed on as resets. Bulk data moves by splice(2) through a pipe that is borrowed only while
 * data is in it; an idle relay owns nothing but its two sockets.
 */
#ifndef CULVERT_SPLICE_H
#define CULVERT_SPLICE_H

#include <stdint.h>

#include "core/loop.h"

/* What the relays of one loop share: the pipes that nobody uses now, and a buffer for copying. */
struct relay_pool;
struct relay_pool *relay_pool_new(struct loop *loop); /* NULL when out of memory */
void relay_pool_free(struct relay_pool *pool);        /* after the last relay was closed */

struct relay_end {
    struct relay *relay;
    int fd; /* -1: none */
    struct loop_io io;
    bool readable;     /* there may be something to read: bytes, a FIN or an error */
    bool writable;     /* false: the socket's buffer is full, its turn is waited for */
    bool watch_write;  /* writability is watched: the socket's buffer was full once */
    bool drain;        /* a FIN is due: a short read is not the end of what comes */
    bool keep_alive;   /* outbound_keep_alive() is owed */
    struct link doubt; /* in the pool's list of those that may have an error unheard of */
    uint64_t doubted_ms;
};

struct relay_pipe;
struct relay_spill; /* bytes that a socket did not take yet */

/* One direction. */
struct relay_way {
    struct relay_pipe *pipe; /* non-NULL: borrowed */
    size_t piped;            /* bytes in it */
    struct relay_spill *spill;
    uint64_t moved; /* bytes that the receiver's socket has taken */
    bool bulk;      /* reads filled the buffer: splice */
    bool ended;     /* the sender's FIN was read */
    bool shut;      /* and passed on */
};

/*
 * The relay is over and its sockets are closed. `error` 0: both ends have said FIN; else the
 * errno of the end that failed, and the other was reset.
 */
typedef void relay_over_fn(void *arg, int error);
/* The first end became ready before relay_run(): see its flags. */
typedef void relay_early_fn(void *arg);

enum { RELAY_UP = 0, RELAY_DOWN = 1 }; /* from ends[0] to ends[1]; from ends[1] to ends[0] */

/* Embedded in its owner. */
struct relay {
    struct loop *loop;
    struct relay_pool *pool;
    struct relay_end ends[2];
    struct relay_way ways[2]; /* ways[i] reads from ends[i] */
    struct loop_deferred again;
    bool running;
    relay_early_fn *early;
    relay_over_fn *over;
    void *arg;
};

/*
 * Take the first end, a non-blocking socket, into the loop. Until relay_run() `early` is called
 * when it may have become readable; whoever reads it then clears `readable` where it is drained.
 * 0, or -errno with `fd` still the caller's.
 */
int relay_init(struct relay *r, struct loop *loop, struct relay_pool *pool, int fd,
               relay_early_fn *early, relay_over_fn *over, void *arg);
/*
 * Read from the first end before relay_run(). Like recv(2): bytes, 0 for FIN, or -errno; -EAGAIN
 * once it is drained.
 */
long relay_read_early(struct relay *r, void *buf, size_t cap);
/* The errno that waits at the first end, else 0; before relay_run(). */
int relay_early_error(const struct relay *r);
/* Bytes to be sent in front of all others; before relay_run(). 0 or -ENOMEM. */
int relay_push(struct relay *r, unsigned way, const void *bytes, size_t len);
/*
 * The second end: relay from now on, with keep-alives if it lasts. Consumes `fd` in any case.
 * `over` is called once, not before this returns. 0, or -errno: then it is not called and
 * relay_close() is the caller's.
 */
int relay_run(struct relay *r, int fd);
/* Close both ends; `reset`: by RST. Harmless when already closed. `over` will not be called. */
void relay_close(struct relay *r, bool reset);

#endif
