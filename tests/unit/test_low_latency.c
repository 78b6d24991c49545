/*
 * Low latency is asked for at once and no longer than there is a use for it; a pipe stands in for
 * the kernel's device, and time is the test's.
 */
#include "core/worker/low_latency.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake_loop.h"

enum { AT_ONCE = 0, RELEASED = 2000000000, NOTHING = -1 };

struct fixture {
    struct loop *loop;
    struct low_latency latency;
    int device[2]; /* what is written to [1] is read from [0] */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    f->loop = loop_new();
    assert_non_null(f->loop);
    assert_int_equal(pipe2(f->device, O_NONBLOCK | O_CLOEXEC), 0);
    low_latency_init(&f->latency, f->loop, f->device[1]);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    low_latency_end(&f->latency);
    assert_int_equal(fake_loop_timers(f->loop), 0);
    loop_free(f->loop);
    close(f->device[0]);
    close(f->device[1]);
    free(f);
    return 0;
}

/* The oldest request that was not looked at yet, in microseconds, or NOTHING. */
static int32_t asked(const struct fixture *f)
{
    int32_t us;
    ssize_t n = read(f->device[0], &us, sizeof(us));
    if (n < 0) {
        assert_int_equal(errno, EAGAIN);
        return NOTHING;
    }
    assert_int_equal(n, sizeof(us)); /* binary, 4 bytes: the kernel takes others for text */
    return us;
}

static void test_asks_for_nothing_at_first(void **state)
{
    struct fixture *f = *state;
    fake_loop_advance(f->loop, 10000);
    assert_int_equal(asked(f), NOTHING);
    assert_int_equal(fake_loop_timers(f->loop), 0);
}

static void test_holds_at_once_and_releases_after_silence(void **state)
{
    struct fixture *f = *state;
    low_latency_relayed(&f->latency);
    assert_int_equal(asked(f), AT_ONCE);
    fake_loop_advance(f->loop, LOW_LATENCY_QUIET_MS - 1);
    assert_int_equal(asked(f), NOTHING);
    fake_loop_advance(f->loop, 1);
    assert_int_equal(asked(f), RELEASED);
    assert_int_equal(fake_loop_timers(f->loop), 0);
    fake_loop_advance(f->loop, 10000);
    assert_int_equal(asked(f), NOTHING);
}

static void test_holds_again(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 3; i++) {
        low_latency_relayed(&f->latency);
        assert_int_equal(asked(f), AT_ONCE);
        fake_loop_advance(f->loop, LOW_LATENCY_QUIET_MS);
        assert_int_equal(asked(f), RELEASED);
    }
}

/* The silence counts from the last thing, not from the first. */
static void test_holds_as_long_as_it_goes_on(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 1000; i++) {
        low_latency_relayed(&f->latency);
        fake_loop_advance(f->loop, LOW_LATENCY_QUIET_MS - 1);
    }
    assert_int_equal(asked(f), AT_ONCE);
    assert_int_equal(asked(f), NOTHING);
    fake_loop_advance(f->loop, 1);
    assert_int_equal(asked(f), RELEASED);
}

/* However many turns there are: one request, one timer, which is not moved either. */
static void test_a_busy_turn_costs_nothing(void **state)
{
    struct fixture *f = *state;
    low_latency_relayed(&f->latency);
    uint64_t due = f->latency.quiet.due;
    for (int i = 1; i < LOW_LATENCY_QUIET_MS; i++) {
        fake_loop_advance(f->loop, 1);
        for (int turn = 0; turn < 100; turn++)
            low_latency_relayed(&f->latency);
        assert_int_equal(f->latency.quiet.due, due);
        assert_int_equal(fake_loop_timers(f->loop), 1);
    }
    assert_int_equal(asked(f), AT_ONCE);
    assert_int_equal(asked(f), NOTHING);
}

static void test_end_releases(void **state)
{
    struct fixture *f = *state;
    low_latency_relayed(&f->latency);
    assert_int_equal(asked(f), AT_ONCE);
    low_latency_end(&f->latency);
    assert_int_equal(asked(f), RELEASED);
    assert_int_equal(fake_loop_timers(f->loop), 0);
    low_latency_end(&f->latency);
    assert_int_equal(asked(f), NOTHING);
}

static void test_withdraws_for_the_dead(void **state)
{
    struct fixture *f = *state;
    low_latency_withdraw(-1);
    assert_int_equal(asked(f), NOTHING);
    low_latency_withdraw(f->device[1]);
    assert_int_equal(asked(f), RELEASED);
}

/* A device that refuses: that is said once, and not tried in each turn. */
static void test_gives_up_where_it_is_refused(void **state)
{
    struct fixture *f = *state;
    struct low_latency latency;
    low_latency_init(&latency, f->loop, f->device[0]); /* the end that cannot be written */
    low_latency_relayed(&latency);
    assert_int_equal(latency.fd, -1);
    assert_false(latency.held);
    assert_int_equal(fake_loop_timers(f->loop), 0);
    low_latency_end(&latency);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_asks_for_nothing_at_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holds_at_once_and_releases_after_silence, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_holds_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holds_as_long_as_it_goes_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_busy_turn_costs_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_end_releases, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_withdraws_for_the_dead, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_gives_up_where_it_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
