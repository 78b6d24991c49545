/*
 * The way out to the device: whatever the stack built, in the form that this device takes.
 * Checksums are completed, super-packets cut (software GSO), datagrams fragmented as needed.
 */
#ifndef CULVERT_STACK_OUTPUT_H
#define CULVERT_STACK_OUTPUT_H

#include "stack/device.h"
#include "stack/packet.h"

enum { OUTPUT_IOV_MAX = 1 + 34 }; /* iov[0] stays free for the device */

/*
 * Send a TCP packet: iov[1] begins with IP and TCP headers (contiguous, `header_len` bytes, at the
 * front of iov[1]), payload follows. Checksum fields are still empty, IPv4's header checksum
 * included. A payload above `mss` bytes is a super-packet: handed over whole to a device with TSO,
 * else cut into segments of `mss` bytes (sequence numbers, IPv4 ids, lengths, FIN and PSH on the
 * last only, CWR on the first only). Returns 0 or the first -errno of the device.
 */
int output_tcp(struct device *d, struct iovec *iov, int iov_count, size_t header_len, uint16_t mss);

/*
 * The same for a super-packet that is too long for IP's length field, on a device with
 * `caps.big_tcp`. The headers are iov[1], alone. Returns 0; -EMSGSIZE: it takes none of that
 * length, whatever `caps` says; -EAGAIN: there is no memory for one now; -EINVAL: not one of
 * those; or another -errno of the device.
 */
int output_big_tcp(struct device *d, struct iovec *iov, int iov_count, size_t header_len,
                   uint16_t mss);

/*
 * Send `payload` (0 to 65,507 bytes in IPv4, 65,527 in IPv6) as a UDP datagram, fragmented to the
 * device's MTU where needed (RFC 791, RFC 8200 4.5). `gso_size` not 0: payload is several datagrams
 * of that size (the last may be shorter), handed over as one super-packet where the device takes
 * it. The payload is not modified. Returns 0 or -errno.
 */
int output_udp(struct device *d, const struct endpoint *src, const struct endpoint *dst,
               const void *payload, size_t len, uint16_t gso_size);

/* Send a complete IP packet as it is (ICMP). */
int output_raw(struct device *d, const void *packet, size_t len);

#endif
