/*
 * A piece of work on what comes from the network, done by a confined child for a process that has
 * privileges: only numbers and texts of a fixed size come back.
 */
#ifndef CULVERT_ERRAND_H
#define CULVERT_ERRAND_H

#include "core/worker/child.h"

struct errand {
    struct child child, broker;
};

/*
 * In the child: `o` as duty.perform() has it. `say` is what errand_hear() hears; the work ends
 * with the function, or earlier when nobody listens any more. It calls errand_lock() when all is
 * set up, before anything that comes from the network is read.
 */
typedef void errand_fn(const struct options *o, int say, void *arg);

/* 0 or -errno; errand_end() in any case. */
int errand_start(struct errand *e, const struct options *o, errand_fn *work, void *arg);
/* Hear exactly `size` bytes. False: it has ended without, or died. What they mean is to be doubted.
 */
bool errand_hear(struct errand *e, void *out, size_t size);
void errand_end(struct errand *e);

/* In the child: no more than a worker's system calls from here on. False: it must not go on. */
bool errand_lock(void);
/* In the child: say `size` bytes. */
void errand_say(int say, const void *bytes, size_t size);

#endif
