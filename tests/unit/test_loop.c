#include "core/loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/stopped_clock.h"

static int settime_failures; /* so many calls from now on fail */
int __real_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *from);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *from);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *from)
{
    if (settime_failures > 0) {
        settime_failures--;
        errno = ENOMEM;
        return -1;
    }
    struct itimerspec real = *to;
    if (real.it_value.tv_sec > stopped_s)
        real.it_value.tv_sec -= stopped_s;
    return __real_timerfd_settime(fd, flags, &real, from);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int setup(void **state)
{
    *state = loop_new();
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    loop_free(*state);
    return 0;
}

struct seen {
    struct loop *loop;
    struct loop_io *io;
    struct loop_timer *timer;
    struct loop_deferred *deferred;
    unsigned ready;
    int calls;
    uint64_t at;
};

static void on_ready(void *arg, unsigned ready)
{
    struct seen *s = arg;
    s->ready |= ready;
    s->calls++;
}

static void test_edge_tells_each_change_once(void **state)
{
    struct loop *loop = *state;
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    struct loop_io io = {0};
    struct seen s = {0};
    assert_int_equal(
        loop_watch(loop, &io, fds[0], LOOP_READ | LOOP_WRITE | LOOP_EDGE, on_ready, &s), 0);
    loop_turn(loop, true);
    assert_int_equal(s.ready, LOOP_WRITE);
    loop_turn(loop, false);
    assert_int_equal(s.calls, 1);
    assert_int_equal(write(fds[1], "x", 1), 1);
    loop_turn(loop, true);
    assert_true(s.ready & LOOP_READ);
    assert_int_equal(s.calls, 2);
    loop_turn(loop, false);
    assert_int_equal(s.calls, 2);
    shutdown(fds[1], SHUT_WR);
    loop_turn(loop, true);
    assert_true(s.ready & LOOP_CLOSED);
    loop_ignore(&io);
    loop_ignore(&io);
    close(fds[0]);
    close(fds[1]);
}

/* The second owner hears what comes after the first was told, and the first no more. */
static void test_watch_is_taken_over(void **state)
{
    struct loop *loop = *state;
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    struct loop_io first = {0}, second_io = {0};
    struct seen before = {0}, after = {0};
    assert_int_equal(loop_watch(loop, &first, fds[0], LOOP_READ | LOOP_EDGE, on_ready, &before), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    loop_turn(loop, false);
    assert_int_equal(before.calls, 1);
    assert_int_equal(loop_take_over(loop, &second_io, &first, LOOP_READ, on_ready, &after), 0);
    assert_false(first.watching);
    loop_turn(loop, false);
    assert_int_equal(after.calls, 0);
    assert_int_equal(write(fds[1], "y", 1), 1);
    loop_turn(loop, true);
    shutdown(fds[1], SHUT_WR);
    loop_turn(loop, true);
    assert_int_equal(before.calls, 1);
    assert_int_equal(after.calls, 2);
    assert_int_equal(after.ready, LOOP_READ | LOOP_CLOSED);
    loop_ignore(&second_io);
    close(fds[0]);
    close(fds[1]);
}

static void test_level_tells_again_and_ignore_stops(void **state)
{
    struct loop *loop = *state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    struct loop_io io = {0};
    struct seen s = {0};
    assert_int_equal(loop_watch(loop, &io, fds[0], LOOP_READ, on_ready, &s), 0);
    loop_turn(loop, false);
    loop_turn(loop, false);
    assert_int_equal(s.calls, 2);
    loop_ignore(&io);
    loop_turn(loop, false);
    assert_int_equal(s.calls, 2);
    close(fds[0]);
    close(fds[1]);
}

static void test_watching_a_bad_descriptor_fails(void **state)
{
    struct loop_io io = {0};
    struct seen s = {0};
    assert_int_equal(loop_watch(*state, &io, 1000, LOOP_READ, on_ready, &s), -EBADF);
    assert_false(io.watching);
}

static void on_timer(void *arg)
{
    struct seen *s = arg;
    s->calls++;
    s->at = now_ms();
}

static void test_timer_is_never_early(void **state)
{
    struct loop *loop = *state;
    struct loop_timer timer = {0};
    for (uint64_t ms = 0; ms < 30; ms += 7) {
        struct seen s = {0};
        uint64_t start = now_ms();
        loop_timer_start(loop, &timer, ms, on_timer, &s);
        for (int turns = 0; s.calls == 0 && turns < 100; turns++)
            loop_turn(loop, true);
        assert_int_equal(s.calls, 1);
        assert_in_range(s.at - start, ms, ms + 2000);
        assert_false(timer.pending);
    }
}

static void on_self_restarting(void *arg)
{
    struct seen *s = arg;
    s->calls++;
    loop_timer_start(s->loop, s->timer, 0, on_self_restarting, s);
}

static void test_timer_that_restarts_itself_runs_once_a_turn(void **state)
{
    struct loop_timer timer = {0};
    struct seen s = {.loop = *state, .timer = &timer};
    loop_timer_start(*state, &timer, 0, on_self_restarting, &s);
    for (int i = 1; i <= 5; i++) {
        int before = s.calls;
        for (int turns = 0; s.calls == before && turns < 100; turns++)
            loop_turn(*state, true);
        assert_int_equal(s.calls, before + 1);
    }
    loop_timer_stop(&timer);
}

enum { TIMERS = 500 };

struct ordered {
    struct loop_timer timer;
    uint64_t due;
    bool stopped;
};
static uint64_t last_due;
static int fired;

static void on_ordered(void *arg)
{
    struct ordered *o = arg;
    assert_false(o->stopped);
    assert_true(o->due >= last_due);
    last_due = o->due;
    fired++;
}

/* Started, restarted and stopped at random, they fire in order and none twice or after its stop. */
static void test_many_timers_fire_in_order(void **state)
{
    static struct ordered all[TIMERS];
    int expected = 0;
    srand(3);
    for (int i = 0; i < 3 * TIMERS; i++) {
        struct ordered *o = &all[rand() % TIMERS];
        o->stopped = rand() % 4 == 0;
        if (o->stopped)
            loop_timer_stop(&o->timer);
        else
            loop_timer_start(*state, &o->timer, (uint64_t)(rand() % 40), on_ordered, o);
        o->due = o->timer.due;
    }
    for (int i = 0; i < TIMERS; i++)
        expected += all[i].timer.pending;
    for (int turns = 0; fired < expected && turns < 1000; turns++)
        loop_turn(*state, true);
    assert_int_equal(fired, expected);
    for (int i = 0; i < TIMERS; i++)
        assert_false(all[i].timer.pending);
}

/* A timer that is far too late is given its time again, or the last seconds of it. */
static void test_clock_stands_still_in_a_pause(void **state)
{
    struct loop *loop = *state;
    struct loop_timer timer = {0};
    struct seen s = {.loop = loop};
    loop_timer_start(loop, &timer, 50, on_timer, &s);
    uint64_t before = loop_now(loop);
    stopped_s = 60;
    loop_turn(loop, false);
    assert_int_equal(loop_pauses(loop), 1);
    assert_in_range(loop_now(loop) - before, 0, 1000);
    assert_true(timer.pending);
    while (s.calls == 0)
        loop_turn(loop, true);

    loop_timer_start(loop, &timer, 100 * 1000, on_timer, &s);
    before = loop_now(loop);
    stopped_s += 90; /* nothing was due meanwhile: a wait like any other */
    loop_turn(loop, false);
    assert_int_equal(loop_pauses(loop), 1);
    assert_in_range(loop_now(loop) - before, 90 * 1000, 91 * 1000);
    stopped_s += 60;
    loop_turn(loop, false);
    assert_int_equal(loop_pauses(loop), 2);
    assert_in_range(timer.due - loop_now(loop), 4000, 5000);
    loop_timer_stop(&timer);
    stopped_s = 0;
}

/* Late again in the next turn, it is out of time and ends. */
static void test_no_two_pauses_in_a_row(void **state)
{
    struct loop *loop = *state;
    struct loop_timer timer = {0};
    struct seen s = {.loop = loop};
    loop_timer_start(loop, &timer, 50, on_timer, &s);
    for (int turns = 0; turns < 2; turns++) {
        assert_int_equal(s.calls, 0);
        usleep(60 * 1000);
        stopped_s += 60;
        loop_turn(loop, false);
        assert_int_equal(loop_pauses(loop), 1);
    }
    while (s.calls == 0)
        loop_turn(loop, false);
    assert_int_equal(loop_pauses(loop), 1);
    stopped_s = 0;
}

static void write_after_ms(int fd, long ms)
{
    const struct timespec pause = {.tv_nsec = ms * 1000000};
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return;
    (void)nanosleep(&pause, NULL);
    _exit(write(fd, "x", 1) == 1 ? 0 : 1);
}

/* Armed for a timer that was stopped: the wait must end by what comes 200 ms later, not by that. */
static void test_last_timer_leaves_nothing_that_wakes(void **state)
{
    struct loop *loop = *state;
    int fds[2];
    struct loop_io io = {0};
    struct loop_timer timer = {0};
    struct seen s = {0};
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(loop_watch(loop, &io, fds[0], LOOP_READ, on_ready, &s), 0);
    loop_timer_start(loop, &timer, 20, on_timer, &s);
    loop_turn(loop, false);
    loop_timer_stop(&timer);
    write_after_ms(fds[1], 200);
    loop_turn(loop, true);
    assert_int_equal(s.calls, 1);
    assert_int_equal(s.ready, LOOP_READ);
    loop_ignore(&io);
    (void)wait(NULL);
    close(fds[0]);
    close(fds[1]);
}

/* Without a timerfd that is armed nobody would wake who waits: not now, and again in the next turn.
 */
static void test_a_wake_that_cannot_be_armed_is_tried_again(void **state)
{
    struct loop *loop = *state;
    const struct itimerspec long_after = {.it_value = {.tv_sec = 5}};
    struct loop_io io = {0};
    struct loop_timer timer = {0};
    struct seen waited = {0}, s = {0};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    assert_int_equal(__real_timerfd_settime(fd, 0, &long_after, NULL), 0);
    assert_int_equal(loop_watch(loop, &io, fd, LOOP_READ, on_ready, &waited), 0);
    loop_timer_start(loop, &timer, 20, on_timer, &s);
    settime_failures = 1;
    loop_turn(loop, true);
    bool waited_unarmed = waited.calls > 0 || !timer.pending;
    for (int turns = 0; s.calls == 0 && waited.calls == 0 && turns < 100; turns++)
        loop_turn(loop, true);
    loop_ignore(&io);
    close(fd);
    assert_int_equal(settime_failures, 0);
    assert_false(waited_unarmed);
    assert_int_equal(s.calls, 1);
}

static int order[8];
static int order_len;
static struct loop_deferred second;

static void on_second(void *arg)
{
    (void)arg;
    order[order_len++] = 2;
}

static void on_first(void *arg)
{
    order[order_len++] = 1;
    loop_defer(arg, &second, on_second, arg);
}

static void test_deferred_run_in_order_in_the_same_turn(void **state)
{
    struct loop_deferred first = {0};
    struct loop_deferred dropped = {0};
    loop_defer(*state, &first, on_first, *state);
    loop_defer(*state, &first, on_first, *state);
    loop_defer(*state, &dropped, on_second, NULL);
    loop_undefer(&dropped);
    loop_undefer(&dropped);
    loop_turn(*state, true); /* must not block */
    assert_int_equal(order_len, 2);
    assert_int_equal(order[0], 1);
    assert_int_equal(order[1], 2);
}

static void on_defers_itself(void *arg)
{
    struct seen *s = arg;
    s->calls++;
    loop_defer(s->loop, s->deferred, on_defers_itself, s);
}

static void test_endless_deferring_does_not_starve_the_rest(void **state)
{
    struct loop_deferred d = {0};
    struct loop_timer timer = {0};
    struct seen s = {.loop = *state, .deferred = &d};
    struct seen t = {0};
    loop_defer(*state, &d, on_defers_itself, &s);
    loop_timer_start(*state, &timer, 5, on_timer, &t);
    uint64_t start = now_ms();
    while (t.calls == 0 && now_ms() - start < 5000)
        loop_turn(*state, true);
    assert_int_equal(t.calls, 1);
    assert_true(s.calls > 0);
    loop_undefer(&d);
}

/* libevent's, which it shows nobody. */
static int find_epoll(void)
{
    for (int fd = 0; fd < 256; fd++) {
        char path[32], name[64] = "";
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (readlink(path, name, sizeof(name) - 1) > 0 && strstr(name, "[eventpoll]"))
            return fd;
    }
    return -1;
}

enum { TURNS_TOO_MANY = 1000 };

static void on_each_round(void *arg)
{
    struct seen *s = arg;
    if (++s->calls == TURNS_TOO_MANY)
        loop_stop(s->loop);
    loop_defer(s->loop, s->deferred, on_each_round, s);
}

/* It would fail for ever: the run ends in that turn, and says why. */
static void test_a_wait_that_fails_ends_the_run(void **state)
{
    struct loop_deferred d = {0};
    struct seen s = {.loop = *state, .deferred = &d};
    char text[1024] = "";
    int said[2];
    int epoll = find_epoll();
    assert_true(epoll >= 0);
    int good = dup(epoll), err = dup(STDERR_FILENO);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(pipe2(said, O_CLOEXEC | O_NONBLOCK), 0);
    loop_defer(*state, &d, on_each_round, &s);
    assert_int_equal(dup2(said[1], STDERR_FILENO), STDERR_FILENO);
    assert_int_equal(dup2(null, epoll), epoll);
    loop_run(*state);
    assert_int_equal(dup2(good, epoll), epoll);
    assert_int_equal(dup2(err, STDERR_FILENO), STDERR_FILENO);
    assert_in_range(s.calls, 1, TURNS_TOO_MANY - 1);
    assert_true(read(said[0], text, sizeof(text) - 1) > 0);
    assert_non_null(strstr(text, "error: event loop: cannot wait for events: "));
    loop_undefer(&d);
    const int used[] = {good, err, null, said[0], said[1]};
    for (size_t i = 0; i < sizeof(used) / sizeof(used[0]); i++)
        close(used[i]);
}

static char came[3]; /* what came first: "d", a descriptor, or "t", a timer */

static void note_descriptor(void *arg, unsigned ready)
{
    (void)arg, (void)ready;
    strncat(came, "d", 1);
}

static void note_timer(void *arg)
{
    (void)arg;
    strncat(came, "t", 1);
}

/* What has come in time but is read late is not late: the process may have been stopped. */
static void test_descriptors_before_timers(void **state)
{
    for (int which = 0; which < 2; which++) { /* whichever of them was ready first */
        struct loop_io io = {0};
        struct loop_timer timer = {0};
        int fds[2];
        came[0] = '\0';
        assert_int_equal(pipe(fds), 0);
        assert_int_equal(loop_watch(*state, &io, fds[0], LOOP_READ, note_descriptor, NULL), 0);
        loop_timer_start(*state, &timer, 5, note_timer, NULL);
        loop_turn(*state, false); /* the timer is armed */
        assert_int_equal(which == 0 ? write(fds[1], "x", 1) : 1, 1);
        usleep(20000);
        assert_int_equal(which == 1 ? write(fds[1], "x", 1) : 1, 1);
        loop_turn(*state, false);
        assert_string_equal(came, "dt");
        loop_ignore(&io);
        close(fds[0]);
        close(fds[1]);
    }
}

static void on_usr1(void *arg, int signo)
{
    *(int *)arg = signo;
}

static void test_signal(void **state)
{
    struct loop_signal s = {0};
    int got = 0;
    assert_int_equal(loop_signal_watch(*state, &s, SIGUSR1, on_usr1, &got), 0);
    raise(SIGUSR1);
    for (int turns = 0; got == 0 && turns < 10; turns++)
        loop_turn(*state, true);
    assert_int_equal(got, SIGUSR1);
    loop_signal_ignore(&s);
}

static void on_stop(void *arg)
{
    loop_stop(arg);
}

static void test_run_until_stop(void **state)
{
    struct loop_timer timer = {0};
    loop_timer_start(*state, &timer, 1, on_stop, *state);
    loop_run(*state);
    loop_stop(*state); /* also when asked for before the run */
    loop_run(*state);
    uint64_t now = loop_now(*state);
    assert_in_range(now_ms() - now, 0, 1000);
}

#define LOOP_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(test_edge_tells_each_change_once),
        LOOP_TEST(test_watch_is_taken_over),
        LOOP_TEST(test_level_tells_again_and_ignore_stops),
        LOOP_TEST(test_watching_a_bad_descriptor_fails),
        LOOP_TEST(test_timer_is_never_early),
        LOOP_TEST(test_timer_that_restarts_itself_runs_once_a_turn),
        LOOP_TEST(test_many_timers_fire_in_order),
        LOOP_TEST(test_clock_stands_still_in_a_pause),
        LOOP_TEST(test_no_two_pauses_in_a_row),
        LOOP_TEST(test_last_timer_leaves_nothing_that_wakes),
        LOOP_TEST(test_a_wake_that_cannot_be_armed_is_tried_again),
        LOOP_TEST(test_deferred_run_in_order_in_the_same_turn),
        LOOP_TEST(test_endless_deferring_does_not_starve_the_rest),
        LOOP_TEST(test_a_wait_that_fails_ends_the_run),
        LOOP_TEST(test_descriptors_before_timers),
        LOOP_TEST(test_signal),
        LOOP_TEST(test_run_until_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
