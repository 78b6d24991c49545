/*
 * Theory: a worker is known by one pipe, whose write end nobody else holds. It writes its report,
 * an int: 0 when it relays, later -errno when it has to give up. The end of the file is its
 * death, whatever the cause, and needs neither SIGCHLD nor pidfd_open(2) to be noticed; so
 * callers may use signals as they like.
 *
 *   STARTING  --0-->      RELAYING
 *   both      --EOF-->    DEAD      or gone for good, where it reported an error or was asked to
 *   DEAD      --timer-->  STARTING  at once after the first death, later and later after further
 *
 * A worker dies with this process, even when that is killed: PR_SET_PDEATHSIG.
 */
#include "core/workers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"

enum {
    DEATHS_MAX = 5, /* within DEATHS_MS: it makes no sense to go on */
    DEATHS_MS = 10000,
    DELAY_MS = 50, /* before the second replacement; doubled with each further death */
    STOP_MS = 5000,
    EVENTS_MAX = 16,
};

enum worker_state { WORKER_NONE, WORKER_STARTING, WORKER_RELAYING, WORKER_DEAD };

struct process {
    enum worker_state state;
    pid_t pid;
    int report_fd;                /* -1: none */
    uint64_t start_at_ms;         /* DEAD */
    uint64_t died_ms[DEATHS_MAX]; /* a ring, 0: never */
    unsigned deaths;
};

struct workers {
    const struct options *options;
    int epoll_fd, timer_fd;
    size_t count;
    struct process processes[WORKERS_MAX];
    struct device *queues[WORKERS_MAX];
};

static uint64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* --- in the worker's process ------------------------------------------------------------------ */

static bool report(int fd, int error)
{
    return write(fd, &error, sizeof(error)) == (ssize_t)sizeof(error);
}

/* Control-C goes to all of a terminal's processes, and it is the supervisor that stops. */
static int on_relaying(void *arg)
{
    const int *report_fd = arg;
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &interrupt, NULL);
    return report(*report_fd, 0) ? 0 : -EPIPE; /* whom to report to has died */
}

/* The other workers' descriptors are none of ours: each must see the end of its pipe. */
static void close_others(const struct workers *w, size_t index)
{
    close(w->epoll_fd);
    close(w->timer_fd);
    for (size_t i = 0; i < w->count; i++) {
        if (w->processes[i].report_fd >= 0)
            close(w->processes[i].report_fd);
        if (i != index)
            close(w->queues[i]->fd);
    }
}

static int work(struct workers *w, size_t index, int report_fd)
{
    close_others(w, index);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return 1;
    int error = worker_run(w->queues[index], w->options, on_relaying, &report_fd);
    if (error != 0)
        (void)report(report_fd, error);
    return error == 0 ? 0 : 1;
}

/* --- starting --------------------------------------------------------------------------------- */

static int watch(const struct workers *w, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = tag}};
    return epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int start_worker(struct workers *w, size_t index)
{
    struct process *p = &w->processes[index];
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        exit(work(w, index, ends[1]));
    }
    int error = pid < 0 ? -errno : 0;
    close(ends[1]);
    if (error == 0)
        error = watch(w, ends[0], (uint32_t)index);
    if (error < 0) {
        close(ends[0]);
        return error; /* a worker that there is finds nobody to report to */
    }
    p->pid = pid;
    p->report_fd = ends[0];
    p->state = WORKER_STARTING;
    return 0;
}

struct workers *workers_new(struct device *const *queues, size_t count,
                            const struct options *options)
{
    struct workers *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    w->options = options;
    w->count = count;
    for (size_t i = 0; i < count; i++) {
        w->queues[i] = queues[i];
        w->processes[i].report_fd = -1;
    }
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (w->epoll_fd >= 0 && w->timer_fd >= 0 && watch(w, w->timer_fd, WORKERS_MAX) == 0)
        return w;
    workers_free(w);
    return NULL;
}

static bool all_relay(const struct workers *w)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->processes[i].state != WORKER_RELAYING)
            return false;
    }
    return true;
}

/* --- dying ------------------------------------------------------------------------------------ */

/* When one that has just died is started anew: 0, or the delay in ms; -1: it died too often. */
static int note_death(struct process *p, uint64_t now)
{
    uint64_t *oldest = &p->died_ms[p->deaths++ % DEATHS_MAX];
    *oldest = now;
    int recent = 0;
    for (size_t i = 0; i < DEATHS_MAX; i++)
        recent += p->died_ms[i] != 0 && now - p->died_ms[i] < DEATHS_MS;
    if (recent >= DEATHS_MAX)
        return -1;
    return recent <= 1 ? 0 : DELAY_MS << (recent - 2);
}

static void arm_timer(const struct workers *w)
{
    uint64_t next = 0;
    for (size_t i = 0; i < w->count; i++) {
        const struct process *p = &w->processes[i];
        if (p->state == WORKER_DEAD && (next == 0 || p->start_at_ms < next))
            next = p->start_at_ms;
    }
    const struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(next / 1000), .tv_nsec = (long)(next % 1000 * 1000000)},
    };
    (void)timerfd_settime(w->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/*
 * Its pipe has ended. One that has closed it and lives on is no use, and must not keep us. A worker
 * that was just forked may still hold the read end too, so closing does not take it off epoll.
 */
static int collect(const struct workers *w, struct process *p)
{
    int status = 0;
    (void)epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, p->report_fd, NULL);
    close(p->report_fd);
    p->report_fd = -1;
    (void)kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    p->pid = 0;
    p->state = WORKER_NONE;
    return status;
}

