/*
 * What surrounds culvert in fuzz_tunnel and fuzz_serve: a TUN device, sockets and a clock that are
 * made of socket pairs and numbers, put in the place of the kernel's by --wrap. All that lies
 * between these is the program's own: the device's vnet headers, the stack, the loop, flows,
 * associations, DNS, dials, handshakes, and the server's sessions.
 */
#ifndef CULVERT_TESTS_WORLD_H
#define CULVERT_TESTS_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stack/device.h"

enum { WORLD_SOCKETS_MAX = 64, WORLD_VNET_MAX = 12 };

/* A socket that culvert opened, and the end of it that is the world's. */
struct world_socket {
    int near; /* culvert's descriptor, closed perhaps, and perhaps another one's by now */
    int far;  /* non-blocking; -1: the world has closed it */
    bool stream;
};

struct world {
    uint64_t now_ms;
    uint64_t wake_at_ms; /* what the loop's timer is set to; 0: to nothing */
    int timer_fd;
    int device_near, device_far;
    int epoll_fd;              /* the loop's */
    bool vnet, uso, tso, csum; /* what the device offers */
    int vnet_len;
    int socket_error, connect_error; /* errno of calls to come; 0: they work */
    int gro_size;                    /* datagrams come as runs of so many bytes each; 0: alone */
    struct world_socket sockets[WORLD_SOCKETS_MAX];
    size_t socket_count;
    void (*on_signal)(void *arg, int signo); /* culvert's */
    void *signal_arg;
};

extern struct world world;

/* Begin anew, without a device. What is opened next must be the loop. */
void world_begin(void);
/* Begin anew with a device of 1,500 bytes that offers `features` (bits: csum, tso, uso, vnet). */
struct device *world_begin_with_device(unsigned features);
/* Close what is the world's. False: culvert has left a descriptor open. */
bool world_end(void);
/* Connect to culvert: its end of a stream, the other one is in `world.sockets`. -1: too many. */
int world_connect(void);
/* Let the clock go on to `ms`, or to when the loop's timer is due where that is earlier. */
void world_advance(uint64_t ms);
/* A packet for culvert, with the device's own header before it where it has one: WORLD_VNET_MAX. */
void world_push(const uint8_t *vnet, const uint8_t *packet, size_t len);
/* The next packet from culvert, as the kernel would understand it; false: there is none. */
bool world_pop(struct packet *out);

/* Has the loop nothing to do as long as the clock stands still? */
bool world_is_quiet(void);

/* Called in each turn of the loop, before it looks at its descriptors; the target's. */
void world_turn(void);

#endif
