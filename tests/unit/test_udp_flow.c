/* UDP associations: their life, refusals, bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "tests/unit/udp_lab.h"

/* --- the life of an association --------------------------------------------------------------- */

static void test_datagrams_wait_for_the_relay(void **state)
{
    struct lab *l = *state;
    struct socks5_datagram d;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "one");
    app_sends(l, "10.0.0.1:5000", "[2001:db8::1]:8", "two");
    app_sends(l, "10.0.0.1:5000", "198.18.1.3:9", "three");
    assert_int_equal(dial_count, 1);
    assert_int_equal(l->worker.flow_count, 1);
    assert_false(relay_gets(l, &d));
    proxy_accepts(l, 0);
    expect_relayed(l, "192.0.2.1:7", "one");
    expect_relayed(l, "[2001:db8::1]:8", "two");
    expect_relayed(l, "n3.example:9", "three");
    assert_false(relay_gets(l, &d));
    assert_int_equal(unreachable_count, 0);
}

static void test_one_mapping_a_source(void **state)
{
    struct lab *l = *state;
    open_association(l);
    struct sockaddr_storage first = l->relay_client;
    app_sends(l, "10.0.0.1:5000", "203.0.113.1:53", "a");
    expect_relayed(l, "203.0.113.1:53", "a");
    assert_memory_equal(&first, &l->relay_client, sizeof(struct sockaddr_in));
    assert_int_equal(dial_count, 1);
    app_sends(l, "10.0.0.1:5001", "203.0.113.1:53", "b");
    app_sends(l, "10.0.0.2:5000", "203.0.113.1:53", "c");
    assert_int_equal(dial_count, 3);
    assert_int_equal(l->worker.flow_count, 3);
}

static void test_answers_come_from_anywhere(void **state)
{
    struct lab *l = *state;
    open_association(l);
    relay_sends_from(l, "192.0.2.1:7", "expected");
    relay_sends_from(l, "198.51.100.9:1234", "a stranger");
    relay_sends_from(l, "192.0.2.1:7", "");
    expect_sent(0, "192.0.2.1:7", "10.0.0.1:5000", "expected");
    expect_sent(1, "198.51.100.9:1234", "10.0.0.1:5000", "a stranger");
    expect_sent(2, "192.0.2.1:7", "10.0.0.1:5000", "");
}

static void test_nonsense_from_the_relay_is_dropped(void **state)
{
    struct lab *l = *state;
    static const uint8_t fragment[] = {0, 0, 1, 1, 192, 0, 2, 1, 0, 7, 'x'};
    static const uint8_t bad_type[] = {0, 0, 0, 2, 192, 0, 2, 1, 0, 7, 'x'};
    static const uint8_t cut_name[] = {0, 0, 0, 3, 200, 'a', 0, 7};
    open_association(l);
    const struct sockaddr *to = (struct sockaddr *)&l->relay_client;
    for (size_t len = 0; len < 10; len++)
        (void)sendto(l->relay, fragment, len, 0, to, l->relay_client_len);
    (void)sendto(l->relay, fragment, sizeof(fragment), 0, to, l->relay_client_len);
    (void)sendto(l->relay, bad_type, sizeof(bad_type), 0, to, l->relay_client_len);
    (void)sendto(l->relay, cut_name, sizeof(cut_name), 0, to, l->relay_client_len);
    static const char *const impossible[] = {
        "0.0.0.0:7",     "224.0.0.1:7", "255.255.255.255:7", "127.0.0.1:7",
        "169.254.1.1:7", "240.0.0.1:7", "[2001:db8::1]:7",   "192.0.2.1:0",
    };
    for (size_t i = 0; i < sizeof(impossible) / sizeof(impossible[0]); i++)
        relay_sends_from(l, impossible[i], "x");
    struct target nobody = {.name = "nobody.example", .port = 7};
    relay_sends(l, &nobody, "x", 1);
    /* Neither does a stranger to the connected socket get through. */
    struct endpoint other;
    int stranger = udp_bound_to_loopback(&other);
    static const uint8_t good[] = {0, 0, 0, 1, 192, 0, 2, 1, 0, 7, 'x'};
    (void)sendto(stranger, good, sizeof(good), 0, to, l->relay_client_len);
    close(stranger);
    turns(l, 5);
    assert_int_equal(sent_count, 0);
    relay_sends_from(l, "192.0.2.1:7", "still here");
    assert_int_equal(sent_count, 1);
}

