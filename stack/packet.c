/*
 * The parser: everything that came from the device passes here, and nothing that it lets through
 * needs to be doubted again.
 *
 * It follows a packet from the outside in - version, IP header, IPv6 extension headers, fragment
 * or transport header, checksum - and gives up at the first thing that is wrong, with the reason
 * for the counters. It is strict where a malformed packet would reach lwIP's weaker checks or open
 * a flow to nowhere, and lenient where real hosts differ (IP options, UDP surplus area, trailing
 * bytes). `struct scan` carries a cursor that ends where the IP packet itself says it ends.
 *
 * Whose checksum is it? A packet from this machine's own sockets comes with PACKET_CSUM_PARTIAL: it
 * was never on a wire, there is nothing to verify. A packet that was forwarded from a LAN comes
 * with PACKET_CSUM_NONE, and its checksum is computed here, or VERIFIED, when a card did so.
 */
#include "stack/packet.h"

#include <assert.h>
#include <netinet/in.h>
#include <string.h>

#include "core/base/cursor.h"

enum {
    IPV4_HEADER_LEN = 20,
    IPV6_HEADER_LEN = 40,
    TCP_HEADER_LEN = 20,
    UDP_HEADER_LEN = 8,
    ICMP_HEADER_LEN = 8,
    EXTENSIONS_MAX = 8,
    DATAGRAM_MAX = 65535,
    /* Segments of a USO super-packet; Linux makes up to 128 (UDP_MAX_SEGMENTS). */
    USO_SEGMENTS_MAX = 1024,
};

enum { TCP_FLAG_FIN = 1, TCP_FLAG_SYN = 2, TCP_FLAG_RST = 4, TCP_FLAG_ACK = 16 };

enum { ICMP_ECHO_REQUEST = 8, ICMPV6_ECHO_REQUEST = 128 };

struct scan {
    struct reader r; /* at what comes next; ends at the IP packet's own end */
    const struct offload *offload;
    struct packet_info *info;
    bool v4;
};

static const char *const drop_names[] = {
    [PACKET_DROP_NONE] = "none",           [PACKET_DROP_TRUNCATED] = "truncated",
    [PACKET_DROP_HEADER] = "header",       [PACKET_DROP_CHECKSUM] = "checksum",
    [PACKET_DROP_ADDRESS] = "address",     [PACKET_DROP_PROTOCOL] = "protocol",
    [PACKET_DROP_TRANSPORT] = "transport", [PACKET_DROP_OFFLOAD] = "offload",
};
static_assert(sizeof(drop_names) / sizeof(drop_names[0]) == PACKET_DROP_COUNT,
              "every reason has a name");

const char *packet_drop_name(enum packet_drop drop)
{
    return (unsigned)drop < PACKET_DROP_COUNT ? drop_names[drop] : "unknown";
}

/* --- addresses ------------------------------------------------------------------------------ */

/* 0/8, 127/8, 169.254/16, multicast, class E and broadcast neither send nor receive through us. */
static bool v4_address_possible(const uint8_t a[4])
{
    return a[0] != 0 && a[0] != 127 && a[0] < 224 && !(a[0] == 169 && a[1] == 254);
}

/*
 * Multicast and link-local not, nor what begins with 80 zero bits: ::, ::1, IPv4-mapped
 * (RFC 4291 2.5.5.2; on a wire it is only ever an attempt to be taken for IPv4) and the
 * deprecated IPv4-compatible addresses.
 */
static bool v6_address_possible(const uint8_t a[16])
{
    static const uint8_t zeros[10];
    if (a[0] == 0xff || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80))
        return false;
    return memcmp(a, zeros, sizeof(zeros)) != 0;
}

/* Equal addresses: the "land" attack. No host sends to itself through a device. */
static enum packet_drop take_addresses(struct scan *s, const uint8_t *src, const uint8_t *dst)
{
    size_t len = s->v4 ? 4 : 16;
    s->info->src.addr = s->v4 ? addr_from_v4(src) : addr_from_v6(src);
    s->info->dst.addr = s->v4 ? addr_from_v4(dst) : addr_from_v6(dst);
    bool possible = s->v4 ? v4_address_possible(src) && v4_address_possible(dst)
                          : v6_address_possible(src) && v6_address_possible(dst);
    if (!possible || memcmp(src, dst, len) == 0)
        return PACKET_DROP_ADDRESS;
    return PACKET_DROP_NONE;
}

