/*
 * Theory: what reads packets is the part that will be broken into, so it must own nothing worth
 * the break-in. The steps, in the order that each leaves the next one possible:
 *
 *   birth         a PID namespace of its own (core/worker/confine_fork.c)
 *   descriptors   a netlink socket or a lock that a privileged process has opened keeps its powers
 *   namespaces    a root of a few read-only directories; no other processes' IPC
 *   Landlock      the same once more, where mounting was not allowed
 *   user          groups, gid, uid; capabilities, from the bounding set too; no_new_privs
 *   dumps         not dumpable: no core file with a password, no ptrace, no /proc/PID/mem
 *   parent        PR_SET_PDEATHSIG last: a change of user clears it
 *   calls         seccomp, when everything is set up (core/worker/confine_calls.c)
 *
 * The resolver reads /etc/resolv.conf, /etc/hosts and /etc/nsswitch.conf at run time, and others
 * replace these files by renaming: so directories are bound, not files, and changes are seen. That
 * ends where resolv.conf becomes a symbolic link to a directory that it did not lead to before.
 *
 * Sanitizers read /proc, and LeakSanitizer traces its own process as it ends: in such builds
 * the process stays dumpable, and /proc belongs to what it sees.
 */
#include "core/worker/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/base/log.h"
#include "core/base/sanitized.h"
#include "core/worker/confine_parts.h"

/* --- the user --------------------------------------------------------------------------------- */

enum { NOBODY = 65534 }; /* where no user of that name is known */

/* In a user namespace only some users exist; initially, all. */
static bool user_exists_here(uid_t uid)
{
    FILE *map = fopen("/proc/self/uid_map", "re");
    if (!map)
        return true;
    char line[128];
    bool found = false;
    while (!found && fgets(line, sizeof(line), map)) {
        char *at = line;
        unsigned long first = strtoul(at, &at, 10);
        (void)strtoul(at, &at, 10); /* what it is called outside */
        unsigned long count = strtoul(at, NULL, 10);
        found = uid >= first && uid - first < count;
    }
    fclose(map);
    return found;
}

const char *confine_find_user(const char *name, struct confine_user *out)
{
    *out = (struct confine_user){.change = false};
    if (geteuid() != 0)
        return name ? "only root can run its workers as another user" : NULL;
    const struct passwd *user = getpwnam(name ? name : "nobody");
    if (!user && name)
        return "there is no such user";
    *out = (struct confine_user){.uid = user ? user->pw_uid : NOBODY,
                                 .gid = user ? user->pw_gid : NOBODY};
    out->change = out->uid != 0 && (name || user_exists_here(out->uid));
    return NULL;
}

static int become(const struct confine_user *user)
{
    if (!user->change)
        return 0;
    if (setgroups(0, NULL) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
        setresuid(user->uid, user->uid, user->uid) < 0)
        return -errno;
    return 0;
}

/* --- capabilities ----------------------------------------------------------------------------- */

static void shrink_bounding_set(uint64_t kept)
{
    for (unsigned long cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if (!(kept >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            log_debug("the capability bounding set stays as it is: %s", strerror(errno));
            return;
        }
    }
}

bool confine_has_capability(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    return syscall(SYS_capget, &header, data) == 0 &&
           (data[capability / 32].effective >> (capability % 32) & 1);
}

/* Of those that we have, keep `kept`. 0 or -errno. */
static int set_capabilities(uint64_t kept)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    for (size_t i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        data[i].permitted &= (uint32_t)(kept >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

static int drop_privileges(const struct confine_plan *plan)
{
    shrink_bounding_set(plan->capabilities);
    if (plan->capabilities != 0 && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
        return -errno;
    int error = become(&plan->user);
    if (error == 0)
        error = set_capabilities(plan->capabilities);
    if (error == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        error = -errno;
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return error;
}

/* --- descriptors ------------------------------------------------------------------------------ */

static bool stays_open(const struct confine_plan *plan, int fd)
{
    if (fd <= STDERR_FILENO || fd == log_descriptor())
        return true;
    for (size_t i = 0; i < plan->descriptor_count; i++) {
        if (plan->descriptors[i] == fd)
            return true;
    }
    return false;
}

/* Close the others: each gap between two that stay, in one call. */
static void close_others(const struct confine_plan *plan)
{
    int last = log_descriptor();
    for (size_t i = 0; i < plan->descriptor_count; i++)
        last = plan->descriptors[i] > last ? plan->descriptors[i] : last;
    for (int fd = STDERR_FILENO + 1; fd <= last; fd++) {
        if (!stays_open(plan, fd))
            close(fd);
    }
    (void)close_range((unsigned)(last > STDERR_FILENO ? last : STDERR_FILENO) + 1, ~0u, 0);
}

/* --- all of it -------------------------------------------------------------------------------- */

static int forbid_dumps(void)
{
    const struct rlimit none = {0};
    (void)setrlimit(RLIMIT_CORE, &none);
    return prctl(PR_SET_DUMPABLE, CULVERT_SANITIZED, 0, 0, 0) < 0 ? -errno : 0;
}

int confine_process(const struct confine_plan *plan)
{
    close_others(plan);
    confine_view(plan->resolver_conf);
    int error = drop_privileges(plan);
    if (error == 0) {
        confine_files(plan->resolver_conf);
        error = forbid_dumps();
    }
    if (error == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        error = -errno;
    return error;
}
