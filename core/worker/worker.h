/*
 * A worker: one device queue, one stack, one event loop, and all flows that come in there.
 * It needs no privilege; what does (device, addresses, undo) is its caller's.
 */
#ifndef CULVERT_WORKER_H
#define CULVERT_WORKER_H

#include "core/command/options.h"
#include "stack/device.h"
#include "stack/stack.h"

/* Called once, when packets are being relayed. Not 0 (a -errno): the worker gives up with it. */
typedef int worker_ready_fn(void *arg);

/*
 * Relay `device` as `options` say until SIGTERM, which may be blocked at the call; SIGINT
 * is. `on_ready` is called when the signal is waited for. Device and options stay the
 * caller's. Returns 0 after such a signal, else a -errno: -ENOMEM and the like when it could not
 * start (said in the log), the device's own error when the device has vanished.
 */
int worker_run(struct device *device, const struct options *options, worker_ready_fn *on_ready,
               void *arg);

/* A worker's counters, in cache lines of their own: it writes them for each packet. */
struct worker_counters {
    _Alignas(64) struct stack_counters stack;
};

/* What workers have in common, made before they are forked. */
struct worker_shared {
    struct fakedns *fake;             /* NULL: no fake addresses */
    struct worker_counters *counters; /* one for each worker, which writes it; others only read */
    unsigned count;
};

/* Make it for `count` workers. 0 or -ENOMEM; worker_shared_free() in any case. */
int worker_shared_init(struct worker_shared *s, const struct options *options, unsigned count);
void worker_shared_free(struct worker_shared *s);
/* What all workers have counted, dead ones included, goes to the log. */
void worker_shared_log_counters(const struct worker_shared *s);
/* worker_run() as number `index` of those that share `s`. The first of them looks at the proxy. */
int worker_run_sharing(struct worker_shared *s, unsigned index, struct device *device,
                       const struct options *options, worker_ready_fn *on_ready, void *arg);

#endif
