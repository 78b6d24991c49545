#include "fake_loop.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IOS_MAX = 64 };

/* As assert(), in release builds too. */
static void require(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fake loop: %s\n", what);
    abort();
}

struct loop {
    uint64_t now;
    struct link deferred;
    struct loop_timer *timers; /* unordered, linked by next and prev */
    struct {
        struct loop_io *io;
        int fd;
        unsigned what;
    } ios[IOS_MAX];
};

struct loop *loop_new(void)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop) {
        loop->now = 1000000;
        list_init(&loop->deferred);
    }
    return loop;
}

void loop_free(struct loop *loop)
{
    free(loop);
}

uint64_t loop_now(const struct loop *loop)
{
    return loop->now;
}

unsigned loop_pauses(const struct loop *loop)
{
    (void)loop;
    return 0;
}

int loop_watch(struct loop *loop, struct loop_io *io, int fd, unsigned what, loop_io_fn *fn,
               void *arg)
{
    loop_ignore(io);
    for (size_t i = 0; i < IOS_MAX; i++) {
        if (loop->ios[i].io)
            continue;
        loop->ios[i].io = io;
        loop->ios[i].fd = fd;
        loop->ios[i].what = what;
        io->loop = loop;
        io->fn = fn;
        io->arg = arg;
        io->watching = true;
        return 0;
    }
    return -ENOMEM;
}

void loop_ignore(struct loop_io *io)
{
    if (!io->watching)
        return;
    for (size_t i = 0; i < IOS_MAX; i++)
        if (io->loop->ios[i].io == io)
            io->loop->ios[i].io = NULL;
    io->watching = false;
}

void loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t ms, loop_timer_fn *fn,
                      void *arg)
{
    loop_timer_stop(timer);
    *timer = (struct loop_timer){.loop = loop,
                                 .next = loop->timers,
                                 .due = loop->now + (ms > 0 ? ms : 1),
                                 .fn = fn,
                                 .arg = arg,
                                 .pending = true};
    if (loop->timers)
        loop->timers->prev = timer;
    loop->timers = timer;
}

void loop_timer_stop(struct loop_timer *timer)
{
    if (!timer->pending)
        return;
    if (timer->prev)
        timer->prev->next = timer->next;
    else
        timer->loop->timers = timer->next;
    if (timer->next)
        timer->next->prev = timer->prev;
    timer->next = timer->prev = NULL;
    timer->pending = false;
}

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

static bool run_ready(struct loop *loop)
{
    bool any = false;
    for (size_t i = 0; i < IOS_MAX; i++) {
        struct loop_io *io = loop->ios[i].io;
        if (!io)
            continue;
        unsigned what = loop->ios[i].what;
        struct pollfd p = {
            .fd = loop->ios[i].fd,
            .events = (short)((what & LOOP_READ ? POLLIN : 0) | (what & LOOP_WRITE ? POLLOUT : 0))};
        if (poll(&p, 1, 0) <= 0)
            continue;
        any = true;
        bool failed = (p.revents & (POLLHUP | POLLERR)) != 0;
        io->fn(io->arg, (p.revents & POLLIN || failed ? LOOP_READ : 0u) |
                            (p.revents & POLLOUT || failed ? LOOP_WRITE : 0u));
    }
    return any;
}

static bool run_due(struct loop *loop)
{
    struct loop_timer *earliest = NULL;
    for (struct loop_timer *t = loop->timers; t; t = t->next)
        if (t->due <= loop->now && (!earliest || t->due < earliest->due))
            earliest = t;
    if (!earliest)
        return false;
    loop_timer_stop(earliest);
    earliest->fn(earliest->arg);
    return true;
}

static bool run_deferred(struct loop *loop)
{
    struct link *first = list_first(&loop->deferred);
    if (!first)
        return false;
    struct loop_deferred *d = CONTAINER_OF(first, struct loop_deferred, link);
    loop_undefer(d);
    d->fn(d->arg);
    return true;
}

void fake_loop_settle(struct loop *loop)
{
    for (int turns = 0; turns < 100000; turns++) {
        bool any = run_ready(loop);
        while (run_due(loop))
            any = true;
        while (run_deferred(loop))
            any = true;
        if (!any)
            return;
    }
    require(false, "it spins");
}

void fake_loop_advance(struct loop *loop, uint64_t ms)
{
    uint64_t end = loop->now + ms;
    fake_loop_settle(loop);
    for (;;) {
        uint64_t next = end;
        for (struct loop_timer *t = loop->timers; t; t = t->next)
            if (t->due < next)
                next = t->due;
        loop->now = next;
        fake_loop_settle(loop);
        if (next == end)
            return;
    }
}

size_t fake_loop_timers(const struct loop *loop)
{
    size_t n = 0;
    for (struct loop_timer *t = loop->timers; t; t = t->next)
        n++;
    return n;
}

size_t fake_loop_watched(const struct loop *loop)
{
    size_t n = 0;
    for (size_t i = 0; i < IOS_MAX; i++)
        n += loop->ios[i].io != NULL;
    return n;
}

/* --- dials ----------------------------------------------------------------------------------- */

struct fake_dials fake_dials;

struct dial {
    struct loop_deferred done;
    dial_fn *fn;
    void *arg;
    enum fake_dial behaviour;
};

static void finish_dial(void *arg)
{
    struct dial *d = arg;
    struct dial_result result = {.status = DIAL_REPLY, .reply = SOCKS5_REPLY_REFUSED, .fd = -1};
    if (d->behaviour == FAKE_DIAL_OK) {
        int pair[2];
        int error = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair);
        require(error == 0 && fake_dials.server_count < 64, "no more connections");
        fake_dials.servers[fake_dials.server_count++] = pair[1];
        result = (struct dial_result){.status = DIAL_OK, .fd = pair[0]};
    }
    dial_fn *fn = d->fn;
    void *fn_arg = d->arg;
    free(d);
    fake_dials.pending--;
    fn(fn_arg, &result);
}

struct dial *dial_start(struct proxy *p, enum socks5_command command, const struct target *target,
                        dial_fn *fn, void *arg)
{
    (void)p;
    require(command == SOCKS5_CONNECT, "DNS needs no associations");
    if (fake_dials.behaviour == FAKE_DIAL_NO_MEMORY)
        return NULL;
    struct dial *d = calloc(1, sizeof(*d));
    if (!d)
        return NULL;
    d->fn = fn;
    d->arg = arg;
    d->behaviour = fake_dials.behaviour;
    fake_dials.last_target = *target;
    fake_dials.started++;
    fake_dials.pending++;
    if (d->behaviour != FAKE_DIAL_HANGS)
        loop_defer(fake_dials.loop, &d->done, finish_dial, d);
    return d;
}

void dial_cancel(struct dial *d)
{
    loop_undefer(&d->done);
    fake_dials.pending--;
    free(d);
}

const char *dial_status_name(enum dial_status status)
{
    (void)status;
    return "failed";
}

void fake_dials_reset(struct loop *loop)
{
    for (size_t i = 0; i < fake_dials.server_count; i++)
        if (fake_dials.servers[i] >= 0)
            close(fake_dials.servers[i]);
    fake_dials = (struct fake_dials){.loop = loop};
}
