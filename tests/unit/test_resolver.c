#include "core/proxy/resolver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/dns_server.h"

static const struct dns_record records[] = {
    {.name = "both.test", .ttl = 30, .addrs = {"192.0.2.1", "2001:db8::1"}},
    {.name = "brief.test", .ttl = 0, .addrs = {"192.0.2.2"}},
    {.name = "absent.test", .rcode = 3},
    {.name = "empty.test", .ttl = 30},
    {.name = "many.test",
     .ttl = 30,
     .addrs = {"192.0.2.1",  "192.0.2.2",  "192.0.2.3",  "192.0.2.4",  "192.0.2.5",
               "192.0.2.6",  "192.0.2.7",  "192.0.2.8",  "192.0.2.9",  "192.0.2.10",
               "192.0.2.11", "192.0.2.12", "192.0.2.13", "192.0.2.14", "192.0.2.15",
               "192.0.2.16", "192.0.2.17", "192.0.2.18", "192.0.2.19", "192.0.2.20"}},
    {.name = NULL},
};

struct fixture {
    struct loop *loop;
    struct dns_server dns;
    struct outbound_options outbound;
    struct resolver *resolver;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    f->loop = loop_new();
    assert_non_null(f->loop);
    dns_server_start(&f->dns, f->loop, records);
    f->resolver = resolver_new(f->loop, &f->outbound);
    assert_non_null(f->resolver);
    resolver_set_servers(f->resolver, f->dns.conf_path, f->dns.port);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    resolver_free(f->resolver);
    dns_server_stop(&f->dns);
    loop_free(f->loop);
    free(f);
    return 0;
}

struct answer {
    int calls;
    struct resolver_answer answer;
};

