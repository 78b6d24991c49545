/* packet.c against packets made by hand: what passes, and for what reason the others do not. */
#include "stack/packet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tests/unit/wire.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16, URG = 32, ECE = 64, CWR = 128 };

/* Parse a copy of exactly that length, so that a read past the end is seen. */
static struct packet_info parse_bytes(const uint8_t *bytes, size_t len, const struct offload *o)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, len);
    struct packet p = {.buffer = copy, .data = copy, .len = len};
    if (o)
        p.offload = *o;
    struct packet_info info;
    packet_parse(&p, &info);
    free(copy);
    return info;
}

static struct packet_info parse(const struct wire *w)
{
    return parse_bytes(w->bytes, w->len, NULL);
}

static void assert_dropped(const struct wire *w, enum packet_drop why)
{
    struct packet_info info = parse(w);
    assert_int_equal(info.verdict, PACKET_DROP);
    assert_string_equal(packet_drop_name(info.drop), packet_drop_name(why));
}

static void assert_passes(const struct wire *w, enum packet_verdict verdict)
{
    struct packet_info info = parse(w);
    assert_string_equal(packet_drop_name(info.drop), "none");
    assert_int_equal(info.verdict, verdict);
}

static void test_every_reason_has_a_name(void **state)
{
    (void)state;
    for (int i = 0; i < PACKET_DROP_COUNT; i++)
        assert_true(strlen(packet_drop_name((enum packet_drop)i)) > 0);
    assert_string_equal(packet_drop_name(PACKET_DROP_COUNT), "unknown");
}

/* --- what passes ---------------------------------------------------------------------------- */

static void test_tcp_passes(void **state)
{
    (void)state;
    struct wire w;
    for (int v4 = 0; v4 <= 1; v4++) {
        wire_tcp(&w, v4, PSH | ACK, 12, 33);
        struct packet_info info = parse(&w);
        assert_int_equal(info.verdict, PACKET_TCP);
        assert_int_equal(info.drop, PACKET_DROP_NONE);
        assert_int_equal(info.protocol, IPPROTO_TCP);
        assert_int_equal(info.ip_header_len, v4 ? 20 : 40);
        assert_int_equal(info.transport_header_len, 32);
        assert_int_equal(info.tcp_flags, PSH | ACK);
        assert_int_equal(info.len, w.len);
        assert_int_equal(info.src.port, WIRE_APP_PORT);
        assert_int_equal(info.dst.port, WIRE_TARGET_PORT);
        struct addr src = v4 ? addr_from_v4(wire_app4) : addr_from_v6(wire_app6);
        struct addr dst = v4 ? addr_from_v4(wire_target4) : addr_from_v6(wire_target6);
        assert_true(addr_equal(&info.src.addr, &src));
        assert_true(addr_equal(&info.dst.addr, &dst));
    }
}

static void test_udp_passes(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, 2, 1472, 65507};
    struct wire w;
    for (int v4 = 0; v4 <= 1; v4++) {
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            wire_udp(&w, v4, lengths[i]);
            assert_passes(&w, PACKET_UDP);
            assert_int_equal(parse(&w).transport_header_len, 8);
        }
    }
}

static void test_echo_request_passes(void **state)
{
    (void)state;
    struct wire w;
    for (int v4 = 0; v4 <= 1; v4++) {
        wire_echo(&w, v4, 57);
        assert_passes(&w, PACKET_ICMP_ECHO);
        assert_int_equal(parse(&w).src.port, 0);
    }
}

static void test_trailing_bytes_do_not_count(void **state)
{
    (void)state;
    struct wire w;
    for (int v4 = 0; v4 <= 1; v4++) {
        wire_tcp(&w, v4, ACK, 0, 4);
        size_t len = w.len;
        memset(w.bytes + w.len, 0xee, 17);
        w.len += 17;
        assert_passes(&w, PACKET_TCP);
        assert_int_equal(parse(&w).len, len);
    }
}

