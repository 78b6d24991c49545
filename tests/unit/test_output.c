/*
 * output.c on the device in memory: what arrives is compared with what a naive implementation,
 * below, makes of the same super-packet, byte by byte.
 */
#include "stack/output.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tests/support/device_memory.h"
#include "tests/unit/wire.h"

static const struct device_caps plain = {0}, csum_only = {.csum = true},
                                all = {.csum = true, .tso = true, .uso = true};

static uint8_t popped[PACKET_BUFFER_SIZE];

static struct packet pop(struct device *d)
{
    struct packet p = {.buffer = popped};
    assert_true(device_memory_pop(d, &p));
    return p;
}

static void assert_empty(struct device *d)
{
    struct packet p = {.buffer = popped};
    assert_false(device_memory_pop(d, &p));
}

/* --- TCP ------------------------------------------------------------------------------------ */

enum { FIN = 1, PSH = 8, ACK = 16, ECE = 64, CWR = 128 };

struct tcp_case {
    bool v4;
    uint8_t flags;
    size_t options;
    size_t payload;
    uint16_t mss;
    size_t slice; /* the payload comes in pieces of that size, the first in the headers' entry */
};

/* The packet as the stack hands it over: lengths and checksums empty. */
static size_t hand_over(struct wire *w, const struct tcp_case *c, struct iovec *iov, int *count)
{
    wire_tcp(w, c->v4, c->flags, c->options, c->payload);
    wire_put16(w->bytes + w->transport + 16, 0);
    if (c->v4) {
        wire_put16(w->bytes + 2, 0);
        wire_put16(w->bytes + 4, 0xfffe);
        wire_put16(w->bytes + 10, 0);
    } else {
        wire_put16(w->bytes + 4, 0);
    }
    size_t header_len = w->transport + 20 + c->options;
    *count = 1;
    size_t len = header_len + (c->slice < c->payload ? c->slice : c->payload);
    for (size_t at = 0; at < w->len; at += len, len = c->slice) {
        len = len < w->len - at ? len : w->len - at;
        iov[*count].iov_base = w->bytes + at;
        iov[(*count)++].iov_len = len;
    }
    return header_len;
}

/* The nth segment, made from scratch. */
static void naive_segment(struct wire *out, const struct tcp_case *c, size_t n, bool partial)
{
    static struct wire whole;
    wire_tcp(&whole, c->v4, c->flags, c->options, c->payload);
    size_t header = 20 + c->options, from = n * c->mss;
    size_t len = c->payload - from < c->mss ? c->payload - from : c->mss;
    bool last = from + len == c->payload;
    uint8_t flags = c->flags;
    if (!last)
        flags = (uint8_t)(flags & ~(FIN | PSH));
    if (n > 0)
        flags = (uint8_t)(flags & ~CWR);
    wire_tcp(out, c->v4, flags, c->options, len);
    memcpy(out->bytes + out->transport + header, whole.bytes + whole.transport + header + from,
           len);
    uint32_t sequence = wire_get32(whole.bytes + whole.transport + 4);
    wire_put32(out->bytes + out->transport + 4, sequence + (uint32_t)from);
    if (c->v4) {
        wire_put16(out->bytes + 4, (0xfffe + n) % 65536);
        wire_ipv4_checksum(out->bytes);
    }
    wire_transport_checksum(out, IPPROTO_TCP);
    if (partial)
        wire_put16(out->bytes + out->transport + 16,
                   wire_pseudo(out->bytes, IPPROTO_TCP, header + len));
}

static void check_partial(const struct packet *p, bool v4, uint16_t offset)
{
    assert_int_equal(p->offload.csum, PACKET_CSUM_PARTIAL);
    assert_int_equal(p->offload.csum_start, v4 ? 20 : 40);
    assert_int_equal(p->offload.csum_offset, offset);
}

