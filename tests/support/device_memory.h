/*
 * A device in memory: what a test pushes is read, what is written a test pops. It holds its user
 * to the device's contract - a packet that asks for a capability that the device lacks is refused
 * with -EINVAL.
 */
#ifndef CULVERT_TESTS_DEVICE_MEMORY_H
#define CULVERT_TESTS_DEVICE_MEMORY_H

#include "stack/device.h"

/* device_close() frees it and what is queued. NULL: out of memory. */
struct device *device_memory_new(unsigned mtu, struct device_caps caps);
/* Queue a packet to be read; copied. `offload` NULL: plain. False when 4,096 are waiting. */
bool device_memory_push(struct device *d, const void *bytes, size_t len,
                        const struct offload *offload);
/* The oldest packet that was written, into `out` (buffer provided by the caller); false: none. */
bool device_memory_pop(struct device *d, struct packet *out);
/* From now on each nth written packet is lost (0: none): injected loss. */
void device_memory_drop_every(struct device *d, unsigned nth);

#endif