/* RFC 9868: what the UDP length leaves over of the IP packet is not payload. */
static void test_udp_surplus_does_not_count(void **state)
{
    (void)state;
    struct wire w;
    wire_udp(&w, true, 20);
    size_t len = w.len;
    memset(w.bytes + w.len, 0xee, 6);
    w.len += 6;
    wire_put16(w.bytes + 2, w.len);
    wire_ipv4_checksum(w.bytes);
    assert_passes(&w, PACKET_UDP);
    assert_int_equal(parse(&w).len, len);
}

static void test_udp_without_checksum(void **state)
{
    (void)state;
    struct wire w;
    wire_udp(&w, true, 20);
    wire_put16(w.bytes + w.transport + 6, 0);
    assert_passes(&w, PACKET_UDP);
    wire_udp(&w, false, 20);
    wire_put16(w.bytes + w.transport + 6, 0);
    assert_dropped(&w, PACKET_DROP_CHECKSUM);
}

static void test_flags(void **state)
{
    (void)state;
    static const struct {
        int flags;
        bool good;
    } rows[] = {
        {SYN, true},
        {SYN | ECE | CWR, true},
        {SYN | ACK, true},
        {ACK, true},
        {FIN | ACK, true},
        {RST, true},
        {RST | ACK, true},
        {PSH | ACK, true},
        {ACK | URG, true},
        {FIN | PSH | ACK, true},
        {ACK | ECE, true},
        {SYN | PSH, true},
        {0, false},
        {FIN, false},
        {PSH, false},
        {URG, false},
        {SYN | FIN, false},
        {SYN | RST, false},
        {FIN | PSH | URG, false},
        {RST | FIN, false},
        {0xff, false},
        {SYN | FIN | ACK, false},
        {ECE | CWR, false},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, true, (uint8_t)rows[i].flags, 0, 0);
        if (rows[i].good)
            assert_passes(&w, PACKET_TCP);
        else
            assert_dropped(&w, PACKET_DROP_TRANSPORT);
    }
}

/* --- what does not -------------------------------------------------------------------------- */

/* A change to one byte of a good packet; the IPv4 header checksum is made right again. */
struct patch {
    const char *what;
    size_t at;
    uint8_t value;
    enum packet_drop drop;
};

static void apply(const struct patch *p, struct wire *w)
{
    w->bytes[p->at] = p->value;
    bool header_stands = wire_is_v4(w->bytes) && w->bytes[0] % 16 >= 5 && p->at != 10;
    if (p->at < 20 && header_stands && (size_t)(w->bytes[0] % 16) * 4 <= w->len)
        wire_ipv4_checksum(w->bytes);
}

