/*
 * /dev/net/tun (linux/if_tun.h).
 *
 * One read(2) or writev(2) moves one packet, but with IFF_VNET_HDR one packet may be a 64 KiB
 * super-packet. The kernel puts a struct virtio_net_hdr before each packet; it is read into the
 * packet's headroom, so that the IP header lands where the caller wants it, and written from
 * iov[0]. Everything that a kernel or a descriptor of unknown origin may or may not be able to do
 * is tried, and what it then says it does is what we go by:
 *
 *   TUNSETOFFLOAD   from everything down to nothing; the first set it takes are our caps
 *   TUNGETIFF       is the vnet header on? A device that was taken over may have kept it
 *   a write         of zeros: is there a packet information header too? (TUNGETIFF does not tell)
 *   TUNGETVNETHDRSZ how long is it? A descriptor's former owner may have changed it
 *   TUNSETVNETLE    fields little-endian whatever the machine; else the machine's own order
 */
#include "stack/device.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/virtio_net.h>

#include "core/base/list.h"
#include "stack/link.h"

/* Linux 6.2; Debian 12's headers are older. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum {
    VNET_HEADER_LEN = sizeof(struct virtio_net_hdr),
    VNET_HEADER_MAX = 32, /* what stack/device.h leaves for it */
    MTU_DEFAULT = 1500,
    GATHER_MAX = 2048, /* bytes, vnet header included */
};
static_assert(sizeof(struct virtio_net_hdr) == 10, "as the kernel has it");
static_assert((int)VNET_HEADER_MAX <= (int)PACKET_HEADROOM, "the header fits before the packet");

struct tun {
    struct device base;
    size_t vnet_len; /* bytes before each packet; 0: no vnet header */
    bool little_endian;
};

static struct tun *tun_of(struct device *d)
{
    return CONTAINER_OF(d, struct tun, base);
}

/* --- the vnet header ------------------------------------------------------------------------ */

static uint16_t from_vnet(const struct tun *t, uint16_t field)
{
    return t->little_endian ? le16toh(field) : field;
}

static uint16_t to_vnet(const struct tun *t, uint16_t value)
{
    return t->little_endian ? htole16(value) : value;
}

/* An unknown GSO type becomes one that packet_parse() refuses. */
static uint8_t gso_from_vnet(uint8_t type)
{
    switch (type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        return PACKET_GSO_NONE;
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return PACKET_GSO_TCP4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
        return PACKET_GSO_TCP6;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        return PACKET_GSO_UDP;
    default:
        return UINT8_MAX;
    }
}

static uint8_t gso_to_vnet(uint8_t gso)
{
    switch ((enum packet_gso)gso) {
    case PACKET_GSO_NONE:
        return VIRTIO_NET_HDR_GSO_NONE;
    case PACKET_GSO_TCP4:
        return VIRTIO_NET_HDR_GSO_TCPV4;
    case PACKET_GSO_TCP6:
        return VIRTIO_NET_HDR_GSO_TCPV6;
    case PACKET_GSO_UDP:
        return VIRTIO_NET_HDR_GSO_UDP_L4;
    }
    return VIRTIO_NET_HDR_GSO_NONE;
}

