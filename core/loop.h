/*
 * The event loop: libevent's only home (loop.c).
 *
 * A turn waits, runs what is ready, then the timers that are due, then the deferred calls in the
 * order in which they were asked for, and starts anew. Objects that callbacks close are unhooked at
 * once and freed in a deferred call, so that no callback frees its caller. The clock is read once a
 * turn.
 */
#ifndef CULVERT_LOOP_H
#define CULVERT_LOOP_H

#include <event2/event.h>
#include <event2/event_struct.h>

#include "core/base/list.h"

struct loop;

enum {
    LOOP_READ = 1,   /* readable */
    LOOP_WRITE = 2,  /* writable */
    LOOP_CLOSED = 4, /* only as a ready flag, with LOOP_EDGE: the peer shut its side. A socket
                        that failed is readable and writable: the next call tells the errno */
    LOOP_EDGE = 8,   /* only when watching: edge-triggered, READ and WRITE told once a change */
};

struct loop *loop_new(void); /* NULL with errno: out of memory or of descriptors */
void loop_free(struct loop *loop);
/* Run until loop_stop(). */
void loop_run(struct loop *loop);
/* Run one turn; `wait` false: do not block. For tests and for embedding. */
void loop_turn(struct loop *loop, bool wait);
void loop_stop(struct loop *loop); /* returns from loop_run() after this turn */
/*
 * The loop's clock in milliseconds, as of this turn's beginning: CLOCK_MONOTONIC, which does not
 * count the machine's sleep, less the pauses in which the process was stopped (loop.c). Only
 * differences mean something.
 */
uint64_t loop_now(const struct loop *loop);
/* How many pauses were noticed so far: who was waited for meanwhile may have lost patience. */
unsigned loop_pauses(const struct loop *loop);

/* A watched descriptor, embedded in its owner. Zero-initialised it is idle. */
struct loop_io;
typedef void loop_io_fn(void *arg, unsigned ready);
struct loop_io {
    struct event event;
    struct loop *loop;
    loop_io_fn *fn;
    void *arg;
    bool watching;
};
/* Watch `fd` for `what` (LOOP_READ | LOOP_WRITE | LOOP_EDGE) until loop_ignore(). 0 or -errno. */
int loop_watch(struct loop *loop, struct loop_io *io, int fd, unsigned what, loop_io_fn *fn,
               void *arg);
/*
 * Watch with `io` what `from` has watched, edge-triggered, and stop `from`, successful or not. The
 * kernel hears nothing of it, and so tells nothing again: what `from` was told of, or what came
 * in this turn, the caller has to look for.
 */
int loop_take_over(struct loop *loop, struct loop_io *io, struct loop_io *from, unsigned what,
                   loop_io_fn *fn, void *arg);
/* Stop watching; call it before closing the descriptor. Harmless when idle. */
void loop_ignore(struct loop_io *io);

/*
 * A one-shot timer, embedded. Zero-initialised it is idle. Timers are kept in a heap that runs
 * through them (loop.c): starting one allocates nothing and cannot fail.
 */
typedef void loop_timer_fn(void *arg);
struct loop_timer {
    struct loop *loop;
    struct loop_timer *child; /* the first of those that come later */
    struct loop_timer *next;  /* sibling */
    struct loop_timer *prev;  /* sibling, or the parent of a first child */
    uint64_t due;             /* ms of the loop's clock */
    loop_timer_fn *fn;
    void *arg;
    bool pending;
};
/* (Re)start it: `fn` runs once, at the earliest `ms` milliseconds from now, never in this turn. */
void loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t ms, loop_timer_fn *fn,
                      void *arg);
void loop_timer_stop(struct loop_timer *timer);

/* A call at the turn's end, embedded. Zero-initialised it is idle; asking twice asks once. */
typedef void loop_deferred_fn(void *arg);
struct loop_deferred {
    struct link link;
    loop_deferred_fn *fn;
    void *arg;
    bool pending;
};
void loop_defer(struct loop *loop, struct loop_deferred *d, loop_deferred_fn *fn, void *arg);
void loop_undefer(struct loop_deferred *d);

/*
 * Call `fn` when signal `signo` arrives, which is blocked from then on and read from a descriptor;
 * zero-initialised and embedded like the others.
 */
struct loop_signal {
    struct loop_io io;
    int fd;
    int signo;
    bool was_blocked;
    void (*fn)(void *arg, int signo);
    void *arg;
    bool watching;
};
/* 0 or -errno. */
int loop_signal_watch(struct loop *loop, struct loop_signal *s, int signo,
                      void (*fn)(void *arg, int signo), void *arg);
void loop_signal_ignore(struct loop_signal *s);

#endif