static void test_bad_ipv4(void **state)
{
    (void)state;
    static const struct patch rows[] = {
        {"version 0", 0, 0x05, PACKET_DROP_HEADER},
        {"version 5", 0, 0x55, PACKET_DROP_HEADER},
        {"header of 16 bytes", 0, 0x44, PACKET_DROP_HEADER},
        {"header of 60 bytes", 0, 0x4f, PACKET_DROP_TRUNCATED},
        {"length beyond the end", 3, 200, PACKET_DROP_TRUNCATED},
        {"length within the header", 3, 19, PACKET_DROP_TRUNCATED},
        {"length within the TCP header", 3, 39, PACKET_DROP_TRUNCATED},
        {"header checksum", 10, 0x77, PACKET_DROP_HEADER},
        {"protocol SCTP", 9, 132, PACKET_DROP_PROTOCOL},
        {"protocol ICMPv6", 9, 58, PACKET_DROP_PROTOCOL},
        {"protocol IGMP", 9, 2, PACKET_DROP_PROTOCOL},
        {"source 0/8", 12, 0, PACKET_DROP_ADDRESS},
        {"source loopback", 12, 127, PACKET_DROP_ADDRESS},
        {"source multicast", 12, 224, PACKET_DROP_ADDRESS},
        {"source broadcast", 12, 255, PACKET_DROP_ADDRESS},
        {"destination 0/8", 16, 0, PACKET_DROP_ADDRESS},
        {"destination loopback", 16, 127, PACKET_DROP_ADDRESS},
        {"destination multicast", 16, 239, PACKET_DROP_ADDRESS},
        {"destination class E", 16, 240, PACKET_DROP_ADDRESS},
        {"another destination", 19, 6, PACKET_DROP_CHECKSUM},
        {"source port", 20, 1, PACKET_DROP_CHECKSUM},
        {"data offset 4", 32, 0x40, PACKET_DROP_TRANSPORT},
        {"data offset 15", 32, 0xf0, PACKET_DROP_TRUNCATED},
        {"no flags", 33, 0, PACKET_DROP_TRANSPORT},
        {"TCP checksum", 36, 0x55, PACKET_DROP_CHECKSUM},
        {"payload", 42, 0x55, PACKET_DROP_CHECKSUM},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, true, ACK, 0, 4);
        apply(&rows[i], &w);
        struct packet_info info = parse(&w);
        if (info.drop != rows[i].drop || info.verdict != PACKET_DROP)
            fail_msg("%s: %s", rows[i].what, packet_drop_name(info.drop));
    }
}

static void test_bad_ipv6(void **state)
{
    (void)state;
    static const struct patch rows[] = {
        {"length beyond the end", 5, 25, PACKET_DROP_TRUNCATED},
        {"length within the TCP header", 5, 19, PACKET_DROP_TRUNCATED},
        {"no next header", 6, 59, PACKET_DROP_PROTOCOL},
        {"ICMP in IPv6", 6, 1, PACKET_DROP_PROTOCOL},
        {"ESP", 6, 50, PACKET_DROP_PROTOCOL},
        {"AH", 6, 51, PACKET_DROP_PROTOCOL},
        {"source multicast", 8, 0xff, PACKET_DROP_ADDRESS},
        {"destination multicast", 24, 0xff, PACKET_DROP_ADDRESS},
        {"payload", 62, 0x55, PACKET_DROP_CHECKSUM},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, false, ACK, 0, 4);
        apply(&rows[i], &w);
        struct packet_info info = parse(&w);
        if (info.drop != rows[i].drop || info.verdict != PACKET_DROP)
            fail_msg("%s: %s", rows[i].what, packet_drop_name(info.drop));
    }
}

static void test_bad_addresses(void **state)
{
    (void)state;
    static const char *const texts[] = {"::",
                                        "::1",
                                        "::203.0.113.5",
                                        "::ffff:203.0.113.5",
                                        "fe80::1",
                                        "febf::1",
                                        "ff02::fb",
                                        "ff0e::1",
                                        "0.1.2.3",
                                        "127.0.0.1",
                                        "169.254.1.1",
                                        "224.0.0.251",
                                        "255.255.255.255"};
    struct wire w;
    for (size_t i = 0; i < 2 * sizeof(texts) / sizeof(texts[0]); i++) {
        const char *text = texts[i / 2];
        struct addr a;
        assert_true(addr_parse(text, &a));
        bool v4 = strchr(text, ':') == NULL;
        size_t len = v4 ? 4 : 16;
        wire_udp(&w, v4, 10);
        uint8_t *at = w.bytes + (v4 ? 12 : 8) + (i % 2 ? len : 0);
        memcpy(at, a.bytes + 16 - len, len);
        if (v4)
            wire_ipv4_checksum(w.bytes);
        wire_transport_checksum(&w, IPPROTO_UDP);
        assert_dropped(&w, PACKET_DROP_ADDRESS);
    }
    for (int v4 = 0; v4 <= 1; v4++) { /* land */
        size_t len = v4 ? 4 : 16;
        wire_tcp(&w, v4, SYN, 0, 0);
        memcpy(w.bytes + (v4 ? 16 : 24), w.bytes + (v4 ? 12 : 8), len);
        if (v4)
            wire_ipv4_checksum(w.bytes);
        wire_transport_checksum(&w, IPPROTO_TCP);
        assert_dropped(&w, PACKET_DROP_ADDRESS);
    }
}

