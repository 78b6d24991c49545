/*
 * The way out. What the stack built is given the form that the device takes:
 *
 *                      device with TSO/USO   with checksums only      plain
 *   TCP above the MSS  one super-packet      cut here                 cut and summed here
 *   TCP above 64 KiB   one, if it takes it   -                        -   (see big_tcp.c)
 *   UDP, many a call   one super-packet      one by one               one by one, summed here
 *   one TCP or UDP     checksum left to it   checksum left to it      summed here
 *   UDP above the MTU  fragmented and summed here, whatever the device
 *
 * Payload is never copied: a segment is a header on our stack and slices of the caller's iovec,
 * which the device gathers. "Checksum left to it" means that the checksum field holds the sum of
 * the pseudo-header, not complemented, over the length of the whole packet; a super-packet's
 * cutter corrects it for each segment's length (linux/virtio_net.h, VIRTIO_NET_HDR_F_NEEDS_CSUM).
 *
 * Nothing is sent twice: after an error the remaining segments are still tried, since TCP recovers
 * single losses quickly, and the first error is what is returned.
 */
#include "stack/output.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/random.h>

#include "stack/bytes.h"

enum {
    IPV4_HEADER_LEN = 20,
    IPV6_HEADER_LEN = 40,
    TCP_HEADER_LEN = 20,
    UDP_HEADER_LEN = 8,
    FRAGMENT_HEADER_LEN = 8,
    JUMBO_OPTION_LEN = 8,
    TCP_SEQUENCE = 4, /* offsets of TCP's fields */
    TCP_OFFSET = 12,
    TCP_FLAGS = 13,
    TCP_CHECKSUM = 16,
    UDP_CHECKSUM = 6,
    HEADERS_MAX = 60 + 60, /* IPv4 with options and TCP with options */
    IP_LENGTH_MAX = 65535, /* total length in IPv4, payload length in IPv6 */
    IPV4_MORE_FRAGMENTS = 0x2000,
    MTU_MIN = 576,         /* a device that says less is not believed */
    USO_SEGMENTS_MAX = 64, /* what Linux has always taken (UDP_MAX_SEGMENTS) */
};

enum { TCP_FLAG_FIN = 0x01, TCP_FLAG_PSH = 0x08, TCP_FLAG_CWR = 0x80 };

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/*
 * The first of `count` consecutive identifications, for IPv4 headers and IPv6 fragment headers.
 * Counted up from a random start, so that none returns while fragments of it may be under way.
 */
static uint32_t take_ids(uint32_t count)
{
    static uint32_t next;
    static bool seeded;
    if (!seeded) {
        seeded = true;
        if (getrandom(&next, sizeof(next), GRND_NONBLOCK) != (ssize_t)sizeof(next))
            next = 1;
    }
    uint32_t first = next;
    next += count;
    return first;
}

/* --- slices of an iovec --------------------------------------------------------------------- */

struct slices {
    const struct iovec *iov;
    int left;
    size_t offset; /* into iov[0] */
};

/* The next `len` bytes as entries in `out`; returns how many entries. `len` must be there. */
static int take_slices(struct slices *s, size_t len, struct iovec *out)
{
    int count = 0;
    while (len > 0 && s->left > 0) {
        size_t n = smaller(len, s->iov->iov_len - s->offset);
        if (n > 0) {
            out[count].iov_base = (uint8_t *)s->iov->iov_base + s->offset;
            out[count++].iov_len = n;
        }
        len -= n;
        s->offset += n;
        if (s->offset == s->iov->iov_len) {
            s->iov++;
            s->left--;
            s->offset = 0;
        }
    }
    return count;
}

/*
 * Sum over entries of any length. In one that begins at an odd offset each byte has the other place
 * in its 16-bit word, which swaps the bytes of its sum (RFC 1071 2 B).
 */
static uint64_t sum_iov(const struct iovec *iov, int count, uint64_t sum)
{
    bool odd = false;
    for (int i = 0; i < count; i++) {
        if (odd) {
            uint16_t part = packet_sum_fold(packet_sum(iov[i].iov_base, iov[i].iov_len, 0));
            sum += htons((uint16_t)(part << 8 | part >> 8));
        } else {
            sum = packet_sum(iov[i].iov_base, iov[i].iov_len, sum);
        }
        odd ^= iov[i].iov_len & 1;
    }
    return sum;
}

/* --- IP headers ----------------------------------------------------------------------------- */

static bool is_v4(const uint8_t *ip)
{
    return ip[0] >> 4 == 4;
}

