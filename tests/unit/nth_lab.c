#undef _FORTIFY_SOURCE /* its inline functions have names that are defined here */

#include "tests/unit/nth_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "core/command/options.h"
#include "core/worker/process.h"
#include "core/worker/worker.h"
#include "stack/stack.h"
#include "tests/unit/dns_server.h"

enum { TURNS_TO_END = 1000, TIMERS_MAX = 64 };

static const struct socks5_credentials credentials = {"user", "password"};
static const struct dns_record records[] = {
    {.name = "proxy.test", .ttl = 3600, .addrs = {"127.0.0.1"}},
    {.name = NULL},
};

static struct lab *lab; /* the one that runs */
static struct {
    pthread_t thread;
    sem_t go, pause;
    sigset_t stop;         /* SIGTERM */
    enum faults_kind kind; /* what counts while the worker works */
    struct options options;
    struct stack *stack;
    struct loop *loop; /* the resolver's */
    struct dns_server dns;
    const struct device_ops *device_ops; /* the memory's own */
    bool moved;                          /* a packet was written or read in this turn */
    int log_fd;
} s;

/* --- time ------------------------------------------------------------------------------------- */

static uint64_t ahead_ms; /* of the system's monotonic clock */
static struct itimerspec timers[TIMERS_MAX];

static int (*real_clock_gettime)(clockid_t clock, struct timespec *now);
static int (*real_timerfd_settime)(int fd, int flags, const struct itimerspec *to,
                                   struct itimerspec *from);

static void find_real_clock(void)
{
    *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    *(void **)&real_timerfd_settime = dlsym(RTLD_NEXT, "timerfd_settime");
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!real_clock_gettime)
        find_real_clock();
    int result = real_clock_gettime(clock, now);
    if (result == 0 && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE)) {
        uint64_t ns = (uint64_t)now->tv_nsec + ahead_ms % 1000 * 1000000;
        now->tv_sec += (time_t)(ahead_ms / 1000 + ns / 1000000000);
        now->tv_nsec = (long)(ns % 1000000000);
    }
    return result;
}

/* Arm it for when the clock that is ahead will say so; for the past, at once; for zero, disarm it.
 */
static int arm(int fd, const struct itimerspec *to)
{
    if (to->it_value.tv_sec == 0 && to->it_value.tv_nsec == 0)
        return real_timerfd_settime(fd, TFD_TIMER_ABSTIME, to, NULL);
    int64_t ms = (int64_t)to->it_value.tv_sec * 1000 + to->it_value.tv_nsec / 1000000;
    ms -= (int64_t)ahead_ms;
    struct itimerspec real = {.it_value = {.tv_nsec = 1}};
    if (ms > 0)
        real.it_value = (struct timespec){.tv_sec = (time_t)(ms / 1000),
                                          .tv_nsec = (long)(ms % 1000 * 1000000)};
    return real_timerfd_settime(fd, TFD_TIMER_ABSTIME, &real, NULL);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *from)
{
    if (faults_strike(FAULTS_CALL, ENOMEM, "timerfd_settime"))
        return -1;
    assert_true(flags == TFD_TIMER_ABSTIME && from == NULL && fd < TIMERS_MAX);
    timers[fd] = *to;
    return arm(fd, to);
}

void lab_pass(unsigned ms)
{
    ahead_ms += ms;
    for (int fd = 0; fd < TIMERS_MAX; fd++)
        if (timers[fd].it_value.tv_sec > 0 && arm(fd, &timers[fd]) != 0) /* closed meanwhile */
            timers[fd] = (struct itimerspec){0};
}

/* --- the device ------------------------------------------------------------------------------- */

/* Readable as long as there are packets: a bell is rung with each, and stilled with the last. */
static int counted_read(struct device *d, struct packet *batch, size_t count)
{
    if (faults_strike(FAULTS_CALL, EBADFD, "device read"))
        return -errno;
    int n = s.device_ops->read(d, batch, count);
    if ((size_t)n < count) {
        enum faults_kind kind = faults->kind;
        eventfd_t rings;
        faults->kind = FAULTS_NONE;
        (void)eventfd_read(d->fd, &rings);
        faults->kind = kind;
    }
    s.moved = s.moved || n > 0;
    return n;
}

static int counted_write(struct device *d, struct iovec *iov, int iov_count,
                         const struct offload *offload)
{
    if (faults_strike(FAULTS_CALL, EIO, "device write")) {
        d->write_drops++;
        return -errno;
    }
    s.moved = true;
    return s.device_ops->write(d, iov, iov_count, offload);
}

static void counted_close(struct device *d)
{
    close(d->fd);
    s.device_ops->close(d);
}

static const struct device_ops counted_ops = {
    .read = counted_read,
    .write = counted_write,
    .close = counted_close,
};

void lab_push(struct lab *l, const void *packet, size_t len)
{
    assert_true(device_memory_push(l->device, packet, len, NULL));
    assert_int_equal(eventfd_write(l->device->fd, 1), 0);
}

bool lab_pop(struct lab *l, struct segment *segment)
{
    return peer_pop(l->device, segment);
}

/* --- the worker's thread ---------------------------------------------------------------------- */

void __real_loop_turn(struct loop *loop, bool wait);
void __wrap_loop_turn(struct loop *loop, bool wait);
/* The worker's turns: the test's comes before each, and nothing here waits. */
void __wrap_loop_turn(struct loop *loop, bool wait)
{
    (void)wait;
    faults->kind = FAULTS_NONE;
    lab->conns = stack_counters(s.stack)->conns;
    sem_post(&s.pause);
    sem_wait(&s.go);
    faults->kind = s.kind;
    __real_loop_turn(loop, false);
}

