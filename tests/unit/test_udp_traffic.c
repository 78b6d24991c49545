/* UDP associations: what passes through them, by size, in super-packets, by name, directly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "core/base/log.h"
#include "tests/unit/udp_lab.h"

/* --- sizes and super-packets ------------------------------------------------------------------ */

static void test_sizes(void **state)
{
    struct lab *l = *state;
    static const size_t sizes[] = {0, 1, 2, 511, 1472, 1473, 9000, 60000, 65497};
    open_association(l);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        static uint8_t expected[PAYLOAD_MAX];
        struct socks5_datagram d;
        fill(payload_of(l), sizes[i], (unsigned)i);
        fill(expected, sizes[i], (unsigned)i);
        app_sends_bytes(l, "10.0.0.1:5000", "192.0.2.1:7", sizes[i], 0);
        assert_true(relay_gets(l, &d));
        assert_int_equal(d.payload_len, sizes[i]);
        assert_memory_equal(d.payload, expected, sizes[i]);
        struct target from = {.addr = at("192.0.2.1:7").addr, .port = 7};
        relay_sends(l, &from, expected, sizes[i]);
        turns(l, 3);
        assert_int_equal(sent_count, i + 1);
        assert_int_equal(sent[i].len, sizes[i]);
        assert_memory_equal(sent[i].bytes, expected, sizes[i]);
    }
    /* With its header it fits no IPv4 datagram: lost, and nothing else is. */
    app_sends_bytes(l, "10.0.0.1:5000", "192.0.2.1:7", 65507, 0);
    app_sends(l, "10.0.0.1:5000", "192.0.2.1:7", "after");
    expect_relayed(l, "192.0.2.1:7", "after");
}

static void expect_segments(struct lab *l, size_t total, size_t size, const uint8_t *expected)
{
    for (size_t done = 0; done < total;) {
        size_t len = total - done < size ? total - done : size;
        struct socks5_datagram d;
        assert_true(relay_gets(l, &d));
        assert_int_equal(d.payload_len, len);
        assert_memory_equal(d.payload, expected + done, len);
        done += len;
    }
}

static void test_super_packets_to_the_relay(void **state)
{
    struct lab *l = *state;
    static const struct {
        size_t total;
        uint16_t size;
    } cases[] = {{3000, 1000}, {2500, 1000}, {60000, 1200}, {64, 1}, {1000, 1000}, {130, 1}};
    static uint8_t expected[PAYLOAD_MAX];
    open_association(l);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct socks5_datagram d;
        fill(payload_of(l), cases[i].total, (unsigned)i);
        fill(expected, cases[i].total, (unsigned)i);
        app_sends_bytes(l, "10.0.0.1:5000", "192.0.2.1:7", cases[i].total, cases[i].size);
        expect_segments(l, cases[i].total, cases[i].size, expected);
        assert_false(relay_gets(l, &d));
    }
    /* One that has to wait is kept as single datagrams. */
    fill(payload_of(l), 2500, 9);
    fill(expected, 2500, 9);
    app_sends_bytes(l, "10.0.0.2:5000", "192.0.2.1:7", 2500, 1000);
    proxy_accepts(l, 1);
    expect_segments(l, 2500, 1000, expected);
    /* One that is refused is quoted by its first datagram. */
    app_sends_bytes(l, "10.0.0.2:5000", "198.18.1.222:7", 2500, 1000);
    assert_int_equal(unreachables[0].len, 1000);
}

/* A whole batch of equal and unequal datagrams to several targets, from two sources. */
static void test_a_mixed_batch(void **state)
{
    struct lab *l = *state;
    enum { COUNT = 300, STEP = 400 };
    static uint8_t buffers[COUNT][STEP + HEADROOM];
    static const char *const targets[] = {"192.0.2.1:7", "192.0.2.2:8", "198.18.1.5:9"};
    open_association(l);
    struct endpoint from = at("10.0.0.1:5000");
    for (unsigned i = 0; i < COUNT; i++) {
        struct endpoint to = at(targets[i % 7 == 0 ? 2 : i % 2]);
        size_t len = i % 5 == 0 ? i : 100;
        fill(buffers[i] + HEADROOM, len, i);
        udp_flows_datagram(l->worker.udp, &from, &to, buffers[i] + HEADROOM, len, 0, HEADROOM);
    }
    udp_flows_batch_end(l->worker.udp);
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t expected[STEP];
        struct socks5_datagram d;
        assert_true(relay_gets(l, &d));
        size_t len = i % 5 == 0 ? i : 100;
        fill(expected, len, i);
        assert_int_equal(d.payload_len, len);
        assert_memory_equal(d.payload, expected, len);
        assert_int_equal(d.from.port, i % 7 == 0 ? 9 : i % 2 == 0 ? 7 : 8);
        assert_int_equal(d.is_name, i % 7 == 0);
    }
}

