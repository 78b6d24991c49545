/*
 * Calls that fail once: the nth allocation, or the nth system call, of a culvert that runs.
 *
 * A test maps a file (CULVERT_FAULTS names it) and sets in it what is to fail; culvert's processes
 * share it, so that one of them can be led through every n without being started anew. Built in
 * three ways:
 *
 *   culvert_faulty   culvert with this linked in by --wrap: our own calls and lwIP's, and the
 *                    sanitizers see what comes of it
 *   faults.so        preloaded into culvert itself: the calls of libevent and c-ares too
 *   a unit test      with its own functions of these names, which the libraries find first, and
 *                    memory by --wrap, so that it stays the sanitizers' (tests/unit/nth_lab.h)
 *
 * System calls fail with an errno that they may have in real life. The wall clock can be put back,
 * too.
 */
#ifdef FAULTS_IN_PROCESS
#undef _FORTIFY_SOURCE /* its inline functions have the names that are defined here */
#endif

#include "tests/support/faults.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static struct faults none;
struct faults *faults = &none;

__attribute__((constructor)) static void map_control(void)
{
    const char *path = getenv("CULVERT_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof(struct faults), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        faults = at;
}

bool faults_strike(enum faults_kind kind, int error, const char *name)
{
    struct faults *f = faults;
    if (f->kind != kind || f->left == 0 || __sync_sub_and_fetch(&f->left, 1) != 0)
        return false;
    f->failed++;
    size_t i = 0;
    for (; name[i] && i + 1 < sizeof f->where; i++)
        f->where[i] = name[i];
    f->where[i] = '\0';
    errno = f->given = f->error ? (int)f->error : error;
    return true;
}

#if defined(FAULTS_PRELOAD) || defined(FAULTS_IN_PROCESS)
#define NAME(call)                 call
#define DECLARE(result, call, ...) static result (*real_##call)(__VA_ARGS__)
#define REAL(call)                                                                                 \
    (real_##call ? real_##call : (*(void **)&real_##call = dlsym(RTLD_NEXT, #call), real_##call))
#else
#define NAME(call) __wrap_##call
#define DECLARE(result, call, ...)                                                                 \
    result __real_##call(__VA_ARGS__);                                                             \
    result __wrap_##call(__VA_ARGS__)
#define REAL(call) __real_##call
#endif

#ifdef FAULTS_PRELOAD
#define MEMORY_NAME(call) call
#define MEMORY(call)      __libc_##call
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
#define __libc_aligned_alloc __libc_memalign
#else
#define MEMORY_NAME(call) __wrap_##call
#define MEMORY(call)      __real_##call
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *at, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
#endif

void *MEMORY_NAME(malloc)(size_t size)
{
    return faults_strike(FAULTS_MEMORY, ENOMEM, "malloc") ? NULL : MEMORY(malloc)(size);
}

void *MEMORY_NAME(calloc)(size_t count, size_t size)
{
    return faults_strike(FAULTS_MEMORY, ENOMEM, "calloc") ? NULL : MEMORY(calloc)(count, size);
}

void *MEMORY_NAME(realloc)(void *at, size_t size)
{
    return faults_strike(FAULTS_MEMORY, ENOMEM, "realloc") ? NULL : MEMORY(realloc)(at, size);
}

void *MEMORY_NAME(aligned_alloc)(size_t alignment, size_t size)
{
    return faults_strike(FAULTS_MEMORY, ENOMEM, "aligned_alloc")
               ? NULL
               : MEMORY(aligned_alloc)(alignment, size);
}

/* NOLINTBEGIN(bugprone-macro-parentheses): arguments already stand in parentheses */
/* One that fails as the kernel's: -1 and errno. */
#define CALL(result, call, error, parameters, arguments)                                           \
    DECLARE(result, call, PARAMETERS parameters);                                                  \
    result NAME(call)(PARAMETERS parameters)                                                       \
    {                                                                                              \
        return faults_strike(FAULTS_CALL, error, #call) ? -1 : REAL(call) arguments;               \
    }
#define PARAMETERS(...) __VA_ARGS__

/* Sockets between culvert's own processes are reset by no network. */
static unsigned char paired[256];

DECLARE(int, socketpair, int domain, int type, int protocol, int ends[2]);
int NAME(socketpair)(int domain, int type, int protocol, int ends[2])
{
    int result = REAL(socketpair)(domain, type, protocol, ends);
    for (int i = 0; result == 0 && i < 2; i++)
        if (ends[i] < (int)sizeof paired)
            paired[ends[i]] = 1;
    return result;
}

static ssize_t break_off(int fd)
{
    if (fd >= 0 && fd < (int)sizeof paired && paired[fd])
        errno = ENOMEM;
    return -1;
}

/* One by which bytes go to and fro. */
#define TRANSFER(call, error, parameters, arguments)                                               \
    DECLARE(ssize_t, call, PARAMETERS parameters);                                                 \
    ssize_t NAME(call)(PARAMETERS parameters)                                                      \
    {                                                                                              \
        return faults_strike(FAULTS_CALL, error, #call) ? break_off(fd) : REAL(call) arguments;    \
    }
/* NOLINTEND(bugprone-macro-parentheses) */

#ifndef FAULTS_IN_PROCESS /* there the clocks are the test's own */
DECLARE(int, clock_gettime, clockid_t clock, struct timespec *now);
int NAME(clock_gettime)(clockid_t clock, struct timespec *now)
{
    int result = REAL(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += faults->shift;
    return result;
}

CALL(int, timerfd_settime, ENOMEM,
     (int fd, int flags, const struct itimerspec *to, struct itimerspec *from),
     (fd, flags, to, from))
#endif

#ifdef FAULTS_PRELOAD /* not ours to call */
DECLARE(int, gettimeofday, struct timeval *now, void *zone);
int gettimeofday(struct timeval *now, void *zone)
{
    int result = REAL(gettimeofday)(now, zone);
    now->tv_sec += faults->shift;
    return result;
}

time_t time(time_t *out)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
#endif

CALL(int, socket, EMFILE, (int domain, int type, int protocol), (domain, type, protocol))
CALL(int, bind, EADDRNOTAVAIL, (int fd, const struct sockaddr *to, socklen_t len), (fd, to, len))
CALL(int, connect, ENETUNREACH, (int fd, const struct sockaddr *to, socklen_t len), (fd, to, len))
CALL(int, accept4, EMFILE, (int fd, struct sockaddr *from, socklen_t *len, int flags),
     (fd, from, len, flags))
CALL(int, getsockname, ENOBUFS, (int fd, struct sockaddr *at, socklen_t *len), (fd, at, len))
CALL(int, setsockopt, ENOMEM, (int fd, int level, int name, const void *at, socklen_t len),
     (fd, level, name, at, len))
CALL(int, getsockopt, ENOBUFS, (int fd, int level, int name, void *at, socklen_t *len),
     (fd, level, name, at, len))
CALL(int, shutdown, ENOTCONN, (int fd, int how), (fd, how))
TRANSFER(recv, ECONNRESET, (int fd, void *at, size_t len, int flags), (fd, at, len, flags))
TRANSFER(recvmsg, ENOMEM, (int fd, struct msghdr *message, int flags), (fd, message, flags))
TRANSFER(send, ENOMEM, (int fd, const void *at, size_t len, int flags), (fd, at, len, flags))
TRANSFER(sendmsg, EPIPE, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
CALL(ssize_t, read, EIO, (int fd, void *at, size_t len), (fd, at, len))
CALL(ssize_t, write, EIO, (int fd, const void *at, size_t len), (fd, at, len))
CALL(ssize_t, writev, ENOBUFS, (int fd, const struct iovec *iov, int count), (fd, iov, count))
CALL(int, epoll_ctl, ENOMEM, (int set, int what, int fd, struct epoll_event *event),
     (set, what, fd, event))
CALL(int, recvmmsg, ENOMEM,
     (int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout),
     (fd, messages, count, flags, timeout))
CALL(int, sendmmsg, ENOBUFS, (int fd, struct mmsghdr *messages, unsigned count, int flags),
     (fd, messages, count, flags))
CALL(int, pipe2, EMFILE, (int fds[2], int flags), (fds, flags))
CALL(ssize_t, splice, ENOMEM,
     (int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags),
     (in, in_at, out, out_at, len, flags))

#ifdef FAULTS_IN_PROCESS /* what libevent and c-ares call */
/* Memory that they are told to use (event_set_mem_functions() and the like), and fakedns' map. */
CALL(int, epoll_create1, EMFILE, (int flags), (flags))
CALL(int, epoll_wait, ENOMEM, (int set, struct epoll_event *events, int count, int ms),
     (set, events, count, ms))
CALL(int, signalfd, EMFILE, (int fd, const sigset_t *set, int flags), (fd, set, flags))
CALL(int, timerfd_create, EMFILE, (clockid_t clock, int flags), (clock, flags))
CALL(ssize_t, recvfrom, ENOMEM,
     (int fd, void *at, size_t len, int flags, struct sockaddr *from, socklen_t *from_len),
     (fd, at, len, flags, from, from_len))

void *__real_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
    return faults_strike(FAULTS_MEMORY, ENOMEM, "mmap")
               ? MAP_FAILED
               : __real_mmap(at, len, protection, flags, fd, offset);
}
#endif
