/*
 * Calls that fail once: the nth allocation, or the nth system call, of a culvert that runs.
 *
 * A test maps a file (CULVERT_FAULTS names it) and sets in it what is to fail; culvert's processes
 * share it, so that one of them can be led through every n without being started anew. Built in
 * two ways:
 *
 *   culvert_faulty   culvert with this linked in by --wrap: our own calls and lwIP's, and the
 *                    sanitizers see what comes of it
 *   faults.so        preloaded into culvert itself: the calls of libevent and c-ares too
 *
 * System calls fail with an errno that they may have in real life. The wall clock can be put back,
 * too.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { KIND_NONE, KIND_MEMORY, KIND_CALL };

/* As tests/e2e/faults.py writes it. */
struct control {
    volatile uint32_t kind;   /* enum kind: which calls count */
    volatile uint32_t left;   /* calls until one fails; 0: none does any more */
    volatile uint32_t failed; /* how many have */
    volatile uint32_t error;  /* errno instead of the call's usual one, unless 0 */
    char where[48];           /* the call that failed */
    volatile int32_t shift;   /* seconds by which the wall clock is off */
};

static struct control none;
static struct control *control = &none;

__attribute__((constructor)) static void map_control(void)
{
    const char *path = getenv("CULVERT_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        control = at;
}

static int fails(enum kind kind, int error, const char *name)
{
    struct control *c = control;
    if (c->kind != kind || c->left == 0 || __sync_sub_and_fetch(&c->left, 1) != 0)
        return 0;
    c->failed++;
    size_t i = 0;
    for (; name[i] && i + 1 < sizeof c->where; i++)
        c->where[i] = name[i];
    c->where[i] = '\0';
    errno = c->error ? (int)c->error : error;
    return 1;
}

#ifdef FAULTS_PRELOAD
#define NAME(call)                 call
#define MEMORY(call)               __libc_##call
#define DECLARE(result, call, ...) static result (*real_##call)(__VA_ARGS__)
#define REAL(call)                                                                                 \
    (real_##call ? real_##call : (*(void **)&real_##call = dlsym(RTLD_NEXT, #call), real_##call))
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
#define __libc_aligned_alloc __libc_memalign
#else
#define NAME(call)   __wrap_##call
#define MEMORY(call) __real_##call
#define DECLARE(result, call, ...)                                                                 \
    result __real_##call(__VA_ARGS__);                                                             \
    result __wrap_##call(__VA_ARGS__)
#define REAL(call) __real_##call
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *at, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
#endif

void *NAME(malloc)(size_t size)
{
    return fails(KIND_MEMORY, ENOMEM, "malloc") ? NULL : MEMORY(malloc)(size);
}

void *NAME(calloc)(size_t count, size_t size)
{
    return fails(KIND_MEMORY, ENOMEM, "calloc") ? NULL : MEMORY(calloc)(count, size);
}

void *NAME(realloc)(void *at, size_t size)
{
    return fails(KIND_MEMORY, ENOMEM, "realloc") ? NULL : MEMORY(realloc)(at, size);
}

void *NAME(aligned_alloc)(size_t alignment, size_t size)
{
    return fails(KIND_MEMORY, ENOMEM, "aligned_alloc") ? NULL
                                                       : MEMORY(aligned_alloc)(alignment, size);
}

/* NOLINTBEGIN(bugprone-macro-parentheses): arguments already stand in parentheses */
/* One that fails as the kernel's: -1 and errno. */
#define CALL(result, call, error, parameters, arguments)                                           \
    DECLARE(result, call, PARAMETERS parameters);                                                  \
    result NAME(call)(PARAMETERS parameters)                                                       \
    {                                                                                              \
        return fails(KIND_CALL, error, #call) ? -1 : REAL(call) arguments;                         \
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
        return fails(KIND_CALL, error, #call) ? break_off(fd) : REAL(call) arguments;              \
    }
/* NOLINTEND(bugprone-macro-parentheses) */

DECLARE(int, clock_gettime, clockid_t clock, struct timespec *now);
int NAME(clock_gettime)(clockid_t clock, struct timespec *now)
{
    int result = REAL(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += control->shift;
    return result;
}

#ifdef FAULTS_PRELOAD /* not ours to call */
DECLARE(int, gettimeofday, struct timeval *now, void *zone);
int gettimeofday(struct timeval *now, void *zone)
{
    int result = REAL(gettimeofday)(now, zone);
    now->tv_sec += control->shift;
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
TRANSFER(send, EPIPE, (int fd, const void *at, size_t len, int flags), (fd, at, len, flags))
TRANSFER(sendmsg, EPIPE, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
CALL(ssize_t, read, EIO, (int fd, void *at, size_t len), (fd, at, len))
CALL(ssize_t, write, EIO, (int fd, const void *at, size_t len), (fd, at, len))
CALL(ssize_t, writev, ENOBUFS, (int fd, const struct iovec *iov, int count), (fd, iov, count))
CALL(int, epoll_ctl, ENOMEM, (int set, int what, int fd, struct epoll_event *event),
     (set, what, fd, event))
CALL(int, timerfd_settime, ENOMEM,
     (int fd, int flags, const struct itimerspec *to, struct itimerspec *from),
     (fd, flags, to, from))
CALL(int, recvmmsg, ENOMEM,
     (int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout),
     (fd, messages, count, flags, timeout))
CALL(int, sendmmsg, ENOBUFS, (int fd, struct mmsghdr *messages, unsigned count, int flags),
     (fd, messages, count, flags))
CALL(int, pipe2, EMFILE, (int fds[2], int flags), (fds, flags))
CALL(ssize_t, splice, ENOMEM,
     (int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags),
     (in, in_at, out, out_at, len, flags))