static int on_death(struct workers *w, size_t index)
{
    struct process *p = &w->processes[index];
    int status = collect(w, p);
    uint64_t now = now_ms();
    int delay = note_death(p, now);
    if (WIFSIGNALED(status))
        log_error("worker %zu was ended by signal %d (%s)%s", index, WTERMSIG(status),
                  strsignal(WTERMSIG(status)), delay < 0 ? "" : ": starting another");
    else
        log_error("worker %zu has ended with status %d%s", index, WEXITSTATUS(status),
                  delay < 0 ? "" : ": starting another");
    if (delay < 0) {
        log_error("workers died %d times within %d seconds: giving up", DEATHS_MAX,
                  DEATHS_MS / 1000);
        return -ECHILD;
    }
    p->state = WORKER_DEAD;
    p->start_at_ms = now + (uint64_t)delay;
    return 0;
}

static int on_report(struct workers *w, size_t index)
{
    struct process *p = &w->processes[index];
    int error = 0;
    ssize_t n;
    do
        n = read(p->report_fd, &error, sizeof(error));
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof(error))
        return on_death(w, index);
    if (error == 0)
        p->state = WORKER_RELAYING;
    return error < 0 ? error : 0;
}

static int start_due(struct workers *w)
{
    uint64_t now = now_ms();
    for (size_t i = 0; i < w->count; i++) {
        struct process *p = &w->processes[i];
        if (p->state != WORKER_DEAD || p->start_at_ms > now)
            continue;
        int error = start_worker(w, i);
        if (error < 0) {
            log_error("cannot start a worker: %s", strerror(-error));
            p->start_at_ms = now + 1000; /* memory or processes may come back */
        }
    }
    arm_timer(w);
    return 0;
}

/* --- watching --------------------------------------------------------------------------------- */

int workers_fd(const struct workers *w)
{
    return w->epoll_fd;
}

static int turn(struct workers *w, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(w->epoll_fd, events, EVENTS_MAX, timeout_ms);
    int error = 0;
    for (int i = 0; i < n && error == 0; i++) {
        if (events[i].data.u32 == WORKERS_MAX) {
            uint64_t expiries;
            (void)!read(w->timer_fd, &expiries, sizeof(expiries));
        } else {
            error = on_report(w, events[i].data.u32);
        }
    }
    return error;
}

int workers_turn(struct workers *w)
{
    int error = turn(w, 0);
    return error < 0 ? error : start_due(w);
}

int workers_start(struct workers *w)
{
    int error = 0;
    for (size_t i = 0; i < w->count && error == 0; i++)
        error = start_worker(w, i);
    if (error < 0)
        log_error("cannot start a worker: %s", strerror(-error));
    while (error == 0 && !all_relay(w)) {
        error = turn(w, -1);
        if (error == 0)
            error = start_due(w);
    }
    return error;
}

/* --- stopping --------------------------------------------------------------------------------- */

static bool any_left(const struct workers *w)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->processes[i].pid > 0)
            return true;
    }
    return false;
}

static void signal_all(const struct workers *w, int signo)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->processes[i].pid > 0)
            (void)kill(w->processes[i].pid, signo);
    }
}

/* Read on what is in a pipe until it ends; the process is collected then. */
static void await_end(const struct workers *w, struct process *p, uint64_t deadline)
{
    while (p->pid > 0) {
        uint64_t now = now_ms();
        struct pollfd fd = {.fd = p->report_fd, .events = POLLIN};
        int ready = poll(&fd, 1, now < deadline ? (int)(deadline - now) : 0);
        int unused;
        if (ready > 0 && read(p->report_fd, &unused, sizeof(unused)) > 0)
            continue;
        if (ready == 0)
            log_warn("a worker does not stop: killing it");
        if (ready >= 0 || errno != EINTR)
            (void)collect(w, p);
    }
}

void workers_stop(struct workers *w)
{
    if (!w || !any_left(w))
        return;
    signal_all(w, SIGTERM);
    uint64_t deadline = now_ms() + STOP_MS;
    for (size_t i = 0; i < w->count; i++)
        await_end(w, &w->processes[i], deadline);
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    workers_stop(w);
    if (w->epoll_fd >= 0)
        close(w->epoll_fd);
    if (w->timer_fd >= 0)
        close(w->timer_fd);
    free(w);
}

/* --- all of it -------------------------------------------------------------------------------- */

static int open_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    return signalfd(-1, &stop, SFD_CLOEXEC);
}

/* 0 after a signal that asked for it. */
static int watch_until_stopped(struct workers *w, int signal_fd)
{
    struct pollfd fds[] = {
        {.fd = signal_fd, .events = POLLIN},
        {.fd = w->epoll_fd, .events = POLLIN},
    };
    int error = 0;
    while (error == 0) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents)
            return 0;
        error = workers_turn(w);
    }
    return error;
}

int workers_run(struct device *const *queues, size_t count, const struct options *options,
                worker_ready_fn *on_ready, void *arg)
{
    struct workers *w = workers_new(queues, count, options);
    if (!w)
        return -ENOMEM;
    int signal_fd = open_signals();
    int error = signal_fd < 0 ? -errno : workers_start(w);
    if (error == 0 && on_ready)
        error = on_ready(arg);
    if (error == 0)
        error = watch_until_stopped(w, signal_fd);
    workers_free(w);
    if (signal_fd >= 0)
        close(signal_fd);
    return error;
}