struct stack *__real_stack_new(struct device *device, const struct stack_config *config,
                               const struct stack_ops *ops, void *ctx);
struct stack *__wrap_stack_new(struct device *device, const struct stack_config *config,
                               const struct stack_ops *ops, void *ctx);
struct stack *__wrap_stack_new(struct device *device, const struct stack_config *config,
                               const struct stack_ops *ops, void *ctx)
{
    s.stack = __real_stack_new(device, config, ops, ctx);
    return s.stack;
}

void __real_stack_free(struct stack *stack);
void __wrap_stack_free(struct stack *stack);
void __wrap_stack_free(struct stack *stack)
{
    lab->flows_left = (unsigned)stack_counters(stack)->conns;
    __real_stack_free(stack);
}

/* The resolver's port is not 53 here. */
void __real_resolver_set_servers(struct resolver *r, const char *conf_path, uint16_t port);
void __wrap_resolver_set_servers(struct resolver *r, const char *conf_path, uint16_t port);
void __wrap_resolver_set_servers(struct resolver *r, const char *conf_path, uint16_t port)
{
    (void)port;
    __real_resolver_set_servers(r, conf_path, s.dns.port);
}

static void *run_worker(void *arg)
{
    struct lab *l = arg;
    faults->kind = s.kind;
    const struct worker_seat seat = {.device = l->device, .looks_at_proxy = true, .latency_fd = -1};
    l->result = worker_run(&seat, &s.options, NULL, NULL);
    faults->kind = FAULTS_NONE;
    l->running = false;
    sem_post(&s.pause);
    return NULL;
}

/* The worker works, up to its next wait or its end. */
static void work(void)
{
    sem_post(&s.go);
    sem_wait(&s.pause);
}

bool lab_turn(struct lab *l)
{
    s.moved = false;
    if (l->running)
        work();
    bool moved = echo_proxy_turn(&l->proxy);
    __real_loop_turn(s.loop, false);
    return s.moved || moved;
}

/* --- its beginning and its end ---------------------------------------------------------------- */

int lab_descriptors(const struct lab *l)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - (int)echo_proxy_count(&l->proxy);
}

void lab_prepare(void)
{
    char path[64];
    lab = NULL;
    process_prepare_relay();
    sigemptyset(&s.stop);
    sigaddset(&s.stop, SIGTERM);
    assert_int_equal(sigprocmask(SIG_BLOCK, &s.stop, NULL), 0);
    s.log_fd = memfd_create("log", MFD_CLOEXEC);
    assert_true(s.log_fd >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", s.log_fd);
    assert_int_equal(log_open_file(path), 0);
    log_set_level(LOG_LEVEL_DEBUG);
    sem_init(&s.go, 0, 0);
    sem_init(&s.pause, 0, 0);
}

static void make_options(struct lab *l)
{
    char error[OPTIONS_ERROR_MAX], url[64];
    char program[] = "culvert", tun[] = "tun", dns[] = "--dns-server", server[] = "192.0.2.53";
    snprintf(url, sizeof(url), "socks5://user:password@proxy.test:%u", l->proxy.port);
    char *argv[] = {program, tun, dns, server, url, NULL};
    if (options_parse(5, argv, &s.options, error) != OPTIONS_RUN)
        fail_msg("%s", error);
    s.options.resolver_conf = s.dns.conf_path;
}

void lab_start(struct lab *l, enum faults_kind kind, unsigned nth)
{
    *l = (struct lab){.running = true};
    lab = l;
    assert_int_equal(ftruncate(s.log_fd, 0), 0);
    memset(timers, 0, sizeof(timers));
    s.loop = loop_new();
    assert_non_null(s.loop);
    dns_server_start(&s.dns, s.loop, records);
    echo_proxy_start(&l->proxy, &credentials);
    make_options(l);
    l->device = device_memory_new(PEER_MTU, (struct device_caps){0});
    assert_non_null(l->device);
    s.device_ops = l->device->ops;
    l->device->ops = &counted_ops;
    l->device->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->descriptors = lab_descriptors(l);
    *faults = (struct faults){.left = nth};
    s.kind = kind;
    assert_int_equal(pthread_create(&s.thread, NULL, run_worker, l), 0);
    sem_wait(&s.pause);
    l->at_ready = lab_descriptors(l);
}

static char *read_log(void)
{
    char *text = calloc(1, 1 << 20);
    assert_non_null(text);
    assert_true(pread(s.log_fd, text, (1 << 20) - 1, 0) >= 0);
    return text;
}

char *lab_stop(struct lab *l)
{
    if (l->running)
        assert_int_equal(kill(getpid(), SIGTERM), 0); /* blocked: the worker reads it */
    for (int i = 0; l->running; i++) {
        assert_true(i < TURNS_TO_END);
        lab_turn(l);
    }
    pthread_join(s.thread, NULL);
    const struct timespec no_wait = {0};
    (void)sigtimedwait(&s.stop, NULL, &no_wait); /* it may have ended without */
    s.kind = FAULTS_NONE;
    assert_int_equal(lab_descriptors(l), l->descriptors);
    device_close(l->device);
    echo_proxy_stop(&l->proxy);
    dns_server_stop(&s.dns);
    loop_free(s.loop);
    options_wipe(&s.options);
    return read_log();
}
