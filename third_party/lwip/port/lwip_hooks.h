/*
 * Where lwIP calls us, besides the callbacks of its pcbs. Defined by stack/ (and by test programs
 * that link lwIP alone).
 */
#ifndef CULVERT_LWIP_HOOKS_H
#define CULVERT_LWIP_HOOKS_H

#include "lwip/ip_addr.h"

/*
 * The initial sequence number of a connection (RFC 6528): hard to guess from outside, and ahead of
 * what an earlier connection with the same addresses and ports had. Ports in host byte order.
 */
u32_t culvert_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                      u16_t remote_port);

#endif