static void read_vnet(const struct tun *t, const uint8_t *at, struct offload *out)
{
    struct virtio_net_hdr h;
    memcpy(&h, at, sizeof(h));
    *out = (struct offload){
        .csum = PACKET_CSUM_NONE,
        .gso = gso_from_vnet(h.gso_type),
        .ecn = (h.gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0,
        .gso_size = from_vnet(t, h.gso_size),
        .header_len = from_vnet(t, h.hdr_len),
        .csum_start = from_vnet(t, h.csum_start),
        .csum_offset = from_vnet(t, h.csum_offset),
    };
    if (h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        out->csum = PACKET_CSUM_PARTIAL;
    else if (h.flags & VIRTIO_NET_HDR_F_DATA_VALID)
        out->csum = PACKET_CSUM_VERIFIED;
}

static void write_vnet(const struct tun *t, const struct offload *o, uint8_t *at)
{
    struct virtio_net_hdr h = {0};
    if (o && o->csum == PACKET_CSUM_PARTIAL) {
        h.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        h.csum_start = to_vnet(t, o->csum_start);
        h.csum_offset = to_vnet(t, o->csum_offset);
    }
    if (o && o->gso != PACKET_GSO_NONE) {
        h.gso_type = gso_to_vnet(o->gso);
        if (o->ecn)
            h.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
        h.gso_size = to_vnet(t, o->gso_size);
        h.hdr_len = to_vnet(t, o->header_len);
    }
    memset(at, 0, t->vnet_len);
    memcpy(at, &h, sizeof(h));
}

/* --- reading and writing -------------------------------------------------------------------- */

enum read_result { READ_PACKET, READ_NOTHING, READ_SKIPPED, READ_GONE };

/*
 * EBADFD: the device was deleted, or the queue detached; EFAULT: it was deleted while we
 * read. EINVAL and others concern the one packet (the kernel could not describe it).
 */
static enum read_result classify_read_error(int error)
{
    switch (error) {
    case EAGAIN:
        return READ_NOTHING;
    case EBADFD:
    case EBADF:
    case ENODEV:
    case ENXIO:
    case EFAULT:
        return READ_GONE;
    default:
        return READ_SKIPPED;
    }
}

static enum read_result read_one(struct tun *t, struct packet *p)
{
    uint8_t *at = p->buffer + PACKET_HEADROOM - t->vnet_len;
    size_t room = PACKET_BUFFER_SIZE - PACKET_HEADROOM + t->vnet_len;
    ssize_t n = read(t->base.fd, at, room);
    if (n < 0)
        return classify_read_error(errno);
    if ((size_t)n <= t->vnet_len || (size_t)n - t->vnet_len > PACKET_SIZE_MAX)
        return READ_SKIPPED;
    p->data = p->buffer + PACKET_HEADROOM;
    p->len = (size_t)n - t->vnet_len;
    if (t->vnet_len > 0)
        read_vnet(t, at, &p->offload);
    else
        p->offload = (struct offload){0};
    return READ_PACKET;
}

/* Skipped packets do not count, but attempts are bounded: a device can't keep us here. */
static int tun_read(struct device *d, struct packet *batch, size_t count)
{
    struct tun *t = tun_of(d);
    size_t n = 0;
    for (size_t attempts = 2 * count; n < count && attempts > 0; attempts--) {
        enum read_result result = read_one(t, &batch[n]);
        if (result == READ_PACKET)
            n++;
        else if (result == READ_NOTHING)
            break;
        else if (result == READ_GONE)
            return n > 0 ? (int)n : -EBADFD;
    }
    return (int)n;
}

/*
 * Small packets are gathered here: each piece of a writev() costs the kernel more, to take in its
 * address and to copy it by itself, than it costs us to copy such a packet.
 */
static ssize_t write_gathered(int fd, const struct iovec *iov, int count)
{
    uint8_t packet[GATHER_MAX];
    size_t len = 0;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > sizeof(packet) - len)
            return writev(fd, iov, count);
        memcpy(packet + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    return write(fd, packet, len);
}

/* EIO says that the link is down: as with any card without a cable, the packet is lost. */
static int tun_write(struct device *d, struct iovec *iov, int iov_count,
                     const struct offload *offload)
{
    struct tun *t = tun_of(d);
    uint8_t header[VNET_HEADER_MAX];
    if (t->vnet_len > 0) {
        write_vnet(t, offload, header);
        iov[0] = (struct iovec){.iov_base = header, .iov_len = t->vnet_len};
    } else {
        iov++;
        iov_count--;
    }
    ssize_t n;
    do
        n = write_gathered(d->fd, iov, iov_count);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return 0;
    d->write_drops++;
    return errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -errno;
}

static void tun_close(struct device *d)
{
    close(d->fd);
    free(tun_of(d));
}

static const struct device_ops tun_ops = {
    .read = tun_read,
    .write = tun_write,
    .close = tun_close,
};

/* --- finding out what the device can do ----------------------------------------------------- */

/* Set the vnet header's length and byte order, and believe what the kernel then says. 0 or -errno.
 */
static int settle_vnet_header(struct tun *t)
{
    int fd = t->base.fd;
    int len = VNET_HEADER_LEN;
    (void)ioctl(fd, TUNSETVNETHDRSZ, &len);
    if (ioctl(fd, TUNGETVNETHDRSZ, &len) < 0)
        return -errno;
    if (len < VNET_HEADER_LEN || len > VNET_HEADER_MAX)
        return -EPROTO;
    t->vnet_len = (size_t)len;
    int on = 1;
    t->little_endian = ioctl(fd, TUNSETVNETLE, &on) == 0;
    return 0;
}

/* USO goes with both families or not at all (Linux refuses one alone). */
static void settle_offload(struct tun *t, bool wanted)
{
    static const unsigned attempts[] = {
        TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,
        TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN,
        TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
        TUN_F_CSUM,
        0,
    };
    size_t count = sizeof(attempts) / sizeof(attempts[0]);
    bool possible = wanted && t->vnet_len > 0;
    for (size_t i = possible ? 0 : count - 1; i < count; i++) {
        if (ioctl(t->base.fd, TUNSETOFFLOAD, (unsigned long)attempts[i]) < 0)
            continue;
        t->base.caps.csum = (attempts[i] & TUN_F_CSUM) != 0;
        t->base.caps.tso = (attempts[i] & TUN_F_TSO4) != 0;
        t->base.caps.uso = (attempts[i] & TUN_F_USO4) != 0;
        t->base.caps.big_tcp = t->base.caps.tso && link_kernel_has_big_tcp();
        return;
    }
}

/* The MTU of the device of that name in our own network namespace, bytes; 0: not known. */
static unsigned mtu_by_name(const char *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    struct ifreq request = {0};
    memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    int result = ioctl(fd, SIOCGIFMTU, &request);
    close(fd);
    return result < 0 || request.ifr_mtu <= 0 ? 0 : (unsigned)request.ifr_mtu;
}

/*
 * Does the device live in our network namespace? A name alone may belong to another device
 * there. False also where the kernel does not say (it asks for CAP_NET_ADMIN).
 */
static bool in_our_namespace(int fd)
{
    int device_ns = ioctl(fd, TUNGETDEVNETNS);
    if (device_ns < 0)
        return false;
    struct stat theirs, ours;
    bool same = fstat(device_ns, &theirs) == 0 && stat("/proc/self/ns/net", &ours) == 0 &&
                theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev;
    close(device_ns);
    return same;
}

/*
 * Was the device made without IFF_NO_PI? Linux 6.18's TUNGETIFF reports that flag set in any case.
 * But without packet information the first byte after the vnet header tells the IP version, and a
 * zero there is EINVAL, while with it these zeros are a packet of a protocol that nobody takes:
 * swallowed, or EIO where the link is down.
 */
static bool has_packet_information(int fd, size_t vnet_len)
{
    const uint8_t zeros[sizeof(struct tun_pi) + VNET_HEADER_MAX + 1] = {0};
    return write(fd, zeros, sizeof(struct tun_pi) + vnet_len + 1) > 0 || errno == EIO;
}

/* Make a device of an attached descriptor. NULL and `*error`; the descriptor stays the caller's. */
static struct device *device_over(int fd, const struct ifreq *request, bool offload, int *error)
{
    struct tun *t = calloc(1, sizeof(*t));
    if (!t) {
        *error = -ENOMEM;
        return NULL;
    }
    t->base.ops = &tun_ops;
    t->base.fd = fd;
    memcpy(t->base.name, request->ifr_name, sizeof(t->base.name) - 1);
    *error = (request->ifr_flags & IFF_VNET_HDR) ? settle_vnet_header(t) : 0;
    if (*error < 0) {
        free(t);
        return NULL;
    }
    settle_offload(t, offload);
    return &t->base;
}

/* Attach `fd` to the device as asked, and fill `request` with what it then is. 0 or -errno. */
static int attach(int fd, const struct device_tun_options *options, struct ifreq *request)
{
    const char *name = options->name ? options->name : "";
    if (strlen(name) >= sizeof(request->ifr_name))
        return -EINVAL;
    unsigned features = 0;
    if (ioctl(fd, TUNGETFEATURES, &features) < 0)
        return -errno;
    unsigned flags = IFF_TUN | IFF_NO_PI;
    if (options->offload)
        flags |= features & IFF_VNET_HDR;
    if (options->multi_queue)
        flags |= IFF_MULTI_QUEUE;
    *request = (struct ifreq){0};
    memcpy(request->ifr_name, name, strlen(name));
    request->ifr_flags = (short)flags;
    if (ioctl(fd, TUNSETIFF, request) < 0)
        return -errno;
    return ioctl(fd, TUNGETIFF, request) < 0 ? -errno : 0;
}

struct device *device_tun_open(const struct device_tun_options *options, int *error)
{
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    struct ifreq request = {0};
    *error = attach(fd, options, &request);
    if (*error < 0)
        goto failed;
    struct device *d = device_over(fd, &request, options->offload, error);
    if (!d)
        goto failed;
    unsigned mtu = mtu_by_name(d->name);
    d->mtu = mtu > 0 ? mtu : MTU_DEFAULT;
    return d;
failed:
    close(fd);
    return NULL;
}

/* Is it a TUN? Makes the descriptor non-blocking. 0 or -errno. */
static int check_adoptable(int fd, struct ifreq *request)
{
    *request = (struct ifreq){0};
    if (ioctl(fd, TUNGETIFF, request) < 0)
        return errno == ENOTTY || errno == EINVAL || errno == EOPNOTSUPP ? -ENOTTY : -errno;
    if (!(request->ifr_flags & IFF_TUN))
        return -EPROTOTYPE;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

struct device *device_tun_adopt(int fd, unsigned mtu, bool offload, int *error)
{
    struct ifreq request;
    *error = check_adoptable(fd, &request);
    if (*error < 0)
        return NULL;
    struct device *d = device_over(fd, &request, offload, error);
    if (!d)
        return NULL;
    if (has_packet_information(fd, tun_of(d)->vnet_len)) {
        free(tun_of(d));
        *error = -EPROTO;
        return NULL;
    }
    if (mtu == 0 && in_our_namespace(fd))
        mtu = mtu_by_name(d->name);
    d->mtu = mtu > 0 ? mtu : MTU_DEFAULT;
    return d;
}
