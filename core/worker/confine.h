/*
 * Least privilege for a process that has been forked: whom it runs as, what it sees, what it may
 * call. Each step is taken where it is allowed; what is not (no capability, an old kernel, a
 * container) is left out and said at debug level, but for the user, which must be who was asked
 * for.
 */
#ifndef CULVERT_CONFINE_H
#define CULVERT_CONFINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Whom to become. */
struct confine_user {
    bool change; /* false: stay who we are */
    uid_t uid;
    gid_t gid;
};

/*
 * Look up the user to run as. `name` NULL: "nobody" where we are root, else nobody else. In a
 * user namespace that does not know that user we stay who we are. Returns NULL, or why it cannot
 * be done (static text).
 */
const char *confine_find_user(const char *name, struct confine_user *out);

/* Have we got it, in effect? `capability` is CAP_.... */
bool confine_has_capability(unsigned capability);

/*
 * fork(2), into a PID namespace of the child's own. Single-threaded processes only; the child goes
 * on to confine_process(). `keeps_capabilities`: it is to have some over what is ours, which rules
 * out a user namespace.
 */
pid_t confine_fork(const struct confine_user *user, bool keeps_capabilities);

struct confine_plan {
    struct confine_user user;
    const int *descriptors; /* those that stay open, beside 0, 1, 2 and the log's */
    size_t descriptor_count;
    const char *resolver_conf; /* NULL: /etc/resolv.conf */
    uint64_t capabilities;     /* bits 1 << CAP_...: those that stay, for the broker */
};

/*
 * Close all other descriptors; leave mount and IPC namespaces for such that hold /etc, the
 * directory of the resolver's file and nothing else, read-only (also by Landlock); drop groups,
 * user and capabilities for ever; no core dumps; end when the parent does. Single-threaded
 * processes only. 0 or -errno: this process must not go on.
 */
int confine_process(const struct confine_plan *plan);

enum confine_role { CONFINE_WORKER, CONFINE_SERVER, CONFINE_BROKER };

/*
 * From now on only the system calls that the role needs (core/worker/confine_calls.c): others fail
 * with EPERM, those that only an intruder would try end the process. 0 or -errno.
 */
int confine_calls(enum confine_role role);

#endif