static uint64_t pseudo_sum(const uint8_t *ip, uint8_t protocol, size_t len)
{
    uint64_t sum = is_v4(ip) ? packet_sum(ip + 12, 8, 0) : packet_sum(ip + 8, 32, 0);
    return sum + htonl((uint32_t)len) + htons(protocol);
}

static void finish_ipv4(uint8_t *ip, size_t ip_header_len, size_t total_len)
{
    put_u16(ip + 2, total_len);
    put_u16(ip + 10, 0);
    put_u16(ip + 10, (uint16_t)~packet_sum_fold(packet_sum(ip, ip_header_len, 0)));
}

/* Write the length of what follows the IP header, and IPv4's header checksum. */
static void finish_ip(uint8_t *ip, size_t ip_header_len, size_t payload_len)
{
    if (is_v4(ip))
        finish_ipv4(ip, ip_header_len, ip_header_len + payload_len);
    else
        put_u16(ip + 4, payload_len);
}

/* --- TCP ------------------------------------------------------------------------------------ */

/* A TCP packet to be sent: where its headers are and how long. */
struct segment {
    uint8_t *ip;
    size_t ip_header_len;
    size_t header_len; /* both headers */
    size_t payload_len;
};

/* The form of what the caller handed over; false when it contradicts itself. */
static bool measure(const struct iovec *iov, int iov_count, size_t header_len, struct segment *out)
{
    if (iov_count < 2 || header_len > HEADERS_MAX || header_len > iov[1].iov_len ||
        header_len < IPV4_HEADER_LEN + TCP_HEADER_LEN)
        return false;
    out->ip = iov[1].iov_base;
    out->header_len = header_len;
    out->ip_header_len = is_v4(out->ip) ? (size_t)(out->ip[0] & 0x0f) * 4 : IPV6_HEADER_LEN;
    size_t total = 0;
    for (int i = 1; i < iov_count; i++)
        total += iov[i].iov_len;
    out->payload_len = total - header_len;
    if (out->ip_header_len + TCP_HEADER_LEN > header_len)
        return false;
    size_t tcp_header_len = (size_t)(out->ip[out->ip_header_len + TCP_OFFSET] >> 4) * 4;
    return out->ip_header_len + tcp_header_len == header_len;
}

/* Can IP's header tell its length? */
static bool has_length(const struct segment *s)
{
    size_t total = s->header_len + s->payload_len;
    return (is_v4(s->ip) ? total : total - IPV6_HEADER_LEN) <= IP_LENGTH_MAX;
}

/* The packet's checksum field is to get the sum of the pseudo-header, as `o` then says. */
static void mark_tcp_partial(struct offload *o, size_t ip_header_len, size_t header_len)
{
    o->csum = PACKET_CSUM_PARTIAL;
    o->csum_start = (uint16_t)ip_header_len;
    o->csum_offset = TCP_CHECKSUM;
    o->header_len = (uint16_t)header_len;
}

static void mark_super(struct offload *o, const uint8_t *ip, const uint8_t *tcp, uint16_t mss)
{
    o->gso = is_v4(ip) ? PACKET_GSO_TCP4 : PACKET_GSO_TCP6;
    o->gso_size = mss;
    o->ecn = (tcp[TCP_FLAGS] & TCP_FLAG_CWR) != 0;
}

/* Lengths and checksums of a packet that lies in iov[1] and following; `o` says the rest. */
static int send_segment(struct device *d, const struct segment *s, struct iovec *iov, int iov_count,
                        struct offload *o)
{
    size_t tcp_len = s->header_len - s->ip_header_len + s->payload_len;
    uint8_t *checksum = s->ip + s->ip_header_len + TCP_CHECKSUM;
    finish_ip(s->ip, s->ip_header_len, tcp_len);
    uint64_t sum = pseudo_sum(s->ip, IPPROTO_TCP, tcp_len);
    if (d->caps.csum) {
        mark_tcp_partial(o, s->ip_header_len, s->header_len);
        put_u16(checksum, packet_sum_fold(sum));
        return device_write(d, iov, iov_count, o);
    }
    put_u16(checksum, 0);
    struct iovec whole = iov[1];
    iov[1].iov_base = s->ip + s->ip_header_len; /* IP headers are even, payload keeps its parity */
    iov[1].iov_len -= s->ip_header_len;
    sum = sum_iov(iov + 1, iov_count - 1, sum);
    iov[1] = whole;
    put_u16(checksum, (uint16_t)~packet_sum_fold(sum));
    return device_write(d, iov, iov_count, NULL);
}

