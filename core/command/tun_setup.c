/*
 * The order is: refuse what cannot work -> open the device -> configure its link.
 *
 * A device that culvert created vanishes as its descriptor is closed, with all that was
 * configured on it. One that was there before (persistent) is left as it was found: what is
 * changed is noted in `struct tun_setup` first. A passed descriptor is not configured at all,
 * since its device may live in another network namespace.
 */
#include "core/command/tun_setup.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/command/say.h"
#include "stack/link.h"
#include "stack/steering.h"

/* Without TSO bulk uploads arrive in bursts of small packets that the kernel's 500 cannot hold. */
enum { PLAIN_TXQUEUELEN = 5000 };

/* --- the link's state before ------------------------------------------------------------------ */

static bool query_link(const char *name, unsigned long request, struct ifreq *out)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    bool answered = ioctl(fd, request, out) == 0;
    close(fd);
    return answered;
}

static void remember_link(struct tun_setup *s)
{
    const char *name = s->options->tun_name;
    struct ifreq ifr;
    s->existed = link_index(name) > 0;
    s->was_up = s->existed && query_link(name, SIOCGIFFLAGS, &ifr) && (ifr.ifr_flags & IFF_UP);
    s->old_addr_gen_mode = link_get_addr_gen_mode(name);
}

/* --- opening ---------------------------------------------------------------------------------- */

static void explain_open(const char *name, int error)
{
    switch (-error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
        say("/dev/net/tun is missing: load the kernel's tun module (modprobe tun), or give the "
            "container that device");
        return;
    case EPERM:
    case EACCES:
        say("no permission to open TUN device %s: CAP_NET_ADMIN and access to /dev/net/tun are "
            "needed; run as root, or pass an open device with --tun-fd",
            name);
        return;
    case EBUSY:
        say("TUN device %s is in use by another process: stop that, or choose another with --tun",
            name);
        return;
    case EINVAL:
        say("device %s is there, but is no TUN device: choose another with "
            "--tun",
            name);
        return;
    default:
        say("cannot open TUN device %s: %s", name, strerror(-error));
    }
}

static bool only_queue(struct tun_setup *s)
{
    s->queues[0] = s->device;
    s->queue_count = 1;
    if (s->options->workers > 1)
        log_warn("one worker instead of %u: %s has one queue", s->options->workers,
                 s->device->name[0] ? s->device->name : "the device");
    return true;
}

/* A queue for each worker, or one where the kernel would spread what belongs together. */
static bool open_queues(struct tun_setup *s, const struct device_tun_options *how)
{
    s->queues[0] = s->device;
    s->queue_count = 1;
    int error = steering_attach(s->device);
    if (error < 0) {
        log_warn("one worker instead of %u: no eBPF to spread packets by (%s)", s->options->workers,
                 strerror(-error));
        return true;
    }
    while (s->queue_count < s->options->workers) {
        struct device *queue = device_tun_open(how, &error);
        if (!queue) {
            say("cannot open queue %zu of %s: %s; try fewer --workers", s->queue_count + 1,
                s->device->name, strerror(-error));
            return false;
        }
        s->queues[s->queue_count++] = queue;
    }
    return true;
}

static bool open_by_name(struct tun_setup *s)
{
    const struct options *o = s->options;
    struct device_tun_options how = {
        .name = o->tun_name, .offload = o->offload, .multi_queue = o->workers > 1};
    int error = 0;
    s->device = device_tun_open(&how, &error);
    if (!s->device && error == -EINVAL) { /* a persistent device of the other queue mode */
        how.multi_queue = !how.multi_queue;
        s->device = device_tun_open(&how, &error);
    }
    if (!s->device) {
        explain_open(o->tun_name, error);
        return false;
    }
    return how.multi_queue && o->workers > 1 ? open_queues(s, &how) : only_queue(s);
}

static bool adopt_descriptor(struct tun_setup *s)
{
    const struct options *o = s->options;
    int fd = o->tun_fd;
    if (fcntl(fd, F_GETFD) < 0) {
        say("--tun-fd %d: no such descriptor is open; the parent process must pass it", fd);
        return false;
    }
    int error = 0;
    s->device = device_tun_adopt(fd, options_given(o, "mtu") ? o->mtu : 0, o->offload, &error);
    if (!s->device)
        say("--tun-fd %d: the descriptor is no TUN device: %s", fd, strerror(-error));
    return s->device != NULL && only_queue(s);
}

/* --- configuring the link --------------------------------------------------------------------- */

/* Two links with one address: packets would leave by the wrong one. Checked before any change. */
static bool addresses_are_free(const struct options *o)
{
    for (size_t i = 0; i < o->addresses.count; i++) {
        const struct addr *a = &o->addresses.items[i].addr;
        char other[16];
        char text[ADDR_TEXT_MAX];
        if (!link_address_in_use(a, o->tun_name, other))
            continue;
        say("address %s is already in use on device %s: choose another with --address",
            addr_format(a, text), other);
        return false;
    }
    return true;
}