static void test_port_zero(void **state)
{
    (void)state;
    struct wire w;
    for (size_t side = 0; side <= 2; side += 2) {
        wire_tcp(&w, true, SYN, 0, 0);
        wire_put16(w.bytes + w.transport + side, 0);
        wire_transport_checksum(&w, IPPROTO_TCP);
        assert_dropped(&w, PACKET_DROP_TRANSPORT);
        wire_udp(&w, true, 3);
        wire_put16(w.bytes + w.transport + side, 0);
        wire_transport_checksum(&w, IPPROTO_UDP);
        assert_dropped(&w, PACKET_DROP_TRANSPORT);
    }
}

static void test_udp_length(void **state)
{
    (void)state;
    static const struct {
        size_t len;
        enum packet_drop drop;
    } rows[] = {
        {0, PACKET_DROP_TRANSPORT}, {7, PACKET_DROP_TRANSPORT}, {29, PACKET_DROP_TRUNCATED}};
    struct wire w;
    for (size_t i = 0; i < 3; i++) {
        wire_udp(&w, true, 20);
        wire_put16(w.bytes + w.transport + 4, rows[i].len);
        assert_dropped(&w, rows[i].drop);
    }
}

static void test_icmp_other_than_echo_requests(void **state)
{
    (void)state;
    struct wire w;
    for (unsigned type = 0; type < 256; type++) {
        for (int v4 = 0; v4 <= 1; v4++) {
            if (type == (v4 ? 8 : 128))
                continue;
            wire_echo(&w, v4, 20);
            w.bytes[w.transport] = (uint8_t)type;
            wire_transport_checksum(&w, v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
            assert_dropped(&w, PACKET_DROP_PROTOCOL);
        }
    }
    wire_echo(&w, true, 20);
    w.bytes[w.transport + 1] = 1;
    wire_transport_checksum(&w, IPPROTO_ICMP);
    assert_dropped(&w, PACKET_DROP_PROTOCOL);
    wire_echo(&w, true, 20);
    w.bytes[w.transport + 9] ^= 1;
    assert_dropped(&w, PACKET_DROP_CHECKSUM);
}

static void test_tcp_options(void **state)
{
    (void)state;
    static const struct {
        uint8_t options[12];
        bool good;
    } rows[] = {
        {{2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 1, 1}, true},
        {{0, 2, 0, 0, 99, 99}, true}, /* nothing counts after the end of the list */
        {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2}, false}, /* a kind without its length */
        {{2, 0}, false},
        {{2, 1}, false},
        {{1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0}, true},
        {{1, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0}, false}, /* one byte past the header */
        {{254, 255}, false},
        {{77, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, true},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, true, SYN, 12, 0);
        memcpy(w.bytes + w.transport + 20, rows[i].options, 12);
        wire_transport_checksum(&w, IPPROTO_TCP);
        if (rows[i].good)
            assert_passes(&w, PACKET_TCP);
        else
            assert_dropped(&w, PACKET_DROP_TRANSPORT);
    }
}

static void test_ipv4_options(void **state)
{
    (void)state;
    static const struct {
        uint8_t options[8];
        bool good;
    } rows[] = {
        {{1, 1, 1, 1, 1, 1, 1, 0}, true},      {{148, 4, 0, 0, 0, 77, 1, 1}, true},
        {{7, 7, 4, 0, 0, 0, 0, 0}, true},      {{131, 7, 4, 192, 0, 2, 1, 0}, false},
        {{137, 7, 4, 192, 0, 2, 1, 0}, false}, {{1, 131, 3, 4, 0, 0, 0, 0}, false},
        {{148, 9, 0, 0, 0, 0, 0, 0}, false},   {{148, 1, 0, 0, 0, 0, 0, 0}, false},
        {{1, 1, 1, 1, 1, 1, 1, 148}, false},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, true, ACK, 4, 5);
        wire_ipv4_options(&w, rows[i].options, 8);
        if (rows[i].good)
            assert_passes(&w, PACKET_TCP);
        else
            assert_dropped(&w, PACKET_DROP_HEADER);
        if (rows[i].good)
            assert_int_equal(parse(&w).ip_header_len, 28);
    }
}