static void test_the_control_connection_ends_it(void **state)
{
    struct lab *l = *state;
    open_association(l);
    assert_int_equal(write(l->control[1], "noise", 5), 5);
    turns(l, 2);
    assert_int_equal(l->worker.flow_count, 1);
    close(l->control[1]);
    l->control[1] = -1;
    turns(l, 2);
    assert_int_equal(l->worker.flow_count, 0);
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "again");
    assert_int_equal(dial_count, 2);
    proxy_accepts(l, 1);
    expect_relayed(l, "192.0.2.1:7", "again");
}

static void test_relay_address_may_be_left_out(void **state)
{
    struct lab *l = *state;
    static const char *const unsaid[] = {"0.0.0.0", "[::]"};
    for (unsigned i = 0; i < 2; i++) {
        char src[32];
        char text[64];
        (void)snprintf(src, sizeof(src), "10.0.0.1:%u", 6000 + i);
        (void)snprintf(text, sizeof(text), "%s:%u", unsaid[i], l->relay_address.port);
        app_sends(l, src, "192.0.2.1:7", "x");
        struct endpoint relay = at(text);
        proxy_accepts_at(l, i, &relay);
        expect_relayed(l, "192.0.2.1:7", "x");
    }
}

static void test_a_relay_that_makes_no_sense(void **state)
{
    struct lab *l = *state;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "x");
    struct endpoint relay = at("127.0.0.1:0");
    proxy_accepts_at(l, 0, &relay);
    expect_unreachable(0, "10.0.0.1:5000", "192.0.2.1:7");
    char byte;
    assert_int_equal(read(l->control[1], &byte, 1), 0); /* the association has hung up */
}

/* Some noise is ignored, a flood is not read for ever. */
static void test_a_flooded_control_connection(void **state)
{
    struct lab *l = *state;
    static const char noise[4000];
    open_association(l);
    assert_int_equal(send(l->control[1], noise, sizeof(noise), MSG_NOSIGNAL), sizeof(noise));
    turns(l, 5);
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "still here");
    expect_relayed(l, "192.0.2.1:7", "still here");
    ssize_t taken = 0;
    for (int i = 0; i < 1000 && taken >= 0; i++) {
        taken = send(l->control[1], noise, sizeof(noise), MSG_NOSIGNAL | MSG_DONTWAIT);
        turns(l, 1);
    }
    assert_true(taken < 0 && (errno == EPIPE || errno == ECONNRESET));
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "refused for a while");
    expect_unreachable(0, "10.0.0.1:5000", "192.0.2.1:7");
}

