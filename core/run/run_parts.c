#include "core/run/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"

/* Room for one descriptor, aligned for its header. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

int run_send_device(int sock, const struct device *device)
{
    unsigned mtu = device->mtu;
    struct iovec iov = {.iov_base = &mtu, .iov_len = sizeof(mtu)};
    union control control = {0};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(device->fd));
    memcpy(CMSG_DATA(c), &device->fd, sizeof(device->fd));
    return sendmsg(sock, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int run_receive_device(int sock, unsigned *mtu)
{
    struct iovec iov = {.iov_base = mtu, .iov_len = sizeof(*mtu)};
    union control control = {0};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t n;
    do
        n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    const struct cmsghdr *c = n == (ssize_t)sizeof(*mtu) ? CMSG_FIRSTHDR(&message) : NULL;
    if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
        return -ECONNRESET;
    int fd;
    memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

void run_send_report(const struct run_job *job, const struct run_report *r)
{
    (void)send(job->report[1], r, sizeof(*r), MSG_NOSIGNAL);
}

void run_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* What the parent process passed beyond stderr. Our own descriptors are close-on-exec. */
static void close_inherited(void)
{
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return;
    const struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        int fd = (int)strtol(entry->d_name, NULL, 10);
        if (fd <= STDERR_FILENO)
            continue;
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && !(flags & FD_CLOEXEC))
            close(fd);
    }
    (void)closedir(folder);
}

void run_let_go(int last)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; null >= 0 && fd <= last; fd++)
        (void)dup2(null, fd);
    run_close(&null);
    close_inherited();
    if (chdir("/") != 0)
        log_debug("cannot leave the working directory: %s", strerror(errno));
}
