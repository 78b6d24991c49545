#include "core/run/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/command/proxy_variables.h"
#include "core/command/secrets.h"

/* Room for all descriptors, aligned for their header. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(WORKERS_MAX * sizeof(int))];
};

int run_send_device(int sock, const struct tun_setup *setup)
{
    int fds[WORKERS_MAX] = {0};
    for (size_t i = 0; i < setup->queue_count; i++)
        fds[i] = setup->queues[i]->fd;
    size_t bytes = setup->queue_count * sizeof(fds[0]);
    unsigned mtu = setup->device->mtu;
    struct iovec iov = {.iov_base = &mtu, .iov_len = sizeof(mtu)};
    union control control = {0};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = CMSG_SPACE(bytes),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(c), fds, bytes);
    return sendmsg(sock, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* How many descriptors have come, or -errno. */
static int receive(int sock, unsigned *mtu, int fds[WORKERS_MAX])
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
    if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(sizeof(int)))
        return -ECONNRESET;
    size_t bytes = c->cmsg_len - CMSG_LEN(0);
    memcpy(fds, CMSG_DATA(c), bytes);
    return (int)(bytes / sizeof(int));
}

int run_take_device(int sock, bool offload, struct run_device *out)
{
    int fds[WORKERS_MAX] = {0};
    unsigned mtu = 0;
    *out = (struct run_device){0};
    int count = receive(sock, &mtu, fds);
    int error = count < 0 ? count : 0;
    for (int i = 0; i < count; i++) {
        struct device *queue = error < 0 ? NULL : device_tun_adopt(fds[i], mtu, offload, &error);
        if (queue)
            out->queues[out->count++] = queue;
        else
            close(fds[i]);
    }
    if (error < 0)
        run_close_device(out);
    return error;
}

void run_close_device(struct run_device *d)
{
    while (d->count > 0)
        device_close(d->queues[--d->count]);
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

void run_forget_secrets(struct run_job *job)
{
    secrets_drop(job->options);
    proxy_variables_forget(job->options);
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