static void test_idle_associations_end(void **state)
{
    struct lab *l = *state;
    l->limits.udp_idle_timeout_s = 1;
    uint64_t begun = loop_now(l->worker.loop);
    open_association(l);
    turns(l, 700);
    app_sends(l, "10.0.0.2:5000", "198.18.1.1:7", "later");
    relay_sends_from(l, "192.0.2.1:7", "alive"); /* refreshes the first */
    turns(l, 1);
    uint64_t refreshed = loop_now(l->worker.loop);
    turns(l, 700);
    /* Else the machine held us up for too long to say. */
    if (refreshed < begun + 1000 && loop_now(l->worker.loop) < refreshed + 1000)
        assert_int_equal(l->worker.flow_count, 2);
    for (int i = 0; i < 100 && l->worker.flow_count > 0; i++)
        turns(l, 100);
    assert_int_equal(l->worker.flow_count, 0);
    assert_int_equal(holds, 0);
    assert_true(dials[1].cancelled);
    char byte;
    assert_int_equal(read(l->control[1], &byte, 1), 0);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void test_a_proxy_without_udp_is_remembered(void **state)
{
    struct lab *l = *state;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:443", "one");
    app_sends(l, "10.0.0.1:5000", "192.0.2.2:443", "two");
    proxy_fails(0, DIAL_REPLY, SOCKS5_REPLY_COMMAND_NOT_SUPPORTED, 0);
    assert_int_equal(refused_notes, 1);
    assert_int_equal(unreachable_count, 2);
    expect_unreachable(0, "10.0.0.1:5000", "192.0.2.1:443");
    expect_unreachable(1, "10.0.0.1:5000", "192.0.2.2:443");
    assert_int_equal(l->worker.flow_count, 0);
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:443", "three");
    expect_unreachable(2, "10.0.0.1:5000", "192.0.2.1:443");
    assert_memory_equal(unreachables[2].bytes, "three", 5);
    assert_int_equal(dial_count, 1);
    udp_refused = false; /* the minute is over */
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:443", "four");
    assert_int_equal(dial_count, 2);
    proxy_fails(1, DIAL_CLOSED, 0, 0); /* ssh -D */
    assert_int_equal(refused_notes, 2);
}

static void test_a_failed_dial_is_not_repeated_at_once(void **state)
{
    struct lab *l = *state;
    static const enum dial_status statuses[] = {DIAL_REPLY, DIAL_NO_PROXY, DIAL_AUTH, DIAL_NONSENSE,
                                                DIAL_TIMEOUT};
    unsigned count = sizeof(statuses) / sizeof(statuses[0]);
    for (unsigned i = 0; i < count; i++) {
        char src[32];
        (void)snprintf(src, sizeof(src), "10.0.0.1:%u", 6000 + i);
        app_sends(l, src, "192.0.2.1:7", "one");
        proxy_fails(i, statuses[i], SOCKS5_REPLY_GENERAL_FAILURE, ECONNREFUSED);
        app_sends(l, src, "192.0.2.1:7", "two");
        assert_int_equal(unreachable_count, 2 * i + 2);
    }
    assert_int_equal(dial_count, count);
    assert_int_equal(refused_notes, 0);
    turns(l, 1100);
    app_sends(l, "10.0.0.1:6000", "192.0.2.1:7", "three");
    assert_int_equal(dial_count, count + 1);
    proxy_accepts(l, count);
    expect_relayed(l, "192.0.2.1:7", "three");
}

static void test_without_resources_datagrams_are_lost(void **state)
{
    struct lab *l = *state;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "one");
    proxy_fails(0, DIAL_NO_RESOURCES, 0, EMFILE);
    assert_int_equal(unreachable_count, 0);
    dial_out_of_memory = true;
    app_sends(l, "10.0.0.2:5000", "192.0.2.1:7", "one");
    assert_int_equal(dial_count, 1);
}

static void test_descriptors_are_taken_from_the_idle(void **state)
{
    struct lab *l = *state;
    open_association(l);
    app_sends(l, "10.0.0.2:5000", "192.0.2.1:7", "one");
    proxy_fails(1, DIAL_NO_RESOURCES, 0, EMFILE);
    assert_int_equal(l->worker.flow_count, 2); /* nobody is idle yet */
    turns(l, 1100);
    app_sends(l, "10.0.0.3:5000", "192.0.2.1:7", "one");
    proxy_fails(2, DIAL_NO_RESOURCES, 0, EMFILE);
    turns(l, 1);
    char byte;
    assert_int_equal(read(l->control[1], &byte, 1), 0); /* the first has gone */
}

static void test_blocked_udp(void **state)
{
    struct lab *l = *state;
    l->limits.udp_mode = UDP_BLOCK;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "x");
    expect_unreachable(0, "10.0.0.1:5000", "192.0.2.1:7");
    assert_int_equal(dial_count + l->worker.flow_count, 0);
}

static void test_unknown_fake_addresses_are_refused(void **state)
{
    struct lab *l = *state;
    app_sends(l, "10.0.0.1:5000", "198.18.1.200:7", "x");
    expect_unreachable(0, "10.0.0.1:5000", "198.18.1.200:7");
    assert_int_equal(dial_count + l->worker.flow_count, 0);
    open_association(l);
    app_sends(l, "10.0.0.1:5000", "198.18.1.201:7", "x");
    expect_unreachable(1, "10.0.0.1:5000", "198.18.1.201:7");
}