static void on_answer(void *arg, const struct resolver_answer *answer)
{
    struct answer *a = arg;
    a->calls++;
    a->answer = *answer;
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void on_nothing(void *arg)
{
    (void)arg;
}

/* Turn the loop until `*calls` is `wanted`, or for `ms` milliseconds; how many turns it took. */
static int turn_until(struct fixture *f, const int *calls, int wanted, uint64_t ms)
{
    struct loop_timer end = {0};
    uint64_t start = now_ms();
    int turns = 0;
    loop_timer_start(f->loop, &end, ms, on_nothing, NULL);
    for (; *calls < wanted && now_ms() - start < ms; turns++)
        loop_turn(f->loop, true);
    loop_timer_stop(&end);
    return turns;
}

static struct answer ask(struct fixture *f, const char *name)
{
    struct answer a = {0};
    assert_non_null(resolver_lookup(f->resolver, name, on_answer, &a));
    assert_int_equal(a.calls, 0); /* never before the look-up returns */
    turn_until(f, &a.calls, 1, 20000);
    assert_int_equal(a.calls, 1);
    return a;
}

static bool has(const struct answer *a, const char *text)
{
    struct addr wanted;
    assert_true(addr_parse(text, &wanted));
    for (size_t i = 0; i < a->answer.count; i++)
        if (addr_equal(&a->answer.addrs[i], &wanted))
            return true;
    return false;
}

static void test_both_families_then_from_the_cache(void **state)
{
    struct fixture *f = *state;
    struct answer a = ask(f, "both.test");
    assert_int_equal(a.answer.count, 2);
    assert_null(a.answer.error);
    assert_true(has(&a, "192.0.2.1"));
    assert_true(has(&a, "2001:db8::1"));
    assert_int_equal(f->dns.queries, 2);
    a = ask(f, "BOTH.test");
    assert_int_equal(a.answer.count, 2);
    assert_int_equal(f->dns.queries, 2);
}

static void test_concurrent_lookups_share_one_query(void **state)
{
    struct fixture *f = *state;
    struct answer a = {0};
    for (int i = 0; i < 10; i++)
        assert_non_null(resolver_lookup(f->resolver, "both.test", on_answer, &a));
    turn_until(f, &a.calls, 10, 5000);
    assert_int_equal(a.calls, 10);
    assert_int_equal(f->dns.queries, 2);
}

static void test_numeric_names_ask_nobody(void **state)
{
    struct fixture *f = *state;
    struct answer a = ask(f, "192.0.2.77");
    assert_int_equal(a.answer.count, 1);
    assert_true(has(&a, "192.0.2.77"));
    a = ask(f, "2001:db8::77");
    assert_int_equal(a.answer.count, 1);
    assert_int_equal(f->dns.queries, 0);
}

static void test_the_hosts_file_counts(void **state)
{
    struct fixture *f = *state;
    struct answer a = ask(f, "localhost");
    assert_true(a.answer.count >= 1);
    assert_true(addr_is_loopback(&a.answer.addrs[0]));
    assert_int_equal(f->dns.queries, 0);
}

static void test_what_does_not_resolve(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {"absent.test", "empty.test"};
    for (size_t i = 0; i < 2; i++) {
        struct answer a = ask(f, names[i]);
        assert_int_equal(a.answer.count, 0);
        assert_non_null(a.answer.error);
        unsigned before = f->dns.queries;
        a = ask(f, names[i]); /* remembered for a while */
        assert_int_equal(a.answer.count, 0);
        assert_int_equal(f->dns.queries, before);
    }
}

static void test_what_is_no_name(void **state)
{
    struct fixture *f = *state;
    char long_name[400];
    memset(long_name, 'a', sizeof(long_name));
    long_name[sizeof(long_name) - 1] = '\0';
    struct answer a = ask(f, "");
    assert_int_equal(a.answer.count, 0);
    assert_non_null(a.answer.error);
    a = ask(f, long_name);
    assert_int_equal(a.answer.count, 0);
    long_name[200] = '\0'; /* a label of 200 bytes */
    a = ask(f, long_name);
    assert_int_equal(a.answer.count, 0);
    assert_int_equal(f->dns.queries, 0);
}

static void test_a_ttl_of_zero_lasts_a_second(void **state)
{
    struct fixture *f = *state;
    ask(f, "brief.test");
    unsigned before = f->dns.queries;
    ask(f, "brief.test");
    assert_int_equal(f->dns.queries, before);
    int never = 0;
    turn_until(f, &never, 1, 1100);
    ask(f, "brief.test");
    assert_true(f->dns.queries > before);
}

static void test_addresses_are_capped(void **state)
{
    struct fixture *f = *state;
    struct answer a = ask(f, "many.test");
    assert_int_equal(a.answer.count, RESOLVER_ADDRS_MAX);
}

static void test_another_resolv_conf_is_read_at_once(void **state)
{
    struct fixture *f = *state;
    dns_server_write_conf(&f->dns, "127.0.0.9"); /* nobody listens there */
    struct answer a = ask(f, "both.test");
    assert_int_equal(a.answer.count, 0);
    dns_server_write_conf(&f->dns, "127.0.0.1");
    a = ask(f, "both.test");
    assert_int_equal(a.answer.count, 2);
}

static void test_resolv_conf_changes_under_a_query(void **state)
{
    struct fixture *f = *state;
    struct answer silent = {0};
    struct resolver_request *request =
        resolver_lookup(f->resolver, "silent.test", on_answer, &silent);
    assert_non_null(request);
    loop_turn(f->loop, true);
    dns_server_write_conf(&f->dns, "127.0.0.1\nnameserver 127.0.0.1");
    struct answer a = ask(f, "both.test");
    assert_int_equal(a.answer.count, 2);
    assert_int_equal(silent.calls, 0);
    turn_until(f, &silent.calls, 1, 20000); /* the old channel goes with its last query */
    assert_int_equal(silent.calls, 1);
    assert_int_equal(silent.answer.count, 0);
    ask(f, "both.test");
}

static struct resolver_request *to_cancel;

static void on_answer_cancel_other(void *arg, const struct resolver_answer *answer)
{
    on_answer(arg, answer);
    resolver_cancel(to_cancel);
}

static void test_cancel(void **state)
{
    struct fixture *f = *state;
    struct answer cancelled = {0};
    struct answer a = {0};
    resolver_cancel(resolver_lookup(f->resolver, "192.0.2.1", on_answer, &cancelled));
    struct resolver_request *early =
        resolver_lookup(f->resolver, "both.test", on_answer, &cancelled);
    assert_non_null(resolver_lookup(f->resolver, "both.test", on_answer_cancel_other, &a));
    to_cancel = resolver_lookup(f->resolver, "both.test", on_answer, &cancelled);
    resolver_cancel(early);
    turn_until(f, &a.calls, 1, 5000);
    loop_turn(f->loop, false);
    assert_int_equal(a.calls, 1);
    assert_int_equal(cancelled.calls, 0);
    resolver_cancel(resolver_lookup(f->resolver, "both.test", on_answer, &cancelled));
    loop_turn(f->loop, false);
    ask(f, "both.test");
    resolver_lookup(f->resolver, "silent.test", on_answer, &cancelled); /* freed while asking */
}

static struct fixture *asking_again;

static void on_answer_ask_again(void *arg, const struct resolver_answer *answer)
{
    struct answer *a = arg;
    on_answer(arg, answer);
    if (a->calls < 5)
        assert_non_null(
            resolver_lookup(asking_again->resolver, "both.test", on_answer_ask_again, a));
    if (a->calls == 2)
        resolver_cancel(resolver_lookup(asking_again->resolver, "both.test", on_answer, a));
}

static void test_asking_from_the_callback(void **state)
{
    struct fixture *f = *state;
    struct answer a = {0};
    asking_again = f;
    resolver_lookup(f->resolver, "both.test", on_answer_ask_again, &a);
    turn_until(f, &a.calls, 5, 5000);
    loop_turn(f->loop, false);
    assert_int_equal(a.calls, 5);
}

/* More names than the cache holds: the oldest are asked anew, none is lost. */
static void test_the_cache_is_bounded(void **state)
{
    struct fixture *f = *state;
    dns_server_write_conf(&f->dns, "127.0.0.9");
    struct answer a = {0};
    for (int i = 0; i < 1500; i++) {
        char name[32];
        snprintf(name, sizeof(name), "n%d.test", i);
        assert_non_null(resolver_lookup(f->resolver, name, on_answer, &a));
        if (i % 100 == 99)
            turn_until(f, &a.calls, i + 1, 20000);
    }
    assert_int_equal(a.calls, 1500);
}

static void test_nothing_wakes_an_idle_resolver(void **state)
{
    struct fixture *f = *state;
    ask(f, "both.test");
    ask(f, "absent.test");
    int never = 0;
    assert_in_range(turn_until(f, &never, 1, 300), 1, 2);
}

static void test_outbound_options_reach_the_socket(void **state)
{
    (void)state;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct outbound_options plain = {0};
    assert_int_equal(outbound_prepare_socket(fd, &plain), 0);
    struct outbound_options nowhere = {.bind_interface = "no-such-if"};
    assert_true(outbound_prepare_socket(fd, &nowhere) < 0);
    struct outbound_options loopback = {.bind_interface = "lo", .mark = 7};
    int result = outbound_prepare_socket(fd, &loopback);
    if (result == 0) {
        uint32_t mark = 0;
        socklen_t len = sizeof(mark);
        char name[16] = "";
        socklen_t name_len = sizeof(name);
        assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &len), 0);
        assert_int_equal(mark, 7);
        assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &name_len), 0);
        assert_string_equal(name, "lo");
    } else {
        assert_int_equal(result, -EPERM); /* not root: a mark takes CAP_NET_ADMIN */
    }
    close(fd);
}

#define RESOLVER_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RESOLVER_TEST(test_both_families_then_from_the_cache),
        RESOLVER_TEST(test_concurrent_lookups_share_one_query),
        RESOLVER_TEST(test_numeric_names_ask_nobody),
        RESOLVER_TEST(test_the_hosts_file_counts),
        RESOLVER_TEST(test_what_does_not_resolve),
        RESOLVER_TEST(test_what_is_no_name),
        RESOLVER_TEST(test_a_ttl_of_zero_lasts_a_second),
        RESOLVER_TEST(test_addresses_are_capped),
        RESOLVER_TEST(test_another_resolv_conf_is_read_at_once),
        RESOLVER_TEST(test_resolv_conf_changes_under_a_query),
        RESOLVER_TEST(test_cancel),
        RESOLVER_TEST(test_asking_from_the_callback),
        RESOLVER_TEST(test_the_cache_is_bounded),
        RESOLVER_TEST(test_nothing_wakes_an_idle_resolver),
        cmocka_unit_test(test_outbound_options_reach_the_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
