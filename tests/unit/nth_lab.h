/*
 * A whole worker in this process: the device in memory before it, a proxy and a resolver of the
 * test's behind it, both reached by real sockets on 127.0.0.1, and calls that fail once.
 *
 * worker_run() has a thread of its own, which takes strict turns with the test's: it works while
 * the test waits in lab_turn(), and every call that counts for tests/support/faults.c is made
 * there. The monotonic clock stands under the test's control for the worker, libevent and c-ares
 * alike: time passes by lab_pass(), at once.
 */
#ifndef CULVERT_TESTS_NTH_LAB_H
#define CULVERT_TESTS_NTH_LAB_H

#include "tests/support/faults.h"
#include "tests/support/peer.h"
#include "tests/unit/echo_proxy.h"

struct lab {
    struct device *device;
    struct echo_proxy proxy;
    bool running;        /* the worker has not ended */
    int result;          /* worker_run()'s, once it has */
    uint64_t conns;      /* the stack's, as of the last turn */
    int descriptors;     /* open in this process before the worker began */
    int at_ready;        /* and when it first waited for something to do */
    unsigned flows_left; /* conns when the stack was freed */
};

/* Once a process, before anything else. */
void lab_prepare(void);

/* Make the device, the proxy and the resolver; then run a worker whose nth call of `kind` fails. */
void lab_start(struct lab *l, enum faults_kind kind, unsigned nth);
/* One turn of all. Did any packet or byte move? False also when the worker has ended. */
bool lab_turn(struct lab *l);
/* The clock goes on. */
void lab_pass(unsigned ms);
void lab_push(struct lab *l, const void *packet, size_t len);
/* A packet that the worker has written; see peer_pop(). */
bool lab_pop(struct lab *l, struct segment *s);
/* SIGTERM, turns until the worker has ended, and the end of all else. Its log, to be freed. */
char *lab_stop(struct lab *l);
/* Descriptors open in this process, those of the proxy's connections left out. */
int lab_descriptors(const struct lab *l);

#endif
