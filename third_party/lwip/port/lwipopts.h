/*
 * lwIP as culvert uses it: a TCP that runs inside a single-threaded event loop, over bare IP
 * packets, with the opposite of a microcontroller's memory. What is not set here is lwIP's default
 * (lwip/opt.h).
 */
#ifndef CULVERT_LWIPOPTS_H
#define CULVERT_LWIPOPTS_H

/* --- One thread, the caller's clock, libc's memory -------------------------------------------- */

#define NO_SYS               1
#define SYS_LIGHTWEIGHT_PROT 0 /* nothing to lock: one thread */
#define LWIP_NETCONN         0
#define LWIP_SOCKET          0
/* stack_tick() calls tcp_tmr(), and only while it concerns anyone. */
#define LWIP_TIMERS 0

/* malloc, so that an idle tunnel is small and a busy one is bounded by --max-flows alone. */
#define MEM_CUSTOM_ALLOCATOR            1
#define MEM_CUSTOM_MALLOC               culvert_lwip_malloc /* says when there is none */
#define MEM_CUSTOM_CALLOC               calloc              /* nobody calls it */
#define MEM_CUSTOM_FREE                 free
#define MEMP_MEM_MALLOC                 1
#define LWIP_DISABLE_MEMP_SANITY_CHECKS 1 /* they are about pools, which we have none of */
#define MEM_ALIGNMENT                   8

#define LWIP_STATS 0 /* ours are in struct stack_counters */

/* --- Which protocols ------------------------------------------------------------------------- */

#define LWIP_IPV4        1
#define LWIP_IPV6        1
#define LWIP_IPV6_SCOPES 0 /* link-local addresses never become flows */
#define LWIP_TCP         1
#define LWIP_UDP         0 /* stack/input.c hands datagrams on: relaying needs no pcb a socket */
#define LWIP_RAW         0
#define LWIP_ARP         0 /* a TUN device has no link layer */
#define LWIP_ETHERNET    0
#define PBUF_LINK_HLEN   0
#define LWIP_DHCP        0
#define LWIP_AUTOIP      0
#define LWIP_ACD         0
#define LWIP_IGMP        0
#define LWIP_DNS         0

/*
 * lwIP never speaks for itself: no echo replies, no unreachables, no neighbour or router discovery.
 * What culvert says to an application by ICMP is built in stack/packet.c.
 */
#define LWIP_ICMP  0
#define LWIP_ICMP6 0
/* ip6.c reports bad headers by this function even then. */
#define icmp6_param_problem(packet, code, pointer) ((void)0)
#define LWIP_IPV6_MLD                              0
#define LWIP_IPV6_AUTOCONFIG                       0
#define LWIP_IPV6_SEND_ROUTER_SOLICIT              0
#define LWIP_IPV6_DUP_DETECT_ATTEMPTS              0
#define LWIP_ND6_ALLOW_RA_UPDATES                  0
#define LWIP_ND6_TCP_REACHABILITY_HINTS            0
#define LWIP_ND6_QUEUEING                          0
#define LWIP_IPV6_DHCP6                            0

/* The one netif takes the address of each packet's destination in turn, see stack/tcp.c. */
#define LWIP_SINGLE_NETIF   1
#define LWIP_HAVE_LOOPIF    0
#define LWIP_NETIF_LOOPBACK 0
/* netif->hints leads from the output function back to the pcb that sends. */
#define LWIP_NETIF_HWADDRHINT 1
/* A payload is referenced where it lies, in as many pieces as it has. */
#define LWIP_NETIF_TX_SINGLE_PBUF 0
/* stack/packet.c verifies checksums on the way in, stack/output.c or the kernel fills them in. */
#define LWIP_CHECKSUM_CTRL_PER_NETIF 1

/* --- Fragments ------------------------------------------------------------------------------- */

/* No fragment reaches lwIP: stack/reassembly.c puts them together. */
#define IP_REASSEMBLY   0
#define LWIP_IPV6_REASS 0
/* Sending: TCP segments fit the MTU or are the device's to cut, datagrams are cut by
 * stack/output.c. */
#define IP_FRAG        0
#define LWIP_IPV6_FRAG 0

/* --- TCP ------------------------------------------------------------------------------------- */

/* A whole super-packet (65,535 less the longest headers) as one segment; what the SYN announces is
 * calculated from the netif's MTU. */
#define TCP_MSS                        65475
#define TCP_CALCULATE_EFF_SEND_MSS     1
#define LWIP_DISABLE_TCP_SANITY_CHECKS 1 /* they presume a small MSS: "MSS must be <= 16382" */
/* lwIP would derive it from TCP_MSS, past 16 bits. Nothing of ours allocates from PBUF_POOL. */
#define PBUF_POOL_BUFSIZE 2048

#define LWIP_WND_SCALE 1
#define TCP_RCV_SCALE  7 /* windows up to 8 MiB can be told in steps of 128 bytes */
#define TCP_WND        (1024 * 1024)
/* Two reads ahead of what core/chunk_pool.h reads at once; how much of it all flows together may
 * have in flight is bounded there. */
#define TCP_SND_BUF (2 * 1024 * 1024)
/* Two pbufs a segment (header and payload), which is 64 times the MSS: 2 MiB fit at any. */
#define TCP_SND_QUEUELEN 4096
#define TCP_SNDLOWAT     (TCP_SND_BUF / 2) /* the default would overflow 16 bits; unused by us */
#define TCP_OVERSIZE     0 /* we never copy into lwIP, so it need not allocate ahead */

#define TCP_QUEUE_OOSEQ 1
/* Per connection. Without bounds, one that withholds a byte could park a whole window in tiny
 * pieces. */
#define TCP_OOSEQ_MAX_BYTES (512 * 1024)
#define TCP_OOSEQ_MAX_PBUFS 512
#define LWIP_TCP_SACK_OUT   1
#define LWIP_TCP_TIMESTAMPS 0     /* 12 bytes a packet and nothing to gain on a local link */
#define TCP_MSL             30000 /* ms; half of RFC 9293's minute each way, as Linux does */
/*
 * lwIP counts its TCP timers in ticks of TCP_TMR_INTERVAL (fast) and twice that (slow). Its
 * default of 250 ms makes a lost last segment wait for seconds. With 50 ms the shortest
 * retransmission time-out is about 300 ms, as Linux's is 200, and a delayed ACK waits 50 ms at
 * most. stack/tcp.c ticks only while a connection has something to time.
 */
#define TCP_TMR_INTERVAL   50
#define LWIP_TCP_RTO_TIME  1000 /* ms, until the round-trip time is known: RFC 6298 2.1 */
#define TCP_LISTEN_BACKLOG 0    /* held SYNs are counted as flows, by --max-flows */

#define LWIP_CALLBACK_API 1
/* stack/tcp.c ties a conn to its control block by callback_arg: ext args would only cost memory. */
#define LWIP_TCP_PCB_NUM_EXT_ARGS 0
/* Payload buffers are ours: lwIP tells us when the last reference has gone. */
#define LWIP_SUPPORT_CUSTOM_PBUF 1

#define LWIP_HOOK_FILENAME "lwip_hooks.h"
#define LWIP_HOOK_TCP_ISN  culvert_tcp_isn
/* Meant for options; it sees each segment's header last, and stack/window.c corrects it there. */
#define LWIP_HOOK_TCP_OUT_ADD_TCPOPTS(p, header, pcb, options)                                     \
    culvert_tcp_header(header, pcb, options)

#endif