static void check_segments(const struct tcp_case *c, struct device_caps caps)
{
    static struct wire w, expected;
    struct iovec iov[OUTPUT_IOV_MAX];
    int count;
    struct device *d = device_memory_new(1500, caps);
    size_t header_len = hand_over(&w, c, iov, &count);
    assert_int_equal(output_tcp(d, iov, count, header_len, c->mss), 0);
    size_t n = 0;
    do {
        naive_segment(&expected, c, n, caps.csum);
        struct packet p = pop(d);
        assert_int_equal(p.len, expected.len);
        assert_memory_equal(p.data, expected.bytes, expected.len);
        assert_int_equal(p.offload.gso, PACKET_GSO_NONE);
        if (caps.csum)
            check_partial(&p, c->v4, 16);
        else
            assert_int_equal(p.offload.csum, PACKET_CSUM_NONE);
    } while (++n * c->mss < c->payload);
    assert_empty(d);
    device_close(d);
}

static const struct tcp_case tcp_cases[] = {
    {true, ACK, 0, 0, 1460, 9},
    {false, ACK | FIN, 12, 0, 1440, 9},
    {true, ACK | PSH, 12, 1, 1460, 9},
    {true, ACK | PSH, 0, 1460, 1460, 2000},
    {true, ACK | PSH | FIN | CWR | ECE, 12, 1461, 1460, 700},
    {false, ACK | PSH | FIN | CWR | ECE, 12, 60000, 1428, 2001},
    {true, ACK | PSH, 12, 65483, 1448, 2048},
    {true, ACK, 40, 7000, 536, 777},
    {false, ACK, 0, 31, 1, 1},
    {true, ACK, 0, 9000, 999, 333},
    {true, ACK, 4, 5001, 1001, 0xffff},
};

static void test_segments_plain(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(tcp_cases) / sizeof(tcp_cases[0]); i++)
        check_segments(&tcp_cases[i], plain);
}

static void test_segments_with_checksums_left(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(tcp_cases) / sizeof(tcp_cases[0]); i++)
        check_segments(&tcp_cases[i], csum_only);
}

static void test_segments_random(void **state)
{
    (void)state;
    srand(3);
    for (int round = 0; round < 300; round++) {
        struct tcp_case c = {
            .v4 = rand() % 2,
            .flags = (uint8_t)(ACK | (rand() & (FIN | PSH | ECE | CWR))),
            .options = (size_t)rand() % 11 * 4,
            .payload = (size_t)rand() % 20000,
            .mss = (uint16_t)(100 + rand() % 1400),
        };
        c.slice = c.payload / (1 + (size_t)rand() % 30) + 1;
        check_segments(&c, rand() % 2 ? plain : csum_only);
    }
}

static void test_super_packet(void **state)
{
    (void)state;
    static struct wire w, expected;
    struct iovec iov[OUTPUT_IOV_MAX];
    int count;
    for (size_t i = 0; i < sizeof(tcp_cases) / sizeof(tcp_cases[0]); i++) {
        const struct tcp_case *c = &tcp_cases[i];
        struct device *d = device_memory_new(1500, all);
        size_t header_len = hand_over(&w, c, iov, &count);
        assert_int_equal(output_tcp(d, iov, count, header_len, c->mss), 0);
        struct tcp_case whole = *c;
        whole.mss = 0xffff;
        naive_segment(&expected, &whole, 0, true);
        struct packet p = pop(d);
        assert_int_equal(p.len, expected.len);
        assert_memory_equal(p.data, expected.bytes, expected.len);
        check_partial(&p, c->v4, 16);
        if (c->payload > c->mss) {
            assert_int_equal(p.offload.gso, c->v4 ? PACKET_GSO_TCP4 : PACKET_GSO_TCP6);
            assert_int_equal(p.offload.gso_size, c->mss);
            assert_int_equal(p.offload.header_len, header_len);
            assert_int_equal(p.offload.ecn, (c->flags & CWR) != 0);
        } else {
            assert_int_equal(p.offload.gso, PACKET_GSO_NONE);
        }
        assert_empty(d);
        device_close(d);
    }
}

