/* packet_build.c: what culvert answers, checked by the parser and by naive checksums. */
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

static struct endpoint endpoint_of(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

static void test_build_udp(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, 17, 1472, 65507};
    static struct wire w;
    static uint8_t payload[65507];
    wire_payload(payload, sizeof(payload));
    for (size_t i = 0; i < 10; i++) {
        bool v4 = i % 2;
        struct endpoint src = endpoint_of(v4 ? "203.0.113.5:53" : "[2001:db8::5]:53");
        struct endpoint dst = endpoint_of(v4 ? "198.18.0.1:40000" : "[fd00::1]:40000");
        size_t len = lengths[i / 2];
        struct iovec slice = {.iov_base = payload, .iov_len = len};
        size_t used = packet_build_udp(w.bytes, &src, &dst, &slice, false);
        assert_int_equal(used, v4 ? 28 : 48);
        memcpy(w.bytes + used, payload, len);
        w.len = used + len;
        struct packet_info info = parse(&w);
        assert_int_equal(info.verdict, PACKET_UDP);
        assert_true(endpoint_equal(&info.src, &src) && endpoint_equal(&info.dst, &dst));
        assert_int_equal(info.len, w.len);
        packet_build_udp(w.bytes, &src, &dst, &slice, true);
        assert_int_equal(wire_get16(w.bytes + used - 2),
                         wire_pseudo(w.bytes, IPPROTO_UDP, 8 + len));
    }
}

/* A checksum that comes out as 0 is sent as 0xffff. */
static void test_build_udp_checksum_of_zero(void **state)
{
    (void)state;
    struct endpoint src = endpoint_of("203.0.113.5:53"), dst = endpoint_of("198.18.0.1:40000");
    uint8_t out[PACKET_IP_UDP_HEADER_MAX], payload[2] = {0, 0};
    struct iovec slice = {.iov_base = payload, .iov_len = 2};
    packet_build_udp(out, &src, &dst, &slice, false);
    memcpy(payload, out + 26, 2);
    packet_build_udp(out, &src, &dst, &slice, false);
    assert_int_equal(wire_get16(out + 26), 0xffff);
}

struct unreachable_row {
    enum unreachable why;
    uint8_t v4_code, v6_code;
};

static void test_unreachable(void **state)
{
    (void)state;
    static const struct unreachable_row rows[] = {{UNREACHABLE_NETWORK, 0, 0},
                                                  {UNREACHABLE_HOST, 1, 3},
                                                  {UNREACHABLE_PORT, 3, 4},
                                                  {UNREACHABLE_PROHIBITED, 13, 1}};
    static struct wire w;
    uint8_t out[PACKET_ICMP_ERROR_MAX];
    for (size_t i = 0; i < 16; i++) {
        const struct unreachable_row *row = &rows[i / 4];
        bool v4 = i % 2;
        size_t payload = i % 4 < 2 ? 5 : 3000;
        wire_udp(&w, v4, payload);
        size_t len = packet_build_unreachable(out, w.bytes, w.len, row->why);
        size_t icmp = v4 ? 20 : 40, limit = v4 ? 576 : 1280;
        assert_int_equal(len, payload == 5 ? icmp + 8 + w.len : limit);
        assert_int_equal(out[icmp], v4 ? 3 : 1);
        assert_int_equal(out[icmp + 1], v4 ? row->v4_code : row->v6_code);
        assert_memory_equal(out + icmp + 8, w.bytes, len - icmp - 8);
        uint8_t protocol = v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
        assert_int_equal(out[v4 ? 9 : 6], protocol);
        assert_true(!v4 || wire_ipv4_checksum_right(out));
        assert_true(wire_transport_checksum_right(out, icmp, len, protocol));
        assert_memory_equal(out + (v4 ? 12 : 8), w.bytes + (v4 ? 16 : 24), v4 ? 4 : 16);
        assert_memory_equal(out + (v4 ? 16 : 24), w.bytes + (v4 ? 12 : 8), v4 ? 4 : 16);
    }
}

static void test_unreachable_not_sent(void **state)
{
    (void)state;
    static struct wire w;
    uint8_t out[PACKET_ICMP_ERROR_MAX];
    wire_echo(&w, true, 5);
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
    wire_echo(&w, false, 5);
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
    wire_fragment(&w, true, 1480, true, 800);
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
    wire_udp(&w, true, 5);
    w.bytes[16] = 224;
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
    wire_udp(&w, true, 5);
    memset(w.bytes + 12, 0, 4);
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
    wire_udp(&w, false, 5);
    for (size_t len = 0; len < 40; len++)
        assert_int_equal(packet_build_unreachable(out, w.bytes, len, UNREACHABLE_HOST), 0);
    w.bytes[0] = 0x90;
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len, UNREACHABLE_HOST), 0);
}

/* Bytes after the packet's own end are not quoted. */
static void test_unreachable_quotes_the_packet_only(void **state)
{
    (void)state;
    static struct wire w;
    uint8_t out[PACKET_ICMP_ERROR_MAX];
    wire_udp(&w, true, 5);
    assert_int_equal(packet_build_unreachable(out, w.bytes, w.len + 10, UNREACHABLE_PORT),
                     28 + w.len);
}

static void test_echo_reply(void **state)
{
    (void)state;
    static struct wire w, request;
    for (size_t payload = 0; payload < 600; payload++) {
        bool v4 = payload % 2;
        wire_echo(&w, v4, payload);
        w.bytes[v4 ? 8 : 7] = 3;
        if (v4)
            wire_ipv4_checksum(w.bytes);
        request = w;
        struct packet_info info = parse(&w);
        packet_make_echo_reply(w.bytes, &info);
        uint8_t protocol = v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
        assert_int_equal(w.bytes[w.transport], v4 ? 0 : 129);
        assert_true(!v4 || wire_ipv4_checksum_right(w.bytes));
        assert_true(wire_transport_checksum_right(w.bytes, w.transport, w.len, protocol));
        assert_memory_equal(w.bytes + w.transport + 4, request.bytes + w.transport + 4,
                            payload + 4);
        assert_memory_equal(w.bytes + (v4 ? 12 : 8), v4 ? wire_target4 : wire_target6, v4 ? 4 : 16);
        assert_memory_equal(w.bytes + (v4 ? 16 : 24), v4 ? wire_app4 : wire_app6, v4 ? 4 : 16);
        assert_int_equal(w.bytes[v4 ? 8 : 7], 64);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_build_udp),
        cmocka_unit_test(test_build_udp_checksum_of_zero),
        cmocka_unit_test(test_unreachable),
        cmocka_unit_test(test_unreachable_not_sent),
        cmocka_unit_test(test_unreachable_quotes_the_packet_only),
        cmocka_unit_test(test_echo_reply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
