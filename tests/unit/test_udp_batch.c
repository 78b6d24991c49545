/* Batches of datagrams over loopback: what is joined, what is told apart, and what is lost. */
#include "core/serve/udp_batch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lab {
    struct udp_batch *batch;
    struct batch_socket ours;
    struct endpoint our_name;
    int peer; /* a plain socket, without UDP_GRO */
    struct endpoint peer_name;
};

static const struct endpoint any_v4 = {{{[10] = 0xff, 0xff, 127, 0, 0, 1}}, 0};

static int open_peer(struct endpoint *name)
{
    struct sockaddr_storage ss;
    socklen_t len = endpoint_to_sockaddr(&any_v4, &ss);
    struct timeval second = {.tv_sec = 1};
    const int room = 4 << 20;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&ss, len), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    len = sizeof ss;
    assert_int_equal(getsockname(fd, (struct sockaddr *)&ss, &len), 0);
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&ss, name));
    return fd;
}

static void open_socket(struct batch_socket *s, bool v6)
{
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    batch_socket_init(s, fd, v6, false);
    batch_socket_widen(s);
}

static int setup(void **state)
{
    struct lab *lab = calloc(1, sizeof *lab);
    lab->batch = udp_batch_new();
    open_socket(&lab->ours, false);
    assert_int_equal(batch_socket_bind(&lab->ours, &any_v4), 0);
    assert_int_equal(batch_socket_name(&lab->ours, &lab->our_name), 0);
    lab->peer = open_peer(&lab->peer_name);
    *state = lab;
    return 0;
}

static int teardown(void **state)
{
    struct lab *lab = *state;
    batch_socket_close(&lab->ours);
    batch_socket_close(&lab->ours);
    close(lab->peer);
    udp_batch_free(lab->batch);
    free(lab);
    return 0;
}

static uint8_t payload[65536];

static void queue(struct lab *lab, const struct endpoint *to, size_t len)
{
    const struct iovec piece = {payload, len};
    udp_batch_send(lab->batch, &lab->ours, to, &piece, 1);
}

/* The sizes of what arrives at `fd`, in order. */
static void expect_sizes(int fd, const size_t *sizes, size_t count)
{
    static uint8_t bytes[65536];

    for (size_t i = 0; i < count; i++) {
        long n = recv(fd, bytes, sizeof bytes, 0);
        if (n != (long)sizes[i])
            fail_msg("datagram %zu has %ld bytes instead of %zu", i, n, sizes[i]);
        assert_memory_equal(bytes, payload, sizes[i]);
    }
    assert_int_equal(recv(fd, bytes, sizeof bytes, MSG_DONTWAIT), -1);
}

static void test_runs_and_changes(void **state)
{
    static const size_t sizes[] = {100, 100,  100,  40,   100,  100,  200,  200,   0,
                                   0,   1,    1,    0,    1,    7,    5,    5,     5,
                                   8,   1472, 1472, 1473, 1473, 9000, 9000, 65507, 3};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    struct lab *lab = *state;
    for (size_t i = 0; i < COUNT; i++)
        queue(lab, &lab->peer_name, sizes[i]);
    udp_batch_flush(lab->batch);
    expect_sizes(lab->peer, sizes, COUNT);
    assert_int_equal(udp_batch_lost(lab->batch), 0);
}

/* More than one message, one outbox and one run hold. */
static void test_many(void **state)
{
    struct lab *lab = *state;
    size_t sizes[3000];
    for (size_t i = 0; i < 3000; i++) {
        sizes[i] = i < 2000 ? 500 : 10 + i % 7;
        queue(lab, &lab->peer_name, sizes[i]);
        if (i % 500 == 499) {
            udp_batch_flush(lab->batch);
            expect_sizes(lab->peer, sizes + i - 499, 500);
        }
    }
    assert_int_equal(udp_batch_lost(lab->batch), 0);
}

static void test_two_places(void **state)
{
    static const size_t mine[] = {30, 30, 31}, others[] = {30, 30};
    struct lab *lab = *state;
    struct endpoint other_name;
    int other = open_peer(&other_name);
    queue(lab, &lab->peer_name, 30);
    queue(lab, &other_name, 30);
    queue(lab, &lab->peer_name, 30);
    queue(lab, &lab->peer_name, 31);
    queue(lab, &other_name, 30);
    udp_batch_flush(lab->batch);
    expect_sizes(lab->peer, mine, 3);
    expect_sizes(other, others, 2);
    close(other);
}

