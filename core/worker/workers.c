/*
 * Theory: a child is known by one pipe, whose write end nobody else holds. It writes its report,
 * an int: 0 when it is ready, later -errno when it has to give up. The end of the file is its
 * death, whatever the cause, and needs neither SIGCHLD nor pidfd_open(2) to be noticed; so
 * callers may use signals as they like.
 *
 *   STARTING  --0-->      WORKING
 *   both      --EOF-->    DEAD      or gone for good, where it reported an error or was asked to
 *   DEAD      --timer-->  STARTING  at once after the first death, later and later after further
 *
 * Where we have privileges that a worker lacks for its sockets, a broker goes with it
 * (core/worker/broker.h), a child that ends as the worker does and whose death ends the worker.
 * Both give up all else that we have (core/worker/child.h), and die with this process even when
 * it is killed. The report is all that is ever read from them, and it is a number.
 */
#include "core/worker/workers.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/worker/child.h"

enum {
    DEATHS_MAX = 5, /* within DEATHS_MS: it makes no sense to go on */
    DEATHS_MS = 10000,
    DELAY_MS = 50, /* before the second replacement; doubled with each further death */
    STOP_MS = 5000,
    EVENTS_MAX = 16,
};

enum worker_state { WORKER_NONE, WORKER_STARTING, WORKER_WORKING, WORKER_DEAD };

struct slot {
    enum worker_state state;
    struct child worker, broker;
    struct duty duty;
    struct workers *workers;
    uint64_t start_at_ms;         /* DEAD */
    uint64_t died_ms[DEATHS_MAX]; /* a ring, 0: never */
    unsigned deaths;
};

struct workers {
    const struct work *work;
    int epoll_fd, timer_fd, signal_fd;
    size_t count;
    struct slot slots[];
};

/* What epoll says: a slot's index, for its worker; plus TAG_BROKER; or the timer, or SIGUSR1. */
enum { TAG_BROKER = 1 << 16, TAG_TIMER = 1 << 17, TAG_SIGNAL = 1 << 18 };
static_assert((int)WORKERS_MAX <= (int)TAG_BROKER, "an index is no tag");

static uint64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A child that was just forked may hold the read end too, so closing does not take it off epoll. */
static int collect(const struct workers *w, struct child *child)
{
    if (child->pid > 0)
        (void)epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, child->report_fd, NULL);
    return child_collect(child);
}

static unsigned index_of(const struct slot *s)
{
    return (unsigned)(s - s->workers->slots);
}

/* --- in the worker ---------------------------------------------------------------------------- */

struct reporter {
    int fd;
    enum confine_role role;
};

static bool report(int fd, int error)
{
    return write(fd, &error, sizeof(error)) == (ssize_t)sizeof(error);
}

/* Everything is set up, nothing has been read. */
static int on_worker_ready(void *arg)
{
    const struct reporter *r = arg;
    int error = confine_calls(r->role);
    if (error < 0)
        return error;
    return report(r->fd, 0) ? 0 : -EPIPE; /* whom to report to has died */
}

static int perform(const struct duty *duty, const struct options *o, int report_fd)
{
    const struct slot *s = duty->arg;
    const struct work *work = s->workers->work;
    struct reporter r = {.fd = report_fd, .role = work->role};
    int error = work->run(work->arg, index_of(s), o, on_worker_ready, &r);
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

static int start_worker(struct workers *w, unsigned index)
{
    struct slot *s = &w->slots[index];
    (void)collect(w, &s->broker); /* the last worker's, on its way out */
    int error = child_start(&s->duty, &s->worker, &s->broker);
    if (error == 0 && s->broker.pid > 0)
        error = watch(w, s->broker.report_fd, index + TAG_BROKER);
    if (error == 0)
        error = watch(w, s->worker.report_fd, index);
    if (error == 0) {
        s->state = WORKER_STARTING;
        return 0;
    }
    (void)collect(w, &s->worker);
    (void)collect(w, &s->broker);
    return error;
}

/* False: there is no such user. */
static bool init_slots(struct workers *w)
{
    const struct work *work = w->work;
    for (size_t i = 0; i < work->count; i++, w->count++) {
        struct slot *s = &w->slots[i];
        s->workers = w;
        s->worker.report_fd = s->broker.report_fd = -1;
        s->duty = (struct duty){
            .name = work->name,
            .options = work->options,
            .fds = work->fds + i * work->fds_each,
            .fd_count = work->fds_each,
            .perform = perform,
            .arg = s,
        };
        if (duty_prepare(&s->duty))
            return false;
    }
    return true;
}

/* SIGUSR1 asks for what has been counted, and would else end the process. A descriptor, or -1. */
static int open_usr1(void)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    (void)sigprocmask(SIG_BLOCK, &usr1, NULL);
    return signalfd(-1, &usr1, SFD_CLOEXEC | SFD_NONBLOCK);
}

struct workers *workers_new(const struct work *work)
{
    struct workers *w = calloc(1, sizeof(*w) + work->count * sizeof(w->slots[0]));
    if (!w)
        return NULL;
    w->work = work;
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    w->signal_fd = open_usr1();
    if (w->epoll_fd >= 0 && w->timer_fd >= 0 && w->signal_fd >= 0 &&
        watch(w, w->timer_fd, TAG_TIMER) == 0 && watch(w, w->signal_fd, TAG_SIGNAL) == 0 &&
        init_slots(w))
        return w;
    workers_free(w);
    return NULL;
}

static bool all_work(const struct workers *w)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->slots[i].state != WORKER_WORKING)
            return false;
    }
    return true;
}

/* --- dying ------------------------------------------------------------------------------------ */

