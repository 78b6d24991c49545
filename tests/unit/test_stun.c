#include "core/check/stun.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* RFC 5769, 2.2 and 2.3 have this transaction id; its answers carry more attributes than these. */
static const uint8_t id[STUN_ID_SIZE] = {0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34,
                                         0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae};

static void request(void **state)
{
    (void)state;
    uint8_t buf[STUN_REQUEST_MAX];
    static const uint8_t head[] = {0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42};
    assert_int_equal(stun_write_request(buf, id, false), 20);
    assert_memory_equal(buf, head, sizeof(head));
    assert_memory_equal(buf + 8, id, sizeof(id));
    static const uint8_t change[] = {0x00, 0x03, 0x00, 0x04, 0x00, 0x00, 0x00, 0x06};
    assert_int_equal(stun_write_request(buf, id, true), 28);
    assert_int_equal(buf[3], 8);
    assert_memory_equal(buf + 20, change, sizeof(change));
}

/* A success response around the attributes; returns its length. */
static size_t response(uint8_t *out, const uint8_t *attributes, size_t len)
{
    static const uint8_t cookie[] = {0x21, 0x12, 0xa4, 0x42};
    out[0] = 1;
    out[1] = 1;
    out[2] = (uint8_t)(len >> 8);
    out[3] = (uint8_t)len;
    memcpy(out + 4, cookie, 4);
    memcpy(out + 8, id, sizeof(id));
    memcpy(out + 20, attributes, len);
    return 20 + len;
}

static bool parse(const uint8_t *attributes, size_t len, struct stun_answer *out)
{
    uint8_t message[200];
    return stun_parse_answer(message, response(message, attributes, len), id, out);
}

static void assert_endpoint(const struct endpoint *e, const char *text)
{
    char buf[ENDPOINT_TEXT_MAX];
    assert_string_equal(endpoint_format(e, buf), text);
}

static void addresses(void **state)
{
    (void)state;
    struct stun_answer a;
    /* RFC 5769, 2.2: SOFTWARE "test vector" (padded), then 192.0.2.1:32853. */
    static const uint8_t v4[] = {0x80, 0x22, 0x00, 0x0b, 't',  'e',  's',  't',  ' ',  'v',
                                 'e',  'c',  't',  'o',  'r',  0x20, 0x00, 0x20, 0x00, 0x08,
                                 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43};
    assert_true(parse(v4, sizeof(v4), &a));
    assert_endpoint(&a.mapped, "192.0.2.1:32853");
    assert_false(a.has_other);
    /* RFC 5769, 2.3. */
    static const uint8_t v6[] = {0x00, 0x20, 0x00, 0x14, 0x00, 0x02, 0xa1, 0x47,
                                 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79,
                                 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9};
    assert_true(parse(v6, sizeof(v6), &a));
    assert_endpoint(&a.mapped, "[2001:db8:1234:5678:11:2233:4455:6677]:32853");
    /* The plain form counts where the other is missing, in whatever order they come. */
    static const uint8_t both[] = {0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1,
                                   0x12, 0xa6, 0x43, 0x00, 0x01, 0x00, 0x08, 0x00, 0x01,
                                   0x00, 0x07, 10,   0,    0,    1,    0x80, 0x2c, 0x00,
                                   0x08, 0x00, 0x01, 0x0d, 0x97, 192,  0,    2,    9};
    assert_true(parse(both, sizeof(both), &a));
    assert_endpoint(&a.mapped, "192.0.2.1:32853");
    assert_true(a.has_other);
    assert_endpoint(&a.other, "192.0.2.9:3479");
    assert_true(parse(both + 12, sizeof(both) - 12, &a));
    assert_endpoint(&a.mapped, "10.0.0.1:7");
}

static void nonsense(void **state)
{
    (void)state;
    struct stun_answer a;
    static const uint8_t good[] = {0x00, 0x20, 0x00, 0x08, 0x00, 0x01,
                                   0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43};
    uint8_t message[64];
    size_t len = response(message, good, sizeof(good));
    assert_true(stun_parse_answer(message, len, id, &a));
    for (size_t n = 0; n < len; n++)
        assert_false(stun_parse_answer(message, n, id, &a));
    /* Whatever a byte of the header or of the address' form is changed to. */
    for (size_t i = 0; i < len; i++) {
        if (i == 24 || (i >= 26 && i < len)) /* the zero that is ignored, the port, the address */
            continue;
        message[i] ^= 0x40;
        assert_false(stun_parse_answer(message, len, id, &a));
        message[i] ^= 0x40;
    }
    assert_false(parse(good, 0, &a)); /* without any address */
    static const uint8_t overlong[] = {0x00, 0x20, 0xff, 0xff, 0x00, 0x01, 0xa1, 0x47};
    assert_false(parse(overlong, sizeof(overlong), &a));
    static const uint8_t unpadded[] = {0x80, 0x22, 0x00, 0x03, 'a', 'b', 'c'};
    assert_false(parse(unpadded, sizeof(unpadded), &a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(request),
        cmocka_unit_test(addresses),
        cmocka_unit_test(nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
