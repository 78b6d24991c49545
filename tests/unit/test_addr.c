#include "core/base/addr.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static struct addr addr_of(const char *text)
{
    struct addr a;
    assert_true(addr_parse(text, &a));
    return a;
}

static void test_text_round_trip(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "192.0.2.1", "0.0.0.0",     "255.255.255.255", "::",
        "::1",       "2001:db8::1", "fe80::1",         "2001:db8:1111:2222:3333:4444:5555:6666"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct addr a = addr_of(texts[i]);
        char buf[ADDR_TEXT_MAX];
        assert_string_equal(addr_format(&a, buf), texts[i]);
    }
}

static void test_rejects_what_is_no_address(void **state)
{
    (void)state;
    static const char *const texts[] = {"",         "1.2.3",    "1.2.3.256",    "1.2.3.4 ",
                                        "01.2.3.4", "[::1]",    "fe80::1%eth0", "example",
                                        ":::",      "1.2.3.4:5"};
    struct addr a;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        assert_false(addr_parse(texts[i], &a));
}

static void test_families(void **state)
{
    (void)state;
    const uint8_t v4[4] = {192, 0, 2, 7};
    struct addr a = addr_from_v4(v4);
    assert_true(addr_is_v4(&a));
    assert_memory_equal(addr_v4_bytes(&a), v4, 4);
    struct addr mapped = addr_of("::ffff:192.0.2.7");
    assert_true(addr_equal(&a, &mapped));
    struct addr b = addr_of("2001:db8::7");
    assert_false(addr_is_v4(&b));
    assert_false(addr_equal(&a, &b));
}

struct class_row {
    const char *text;
    bool unspecified, loopback, multicast, link_local, broadcast, routable;
};

static void test_classes(void **state)
{
    (void)state;
    static const struct class_row rows[] = {
        {"192.0.2.1", false, false, false, false, false, true},
        {"10.0.0.1", false, false, false, false, false, true},
        {"0.0.0.0", true, false, false, false, false, false},
        {"0.0.0.1", false, false, false, false, false, false},
        {"127.0.0.1", false, true, false, false, false, true},
        {"127.255.255.255", false, true, false, false, false, true},
        {"169.254.0.1", false, false, false, true, false, false},
        {"169.253.0.1", false, false, false, false, false, true},
        {"223.255.255.255", false, false, false, false, false, true},
        {"224.0.0.1", false, false, true, false, false, false},
        {"239.255.255.255", false, false, true, false, false, false},
        {"240.0.0.1", false, false, false, false, false, false},
        {"255.255.255.255", false, false, false, false, true, false},
        {"::", true, false, false, false, false, false},
        {"::1", false, true, false, false, false, true},
        {"::2", false, false, false, false, false, true},
        {"2001:db8::1", false, false, false, false, false, true},
        {"fe80::1", false, false, false, true, false, false},
        {"febf::1", false, false, false, true, false, false},
        {"fec0::1", false, false, false, false, false, true},
        {"ff02::1", false, false, true, false, false, false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct addr a = addr_of(rows[i].text);
        assert_int_equal(addr_is_unspecified(&a), rows[i].unspecified);
        assert_int_equal(addr_is_loopback(&a), rows[i].loopback);
        assert_int_equal(addr_is_multicast(&a), rows[i].multicast);
        assert_int_equal(addr_is_link_local(&a), rows[i].link_local);
        assert_int_equal(addr_is_broadcast(&a), rows[i].broadcast);
        assert_int_equal(addr_is_routable(&a), rows[i].routable);
    }
}

static void test_endpoint_parse(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *formatted;
    } good[] = {
        {"192.0.2.1:80", "192.0.2.1:80"},           {"192.0.2.1", "192.0.2.1:53"},
        {"[2001:db8::1]:443", "[2001:db8::1]:443"}, {"[2001:db8::1]", "[2001:db8::1]:53"},
        {"2001:db8::1", "[2001:db8::1]:53"},        {"192.0.2.1:0", "192.0.2.1:0"},
        {"192.0.2.1:65535", "192.0.2.1:65535"},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct endpoint e;
        char buf[ENDPOINT_TEXT_MAX];
        assert_true(endpoint_parse(good[i].text, 53, &e));
        assert_string_equal(endpoint_format(&e, buf), good[i].formatted);
    }
    static const char *const bad[] = {"",
                                      "192.0.2.1:",
                                      "192.0.2.1:65536",
                                      ":80",
                                      "192.0.2.1:+1",
                                      "192.0.2.1:1x",
                                      "[192.0.2.1]:80",
                                      "[::1",
                                      "[::1]80",
                                      "[::1]:",
                                      "host:80",
                                      "[]:80",
                                      "192.0.2.1: 80",
                                      "192.0.2.1:4294967376"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct endpoint e;
        assert_false(endpoint_parse(bad[i], 53, &e));
    }
}