/* --- offload metadata ----------------------------------------------------------------------- */

/* Where the checksum field lies in the transport header; 0: no partial checksum is possible. */
static uint16_t checksum_offset(uint8_t protocol)
{
    switch (protocol) {
    case IPPROTO_TCP:
        return 16;
    case IPPROTO_UDP:
        return 6;
    default:
        return 0;
    }
}

static bool gso_matches(const struct scan *s)
{
    switch ((enum packet_gso)s->offload->gso) {
    case PACKET_GSO_NONE:
        return true;
    case PACKET_GSO_TCP4:
        return s->v4 && s->info->protocol == IPPROTO_TCP;
    case PACKET_GSO_TCP6:
        return !s->v4 && s->info->protocol == IPPROTO_TCP;
    case PACKET_GSO_UDP:
        return s->info->protocol == IPPROTO_UDP;
    }
    return false;
}

/*
 * Does the metadata fit this packet? `header_len` is a hint only (Linux puts there how much of the
 * packet lies in its linear buffer), but it can't lie outside the packet.
 */
static bool offload_fits(const struct scan *s)
{
    const struct offload *o = s->offload;
    if (o->csum > PACKET_CSUM_VERIFIED || !gso_matches(s))
        return false;
    if (o->csum == PACKET_CSUM_PARTIAL) {
        uint16_t offset = checksum_offset(s->info->protocol);
        if (offset == 0 || o->csum_offset != offset || o->csum_start != s->info->ip_header_len)
            return false;
    }
    if (o->gso == PACKET_GSO_NONE)
        return true;
    return o->csum != PACKET_CSUM_NONE && o->gso_size > 0 && o->header_len <= s->info->len;
}

/* Does the transport's sum, pseudo-header included, come out right? `len` bytes from the cursor. */
static bool checksum_right(const struct scan *s, size_t len)
{
    if (s->offload->csum != PACKET_CSUM_NONE)
        return true;
    uint64_t sum = 0;
    if (s->info->protocol != IPPROTO_ICMP)
        sum = packet_pseudo_sum(&s->info->src.addr, &s->info->dst.addr, s->info->protocol, len);
    return packet_sum_fold(packet_sum(s->r.at, len, sum)) == 0xffff;
}

/* --- transport ------------------------------------------------------------------------------ */

/*
 * Kind 0 ends the list, kind 1 is one byte, all others have a length that counts kind and length
 * (RFC 9293 3.1). Only that each lies inside is checked; what it means is lwIP's business.
 */
static bool tcp_options_inside(struct reader options)
{
    while (!options.bad && reader_left(&options) > 0) {
        uint8_t kind = reader_u8(&options);
        if (kind == 0)
            return true;
        if (kind == 1)
            continue;
        uint8_t len = reader_u8(&options);
        if (options.bad || len < 2)
            return false;
        reader_skip(&options, len - 2u);
    }
    return !options.bad;
}

/* SYN excludes FIN and RST, RST excludes FIN, and everything else acknowledges (RFC 9293 3.10). */
static bool tcp_flags_possible(uint8_t flags)
{
    if (flags & TCP_FLAG_SYN)
        return (flags & (TCP_FLAG_FIN | TCP_FLAG_RST)) == 0;
    if (flags & TCP_FLAG_RST)
        return (flags & TCP_FLAG_FIN) == 0;
    return (flags & TCP_FLAG_ACK) != 0;
}