/* --- bounds ----------------------------------------------------------------------------------- */

static void test_the_queue_is_bounded(void **state)
{
    struct lab *l = *state;
    struct socks5_datagram d;
    for (int i = 0; i < 100; i++)
        app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "x");
    proxy_accepts(l, 0);
    int got = 0;
    while (relay_gets(l, &d))
        got++;
    assert_int_equal(got, 64);
    /* The largest datagram waits too, a second one finds no room. */
    app_sends_bytes(l, "10.0.0.2:5000", "192.0.2.1:7", 65000, 0);
    app_sends_bytes(l, "10.0.0.2:5000", "192.0.2.1:7", 1000, 0);
    proxy_accepts(l, 1);
    assert_true(relay_gets(l, &d));
    assert_int_equal(d.payload_len, 65000);
    assert_false(relay_gets(l, &d));
}

static void test_max_flows(void **state)
{
    struct lab *l = *state;
    l->limits.max_flows = 2;
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "x");
    app_sends(l, "10.0.0.2:5000", "192.0.2.1:7", "x");
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "x"); /* the second is idle longest now */
    app_sends(l, "10.0.0.3:5000", "192.0.2.1:7", "x");
    assert_int_equal(l->worker.flow_count, 2);
    assert_false(dials[0].cancelled);
    assert_true(dials[1].cancelled);
    l->worker.flow_count += 2; /* TCP has taken all */
    assert_true(udp_flows_evict(l->worker.udp) && udp_flows_evict(l->worker.udp));
    assert_false(udp_flows_evict(l->worker.udp));
    app_sends(l, "10.0.0.4:5000", "192.0.2.1:7", "x");
    assert_int_equal(dial_count, 3);
    l->worker.flow_count -= 2;
}

static void test_an_association_ends_amid_a_batch(void **state)
{
    struct lab *l = *state;
    open_association(l);
    struct endpoint from = at("10.0.0.1:5000");
    struct endpoint to = at("192.0.2.1:7");
    memcpy(payload_of(l), "gone", 4);
    udp_flows_datagram(l->worker.udp, &from, &to, payload_of(l), 4, 0, HEADROOM);
    assert_true(udp_flows_evict(l->worker.udp));
    udp_flows_batch_end(l->worker.udp);
    struct socks5_datagram d;
    assert_false(relay_gets(l, &d));
}

static void test_more_names_than_are_kept(void **state)
{
    struct lab *l = *state;
    open_association(l);
    for (int i = 0; i < 199; i++) {
        char dst[32];
        char target[32];
        (void)snprintf(dst, sizeof(dst), "198.18.1.%d:7", i);
        (void)snprintf(target, sizeof(target), "n%d.example:7", i);
        app_sends(l, "10.0.0.1:5000", dst, "x");
        expect_relayed(l, target, "x");
    }
    assert_int_equal(holds, 128);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        LAB_TEST(test_datagrams_wait_for_the_relay),
        LAB_TEST(test_one_mapping_a_source),
        LAB_TEST(test_answers_come_from_anywhere),
        LAB_TEST(test_nonsense_from_the_relay_is_dropped),
        LAB_TEST(test_the_control_connection_ends_it),
        LAB_TEST(test_relay_address_may_be_left_out),
        LAB_TEST(test_a_relay_that_makes_no_sense),
        LAB_TEST(test_a_flooded_control_connection),
        LAB_TEST(test_idle_associations_end),
        LAB_TEST(test_a_proxy_without_udp_is_remembered),
        LAB_TEST(test_a_failed_dial_is_not_repeated_at_once),
        LAB_TEST(test_without_resources_datagrams_are_lost),
        LAB_TEST(test_descriptors_are_taken_from_the_idle),
        LAB_TEST(test_blocked_udp),
        LAB_TEST(test_unknown_fake_addresses_are_refused),
        LAB_TEST(test_the_queue_is_bounded),
        LAB_TEST(test_max_flows),
        LAB_TEST(test_an_association_ends_amid_a_batch),
        LAB_TEST(test_more_names_than_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
