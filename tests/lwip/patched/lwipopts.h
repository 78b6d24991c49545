/* For test_patches.c: our options, less what stack/window.c does to headers. */
#ifndef CULVERT_TESTS_PATCHED_LWIPOPTS_H
#define CULVERT_TESTS_PATCHED_LWIPOPTS_H

#include "../../../third_party/lwip/port/lwipopts.h"

#undef LWIP_HOOK_TCP_OUT_ADD_TCPOPTS

#endif
