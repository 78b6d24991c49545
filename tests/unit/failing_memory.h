/*
 * malloc(), calloc() and mmap() that fail when a test says so; link with --wrap for each.
 */
#ifndef CULVERT_TESTS_FAILING_MEMORY_H
#define CULVERT_TESTS_FAILING_MEMORY_H

#include <stdbool.h>

/* Volatile: compilers know that malloc() looks at no variable, and drop or move what is set for it.
 */
struct failing_memory {
    volatile unsigned long calls_left; /* until one fails, which leaves 0; 0: none does */
    volatile bool paused;              /* for the test's own */
};
extern struct failing_memory failing_memory;

#endif
