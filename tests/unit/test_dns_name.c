#include "core/dns/dns_name.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* Read a name at `at` of a message. */
static bool read_at(const void *message, size_t len, size_t at, struct dns_name *out, size_t *end)
{
    struct reader r = reader_over(message, len);
    reader_skip(&r, at);
    bool ok = dns_name_read(&r, out);
    assert_true(ok != r.bad);
    *end = reader_used(&r);
    return ok;
}

static struct dns_name parse(const char *text)
{
    struct dns_name name;
    assert_true(dns_name_parse(text, &name));
    return name;
}

static void assert_text(const struct dns_name *name, const char *expected)
{
    char text[DNS_TEXT_SIZE];
    assert_true(dns_name_text(name, text));
    assert_string_equal(text, expected);
}

static void test_plain_names(void **state)
{
    (void)state;
    static const char wire[] = "\3www\7Example\3com";
    struct dns_name name;
    size_t end;
    assert_true(read_at(wire, sizeof(wire), 0, &name, &end));
    assert_int_equal(end, sizeof(wire));
    assert_int_equal(name.len, sizeof(wire));
    assert_text(&name, "www.Example.com");
    dns_name_lower(&name);
    assert_text(&name, "www.example.com");

    assert_true(read_at("", 1, 0, &name, &end)); /* the root */
    assert_int_equal(name.len, 1);
    assert_text(&name, "");
    for (size_t len = 0; len < sizeof(wire); len++)
        assert_false(read_at(wire, len, 0, &name, &end));
}

static void test_compressed_names(void **state)
{
    (void)state;
    /* Behind a header, 12: "a.b.", 17: "c" -> 14 ("c.b."), 21: -> 17, 23: "x" -> 21 */
    static const uint8_t wire[] = {0, 0,   0, 0, 0,   0,    0,  0,    0,  0, 0,   0,    1, 'a',
                                   1, 'b', 0, 1, 'c', 0xc0, 14, 0xc0, 17, 1, 'x', 0xc0, 21};
    struct dns_name name;
    size_t end;
    assert_true(read_at(wire, sizeof(wire), 17, &name, &end));
    assert_text(&name, "c.b");
    assert_int_equal(end, 21);
    assert_true(read_at(wire, sizeof(wire), 21, &name, &end));
    assert_text(&name, "c.b");
    assert_int_equal(end, 23);
    assert_true(read_at(wire, sizeof(wire), 23, &name, &end));
    assert_text(&name, "x.c.b");
    assert_int_equal(end, 27);
    assert_false(read_at(wire, sizeof(wire) - 1, 23, &name, &end)); /* half a pointer */
}

static void test_pointers_that_lead_nowhere(void **state)
{
    (void)state;
    struct dns_name name;
    size_t end;
    static const struct {
        const char *what, *bytes; /* from offset 12 on */
        size_t len, at;
    } cases[] = {
        {"to itself", "\xc0\x0c", 2, 0},           {"to its own beginning", "\1a\xc0\x0c", 4, 0},
        {"in a circle", "\xc0\x0e\xc0\x0c", 4, 2}, {"forward", "\xc0\x0e\1a", 5, 0},
        {"out of the message", "\xff\xff", 2, 0},  {"into its own middle", "\0\1a\xc0\x0e", 5, 1},
        {"into the header", "\xc0\x00", 2, 0},     {"a reserved type of label", "\x40\x00", 2, 0},
        {"another one", "\x80\x00", 2, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t message[64] = {0};
        memcpy(message + 12, cases[i].bytes, cases[i].len);
        if (read_at(message, 12 + cases[i].len, 12 + cases[i].at, &name, &end))
            fail_msg("%s", cases[i].what);
    }
}

static void test_limits(void **state)
{
    (void)state;
    /* 63 + 63 + 63 + 61 bytes of labels: 255 on the wire, 253 as text. */
    uint8_t wire[300];
    size_t used = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t length = i < 3 ? 63 : 61;
        wire[used++] = length;
        memset(wire + used, 'a' + i, length);
        used += length;
    }
    wire[used++] = 0;
    struct dns_name name, again;
    size_t end;
    assert_int_equal(used, 255);
    assert_true(read_at(wire, used, 0, &name, &end));
    assert_int_equal(name.len, 255);
    char text[DNS_TEXT_SIZE];
    assert_true(dns_name_text(&name, text));
    assert_int_equal(strlen(text), DNS_TEXT_MAX);
    assert_true(dns_name_parse(text, &again));
    assert_true(dns_name_equal(&name, &again));

    wire[192] = 62; /* one byte more in the last label */
    memset(wire + 193, 'd', 62);
    wire[255] = 0;
    assert_false(read_at(wire, 256, 0, &name, &end));
    wire[192] = 60; /* and a label of one byte: the root has no room */
    wire[253] = 1;
    wire[254] = 'e';
    wire[255] = 0;
    assert_false(read_at(wire, 256, 0, &name, &end));

    /* Compression cannot make a name longer either. */
    uint8_t chain[600] = {0};
    size_t at = 13; /* the root at 12 */
    for (int i = 0; i < 5; i++) {
        size_t before = at;
        chain[at] = 60;
        memset(chain + at + 1, 'x', 60);
        at += 61;
        size_t target = i == 0 ? 12 : before - 63;
        chain[at++] = (uint8_t)(0xc0 | target >> 8);
        chain[at++] = (uint8_t)target;
        assert_true(read_at(chain, at, before, &name, &end) == (i < 4));
    }
}

