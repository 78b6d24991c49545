/*
 * Memory that may run out while we run. That costs the flow or the query that wanted it, never the
 * daemon, and a line says so, at most a few in a row: libevent, c-ares and lwIP are given these
 * functions too, so that there is one place that knows. All give memory for free().
 */
#ifndef CULVERT_BASE_MEMORY_H
#define CULVERT_BASE_MEMORY_H

#include <stddef.h>

void *memory_get(size_t size);    /* malloc() */
void *memory_zeroed(size_t size); /* calloc() */
void *memory_aligned(size_t alignment, size_t size);
void *memory_resized(void *old, size_t size); /* realloc(); `old` stays where there is none */

/* An allocator of another's has refused that many bytes: say so. Keeps errno. */
void memory_refused(size_t size);

#endif
