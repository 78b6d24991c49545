#include "core/worker/broker.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_MS = 2000 };

struct request {
    uint32_t number;
    int32_t family, type, side;
};

struct answer {
    uint32_t number;
    int32_t error; /* 0, and a descriptor goes with it, or -errno */
};

/* --- asking ----------------------------------------------------------------------------------- */

/* The descriptor that came with a message, or -1. */
static int passed_descriptor(struct msghdr *m)
{
    const struct cmsghdr *c = CMSG_FIRSTHDR(m);
    int fd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(fd)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

/*
 * One answer: its socket, or -errno. MSG_CTRUNC without a descriptor: there is no room for it in
 * our table.
 */
static int receive(const struct broker *b, struct answer *answer)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = answer, .iov_len = sizeof(*answer)};
    struct msghdr m = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t n = recvmsg(b->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    if (n != (ssize_t)sizeof(*answer))
        return -EPIPE;
    int fd = passed_descriptor(&m);
    if (fd >= 0)
        return fd;
    return answer->error < 0 ? answer->error : -EMFILE;
}

static int wait_for_answer(const struct broker *b)
{
    struct pollfd fd = {.fd = b->fd, .events = POLLIN};
    int n = poll(&fd, 1, ANSWER_MS);
    if (n == 0)
        return -ETIMEDOUT;
    return n < 0 && errno != EINTR ? -errno : 0;
}

int broker_ask(struct broker *b, int family, int type, enum broker_side side)
{
    const struct request request = {
        .number = ++b->asked, .family = family, .type = type, .side = (int32_t)side};
    if (send(b->fd, &request, sizeof(request), MSG_NOSIGNAL) < 0)
        return -errno;
    for (;;) {
        struct answer answer = {.number = 0};
        int error = wait_for_answer(b);
        if (error < 0)
            return error;
        int result = receive(b, &answer);
        if (result == -EAGAIN || result == -EINTR)
            continue;
        if (result == -EPIPE || answer.number == request.number)
            return result;
        if (result >= 0) /* of a request that was given up */
            close(result);
    }
}

/* --- answering -------------------------------------------------------------------------------- */

static bool allowed(const struct request *r)
{
    return (r->family == AF_INET || r->family == AF_INET6) &&
           (r->type == SOCK_STREAM || r->type == SOCK_DGRAM) &&
           (r->side == BROKER_OUTER || r->side == BROKER_INNER);
}

/* What the kernel does not grant does not matter. */
static void enlarge_buffers(int fd)
{
    const int size = BROKER_BUFFER;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
}

static int make_socket(const struct request *r, const struct outbound_options *options)
{
    if (!allowed(r))
        return -EINVAL;
    int fd = socket(r->family, r->type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = r->side == BROKER_OUTER ? outbound_prepare_socket(fd, options) : 0;
    if (error < 0) {
        close(fd);
        return error;
    }
    if (r->type == SOCK_DGRAM)
        enlarge_buffers(fd);
    return fd;
}

static bool answer_with(int fd, uint32_t number, int result)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct answer answer = {.number = number, .error = result < 0 ? result : 0};
    struct iovec iov = {.iov_base = &answer, .iov_len = sizeof(answer)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (result >= 0) {
        memcpy(CMSG_DATA(&control.header), &result, sizeof(result));
        m.msg_control = &control;
        m.msg_controllen = sizeof(control);
    }
    return sendmsg(fd, &m, MSG_NOSIGNAL) >= 0;
}

/* Out of memory, or of descriptors in flight? That costs the one who asked, not all flows. */
static bool passes_over(int error)
{
    return error == ENOMEM || error == ENOBUFS || error == ETOOMANYREFS || error == EINTR;
}

void broker_serve(int fd, const struct outbound_options *options)
{
    bool going = true;
    while (going) {
        struct request request;
        ssize_t n = recv(fd, &request, sizeof(request), 0);
        if (n < 0 && passes_over(errno))
            continue;
        if (n != (ssize_t)sizeof(request))
            return;
        int result = make_socket(&request, options);
        going = answer_with(fd, request.number, result);
        if (!going && passes_over(errno))
            going = answer_with(fd, request.number, -errno);
        if (result >= 0)
            close(result);
    }
}