/* --- IPv6 extension headers ----------------------------------------------------------------- */

struct extension_row {
    const char *what;
    uint8_t first;
    size_t len;
    uint8_t bytes[80];
    enum packet_drop drop;
};

static void test_extension_headers(void **state)
{
    (void)state;
    static const struct extension_row rows[] = {
        {"hop-by-hop padding", 0, 8, {6, 0, 1, 4, 0, 0, 0, 0}, PACKET_DROP_NONE},
        {"router alert", 0, 8, {6, 0, 5, 2, 0, 0, 0, 0}, PACKET_DROP_NONE},
        {"destination options", 60, 16, {6, 1, 1, 12}, PACKET_DROP_NONE},
        {"routing, at its end", 43, 8, {6, 0, 4, 0}, PACKET_DROP_NONE},
        {"routing, under way", 43, 8, {6, 0, 0, 1}, PACKET_DROP_HEADER},
        {"atomic fragment", 44, 8, {6, 0, 0, 0, 1, 2, 3, 4}, PACKET_DROP_NONE},
        {"all of them",
         0,
         40,
         {60, 0, 1, 4, 0,  0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0,
          0,  0, 0, 0, 60, 0, 0, 0, 0,  0, 0, 0, 6, 0, 1, 4, 0,  0, 0, 0},
         PACKET_DROP_NONE},
        {"hop-by-hop not first", 60, 16, {0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4}, PACKET_DROP_HEADER},
        {"hop-by-hop twice", 0, 16, {0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4}, PACKET_DROP_HEADER},
        {"jumbo payload", 0, 8, {6, 0, 0xc2, 4, 0, 1, 0, 0}, PACKET_DROP_HEADER},
        {"unknown option, to be discarded", 60, 8, {6, 0, 0x41, 4}, PACKET_DROP_HEADER},
        {"unknown option, to be skipped", 60, 8, {6, 0, 0x1e, 4}, PACKET_DROP_NONE},
        {"option longer than its header", 60, 8, {6, 0, 1, 5}, PACKET_DROP_HEADER},
        {"option without length", 60, 8, {6, 0, 1, 3, 0, 0, 0, 1}, PACKET_DROP_HEADER},
        {"header longer than the packet", 60, 8, {6, 255, 1, 4}, PACKET_DROP_TRUNCATED},
        {"eight headers",
         60,
         64,
         {60, 0, 1, 4, 0,  0, 0, 0, 60, 0, 1, 4, 0,  0, 0, 0, 60, 0, 1, 4,
          0,  0, 0, 0, 60, 0, 1, 4, 0,  0, 0, 0, 60, 0, 1, 4, 0,  0, 0, 0,
          60, 0, 1, 4, 0,  0, 0, 0, 60, 0, 1, 4, 0,  0, 0, 0, 6,  0, 1, 4},
         PACKET_DROP_NONE},
        {"nine headers",
         60,
         72,
         {60, 0,  1,  4, 0, 0, 0, 0, 60, 0,  1,  4, 0, 0, 0, 0, 60, 0,  1, 4, 0, 0, 0,
          0,  60, 0,  1, 4, 0, 0, 0, 0,  60, 0,  1, 4, 0, 0, 0, 0,  60, 0, 1, 4, 0, 0,
          0,  0,  60, 0, 1, 4, 0, 0, 0,  0,  60, 0, 1, 4, 0, 0, 0,  0,  6, 0, 1, 4},
         PACKET_DROP_HEADER},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, false, ACK, 0, 10);
        wire_extend(&w, rows[i].first, rows[i].bytes, rows[i].len);
        struct packet_info info = parse(&w);
        if (info.drop != rows[i].drop)
            fail_msg("%s: %s", rows[i].what, packet_drop_name(info.drop));
        if (info.drop == PACKET_DROP_NONE)
            assert_int_equal(info.ip_header_len, 40 + rows[i].len);
    }
}

