/*
 * LD_PRELOAD: a child is born into no PID namespace, as where that is forbidden. For valgrind,
 * which names each process's log by its number: as number 1 of a namespace of its own each worker
 * wrote over the logs of the others, and an ordinary user's could not even open root's
 * (tests/e2e/valgrind).
 */
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/syscall.h>

enum { ARGUMENTS = 6 };

long syscall(long number, ...);
long syscall(long number, ...)
{
    static long (*real)(long number, ...);
    long a[ARGUMENTS];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < ARGUMENTS; i++)
        a[i] = va_arg(args, long); /* registers, whether they were given or not */
    va_end(args);
    if (number == SYS_clone && a[0] & CLONE_NEWPID) {
        errno = EPERM;
        return -1;
    }
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
