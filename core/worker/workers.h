/*
 * The processes that relay: started, watched, replaced when they die.
 *
 * Our own process keeps the privilege, the device and the right to undo what was set up; it parses
 * nothing that comes from the network. What does is a worker, a child process: one that crashes
 * or is killed takes only its own flows along.
 *
 * A command without an event loop of its own calls workers_run(), which takes worker_run()'s
 * place. One that watches other things too calls the functions below it and adds workers_fd() to
 * what it polls.
 */
#ifndef CULVERT_WORKERS_H
#define CULVERT_WORKERS_H

#include "core/worker/worker.h"

/*
 * Relay `queues`, all of one device, with a worker each until SIGTERM or SIGINT, which the caller
 * has blocked. `on_ready` is called in this process, once, when all workers relay. Returns as
 * worker_run() does, and also -ECHILD where workers die faster than it makes sense to replace
 * them (said in the log).
 */
int workers_run(struct device *const *queues, size_t count, const struct options *options,
                worker_ready_fn *on_ready, void *arg);

struct workers;

/* The arguments outlive the workers; `queues` itself is copied. NULL when out of memory. */
struct workers *workers_new(struct device *const *queues, size_t count,
                            const struct options *options);
/* Start them, and wait until all relay. 0, or -errno of the first that could not (it said why). */
int workers_start(struct workers *w);
/* Readable: call workers_turn(). */
int workers_fd(const struct workers *w);
/*
 * Replace those that died, as far as it is time for that. 0, or -errno: there is no relaying any
 * more; the device's own error when it has vanished, -ECHILD.
 */
int workers_turn(struct workers *w);
/* Let them drain, and end those that take too long. NULL is fine for both. */
void workers_stop(struct workers *w);
void workers_free(struct workers *w);

#endif
