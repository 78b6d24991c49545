/*
 * The relay between two real TCP connections over loopback: what is copied, what is spliced,
 * back-pressure, half-close, resets, and what an idle relay holds (nothing).
 */
#include "core/serve/splice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CLIENT, TARGET };

struct lab {
    struct loop *loop;
    struct relay_pool *pool;
    struct relay relay;
    int peer[2]; /* the client's and the target's own sockets, non-blocking */
    int early_calls, over_calls, error;
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A TCP connection over loopback; both ends non-blocking. */
static void tcp_pair(int *one, int *other)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sin;
    const int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(listener, (struct sockaddr *)&sin, sizeof sin), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&sin, &len), 0);
    *one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(*one, (struct sockaddr *)&sin, sizeof sin), 0);
    *other = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(*other >= 0);
    assert_int_equal(setsockopt(*one, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
    struct timeval soon = {.tv_usec = 1000};
    assert_int_equal(setsockopt(*one, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon), 0);
    close(listener);
}

static void on_early(void *arg)
{
    struct lab *lab = arg;
    lab->early_calls++;
}

static void on_over(void *arg, int error)
{
    struct lab *lab = arg;
    lab->over_calls++;
    lab->error = error;
}

static void turns(struct lab *lab, unsigned ms)
{
    uint64_t until = now_ms() + ms;
    do
        loop_turn(lab->loop, false);
    while (now_ms() < until);
}

static void run_until_over(struct lab *lab)
{
    uint64_t until = now_ms() + 5000;
    while (lab->over_calls == 0 && now_ms() < until)
        loop_turn(lab->loop, false);
    assert_int_equal(lab->over_calls, 1);
}

static int descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* A relay that runs, or with `run` false its first end only; returns the second's descriptor. */
static int start(struct lab *lab, bool run)
{
    int near_client, near_target;

    tcp_pair(&lab->peer[CLIENT], &near_client);
    tcp_pair(&lab->peer[TARGET], &near_target);
    lab->early_calls = lab->over_calls = lab->error = 0;
    assert_int_equal(
        relay_init(&lab->relay, lab->loop, lab->pool, near_client, on_early, on_over, lab), 0);
    if (run)
        assert_int_equal(relay_run(&lab->relay, near_target), 0);
    return near_target;
}

static void stop(struct lab *lab)
{
    relay_close(&lab->relay, false);
    close(lab->peer[CLIENT]);
    close(lab->peer[TARGET]);
}

static int setup(void **state)
{
    struct lab *lab = calloc(1, sizeof *lab);
    signal(SIGPIPE, SIG_IGN);
    lab->loop = loop_new();
    lab->pool = relay_pool_new(lab->loop);
    *state = lab;
    return lab->loop && lab->pool ? 0 : -1;
}

static int teardown(void **state)
{
    struct lab *lab = *state;
    relay_pool_free(lab->pool);
    loop_free(lab->loop);
    free(lab);
    return 0;
}

static uint8_t byte_at(uint64_t at, unsigned seed)
{
    return (uint8_t)((at * 2654435761u >> 13) + seed);
}

struct flow {
    uint64_t sent, received;
    unsigned seed;
};

/* Send what the socket takes, up to `until` bytes altogether. */
static void push(int fd, struct flow *f, uint64_t until)
{
    uint8_t bytes[65536];

    while (f->sent < until) {
        size_t n = until - f->sent < sizeof bytes ? (size_t)(until - f->sent) : sizeof bytes;
        for (size_t i = 0; i < n; i++)
            bytes[i] = byte_at(f->sent + i, f->seed);
        long sent = send(fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return;
        f->sent += (uint64_t)sent;
    }
}

/* Receive what is there and check it. Returns what recv() said last. */
static long pull(int fd, struct flow *f)
{
    uint8_t bytes[65536];
    long n;

    while ((n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
        for (long i = 0; i < n; i++)
            if (bytes[i] != byte_at(f->received + (uint64_t)i, f->seed))
                fail_msg("byte %llu is wrong", (unsigned long long)f->received + (uint64_t)i);
        f->received += (uint64_t)n;
    }
    return n;
}

static void move_all(struct lab *lab, struct flow *up, struct flow *down, uint64_t bytes)
{
    uint64_t deadline = now_ms() + 20000;

    while (up->received < bytes || down->received < bytes) {
        assert_true(now_ms() < deadline);
        push(lab->peer[CLIENT], up, bytes);
        push(lab->peer[TARGET], down, bytes);
        loop_turn(lab->loop, false);
        pull(lab->peer[TARGET], up);
        pull(lab->peer[CLIENT], down);
    }
}

static void expect(struct lab *lab, int side, const char *text)
{
    char got[64] = "";
    size_t len = 0;
    uint64_t until = now_ms() + 2000;

    while (len < strlen(text) && now_ms() < until) {
        loop_turn(lab->loop, false);
        long n = recv(lab->peer[side], got + len, sizeof got - 1 - len, MSG_DONTWAIT);
        len += n > 0 ? (size_t)n : 0;
    }
    assert_string_equal(got, text);
}

static void say(struct lab *lab, int side, const char *text)
{
    assert_int_equal(send(lab->peer[side], text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void test_small_messages(void **state)
{
    struct lab *lab = *state;
    start(lab, true);
    int before = descriptors();
    for (int i = 0; i < 100; i++) {
        say(lab, CLIENT, "question");
        expect(lab, TARGET, "question");
        say(lab, TARGET, "answer");
        expect(lab, CLIENT, "answer");
    }
    assert_int_equal(descriptors(), before); /* no pipe was needed */
    assert_int_equal(lab->relay.ways[RELAY_UP].moved, 800);
    stop(lab);
}

static void test_bulk_both_ways(void **state)
{
    struct lab *lab = *state;
    struct flow up = {.seed = 1}, down = {.seed = 2};
    start(lab, true);
    move_all(lab, &up, &down, 32u << 20);
    turns(lab, 20);
    assert_null(lab->relay.ways[RELAY_UP].pipe);
    assert_null(lab->relay.ways[RELAY_DOWN].pipe);
    assert_false(lab->relay.ways[RELAY_UP].spill || lab->relay.ways[RELAY_DOWN].spill);
    stop(lab);
}

/* Without descriptors for a pipe everything is copied, and nothing lost. */
static void test_bulk_without_pipes(void **state)
{
    struct lab *lab = *state;
    struct flow up = {.seed = 3}, down = {.seed = 4};
    struct rlimit limit, none;
    start(lab, true);
    getrlimit(RLIMIT_NOFILE, &limit);
    none = (struct rlimit){.rlim_cur = 3, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    move_all(lab, &up, &down, 8u << 20);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    stop(lab);
}

/* A reader that stalls holds back the sender; nothing grows, nothing spins, nothing is lost. */
static void test_back_pressure(void **state)
{
    struct lab *lab = *state;
    struct flow up = {.seed = 5};
    start(lab, true);
    for (int i = 0; i < 20; i++) { /* the kernel widens its buffers for a while */
        push(lab->peer[CLIENT], &up, UINT64_MAX);
        turns(lab, 20);
    }
    assert_in_range(up.sent, 1, 64u << 20);
    uint64_t stalled_at = up.sent;
    uint64_t until = now_ms() + 5000;
    while (up.received < stalled_at && now_ms() < until) {
        pull(lab->peer[TARGET], &up);
        loop_turn(lab->loop, false);
    }
    assert_int_equal(up.received, stalled_at);
    say(lab, TARGET, "still there");
    expect(lab, CLIENT, "still there");
    stop(lab);
}

static void test_half_close(void **state)
{
    struct lab *lab = *state;
    for (int first = CLIENT; first <= TARGET; first++) {
        struct flow rest = {.seed = 6}, none = {0};
        int other = !first;
        start(lab, true);
        say(lab, first, "last words");
        assert_int_equal(shutdown(lab->peer[first], SHUT_WR), 0);
        expect(lab, other, "last words");
        turns(lab, 20);
        assert_int_equal(recv(lab->peer[other], &(char){0}, 1, MSG_DONTWAIT), 0);
        while (rest.received < (4u << 20)) {
            push(lab->peer[other], &rest, 4u << 20);
            loop_turn(lab->loop, false);
            pull(lab->peer[first], &rest);
        }
        assert_int_equal(lab->over_calls, 0);
        assert_int_equal(shutdown(lab->peer[other], SHUT_WR), 0);
        run_until_over(lab);
        assert_int_equal(lab->error, 0);
        assert_int_equal(pull(lab->peer[first], &none), 0);
        stop(lab);
    }
}

/* What was said in front of a FIN arrives in front of it, however much it was. */
static void test_fin_behind_bulk(void **state)
{
    struct lab *lab = *state;
    struct flow up = {.seed = 7};
    start(lab, true);
    for (int i = 0; i < 100; i++) {
        push(lab->peer[CLIENT], &up, 64u << 20);
        loop_turn(lab->loop, false);
    }
    shutdown(lab->peer[CLIENT], SHUT_WR);
    shutdown(lab->peer[TARGET], SHUT_WR);
    long said = -1;
    uint64_t until = now_ms() + 5000;
    while (said != 0 && now_ms() < until) {
        loop_turn(lab->loop, false);
        said = pull(lab->peer[TARGET], &up);
    }
    assert_int_equal(said, 0);
    assert_int_equal(up.received, up.sent);
    run_until_over(lab);
    assert_int_equal(lab->error, 0);
    stop(lab);
}

static void reset_peer(struct lab *lab, int side)
{
    const struct linger now = {.l_onoff = 1};
    setsockopt(lab->peer[side], SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(lab->peer[side]);
    lab->peer[side] = -1;
}

static void expect_reset(struct lab *lab, int side)
{
    char bytes[65536];
    long n;

    run_until_over(lab);
    assert_int_equal(lab->error, ECONNRESET);
    do
        n = recv(lab->peer[side], bytes, sizeof bytes, 0);
    while (n > 0);
    assert_int_equal(n, -1);
    assert_int_equal(errno, ECONNRESET);
}

static void test_reset_when_idle(void **state)
{
    struct lab *lab = *state;
    for (int side = CLIENT; side <= TARGET; side++) {
        start(lab, true);
        turns(lab, 5);
        reset_peer(lab, side);
        expect_reset(lab, !side);
        stop(lab);
    }
}

/* Bytes and RST are there when the loop comes to it: libevent does not tell them apart. */
static void test_reset_with_bytes(void **state)
{
    struct lab *lab = *state;
    for (int side = CLIENT; side <= TARGET; side++) {
        start(lab, true);
        turns(lab, 5);
        say(lab, side, "x");
        reset_peer(lab, side);
        expect_reset(lab, !side);
        stop(lab);
    }
}

static void test_reset_while_held_back(void **state)
{
    struct lab *lab = *state;
    struct flow up = {0};
    start(lab, true);
    for (int i = 0; i < 200; i++) {
        push(lab->peer[CLIENT], &up, UINT64_MAX);
        loop_turn(lab->loop, false);
    }
    reset_peer(lab, CLIENT);
    run_until_over(lab);
    assert_int_equal(lab->error, ECONNRESET);
    stop(lab);
}

static void test_reset_after_half_close(void **state)
{
    struct lab *lab = *state;
    start(lab, true);
    shutdown(lab->peer[CLIENT], SHUT_WR);
    turns(lab, 5);
    reset_peer(lab, CLIENT);
    run_until_over(lab);
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(lab->peer[TARGET], SOL_SOCKET, SO_ERROR, &error, &len);
    assert_int_equal(error, EPIPE); /* a reset behind a FIN (tcp_reset() in the kernel) */
    stop(lab);
}

static bool keeps_alive(int fd)
{
    int on = 0;
    socklen_t len = sizeof on;
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &len), 0);
    return on != 0;
}

/* A target that is silent from the first: only a keep-alive could tell that it has vanished. */
static void test_keep_alive_of_what_lasts(void **state)
{
    struct lab *lab = *state;
    int target = start(lab, true);

    assert_false(keeps_alive(target)); /* not at once: the relay may be over in a moment */
    uint64_t until = now_ms() + 5000;
    while (!keeps_alive(target) && now_ms() < until)
        loop_turn(lab->loop, false);
    bool kept = keeps_alive(target);
    stop(lab);
    assert_true(kept);
}

static void test_early_and_pushed_bytes(void **state)
{
    struct lab *lab = *state;
    char bytes[16];
    int target = start(lab, false);

    assert_int_equal(relay_read_early(&lab->relay, bytes, sizeof bytes), -EAGAIN);
    say(lab, CLIENT, "early");
    turns(lab, 5);
    assert_true(lab->early_calls > 0);
    assert_int_equal(relay_read_early(&lab->relay, bytes, 2), 2);
    assert_int_equal(relay_push(&lab->relay, RELAY_UP, bytes, 2), 0);
    assert_int_equal(relay_push(&lab->relay, RELAY_UP, "/", 1), 0);
    assert_int_equal(relay_push(&lab->relay, RELAY_DOWN, "reply", 5), 0);
    assert_int_equal(relay_push(&lab->relay, RELAY_DOWN, "", 0), 0);
    assert_int_equal(relay_run(&lab->relay, target), 0);
    expect(lab, TARGET, "ea/rly");
    expect(lab, CLIENT, "reply");
    stop(lab);
}

static void test_early_reset(void **state)
{
    struct lab *lab = *state;
    char bytes[16];
    int target = start(lab, false);

    say(lab, CLIENT, "x");
    reset_peer(lab, CLIENT);
    turns(lab, 5);
    assert_int_equal(relay_read_early(&lab->relay, bytes, sizeof bytes), 1);
    int calls = lab->early_calls;
    turns(lab, 250); /* the doubt is looked into, once */
    assert_int_equal(lab->early_calls, calls + 1);
    assert_int_equal(relay_read_early(&lab->relay, bytes, sizeof bytes), -ECONNRESET);
    close(target);
    stop(lab);
}

static void test_close_in_full_flight(void **state)
{
    struct lab *lab = *state;
    int before = descriptors();
    for (int reset = 0; reset < 2; reset++) {
        struct flow up = {0};
        start(lab, true);
        for (int i = 0; i < 50; i++) {
            push(lab->peer[CLIENT], &up, UINT64_MAX);
            loop_turn(lab->loop, false);
        }
        relay_close(&lab->relay, reset);
        relay_close(&lab->relay, reset);
        turns(lab, 5);
        assert_int_equal(lab->over_calls, 0);
        stop(lab);
    }
    assert_in_range(descriptors(), 0, before); /* a pipe with a dead flow's bytes is not kept */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_messages),
        cmocka_unit_test(test_bulk_both_ways),
        cmocka_unit_test(test_bulk_without_pipes),
        cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_half_close),
        cmocka_unit_test(test_fin_behind_bulk),
        cmocka_unit_test(test_reset_when_idle),
        cmocka_unit_test(test_reset_with_bytes),
        cmocka_unit_test(test_reset_while_held_back),
        cmocka_unit_test(test_reset_after_half_close),
        cmocka_unit_test(test_keep_alive_of_what_lasts),
        cmocka_unit_test(test_early_and_pushed_bytes),
        cmocka_unit_test(test_early_reset),
        cmocka_unit_test(test_close_in_full_flight),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