/* --- fragments ------------------------------------------------------------------------------ */

static void test_fragments(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        size_t offset;
        bool more;
        size_t len;
        enum packet_drop drop;
    } rows[] = {
        {"first", 0, true, 1480, PACKET_DROP_NONE},
        {"middle", 1480, true, 1480, PACKET_DROP_NONE},
        {"last", 2960, false, 48, PACKET_DROP_NONE},
        {"last of one byte", 2960, false, 1, PACKET_DROP_NONE},
        {"tiny", 0, true, 8, PACKET_DROP_NONE},
        {"not in units of 8", 0, true, 1479, PACKET_DROP_HEADER},
        {"empty", 8, true, 0, PACKET_DROP_HEADER},
        {"empty last", 8, false, 0, PACKET_DROP_HEADER},
        {"at the very end", 65504, false, 11, PACKET_DROP_NONE},
        {"past the longest datagram", 65528, false, 1000, PACKET_DROP_HEADER},
    };
    struct wire w;
    for (size_t i = 0; i < 2 * sizeof(rows) / sizeof(rows[0]); i++) {
        bool v4 = i % 2;
        wire_fragment(&w, v4, rows[i / 2].offset, rows[i / 2].more, rows[i / 2].len);
        struct packet_info info = parse(&w);
        if (info.drop != rows[i / 2].drop)
            fail_msg("%s: %s", rows[i / 2].what, packet_drop_name(info.drop));
        if (info.drop == PACKET_DROP_NONE) {
            assert_int_equal(info.verdict, PACKET_FRAGMENT);
            assert_int_equal(info.protocol, IPPROTO_UDP);
            assert_int_equal(info.src.port, 0);
        }
    }
    struct offload partial = {.csum = PACKET_CSUM_PARTIAL, .csum_start = 20, .csum_offset = 6};
    wire_fragment(&w, true, 0, true, 1480);
    assert_int_equal(parse_bytes(w.bytes, w.len, &partial).drop, PACKET_DROP_OFFLOAD);
    wire_fragment(&w, false, 0, true, 1480);
    w.bytes[40] = IPPROTO_DSTOPTS; /* could hide a fragment within the fragments */
    assert_dropped(&w, PACKET_DROP_PROTOCOL);
    wire_fragment(&w, true, 0, true, 1480);
    w.bytes[9] = 132;
    wire_ipv4_checksum(w.bytes);
    assert_dropped(&w, PACKET_DROP_PROTOCOL);
}

/* --- offload metadata ----------------------------------------------------------------------- */

struct offload_row {
    const char *what;
    struct offload offload;
    enum packet_drop drop;
};

/* The checksum in the packet is wrong throughout: only NONE looks at it. */
static void check_offload(const struct wire *w, const struct offload_row *row)
{
    struct packet_info info = parse_bytes(w->bytes, w->len, &row->offload);
    if (info.drop != row->drop)
        fail_msg("%s: %s", row->what, packet_drop_name(info.drop));
}