/* Two pieces each, to where the socket is connected. */
static void test_pieces_and_connected(void **state)
{
    static const size_t sizes[] = {110, 110, 60, 10};
    struct lab *lab = *state;
    assert_int_equal(batch_socket_connect(&lab->ours, &lab->peer_name), 0);
    for (size_t i = 0; i < 4; i++) {
        const struct iovec pieces[2] = {{payload, 10}, {payload + 10, sizes[i] - 10}};
        udp_batch_send(lab->batch, &lab->ours, NULL, pieces, 2);
    }
    udp_batch_flush(lab->batch);
    expect_sizes(lab->peer, sizes, 4);
}

static void peer_sends(const struct lab *lab, size_t len, int segment)
{
    struct sockaddr_storage ss;
    socklen_t name_len = endpoint_to_sockaddr(&lab->our_name, &ss);
    setsockopt(lab->peer, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
    assert_int_equal(sendto(lab->peer, payload, len, 0, (struct sockaddr *)&ss, name_len), len);
}

static void test_receive(void **state)
{
    struct lab *lab = *state;
    assert_int_equal(udp_batch_receive(lab->batch, &lab->ours), 0);
    peer_sends(lab, 0, 0);
    peer_sends(lab, 5, 0);
    peer_sends(lab, 65507, 0);
    peer_sends(lab, 3001, 1000); /* joined by the kernel: three and a byte */
    assert_int_equal(udp_batch_receive(lab->batch, &lab->ours), 4);
    static const size_t lens[] = {0, 5, 65507, 3001}, segments[] = {0, 5, 65507, 1000};
    for (int i = 0; i < 4; i++) {
        const struct udp_received *item = udp_batch_item(lab->batch, i);
        assert_int_equal(item->len, lens[i]);
        assert_int_equal(item->segment, segments[i]);
        assert_memory_equal(item->payload, payload, item->len);
        assert_true(endpoint_equal(&item->from, &lab->peer_name));
        memset(item->payload - UDP_BATCH_HEADROOM, 0xee, UDP_BATCH_HEADROOM);
    }
    assert_false(udp_batch_was_full(lab->batch));
}

static void test_full_batch(void **state)
{
    struct lab *lab = *state;
    for (int i = 0; i < 40; i++)
        peer_sends(lab, 8, 0);
    int first = udp_batch_receive(lab->batch, &lab->ours);
    assert_true(udp_batch_was_full(lab->batch));
    assert_int_equal(udp_batch_receive(lab->batch, &lab->ours), 40 - first);
    assert_false(udp_batch_was_full(lab->batch));
}

/* Nobody there, or no such size: lost, and what is behind it goes out. */
static void test_refused(void **state)
{
    static const size_t sizes[] = {20};
    struct lab *lab = *state;
    queue(lab, &lab->peer_name, 65508);
    queue(lab, &lab->peer_name, 20);
    udp_batch_flush(lab->batch);
    expect_sizes(lab->peer, sizes, 1);
    assert_int_equal(udp_batch_lost(lab->batch), 1);
}

/* Where the kernel refuses to cut (as for segments beyond the MTU) they go out one by one. */
static void test_cutting_refused(void **state)
{
    static const size_t sizes[] = {1000, 1400, 1400, 1400, 100, 1400, 1400, 30, 30};
    struct lab *lab = *state;
    const int on = 1; /* UDP_SEGMENT wants checksums: EINVAL */
    assert_int_equal(setsockopt(lab->ours.fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on), 0);
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < 9; i++)
            queue(lab, &lab->peer_name, sizes[i]);
        udp_batch_flush(lab->batch);
        expect_sizes(lab->peer, sizes, 9);
        assert_in_range(lab->ours.segment_max, 0, 1399);
    }
    assert_int_equal(udp_batch_lost(lab->batch), 0);
}

static void test_both_families(void **state)
{
    static const size_t sizes[] = {9, 9};
    struct lab *lab = *state;
    struct batch_socket dual;
    open_socket(&dual, true);
    for (int i = 0; i < 2; i++) {
        const struct iovec piece = {payload, 9};
        udp_batch_send(lab->batch, &dual, &lab->peer_name, &piece, 1);
    }
    queue(lab, &lab->peer_name, 9); /* another socket: flushes the first */
    expect_sizes(lab->peer, sizes, 2);
    udp_batch_flush(lab->batch);
    expect_sizes(lab->peer, sizes, 1);

    struct endpoint name;
    assert_int_equal(batch_socket_name(&dual, &name), 0);
    lab->our_name = (struct endpoint){any_v4.addr, name.port};
    peer_sends(lab, 4, 0);
    assert_int_equal(udp_batch_receive(lab->batch, &dual), 1);
    assert_true(endpoint_equal(&udp_batch_item(lab->batch, 0)->from, &lab->peer_name));
    batch_socket_close(&dual);
}

int main(void)
{
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 7 + i / 256);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_runs_and_changes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_places, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces_and_connected, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_batch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cutting_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_both_families, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
