/*
 * Where lwIP calls us, besides the callbacks of its pcbs. Defined by stack/ (and by test programs
 * that link lwIP alone).
 */
#ifndef CULVERT_LWIP_HOOKS_H
#define CULVERT_LWIP_HOOKS_H

#include "lwip/ip_addr.h"

struct tcp_hdr;
struct tcp_pcb;

/*
 * The initial sequence number of a connection (RFC 6528): hard to guess from outside, and ahead of
 * what an earlier connection with the same addresses and ports had. Ports in host byte order.
 */
u32_t culvert_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                      u16_t remote_port);

/*
 * The header of a segment that is about to be sent, complete but for the checksum; `options` is
 * where further options could be written, and is what is returned: none are. `pcb` may be NULL.
 */
u32_t *culvert_tcp_header(struct tcp_hdr *header, const struct tcp_pcb *pcb, u32_t *options);

#endif
