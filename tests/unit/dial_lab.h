/*
 * Dials against a proxy that misbehaves, in one process and one loop. Every test also checks that
 * no descriptor is left behind.
 */
#ifndef CULVERT_TESTS_DIAL_LAB_H
#define CULVERT_TESTS_DIAL_LAB_H

#include "core/proxy/proxy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "core/proxy/handshake.h"
#include "tests/unit/dns_server.h"
#include "tests/unit/rude_proxy.h"
#include "tests/unit/stopped_clock.h"

static const struct dns_record records[] = {
    {.name = "proxy.test", .ttl = 30, .addrs = {"127.0.0.2", "127.0.0.3"}},
    {.name = "world.test", .ttl = 30, .addrs = {"127.0.0.2", "127.0.0.3"}},
    {.name = "absent.test", .rcode = 3},
    {.name = NULL},
};

/* Allocations of our own code may be made to fail: see the linker's --wrap in CMakeLists.txt. */
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
static int fail_calloc_at; /* the nth from now; 0: none */

void *__wrap_calloc(size_t n, size_t size)
{
    if (fail_calloc_at > 0 && --fail_calloc_at == 0)
        return NULL;
    return __real_calloc(n, size);
}

struct fixture {
    int descriptors;
    struct loop *loop;
    struct dns_server dns;
    struct outbound_options outbound;
    struct resolver *resolver;
    struct rude_proxy server;
    struct proxy_url url;
    struct proxy *proxy;
};

struct outcome {
    int calls;
    struct dial_result result;
};

static inline int count_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static inline void use_url(struct fixture *f, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Have a new proxy object for this URL, which knows nothing yet. */
static inline void use_url(struct fixture *f, const char *format, ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    proxy_free(f->proxy);
    assert_null(proxy_url_parse(text, &f->url));
    f->proxy = proxy_new(f->loop, f->resolver, &f->url, &f->outbound, true);
    assert_non_null(f->proxy);
}

static inline int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    f->descriptors = count_descriptors();
    f->loop = loop_new();
    assert_non_null(f->loop);
    dns_server_start(&f->dns, f->loop, records);
    f->outbound.connect_timeout_ms = 5000;
    f->resolver = resolver_new(f->loop, &f->outbound);
    assert_non_null(f->resolver);
    resolver_set_servers(f->resolver, f->dns.conf_path, f->dns.port);
    rude_proxy_start(&f->server, f->loop, "127.0.0.1", 0);
    use_url(f, "socks5://127.0.0.1:%u", f->server.port);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
{
    struct fixture *f = *state;
    proxy_free(f->proxy);
    rude_proxy_stop(&f->server);
    resolver_free(f->resolver);
    dns_server_stop(&f->dns);
    loop_free(f->loop);
    assert_int_equal(count_descriptors(), f->descriptors);
    free(f);
    return 0;
}

static inline uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline void on_dialled(void *arg, const struct dial_result *result)
{
    struct outcome *o = arg;
    o->calls++;
    o->result = *result;
}

static inline void on_nothing(void *arg)
{
    (void)arg;
}

static inline void turn_for(struct fixture *f, const int *calls, int wanted, uint64_t ms)
{
    struct loop_timer end = {0};
    uint64_t start = now_ms();
    loop_timer_start(f->loop, &end, ms, on_nothing, NULL);
    while (*calls < wanted && now_ms() - start < ms)
        loop_turn(f->loop, true);
    loop_timer_stop(&end);
}

static inline struct target to_name(const char *name)
{
    return (struct target){.name = name, .port = 80};
}

static inline struct target to_addr(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 80, &e));
    return (struct target){.addr = e.addr, .port = e.port};
}

static inline struct dial_result dial(struct fixture *f, enum socks5_command command,
                                      struct target target)
{
    struct outcome o = {0};
    assert_non_null(dial_start(f->proxy, command, &target, on_dialled, &o));
    assert_int_equal(o.calls, 0);
    turn_for(f, &o.calls, 1, 10000);
    assert_int_equal(o.calls, 1);
    if (o.result.status != DIAL_OK)
        assert_int_equal(o.result.fd, -1);
    return o.result;
}

static inline struct dial_result connect_through(struct fixture *f)
{
    return dial(f, SOCKS5_CONNECT, to_name("example.test"));
}

/* A connection came about, and exactly `payload` waits in its socket. */
static inline void assert_connected(struct fixture *f, const struct dial_result *r,
                                    const char *payload)
{
    char bytes[64];
    assert_int_equal(r->status, DIAL_OK);
    assert_true(r->fd >= 0);
    int never = 0;
    turn_for(f, &never, 1, 5);
    ssize_t n = recv(r->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (payload) {
        assert_int_equal(n, strlen(payload));
        assert_memory_equal(bytes, payload, strlen(payload));
    } else {
        assert_int_equal(n, -1);
        assert_int_equal(errno, EAGAIN);
    }
    close(r->fd);
}

/* A listener whose queue is full drops SYNs: an address that never answers. */
struct black_hole {
    int fd;
    int fillers[3];
};

static inline void black_hole_open(struct black_hole *b, const char *addr, uint16_t port)
{
    struct endpoint e = {.port = port};
    struct sockaddr_storage sa;
    assert_true(addr_parse(addr, &e.addr));
    socklen_t len = endpoint_to_sockaddr(&e, &sa);
    b->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(b->fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(listen(b->fd, 0), 0);
    for (size_t i = 0; i < 3; i++) {
        b->fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)connect(b->fillers[i], (struct sockaddr *)&sa, len);
    }
}

static inline void black_hole_close(struct black_hole *b)
{
    for (size_t i = 0; i < 3; i++)
        close(b->fillers[i]);
    close(b->fd);
}

#define DIAL_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
