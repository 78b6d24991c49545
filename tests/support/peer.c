#include "tests/support/peer.h"

#include <netinet/in.h>
#include <string.h>

#include "core/base/cursor.h"

const uint8_t peer_mss_1460[4] = {2, 4, 0x05, 0xb4};

size_t peer_write_ip(uint8_t *out, const struct endpoint *src, const struct endpoint *dst,
                     uint8_t protocol, size_t len)
{
    uint8_t header[40];
    struct writer w = writer_over(header, sizeof header);
    if (!addr_is_v4(&src->addr)) {
        writer_u32(&w, 0x60000000);
        writer_u16(&w, (uint16_t)len);
        writer_u8(&w, protocol);
        writer_u8(&w, 64);
        writer_bytes(&w, src->addr.bytes, 16);
        writer_bytes(&w, dst->addr.bytes, 16);
        memcpy(out, header, 40);
        return 40;
    }
    writer_u16(&w, 0x4500);
    writer_u16(&w, (uint16_t)(20 + len));
    writer_u32(&w, 0);
    writer_u8(&w, 64);
    writer_u8(&w, protocol);
    writer_u16(&w, 0);
    writer_bytes(&w, addr_v4_bytes(&src->addr), 4);
    writer_bytes(&w, addr_v4_bytes(&dst->addr), 4);
    uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(header, 20, 0));
    header[10] = (uint8_t)(sum >> 8);
    header[11] = (uint8_t)sum;
    memcpy(out, header, 20);
    return 20;
}

static void put_sum(uint8_t *transport, size_t len, size_t at, const struct endpoint *src,
                    const struct endpoint *dst, uint8_t protocol)
{
    uint64_t sum = packet_pseudo_sum(&src->addr, &dst->addr, protocol, len);
    uint16_t folded = (uint16_t)~packet_sum_fold(packet_sum(transport, len, sum));
    transport[at] = (uint8_t)(folded >> 8);
    transport[at + 1] = (uint8_t)folded;
}

size_t peer_write_segment(const struct peer *p, uint8_t *out, uint8_t flags, const void *payload,
                          size_t len, const void *options, size_t options_len)
{
    size_t tcp_len = 20 + options_len + len;
    size_t ip_len = peer_write_ip(out, &p->src, &p->dst, IPPROTO_TCP, tcp_len);
    struct writer w = writer_over(out + ip_len, tcp_len);
    writer_u16(&w, p->src.port);
    writer_u16(&w, p->dst.port);
    writer_u32(&w, p->seq);
    writer_u32(&w, p->ack);
    writer_u16(&w, (uint16_t)((5 + options_len / 4) << 12 | flags));
    writer_u16(&w, p->window);
    writer_u32(&w, 0);
    writer_bytes(&w, options, options_len);
    writer_bytes(&w, payload, len);
    put_sum(out + ip_len, tcp_len, 16, &p->src, &p->dst, IPPROTO_TCP);
    return ip_len + tcp_len;
}

size_t peer_write_datagram(uint8_t *out, const struct endpoint *src, const struct endpoint *dst,
                           const void *payload, size_t len)
{
    size_t ip_len = peer_write_ip(out, src, dst, IPPROTO_UDP, 8 + len);
    struct writer w = writer_over(out + ip_len, 8 + len);
    writer_u16(&w, src->port);
    writer_u16(&w, dst->port);
    writer_u16(&w, (uint16_t)(8 + len));
    writer_u16(&w, 0);
    writer_bytes(&w, payload, len);
    put_sum(out + ip_len, 8 + len, 6, src, dst, IPPROTO_UDP);
    return ip_len + 8 + len;
}

static void fill_ip4_fragment(uint8_t *ip, uint8_t id, uint16_t field)
{
    uint16_t offset = (uint16_t)(field >> 3 | (field & 1) << 13);
    ip[5] = id;
    ip[6] = (uint8_t)(offset >> 8);
    ip[7] = (uint8_t)offset;
    ip[10] = ip[11] = 0;
    uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(ip, 20, 0));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
}

static void fill_ip6_fragment(uint8_t *header, uint8_t id, uint16_t field)
{
    header[0] = IPPROTO_UDP;
    header[2] = (uint8_t)(field >> 8);
    header[3] = (uint8_t)(field & ~6);
    header[7] = id;
}

size_t peer_write_fragment(const struct peer *p, uint8_t out[PEER_FRAGMENT_MAX], uint8_t id,
                           uint16_t field, uint8_t units)
{
    size_t len = (size_t)units * 8 + (field & 2 ? 3 : 0);
    memset(out, 0, PEER_FRAGMENT_MAX);
    if (addr_is_v4(&p->src.addr)) {
        size_t ip_len = peer_write_ip(out, &p->src, &p->dst, IPPROTO_UDP, len);
        fill_ip4_fragment(out, id, field);
        return ip_len + len;
    }
    size_t ip_len = peer_write_ip(out, &p->src, &p->dst, IPPROTO_FRAGMENT, 8 + len);
    fill_ip6_fragment(out + ip_len, id, field);
    return ip_len + 8 + len;
}

bool peer_pop(struct device *d, struct segment *s)
{
    struct packet p = {.buffer = s->bytes};
    if (!device_memory_pop(d, &p))
        return false;
    packet_parse(&p, &s->info);
    s->offload = p.offload;
    if (s->info.verdict != PACKET_TCP)
        return true;
    struct reader r = reader_over(p.data + s->info.ip_header_len, p.len - s->info.ip_header_len);
    reader_skip(&r, 4);
    s->seq = reader_u32(&r);
    s->ack = reader_u32(&r);
    reader_skip(&r, 2);
    s->window = reader_u16(&r);
    s->payload = p.data + s->info.ip_header_len + s->info.transport_header_len;
    s->payload_len = s->info.len - s->info.ip_header_len - s->info.transport_header_len;
    return true;
}
