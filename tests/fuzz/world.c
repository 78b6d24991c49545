#include "tests/fuzz/world.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/virtio_net.h>

#include "core/loop.h"
#include "tests/fuzz/fuzz.h"

enum { CSUM = 1, TSO = 2, USO = 4, VNET = 8 }; /* world_begin() */

struct world world;

static int first_free; /* the lowest descriptor before anything was opened */

#define WRAPPED(result, call, ...)                                                                 \
    result __real_##call(__VA_ARGS__);                                                             \
    result __wrap_##call(__VA_ARGS__)

/* --- the clock -------------------------------------------------------------------------------- */

WRAPPED(int, clock_gettime, clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock != CLOCK_MONOTONIC)
        return __real_clock_gettime(clock, now);
    *now = (struct timespec){.tv_sec = (time_t)(world.now_ms / 1000),
                             .tv_nsec = (long)(world.now_ms % 1000 * 1000000)};
    return 0;
}

WRAPPED(int, timerfd_settime, int fd, int flags, const struct itimerspec *to,
        struct itimerspec *from);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *from)
{
    (void)flags, (void)from;
    world.timer_fd = fd;
    world.wake_at_ms =
        (uint64_t)to->it_value.tv_sec * 1000 + (uint64_t)to->it_value.tv_nsec / 1000000;
    world_advance(world.now_ms);
    return 0;
}

void world_advance(uint64_t ms)
{
    if (world.wake_at_ms == 0 || world.wake_at_ms > ms) {
        world.now_ms = ms;
        return;
    }
    static const struct itimerspec at_once = {.it_value = {.tv_nsec = 1}};
    if (world.now_ms < world.wake_at_ms)
        world.now_ms = world.wake_at_ms;
    world.wake_at_ms = 0;
    FUZZ_CHECK(__real_timerfd_settime(world.timer_fd, TFD_TIMER_ABSTIME, &at_once, NULL) == 0);
}

/* --- the device ------------------------------------------------------------------------------- */

static int get_interface(struct ifreq *request)
{
    *request = (struct ifreq){.ifr_name = "fuzz0"};
    request->ifr_flags = (short)(IFF_TUN | IFF_NO_PI | (world.vnet ? IFF_VNET_HDR : 0));
    return 0;
}

static int set_offload(unsigned long wanted)
{
    unsigned long possible = 0;
    if (world.csum)
        possible |= TUN_F_CSUM;
    if (world.tso)
        possible |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (world.uso)
        possible |= 0x60; /* TUN_F_USO4 and 6 */
    errno = EINVAL;
    return wanted & ~possible ? -1 : 0;
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    void *at = va_arg(args, void *);
    va_end(args);
    if (fd != world.device_near)
        return __real_ioctl(fd, request, at);
    switch (request) {
    case TUNGETIFF:
        return get_interface(at);
    case TUNSETVNETHDRSZ:
    case TUNSETVNETLE:
        return 0;
    case TUNGETVNETHDRSZ:
        memcpy(at, &world.vnet_len, sizeof world.vnet_len);
        return 0;
    case TUNSETOFFLOAD:
        return set_offload((unsigned long)(uintptr_t)at);
    default:
        errno = EPERM;
        return -1;
    }
}

/* The only write() to a device is the one that tries whether it has packet information. */
WRAPPED(ssize_t, write, int fd, const void *at, size_t len);
ssize_t __wrap_write(int fd, const void *at, size_t len)
{
    if (fd != world.device_near)
        return __real_write(fd, at, len);
    errno = EINVAL;
    return -1;
}

void world_push(const uint8_t *vnet, const uint8_t *packet, size_t len)
{
    static const uint8_t none[WORLD_VNET_MAX];
    struct iovec iov[2] = {
        {.iov_base = (void *)(vnet ? vnet : none),
         .iov_len = world.vnet ? (size_t)world.vnet_len : 0},
        {.iov_base = (void *)packet, .iov_len = len},
    };
    (void)!writev(world.device_far, iov, 2);
}

static void understand(const uint8_t *at, struct offload *out)
{
    struct virtio_net_hdr h;
    memcpy(&h, at, sizeof h);
    out->csum = h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? PACKET_CSUM_PARTIAL : PACKET_CSUM_NONE;
    out->csum_start = h.csum_start;
    out->csum_offset = h.csum_offset;
    out->gso_size = h.gso_size;
    out->header_len = h.hdr_len;
    switch (h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        out->gso = PACKET_GSO_NONE;
        break;
    case VIRTIO_NET_HDR_GSO_TCPV4:
        out->gso = PACKET_GSO_TCP4;
        break;
    case VIRTIO_NET_HDR_GSO_TCPV6:
        out->gso = PACKET_GSO_TCP6;
        break;
    default:
        FUZZ_CHECK((h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == 5); /* VIRTIO_NET_HDR_GSO_UDP_L4 */
        out->gso = PACKET_GSO_UDP;
    }
}

bool world_pop(struct packet *out)
{
    size_t header = world.vnet ? (size_t)world.vnet_len : 0;
    uint8_t *at = out->buffer + PACKET_HEADROOM - header;
    ssize_t n = recv(world.device_far, at, PACKET_SIZE_MAX + header, 0);
    if (n < 0)
        return false;
    FUZZ_CHECK((size_t)n > header);
    out->data = out->buffer + PACKET_HEADROOM;
    out->len = (size_t)n - header;
    out->offload = (struct offload){0};
    if (world.vnet)
        understand(at, &out->offload);
    return true;
}

/* --- sockets ---------------------------------------------------------------------------------- */

static int make_socket(int type)
{
    int pair[2];
    FUZZ_CHECK(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, pair) == 0);
    bool stream = (type & 0xff) == SOCK_STREAM;
    world.sockets[world.socket_count++] = (struct world_socket){pair[0], pair[1], stream};
    return pair[0];
}

