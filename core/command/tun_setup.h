/*
 * The TUN device that a command relays: opened, its link configured as the options say, and put
 * back in the end. Needs privilege, unless the descriptor was passed.
 */
#ifndef CULVERT_TUN_SETUP_H
#define CULVERT_TUN_SETUP_H

#include "core/command/options.h"
#include "stack/device.h"

/* Set `options`, zero the rest. */
struct tun_setup {
    const struct options *options;
    struct device *device;              /* NULL: not open */
    struct device *queues[WORKERS_MAX]; /* one a worker; the first is `device` */
    size_t queue_count;
    bool existed; /* the device was there before us: undo by hand */
    bool was_up;
    unsigned old_mtu;        /* 0: not changed */
    unsigned old_txqueuelen; /* 0: not changed */
    int old_addr_gen_mode;   /* negative: there is none */
    struct cidr added[OPTIONS_LIST_MAX];
    size_t added_count;
};

/* False when it cannot be done, which the user has been told; then call tun_setup_undo() too. */
bool tun_setup_open(struct tun_setup *s);
/* The reverse of tun_setup_open(), as far as it came; closes the device. */
void tun_setup_undo(struct tun_setup *s);

/*
 * What programs are to ask as their resolver. Where port 53 is answered here any address beyond the
 * device will do: it is one of the device's own range that is not the device's.
 */
struct addr tun_setup_resolver(const struct options *o);

/* The offloads in words: "none", "csum", "csum,tso", "csum,tso,uso". */
const char *tun_setup_offload(const struct device_caps *caps);

#endif