static void test_tcp_that_contradicts_itself(void **state)
{
    (void)state;
    static struct wire w;
    struct iovec iov[OUTPUT_IOV_MAX + 1];
    int count;
    struct device *d = device_memory_new(1500, plain);
    const struct tcp_case c = {true, ACK, 12, 5000, 1448, 1000};
    size_t header_len = hand_over(&w, &c, iov, &count);
    assert_int_equal(output_tcp(d, iov, count, header_len, 0), -EINVAL);
    assert_int_equal(output_tcp(d, iov, count, header_len - 4, 1448), -EINVAL);
    assert_int_equal(output_tcp(d, iov, count, header_len + 4, 1448), -EINVAL);
    assert_int_equal(output_tcp(d, iov, count, 20, 1448), -EINVAL);
    assert_int_equal(output_tcp(d, iov, count, 124, 1448), -EINVAL);
    assert_int_equal(output_tcp(d, iov, 1, header_len, 1448), -EINVAL);
    assert_int_equal(output_tcp(d, iov, OUTPUT_IOV_MAX + 1, header_len, 1448), -EINVAL);
    iov[1].iov_len = header_len - 1;
    assert_int_equal(output_tcp(d, iov, count, header_len, 1448), -EINVAL);
    const struct tcp_case too_long = {true, ACK, 0, 65496, 1448, 0xffff};
    header_len = hand_over(&w, &too_long, iov, &count);
    assert_int_equal(output_tcp(d, iov, count, header_len, 1448), -EINVAL);
    assert_empty(d);
    device_close(d);
}

/* A lost segment does not hold back those after it; the first error is told. */
static void test_full_device(void **state)
{
    (void)state;
    static struct wire w;
    struct iovec iov[OUTPUT_IOV_MAX];
    int count;
    struct device *d = device_memory_new(1500, plain);
    const struct tcp_case c = {true, ACK, 0, 5000, 1, 0xffff};
    size_t header_len = hand_over(&w, &c, iov, &count);
    assert_int_equal(output_tcp(d, iov, count, header_len, 1), -EAGAIN);
    assert_int_equal(d->write_drops, 5000 - 4096);
    device_close(d);
}

/* --- UDP ------------------------------------------------------------------------------------ */

static struct endpoint endpoint_of(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

static struct endpoint remote(bool v4)
{
    return endpoint_of(v4 ? "203.0.113.5:443" : "[2001:db8::5]:443");
}

static struct endpoint app(bool v4)
{
    return endpoint_of(v4 ? "198.18.0.1:40000" : "[fd00::1]:40000");
}

static uint8_t udp_payload[66000];

/* A whole datagram, as it was popped. */
static void check_datagram(const struct packet *p, bool v4, const uint8_t *payload, size_t len)
{
    size_t header = v4 ? 20 : 40;
    assert_int_equal(p->len, header + 8 + len);
    assert_int_equal(wire_get16(p->data + (v4 ? 2 : 4)), v4 ? p->len : p->len - 40);
    assert_true(!v4 || (wire_ipv4_checksum_right(p->data) && wire_get16(p->data + 6) == 0));
    assert_int_equal(wire_get16(p->data + header), 443);
    assert_int_equal(wire_get16(p->data + header + 2), 40000);
    assert_int_equal(wire_get16(p->data + header + 4), 8 + len);
    assert_memory_equal(p->data + header + 8, payload, len);
    if (p->offload.csum == PACKET_CSUM_NONE) {
        assert_true(wire_transport_checksum_right(p->data, header, p->len, IPPROTO_UDP));
        return;
    }
    check_partial(p, v4, 6);
    assert_int_equal(wire_get16(p->data + header + 6), wire_pseudo(p->data, IPPROTO_UDP, 8 + len));
}

static void test_datagrams_that_fit(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, 512, 1452};
    wire_payload(udp_payload, sizeof(udp_payload));
    for (size_t i = 0; i < 16; i++) {
        bool v4 = i % 2;
        size_t len = lengths[i / 4];
        struct endpoint src = remote(v4), dst = app(v4);
        struct device *d = device_memory_new(1500, i % 4 < 2 ? plain : all);
        assert_int_equal(output_udp(d, &src, &dst, udp_payload, len, 0), 0);
        struct packet p = pop(d);
        assert_int_equal(p.offload.csum, i % 4 < 2 ? PACKET_CSUM_NONE : PACKET_CSUM_PARTIAL);
        check_datagram(&p, v4, udp_payload, len);
        assert_empty(d);
        device_close(d);
    }
}

/* Consecutive datagrams do not share an identification. */
static void test_ipv4_ids_differ(void **state)
{
    (void)state;
    struct endpoint src = remote(true), dst = app(true);
    struct device *d = device_memory_new(1500, plain);
    output_udp(d, &src, &dst, udp_payload, 10, 0);
    output_udp(d, &src, &dst, udp_payload, 10, 0);
    uint16_t first = wire_get16(pop(d).data + 4);
    assert_int_equal(wire_get16(pop(d).data + 4), (first + 1) % 65536);
    device_close(d);
}

