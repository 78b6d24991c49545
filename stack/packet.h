/*
 * IP packets as they come from and go to the device: one strict parser for what comes in, and
 * builders for what culvert itself sends (UDP, ICMP errors, echo replies). Pure functions over
 * bytes.
 */
#ifndef CULVERT_STACK_PACKET_H
#define CULVERT_STACK_PACKET_H

#include "stack/device.h"

enum packet_verdict {
    PACKET_TCP,       /* a whole TCP segment; checksum right or vouched for */
    PACKET_UDP,       /* a whole UDP datagram, or a USO super-packet of them */
    PACKET_ICMP_ECHO, /* an echo request, whole and right */
    PACKET_FRAGMENT,  /* part of something: goes to reassembly */
    PACKET_DROP,      /* malformed, or of no concern to us; see `drop` */
};
/* Why a packet was dropped; the counters of stack/stack.h are indexed by it. */
enum packet_drop {
    PACKET_DROP_NONE,
    PACKET_DROP_TRUNCATED, /* shorter than its headers or its own length fields say */
    PACKET_DROP_HEADER,    /* version, header length, IP checksum, extension header chain */
    PACKET_DROP_CHECKSUM,  /* transport checksum */
    PACKET_DROP_ADDRESS,   /* source or destination can't be: multicast, broadcast, link-local,
                              unspecified, loopback, IPv4-mapped */
    PACKET_DROP_PROTOCOL,  /* neither TCP, UDP nor an echo request */
    PACKET_DROP_TRANSPORT, /* TCP/UDP header makes no sense: offset, options, lengths, port 0 */
    PACKET_DROP_OFFLOAD,   /* a vnet header that does not fit its packet */
    PACKET_DROP_COUNT,
};
const char *packet_drop_name(enum packet_drop drop);

struct packet_info {
    enum packet_verdict verdict;
    enum packet_drop drop;
    uint8_t protocol;              /* IPPROTO_TCP, ..., of the transport header; also for fragments
                                      whose chain shows it */
    struct endpoint src, dst;      /* ports 0 where there are none */
    uint16_t ip_header_len;        /* up to the transport header, extension headers included */
    uint16_t transport_header_len; /* TCP with options, 8 for UDP */
    uint8_t tcp_flags;             /* FIN 1, SYN 2, RST 4, PSH 8, ACK 16, ... */
    size_t len; /* the IP packet's own total length; trailing bytes do not count */
};
/*
 * Look at a packet. `p->offload` is taken into account: a partial or vouched-for checksum is not
 * verified, GSO fields are checked against the packet. TCP options are checked to end within the
 * header (lwIP 2.2.1 reads past them). Extension headers are walked (hop-by-hop, routing with
 * segments left 0, destination options, fragment), at most 8.
 */
void packet_parse(const struct packet *p, struct packet_info *out);

/*
 * The Internet checksum (RFC 1071) over bytes, continuing `sum`; not folded, not complemented.
 * Chunks but the last must be of even length.
 */
uint64_t packet_sum(const void *bytes, size_t len, uint64_t sum);
/* Folded, host order of the two wire bytes; not complemented. */
uint16_t packet_sum_fold(uint64_t sum);
/* Sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) for a transport of `len` bytes. */
uint64_t packet_pseudo_sum(const struct addr *src, const struct addr *dst, uint8_t protocol,
                           size_t len);

enum { PACKET_IP_UDP_HEADER_MAX = 48, PACKET_ICMP_ERROR_MAX = 1280 };

/*
 * IP and UDP headers for `payload_len` bytes (unfragmented; at most 65,507 for IPv4), UDP checksum
 * complete over `payload`, or the pseudo-header's sum when `partial_csum`. Returns their size.
 */
size_t packet_build_udp(uint8_t out[PACKET_IP_UDP_HEADER_MAX], const struct endpoint *src,
                        const struct endpoint *dst, const struct iovec *payload, bool partial_csum);

/* Why a flow is refused, in ICMP's terms; the same for both families. */
enum unreachable {
    UNREACHABLE_NETWORK,    /* 3/0, ICMPv6 1/0 */
    UNREACHABLE_HOST,       /* 3/1, ICMPv6 1/3 */
    UNREACHABLE_PORT,       /* 3/3, ICMPv6 1/4 */
    UNREACHABLE_PROHIBITED, /* 3/13, ICMPv6 1/1 */
};
/*
 * An ICMP or ICMPv6 destination unreachable about the packet that begins with `original`, from
 * that packet's destination to its source (RFC 792, RFC 1812 4.3.2.3: 576 bytes; RFC 4443 3.1:
 * 1,280). Returns its length, or 0 where none may be sent.
 */
size_t packet_build_unreachable(uint8_t out[PACKET_ICMP_ERROR_MAX], const uint8_t *original,
                                size_t original_len, enum unreachable why);
/* Turn an echo request in place into its reply. `p` was parsed as PACKET_ICMP_ECHO. */
void packet_make_echo_reply(uint8_t *ip, const struct packet_info *info);

#endif
