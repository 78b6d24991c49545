#include "core/worker/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/base/log.h"
#include "core/command/secrets.h"
#include "core/worker/broker.h"

const char *duty_prepare(struct duty *duty)
{
    const struct options *o = duty->options;
    duty->with_broker = confine_has_capability(CAP_NET_ADMIN) || o->outbound.mark != 0;
    return confine_find_user(o->user, &duty->user);
}

/* --- in the children -------------------------------------------------------------------------- */

static int confine(const struct duty *duty, uint64_t capabilities, const int *fds, size_t count)
{
    const struct confine_plan plan = {
        .user = duty->user,
        .descriptors = fds,
        .descriptor_count = count,
        .resolver_conf = duty->options->resolver_conf,
        .capabilities = capabilities,
    };
    int error = confine_process(&plan);
    if (error < 0)
        log_error("cannot give up privileges: %s", strerror(-error));
    return error;
}

static int become_child(const struct duty *duty, int report_fd, int broker_fd)
{
    struct broker broker = {.fd = broker_fd};
    struct options options = *duty->options;
    int fds[DUTY_FDS_MAX + 3];
    size_t count = 0;
    options.outbound.broker = broker_fd >= 0 ? &broker : NULL;
    for (size_t i = 0; i < duty->fd_count && i < DUTY_FDS_MAX; i++)
        fds[count++] = duty->fds[i];
    fds[count++] = report_fd;
    fds[count++] = broker_fd;
    fds[count++] = options.secrets_fd;
    (void)prctl(PR_SET_NAME, duty->name, 0, 0, 0);
    if (confine(duty, 0, fds, count) < 0)
        return 1;
    int error = secrets_open(&options);
    if (error == 0)
        return duty->perform(duty, &options, report_fd);
    log_error("cannot read the password: %s", strerror(-error));
    return 1;
}

static int become_broker(const struct duty *duty, int report_fd, int broker_fd)
{
    const uint64_t kept = UINT64_C(1) << CAP_NET_ADMIN | UINT64_C(1) << CAP_NET_RAW;
    const int fds[] = {report_fd, broker_fd};
    (void)prctl(PR_SET_NAME, "culvert-broker", 0, 0, 0);
    int error = confine(duty, kept, fds, 2);
    if (error == 0)
        error = confine_calls(CONFINE_BROKER);
    if (error == 0)
        broker_serve(broker_fd, &duty->options->outbound);
    return error == 0 ? 0 : 1;
}

/* --- starting and ending ---------------------------------------------------------------------- */

typedef int become_fn(const struct duty *duty, int report_fd, int broker_fd);

static int start(const struct duty *duty, struct child *child, become_fn *become, int broker_fd)
{
    int ends[2];
    *child = (struct child){.report_fd = -1};
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = confine_fork(&duty->user, become == become_broker);
    if (pid == 0) {
        close(ends[0]);
        exit(become(duty, ends[1], broker_fd));
    }
    int error = pid < 0 ? -errno : 0;
    close(ends[1]);
    if (error < 0)
        close(ends[0]);
    else
        *child = (struct child){.pid = pid, .report_fd = ends[0]};
    return error;
}

int child_start(const struct duty *duty, struct child *child, struct child *broker)
{
    int pair[2] = {-1, -1};
    *child = *broker = (struct child){.report_fd = -1};
    if (!duty->with_broker)
        return start(duty, child, become_child, -1);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    int error = start(duty, broker, become_broker, pair[1]);
    if (error == 0)
        error = start(duty, child, become_child, pair[0]);
    close(pair[0]);
    close(pair[1]);
    return error;
}

int child_collect(struct child *child)
{
    int status = 0;
    if (child->pid <= 0)
        return 0;
    close(child->report_fd);
    (void)kill(child->pid, SIGKILL);
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    *child = (struct child){.report_fd = -1};
    return status;
}
