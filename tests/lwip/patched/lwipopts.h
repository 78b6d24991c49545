/* For test_patches.c: our options, but with the ICMP that some of the bugs lie in, and less room.
 */
#ifndef CULVERT_TESTS_PATCHED_LWIPOPTS_H
#define CULVERT_TESTS_PATCHED_LWIPOPTS_H

#include "../../../third_party/lwip/port/lwipopts.h"
#include "../reassembly_options.h"

#undef LWIP_ICMP
#undef LWIP_ICMP6
#undef icmp6_param_problem
#define LWIP_ICMP  1
#define LWIP_ICMP6 1

#undef IP_REASS_MAX_PBUFS
#define IP_REASS_MAX_PBUFS 60

/* What stack/window.c does to headers is no part of them. */
#undef LWIP_HOOK_TCP_OUT_ADD_TCPOPTS

#endif
