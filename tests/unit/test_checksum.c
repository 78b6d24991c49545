/* checksum.c against RFC 1071 word for word. */
#include "stack/packet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tests/unit/wire.h"

static struct packet_info parse(struct wire *w)
{
    struct packet p = {.buffer = w->bytes, .data = w->bytes, .len = w->len};
    struct packet_info info;
    packet_parse(&p, &info);
    return info;
}

static void test_sum_agrees_with_the_naive_one(void **state)
{
    (void)state;
    static uint8_t bytes[70000];
    srand(1);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)rand();
    for (size_t at = 0; at < 9; at++)
        for (size_t len = 0; len < 300; len++)
            assert_int_equal(packet_sum_fold(packet_sum(bytes + at, len, 0)),
                             wire_sum(bytes + at, len, 0));
    assert_int_equal(packet_sum_fold(packet_sum(bytes, 65535, 0)), wire_sum(bytes, 65535, 0));
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(packet_sum_fold(packet_sum(bytes, 65535, 0)), wire_sum(bytes, 65535, 0));
}

static void test_sum_continues(void **state)
{
    (void)state;
    struct wire w;
    wire_payload(w.bytes, 5000);
    uint64_t sum = packet_sum(w.bytes, 1000, 0);
    sum = packet_sum(w.bytes + 1000, 34, sum);
    sum = packet_sum(w.bytes + 1034, 2001, sum);
    assert_int_equal(packet_sum_fold(sum), wire_sum(w.bytes, 3035, 0));
    assert_int_equal(packet_sum_fold(UINT64_MAX), 0xffff);
}

static void test_pseudo_header(void **state)
{
    (void)state;
    struct wire w;
    for (int v4 = 0; v4 <= 1; v4++) {
        wire_udp(&w, v4, 100);
        struct packet_info info = parse(&w);
        uint64_t sum = packet_pseudo_sum(&info.src.addr, &info.dst.addr, IPPROTO_UDP, 65530);
        assert_int_equal(packet_sum_fold(sum), wire_pseudo(w.bytes, IPPROTO_UDP, 65530));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_agrees_with_the_naive_one),
        cmocka_unit_test(test_sum_continues),
        cmocka_unit_test(test_pseudo_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