/* Make the copied headers those of the segment at `offset` of the super-packet's payload. */
static void adapt_headers(const struct segment *s, size_t offset, size_t index, bool last)
{
    uint8_t *tcp = s->ip + s->ip_header_len;
    put_u32(tcp + TCP_SEQUENCE, get_u32(tcp + TCP_SEQUENCE) + (uint32_t)offset);
    if (!last)
        tcp[TCP_FLAGS] &= 0xff ^ (TCP_FLAG_FIN | TCP_FLAG_PSH);
    if (index > 0)
        tcp[TCP_FLAGS] &= 0xff ^ TCP_FLAG_CWR;
    if (is_v4(s->ip))
        put_u16(s->ip + 4, get_u16(s->ip + 4) + index);
}

/* Software GSO. */
static int send_in_segments(struct device *d, const struct segment *whole, const struct iovec *iov,
                            int iov_count, uint16_t mss)
{
    int result = 0;
    struct slices payload = {.iov = iov + 1, .left = iov_count - 1, .offset = whole->header_len};
    size_t index = 0;
    for (size_t at = 0; at < whole->payload_len; at += mss, index++) {
        uint8_t headers[HEADERS_MAX];
        memcpy(headers, whole->ip, whole->header_len);
        struct segment s = *whole;
        s.ip = headers;
        s.payload_len = smaller(mss, whole->payload_len - at);
        adapt_headers(&s, at, index, at + s.payload_len == whole->payload_len);
        struct iovec gathered[OUTPUT_IOV_MAX + 1] = {
            [1] = {.iov_base = headers, .iov_len = s.header_len},
        };
        int count = 2 + take_slices(&payload, s.payload_len, gathered + 2);
        int error = send_segment(d, &s, gathered, count, &(struct offload){0});
        if (error < 0 && result == 0)
            result = error;
    }
    return result;
}

int output_tcp(struct device *d, struct iovec *iov, int iov_count, size_t header_len, uint16_t mss)
{
    struct segment s;
    if (mss == 0 || iov_count > OUTPUT_IOV_MAX || !measure(iov, iov_count, header_len, &s) ||
        !has_length(&s))
        return -EINVAL;
    struct offload o = {0};
    if (s.payload_len <= mss)
        return send_segment(d, &s, iov, iov_count, &o);
    if (!d->caps.tso || !d->caps.csum)
        return send_in_segments(d, &s, iov, iov_count, mss);
    mark_super(&o, s.ip, s.ip + s.ip_header_len, mss);
    return send_segment(d, &s, iov, iov_count, &o);
}

/*
 * The IP header of a packet whose length does not fit into it, made of `s`'s: IPv4's total length
 * is 0, and the kernel takes what it was given as the length (linux/ip.h, iph_totlen()); IPv6 says
 * it in a hop-by-hop option (RFC 2675 2). Returns its length.
 */
static size_t write_jumbo_header(uint8_t *out, const struct segment *s)
{
    size_t tcp_len = s->header_len - s->ip_header_len + s->payload_len;
    memcpy(out, s->ip, s->ip_header_len);
    if (is_v4(out)) {
        finish_ipv4(out, s->ip_header_len, 0);
        return s->ip_header_len;
    }
    static const uint8_t jumbo[4] = {IPPROTO_TCP, 0, 0xc2, 4}; /* next, 8 bytes; type, length */
    out[6] = IPPROTO_HOPOPTS;
    put_u16(out + 4, 0);
    memcpy(out + IPV6_HEADER_LEN, jumbo, sizeof(jumbo));
    put_u32(out + IPV6_HEADER_LEN + 4, (uint32_t)(JUMBO_OPTION_LEN + tcp_len));
    return IPV6_HEADER_LEN + JUMBO_OPTION_LEN;
}

