/*
 * The processes that work: started, watched, replaced when they die.
 *
 * Our own process keeps the privilege, the device and the right to undo what was set up; it parses
 * nothing that comes from the network. What does is a worker, a child process: one that crashes
 * or is killed takes only its own flows along.
 *
 * What they do is given as `struct work`: core/worker/tunnel.h relays a device, core/serve/serve.h
 * serves clients. A command without an event loop of its own calls workers_run(). One that watches
 * other things too calls the functions below it and adds workers_fd() to what it polls.
 */
#ifndef CULVERT_WORKERS_H
#define CULVERT_WORKERS_H

#include "core/command/options.h"
#include "core/worker/confine.h"

/*
 * Called once, when everything is set up and nothing has been read yet. Not 0 (a -errno): the
 * worker gives up with it.
 */
typedef int worker_ready_fn(void *arg);

/* The pointers outlive the workers. */
struct work {
    const char *name; /* of the processes; at most 15 bytes */
    const struct options *options;
    size_t count; /* of workers, 1..WORKERS_MAX */
    const int
        *fds; /* what each is handed: the first `fds_each` (up to DUTY_FDS_MAX) for the first */
    size_t fds_each;
    enum confine_role role; /* from `on_ready` on */
    /*
     * In the worker number `index`: calls `on_ready`, then works until SIGTERM. 0 then, else a
     * -errno: there is no use in another try. `o` is its own copy, with secrets and broker.
     */
    int (*run)(void *arg, unsigned index, const struct options *o, worker_ready_fn *on_ready,
               void *ready_arg);
    /* Here: number `index` has died. NULL: nothing is to be done. */
    void (*on_death)(void *arg, unsigned index);
    void (*on_usr1)(void *arg); /* here, after SIGUSR1; NULL as well */
    void *arg;
};

/*
 * Have it done until SIGTERM or SIGINT, which the caller has blocked: 0 then. `on_ready` is called
 * in this process, once, when all workers are ready. Else a -errno: the worker's own, or -ECHILD
 * where workers die faster than it makes sense to replace them (said in the log).
 */
int workers_run(const struct work *work, worker_ready_fn *on_ready, void *arg);

struct workers;

/* NULL when out of memory. */
struct workers *workers_new(const struct work *work);
/* Start them, and wait until all are ready. 0, or -errno of the first that could not (it said why).
 */
int workers_start(struct workers *w);
/* Readable: call workers_turn(). */
int workers_fd(const struct workers *w);
/* Replace those that died, as far as it is time for that. 0, or -errno as workers_run() has it. */
int workers_turn(struct workers *w);
/* Let them drain, and end those that take too long. NULL is fine for both. */
void workers_stop(struct workers *w);
void workers_free(struct workers *w);

#endif
