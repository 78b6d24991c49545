/*
 * Preloaded by test_up_kill.py: ends the process, as kill -9 would, right before its KILL_AT-th
 * call that may change something: netlink messages, files, settings, devices. Children do not
 * count. KILL_COUNT names a file that tells in the end how many there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static pid_t counted;
static long calls, kill_at;

__attribute__((constructor)) static void begin(void)
{
    const char *at = getenv("KILL_AT");
    kill_at = at ? atol(at) : 0;
    counted = getpid();
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("KILL_COUNT");
    if (getpid() != counted || !path)
        return;
    FILE *f = fopen(path, "w");
    if (f) {
        fprintf(f, "%ld\n", calls);
        fclose(f);
    }
}

static void count(void)
{
    if (getpid() == counted && ++calls == kill_at)
        kill(getpid(), SIGKILL);
}

#define COUNTED(result, name, parameters, arguments)                                               \
    result name parameters                                                                         \
    {                                                                                              \
        static result(*real) parameters;                                                           \
        if (!real)                                                                                 \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                             \
        count();                                                                                   \
        return real arguments;                                                                     \
    }

COUNTED(ssize_t, sendto,
        (int fd, const void *bytes, size_t len, int flags, const struct sockaddr *to, socklen_t n),
        (fd, bytes, len, flags, to, n))
COUNTED(ssize_t, write, (int fd, const void *bytes, size_t len), (fd, bytes, len))
COUNTED(int, fdatasync, (int fd), (fd))
COUNTED(int, fsync, (int fd), (fd))
COUNTED(int, ftruncate, (int fd, off_t size), (fd, size))
COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
        (a, from, b, to, flags))
COUNTED(int, unlink, (const char *path), (path))
COUNTED(pid_t, fork, (void), ())
COUNTED(int, pipe2, (int ends[2], int flags), (ends, flags)) /* before a child is made */
COUNTED(int, close, (int fd), (fd))
