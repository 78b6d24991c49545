/* What the broker gives away, asked by one who was broken into: the sockets it is for, no others.
 */
#include "core/worker/broker.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct served {
    struct broker asking;
    pid_t pid;
};

static struct served start(void)
{
    static const struct outbound_options plain = {.mark = 0};
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        broker_serve(ends[1], &plain);
        _exit(0);
    }
    close(ends[1]);
    return (struct served){.asking = {.fd = ends[0]}, .pid = pid};
}

/* It has ended, or does so now, for its asker goes; and not by a signal. */
static void end(struct served *s)
{
    int status = 0;
    close(s->asking.fd);
    assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
    assert_int_equal(status, 0);
}

static void assert_serves(struct served *s, int family, int type, enum broker_side side)
{
    int domain = 0, kind = 0;
    socklen_t len = sizeof(int);
    int fd = broker_ask(&s->asking, family, type, side);
    assert_true(fd >= 0);
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len), 0);
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len), 0);
    assert_int_equal(domain, family);
    assert_int_equal(kind, type);
    close(fd);
}

/* Families and types that the kernel knows, some that it does not, and what only looks like ours.
 */
static void test_eight_requests_are_granted(void **state)
{
    enum { FAMILIES = 50, TYPES = 12, SIDES = 4 };
    static const int odd[] = {INT_MIN, INT_MAX, 1 << 16, 1 << 16 | 2, SOCK_NONBLOCK | SOCK_STREAM};
    enum { ODD = sizeof(odd) / sizeof(odd[0]) };
    struct served s = start();
    int granted = 0;
    (void)state;
    for (int i = -1; i < FAMILIES + ODD; i++) {
        int family = i < FAMILIES ? i : odd[i - FAMILIES];
        for (int j = -1; j < TYPES + ODD; j++) {
            int type = j < TYPES ? j : odd[j - TYPES];
            for (int side = -1; side < SIDES; side++) {
                bool good = (family == AF_INET || family == AF_INET6) &&
                            (type == SOCK_STREAM || type == SOCK_DGRAM) &&
                            (side == BROKER_OUTER || side == BROKER_INNER);
                if (good)
                    assert_serves(&s, family, type, (enum broker_side)side);
                else
                    assert_int_equal(broker_ask(&s.asking, family, type, (enum broker_side)side),
                                     -EINVAL);
                granted += good;
            }
        }
    }
    assert_int_equal(granted, 8);
    end(&s);
}

/* Does an answer of any kind come, within 10 s, and no descriptor with it? Its length, or 0: gone.
 */
static size_t answer_without_descriptor(const struct served *s)
{
    char bytes[256], control[256];
    struct pollfd fd = {.fd = s->asking.fd, .events = POLLIN};
    struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof(control)};
    assert_int_equal(poll(&fd, 1, 10000), 1);
    ssize_t n = recvmsg(s->asking.fd, &m, MSG_CMSG_CLOEXEC);
    assert_true(n >= 0);
    assert_int_equal(m.msg_controllen, 0);
    return (size_t)n;
}

static void test_long_garbage_is_refused(void **state)
{
    enum { ROUNDS = 200, LONGEST = 4096, SHORTEST = 16 };
    struct served s = start();
    uint8_t garbage[LONGEST];
    (void)state;
    srand(5);
    for (int i = 0; i < ROUNDS; i++) {
        size_t len = SHORTEST + (size_t)rand() % (LONGEST - SHORTEST + 1);
        for (size_t at = 0; at < len; at++)
            garbage[at] = i == 0 ? 0xff : (uint8_t)rand();
        assert_int_equal(send(s.asking.fd, garbage, len, MSG_NOSIGNAL), len);
        assert_true(answer_without_descriptor(&s) > 0);
    }
    assert_serves(&s, AF_INET6, SOCK_DGRAM, BROKER_OUTER);
    end(&s);
}

/* No worker of ours sends less than a request: the broker goes, and both are replaced. */
static void test_half_a_request_ends_it(void **state)
{
    static const char half[15];
    (void)state;
    for (size_t len = 1; len <= sizeof(half); len += 7) {
        struct served s = start();
        assert_int_equal(send(s.asking.fd, half, len, MSG_NOSIGNAL), len);
        assert_int_equal(answer_without_descriptor(&s), 0);
        assert_true(broker_ask(&s.asking, AF_INET, SOCK_STREAM, BROKER_INNER) < 0);
        end(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eight_requests_are_granted),
        cmocka_unit_test(test_long_garbage_is_refused),
        cmocka_unit_test(test_half_a_request_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
