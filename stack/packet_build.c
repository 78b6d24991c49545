/*
 * Builders for the packets that culvert itself makes: UDP datagrams, ICMP destination unreachable
 * and echo replies. TCP is lwIP's.
 */
#include "stack/packet.h"

#include <assert.h>
#include <netinet/in.h>
#include <string.h>

#include "core/base/cursor.h"
#include "stack/bytes.h"

enum {
    IPV4_HEADER_LEN = 20,
    IPV6_HEADER_LEN = 40,
    UDP_HEADER_LEN = 8,
    ICMP_HEADER_LEN = 8,
    HOP_LIMIT = 64,
    IPV4_CHECKSUM_OFFSET = 10,
    /* RFC 1812 4.3.2.3 and RFC 4443 2.4 (c): an ICMP error is no longer than that. */
    ICMP_ERROR_V4_MAX = 576,
    ICMP_ERROR_V6_MAX = PACKET_ICMP_ERROR_MAX,
};

/* An IPv4 header without options, id 0, fragmentation allowed, with its checksum. */
static void write_ipv4_header(struct writer *w, const struct addr *src, const struct addr *dst,
                              uint8_t protocol, size_t payload_len)
{
    uint8_t *header = w->at;
    writer_u8(w, 0x45);
    writer_u8(w, 0);
    writer_u16(w, (uint16_t)(IPV4_HEADER_LEN + payload_len));
    writer_u32(w, 0);
    writer_u8(w, HOP_LIMIT);
    writer_u8(w, protocol);
    writer_u16(w, 0);
    writer_bytes(w, addr_v4_bytes(src), 4);
    writer_bytes(w, addr_v4_bytes(dst), 4);
    assert(!w->bad);
    uint16_t sum = packet_sum_fold(packet_sum(header, IPV4_HEADER_LEN, 0));
    put_u16(header + IPV4_CHECKSUM_OFFSET, (uint16_t)~sum);
}

static void write_ipv6_header(struct writer *w, const struct addr *src, const struct addr *dst,
                              uint8_t next_header, size_t payload_len)
{
    writer_u32(w, 0x60000000);
    writer_u16(w, (uint16_t)payload_len);
    writer_u8(w, next_header);
    writer_u8(w, HOP_LIMIT);
    writer_bytes(w, src->bytes, 16);
    writer_bytes(w, dst->bytes, 16);
    assert(!w->bad);
}

size_t packet_build_udp(uint8_t out[PACKET_IP_UDP_HEADER_MAX], const struct endpoint *src,
                        const struct endpoint *dst, const struct iovec *payload, bool partial_csum)
{
    struct writer w = writer_over(out, PACKET_IP_UDP_HEADER_MAX);
    size_t udp_len = UDP_HEADER_LEN + payload->iov_len;
    if (addr_is_v4(&src->addr))
        write_ipv4_header(&w, &src->addr, &dst->addr, IPPROTO_UDP, udp_len);
    else
        write_ipv6_header(&w, &src->addr, &dst->addr, IPPROTO_UDP, udp_len);
    uint8_t *udp = w.at;
    writer_u16(&w, src->port);
    writer_u16(&w, dst->port);
    writer_u16(&w, (uint16_t)udp_len);
    writer_u16(&w, 0);
    uint64_t sum = packet_pseudo_sum(&src->addr, &dst->addr, IPPROTO_UDP, udp_len);
    uint16_t checksum = packet_sum_fold(sum);
    if (!partial_csum) {
        sum = packet_sum(udp, UDP_HEADER_LEN, sum);
        checksum = (uint16_t)~packet_sum_fold(packet_sum(payload->iov_base, payload->iov_len, sum));
        if (checksum == 0)
            checksum = 0xffff; /* 0 would mean "none" (RFC 768) */
    }
    put_u16(udp + 6, checksum);
    return writer_used(&w);
}

/* --- ICMP ----------------------------------------------------------------------------------- */

struct icmp_code {
    uint8_t v4, v6; /* codes of type 3 and of ICMPv6 type 1 */
};

static struct icmp_code unreachable_code(enum unreachable why)
{
    switch (why) {
    case UNREACHABLE_NETWORK:
        return (struct icmp_code){0, 0};
    case UNREACHABLE_HOST:
        return (struct icmp_code){1, 3};
    case UNREACHABLE_PORT:
        return (struct icmp_code){3, 4};
    case UNREACHABLE_PROHIBITED:
        return (struct icmp_code){13, 1};
    }
    return (struct icmp_code){1, 3};
}

static bool unicast(const struct addr *a)
{
    return !addr_is_unspecified(a) && !addr_is_multicast(a) && !addr_is_broadcast(a);
}

