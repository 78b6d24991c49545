/*
 * Receive windows over the device in memory: what is acknowledged has been passed on, windows grow
 * with it and as far as there is room for more, and what stalled conns hold is bounded in all,
 * whatever their peers send.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stack/stack.h"
#include "tests/support/peer.h"

enum { CONNS = 600, MB = 1 << 20, WINDOW_FIRST = 65535, WINDOW_MAX = 1 << 20 };

struct flow {
    struct conn conn;
    struct peer peer;
    uint32_t right; /* edge of the window that was told */
    uint32_t acked; /* and what was acknowledged with it */
    unsigned heard; /* segments */
    bool reads;
};

static struct {
    struct device *device;
    struct stack *stack;
    struct flow *flows;
    unsigned opened;
} f;

static struct conn *on_open(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    (void)ctx, (void)src, (void)dst;
    return &f.flows[f.opened++].conn;
}

static void read_all(struct flow *flow)
{
    struct iovec iov[64];
    for (int n; (n = conn_peek(&flow->conn, iov, 64)) > 0;) {
        size_t total = 0;
        for (int i = 0; i < n; i++)
            total += iov[i].iov_len;
        conn_consume(f.stack, &flow->conn, total, SIZE_MAX);
    }
}

static void on_ready(void *ctx, struct conn *c, unsigned events)
{
    struct flow *flow = CONTAINER_OF(c, struct flow, conn);
    (void)ctx, (void)events;
    if (flow->reads)
        read_all(flow);
}

static void on_datagram(void *ctx, const struct endpoint *src, const struct endpoint *dst,
                        uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom)
{
    (void)ctx, (void)src, (void)dst, (void)payload, (void)len, (void)gso_size, (void)headroom;
}

static void on_batch_end(void *ctx)
{
    (void)ctx;
}

static int setup(void **state)
{
    static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};
    const struct stack_config config = {.now_ms = 1000};
    (void)state;
    f.opened = 0;
    f.flows = calloc(CONNS, sizeof *f.flows);
    f.device = device_memory_new(PEER_MTU, (struct device_caps){.csum = true, .tso = true});
    f.stack = stack_new(f.device, &config, &ops, NULL);
    assert_non_null(f.stack);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (unsigned i = 0; i < f.opened; i++)
        conn_abort(f.stack, &f.flows[i].conn);
    stack_free(f.stack);
    device_close(f.device);
    free(f.flows);
    return 0;
}

static const uint8_t payload_1460[1460];

/* What the stack says, each to the flow concerned. */
static void hear(void)
{
    static struct segment got;
    while (peer_pop(f.device, &got)) {
        struct flow *flow = &f.flows[got.info.dst.port - 10000];
        bool syn = got.info.tcp_flags & SYN;
        flow->peer.ack = got.seq + syn;
        flow->right = got.ack + ((uint32_t)got.window << (syn ? 0 : 7));
        flow->acked = got.ack;
        flow->heard++;
    }
}

static void send_segment(struct flow *flow, uint8_t flags, const void *payload, size_t len,
                         const void *options, size_t options_len)
{
    static uint8_t out[66000];
    size_t n = peer_write_segment(&flow->peer, out, flags, payload, len, options, options_len);
    assert_true(device_memory_push(f.device, out, n, NULL));
    while (stack_receive(f.stack, 64, 1000) > 0)
        continue;
    hear();
}

static struct flow *connect_flow_with(bool reads, size_t room)
{
    static const uint8_t options[8] = {2, 4, 0x05, 0xb4, 1, 3, 3, 7};
    struct flow *flow = &f.flows[f.opened];
    flow->reads = reads;
    endpoint_parse("10.0.0.2:1", 0, &flow->peer.src);
    endpoint_parse("192.0.2.1:80", 0, &flow->peer.dst);
    flow->peer.src.port = (uint16_t)(10000 + f.opened);
    flow->peer.seq = 0xfffffff0; /* wraps */
    flow->peer.window = PEER_WINDOW;
    send_segment(flow, SYN, NULL, 0, options, sizeof options);
    conn_accept(f.stack, &flow->conn, room);
    hear();
    flow->peer.seq++;
    send_segment(flow, ACK, NULL, 0, NULL, 0);
    return flow;
}

static struct flow *connect_flow(bool reads)
{
    return connect_flow_with(reads, SIZE_MAX);
}

static void pass_time(unsigned from_ms, unsigned to_ms)
{
    for (unsigned ms = from_ms; ms < to_ms; ms += 50)
        stack_tick(f.stack, ms);
    hear();
}

static size_t window(const struct flow *flow)
{
    return flow->right - flow->peer.seq;
}

