/* A confined child that is sent for an answer: what comes back, and what does not. */
#include "core/worker/errand.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct answer {
    int number;
    char text[100];
};

static const struct options plain = {.secrets_fd = -1};

static void say_two(const struct options *o, int say, void *arg)
{
    struct answer answer = {.number = o->secrets_fd, .text = "one"};
    if (!errand_lock())
        return;
    errand_say(say, &answer, sizeof(answer));
    answer.number = *(const int *)arg;
    errand_say(say, &answer, sizeof(answer));
}

static void test_answers_come_in_order(void **state)
{
    struct errand e;
    struct answer a;
    int given = 42;
    (void)state;
    assert_int_equal(errand_start(&e, &plain, say_two, &given), 0);
    assert_true(errand_hear(&e, &a, sizeof(a)));
    assert_int_equal(a.number, -1);
    assert_string_equal(a.text, "one");
    assert_true(errand_hear(&e, &a, sizeof(a)));
    assert_int_equal(a.number, 42);
    assert_false(errand_hear(&e, &a, sizeof(a)));
    errand_end(&e);
    errand_end(&e);
}

static void say_half_and_die(const struct options *o, int say, void *arg)
{
    (void)o;
    (void)arg;
    errand_say(say, "half", 4);
    abort();
}

static void test_half_an_answer_is_none(void **state)
{
    struct errand e;
    struct answer a;
    (void)state;
    assert_int_equal(errand_start(&e, &plain, say_half_and_die, NULL), 0);
    assert_false(errand_hear(&e, &a, sizeof(a)));
    errand_end(&e);
}

static void never_end(const struct options *o, int say, void *arg)
{
    (void)o;
    (void)arg;
    errand_say(say, "x", 1);
    for (;;)
        pause();
}

static void test_it_can_be_called_off(void **state)
{
    struct errand e;
    char byte;
    (void)state;
    assert_int_equal(errand_start(&e, &plain, never_end, NULL), 0);
    assert_true(errand_hear(&e, &byte, 1));
    errand_end(&e);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void try_things(const struct options *o, int say, void *arg)
{
    struct answer a = {.number = 0};
    (void)arg;
    if (!errand_lock())
        return;
    a.number |= open("/etc/shadow", O_RDONLY | O_CLOEXEC) >= 0 ? 1 : 0;
    a.number |= socket(AF_NETLINK, SOCK_RAW, 0) >= 0 ? 2 : 0;
    a.number |= setuid(0) == 0 ? 4 : 0;
    a.number |= outbound_open(&o->outbound, AF_INET, SOCK_STREAM) >= 0 ? 8 : 0;
    errand_say(say, &a, sizeof(a));
}

/* Sockets are what it is for; with a mark they come from a broker, where that may be had at all. */
static void test_it_may_do_nothing_else(void **state)
{
    struct errand e;
    struct answer a;
    struct options marked = plain;
    (void)state;
    marked.outbound.mark = 7;
    const struct options *kinds[] = {&plain, &marked};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(errand_start(&e, kinds[i], try_things, NULL), 0);
        assert_true(errand_hear(&e, &a, sizeof(a)));
        bool may = i == 0 || geteuid() == 0;
        assert_int_equal(a.number, may ? 8 : 0);
        errand_end(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_come_in_order),
        cmocka_unit_test(test_half_an_answer_is_none),
        cmocka_unit_test(test_it_can_be_called_off),
        cmocka_unit_test(test_it_may_do_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