/* When one that has just died is started anew: 0, or the delay in ms; -1: it died too often. */
static int note_death(struct slot *s, uint64_t now)
{
    uint64_t *oldest = &s->died_ms[s->deaths++ % DEATHS_MAX];
    *oldest = now;
    int recent = 0;
    for (size_t i = 0; i < DEATHS_MAX; i++)
        recent += s->died_ms[i] != 0 && now - s->died_ms[i] < DEATHS_MS;
    if (recent >= DEATHS_MAX)
        return -1;
    return recent <= 1 ? 0 : DELAY_MS << (recent - 2);
}

static void arm_timer(const struct workers *w)
{
    uint64_t next = 0;
    for (size_t i = 0; i < w->count; i++) {
        const struct slot *s = &w->slots[i];
        if (s->state == WORKER_DEAD && (next == 0 || s->start_at_ms < next))
            next = s->start_at_ms;
    }
    const struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(next / 1000), .tv_nsec = (long)(next % 1000 * 1000000)},
    };
    (void)timerfd_settime(w->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static int on_death(struct workers *w, size_t index)
{
    struct slot *s = &w->slots[index];
    int status = collect(w, &s->worker);
    if (w->work->on_death)
        w->work->on_death(w->work->arg, (unsigned)index);
    uint64_t now = now_ms();
    int delay = note_death(s, now);
    const char *then = delay < 0 ? "" : ": starting another";
    if (WIFSIGNALED(status))
        log_error("worker %zu was ended by signal %d (%s)%s", index, WTERMSIG(status),
                  strsignal(WTERMSIG(status)), then);
    else
        log_error("worker %zu has ended with status %d%s", index, WEXITSTATUS(status), then);
    if (delay < 0) {
        log_error("workers died %d times within %d seconds: giving up", DEATHS_MAX,
                  DEATHS_MS / 1000);
        return -ECHILD;
    }
    s->state = WORKER_DEAD;
    s->start_at_ms = now + (uint64_t)delay;
    return 0;
}

/* A broker goes before its worker only by accident, and the worker cannot do without. */
static void on_broker_end(struct workers *w, size_t index)
{
    struct slot *s = &w->slots[index];
    (void)collect(w, &s->broker);
    if (s->worker.pid > 0)
        (void)kill(s->worker.pid, SIGKILL);
}

static int on_report(struct workers *w, size_t index)
{
    struct slot *s = &w->slots[index];
    int error = 0;
    ssize_t n;
    do
        n = read(s->worker.report_fd, &error, sizeof(error));
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof(error))
        return on_death(w, index);
    if (error == 0)
        s->state = WORKER_WORKING;
    return error < 0 ? error : 0;
}

static void on_usr1(const struct workers *w)
{
    struct signalfd_siginfo signal;
    if (read(w->signal_fd, &signal, sizeof(signal)) > 0 && w->work->on_usr1)
        w->work->on_usr1(w->work->arg);
}

static int on_event(struct workers *w, uint32_t tag)
{
    uint64_t expiries;
    if (tag == TAG_TIMER)
        (void)!read(w->timer_fd, &expiries, sizeof(expiries));
    else if (tag == TAG_SIGNAL)
        on_usr1(w);
    else if (tag & TAG_BROKER)
        on_broker_end(w, tag - TAG_BROKER);
    else
        return on_report(w, tag);
    return 0;
}

static int start_due(struct workers *w)
{
    uint64_t now = now_ms();
    for (size_t i = 0; i < w->count; i++) {
        struct slot *s = &w->slots[i];
        if (s->state != WORKER_DEAD || s->start_at_ms > now)
            continue;
        int error = start_worker(w, (unsigned)i);
        if (error < 0) {
            log_error("cannot start a worker: %s", strerror(-error));
            s->start_at_ms = now + 1000; /* memory or processes may come back */
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
    for (int i = 0; i < n && error == 0; i++)
        error = on_event(w, events[i].data.u32);
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
        error = start_worker(w, (unsigned)i);
    if (error < 0)
        log_error("cannot start a worker: %s", strerror(-error));
    while (error == 0 && !all_work(w)) {
        error = turn(w, -1);
        if (error == 0)
            error = start_due(w);
    }
    return error;
}

/* --- stopping --------------------------------------------------------------------------------- */

/* Read on what is in its pipe until that ends, then collect it. */
static void await_end(const struct workers *w, struct child *child, uint64_t deadline)
{
    while (child->pid > 0) {
        uint64_t now = now_ms();
        struct pollfd fd = {.fd = child->report_fd, .events = POLLIN};
        int ready = now < deadline ? poll(&fd, 1, (int)(deadline - now)) : 0;
        int unused;
        if (ready > 0 && read(child->report_fd, &unused, sizeof(unused)) > 0)
            continue;
        if (ready == 0)
            log_warn("a worker does not stop: killing it");
        if (ready >= 0 || errno != EINTR)
            (void)collect(w, child);
    }
}

void workers_stop(struct workers *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->count; i++) {
        if (w->slots[i].worker.pid > 0)
            (void)kill(w->slots[i].worker.pid, SIGTERM);
    }
    uint64_t deadline = now_ms() + STOP_MS + w->work->options->linger_s * UINT64_C(1000);
    for (size_t i = 0; i < w->count; i++) {
        await_end(w, &w->slots[i].worker, deadline);
        await_end(w, &w->slots[i].broker, deadline);
    }
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
    if (w->signal_fd >= 0)
        close(w->signal_fd);
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

int workers_run(const struct work *work, worker_ready_fn *on_ready, void *arg)
{
    struct workers *w = workers_new(work);
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
