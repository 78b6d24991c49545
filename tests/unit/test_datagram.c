/* The UDP header (RFC 1928, 7): written, read back, truncated at every byte, damaged. */
#include "socks/datagram.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct target target_of(const char *address, const char *name, uint16_t port)
{
    struct target t = {.name = name, .port = port};
    if (address)
        assert_true(addr_parse(address, &t.addr));
    return t;
}

static void test_wire_form(void **state)
{
    static const struct {
        const char *address, *name;
        size_t size;
        uint8_t wire[32];
    } cases[] = {
        {"192.0.2.1", NULL, 10, {0, 0, 0, 1, 192, 0, 2, 1, 0x12, 0x34}},
        {"2001:db8::1", NULL, 22, {0, 0, 0, 4, 0x20, 0x01, 0x0d, 0xb8, 0, 0,    0,
                                   0, 0, 0, 0, 0,    0,    0,    0,    1, 0x12, 0x34}},
        {NULL, "ab.c", 11, {0, 0, 0, 3, 4, 'a', 'b', '.', 'c', 0x12, 0x34}},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct target t = target_of(cases[i].address, cases[i].name, 0x1234);
        uint8_t room[SOCKS5_DATAGRAM_HEADER_MAX + 1];
        memset(room, 0xee, sizeof room);
        uint8_t *payload = room + sizeof room;
        assert_int_equal(socks5_datagram_header_size(&t), cases[i].size);
        assert_int_equal(socks5_datagram_prepend(payload, &t), cases[i].size);
        assert_memory_equal(payload - cases[i].size, cases[i].wire, cases[i].size);
        assert_int_equal(payload[-1 - (ptrdiff_t)cases[i].size], 0xee);
    }
}

static void test_longest_name(void **state)
{
    char name[TARGET_NAME_MAX + 1];
    uint8_t room[SOCKS5_DATAGRAM_HEADER_MAX];
    struct socks5_datagram d;
    (void)state;

    memset(name, 'n', TARGET_NAME_MAX);
    name[TARGET_NAME_MAX] = '\0';
    struct target t = {.name = name, .port = 53};
    assert_int_equal(socks5_datagram_prepend(room + sizeof room, &t), sizeof room);
    assert_true(socks5_datagram_parse(room, sizeof room, &d));
    assert_string_equal(d.name, name);
    assert_int_equal(d.payload_len, 0);
}

/* Every cut of a header is refused, every cut of the payload is a shorter datagram. */
static void test_truncated_at_every_byte(void **state)
{
    const struct target targets[] = {target_of("192.0.2.1", NULL, 7),
                                     target_of("2001:db8::1", NULL, 65535),
                                     target_of(NULL, "host.example", 1)};
    (void)state;

    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        uint8_t room[SOCKS5_DATAGRAM_HEADER_MAX + 5];
        uint8_t *payload = room + SOCKS5_DATAGRAM_HEADER_MAX;
        memcpy(payload, "hello", 5);
        size_t header = socks5_datagram_prepend(payload, &targets[i]);
        for (size_t len = 0; len <= header + 5; len++) {
            struct socks5_datagram d;
            bool good = socks5_datagram_parse(payload - header, len, &d);
            assert_int_equal(good, len >= header);
            if (!good)
                continue;
            assert_int_equal(d.is_name, targets[i].name != NULL);
            assert_int_equal(d.from.port, targets[i].port);
            if (d.is_name)
                assert_string_equal(d.name, targets[i].name);
            else
                assert_true(addr_equal(&d.from.addr, &targets[i].addr));
            assert_ptr_equal(d.payload, payload);
            assert_int_equal(d.payload_len, len - header);
        }
    }
}

static void test_fragments_and_types(void **state)
{
    uint8_t wire[32] = {0, 0, 0, 1, 192, 0, 2, 1, 0, 7, 'x'};
    struct socks5_datagram d;
    (void)state;

    for (unsigned fragment = 0; fragment < 256; fragment++) {
        wire[2] = (uint8_t)fragment;
        assert_int_equal(socks5_datagram_parse(wire, sizeof wire, &d), fragment == 0);
    }
    wire[2] = 0;
    wire[4] = 5; /* as a name: five bytes */
    memcpy(wire + 5, "abcde", 5);
    for (unsigned type = 0; type < 256; type++) {
        wire[3] = (uint8_t)type;
        bool known = type == 1 || type == 3 || type == 4;
        assert_int_equal(socks5_datagram_parse(wire, sizeof wire, &d), known);
    }
}

static void test_reserved_is_tolerated(void **state)
{
    const uint8_t wire[] = {0xde, 0xad, 0, 1, 192, 0, 2, 1, 0, 7};
    struct socks5_datagram d;
    (void)state;

    assert_true(socks5_datagram_parse(wire, sizeof wire, &d));
}

static void test_bad_names(void **state)
{
    const uint8_t empty[] = {0, 0, 0, 3, 0, 0, 7, 'x'};
    const uint8_t with_nul[] = {0, 0, 0, 3, 3, 'a', 0, 'b', 0, 7, 'x'};
    struct socks5_datagram d;
    (void)state;

    assert_false(socks5_datagram_parse(empty, sizeof empty, &d));
    assert_false(socks5_datagram_parse(with_nul, sizeof with_nul, &d));
    assert_false(socks5_datagram_parse((const uint8_t *)"", 0, &d));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_form),
        cmocka_unit_test(test_longest_name),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_fragments_and_types),
        cmocka_unit_test(test_reserved_is_tolerated),
        cmocka_unit_test(test_bad_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