/* 40 datagrams of one remote, two others amid them, a short one at the end. */
static void relay_sends_a_train(struct lab *l)
{
    uint8_t bytes[1400];
    struct target remote = {.addr = at("192.0.2.1:7").addr, .port = 7};
    struct target other = {.addr = at("192.0.2.2:7").addr, .port = 7};
    for (unsigned i = 0; i < 40; i++) {
        fill(bytes, sizeof(bytes), i);
        relay_sends(l, i == 10 || i == 20 ? &other : &remote, bytes, i == 39 ? 77 : sizeof(bytes));
    }
    turns(l, 10);
}

static void expect_the_train(unsigned calls_max)
{
    unsigned next = 0;
    for (unsigned i = 0; i < sent_count; i++) {
        const struct record *r = &sent[i];
        size_t size = r->gso_size ? r->gso_size : r->len;
        for (size_t done = 0; done < r->len; done += size, next++) {
            uint8_t expected[1400];
            size_t len = r->len - done < size ? r->len - done : size;
            fill(expected, sizeof(expected), next);
            assert_int_equal(len, next == 39 ? 77 : 1400);
            assert_memory_equal(r->bytes + done, expected, len);
            assert_int_equal(addr_v4_bytes(&r->src.addr)[3], next == 10 || next == 20 ? 2 : 1);
        }
    }
    assert_int_equal(next, 40);
    assert_true(sent_count <= calls_max);
}

static void test_answers_alone_without_uso(void **state)
{
    struct lab *l = *state;
    open_association(l);
    relay_sends_a_train(l);
    expect_the_train(40);
    assert_int_equal(sent_count, 40);
}

static void test_answers_are_joined_with_uso(void **state)
{
    struct lab *l = *state;
    open_association(l);
    relay_sends_a_train(l);
    expect_the_train(8);
}

static void test_large_answers_are_not_joined(void **state)
{
    struct lab *l = *state;
    open_association(l);
    static uint8_t bytes[3000];
    struct target remote = {.addr = at("192.0.2.1:7").addr, .port = 7};
    for (unsigned i = 0; i < 3; i++)
        relay_sends(l, &remote, bytes, sizeof(bytes)); /* more than the device's MTU */
    turns(l, 5);
    assert_int_equal(sent_count, 3);
    assert_int_equal(sent[0].gso_size, 0);
}

/* --- names ------------------------------------------------------------------------------------ */

static void test_answers_of_names(void **state)
{
    struct lab *l = *state;
    open_association(l);
    app_sends(l, "10.0.0.1:5000", "198.18.1.1:443", "x");
    expect_relayed(l, "n1.example:443", "x");
    assert_int_equal(holds, 1);
    /* The proxy answers with the name, in whatever case. */
    struct target name = {.name = "N1.EXAMPLE", .port = 443};
    relay_sends(l, &name, "by name", 7);
    turns(l, 3);
    expect_sent(0, "198.18.1.1:443", "10.0.0.1:5000", "by name");
    /* Or with an address, which stays the name's from then on. */
    relay_sends_from(l, "203.0.113.1:443", "by address");
    relay_sends_from(l, "203.0.113.2:443", "a stranger on that port");
    relay_sends_from(l, "203.0.113.1:443", "again");
    relay_sends_from(l, "203.0.113.1:444", "another port");
    expect_sent(1, "198.18.1.1:443", "10.0.0.1:5000", "by address");
    expect_sent(2, "203.0.113.2:443", "10.0.0.1:5000", "a stranger on that port");
    expect_sent(3, "198.18.1.1:443", "10.0.0.1:5000", "again");
    expect_sent(4, "203.0.113.1:444", "10.0.0.1:5000", "another port");
}

