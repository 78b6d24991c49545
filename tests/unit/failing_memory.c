#include "failing_memory.h"

#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>

struct failing_memory failing_memory;

static bool fails_now(void)
{
    struct failing_memory *m = &failing_memory;
    return !m->paused && m->calls_left > 0 && --m->calls_left == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
    return fails_now() ? MAP_FAILED : __real_mmap(at, len, protection, flags, fd, offset);
}