static enum packet_drop scan_tcp(struct scan *s)
{
    struct reader r = s->r;
    size_t len = reader_left(&r);
    s->info->src.port = reader_u16(&r);
    s->info->dst.port = reader_u16(&r);
    reader_skip(&r, 8); /* sequence and acknowledgement number */
    size_t header_len = (size_t)(reader_u8(&r) >> 4) * 4;
    s->info->tcp_flags = reader_u8(&r);
    reader_skip(&r, 6); /* window, checksum, urgent pointer */
    if (r.bad)
        return PACKET_DROP_TRUNCATED;
    if (header_len < TCP_HEADER_LEN)
        return PACKET_DROP_TRANSPORT;
    const uint8_t *options = reader_bytes(&r, header_len - TCP_HEADER_LEN);
    if (!options)
        return PACKET_DROP_TRUNCATED;
    s->info->transport_header_len = (uint16_t)header_len;
    if (s->info->src.port == 0 || s->info->dst.port == 0 ||
        !tcp_flags_possible(s->info->tcp_flags) ||
        !tcp_options_inside(reader_over(options, header_len - TCP_HEADER_LEN)))
        return PACKET_DROP_TRANSPORT;
    bool payload = len > header_len;
    if (s->offload->gso != PACKET_GSO_NONE && (!payload || (s->info->tcp_flags & TCP_FLAG_SYN)))
        return PACKET_DROP_OFFLOAD;
    if (!checksum_right(s, len))
        return PACKET_DROP_CHECKSUM;
    s->info->verdict = PACKET_TCP;
    return PACKET_DROP_NONE;
}

/* No checksum is fine in IPv4 (RFC 768) and not in IPv6 (RFC 8200 8.1). */
static bool udp_checksum_right(const struct scan *s, uint16_t field, size_t len)
{
    if (field == 0 && s->offload->csum == PACKET_CSUM_NONE)
        return s->v4;
    return checksum_right(s, len);
}

static enum packet_drop scan_udp(struct scan *s)
{
    struct reader r = s->r;
    s->info->src.port = reader_u16(&r);
    s->info->dst.port = reader_u16(&r);
    size_t len = reader_u16(&r);
    uint16_t checksum = reader_u16(&r);
    if (r.bad)
        return PACKET_DROP_TRUNCATED;
    if (len < UDP_HEADER_LEN || s->info->src.port == 0 || s->info->dst.port == 0)
        return PACKET_DROP_TRANSPORT;
    if (len > reader_left(&s->r))
        return PACKET_DROP_TRUNCATED;
    s->info->transport_header_len = UDP_HEADER_LEN;
    s->info->len = s->info->ip_header_len + len; /* less a surplus area (RFC 9868) */
    size_t payload = len - UDP_HEADER_LEN;
    if (s->offload->gso != PACKET_GSO_NONE &&
        (payload == 0 || payload > (size_t)s->offload->gso_size * USO_SEGMENTS_MAX))
        return PACKET_DROP_OFFLOAD;
    if (!udp_checksum_right(s, checksum, len))
        return PACKET_DROP_CHECKSUM;
    s->info->verdict = PACKET_UDP;
    return PACKET_DROP_NONE;
}

static enum packet_drop scan_icmp(struct scan *s)
{
    struct reader r = s->r;
    size_t len = reader_left(&r);
    uint8_t type = reader_u8(&r);
    uint8_t code = reader_u8(&r);
    reader_skip(&r, ICMP_HEADER_LEN - 2);
    if (r.bad)
        return PACKET_DROP_TRUNCATED;
    if (type != (s->v4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST) || code != 0)
        return PACKET_DROP_PROTOCOL;
    if (!checksum_right(s, len))
        return PACKET_DROP_CHECKSUM;
    s->info->transport_header_len = ICMP_HEADER_LEN;
    s->info->verdict = PACKET_ICMP_ECHO;
    return PACKET_DROP_NONE;
}

