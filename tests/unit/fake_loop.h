/*
 * core/loop.h replaced at link time: the clock is the test's, descriptors are polled without
 * waiting. And core/proxy/proxy.h's dial: it leads to a socket pair whose other end is the test's.
 */
#ifndef CULVERT_TESTS_FAKE_LOOP_H
#define CULVERT_TESTS_FAKE_LOOP_H

#include "core/loop.h"
#include "core/proxy/proxy.h"

/* Run turns until nothing is ready any more. */
void fake_loop_settle(struct loop *loop);
/* Let `ms` pass, then settle. Timers run in their order. */
void fake_loop_advance(struct loop *loop, uint64_t ms);
/* Timers that are pending and descriptors that are watched. */
size_t fake_loop_timers(const struct loop *loop);
size_t fake_loop_watched(const struct loop *loop);

enum fake_dial { FAKE_DIAL_OK, FAKE_DIAL_REFUSED, FAKE_DIAL_HANGS, FAKE_DIAL_NO_MEMORY };

struct fake_dials {
    struct loop *loop;
    enum fake_dial behaviour; /* of dials to come */
    size_t started, pending;
    struct target last_target;
    int servers[64]; /* the far ends of those that succeeded, oldest first, non-blocking */
    size_t server_count;
};
extern struct fake_dials fake_dials;
void fake_dials_reset(struct loop *loop); /* closes the far ends */

#endif
