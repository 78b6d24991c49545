/*
 * Our options, as far as lwIP's unit tests let us: everything about TCP is ours. The
 * tests insist on the parts that we leave out (an operating system layer, UDP, Ethernet and what
 * stands on it), on pools, and on statistics to look at.
 */
#ifndef CULVERT_TESTS_LWIPOPTS_H
#define CULVERT_TESTS_LWIPOPTS_H

#include "../../../third_party/lwip/port/lwipopts.h"

#define LWIP_TESTMODE 1

#undef NO_SYS
#undef LWIP_NETCONN
#undef LWIP_SOCKET
#undef LWIP_TIMERS
#define NO_SYS                      0
#define LWIP_NETCONN                1
#define LWIP_SOCKET                 1
#define LWIP_TIMERS                 1
#define LWIP_NETCONN_FULLDUPLEX     1
#define LWIP_NETCONN_SEM_PER_THREAD 1
#define LWIP_NETBUF_RECVINFO        1
#define TCPIP_THREAD_TEST

#undef LWIP_STATS
#define LWIP_STATS 1
#define MIB2_STATS 1

/* The tests look into the heap and the pools. */
#undef MEM_CUSTOM_ALLOCATOR
#undef MEM_CUSTOM_MALLOC
#undef MEM_CUSTOM_CALLOC
#undef MEM_CUSTOM_FREE
#undef MEMP_MEM_MALLOC
#undef PBUF_POOL_BUFSIZE
#define MEM_SIZE                   (4 * 1024 * 1024)
#define MEMP_NUM_TCP_SEG           TCP_SND_QUEUELEN
#define MEMP_NUM_SYS_TIMEOUT       (LWIP_NUM_SYS_TIMEOUT_INTERNAL + 8)
#define PBUF_POOL_BUFSIZE          600
#define PBUF_POOL_SIZE             400
#define LWIP_MEM_ILLEGAL_FREE(msg) /* the tests look at lwip_stats.mem.illegal */

#undef LWIP_UDP
#undef LWIP_ARP
#undef LWIP_ETHERNET
#undef PBUF_LINK_HLEN
#undef LWIP_DHCP
#undef LWIP_ACD
#undef LWIP_IGMP
#undef LWIP_DNS
#undef LWIP_ICMP
#undef LWIP_ICMP6
#undef icmp6_param_problem
#undef LWIP_IPV6_MLD
#undef LWIP_IPV6_AUTOCONFIG
#undef LWIP_IPV6_SEND_ROUTER_SOLICIT
#undef LWIP_IPV6_DUP_DETECT_ATTEMPTS
#undef LWIP_ND6_ALLOW_RA_UPDATES
#undef LWIP_ND6_QUEUEING
#undef LWIP_SINGLE_NETIF
#undef LWIP_HAVE_LOOPIF
#undef LWIP_NETIF_LOOPBACK
#undef IP_FRAG
#undef LWIP_IPV6_FRAG
#define LWIP_DHCP                      1
#define LWIP_DNS                       1
#define LWIP_DNS_SECURE                (LWIP_DNS_SECURE_RAND_XID | LWIP_DNS_SECURE_RAND_SRC_PORT)
#define LWIP_IGMP                      1
#define LWIP_MDNS_RESPONDER            1
#define LWIP_NUM_NETIF_CLIENT_DATA     1
#define PPP_SUPPORT                    1
#define PPPOS_SUPPORT                  1
#define ETHARP_SUPPORT_STATIC_ENTRIES  1
#define LWIP_NETIF_EXT_STATUS_CALLBACK 1
#define LWIP_HAVE_LOOPIF               1

/* Of what we leave out they test reassembly, too. */
#undef IP_REASSEMBLY
#undef LWIP_IPV6_REASS
#undef LWIP_RAW
#define IP_REASSEMBLY      1
#define LWIP_IPV6_REASS    1
#define IP_REASS_MAX_PBUFS 1024
#define LWIP_RAW           1
/* lwIP's bookkeeping is larger than a fragment header where pointers have 64 bits. */
#define IPV6_FRAG_COPYHEADER 1

/* One file wants to send more than it can receive. */
#undef TCP_SND_BUF
#define TCP_SND_BUF (TCP_WND + 1024)

#undef LWIP_HOOK_TCP_ISN
#undef LWIP_HOOK_TCP_OUT_ADD_TCPOPTS
#undef LWIP_HOOK_FILENAME

#endif