static void test_offload_of_tcp(void **state)
{
    (void)state;
    static const struct offload_row rows[] = {
        {"none", {.csum = PACKET_CSUM_NONE}, PACKET_DROP_CHECKSUM},
        {"verified", {.csum = PACKET_CSUM_VERIFIED}, PACKET_DROP_NONE},
        {"partial", {PACKET_CSUM_PARTIAL, 0, false, 0, 0, 20, 16}, PACKET_DROP_NONE},
        {"csum_start", {PACKET_CSUM_PARTIAL, 0, false, 0, 0, 24, 16}, PACKET_DROP_OFFLOAD},
        {"csum_offset", {PACKET_CSUM_PARTIAL, 0, false, 0, 0, 20, 6}, PACKET_DROP_OFFLOAD},
        {"csum unknown", {9, 0, false, 0, 0, 20, 16}, PACKET_DROP_OFFLOAD},
        {"TSO", {PACKET_CSUM_PARTIAL, PACKET_GSO_TCP4, true, 1460, 40, 20, 16}, PACKET_DROP_NONE},
        {"TSO verified",
         {PACKET_CSUM_VERIFIED, PACKET_GSO_TCP4, 0, 1460, 40, 0, 0},
         PACKET_DROP_NONE},
        {"gso_size 0",
         {PACKET_CSUM_PARTIAL, PACKET_GSO_TCP4, 0, 0, 40, 20, 16},
         PACKET_DROP_OFFLOAD},
        {"header_len",
         {PACKET_CSUM_PARTIAL, PACKET_GSO_TCP4, 0, 1460, 60000, 20, 16},
         PACKET_DROP_OFFLOAD},
        {"TSO6", {PACKET_CSUM_PARTIAL, PACKET_GSO_TCP6, 0, 1460, 40, 20, 16}, PACKET_DROP_OFFLOAD},
        {"USO", {PACKET_CSUM_PARTIAL, PACKET_GSO_UDP, 0, 1460, 40, 20, 16}, PACKET_DROP_OFFLOAD},
        {"GSO unknown", {PACKET_CSUM_PARTIAL, 255, 0, 1460, 40, 20, 16}, PACKET_DROP_OFFLOAD},
        {"TSO without checksum",
         {PACKET_CSUM_NONE, PACKET_GSO_TCP4, 0, 1460, 40, 20, 16},
         PACKET_DROP_OFFLOAD},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_tcp(&w, true, ACK, 0, 5000);
        w.bytes[w.transport + 16] ^= 0x5a;
        check_offload(&w, &rows[i]);
    }
    wire_tcp(&w, true, SYN, 0, 5000);
    assert_int_equal(parse_bytes(w.bytes, w.len, &rows[6].offload).drop, PACKET_DROP_OFFLOAD);
    wire_tcp(&w, true, ACK, 0, 0);
    assert_int_equal(parse_bytes(w.bytes, w.len, &rows[6].offload).drop, PACKET_DROP_OFFLOAD);
}

static void test_offload_of_udp(void **state)
{
    (void)state;
    static const struct offload_row rows[] = {
        {"partial", {PACKET_CSUM_PARTIAL, 0, false, 0, 0, 40, 6}, PACKET_DROP_NONE},
        {"USO", {PACKET_CSUM_PARTIAL, PACKET_GSO_UDP, false, 100, 48, 40, 6}, PACKET_DROP_NONE},
        {"too many",
         {PACKET_CSUM_PARTIAL, PACKET_GSO_UDP, false, 1, 48, 40, 6},
         PACKET_DROP_OFFLOAD},
        {"TSO", {PACKET_CSUM_PARTIAL, PACKET_GSO_TCP6, false, 100, 48, 40, 6}, PACKET_DROP_OFFLOAD},
    };
    struct wire w;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire_udp(&w, false, 5000);
        w.bytes[w.transport + 6] ^= 0x5a;
        check_offload(&w, &rows[i]);
    }
    struct offload partial = {.csum = PACKET_CSUM_PARTIAL, .csum_start = 20, .csum_offset = 2};
    wire_echo(&w, true, 20);
    assert_int_equal(parse_bytes(w.bytes, w.len, &partial).drop, PACKET_DROP_OFFLOAD);
}

/* --- anything at all ------------------------------------------------------------------------ */

