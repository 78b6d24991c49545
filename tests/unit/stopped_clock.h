/*
 * CLOCK_MONOTONIC as a process sees it that was stopped for a while, in tests that are linked with
 * --wrap=clock_gettime. For one source file of a program.
 */
#ifndef CULVERT_TESTS_STOPPED_CLOCK_H
#define CULVERT_TESTS_STOPPED_CLOCK_H

#include <time.h>

static time_t stopped_s; /* how long, in seconds: the test sets it, and resets it at its end */

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = __real_clock_gettime(clock, now);
    now->tv_sec += stopped_s;
    return result;
}

#endif