/* Put fragments together as they come, checking each; the result is header and transport. */
static size_t reassemble(struct device *d, bool v4, unsigned mtu, uint8_t *out)
{
    size_t at = 0, header = v4 ? 20 : 48;
    uint32_t id = 0;
    bool more = true;
    while (more) {
        struct packet p = pop(d);
        assert_true(p.len <= mtu && p.len > header);
        assert_int_equal(p.offload.csum, PACKET_CSUM_NONE);
        uint32_t this_id = v4 ? wire_get16(p.data + 4) : wire_get32(p.data + 44);
        uint16_t word = wire_get16(p.data + (v4 ? 6 : 42));
        more = v4 ? (word & 0x2000) != 0 : (word & 1) != 0;
        size_t offset = v4 ? (word & 0x1fffU) * 8 : word & 0xfff8U;
        assert_int_equal(wire_get16(p.data + (v4 ? 2 : 4)), v4 ? p.len : p.len - 40);
        assert_true(!v4 || wire_ipv4_checksum_right(p.data));
        assert_int_equal(p.data[v4 ? 9 : 6], v4 ? IPPROTO_UDP : IPPROTO_FRAGMENT);
        assert_true(v4 || p.data[40] == IPPROTO_UDP);
        assert_int_equal(offset, at);
        assert_true(!more || (p.len - header) % 8 == 0);
        assert_true(!more || p.len + 8 > mtu); /* no smaller than needed */
        assert_true(at == 0 || this_id == id);
        id = this_id;
        if (at == 0)
            memcpy(out, p.data, v4 ? 20 : 40);
        memcpy(out + (v4 ? 20 : 40) + at, p.data + header, p.len - header);
        at += p.len - header;
    }
    return at;
}

static void check_fragments(bool v4, size_t len, unsigned mtu, struct device_caps caps)
{
    static uint8_t whole[66000];
    struct endpoint src = remote(v4), dst = app(v4);
    struct device *d = device_memory_new(mtu, caps);
    assert_int_equal(output_udp(d, &src, &dst, udp_payload, len, 0), 0);
    size_t total = reassemble(d, v4, mtu, whole), header = v4 ? 20 : 40;
    assert_empty(d);
    device_close(d);
    assert_int_equal(total, 8 + len);
    assert_int_equal(wire_get16(whole + header + 4), 8 + len);
    assert_memory_equal(whole + header + 8, udp_payload, len);
    assert_true(wire_transport_checksum_right(whole, header, header + total, IPPROTO_UDP));
}

static void test_fragments(void **state)
{
    (void)state;
    static const unsigned mtus[] = {1280, 1281, 1287, 1500, 9000, 65535};
    wire_payload(udp_payload, sizeof(udp_payload));
    for (size_t i = 0; i < sizeof(mtus) / sizeof(mtus[0]); i++) {
        for (int v4 = 0; v4 <= 1; v4++) {
            size_t fits = mtus[i] - (v4 ? 28 : 48);
            size_t longest = v4 ? 65507 : 65527;
            for (size_t len = fits + 1; len < fits + 12 && len <= longest; len++)
                check_fragments(v4, len, mtus[i], len % 2 ? plain : all);
            if (longest > fits)
                check_fragments(v4, longest, mtus[i], all);
        }
    }
}

static void test_too_long(void **state)
{
    (void)state;
    struct device *d = device_memory_new(1500, all);
    for (int v4 = 0; v4 <= 1; v4++) {
        struct endpoint src = remote(v4), dst = app(v4);
        size_t longest = v4 ? 65507 : 65527;
        assert_int_equal(output_udp(d, &src, &dst, udp_payload, longest + 1, 0), -EMSGSIZE);
    }
    struct endpoint src = remote(true), dst = app(false);
    assert_int_equal(output_udp(d, &src, &dst, udp_payload, 5, 0), -EAFNOSUPPORT);
    assert_empty(d);
    device_close(d);
}

