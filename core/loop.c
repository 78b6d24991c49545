/*
 * Theory: libevent watches descriptors, one event each, signals being descriptors too; all timers
 * of the process hang in one pairing heap (Fredman and others, 1986) whose earliest entry arms a
 * single timerfd. So a flow's timer costs no allocation, cannot fail, and restarting it costs a few
 * pointer writes.
 *
 * In a turn descriptors come first, then timers: after a time without us (a process that was
 * stopped, a machine that was overloaded) an answer that has come meanwhile wins over its time-out.
 * That is not enough for who has to answer the answer: a handshake half done when the process
 * was stopped would be timed out before its next step. So the clock stands still while the process
 * does not run, as CLOCK_MONOTONIC does while the machine sleeps. That it did not run shows when
 * the earliest timer is found to be far too late; then the clock goes on from the turn before, or
 * from shortly before that timer. Never twice in a row: a process that gets late each time, for
 * it has too little of the CPU, must still see its timers end.
 *
 * The timerfd is set anew only when a timer is due earlier than it is armed for; one that was
 * stopped lets it fire in vain, once, unless it was the last: with no timer left, nothing wakes
 * the process. And since libevent itself knows of no timer, it waits
 * without a time-out: a wait that has one makes the kernel program and cancel a high-resolution
 * timer, which in a virtual machine costs more than the rest of a small exchange's wait.
 *
 * The clock is read at the first callback of a turn: libevent offers no hook between the wait
 * and the callbacks, and a turn in which nothing was ready needs no clock.
 */
#include "core/loop.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/memory.h"

/*
 * Deferred calls may defer further ones: so many rounds of them belong to one turn, what is left
 * then waits for the next, which does not block. A call that defers itself for ever cannot
 * starve the descriptors.
 */
enum { DEFERRED_ROUNDS_MAX = 8 };

enum {
    PAUSE_LATE_MS = 1000,  /* a timer later than that tells of a pause */
    PAUSE_GRACE_MS = 5000, /* what the earliest timer then has left, at most */
};

struct loop {
    struct event_base *base;
    int timer_fd;
    struct event wake;       /* watches it */
    uint64_t wake_at;        /* what it is armed for, ms; 0: not armed */
    struct loop_timer *root; /* of the timers' heap: the earliest */
    struct link deferred;
    uint64_t now;     /* ms */
    uint64_t lost_ms; /* so far is it behind the system's clock: the pauses */
    unsigned pauses;
    bool was_late;
    bool now_is_old;
    bool woken; /* in this turn, by the timerfd */
    bool in_turn;
    bool stopped;
};

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void refresh_now(struct loop *loop)
{
    uint64_t now = monotonic_ms() - loop->lost_ms;
    bool late = loop->root && now > loop->root->due + PAUSE_LATE_MS;
    if (late && !loop->was_late) {
        uint64_t resumed = loop->now;
        if (resumed + PAUSE_GRACE_MS < loop->root->due)
            resumed = loop->root->due - PAUSE_GRACE_MS;
        loop->lost_ms += now - resumed;
        loop->pauses++;
        now = resumed;
    }
    loop->was_late = late;
    loop->now = now;
    loop->now_is_old = false;
}

uint64_t loop_now(const struct loop *loop)
{
    return loop->now;
}

unsigned loop_pauses(const struct loop *loop)
{
    return loop->pauses;
}

/* --- the heap of timers ---------------------------------------------------------------------- */

/* Join two heaps; each may be NULL. The earlier root takes the other as its first child. */
static struct loop_timer *heap_meld(struct loop_timer *a, struct loop_timer *b)
{
    if (!a)
        return b;
    if (!b)
        return a;
    if (b->due < a->due) {
        struct loop_timer *swap = a;
        a = b;
        b = swap;
    }
    b->next = a->child;
    b->prev = a;
    if (a->child)
        a->child->prev = b;
    a->child = b;
    return a;
}

/* Join siblings in pairs, then the pairs from the last to the first. */
static struct loop_timer *heap_merge_siblings(struct loop_timer *first)
{
    struct loop_timer *pairs = NULL; /* a stack, linked by `next` */
    while (first) {
        struct loop_timer *a = first;
        struct loop_timer *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b)
            b->next = b->prev = NULL;
        a = heap_meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    struct loop_timer *root = NULL;
    while (pairs) {
        struct loop_timer *next = pairs->next;
        pairs->next = NULL;
        root = heap_meld(root, pairs);
        pairs = next;
    }
    return root;
}

static void heap_remove(struct loop *loop, struct loop_timer *t)
{
    struct loop_timer *children = heap_merge_siblings(t->child);
    if (t == loop->root) {
        loop->root = children;
    } else {
        if (t->prev->child == t)
            t->prev->child = t->next;
        else
            t->prev->next = t->next;
        if (t->next)
            t->next->prev = t->prev;
        loop->root = heap_meld(loop->root, children);
    }
    t->child = t->next = t->prev = NULL;
}

void loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t ms, loop_timer_fn *fn,
                      void *arg)
{
    loop_timer_stop(timer);
    if (!loop->in_turn)
        refresh_now(loop);
    timer->loop = loop;
    timer->fn = fn;
    timer->arg = arg;
    timer->due = loop->now + (ms > 0 ? ms : 1);
    timer->pending = true;
    loop->root = heap_meld(loop->root, timer);
}

void loop_timer_stop(struct loop_timer *timer)
{
    if (!timer->pending)
        return;
    heap_remove(timer->loop, timer);
    timer->pending = false;
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct loop *loop = arg;
    loop->wake_at = 0;
    loop->woken = true;
}

static void run_due_timers(struct loop *loop)
{
    if (!loop->woken)
        return;
    loop->woken = false;
    if (loop->now_is_old)
        refresh_now(loop);
    while (loop->root && loop->root->due <= loop->now) {
        struct loop_timer *timer = loop->root;
        loop_timer_stop(timer);
        timer->fn(timer->arg);
    }
}

/*
 * Let a wait end when the earliest timer is due, if it would not end before. False: that cannot be
 * had, so nobody must wait; the next turn tries again.
 */
static bool arm_wake(struct loop *loop)
{
    uint64_t due = loop->root ? loop->root->due : 0;
    if (due == loop->wake_at || (due != 0 && loop->wake_at != 0 && loop->wake_at < due))
        return true;
    loop->wake_at = due;
    uint64_t then = due != 0 ? due + loop->lost_ms : 0; /* of the system's clock; 0 disarms */
    const struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(then / 1000), .tv_nsec = (long)(then % 1000 * 1000000)},
    };
    if (timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0)
        return true;
    loop->wake_at = 0;
    return false;
}

/* --- descriptors ----------------------------------------------------------------------------- */

static void on_io(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    struct loop_io *io = arg;
    struct loop *loop = io->loop;
    if (loop->now_is_old)
        refresh_now(loop);
    unsigned ready = 0;
    if (what & EV_READ)
        ready |= LOOP_READ;
    if (what & EV_WRITE)
        ready |= LOOP_WRITE;
    if (what & EV_CLOSED)
        ready |= LOOP_CLOSED;
    io->fn(io->arg, ready);
}

int loop_watch(struct loop *loop, struct loop_io *io, int fd, unsigned what, loop_io_fn *fn,
               void *arg)
{
    loop_ignore(io);
    short events = EV_PERSIST;
    if (what & LOOP_READ)
        events |= EV_READ;
    if (what & LOOP_WRITE)
        events |= EV_WRITE;
    /* Level-triggered, a peer's half-close would be told in every turn to who only writes. */
    if (what & LOOP_EDGE)
        events |= EV_ET | EV_CLOSED;
    io->loop = loop;
    io->fn = fn;
    io->arg = arg;
    errno = 0;
    if (event_assign(&io->event, loop->base, fd, events, on_io, io) < 0)
        return -EINVAL;
    if (event_add(&io->event, NULL) < 0)
        return errno != 0 ? -errno : -ENOMEM;
    io->watching = true;
    return 0;
}

/* libevent tells epoll only when a descriptor's first event is added or its last one removed. */
int loop_take_over(struct loop *loop, struct loop_io *io, struct loop_io *from, unsigned what,
                   loop_io_fn *fn, void *arg)
{
    int error = loop_watch(loop, io, event_get_fd(&from->event), what | LOOP_EDGE, fn, arg);
    loop_ignore(from);
    return error;
}

void loop_ignore(struct loop_io *io)
{
    if (!io->watching)
        return;
    event_del(&io->event);
    io->watching = false;
}

/* --- deferred calls -------------------------------------------------------------------------- */

void loop_defer(struct loop *loop, struct loop_deferred *d, loop_deferred_fn *fn, void *arg)
{
    if (d->pending)
        return;
    d->fn = fn;
    d->arg = arg;
    d->pending = true;
    list_push_back(&loop->deferred, &d->link);
}

void loop_undefer(struct loop_deferred *d)
{
    if (!d->pending)
        return;
    list_remove(&d->link);
    d->pending = false;
}

/* Run what is deferred now; what these calls defer in turn stays for the next round. */
static void run_deferred_round(struct loop *loop)
{
    struct link round;
    list_init(&round);
    list_insert_after(loop->deferred.prev, &round);
    list_remove(&loop->deferred); /* `round` now heads all of them */
    struct link *first;
    while ((first = list_first(&round)) != NULL) {
        struct loop_deferred *d = CONTAINER_OF(first, struct loop_deferred, link);
        loop_undefer(d);
        d->fn(d->arg);
    }
}

