/*
 * What the kernel promises of a TCP socket's buffer, over loopback: as many bytes as it says are
 * taken at once, and whoever asked hears when there is room again, though nothing was refused.
 */
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/proxy/resolver.h"

enum { WAIT_MS = 5000, ROUNDS = 200 };

struct pair {
    int ours, theirs, epoll;
};

static int setup(void **state)
{
    static struct pair p;
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&sa, &len), 0);
    assert_int_equal(listen(listener, 1), 0);
    p.ours = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(p.ours, (struct sockaddr *)&sa, len), 0);
    p.theirs = accept(listener, NULL, NULL);
    assert_true(p.theirs >= 0);
    close(listener);
    p.epoll = epoll_create1(0);
    struct epoll_event watch = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    assert_int_equal(epoll_ctl(p.epoll, EPOLL_CTL_ADD, p.ours, &watch), 0);
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;
    close(p->ours);
    close(p->theirs);
    close(p->epoll);
    return 0;
}

static ssize_t try_to_send(int fd, size_t len)
{
    static uint8_t bytes[8 << 20];
    return send(fd, bytes, len < sizeof bytes ? len : sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* In pieces of all sizes, until there is no room, and again after some of it was read. */
static void test_room_is_a_promise(void **state)
{
    struct pair *p = *state;
    static uint8_t sink[1 << 20];
    size_t total = 0;
    srand(1928);
    for (int i = 0; i < ROUNDS; i++) {
        size_t room = outbound_room(p->ours);
        size_t len = room > 100000 ? room / (1 + (unsigned)rand() % 4) : room;
        if (len > 0)
            assert_int_equal(try_to_send(p->ours, len), len);
        total += len;
        if (len < 1000)
            total -= (size_t)recv(p->theirs, sink, 1 + (unsigned)rand() % sizeof sink, 0);
    }
    assert_true(total > 100000);
}

static bool hears_of_room(struct pair *p, int ms)
{
    struct epoll_event event;
    return epoll_wait(p->epoll, &event, 1, ms) == 1 && event.events & EPOLLOUT;
}

/* What it is given is a beginning, not the kernel's last word. */
static void test_a_widened_buffer_still_grows(void **state)
{
    struct pair *p = *state;
    static uint8_t sink[1 << 20];
    const int small = 4608;
    uint32_t most = 0;
    assert_int_equal(setsockopt(p->ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    assert_true(outbound_room(p->ours) < 16384);
    outbound_widen(p->ours);
    assert_true(outbound_room(p->ours) > 200000);
    for (int i = 0; i < 2000 && most < 600000; i++) {
        try_to_send(p->ours, 1 << 20);
        assert_true(recv(p->theirs, sink, sizeof sink, MSG_DONTWAIT) > 0 || errno == EAGAIN);
        uint32_t room = outbound_room(p->ours);
        most = room > most ? room : most;
    }
    assert_true(most >= 600000);
    outbound_widen(p->ours); /* has it already: it must not shrink */
    while (recv(p->theirs, sink, sizeof sink, MSG_DONTWAIT) > 0)
        continue;
    assert_true(outbound_room(p->ours) >= 500000);
}

static void test_who_asked_hears_of_room(void **state)
{
    struct pair *p = *state;
    static uint8_t sink[1 << 20];
    assert_true(outbound_writable(p->ours));
    assert_true(hears_of_room(p, WAIT_MS));
    /* Fill it with what it promises, so that nothing is refused. */
    for (size_t room; (room = outbound_room(p->ours)) > 0;)
        assert_int_equal(try_to_send(p->ours, room), room);
    assert_false(outbound_writable(p->ours));
    while (hears_of_room(p, 0))
        continue; /* of before */
    bool heard = false;
    for (int i = 0; i < 1000 && !heard; i++) {
        assert_true(recv(p->theirs, sink, sizeof sink, MSG_DONTWAIT) > 0 || errno == EAGAIN);
        heard = hears_of_room(p, 5);
    }
    assert_true(heard);
    assert_true(outbound_room(p->ours) > 16384);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_room_is_a_promise, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_widened_buffer_still_grows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_who_asked_hears_of_room, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