static void test_answers_of_several_names(void **state)
{
    struct lab *l = *state;
    open_association(l);
    app_sends(l, "10.0.0.1:5000", "198.18.1.1:443", "x");
    app_sends(l, "10.0.0.1:5000", "198.18.1.2:443", "x");
    app_sends(l, "10.0.0.1:5000", "203.0.113.7:443", "x");
    app_sends(l, "10.0.0.1:5000", "198.18.1.3:53", "x");
    struct socks5_datagram d;
    while (relay_gets(l, &d))
        continue;
    relay_sends_from(l, "203.0.113.7:443", "asked by address");
    relay_sends_from(l, "203.0.113.2:443", "the last name asked first");
    relay_sends_from(l, "203.0.113.1:443", "then the one before");
    relay_sends_from(l, "203.0.113.9:443", "then nobody's");
    relay_sends_from(l, "[2001:db8::3]:53", "of the other family");
    expect_sent(0, "203.0.113.7:443", "10.0.0.1:5000", "asked by address");
    expect_sent(1, "198.18.1.2:443", "10.0.0.1:5000", "the last name asked first");
    expect_sent(2, "198.18.1.1:443", "10.0.0.1:5000", "then the one before");
    expect_sent(3, "203.0.113.9:443", "10.0.0.1:5000", "then nobody's");
    expect_sent(4, "198.18.1.3:53", "10.0.0.1:5000", "of the other family");
}

/* --- direct:// -------------------------------------------------------------------------------- */

static void resolve_to(unsigned i, const char *address)
{
    struct resolver_answer answer = {.count = address ? 1 : 0, .error = "no such name"};
    if (address)
        assert_true(addr_parse(address, &answer.addrs[0]));
    assert_true(i < lookup_count && !lookups[i].cancelled);
    lookups[i].fn(lookups[i].arg, &answer);
}

static void test_direct_by_name(void **state)
{
    struct lab *l = *state;
    char dst[32];
    char text[32];
    direct = true;
    out.allow_loopback = true;
    (void)snprintf(dst, sizeof(dst), "198.18.1.1:%u", l->relay_address.port);
    app_sends(l, "10.0.0.1:5000", dst, "one");
    app_sends(l, "10.0.0.1:5000", dst, "two");
    assert_int_equal(lookup_count, 1);
    assert_string_equal(lookups[0].name, "n1.example");
    resolve_to(0, "127.0.0.1");
    app_sends(l, "10.0.0.1:5000", dst, "three");
    for (int i = 0; i < 3; i++) {
        struct sockaddr_storage from;
        socklen_t from_len = sizeof(from);
        ssize_t n = recvfrom(l->relay, text, sizeof(text), 0, (struct sockaddr *)&from, &from_len);
        assert_int_equal(n, i == 2 ? 5 : 3);
        assert_int_equal(sendto(l->relay, text, (size_t)n, 0, (struct sockaddr *)&from, from_len),
                         n);
    }
    turns(l, 5);
    assert_int_equal(sent_count, 3);
    expect_sent(0, dst, "10.0.0.1:5000", "one");
    expect_sent(2, dst, "10.0.0.1:5000", "three");
    assert_int_equal(lookup_count, 1);
    assert_int_equal(dial_count, 0);
}

static void test_direct_does_not_lead_to_loopback(void **state)
{
    struct lab *l = *state;
    direct = true;
    app_sends(l, "10.0.0.1:5000", "127.0.0.1:7", "x");
    expect_unreachable(0, "10.0.0.1:5000", "127.0.0.1:7");
    app_sends(l, "10.0.0.1:5000", "198.18.1.1:7", "x");
    resolve_to(0, "127.0.0.1");
    expect_unreachable(1, "10.0.0.1:5000", "198.18.1.1:7");
    app_sends(l, "10.0.0.1:5000", "198.18.1.2:7", "x");
    resolve_to(1, "::1");
    expect_unreachable(2, "10.0.0.1:5000", "198.18.1.2:7");
    app_sends(l, "10.0.0.1:5000", "198.18.1.3:7", "x");
    resolve_to(2, NULL);
    expect_unreachable(3, "10.0.0.1:5000", "198.18.1.3:7");
    assert_int_equal(holds, 0);
}

static void test_direct_gives_up_its_lookups(void **state)
{
    struct lab *l = *state;
    direct = true;
    app_sends(l, "10.0.0.1:5000", "198.18.1.1:7", "x");
    assert_true(udp_flows_evict(l->worker.udp));
    assert_true(lookups[0].cancelled);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        LAB_TEST(test_sizes),
        LAB_TEST(test_super_packets_to_the_relay),
        LAB_TEST(test_a_mixed_batch),
        LAB_TEST(test_answers_alone_without_uso),
        USO_TEST(test_answers_are_joined_with_uso),
        USO_TEST(test_large_answers_are_not_joined),
        LAB_TEST(test_answers_of_names),
        LAB_TEST(test_answers_of_several_names),
        LAB_TEST(test_direct_by_name),
        LAB_TEST(test_direct_does_not_lead_to_loopback),
        LAB_TEST(test_direct_gives_up_its_lookups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
