/*
 * The Internet checksum (RFC 1071), which in plain mode runs over every byte that is relayed.
 *
 * One's complement addition does not care about word size or byte order as long as both are the
 * same throughout (RFC 1071, 2 B and C): 2^16 is 1 modulo 0xffff, so 32-bit words in host order may
 * be added up in 64-bit lanes that cannot overflow for any packet, and folding to 16 bits and
 * one byte swap are left to the end. The lanes are GCC/clang vectors, which become SSE2, NEON or
 * plain registers; no instruction set is asked for beyond the target's own.
 */
#include "stack/packet.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

typedef uint64_t lanes __attribute__((vector_size(16)));

/* The even number of bytes at the end that fill no vector, and an odd byte, padded with zero. */
static uint64_t sum_tail(const uint8_t *at, size_t len, uint64_t sum)
{
    for (; len >= 4; at += 4, len -= 4) {
        uint32_t word;
        memcpy(&word, at, 4);
        sum += word;
    }
    if (len == 0)
        return sum;
    uint8_t rest[4] = {0};
    memcpy(rest, at, len);
    uint32_t word;
    memcpy(&word, rest, 4);
    return sum + word;
}

uint64_t packet_sum(const void *bytes, size_t len, uint64_t sum)
{
    const uint8_t *at = bytes;
    const uint64_t low_half = UINT32_MAX;
    lanes low = {0}, high = {0};
    for (; len >= 4 * sizeof(lanes); at += 4 * sizeof(lanes), len -= 4 * sizeof(lanes)) {
        lanes a, b, c, d;
        memcpy(&a, at, sizeof(a));
        memcpy(&b, at + sizeof(lanes), sizeof(b));
        memcpy(&c, at + 2 * sizeof(lanes), sizeof(c));
        memcpy(&d, at + 3 * sizeof(lanes), sizeof(d));
        low += (a & low_half) + (b & low_half) + (c & low_half) + (d & low_half);
        high += (a >> 32) + (b >> 32) + (c >> 32) + (d >> 32);
    }
    low += high;
    return sum_tail(at, len, sum + low[0] + low[1]);
}

uint16_t packet_sum_fold(uint64_t sum)
{
    sum = (sum & UINT32_MAX) + (sum >> 32);
    sum = (sum & UINT32_MAX) + (sum >> 32);
    sum = (sum & UINT16_MAX) + (sum >> 16);
    sum = (sum & UINT16_MAX) + (sum >> 16);
    sum = (sum & UINT16_MAX) + (sum >> 16);
    return ntohs((uint16_t)sum);
}

uint64_t packet_pseudo_sum(const struct addr *src, const struct addr *dst, uint8_t protocol,
                           size_t len)
{
    bool v4 = addr_is_v4(src);
    size_t skip = v4 ? 12 : 0;
    uint64_t sum = packet_sum(src->bytes + skip, 16 - skip, 0);
    sum = packet_sum(dst->bytes + skip, 16 - skip, sum);
    return sum + htonl((uint32_t)len) + htons(protocol);
}