int world_connect(void)
{
    return world.socket_count < WORLD_SOCKETS_MAX ? make_socket(SOCK_STREAM) : -1;
}

WRAPPED(int, socket, int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol)
{
    if (domain != AF_INET && domain != AF_INET6)
        return __real_socket(domain, type, protocol);
    errno = world.socket_error ? world.socket_error : EMFILE;
    if (world.socket_error || world.socket_count == WORLD_SOCKETS_MAX)
        return -1;
    return make_socket(type);
}

WRAPPED(int, bind, int fd, const struct sockaddr *to, socklen_t len);
int __wrap_bind(int fd, const struct sockaddr *to, socklen_t len)
{
    return to->sa_family == AF_UNIX ? __real_bind(fd, to, len) : 0;
}

/* Whatever it is asked of: all our sockets have one address. */
WRAPPED(int, getsockname, int fd, struct sockaddr *at, socklen_t *len);
int __wrap_getsockname(int fd, struct sockaddr *at, socklen_t *len)
{
    const struct sockaddr_in ours = {
        .sin_family = AF_INET, .sin_port = htons(1080), .sin_addr = {htonl(0x0a000001)}};
    (void)fd;
    FUZZ_CHECK(*len >= sizeof ours);
    memcpy(at, &ours, sizeof ours);
    *len = sizeof ours;
    return 0;
}

/* The kernel knows UDP_SEGMENT. */
WRAPPED(int, getsockopt, int fd, int level, int name, void *at, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *at, socklen_t *len)
{
    return level == IPPROTO_UDP ? 0 : __real_getsockopt(fd, level, name, at, len);
}

WRAPPED(int, connect, int fd, const struct sockaddr *to, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    if (to->sa_family != AF_INET && to->sa_family != AF_INET6)
        return __real_connect(fd, to, len);
    errno = world.connect_error;
    return world.connect_error ? -1 : 0;
}

/* A pair of sockets has no addresses: datagrams come from the proxy, wherever they were sent. */
WRAPPED(int, sendmmsg, int fd, struct mmsghdr *messages, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    for (unsigned i = 0; i < count; i++)
        messages[i].msg_hdr.msg_name = NULL;
    return __real_sendmmsg(fd, messages, count, flags);
}

static void add_run(struct msghdr *m)
{
    struct cmsghdr *c = m->msg_control;
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_GRO;
    c->cmsg_len = CMSG_LEN(sizeof world.gro_size);
    memcpy(CMSG_DATA(c), &world.gro_size, sizeof world.gro_size);
    m->msg_controllen = CMSG_SPACE(sizeof world.gro_size);
}

WRAPPED(int, recvmmsg, int fd, struct mmsghdr *messages, unsigned count, int flags,
        struct timespec *timeout);
int __wrap_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags,
                    struct timespec *timeout)
{
    static const struct sockaddr_in proxy = {
        .sin_family = AF_INET, .sin_port = 80, .sin_addr = {.s_addr = 0x630200c0}};
    int n = __real_recvmmsg(fd, messages, count, flags, timeout);
    for (int i = 0; i < n; i++) {
        struct msghdr *m = &messages[i].msg_hdr;
        memcpy(m->msg_name, &proxy, sizeof proxy);
        m->msg_controllen = 0;
        if (world.gro_size > 0)
            add_run(m);
    }
    return n;
}

/* --- the loop --------------------------------------------------------------------------------- */

WRAPPED(int, loop_signal_watch, struct loop *loop, struct loop_signal *s, int signo,
        void (*fn)(void *arg, int signo), void *arg);
int __wrap_loop_signal_watch(struct loop *loop, struct loop_signal *s, int signo,
                             void (*fn)(void *arg, int signo), void *arg)
{
    (void)loop, (void)s, (void)signo;
    world.on_signal = fn;
    world.signal_arg = arg;
    return 0;
}

WRAPPED(void, loop_turn, struct loop *loop, bool wait);
void __wrap_loop_turn(struct loop *loop, bool wait)
{
    (void)wait;
    world_turn();
    __real_loop_turn(loop, false);
}

/* --- all of it -------------------------------------------------------------------------------- */

static int lowest_descriptor(void)
{
    int fd = dup(STDERR_FILENO);
    close(fd);
    return fd;
}

void world_begin(void)
{
    first_free = lowest_descriptor();
    world = (struct world){.now_ms = 1000000, .device_near = -1, .device_far = -1};
    world.epoll_fd = lowest_descriptor(); /* what libevent opens next, and first */
}

struct device *world_begin_with_device(unsigned features)
{
    int pair[2], error;
    world_begin();
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    world.device_near = pair[0];
    world.device_far = pair[1];
    world.vnet = (features & VNET) != 0;
    world.vnet_len = features & CSUM ? 12 : 10;
    world.csum = (features & CSUM) != 0;
    world.tso = world.csum && (features & TSO);
    world.uso = world.tso && (features & USO);
    struct device *d = device_tun_adopt(pair[0], 1500, true, &error);
    FUZZ_CHECK(d);
    world.epoll_fd = lowest_descriptor();
    return d;
}

bool world_is_quiet(void)
{
    struct pollfd polled = {.fd = world.epoll_fd, .events = POLLIN};
    FUZZ_CHECK(poll(&polled, 1, 0) >= 0 && !(polled.revents & (POLLNVAL | POLLERR)));
    return polled.revents == 0;
}

bool world_end(void)
{
    for (size_t i = 0; i < world.socket_count; i++)
        if (world.sockets[i].far >= 0)
            close(world.sockets[i].far);
    if (world.device_far >= 0)
        close(world.device_far);
    world.device_near = -1;
    return lowest_descriptor() == first_free;
}