static void test_many_one_by_one(void **state)
{
    (void)state;
    for (int v4 = 0; v4 <= 1; v4++) {
        struct endpoint src = remote(v4), dst = app(v4);
        struct device *d = device_memory_new(1500, v4 ? plain : csum_only);
        assert_int_equal(output_udp(d, &src, &dst, udp_payload, 3500, 1000), 0);
        for (size_t at = 0; at < 3500; at += 1000) {
            struct packet p = pop(d);
            check_datagram(&p, v4, udp_payload + at, at == 3000 ? 500 : 1000);
        }
        assert_empty(d);
        device_close(d);
    }
}

static void test_many_in_one_super_packet(void **state)
{
    (void)state;
    for (int v4 = 0; v4 <= 1; v4++) {
        struct endpoint src = remote(v4), dst = app(v4);
        struct device *d = device_memory_new(1500, all);
        assert_int_equal(output_udp(d, &src, &dst, udp_payload, 3500, 1000), 0);
        struct packet p = pop(d);
        check_datagram(&p, v4, udp_payload, 3500);
        assert_int_equal(p.offload.gso, PACKET_GSO_UDP);
        assert_int_equal(p.offload.gso_size, 1000);
        assert_int_equal(p.offload.header_len, v4 ? 28 : 48);
        assert_empty(d);
        device_close(d);
    }
}

/* More than 64 of them, or more than 64 KiB, take several super-packets; a rest of one none. */
static void test_many_in_several_super_packets(void **state)
{
    (void)state;
    struct endpoint src = remote(true), dst = app(true);
    struct device *d = device_memory_new(1500, all);
    assert_int_equal(output_udp(d, &src, &dst, udp_payload, 1290, 10), 0);
    for (size_t at = 0; at < 1280; at += 640) {
        struct packet p = pop(d);
        check_datagram(&p, true, udp_payload + at, 640);
        assert_int_equal(p.offload.gso, PACKET_GSO_UDP);
    }
    struct packet p = pop(d);
    check_datagram(&p, true, udp_payload + 1280, 10);
    assert_int_equal(p.offload.gso, PACKET_GSO_NONE);
    assert_int_equal(output_udp(d, &src, &dst, udp_payload, 65535, 1472), 0);
    p = pop(d);
    check_datagram(&p, true, udp_payload, 44 * 1472);
    p = pop(d);
    check_datagram(&p, true, udp_payload + 44 * 1472, 65535 - 44 * 1472);
    assert_empty(d);
    device_close(d);
}

/* Datagrams that do not fit the MTU are no super-packet: each is fragmented. */
static void test_many_above_the_mtu(void **state)
{
    (void)state;
    static uint8_t whole[66000];
    struct endpoint src = remote(true), dst = app(true);
    struct device *d = device_memory_new(1500, all);
    assert_int_equal(output_udp(d, &src, &dst, udp_payload, 6000, 3000), 0);
    for (size_t at = 0; at < 6000; at += 3000) {
        assert_int_equal(reassemble(d, true, 1500, whole), 3008);
        assert_memory_equal(whole + 28, udp_payload + at, 3000);
    }
    assert_empty(d);
    device_close(d);
}

static void test_raw(void **state)
{
    (void)state;
    static struct wire w;
    struct device *d = device_memory_new(1500, all);
    wire_echo(&w, true, 20);
    assert_int_equal(output_raw(d, w.bytes, w.len), 0);
    struct packet p = pop(d);
    assert_int_equal(p.len, w.len);
    assert_memory_equal(p.data, w.bytes, w.len);
    assert_int_equal(p.offload.csum, PACKET_CSUM_NONE);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments_plain),
        cmocka_unit_test(test_segments_with_checksums_left),
        cmocka_unit_test(test_segments_random),
        cmocka_unit_test(test_super_packet),
        cmocka_unit_test(test_tcp_that_contradicts_itself),
        cmocka_unit_test(test_full_device),
        cmocka_unit_test(test_datagrams_that_fit),
        cmocka_unit_test(test_ipv4_ids_differ),
        cmocka_unit_test(test_fragments),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_many_one_by_one),
        cmocka_unit_test(test_many_in_one_super_packet),
        cmocka_unit_test(test_many_in_several_super_packets),
        cmocka_unit_test(test_many_above_the_mtu),
        cmocka_unit_test(test_raw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
