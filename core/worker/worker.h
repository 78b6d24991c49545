/*
 * A worker: one device queue, one stack, one event loop, and all flows that come in there.
 * It needs no privilege; what does (device, addresses, undo) is its caller's.
 */
#ifndef CULVERT_WORKER_H
#define CULVERT_WORKER_H

#include "core/worker/workers.h"
#include "stack/device.h"
#include "stack/stack.h"

/* What is particular to one of several. */
struct worker_seat {
    struct device *device;
    struct fakedns *fake;            /* shared with the others; NULL: no fake addresses */
    struct stack_counters *counters; /* NULL: nobody wants to know */
    bool looks_at_proxy;             /* and warns where it is not there */
    int latency_fd;                  /* of low_latency_open(); -1: none */
};

/*
 * Relay the seat's device as `options` say until SIGTERM, which may be blocked at the call; SIGINT
 * is. `on_ready` is called when the signal is waited for. Seat and options stay the
 * caller's. Returns 0 after such a signal, else a -errno: -ENOMEM and the like when it could not
 * start (said in the log), the device's own error when the device has vanished.
 */
int worker_run(const struct worker_seat *seat, const struct options *options,
               worker_ready_fn *on_ready, void *arg);

#endif
