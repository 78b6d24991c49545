#include "core/base/memory.h"

#include <stdlib.h>

#include "core/base/log.h"

void memory_refused(size_t size)
{
    static struct log_limit limit = LOG_LIMIT(3);
    log_limited(LOG_LEVEL_WARN, &limit,
                "out of memory: %zu bytes, and whoever wanted them, go without", size);
}

static void *checked(void *got, size_t size)
{
    if (!got && size > 0)
        memory_refused(size);
    return got;
}

void *memory_get(size_t size)
{
    return checked(malloc(size), size);
}

void *memory_zeroed(size_t size)
{
    return checked(calloc(1, size), size);
}

void *memory_aligned(size_t alignment, size_t size)
{
    return checked(aligned_alloc(alignment, size), size);
}

void *memory_resized(void *old, size_t size)
{
    return checked(realloc(old, size), size);
}