int output_big_tcp(struct device *d, struct iovec *iov, int iov_count, size_t header_len,
                   uint16_t mss)
{
    struct segment s;
    if (!d->caps.big_tcp || mss <= JUMBO_OPTION_LEN || !measure(iov, iov_count, header_len, &s) ||
        iov[1].iov_len != header_len || s.payload_len <= mss || has_length(&s))
        return -EINVAL;
    uint8_t headers[HEADERS_MAX + JUMBO_OPTION_LEN];
    size_t ip_header_len = write_jumbo_header(headers, &s);
    size_t tcp_header_len = s.header_len - s.ip_header_len;
    uint8_t *tcp = headers + ip_header_len;
    memcpy(tcp, s.ip + s.ip_header_len, tcp_header_len);
    uint64_t sum = pseudo_sum(headers, IPPROTO_TCP, tcp_header_len + s.payload_len);
    put_u16(tcp + TCP_CHECKSUM, packet_sum_fold(sum));
    struct offload o = {0};
    /* Linux counts the jumbo option when it compares a forwarded segment with the MTU. */
    mark_super(&o, headers, tcp, (uint16_t)(mss - (ip_header_len - s.ip_header_len)));
    mark_tcp_partial(&o, ip_header_len, ip_header_len + tcp_header_len);
    iov[1] = (struct iovec){.iov_base = headers, .iov_len = ip_header_len + tcp_header_len};
    int error = device_write(d, iov, iov_count, &o);
    iov[1] = (struct iovec){.iov_base = s.ip, .iov_len = header_len};
    return error;
}

/* --- UDP ------------------------------------------------------------------------------------ */

/* A UDP datagram, or a super-packet of them, with its headers built. */
struct datagram {
    uint8_t headers[PACKET_IP_UDP_HEADER_MAX];
    size_t ip_header_len;
    const uint8_t *payload;
    size_t len;
};

static size_t ip_header_len_for(const struct endpoint *e)
{
    return addr_is_v4(&e->addr) ? IPV4_HEADER_LEN : IPV6_HEADER_LEN;
}

static void set_ipv4_id(uint8_t *ip, uint32_t id)
{
    put_u16(ip + 4, id & 0xffff);
    finish_ip(ip, IPV4_HEADER_LEN, get_u16(ip + 2) - (size_t)IPV4_HEADER_LEN);
}

static void build_datagram(struct datagram *out, const struct endpoint *src,
                           const struct endpoint *dst, const uint8_t *payload, size_t len,
                           bool partial_csum)
{
    struct iovec slice = {.iov_base = (void *)payload, .iov_len = len};
    packet_build_udp(out->headers, src, dst, &slice, partial_csum);
    out->ip_header_len = ip_header_len_for(src);
    out->payload = payload;
    out->len = len;
}

/* Hand over headers and payload in one piece. */
static int send_datagram(struct device *d, struct datagram *g, const struct offload *o)
{
    struct iovec iov[3] = {
        [1] = {.iov_base = g->headers, .iov_len = g->ip_header_len + UDP_HEADER_LEN},
        [2] = {.iov_base = (void *)g->payload, .iov_len = g->len},
    };
    return device_write(d, iov, g->len > 0 ? 3 : 2, o);
}

static void mark_partial(struct offload *o, const struct datagram *g)
{
    o->csum = PACKET_CSUM_PARTIAL;
    o->csum_start = (uint16_t)g->ip_header_len;
    o->csum_offset = UDP_CHECKSUM;
    o->header_len = (uint16_t)(g->ip_header_len + UDP_HEADER_LEN);
}

/*
 * The IP header (and IPv6 fragment header) of the fragment with `len` bytes at `offset` of the
 * datagram, made of the whole one's. Returns its length. RFC 791 3.2, RFC 8200 4.5.
 */
static size_t write_fragment_header(uint8_t *out, const struct datagram *g, uint32_t id,
                                    size_t offset, size_t len, bool more)
{
    memcpy(out, g->headers, g->ip_header_len);
    if (is_v4(out)) {
        put_u16(out + 4, id & 0xffff);
        put_u16(out + 6, offset / 8 | (more ? IPV4_MORE_FRAGMENTS : 0));
        finish_ip(out, IPV4_HEADER_LEN, len);
        return IPV4_HEADER_LEN;
    }
    uint8_t *fragment = out + IPV6_HEADER_LEN;
    fragment[0] = IPPROTO_UDP;
    fragment[1] = 0;
    put_u16(fragment + 2, offset | (more ? 1 : 0));
    put_u32(fragment + 4, id);
    out[6] = IPPROTO_FRAGMENT;
    finish_ip(out, IPV6_HEADER_LEN, FRAGMENT_HEADER_LEN + len);
    return IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN;
}

