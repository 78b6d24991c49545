/*
 * The device layer: a network card in user space, whatever system it lives on.
 *
 * The contract is batches of bare IP packets with headroom. What a card can do beyond that
 * (checksums left to it, super-packets) is told by its `caps` and travels beside each packet as
 * `struct offload`, in terms of the IP packet's own bytes. A device that lacks a capability is
 * never asked for it: stack/output.c completes checksums and cuts super-packets first.
 *
 *   device_linux.c                  /dev/net/tun: by name, taken over when persistent, or a
 *                                   passed descriptor
 *   tests/support/device_memory.c   two queues in memory
 */
#ifndef CULVERT_STACK_DEVICE_H
#define CULVERT_STACK_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/base/addr.h"

enum {
    PACKET_HEADROOM =
        512, /* free bytes before every packet read: vnet and SOCKS5 UDP headers fit */
    PACKET_SIZE_MAX = 65535 + 40, /* an IPv6 header does not count into its payload length */
    PACKET_BIG_MAX = 524280,      /* Linux's GSO_MAX_SIZE: no packet of its own is larger */
    PACKET_BUFFER_SIZE = PACKET_HEADROOM + PACKET_SIZE_MAX + 25, /* a multiple of 64 */
};

enum packet_csum {
    PACKET_CSUM_NONE,     /* complete on the wire; on input: to be verified */
    PACKET_CSUM_PARTIAL,  /* holds the pseudo-header's sum; csum_start/csum_offset say where */
    PACKET_CSUM_VERIFIED, /* on input: known to be right, or never computed and never wrong */
};
enum packet_gso { PACKET_GSO_NONE, PACKET_GSO_TCP4, PACKET_GSO_TCP6, PACKET_GSO_UDP };

/* What linux/virtio_net.h puts before a packet, in host byte order and our own terms. */
struct offload {
    uint8_t csum;         /* enum packet_csum */
    uint8_t gso;          /* enum packet_gso */
    bool ecn;             /* TCP super-packet with CWR set */
    uint16_t gso_size;    /* payload bytes of each segment (all but the last) */
    uint16_t header_len;  /* IP and transport headers, bytes */
    uint16_t csum_start;  /* offset of the transport header in the IP packet */
    uint16_t csum_offset; /* offset of the checksum field from csum_start */
};

/* A packet that is being read. The caller provides `buffer` of PACKET_BUFFER_SIZE bytes. */
struct packet {
    uint8_t *buffer;
    uint8_t
        *data;  /* set by the device: the IP header, at least PACKET_HEADROOM - 32 after buffer */
    size_t len; /* bytes from data on */
    struct offload offload;
};

struct device_caps {
    bool csum;    /* PACKET_CSUM_PARTIAL both ways */
    bool tso;     /* PACKET_GSO_TCP4/6 both ways */
    bool uso;     /* PACKET_GSO_UDP both ways */
    bool big_tcp; /* PACKET_GSO_TCP4/6 of up to PACKET_BIG_MAX bytes, when written */
};

struct device;
struct device_ops {
    int (*read)(struct device *d, struct packet *batch, size_t count);
    int (*write)(struct device *d, struct iovec *iov, int iov_count, const struct offload *offload);
    void (*close)(struct device *d);
};
struct device {
    const struct device_ops *ops;
    int fd;       /* to be watched for reading; -1: none */
    unsigned mtu; /* bytes */
    struct device_caps caps;
    char name[16];        /* "" when unknown */
    uint64_t write_drops; /* packets that the device refused */
};

/*
 * Read up to `count` packets. Returns how many (fewer than `count`: the device is empty now), or
 * -errno when the device is gone (-EBADFD, -ENODEV, ...). Oversized or empty reads are skipped.
 */
static inline int device_read(struct device *d, struct packet *batch, size_t count)
{
    return d->ops->read(d, batch, count);
}
/*
 * Write one IP packet gathered from iov[1..iov_count-1]; iov[0] is left free by the caller for the
 * device's own header. `offload` NULL: nothing special. Returns 0 or -errno; -EAGAIN: the
 * device's queue is full, the packet is lost (counted in write_drops).
 */
static inline int device_write(struct device *d, struct iovec *iov, int iov_count,
                               const struct offload *offload)
{
    return d->ops->write(d, iov, iov_count, offload);
}
static inline void device_close(struct device *d)
{
    d->ops->close(d);
}

/* --- device_linux.c (linux/if_tun.h) ------------------------------------------------------- */

struct device_tun_options {
    const char *name; /* NULL or "": the kernel chooses */
    bool offload;     /* try vnet header, checksum, TSO, USO, each kept only where it works */
    bool multi_queue; /* IFF_MULTI_QUEUE: further queues by opening the same name again */
};
/*
 * Create the device, or take over a persistent one of that name. NULL with `*error` set to
 * -errno: -ENOENT/-ENODEV no /dev/net/tun, -EPERM/-EACCES, -EBUSY in use by another process,
 * -EINVAL a device of that name that is no TUN (or of another queue mode). The MTU is read from
 * the device. Remember that vnet_hdr stays on after close: it is set again here.
 */
struct device *device_tun_open(const struct device_tun_options *options, int *error);
/*
 * Take an open descriptor of a TUN device (perhaps of another network namespace); the vnet
 * header and offloads are detected (TUNGETIFF, TUNGETVNETHDRSZ, TUNSETOFFLOAD), never assumed.
 * `mtu` 0: ask the device, 1500 where it does not say (one of another network namespace never
 * does). Owns `fd` on success only. Errors: -ENOTTY no TUN at all, -EPROTOTYPE a TAP, -EPROTO made
 * without IFF_NO_PI or with a vnet header that we do not know, -EBADFD attached to no device.
 */
struct device *device_tun_adopt(int fd, unsigned mtu, bool offload, int *error);

#endif
