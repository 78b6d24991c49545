/*
 * Theory: a child is known by one pipe, whose write end nobody else holds. It writes its report,
 * an int: 0 when it relays, later -errno when it has to give up. The end of the file is its
 * death, whatever the cause, and needs neither SIGCHLD nor pidfd_open(2) to be noticed; so
 * callers may use signals as they like.
 *
 *   STARTING  --0-->      RELAYING
 *   both      --EOF-->    DEAD      or gone for good, where it reported an error or was asked to
 *   DEAD      --timer-->  STARTING  at once after the first death, later and later after further
 *
 * Where we have privileges that a worker lacks for its sockets, a broker goes with it
 * (core/worker/broker.h), a child that ends as the worker does and whose death ends the worker.
 * Both give up all else that we have (core/worker/confine.h), and die with this process even when
 * it is killed.
 */
#include "core/worker/workers.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/base/log.h"
#include "core/worker/broker.h"
#include "core/worker/confine.h"
#include "core/dns/fakedns.h"

enum {
    DEATHS_MAX = 5, /* within DEATHS_MS: it makes no sense to go on */
    DEATHS_MS = 10000,
    DELAY_MS = 50, /* before the second replacement; doubled with each further death */
    STOP_MS = 5000,
    EVENTS_MAX = 16,
};

enum worker_state { WORKER_NONE, WORKER_STARTING, WORKER_RELAYING, WORKER_DEAD };

/* A process and the pipe that tells of it. */
struct child {
    pid_t pid;     /* 0: none */
    int report_fd; /* -1: none */
};

struct slot {
    enum worker_state state;
    struct child worker, broker;
    uint64_t start_at_ms;         /* DEAD */
    uint64_t died_ms[DEATHS_MAX]; /* a ring, 0: never */
    unsigned deaths;
};

struct workers {
    const struct options *options;
    struct confine_user user;
    bool with_broker;
    struct worker_shared shared;
    int epoll_fd, timer_fd, signal_fd;
    size_t count;
    struct slot slots[WORKERS_MAX];
    struct device *queues[WORKERS_MAX];
};

/* What epoll says: the index of a slot, for its worker; plus TAG_BROKER; or the timer, or SIGUSR1.
 */
enum { TAG_BROKER = 1 << 16, TAG_TIMER = 1 << 17, TAG_SIGNAL = 1 << 18 };
static_assert((int)WORKERS_MAX <= (int)TAG_BROKER, "an index is no tag");
static_assert((int)WORKERS_MAX <= (int)FAKEDNS_USERS_MAX, "each may hold fake addresses");

static uint64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/*
 * Its pipe has ended. One that has closed it and lives on is no use, and must not keep us. A child
 * that was just forked may still hold the read end too, so closing does not take it off epoll.
 */
static int collect(const struct workers *w, struct child *child)
{
    int status = 0;
    (void)epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, child->report_fd, NULL);
    close(child->report_fd);
    (void)kill(child->pid, SIGKILL);
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    *child = (struct child){.report_fd = -1};
    return status;
}

/* --- in the children -------------------------------------------------------------------------- */

/* What a child keeps of what it was born with. */
struct belongings {
    struct workers *w;
    size_t index;
    int report_fd;
    int broker_fd; /* its end of the pair; -1: none */
};

static bool report(int fd, int error)
{
    return write(fd, &error, sizeof(error)) == (ssize_t)sizeof(error);
}

/* Everything is set up, no packet has been read. */
static int on_relaying(void *arg)
{
    const struct belongings *b = arg;
    int error = confine_calls(CONFINE_WORKER);
    if (error < 0)
        return error;
    return report(b->report_fd, 0) ? 0 : -EPIPE; /* whom to report to has died */
}

static int confine(const struct belongings *b, uint64_t capabilities, int device_fd)
{
    const int kept[] = {b->report_fd, b->broker_fd, device_fd};
    const struct confine_plan plan = {
        .user = b->w->user,
        .descriptors = kept,
        .descriptor_count = sizeof(kept) / sizeof(kept[0]),
        .resolver_conf = b->w->options->resolver_conf,
        .capabilities = capabilities,
    };
    return confine_process(&plan);
}

static int be_worker(struct belongings *b)
{
    (void)prctl(PR_SET_NAME, "culvert-worker", 0, 0, 0);
    struct device *queue = b->w->queues[b->index];
    struct broker broker = {.fd = b->broker_fd};
    struct options options = *b->w->options;
    options.outbound.broker = b->broker_fd >= 0 ? &broker : NULL;
    int error = confine(b, 0, queue->fd);
    if (error == 0)
        error =
            worker_run_sharing(&b->w->shared, (unsigned)b->index, queue, &options, on_relaying, b);
    else
        log_error("cannot give up privileges: %s", strerror(-error));
    options_wipe(&options);
    if (error != 0)
        (void)report(b->report_fd, error);
    return error == 0 ? 0 : 1;
}

