/*
 * lwIP's reassembly and what stands on it, which culvert leaves out: for lwIP's own tests, and
 * those of our patches to it. Included after culvert's options.
 */
#ifndef CULVERT_TESTS_REASSEMBLY_OPTIONS_H
#define CULVERT_TESTS_REASSEMBLY_OPTIONS_H

#undef IP_REASSEMBLY
#undef LWIP_IPV6_REASS
#undef LWIP_RAW
#define IP_REASSEMBLY      1
#define LWIP_IPV6_REASS    1
#define IP_REASS_MAX_PBUFS 1024
#define IP_REASS_MAXAGE    15 /* seconds */
#define IPV6_REASS_MAXAGE  15
#define LWIP_RAW           1 /* takes the datagrams that come out whole */
/* lwIP's bookkeeping is larger than a fragment header where pointers have 64 bits. */
#define IPV6_FRAG_COPYHEADER 1

#endif
