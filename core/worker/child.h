/*
 * A confined child, and what it does: forked, deprived (core/worker/confine.h), given what it is
 * to have, with a broker (core/worker/broker.h) beside it where that is asked for.
 */
#ifndef CULVERT_CHILD_H
#define CULVERT_CHILD_H

#include "core/command/options.h"
#include "core/worker/confine.h"

/*
 * A process and the pipe that tells of it: nobody else holds the write end, so that its end is the
 * process' death, whatever the cause.
 */
struct child {
    pid_t pid;     /* 0: none */
    int report_fd; /* -1: none */
};

struct duty {
    const char *name;              /* of the process; static, at most 15 bytes */
    const struct options *options; /* for whom, with which secrets, which sockets */
    struct confine_user user;
    bool with_broker;
    const int *fds; /* descriptors that it is handed, besides the log's and the pipe's */
    size_t fd_count;
    /*
     * In the child: `o` is a copy with the secrets in place and the broker set, `report_fd` the
     * pipe. The result is the exit status.
     */
    int (*perform)(const struct duty *duty, const struct options *o, int report_fd);
    void *arg;
};

enum { DUTY_FDS_MAX = 32 };

/* Whom to become and whether a broker is needed, from `duty->options`. NULL, or why not. */
const char *duty_prepare(struct duty *duty);

/*
 * Start it. `broker` is {.report_fd = -1} where the duty is without. 0 or -errno: both may have
 * been started all the same, and are to be collected where their pid is set.
 */
int child_start(const struct duty *duty, struct child *child, struct child *broker);
/*
 * Its pipe has ended, or it is to end now: kill it, in case it lives on, and wait. Returns its
 * wait status. The pipe is closed and the child is none afterwards; none is fine.
 */
int child_collect(struct child *child);

#endif