/* Send as much as the window takes, in pieces of `size`; returns how much. */
static size_t fill(struct flow *flow, size_t size)
{
    static uint8_t payload[65000];
    size_t total = 0;
    while (window(flow) >= size && window(flow) <= WINDOW_MAX) {
        send_segment(flow, ACK | PSH, payload, size, NULL, 0);
        flow->peer.seq += (uint32_t)size;
        total += size;
        if (total > 4 * WINDOW_MAX)
            break;
    }
    return total;
}

static size_t held(const struct flow *flow)
{
    struct iovec iov[4096];
    int n = conn_peek(&flow->conn, iov, 4096);
    size_t total = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    return total;
}

static void test_window_grows_with_what_is_read(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(true);
    assert_in_range(window(flow), WINDOW_FIRST - 128, WINDOW_FIRST);
    for (int i = 0; i < 40; i++) {
        size_t size = 60000;
        static uint8_t payload[60000];
        send_segment(flow, ACK, payload, size, NULL, 0);
        flow->peer.seq += (uint32_t)size;
    }
    assert_in_range(window(flow), WINDOW_MAX * 3 / 4, WINDOW_MAX); /* as far as it was told */
}

/* lwIP would tell at a quarter of its largest window only. */
static void test_stalled_window_opens_when_it_is_read(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(false);
    assert_in_range(fill(flow, 1460), WINDOW_FIRST - 1460, WINDOW_FIRST);
    pass_time(1000, 2000);
    assert_true(window(flow) < 1460);
    read_all(flow);
    hear();
    assert_in_range(window(flow), WINDOW_FIRST, 2 * WINDOW_FIRST);
}

/* Each has had its window grow before it stalls. */
static void test_stalled_conns_are_bounded_in_all(void **state)
{
    (void)state;
    size_t total = 0;
    struct flow *good = connect_flow(true);
    for (unsigned i = 1; i < CONNS; i++) {
        struct flow *flow = connect_flow(true);
        for (int k = 0; k < 3; k++)
            fill(flow, 60000);
        flow->reads = false;
        fill(flow, 60000);
        total += held(flow);
    }
    assert_in_range(total, 30 * MB, 200 * MB);
    size_t moved = 0;
    for (int i = 0; i < 10; i++)
        moved += fill(good, 1460);
    assert_true(moved > 10 * (WINDOW_FIRST - 1460));
    assert_in_range(window(good), 1, 2 * WINDOW_FIRST);
    for (unsigned i = 1; i < CONNS; i++) {
        f.flows[i].reads = true;
        read_all(&f.flows[i]);
    }
    hear();
    for (int i = 0; i < 40; i++)
        fill(good, 1460);
    assert_in_range(window(good), WINDOW_MAX / 2, WINDOW_MAX);
}

/* Past the most, what does not fit is lost; it is taken when it is sent again later. */
static void test_a_flood_past_the_most_is_dropped(void **state)
{
    static uint8_t payload[1];
    (void)state;
    size_t total = 0;
    struct flow *flow = NULL;
    do { /* one byte each costs a hundred, until a flow gets none in but its first */
        flow = connect_flow(true);
        for (int k = 0; k < 3; k++)
            fill(flow, 60000);
        flow->reads = false;
        for (unsigned k = 0; k < 100000; k++) {
            send_segment(flow, ACK, payload, 1, NULL, 0);
            flow->peer.seq++;
        }
        total += flow->conn.rx_bytes;
    } while (flow->conn.rx_bytes >= 2 && f.opened < 40);
    assert_in_range(total, 500000, 2 * MB);
    assert_true(flow->conn.rx_bytes < 2);
    for (unsigned i = 0; i < f.opened; i++)
        read_all(&f.flows[i]);
    flow->reads = true;
    flow->peer.seq -= 99999;
    fill(flow, 1000);
    assert_in_range(window(flow), 1000, WINDOW_MAX);
}

/* Each small packet has its place in the device's queue: many windows must fit in there. */
static void test_window_stays_smaller_without_tso(void **state)
{
    (void)state;
    f.device->caps.tso = false;
    struct flow *flow = connect_flow(true);
    for (int i = 0; i < 2000; i++) {
        send_segment(flow, ACK | PSH, payload_1460, sizeof payload_1460, NULL, 0);
        flow->peer.seq += sizeof payload_1460;
    }
    assert_in_range(window(flow), 200 << 10, 257 << 10);
}

/* An ACK that was sent to tell of the window tells of it, however little lwIP thinks it is. */
static void test_small_pieces_move_the_edge(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(true);
    for (int i = 0; i < 400; i++) {
        uint32_t right = flow->right;
        send_segment(flow, ACK | PSH, payload_1460, 100, NULL, 0);
        flow->peer.seq += 100;
        if (flow->right != right)
            assert_in_range(flow->right - right, 1460, 1 << 20);
    }
    assert_in_range(window(flow), 80000, 257 << 10);
}