static void test_text_that_is_no_host_name(void **state)
{
    (void)state;
    struct dns_name name;
    char text[DNS_TEXT_SIZE];
    size_t end;
    static const char *const bad[] = {"\3a.b", "\3a b", "\3a\nb", "\3a\177b", "\3a\x1b[", "\1."};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_true(read_at(bad[i], strlen(bad[i]) + 1, 0, &name, &end));
        assert_false(dns_name_text(&name, text));
    }
    assert_true(read_at("\3a\0b", 5, 0, &name, &end));
    assert_false(dns_name_text(&name, text));
    assert_true(read_at("\3_\xc3\xa4", 5, 0, &name, &end));
    assert_true(dns_name_text(&name, text));
    assert_string_equal(text, "_\xc3\xa4");

    assert_false(dns_name_parse("a..b", &name));
    assert_false(dns_name_parse(".a", &name));
    char label[66];
    memset(label, 'a', sizeof(label));
    label[64] = '\0';
    assert_false(dns_name_parse(label, &name));
    label[63] = '\0';
    assert_true(dns_name_parse(label, &name));
    struct dns_name with = parse("a.b."), without = parse("a.b");
    assert_true(dns_name_equal(&with, &without));
}

static void test_within(void **state)
{
    (void)state;
    struct dns_name name = parse("www.LOCALhost");
    assert_true(dns_name_within(&name, "localhost"));
    assert_true(dns_name_within(&name, "www.localhost"));
    assert_false(dns_name_within(&name, "a.www.localhost"));
    assert_false(dns_name_within(&name, "host"));
    assert_false(dns_name_within(&name, "ocalhost"));
    assert_true(dns_name_within(&name, ""));
    name = parse("");
    assert_false(dns_name_within(&name, "localhost"));
    /* A label that looks like the domain's wire form from its middle on. */
    name = parse("x\4test");
    assert_false(dns_name_within(&name, "test"));
}

static void test_reverse(void **state)
{
    (void)state;
    static const struct {
        const char *name, *address;
    } good[] = {
        {"1.0.18.198.in-addr.arpa", "198.18.0.1"},
        {"255.255.19.198.IN-ADDR.ARPA", "198.19.255.255"},
        {"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.E.F.A.C.0.0.d.f.ip6.arpa",
         "fd00:cafe::1"},
    };
    static const char *const bad[] = {
        "in-addr.arpa",
        "0.18.198.in-addr.arpa",
        "5.1.0.18.198.in-addr.arpa",
        "256.0.18.198.in-addr.arpa",
        "01.0.18.198.in-addr.arpa",
        "1000.0.18.198.in-addr.arpa",
        "a.0.18.198.in-addr.arpa",
        "1.0.18.198.in-addr.arpa.example",
        "1.0.18.198.example",
        "ip6.arpa",
        "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
        "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
        "g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
        "00.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
        "",
    };
    struct addr got, expected;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct dns_name name = parse(good[i].name);
        assert_true(dns_name_reverse(&name, &got));
        assert_true(addr_parse(good[i].address, &expected));
        assert_true(addr_equal(&got, &expected));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct dns_name name = parse(bad[i]);
        assert_false(dns_name_reverse(&name, &got));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_names),
        cmocka_unit_test(test_compressed_names),
        cmocka_unit_test(test_pointers_that_lead_nowhere),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_text_that_is_no_host_name),
        cmocka_unit_test(test_within),
        cmocka_unit_test(test_reverse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