/* The first fragment that is refused ends it: the others are of no use without it. */
static int send_in_fragments(struct device *d, const struct datagram *g, size_t mtu)
{
    size_t overhead = g->ip_header_len;
    if (!is_v4(g->headers))
        overhead += FRAGMENT_HEADER_LEN;
    size_t unit = (mtu - overhead) & ~(size_t)7;
    size_t total = UDP_HEADER_LEN + g->len;
    uint32_t id = take_ids(1);
    for (size_t offset = 0; offset < total; offset += unit) {
        size_t len = smaller(unit, total - offset);
        uint8_t headers[IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN + UDP_HEADER_LEN];
        size_t used = write_fragment_header(headers, g, id, offset, len, offset + len < total);
        size_t udp_header = offset == 0 ? UDP_HEADER_LEN : 0;
        memcpy(headers + used, g->headers + g->ip_header_len, udp_header);
        const uint8_t *slice = g->payload + (offset + udp_header - UDP_HEADER_LEN);
        struct iovec iov[3] = {
            [1] = {.iov_base = headers, .iov_len = used + udp_header},
            [2] = {.iov_base = (void *)slice, .iov_len = len - udp_header},
        };
        int error = device_write(d, iov, 3, NULL);
        if (error < 0)
            return error;
    }
    return 0;
}

static size_t mtu_of(const struct device *d)
{
    return d->mtu < MTU_MIN ? MTU_MIN : d->mtu;
}

static int output_one(struct device *d, const struct endpoint *src, const struct endpoint *dst,
                      const uint8_t *payload, size_t len)
{
    struct datagram g;
    size_t ip_header =
        addr_is_v4(&src->addr) ? IPV4_HEADER_LEN : 0; /* what counts into the limit */
    if (ip_header + UDP_HEADER_LEN + len > IP_LENGTH_MAX)
        return -EMSGSIZE;
    bool fits = ip_header_len_for(src) + UDP_HEADER_LEN + len <= mtu_of(d);
    bool partial = fits && d->caps.csum;
    build_datagram(&g, src, dst, payload, len, partial);
    if (!fits)
        return send_in_fragments(d, &g, mtu_of(d));
    if (is_v4(g.headers))
        set_ipv4_id(g.headers, take_ids(1));
    struct offload o = {0};
    if (partial)
        mark_partial(&o, &g);
    return send_datagram(d, &g, partial ? &o : NULL);
}

/* How many datagrams of that size one super-packet may carry. */
static size_t super_segments(uint16_t gso_size)
{
    size_t room = IP_LENGTH_MAX - IPV4_HEADER_LEN - UDP_HEADER_LEN;
    return smaller(USO_SEGMENTS_MAX, room / gso_size);
}

/* As many as go into one super-packet; returns bytes of payload, or -errno. */
static ssize_t output_super(struct device *d, const struct endpoint *src,
                            const struct endpoint *dst, const uint8_t *payload, size_t len,
                            uint16_t gso_size)
{
    size_t segments = super_segments(gso_size);
    len = smaller(len, segments * gso_size);
    struct datagram g;
    build_datagram(&g, src, dst, payload, len, true);
    if (is_v4(g.headers))
        set_ipv4_id(g.headers, take_ids((uint32_t)segments));
    struct offload o = {.gso = PACKET_GSO_UDP, .gso_size = gso_size};
    mark_partial(&o, &g);
    int error = send_datagram(d, &g, &o);
    return error < 0 ? error : (ssize_t)len;
}

static int output_many(struct device *d, const struct endpoint *src, const struct endpoint *dst,
                       const uint8_t *payload, size_t len, uint16_t gso_size)
{
    bool whole_fits = ip_header_len_for(src) + UDP_HEADER_LEN + gso_size <= mtu_of(d);
    bool super = d->caps.uso && d->caps.csum && whole_fits && super_segments(gso_size) > 1;
    while (len > 0) {
        size_t sent = smaller(len, gso_size);
        if (super && len > gso_size) {
            ssize_t taken = output_super(d, src, dst, payload, len, gso_size);
            if (taken < 0)
                return (int)taken;
            sent = (size_t)taken;
        } else {
            int error = output_one(d, src, dst, payload, sent);
            if (error < 0)
                return error;
        }
        payload += sent;
        len -= sent;
    }
    return 0;
}

int output_udp(struct device *d, const struct endpoint *src, const struct endpoint *dst,
               const void *payload, size_t len, uint16_t gso_size)
{
    if (addr_is_v4(&src->addr) != addr_is_v4(&dst->addr))
        return -EAFNOSUPPORT;
    if (gso_size > 0 && len > gso_size)
        return output_many(d, src, dst, payload, len, gso_size);
    return output_one(d, src, dst, payload, len);
}

int output_raw(struct device *d, const void *packet, size_t len)
{
    struct iovec iov[2] = {[1] = {.iov_base = (void *)packet, .iov_len = len}};
    return device_write(d, iov, 2, NULL);
}