/* --- acknowledging ---------------------------------------------------------------------------- */

static void test_only_what_is_consumed_is_acknowledged(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(false);
    uint32_t begin = flow->peer.seq, right = flow->right;
    for (int i = 0; i < 3; i++) {
        send_segment(flow, ACK | PSH, payload_1460, 1460, NULL, 0);
        flow->peer.seq += 1460;
    }
    pass_time(1000, 1500); /* lwIP's delayed ACK */
    assert_true(flow->heard > 1);
    assert_int_equal(flow->acked, begin);
    flow->peer.seq -= 1460; /* sent again: answered, and not more than before */
    unsigned heard = flow->heard;
    send_segment(flow, ACK | PSH, payload_1460, 1460, NULL, 0);
    flow->peer.seq += 1460;
    assert_int_equal(flow->heard, heard + 1);
    assert_int_equal(flow->acked, begin);
    assert_in_range(flow->right - right + 128, 0, 256); /* told in steps of 128 */
    conn_consume(f.stack, &flow->conn, 1000, SIZE_MAX);
    hear(); /* less than a segment, but nothing else would tell of it */
    assert_int_equal(flow->acked, begin + 1000);
    assert_int_equal(held(flow), 3 * 1460 - 1000);
}

static void test_a_fin_is_acknowledged_after_the_data_before_it(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(false);
    uint32_t begin = flow->peer.seq;
    send_segment(flow, ACK | PSH | FIN, payload_1460, 1000, NULL, 0);
    pass_time(1000, 1500);
    assert_int_equal(flow->acked, begin);
    conn_consume(f.stack, &flow->conn, 999, SIZE_MAX);
    hear();
    assert_int_equal(flow->acked, begin + 999);
    conn_shutdown(f.stack, &flow->conn); /* our FIN's header tells no more than an ACK's */
    hear();
    assert_int_equal(flow->acked, begin + 999);
    conn_consume(f.stack, &flow->conn, 1, SIZE_MAX);
    hear();
    assert_int_equal(flow->acked, begin + 1001);
}

static void consume_all(struct flow *flow, size_t room)
{
    conn_consume(f.stack, &flow->conn, flow->conn.rx_bytes, room);
    hear();
}

static void test_window_is_no_larger_than_the_room(void **state)
{
    (void)state;
    struct flow *flow = connect_flow_with(false, 20000); /* the SYN-ACK's already */
    assert_int_equal(window(flow), 20000);
    assert_in_range(fill(flow, 1000), 19000, 20000);
    assert_false(conn_window_is_short(&flow->conn));
    consume_all(flow, 0);
    assert_true(window(flow) < 1000); /* shut, and all is acknowledged */
    assert_int_equal(flow->acked, flow->peer.seq);
    assert_true(conn_window_is_short(&flow->conn));
    unsigned heard = flow->heard;
    consume_all(flow, 30000); /* there is room again: said at once */
    assert_int_equal(flow->heard, heard + 1);
    assert_in_range(window(flow), 30000 - 128, 30000);
    assert_false(conn_window_is_short(&flow->conn));
    size_t sent = fill(flow, 1000);
    consume_all(flow, 1 << 20);
    assert_in_range(window(flow), WINDOW_FIRST, WINDOW_FIRST + 20000 + sent); /* what was owed */
}

static void test_room_is_asked_for_when_it_matters(void **state)
{
    (void)state;
    struct flow *flow = connect_flow(true);
    assert_false(conn_wants_room(&flow->conn, 100, 0)); /* a small exchange, plenty of window */
    assert_true(conn_wants_room(&flow->conn, 60000, 0));
    assert_true(conn_wants_room(&flow->conn, 60000, 100000)); /* it would grow further */
    assert_false(conn_wants_room(&flow->conn, 60000, 200000));
    flow->reads = false;
    fill(flow, 1000);
    consume_all(flow, 10000);
    assert_true(conn_wants_room(&flow->conn, 100, 10000)); /* little window is left */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_window_grows_with_what_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stalled_window_opens_when_it_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stalled_conns_are_bounded_in_all, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_flood_past_the_most_is_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_window_stays_smaller_without_tso, setup, teardown),
        cmocka_unit_test_setup_teardown(test_small_pieces_move_the_edge, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_what_is_consumed_is_acknowledged, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_fin_is_acknowledged_after_the_data_before_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_window_is_no_larger_than_the_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room_is_asked_for_when_it_matters, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
