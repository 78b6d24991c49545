/*
 * malloc(), calloc() and mmap() that fail when a test says so; link with --wrap for each.
 */
#ifndef CULVERT_TESTS_FAILING_MEMORY_H
#define CULVERT_TESTS_FAILING_MEMORY_H

#include <stdbool.h>

struct failing_memory {
    unsigned long calls_left; /* until one fails, which leaves 0; 0: none does */
    bool paused;              /* for the test's own */
};
extern struct failing_memory failing_memory;

#endif
