/*
 * --low-latency: no core of the machine sleeps while a worker relays. The promise is the kernel's;
 * this file asks for it and gives it back.
 */
#ifndef CULVERT_LOW_LATENCY_H
#define CULVERT_LOW_LATENCY_H

#include "core/loop.h"

#define LOW_LATENCY_DEVICE "/dev/cpu_dma_latency"

/* From the last thing relayed until cores may sleep again. */
enum { LOW_LATENCY_QUIET_MS = 100 };

/*
 * Open the device for one worker: whatever several descriptors of one opening ask for is one
 * request, and the last of them to be closed ends it. Returns the descriptor, close-on-exec, the
 * caller's to close, by which nothing is asked for yet; or -errno: -ENOENT where kernel or
 * container have no such device, -EACCES or -EPERM for whom it is not open.
 */
int low_latency_open(void);
/*
 * Take back what a worker that has died asked for by its copy of `fd`. Harmless where it asked for
 * nothing; -1, none, is fine.
 */
void low_latency_withdraw(int fd);

/* What one worker asks for, embedded in it. */
struct low_latency {
    struct loop *loop;
    int fd; /* of low_latency_open(), the caller's to close; -1: the option is off */
    bool held;
    uint64_t relayed_ms; /* when something was relayed last, of the loop's clock */
    struct loop_timer quiet;
};

/* Nothing is asked for yet. `fd` -1: nothing ever will be. The loop outlives it. */
void low_latency_init(struct low_latency *l, struct loop *loop, int fd);
/* Something was relayed in this turn. Not to be called when `fd` is -1. */
void low_latency_relayed(struct low_latency *l);
/* Nothing more will be relayed: take back what is asked for. One that never was initialised, but
 * zeroed, is fine. */
void low_latency_end(struct low_latency *l);

#endif