/*
 * What an error would be about: the addresses and how many bytes belong to the packet. False where
 * RFC 1122 3.2.2 and RFC 4443 2.4 (e) forbid an answer: to an ICMP error, a later fragment, a
 * multicast or nobody. ICMP messages of any kind get none; we never refuse an echo request.
 */
static bool read_original(struct reader r, struct addr *src, struct addr *dst, size_t *len)
{
    const uint8_t *start = r.at;
    size_t available = reader_left(&r);
    if (reader_u8(&r) >> 4 == 4) {
        reader_skip(&r, 1);
        *len = reader_u16(&r);
        reader_skip(&r, 2);
        uint16_t fragment = reader_u16(&r);
        reader_skip(&r, 1);
        uint8_t protocol = reader_u8(&r);
        reader_skip(&r, 10);
        if (r.bad || (fragment & 0x1fff) != 0 || protocol == IPPROTO_ICMP)
            return false;
        *src = addr_from_v4(start + 12);
        *dst = addr_from_v4(start + 16);
    } else {
        reader_skip(&r, 3);
        *len = IPV6_HEADER_LEN + (size_t)reader_u16(&r);
        uint8_t next_header = reader_u8(&r);
        reader_skip(&r, 33);
        if (r.bad || next_header == IPPROTO_ICMPV6 || start[0] >> 4 != 6)
            return false;
        *src = addr_from_v6(start + 8);
        *dst = addr_from_v6(start + 24);
    }
    if (*len > available)
        *len = available;
    return unicast(src) && unicast(dst);
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/*
 *   |     Type      |     Code      |          Checksum             |
 *   |                             unused                            |
 *   |      Internet Header + as much of the original as fits        |
 */
static void write_unreachable(struct writer *w, bool v4, enum unreachable why,
                              const uint8_t *original, size_t quoted)
{
    struct icmp_code code = unreachable_code(why);
    writer_u8(w, v4 ? 3 : 1);
    writer_u8(w, v4 ? code.v4 : code.v6);
    writer_u16(w, 0);
    writer_u32(w, 0);
    writer_bytes(w, original, quoted);
}

size_t packet_build_unreachable(uint8_t out[PACKET_ICMP_ERROR_MAX], const uint8_t *original,
                                size_t original_len, enum unreachable why)
{
    struct addr src, dst;
    size_t len = 0;
    if (!read_original(reader_over(original, original_len), &src, &dst, &len))
        return 0;
    bool v4 = original[0] >> 4 == 4;
    struct writer w = writer_over(out, PACKET_ICMP_ERROR_MAX);
    size_t headers = (v4 ? IPV4_HEADER_LEN : IPV6_HEADER_LEN) + ICMP_HEADER_LEN;
    size_t quoted = smaller(len, (v4 ? ICMP_ERROR_V4_MAX : ICMP_ERROR_V6_MAX) - headers);
    size_t icmp_len = ICMP_HEADER_LEN + quoted;
    if (v4)
        write_ipv4_header(&w, &dst, &src, IPPROTO_ICMP, icmp_len);
    else
        write_ipv6_header(&w, &dst, &src, IPPROTO_ICMPV6, icmp_len);
    uint8_t *icmp = w.at;
    write_unreachable(&w, v4, why, original, quoted);
    assert(!w.bad);
    uint64_t sum = v4 ? 0 : packet_pseudo_sum(&dst, &src, IPPROTO_ICMPV6, icmp_len);
    put_u16(icmp + 2, (uint16_t)~packet_sum_fold(packet_sum(icmp, icmp_len, sum)));
    return writer_used(&w);
}

static void swap_bytes(uint8_t *a, uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

/*
 * The type changes, so the checksum does (RFC 1624 eqn. 3); addresses swap, which changes neither
 * the IPv4 header's sum nor the pseudo-header's.
 */
void packet_make_echo_reply(uint8_t *ip, const struct packet_info *info)
{
    uint8_t *icmp = ip + info->ip_header_len;
    bool v4 = addr_is_v4(&info->src.addr);
    uint8_t old_type = icmp[0];
    icmp[0] = v4 ? 0 : 129;
    uint32_t sum = 0xffffU ^ (uint32_t)(icmp[2] << 8 | icmp[3]);
    sum += (0xffffU ^ (uint32_t)old_type << 8) + ((uint32_t)icmp[0] << 8);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    put_u16(icmp + 2, (uint16_t)~sum);
    if (!v4) {
        swap_bytes(ip + 8, ip + 24, 16);
        ip[7] = HOP_LIMIT;
        return;
    }
    swap_bytes(ip + 12, ip + 16, 4);
    ip[8] = HOP_LIMIT;
    put_u16(ip + IPV4_CHECKSUM_OFFSET, 0);
    uint16_t header_sum = packet_sum_fold(packet_sum(ip, info->ip_header_len, 0));
    put_u16(ip + IPV4_CHECKSUM_OFFSET, (uint16_t)~header_sum);
}
