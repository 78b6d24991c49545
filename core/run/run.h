/*
 * `culvert run PROXY_URL -- CMD`: who is who. Only the run_*.c and cmd_run.c include this.
 *
 *   front     what the user started: waits for CMD, passes signals on, ends with CMD's status
 *   relay     core/worker/workers.h, outside the namespaces, in a session of its own; the parent of
 *   reaper    a subreaper: everything that CMD starts and leaves behind becomes its child, so it
 *             knows when the last is gone, and then ends, and the relay with it
 *   CMD       enters its namespaces, passes the device to the relay, waits until packets are
 *             relayed and the front has said so, executes
 *
 * CMD stays in the front's process group and session, so that the terminal treats it as what the
 * user started. The front follows it: it stops when CMD stops, and signals that were sent to the
 * front alone go on to CMD.
 */
#ifndef CULVERT_RUN_H
#define CULVERT_RUN_H

#include <signal.h>
#include <sys/types.h>

#include "core/command/options.h"
#include "core/command/tun_setup.h"

/* What the front is told, one message each: READY by the relay, the others by the reaper. */
enum run_event { RUN_STARTED, RUN_READY, RUN_STOPPED, RUN_ENDED };
struct run_report {
    enum run_event event;
    int value;               /* STARTED: CMD's process id. ENDED: its wait status (wait(2)) */
    struct device_caps caps; /* READY */
    bool last;               /* ENDED: nothing that it started is left */
};

/* Descriptors by pairs, all close-on-exec; each process closes what is not its own. -1: closed. */
struct run_job {
    struct options *options;
    int report[2];   /* socket: [0] the front, [1] the reaper, and the relay until it is ready */
    int handover[2]; /* socket: [1] CMD, which sends the device; [0] the relay, which takes it,
                        and the front, which sends a byte when CMD may begin */
    int log[2];      /* pipe: [0] the front, [1] the relay */
    pid_t relay;
    sigset_t mask;             /* what CMD is to get back, as it was at the start: */
    struct sigaction on_child; /* SIGCHLD */
};

/* Close one end that is not this process' own. */
void run_close(int *fd);
/* The proxy's password is the relay's alone, other proxies' are the command's: here they go. */
void run_forget_secrets(struct run_job *job);
/*
 * Let go of what is the command's, lest its end be waited for in vain: the streams from stdin to
 * `last`, descriptors that the parent process passed, the working directory.
 */
void run_let_go(int last);

/* The front may have been killed: then nobody listens. */
void run_send_report(const struct run_job *job, const struct run_report *r);

/* run_front.c: the exit status. All signals that are passed on are blocked already. */
int run_front(struct run_job *job);
void run_block_signals(sigset_t *old);

/* run_relay.c: the exit status of the relay's process. */
int run_relay(struct run_job *job);

/* run_command.c */
_Noreturn void run_reaper(struct run_job *job);

/* run_attach.c: --netns and --pid; the exit status. */
int run_attach(const struct options *options);

/* A device in the hands of who relays it, a queue for each worker. */
struct run_device {
    struct device *queues[WORKERS_MAX];
    size_t count;
};

/*
 * run_parts.c: a device's descriptors and MTU over a Unix socket (unix(7), SCM_RIGHTS). 0 or
 * -errno; -ECONNRESET when the other side has closed without sending any. After an error `out` is
 * empty.
 */
int run_send_device(int sock, const struct tun_setup *setup);
int run_take_device(int sock, bool offload, struct run_device *out);
void run_close_device(struct run_device *d);

#endif
