/*
 * A child in a PID namespace of its own (pid_namespaces(7)), where it is the only process and
 * number 1: there is nobody that it could signal, trace or look at. A namespace is entered by being
 * born into it, so this is where the child is forked.
 *
 * It is a child as any: known to us by a number of our own namespace, waited for, ended by SIGKILL
 * and by PR_SET_PDEATHSIG. As number 1 it is spared signals that it has no handler for, save
 * SIGKILL and SIGSTOP from outside and what its own faults raise; workers block or handle what they
 * are sent.
 *
 * An ordinary user has no right to any namespace but a user namespace, and in there to all.
 */
#include "core/worker/confine.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/base/log.h"
#include "core/worker/id_map.h"

/* As fork(2), which takes no flags. There is one thread, so the C library need not be told. */
static pid_t fork_with(unsigned long flags)
{
    return (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
}

static pid_t fork_as_own_master(void)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    pid_t pid = fork_with(CLONE_NEWUSER | CLONE_NEWPID);
    int error = pid == 0 ? id_map_self(uid, gid) : 0;
    if (error < 0)
        log_debug("a user namespace without a user: %s", strerror(-error));
    return pid;
}

pid_t confine_fork(const struct confine_user *user, bool keeps_capabilities)
{
    bool privileged = confine_has_capability(CAP_SYS_ADMIN);
    pid_t pid = -1;
    errno = EPERM;
    if (privileged)
        pid = fork_with(CLONE_NEWPID);
    else if (!user->change && !keeps_capabilities)
        pid = fork_as_own_master();
    if (pid >= 0)
        return pid;
    log_debug("no PID namespace of its own: %s", strerror(errno));
    return fork();
}