static void test_endpoint_equal(void **state)
{
    (void)state;
    struct endpoint a = {addr_of("192.0.2.1"), 80};
    struct endpoint b = a;
    assert_true(endpoint_equal(&a, &b));
    b.port = 81;
    assert_false(endpoint_equal(&a, &b));
    b = (struct endpoint){addr_of("192.0.2.2"), 80};
    assert_false(endpoint_equal(&a, &b));
    assert_int_equal(sizeof(struct endpoint), 18);
}

static void test_sockaddr_round_trip(void **state)
{
    (void)state;
    static const char *const texts[] = {"192.0.2.1:80", "[2001:db8::1]:443"};
    for (size_t i = 0; i < 2; i++) {
        struct endpoint e;
        struct endpoint back;
        struct sockaddr_storage sa;
        assert_true(endpoint_parse(texts[i], 0, &e));
        socklen_t len = endpoint_to_sockaddr(&e, &sa);
        assert_int_equal(len, i == 0 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
        assert_true(endpoint_from_sockaddr((struct sockaddr *)&sa, &back));
        assert_true(endpoint_equal(&e, &back));
    }
}

static void test_sockaddr_mapped_and_foreign(void **state)
{
    (void)state;
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(7)};
    struct addr v4 = addr_of("192.0.2.9");
    memcpy(&in6.sin6_addr, v4.bytes, 16);
    struct endpoint e;
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&in6, &e));
    assert_true(addr_is_v4(&e.addr));
    assert_int_equal(e.port, 7);
    struct sockaddr_storage un = {.ss_family = AF_UNIX};
    assert_false(endpoint_from_sockaddr((struct sockaddr *)&un, &e));
}

static void test_cidr(void **state)
{
    (void)state;
    static const struct {
        const char *range;
        const char *addr;
        bool inside;
    } rows[] = {
        {"198.18.0.1/15", "198.19.255.255", true},
        {"198.18.0.0/15", "198.20.0.0", false},
        {"0.0.0.0/0", "203.0.113.1", true},
        {"0.0.0.0/0", "2001:db8::1", false},
        {"::/0", "192.0.2.1", false},
        {"::/0", "2001:db8::1", true},
        {"192.0.2.1/32", "192.0.2.1", true},
        {"192.0.2.1/32", "192.0.2.0", false},
        {"192.0.2.1", "192.0.2.1", true},
        {"192.0.2.1", "192.0.2.2", false},
        {"fd00::/8", "fdff::1", true},
        {"fd00::/8", "fc00::1", false},
        {"2001:db8::/33", "2001:db8:8000::", false},
        {"2001:db8::1/128", "2001:db8::1", true},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct cidr range;
        struct addr a = addr_of(rows[i].addr);
        assert_true(cidr_parse(rows[i].range, &range));
        assert_int_equal(cidr_contains(&range, &a), rows[i].inside);
    }
    static const char *const bad[] = {"",        "/8",          "10.0.0.0/", "10.0.0.0/33",
                                      "::/129",  "10.0.0.0/-1", "10.0/8",    "10.0.0.0/8/8",
                                      "::/1281", "x/8"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct cidr range;
        assert_false(cidr_parse(bad[i], &range));
    }
    struct cidr range;
    char buf[CIDR_TEXT_MAX];
    assert_true(cidr_parse("198.18.0.1/15", &range));
    assert_string_equal(cidr_format(&range, buf), "198.18.0.1/15");
    assert_true(cidr_parse("2001:db8:1111:2222:3333:4444:5555:6666/128", &range));
    assert_string_equal(cidr_format(&range, buf), "2001:db8:1111:2222:3333:4444:5555:6666/128");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_round_trip),
        cmocka_unit_test(test_rejects_what_is_no_address),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_endpoint_parse),
        cmocka_unit_test(test_endpoint_equal),
        cmocka_unit_test(test_sockaddr_round_trip),
        cmocka_unit_test(test_sockaddr_mapped_and_foreign),
        cmocka_unit_test(test_cidr),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