static int be_broker(struct belongings *b)
{
    const uint64_t kept = UINT64_C(1) << CAP_NET_ADMIN | UINT64_C(1) << CAP_NET_RAW;
    (void)prctl(PR_SET_NAME, "culvert-broker", 0, 0, 0);
    int error = confine(b, kept, -1);
    if (error == 0)
        error = confine_calls(CONFINE_BROKER);
    if (error == 0)
        broker_serve(b->broker_fd, &b->w->options->outbound);
    return error == 0 ? 0 : 1;
}

/* --- starting --------------------------------------------------------------------------------- */

static int watch(const struct workers *w, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = tag}};
    return epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* Fork a child that goes on in `be`. 0 or -errno; a child that is not watched finds that out. */
static int start_child(struct child *child, struct belongings *b, int (*be)(struct belongings *b),
                       uint32_t tag)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        b->report_fd = ends[1];
        exit(be(b));
    }
    int error = pid < 0 ? -errno : watch(b->w, ends[0], tag);
    close(ends[1]);
    if (error < 0) {
        close(ends[0]);
        return error;
    }
    *child = (struct child){.pid = pid, .report_fd = ends[0]};
    return 0;
}

static int start_with_broker(struct workers *w, size_t index)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    struct slot *s = &w->slots[index];
    struct belongings worker = {.w = w, .index = index, .broker_fd = pair[0]};
    struct belongings broker = {.w = w, .index = index, .broker_fd = pair[1]};
    int error = start_child(&s->broker, &broker, be_broker, (uint32_t)index + TAG_BROKER);
    if (error == 0)
        error = start_child(&s->worker, &worker, be_worker, (uint32_t)index);
    close(pair[0]);
    close(pair[1]);
    return error;
}

static int start_worker(struct workers *w, size_t index)
{
    struct slot *s = &w->slots[index];
    struct belongings alone = {.w = w, .index = index, .broker_fd = -1};
    if (s->broker.pid > 0)
        (void)collect(w, &s->broker); /* the last worker's, on its way out */
    int error = w->with_broker ? start_with_broker(w, index)
                               : start_child(&s->worker, &alone, be_worker, (uint32_t)index);
    if (error == 0)
        s->state = WORKER_STARTING;
    return error;
}

/* SIGUSR1 asks for the counters, and would else end the process. A descriptor, or -1. */
static int open_usr1(void)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    (void)sigprocmask(SIG_BLOCK, &usr1, NULL);
    return signalfd(-1, &usr1, SFD_CLOEXEC | SFD_NONBLOCK);
}

struct workers *workers_new(struct device *const *queues, size_t count,
                            const struct options *options)
{
    struct workers *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    w->options = options;
    w->with_broker = confine_has_capability(CAP_NET_ADMIN) || options->outbound.mark != 0;
    w->count = count;
    for (size_t i = 0; i < count; i++) {
        w->queues[i] = queues[i];
        w->slots[i].worker.report_fd = w->slots[i].broker.report_fd = -1;
    }
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    w->signal_fd = open_usr1();
    if (w->epoll_fd >= 0 && w->timer_fd >= 0 && w->signal_fd >= 0 &&
        watch(w, w->timer_fd, TAG_TIMER) == 0 && watch(w, w->signal_fd, TAG_SIGNAL) == 0 &&
        !confine_find_user(options->user, &w->user) &&
        worker_shared_init(&w->shared, options, (unsigned)count) == 0)
        return w;
    workers_free(w);
    return NULL;
}

static bool all_relay(const struct workers *w)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->slots[i].state != WORKER_RELAYING)
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
    if (w->shared.fake)
        fakedns_user_died(w->shared.fake, (unsigned)index);
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
        s->state = WORKER_RELAYING;
    return error < 0 ? error : 0;
}

static int on_event(struct workers *w, uint32_t tag)
{
    uint64_t expiries;
    struct signalfd_siginfo signal;
    if (tag == TAG_TIMER)
        (void)!read(w->timer_fd, &expiries, sizeof(expiries));
    else if (tag == TAG_SIGNAL && read(w->signal_fd, &signal, sizeof(signal)) > 0)
        worker_shared_log_counters(&w->shared);
    else if (tag == TAG_SIGNAL)
        return 0;
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
        int error = start_worker(w, i);
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

/* Read on what is in its pipe until that ends, then collect it. */
static void await_end(const struct workers *w, struct child *child, uint64_t deadline)
{
    while (child->pid > 0) {
        uint64_t now = now_ms();
        struct pollfd fd = {.fd = child->report_fd, .events = POLLIN};
        int ready = poll(&fd, 1, now < deadline ? (int)(deadline - now) : 0);
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
    uint64_t deadline = now_ms() + STOP_MS + w->options->linger_s * UINT64_C(1000);
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
    worker_shared_free(&w->shared);
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
