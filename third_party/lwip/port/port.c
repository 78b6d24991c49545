#include "lwip_port.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "arch/cc.h"

#ifndef CULVERT_LWIP_ASSERT_ABORTS
#define CULVERT_LWIP_ASSERT_ABORTS 0
#endif

uint64_t culvert_lwip_assertions;
void (*culvert_lwip_assert_report)(const char *message, const char *file, int line);
void (*culvert_lwip_no_memory)(size_t size);

void *culvert_lwip_malloc(size_t size)
{
    void *got = malloc(size);

    if (got == NULL && culvert_lwip_no_memory != NULL)
        culvert_lwip_no_memory(size);
    return got;
}

static void report(const char *message, const char *file, int line)
{
    if (culvert_lwip_assert_report != NULL && !CULVERT_LWIP_ASSERT_ABORTS)
        culvert_lwip_assert_report(message, file, line);
    else
        fprintf(stderr, "culvert: lwIP: assertion failed: %s (%s:%d)\n", message, file, line);
}

void culvert_lwip_assert(const char *message, const char *file, int line)
{
    if (culvert_lwip_assertions++ == 0)
        report(message, file, line);
    if (CULVERT_LWIP_ASSERT_ABORTS)
        abort();
}

/*
 * lwIP asks for randomness only in places where a guess does no harm (initial sequence numbers
 * come from culvert_tcp_isn()): a zero from a kernel that has none to give yet is good enough.
 */
uint32_t culvert_lwip_random(void)
{
    uint32_t value = 0;

    if (getrandom(&value, sizeof(value), GRND_NONBLOCK) != (ssize_t)sizeof(value))
        return 0;
    return value;
}
