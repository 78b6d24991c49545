/* The work of `up`, `run` and `tun`: a device's queues relayed, a worker each. */
#ifndef CULVERT_TUNNEL_H
#define CULVERT_TUNNEL_H

#include "core/worker/workers.h"
#include "stack/device.h"
#include "stack/stack.h"

/* A worker's counters, in cache lines of their own: it writes them for each packet. */
struct tunnel_counters {
    _Alignas(64) struct stack_counters stack;
};

enum { TUNNEL_FDS = 2 }; /* descriptors for each worker */

struct tunnel {
    struct work work; /* for workers_new() */
    struct device *queues[WORKERS_MAX];
    /* What each worker is handed: its queue, and a low_latency_open() of ours for it, or -1. */
    int fds[TUNNEL_FDS * WORKERS_MAX];
    struct fakedns *fake;             /* shared by the workers; NULL: no fake addresses */
    struct tunnel_counters *counters; /* shared; one for each worker, which writes it */
};

/*
 * Prepare to relay `count` queues of one device as `options` say; both outlive the tunnel. What the
 * workers report when they give up is the device's own error when the device has vanished. 0 or
 * -ENOMEM, or of --low-latency a -errno (said in the log); tunnel_free() in any case, after the
 * workers'.
 */
int tunnel_init(struct tunnel *t, struct device *const *queues, size_t count,
                const struct options *options);
void tunnel_free(struct tunnel *t);

/* All of it, as workers_run() does it. */
int tunnel_run(struct device *const *queues, size_t count, const struct options *options,
               worker_ready_fn *on_ready, void *arg);

#endif
