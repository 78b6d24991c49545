/* Sockets towards the world, made here or by the broker. */
#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/worker/broker.h"
#include "core/proxy/resolver.h"

enum { SEND_BUFFER = 512 * 1024 }; /* bytes, of a TCP socket that bulk is sent to */

/* What only the broker can do: mark a stream, bind it to an interface; a datagram's large buffers.
 */
static bool wants_broker(const struct outbound_options *o, int type)
{
    return o->broker && (type == SOCK_DGRAM || o->mark != 0 || o->bind_interface[0] != '\0');
}

int outbound_open(const struct outbound_options *options, int family, int type)
{
    if (wants_broker(options, type))
        return broker_ask(options->broker, family, type, BROKER_OUTER);
    int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = outbound_prepare_socket(fd, options);
    if (error == 0)
        return fd;
    close(fd);
    return error;
}

int outbound_open_inner(const struct outbound_options *options, int family)
{
    if (options->broker)
        return broker_ask(options->broker, family, SOCK_DGRAM, BROKER_INNER);
    int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

ssize_t outbound_send(int fd, const struct iovec *iov, int count)
{
    if (count == 1)
        return send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    return sendmsg(fd, &message, MSG_NOSIGNAL);
}

static bool read_memory(int fd, uint32_t info[SK_MEMINFO_VARS])
{
    socklen_t len = SK_MEMINFO_VARS * sizeof info[0];
    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &len) == 0 &&
           len >= SK_MEMINFO_VARS * sizeof info[0];
}

void outbound_widen(int fd)
{
    uint32_t info[SK_MEMINFO_VARS];
    const int half = SEND_BUFFER / 2; /* the kernel doubles it */
    const int unlocked = 0;           /* what SO_SNDBUF sets is locked: the kernel's care ends */
    if (!read_memory(fd, info) || info[SK_MEMINFO_SNDBUF] >= SEND_BUFFER ||
        setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked) != 0)
        return;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof half);
    (void)setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
}

uint32_t outbound_room(int fd)
{
    uint32_t info[SK_MEMINFO_VARS];
    if (!read_memory(fd, info))
        return UINT32_MAX;
    if (info[SK_MEMINFO_SNDBUF] <= info[SK_MEMINFO_WMEM_QUEUED])
        return 0;
    uint32_t room = info[SK_MEMINFO_SNDBUF] - info[SK_MEMINFO_WMEM_QUEUED];
    return room - room / 16;
}

bool outbound_writable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, 0) > 0;
}