static bool configure_mtu(struct tun_setup *s)
{
    const struct options *o = s->options;
    if (s->device->mtu == o->mtu || (s->existed && !options_given(o, "mtu")))
        return true;
    unsigned before = s->device->mtu;
    int error = link_set_mtu(s->device->name, o->mtu);
    if (error < 0) {
        say("cannot set the MTU of %s to %u: %s", s->device->name, o->mtu, strerror(-error));
        return false;
    }
    s->old_mtu = before;
    for (size_t i = 0; i < s->queue_count; i++)
        s->queues[i]->mtu = o->mtu;
    return true;
}

/* A queue that is too short costs speed, no more: failures are not the user's concern. */
static void configure_queue(struct tun_setup *s)
{
    struct ifreq ifr;
    if (s->device->caps.tso || !query_link(s->device->name, SIOCGIFTXQLEN, &ifr))
        return;
    if (ifr.ifr_qlen < PLAIN_TXQUEUELEN &&
        link_set_txqueuelen(s->device->name, PLAIN_TXQUEUELEN) == 0)
        s->old_txqueuelen = (unsigned)ifr.ifr_qlen;
}

static bool configure_address(struct tun_setup *s, const struct cidr *address)
{
    const char *name = s->device->name;
    char owner[16];
    char text[CIDR_TEXT_MAX];
    /* One that the device has already is not ours to take away. */
    if (link_address_in_use(&address->addr, "", owner) && strcmp(owner, name) == 0)
        return true;
    int error = link_add_address(name, address);
    if (error == 0) {
        s->added[s->added_count++] = *address;
        return true;
    }
    bool is_default = !options_given(s->options, "address");
    if (is_default && !addr_is_v4(&address->addr)) {
        log_info("no IPv6 on %s: %s", name, strerror(-error)); /* disable_ipv6, ipv6.disable=1 */
        return true;
    }
    say("cannot add address %s to %s: %s%s", cidr_format(address, text), name, strerror(-error),
        error == -EPERM ? " (CAP_NET_ADMIN is needed)" : "");
    return false;
}

static bool configure_link(struct tun_setup *s)
{
    if (!configure_mtu(s))
        return false;
    configure_queue(s);
    for (size_t i = 0; i < s->options->addresses.count; i++) {
        if (!configure_address(s, &s->options->addresses.items[i]))
            return false;
    }
    int error = link_set_up(s->device->name, true);
    if (error == 0)
        return true;
    say("cannot bring %s up: %s%s", s->device->name, strerror(-error),
        error == -EPERM ? " (CAP_NET_ADMIN is needed)" : "");
    return false;
}

bool tun_setup_open(struct tun_setup *s)
{
    if (s->options->tun_fd >= 0)
        return adopt_descriptor(s);
    if (!addresses_are_free(s->options))
        return false;
    remember_link(s);
    return open_by_name(s) && configure_link(s);
}

/* The device may have vanished meanwhile. */
void tun_setup_undo(struct tun_setup *s)
{
    if (!s->device)
        return;
    const char *name = s->device->name;
    if (s->existed) {
        for (size_t i = 0; i < s->added_count; i++)
            (void)link_delete_address(name, &s->added[i]);
        if (!s->was_up)
            (void)link_set_up(name, false);
        if (s->old_addr_gen_mode >= 0)
            (void)link_set_addr_gen_mode(name, (uint8_t)s->old_addr_gen_mode);
        if (s->old_txqueuelen)
            (void)link_set_txqueuelen(name, s->old_txqueuelen);
        if (s->old_mtu)
            (void)link_set_mtu(name, s->old_mtu);
    }
    for (size_t i = 1; i < s->queue_count; i++)
        device_close(s->queues[i]);
    device_close(s->device);
    s->device = NULL;
    s->queue_count = 0;
}

const char *tun_setup_offload(const struct device_caps *caps)
{
    if (!caps->csum)
        return "none";
    if (!caps->tso)
        return "csum";
    return caps->uso ? "csum,tso,uso" : "csum,tso";
}

struct addr tun_setup_resolver(const struct options *o)
{
    if (o->dns == DNS_RELAY || o->addresses.count == 0)
        return o->dns_server.addr;
    struct addr a = o->addresses.items[0].addr;
    a.bytes[15] ^= 3; /* 198.18.0.1 -> .2 */
    for (size_t i = 1; i < o->addresses.count; i++) {
        if (addr_equal(&a, &o->addresses.items[i].addr))
            return o->dns_server.addr;
    }
    return a;
}
