/*
 * A worker: one device queue, one stack, one event loop, and all flows that come in there.
 * It needs no privilege; what does (device, addresses, undo) is its caller's.
 */
#ifndef CULVERT_WORKER_H
#define CULVERT_WORKER_H

#include "core/options.h"
#include "stack/device.h"

/* Called once, when packets are being relayed. Not 0 (a -errno): the worker gives up with it. */
typedef int worker_ready_fn(void *arg);

/*
 * Relay `device` as `options` say until SIGTERM or SIGINT. The signals may be blocked at the
 * call; `on_ready` is called after their handlers are in place. Device and options stay the
 * caller's. Returns 0 after such a signal, else a -errno: -ENOMEM and the like when it could not
 * start (said in the log), the device's own error when the device has vanished.
 */
int worker_run(struct device *device, const struct options *options, worker_ready_fn *on_ready,
               void *arg);

#endif
