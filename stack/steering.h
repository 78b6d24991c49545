/* Which queue of a multi-queue TUN device a packet goes to. */
#ifndef CULVERT_STACK_STEERING_H
#define CULVERT_STACK_STEERING_H

#include "stack/device.h"

/*
 * Have the kernel choose the queue by the packet alone: all of a TCP connection to one, all UDP of
 * one source address to one. 0 or -errno: -EPERM and others where eBPF may not be used.
 */
int steering_attach(const struct device *d);

#endif
