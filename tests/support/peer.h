/*
 * The application's side of a connection, made by hand: packets for the device in memory, whose
 * checksums are right. For unit tests, fuzzing and the instruction counts.
 */
#ifndef CULVERT_TESTS_PEER_H
#define CULVERT_TESTS_PEER_H

#include "stack/packet.h"
#include "tests/support/device_memory.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { PEER_MTU = 1500, PEER_WINDOW = 64000 };

/* One connection. Numbers in host byte order; the caller moves `seq` and `ack` on. */
struct peer {
    struct endpoint src, dst;
    uint32_t seq, ack;
    uint16_t window;
};

/* A SYN's usual option: an MSS of 1,460. */
extern const uint8_t peer_mss_1460[4];

/* Write an IP header before `len` bytes of `protocol`; returns its size. `out` has room for 40. */
size_t peer_write_ip(uint8_t *out, const struct endpoint *src, const struct endpoint *dst,
                     uint8_t protocol, size_t len);
/* A TCP segment as an IP packet into `out` (66,000 bytes); returns its length. */
size_t peer_write_segment(const struct peer *p, uint8_t *out, uint8_t flags, const void *payload,
                          size_t len, const void *options, size_t options_len);
/* A UDP datagram as an IP packet into `out`; returns its length. */
size_t peer_write_datagram(uint8_t *out, const struct endpoint *src, const struct endpoint *dst,
                           const void *payload, size_t len);

enum { PEER_FRAGMENT_MAX = 40 + 8 + 255 * 8 + 3 };
/*
 * A fragment of a UDP datagram that consists of zeros but for its header, for fuzzing: `field` is
 * as in IPv6's fragment header, for both families (bits 3 to 15 the offset, bit 0 more fragments),
 * `units` are its 8 bytes. With bit 1 it has 3 bytes more, which only a last one may. Returns its
 * length.
 */
size_t peer_write_fragment(const struct peer *p, uint8_t out[PEER_FRAGMENT_MAX], uint8_t id,
                           uint16_t field, uint8_t units);

/* A segment as it came out of the device. */
struct segment {
    struct packet_info info;
    uint32_t seq, ack;
    uint16_t window;
    size_t payload_len;
    const uint8_t *payload;
    struct offload offload;
    uint8_t bytes[PACKET_BUFFER_SIZE];
};
/* The oldest packet that was written to `d`, TCP fields filled in where it is TCP. */
bool peer_pop(struct device *d, struct segment *s);

#endif