/* --- signals --------------------------------------------------------------------------------- */

/* libevent's own way, a handler that writes into a pipe, ends the process where a read fails. */
static void on_signal(void *arg, unsigned ready)
{
    (void)ready;
    struct loop_signal *s = arg;
    struct signalfd_siginfo info;
    if (read(s->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        s->fn(s->arg, s->signo);
    else if (errno != EAGAIN && errno != EINTR)
        log_warn("signal %d cannot be read, trying again: %s", s->signo, strerror(errno));
}

/* Block the signal, or give it back; whether it was blocked before. */
static bool mask_signal(int signo, bool block)
{
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, signo);
    (void)sigprocmask(block ? SIG_BLOCK : SIG_UNBLOCK, &set, &before);
    return sigismember(&before, signo) == 1;
}

int loop_signal_watch(struct loop *loop, struct loop_signal *s, int signo,
                      void (*fn)(void *arg, int signo), void *arg)
{
    loop_signal_ignore(s);
    s->was_blocked = mask_signal(signo, true);
    s->signo = signo;
    s->fn = fn;
    s->arg = arg;
    s->watching = true;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    s->fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    int error = s->fd < 0 ? -errno : loop_watch(loop, &s->io, s->fd, LOOP_READ, on_signal, s);
    if (error < 0)
        loop_signal_ignore(s);
    return error;
}

void loop_signal_ignore(struct loop_signal *s)
{
    if (!s->watching)
        return;
    loop_ignore(&s->io);
    if (s->fd >= 0)
        close(s->fd);
    if (!s->was_blocked)
        mask_signal(s->signo, false);
    s->watching = false;
}

/* --- the loop -------------------------------------------------------------------------------- */

static void on_libevent_message(int severity, const char *message)
{
    static struct log_limit limit = LOG_LIMIT(5);
    if (severity == EVENT_LOG_DEBUG)
        return;
    log_limited(severity == EVENT_LOG_ERR ? LOG_LEVEL_ERROR : LOG_LEVEL_WARN, &limit,
                "event loop: %s", message);
}

static struct event_base *new_base(void)
{
    struct event_config *config = event_config_new();
    if (!config)
        return NULL;
    struct event_base *base = NULL;
    if (event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV) == 0 &&
        event_config_require_features(config, EV_FEATURE_ET | EV_FEATURE_EARLY_CLOSE) == 0)
        base = event_base_new_with_config(config);
    event_config_free(config);
    return base;
}

/* Edge-triggered, the timerfd need not be read: it tells each expiry once. 0, or -1 with errno. */
static int watch_timer(struct loop *loop)
{
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (loop->timer_fd < 0)
        return -1;
    if (event_assign(&loop->wake, loop->base, loop->timer_fd, EV_READ | EV_PERSIST | EV_ET, on_wake,
                     loop) < 0 ||
        event_add(&loop->wake, NULL) < 0)
        return -1;
    return 0;
}

struct loop *loop_new(void)
{
    event_set_log_callback(on_libevent_message);
    event_set_mem_functions(memory_get, memory_resized, free);
    struct loop *loop = memory_zeroed(sizeof(*loop));
    if (!loop)
        return NULL;
    loop->timer_fd = -1;
    list_init(&loop->deferred);
    refresh_now(loop);
    errno = 0;
    loop->base = new_base();
    if (!loop->base || watch_timer(loop) < 0) {
        int error = errno != 0 ? errno : ENOMEM;
        loop_free(loop);
        errno = error;
        return NULL;
    }
    return loop;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    if (loop->base)
        event_base_free(loop->base);
    if (loop->timer_fd >= 0)
        close(loop->timer_fd);
    free(loop);
}

void loop_turn(struct loop *loop, bool wait)
{
    bool block = arm_wake(loop) && wait && list_empty(&loop->deferred);
    loop->in_turn = true;
    loop->now_is_old = true;
    int flags = EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY | (block ? 0 : EVLOOP_NONBLOCK);
    if (event_base_loop(loop->base, flags) < 0) {
        log_error("event loop: cannot wait for events: %s", strerror(errno));
        loop->stopped = true; /* it would fail again at once, for ever */
    }
    run_due_timers(loop);
    if (loop->now_is_old)
        refresh_now(loop);
    for (int i = 0; i < DEFERRED_ROUNDS_MAX && !list_empty(&loop->deferred); i++)
        run_deferred_round(loop);
    loop->in_turn = false;
}

void loop_run(struct loop *loop)
{
    while (!loop->stopped)
        loop_turn(loop, true);
    loop->stopped = false;
}

void loop_stop(struct loop *loop)
{
    loop->stopped = true;
}