static void test_every_truncation_is_dropped(void **state)
{
    (void)state;
    static const uint8_t extensions[16] = {60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0};
    struct wire packets[6];
    wire_tcp(&packets[0], true, ACK, 12, 7);
    wire_tcp(&packets[1], false, ACK, 12, 7);
    wire_udp(&packets[2], true, 7);
    wire_udp(&packets[3], false, 7);
    wire_echo(&packets[4], true, 7);
    wire_tcp(&packets[5], false, ACK, 4, 7);
    wire_extend(&packets[5], IPPROTO_HOPOPTS, extensions, 16);
    for (size_t i = 0; i < 6; i++) {
        assert_int_not_equal(parse(&packets[i]).verdict, PACKET_DROP);
        for (size_t len = 0; len < packets[i].len; len++) {
            struct packet_info info = parse_bytes(packets[i].bytes, len, NULL);
            assert_int_equal(info.verdict, PACKET_DROP);
            assert_int_equal(info.drop, PACKET_DROP_TRUNCATED);
        }
    }
}

/* What passes is consistent, whatever the bytes. */
static void check_invariants(const struct packet_info *info, size_t len)
{
    assert_true((info->verdict == PACKET_DROP) == (info->drop != PACKET_DROP_NONE));
    if (info->verdict == PACKET_DROP)
        return;
    assert_true(info->len <= len);
    assert_true((size_t)info->ip_header_len + info->transport_header_len <= info->len);
    if (info->verdict == PACKET_TCP)
        assert_true(info->transport_header_len >= 20 && info->src.port && info->dst.port);
}

static void test_mutations(void **state)
{
    (void)state;
    static const uint8_t extensions[16] = {60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0};
    static struct wire w;
    srand(7);
    for (int round = 0; round < 100000; round++) {
        bool v4 = rand() % 2;
        if (rand() % 2)
            wire_tcp(&w, v4, ACK, 20, (size_t)rand() % 64);
        else
            wire_udp(&w, v4, (size_t)rand() % 64);
        if (!v4 && rand() % 4 == 0)
            wire_extend(&w, IPPROTO_HOPOPTS, extensions, 16);
        for (int i = rand() % 4; i > 0; i--)
            w.bytes[(size_t)rand() % w.len] = (uint8_t)rand();
        if (wire_is_v4(w.bytes) && rand() % 2 && w.bytes[0] % 16 >= 5)
            wire_ipv4_checksum(w.bytes);
        struct offload o = {.csum = (uint8_t)(rand() % 4), .gso = (uint8_t)(rand() % 5)};
        o.csum_start = rand() % 2 ? 20 : 40;
        o.csum_offset = rand() % 2 ? 16 : 6;
        o.gso_size = (uint16_t)(rand() % 3);
        size_t len = w.len - (rand() % 8 == 0 ? (size_t)rand() % w.len : 0);
        struct packet_info info = parse_bytes(w.bytes, len, &o);
        check_invariants(&info, len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_reason_has_a_name),
        cmocka_unit_test(test_tcp_passes),
        cmocka_unit_test(test_udp_passes),
        cmocka_unit_test(test_echo_request_passes),
        cmocka_unit_test(test_trailing_bytes_do_not_count),
        cmocka_unit_test(test_udp_surplus_does_not_count),
        cmocka_unit_test(test_udp_without_checksum),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_bad_ipv4),
        cmocka_unit_test(test_bad_ipv6),
        cmocka_unit_test(test_bad_addresses),
        cmocka_unit_test(test_port_zero),
        cmocka_unit_test(test_udp_length),
        cmocka_unit_test(test_icmp_other_than_echo_requests),
        cmocka_unit_test(test_tcp_options),
        cmocka_unit_test(test_ipv4_options),
        cmocka_unit_test(test_extension_headers),
        cmocka_unit_test(test_fragments),
        cmocka_unit_test(test_offload_of_tcp),
        cmocka_unit_test(test_offload_of_udp),
        cmocka_unit_test(test_every_truncation_is_dropped),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
