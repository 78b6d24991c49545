/*
 * What our port of lwIP offers beyond lwIP's own headers: what happens when there is no memory, and
 * when an assertion of lwIP does not hold. Debug and sanitizer builds abort, so that tests find it.
 * A release counts and goes on, since one connection in a state that lwIP thought impossible must
 * not take down all others.
 */
#ifndef CULVERT_LWIP_PORT_H
#define CULVERT_LWIP_PORT_H

#include <stddef.h>
#include <stdint.h>

/* How many of lwIP's assertions failed since the start. */
extern uint64_t culvert_lwip_assertions;

/*
 * Called for the first assertion that fails, with lwIP's message and the place in its source. NULL
 * (as at first): one line on stderr.
 */
extern void (*culvert_lwip_assert_report)(const char *message, const char *file, int line);

/* Called when malloc() has nothing for lwIP, which asked for so many bytes, unless it is NULL. */
extern void (*culvert_lwip_no_memory)(size_t size);

#endif