/* TCP, UDP, or the ICMP of this IP version? */
static bool protocol_known(const struct scan *s)
{
    return s->info->protocol == IPPROTO_TCP || s->info->protocol == IPPROTO_UDP ||
           s->info->protocol == (s->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static enum packet_drop scan_transport(struct scan *s)
{
    s->info->ip_header_len = (uint16_t)reader_used(&s->r);
    if (!protocol_known(s))
        return PACKET_DROP_PROTOCOL;
    if (!offload_fits(s))
        return PACKET_DROP_OFFLOAD;
    if (s->info->protocol == IPPROTO_TCP)
        return scan_tcp(s);
    if (s->info->protocol == IPPROTO_UDP)
        return scan_udp(s);
    return scan_icmp(s);
}

/* --- fragments ------------------------------------------------------------------------------ */

/*
 * The cursor is at the fragment's part of the payload. All but the last come in units of 8 bytes,
 * and none reaches past the longest datagram, headers included (RFC 791 3.2, RFC 8200 4.5). What
 * was fragmented begins with the transport header: were extension headers let through here, a
 * fragment could come out of reassembly, and another out of that, as deep as somebody likes.
 */
static enum packet_drop scan_fragment(struct scan *s, size_t offset, bool more)
{
    size_t len = reader_left(&s->r);
    size_t headers = s->v4 ? reader_used(&s->r) : reader_used(&s->r) - IPV6_HEADER_LEN - 8;
    s->info->ip_header_len = (uint16_t)reader_used(&s->r);
    if (!protocol_known(s))
        return PACKET_DROP_PROTOCOL;
    if (len == 0 || (more && len % 8 != 0) || headers + offset + len > DATAGRAM_MAX)
        return PACKET_DROP_HEADER;
    if (s->offload->gso != PACKET_GSO_NONE || s->offload->csum == PACKET_CSUM_PARTIAL)
        return PACKET_DROP_OFFLOAD;
    s->info->verdict = PACKET_FRAGMENT;
    return PACKET_DROP_NONE;
}

/* --- IPv4 (RFC 791 3.1) --------------------------------------------------------------------- */

/*
 *   |Version|  IHL  |Type of Service|          Total Length         |
 *   |         Identification        |Flags|      Fragment Offset    |
 *   |  Time to Live |    Protocol   |         Header Checksum       |
 *   |                       Source Address                          |
 *   |                    Destination Address                        |
 *   |                    Options                    |    Padding    |
 */

/* Source routes would let a packet say where its answers go: dropped (RFC 7126 4.3, 4.4). */
static bool ipv4_options_acceptable(struct reader options)
{
    enum { LOOSE_SOURCE_ROUTE = 131, STRICT_SOURCE_ROUTE = 137 };
    while (!options.bad && reader_left(&options) > 0) {
        uint8_t type = reader_u8(&options);
        if (type == 0)
            return true;
        if (type == 1)
            continue;
        if (type == LOOSE_SOURCE_ROUTE || type == STRICT_SOURCE_ROUTE)
            return false;
        uint8_t len = reader_u8(&options);
        if (options.bad || len < 2)
            return false;
        reader_skip(&options, len - 2u);
    }
    return !options.bad;
}

static enum packet_drop scan_ipv4(struct scan *s)
{
    const uint8_t *start = s->r.at;
    size_t header_len = (size_t)(reader_u8(&s->r) & 0x0f) * 4;
    reader_skip(&s->r, 1);
    size_t total_len = reader_u16(&s->r);
    reader_skip(&s->r, 2);
    uint16_t fragment = reader_u16(&s->r);
    reader_skip(&s->r, 1);
    s->info->protocol = reader_u8(&s->r);
    reader_skip(&s->r, 2);
    const uint8_t *src = reader_bytes(&s->r, 4);
    const uint8_t *dst = reader_bytes(&s->r, 4);
    if (s->r.bad)
        return PACKET_DROP_TRUNCATED;
    if (header_len < IPV4_HEADER_LEN)
        return PACKET_DROP_HEADER;
    if (total_len < header_len || total_len > (size_t)(s->r.end - start))
        return PACKET_DROP_TRUNCATED;
    if (packet_sum_fold(packet_sum(start, header_len, 0)) != 0xffff)
        return PACKET_DROP_HEADER;
    s->r.end = start + total_len;
    s->info->len = total_len;
    const uint8_t *options = reader_bytes(&s->r, header_len - IPV4_HEADER_LEN);
    if (!ipv4_options_acceptable(reader_over(options, header_len - IPV4_HEADER_LEN)))
        return PACKET_DROP_HEADER;
    enum packet_drop drop = take_addresses(s, src, dst);
    if (drop != PACKET_DROP_NONE)
        return drop;
    size_t offset = (size_t)(fragment & 0x1fff) * 8;
    bool more = (fragment & 0x2000) != 0;
    return offset > 0 || more ? scan_fragment(s, offset, more) : scan_transport(s);
}

/* --- IPv6 and its extension headers (RFC 8200 4) -------------------------------------------- */

/*
 * Options of a hop-by-hop or destination options header. Of one that is not known, the two high
 * bits of its type say whether the packet may pass all the same: 00 (RFC 8200 4.2).
 */
static bool ipv6_options_acceptable(struct reader options)
{
    while (!options.bad && reader_left(&options) > 0) {
        uint8_t type = reader_u8(&options);
        if (type == 0)
            continue; /* Pad1 */
        if (type & 0xc0)
            return false;
        reader_skip(&options, reader_u8(&options));
    }
    return !options.bad;
}

static bool is_extension(uint8_t next_header)
{
    return next_header == IPPROTO_HOPOPTS || next_header == IPPROTO_ROUTING ||
           next_header == IPPROTO_DSTOPTS;
}

/* A header of next header, length in 8 bytes without the first 8, and `kind`'s own content. */
static enum packet_drop scan_extension(struct scan *s, uint8_t kind, uint8_t *next_header)
{
    *next_header = reader_u8(&s->r);
    size_t content_len = (size_t)reader_u8(&s->r) * 8 + 6;
    const uint8_t *content = reader_bytes(&s->r, content_len);
    if (!content)
        return PACKET_DROP_TRUNCATED;
    if (kind == IPPROTO_ROUTING) /* type, segments left: at its last stop, or not ours */
        return content[1] == 0 ? PACKET_DROP_NONE : PACKET_DROP_HEADER;
    return ipv6_options_acceptable(reader_over(content, content_len)) ? PACKET_DROP_NONE
                                                                      : PACKET_DROP_HEADER;
}

/*
 * Walk the chain up to a transport header or a real fragment. A fragment header that says "the
 * first and the last" (RFC 6946) is stepped over.
 */
static enum packet_drop scan_chain(struct scan *s, uint8_t next_header)
{
    for (int i = 0; i <= EXTENSIONS_MAX; i++) {
        s->info->protocol = next_header;
        if (next_header == IPPROTO_FRAGMENT) {
            next_header = reader_u8(&s->r);
            reader_skip(&s->r, 1);
            uint16_t fragment = reader_u16(&s->r);
            reader_skip(&s->r, 4); /* identification */
            if (s->r.bad)
                return PACKET_DROP_TRUNCATED;
            s->info->protocol = next_header;
            if ((fragment & 0xfff9) != 0)
                return scan_fragment(s, fragment & 0xfff8, (fragment & 1) != 0);
        } else if (is_extension(next_header)) {
            uint8_t kind = next_header;
            if (kind == IPPROTO_HOPOPTS && i > 0)
                return PACKET_DROP_HEADER;
            enum packet_drop drop = scan_extension(s, kind, &next_header);
            if (drop != PACKET_DROP_NONE)
                return drop;
        } else {
            return scan_transport(s);
        }
    }
    return PACKET_DROP_HEADER;
}

static enum packet_drop scan_ipv6(struct scan *s)
{
    reader_skip(&s->r, 4);
    size_t payload_len = reader_u16(&s->r);
    uint8_t next_header = reader_u8(&s->r);
    reader_skip(&s->r, 1);
    const uint8_t *src = reader_bytes(&s->r, 16);
    const uint8_t *dst = reader_bytes(&s->r, 16);
    if (s->r.bad || payload_len > reader_left(&s->r))
        return PACKET_DROP_TRUNCATED;
    s->r.end = s->r.at + payload_len;
    s->info->len = IPV6_HEADER_LEN + payload_len;
    s->info->protocol = next_header;
    enum packet_drop drop = take_addresses(s, src, dst);
    return drop != PACKET_DROP_NONE ? drop : scan_chain(s, next_header);
}

void packet_parse(const struct packet *p, struct packet_info *out)
{
    *out = (struct packet_info){.verdict = PACKET_DROP};
    struct scan s = {
        .r = reader_over(p->data, p->len),
        .offload = &p->offload,
        .info = out,
    };
    uint8_t version = p->len > 0 ? p->data[0] >> 4 : 0;
    s.v4 = version == 4;
    if (p->len == 0)
        out->drop = PACKET_DROP_TRUNCATED;
    else if (version == 4)
        out->drop = scan_ipv4(&s);
    else if (version == 6)
        out->drop = scan_ipv6(&s);
    else
        out->drop = PACKET_DROP_HEADER;
}
