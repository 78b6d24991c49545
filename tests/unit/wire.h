/*
 * Packets made and checked the naive way, byte by byte, as an independent opinion for the tests of
 * stack/. Addresses: 198.18.0.1 and fd00::1 are the application's, 203.0.113.5 and 2001:db8::5 the
 * target's.
 */
#ifndef CULVERT_TESTS_WIRE_H
#define CULVERT_TESTS_WIRE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct wire {
    uint8_t bytes[65536 + 64];
    size_t len;
    size_t transport; /* offset of the transport header */
};

static const uint8_t wire_app4[4] = {198, 18, 0, 1}, wire_target4[4] = {203, 0, 113, 5};
static const uint8_t wire_app6[16] = {0xfd, [15] = 1};
static const uint8_t wire_target6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 5};

enum { WIRE_APP_PORT = 40000, WIRE_TARGET_PORT = 443 };

static inline void wire_put16(uint8_t *at, size_t v)
{
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

static inline void wire_put32(uint8_t *at, uint32_t v)
{
    wire_put16(at, v >> 16);
    wire_put16(at + 2, v & 0xffff);
}

static inline uint16_t wire_get16(const uint8_t *at)
{
    return (uint16_t)(at[0] * 256 + at[1]);
}

static inline uint32_t wire_get32(const uint8_t *at)
{
    return (uint32_t)wire_get16(at) * 65536 + wire_get16(at + 2);
}

/* One's complement sum of big-endian 16-bit words, folded; RFC 1071 word for word. */
static inline uint32_t wire_sum(const uint8_t *at, size_t len, uint32_t sum)
{
    for (size_t i = 0; i < len; i++) {
        sum += i % 2 == 0 ? (uint32_t)at[i] * 256 : at[i];
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static inline bool wire_is_v4(const uint8_t *ip)
{
    return ip[0] / 16 == 4;
}

/* Sum of the pseudo-header of the packet at `ip`, for `len` bytes of `protocol`. */
static inline uint32_t wire_pseudo(const uint8_t *ip, uint8_t protocol, size_t len)
{
    uint8_t tail[8] = {0};
    wire_put32(tail, (uint32_t)len);
    tail[7] = protocol;
    uint32_t sum = wire_is_v4(ip) ? wire_sum(ip + 12, 8, 0) : wire_sum(ip + 8, 32, 0);
    return wire_sum(tail, 8, sum);
}

static inline void wire_ipv4_checksum(uint8_t *ip)
{
    wire_put16(ip + 10, 0);
    wire_put16(ip + 10, 0xffff - wire_sum(ip, (size_t)(ip[0] % 16) * 4, 0));
}

static inline bool wire_ipv4_checksum_right(const uint8_t *ip)
{
    return wire_sum(ip, (size_t)(ip[0] % 16) * 4, 0) == 0xffff;
}

static inline size_t wire_checksum_offset(uint8_t protocol)
{
    return protocol == IPPROTO_TCP ? 16 : protocol == IPPROTO_UDP ? 6 : 2;
}

/* Fill in the transport checksum of a packet without fragments, whose transport reaches its end. */
static inline void wire_transport_checksum(struct wire *w, uint8_t protocol)
{
    uint8_t *field = w->bytes + w->transport + wire_checksum_offset(protocol);
    size_t len = w->len - w->transport;
    wire_put16(field, 0);
    uint32_t sum = protocol == IPPROTO_ICMP ? 0 : wire_pseudo(w->bytes, protocol, len);
    sum = 0xffff - wire_sum(w->bytes + w->transport, len, sum);
    wire_put16(field, sum == 0 && protocol == IPPROTO_UDP ? 0xffff : sum);
}

static inline bool wire_transport_checksum_right(const uint8_t *ip, size_t transport, size_t len,
                                                 uint8_t protocol)
{
    uint32_t sum = protocol == IPPROTO_ICMP ? 0 : wire_pseudo(ip, protocol, len - transport);
    return wire_sum(ip + transport, len - transport, sum) == 0xffff;
}

/* IP header; `transport_len` bytes are left zero behind it. */
static inline void wire_ip(struct wire *w, bool v4, uint8_t protocol, size_t transport_len)
{
    memset(w->bytes, 0, 128);
    w->transport = v4 ? 20 : 40;
    w->len = w->transport + transport_len;
    if (v4) {
        w->bytes[0] = 0x45;
        wire_put16(w->bytes + 2, w->len);
        wire_put16(w->bytes + 4, 0x1234);
        w->bytes[8] = 64;
        w->bytes[9] = protocol;
        memcpy(w->bytes + 12, wire_app4, 4);
        memcpy(w->bytes + 16, wire_target4, 4);
        wire_ipv4_checksum(w->bytes);
    } else {
        w->bytes[0] = 0x60;
        wire_put16(w->bytes + 4, transport_len);
        w->bytes[6] = protocol;
        w->bytes[7] = 64;
        memcpy(w->bytes + 8, wire_app6, 16);
        memcpy(w->bytes + 24, wire_target6, 16);
    }
}

static inline void wire_payload(uint8_t *at, size_t len)
{
    for (size_t i = 0; i < len; i++)
        at[i] = (uint8_t)(i * 7 + i / 251);
}

static inline void wire_ports(struct wire *w)
{
    wire_put16(w->bytes + w->transport, WIRE_APP_PORT);
    wire_put16(w->bytes + w->transport + 2, WIRE_TARGET_PORT);
}

/* A TCP packet with `options_len` bytes of NOPs (a multiple of 4). */
static inline void wire_tcp(struct wire *w, bool v4, uint8_t flags, size_t options_len,
                            size_t payload_len)
{
    size_t header_len = 20 + options_len;
    wire_ip(w, v4, IPPROTO_TCP, header_len + payload_len);
    uint8_t *tcp = w->bytes + w->transport;
    memset(tcp, 0, header_len);
    wire_ports(w);
    wire_put32(tcp + 4, 0xfffffff0);
    wire_put32(tcp + 8, 0x01020304);
    tcp[12] = (uint8_t)(header_len / 4 * 16);
    tcp[13] = flags;
    wire_put16(tcp + 14, 0x7fff);
    memset(tcp + 20, 1, options_len);
    wire_payload(tcp + header_len, payload_len);
    wire_transport_checksum(w, IPPROTO_TCP);
}

static inline void wire_udp(struct wire *w, bool v4, size_t payload_len)
{
    wire_ip(w, v4, IPPROTO_UDP, 8 + payload_len);
    wire_ports(w);
    wire_put16(w->bytes + w->transport + 4, 8 + payload_len);
    wire_payload(w->bytes + w->transport + 8, payload_len);
    wire_transport_checksum(w, IPPROTO_UDP);
}

static inline void wire_echo(struct wire *w, bool v4, size_t payload_len)
{
    uint8_t protocol = v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
    wire_ip(w, v4, protocol, 8 + payload_len);
    uint8_t *icmp = w->bytes + w->transport;
    memset(icmp, 0, 8);
    icmp[0] = v4 ? 8 : 128;
    wire_put16(icmp + 4, 0xabcd);
    wire_put16(icmp + 6, 1);
    wire_payload(icmp + 8, payload_len);
    wire_transport_checksum(w, protocol);
}

/*
 * Put `len` bytes (a multiple of 8) of extension headers between the IPv6 header and what follows;
 * the first is of kind `first`, and the last already names the transport.
 */
static inline void wire_extend(struct wire *w, uint8_t first, const uint8_t *extension, size_t len)
{
    memmove(w->bytes + 40 + len, w->bytes + 40, w->len - 40);
    memcpy(w->bytes + 40, extension, len);
    w->bytes[6] = first;
    w->len += len;
    w->transport += len;
    wire_put16(w->bytes + 4, w->len - 40);
}

/* Put `len` bytes (a multiple of 4) of options into the IPv4 header. */
static inline void wire_ipv4_options(struct wire *w, const uint8_t *options, size_t len)
{
    memmove(w->bytes + 20 + len, w->bytes + 20, w->len - 20);
    memcpy(w->bytes + 20, options, len);
    w->bytes[0] = (uint8_t)(0x45 + len / 4);
    w->len += len;
    w->transport += len;
    wire_put16(w->bytes + 2, w->len);
    wire_ipv4_checksum(w->bytes);
}

/* The first `len` transport bytes of a packet as a fragment at `offset`. */
static inline void wire_fragment(struct wire *w, bool v4, size_t offset, bool more, size_t len)
{
    wire_udp(w, v4, 3000);
    w->len = w->transport + len;
    if (v4) {
        wire_put16(w->bytes + 2, w->len);
        wire_put16(w->bytes + 6, offset / 8 + (more ? 0x2000 : 0));
        wire_ipv4_checksum(w->bytes);
        return;
    }
    uint8_t header[8] = {IPPROTO_UDP, 0, 0, 0, 1, 2, 3, 4};
    wire_put16(header + 2, offset + (more ? 1 : 0));
    wire_extend(w, IPPROTO_FRAGMENT, header, 8);
}

#endif
