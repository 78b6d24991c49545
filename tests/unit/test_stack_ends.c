/* The stack packet by packet: how connections end, and packets that are not TCP. */
#include "tests/unit/stack_lab.h"

/* --- ends ------------------------------------------------------------------------------------- */

static void test_half_close_of_the_application(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = connect_peer(&f, false);
    send_segment(&p, ACK | FIN, "bye", 3, NULL, 0);
    p.seq += 4;
    unsigned events = take_events(&f);
    assert_true((events & CONN_DATA) && (events & CONN_FIN));
    conn_consume(f.stack, f.last, 3, SIZE_MAX);
    pass_time(&f, 110);
    expect_flags(&f, ACK);
    assert_int_equal(got.ack, p.seq);
    pass_time(&f, 3600 * 1000); /* no limit of its own */
    assert_int_equal(take_events(&f), 0);
    struct test_chunk *c = new_chunk();
    conn_send(f.stack, f.last, &c->chunk, c->bytes, 100);
    conn_flush(f.stack, f.last);
    expect_flags(&f, ACK);
    assert_int_equal(got.payload_len, 100);
    p.ack += 100;
    conn_shutdown(f.stack, f.last);
    expect_flags(&f, ACK | FIN);
    p.ack++;
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    assert_true(take_events(&f) & CONN_CLOSED);
    assert_true(conn_is_over(f.last));
    drop(&f);
    free(c);
    expect_silence(&f);
    teardown(&f);
}

static void close_by_us_first(struct fixture *f, struct peer *p)
{
    conn_shutdown(f->stack, f->last);
    expect_flags(f, ACK | FIN);
    p->ack++;
    send_segment(p, ACK, NULL, 0, NULL, 0);
    pass_time(f, 3600 * 1000); /* a half-closed connection may last */
    assert_int_equal(take_events(f) & (CONN_RESET | CONN_CLOSED), 0);
    send_segment(p, ACK | PSH, "late", 4, NULL, 0);
    p->seq += 4;
    assert_true(take_events(f) & CONN_DATA);
    send_segment(p, ACK | FIN, NULL, 0, NULL, 0);
    p->seq++;
    unsigned events = take_events(f);
    assert_true((events & CONN_FIN) && (events & CONN_CLOSED));
    struct iovec iov;
    assert_int_equal(conn_peek(f->last, &iov, 1), 1); /* what came before the end can be read */
    assert_int_equal(iov.iov_len, 4);
    while (pop(f, &got))
        continue;
    drop(f);
}

static void test_time_wait_answers_and_makes_way(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = connect_peer(&f, false);
    close_by_us_first(&f, &p);
    /* The FIN again: acknowledged again. */
    p.seq--;
    send_segment(&p, ACK | FIN, NULL, 0, NULL, 0);
    p.seq++;
    expect_flags(&f, ACK);
    assert_int_equal(got.ack, p.seq);
    /* An old SYN: challenged. A new one: a new connection. */
    p.seq -= 500;
    send_syn(&p);
    expect_flags(&f, ACK);
    assert_int_equal(f.opened, 1);
    p.seq += 500 + 1;
    send_syn(&p);
    assert_int_equal(f.opened, 2);
    conn_accept(f.stack, f.last, SIZE_MAX);
    finish_handshake(&p);
    drop(&f);
    pass_time(&f, 70000);
    assert_true(stack_next_tick(f.stack) == UINT64_MAX);
    teardown(&f);
}

static void test_reset_ends_it(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = connect_peer(&f, true);
    send_segment(&p, ACK | PSH, "x", 1, NULL, 0);
    p.seq++;
    send_segment(&p, RST | ACK, NULL, 0, NULL, 0);
    assert_true(take_events(&f) & CONN_RESET);
    drop(&f);
    expect_silence(&f);
    teardown(&f);
}

/* Bytes and a FIN that come with an impossible acknowledgement are answered, and nobody's. */
static void test_blind_segments_are_not_taken(void **state)
{
    struct fixture f;
    static const uint32_t guesses[] = {1, 100000, 1u << 31, 0u - 1000000};
    (void)state;
    for (size_t i = 0; i < 2 * sizeof guesses / sizeof guesses[0]; i++) {
        setup(&f);
        struct peer p = connect_peer(&f, i % 2);
        struct peer blind = p;
        struct iovec iov;
        blind.ack += guesses[i / 2];
        send_segment(&blind, ACK | PSH | FIN, "evil", 4, NULL, 0);
        expect_flags(&f, ACK);
        assert_int_equal(got.seq, p.ack);
        assert_int_equal(got.ack, p.seq);
        assert_int_equal(take_events(&f) & (CONN_DATA | CONN_FIN), 0);
        send_segment(&p, ACK | PSH, "good", 4, NULL, 0);
        assert_int_equal(conn_peek(f.last, &iov, 1), 1);
        assert_memory_equal(iov.iov_base, "good", 4);
        drop(&f);
        teardown(&f);
    }
}

static void test_idle_stack_wants_no_time(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    assert_true(stack_next_tick(f.stack) == UINT64_MAX);
    struct peer p = connect_peer(&f, false);
    pass_time(&f, 500);
    assert_true(stack_next_tick(f.stack) == UINT64_MAX); /* idle connections want none either */
    (void)p;
    drop(&f);
    teardown(&f);
}

/* --- other packets ---------------------------------------------------------------------------- */

static void test_datagram_comes_and_goes(void **state)
{
    struct fixture f;
    static uint8_t out[200];
    (void)state;
    for (int v6 = 0; v6 < 2; v6++) {
        setup(&f);
        struct peer p = peer_of(v6);
        size_t n = peer_write_datagram(out, &p.src, &p.dst, "hello", 5);
        device_memory_push(f.device, out, n, NULL);
        receive(&f);
        assert_int_equal(f.datagrams, 1);
        assert_true(endpoint_equal(&f.from, &p.src) && endpoint_equal(&f.to, &p.dst));
        assert_memory_equal(f.payload, "hello", 5);
        assert_int_equal(stack_send_datagram(f.stack, &p.dst, &p.src, "world", 5, 0), 0);
        assert_true(pop(&f, &got));
        assert_int_equal(got.info.verdict, PACKET_UDP);
        assert_true(endpoint_equal(&got.info.src, &p.dst));
        stack_send_unreachable(f.stack, &p.src, &p.dst, "hello", 5, UNREACHABLE_PORT);
        expect_icmp(&f, v6 ? 1 : 3, v6 ? 4 : 3);
        teardown(&f);
    }
}

/* The longest datagram there is, in fragments, the last one first, and each of them twice. */
static void test_fragments_are_put_together(void **state)
{
    enum { LONGEST = 65507, PIECES_MAX = 64 };
    struct fixture sender, f;
    static uint8_t payload[LONGEST];
    static struct packet pieces[PIECES_MAX];
    (void)state;
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31 + i / 257);
    for (int v6 = 0; v6 < 2; v6++) {
        setup(&sender);
        struct peer p = peer_of(v6);
        stack_send_datagram(sender.stack, &p.src, &p.dst, payload, sizeof payload, 0);
        int n = 0;
        for (; n < PIECES_MAX; n++) {
            pieces[n].buffer = malloc(PACKET_BUFFER_SIZE);
            if (!device_memory_pop(sender.device, &pieces[n]))
                break;
        }
        free(pieces[n].buffer);
        assert_true(n > 40 && n < PIECES_MAX);
        teardown(&sender);
        setup(&f);
        for (int i = n - 1; i >= 0; i--) {
            device_memory_push(f.device, pieces[i].data, pieces[i].len, NULL);
            if (i > 0) /* the first completes it: what came again would begin another */
                device_memory_push(f.device, pieces[i].data, pieces[i].len, NULL);
            free(pieces[i].buffer);
        }
        receive(&f);
        assert_int_equal(f.datagrams, 1);
        assert_int_equal(f.payload_len, sizeof payload);
        assert_memory_equal(f.payload, payload, sizeof payload);
        assert_true(endpoint_equal(&f.from, &p.src) && endpoint_equal(&f.to, &p.dst));
        assert_true(stack_next_tick(f.stack) == UINT64_MAX);
        teardown(&f);
    }
}

enum { HALVES = 2, TOGETHER_MAX = 64 };

/* A datagram in two fragments, as the application's kernel sends it. The caller frees the buffers.
 */
static void fragment_datagram(struct packet halves[HALVES])
{
    struct fixture sender;
    static uint8_t payload[2000];
    setup(&sender);
    struct peer p = peer_of(false);
    stack_send_datagram(sender.stack, &p.src, &p.dst, payload, sizeof payload, 0);
    for (int i = 0; i < HALVES; i++) {
        halves[i].buffer = malloc(PACKET_BUFFER_SIZE);
        assert_true(device_memory_pop(sender.device, &halves[i]));
    }
    expect_silence(&sender);
    teardown(&sender);
}

/* The IPv4 fragment as one of the datagram of that number. */
static void send_fragment_of(struct fixture *f, const struct packet *fragment, unsigned id)
{
    uint8_t *ip = fragment->data;
    ip[4] = (uint8_t)(id >> 8);
    ip[5] = (uint8_t)id;
    ip[10] = ip[11] = 0;
    uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(ip, 20, 0));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    device_memory_push(f->device, ip, fragment->len, NULL);
    receive(f);
}

/* What never becomes whole is forgotten after a while. */
static void test_fragments_that_stay_alone_are_forgotten(void **state)
{
    struct fixture f;
    struct packet halves[HALVES];
    (void)state;
    fragment_datagram(halves);
    setup(&f);
    for (unsigned id = 0; id < 1000; id++)
        send_fragment_of(&f, &halves[0], id);
    assert_int_equal(f.datagrams, 0);
    assert_true(stack_next_tick(f.stack) != UINT64_MAX);
    pass_time(&f, 20000);
    assert_true(stack_next_tick(f.stack) == UINT64_MAX);
    for (int i = 0; i < HALVES; i++)
        free(halves[i].buffer);
    teardown(&f);
}

/* As many wait for their rest as there is room for; the next one takes the oldest one's place. */
static void test_fragments_give_way_to_later_ones(void **state)
{
    struct packet halves[HALVES];
    (void)state;
    fragment_datagram(halves);
    for (unsigned begun = TOGETHER_MAX; begun <= TOGETHER_MAX + 1; begun++) {
        struct fixture f;
        setup(&f);
        for (unsigned id = 0; id < begun; id++)
            send_fragment_of(&f, &halves[0], id);
        send_fragment_of(&f, &halves[1], begun - 1);
        assert_int_equal(f.datagrams, 1);
        send_fragment_of(&f, &halves[1], 1);
        assert_int_equal(f.datagrams, 2);
        send_fragment_of(&f, &halves[1], 0);
        assert_int_equal(f.datagrams, begun == TOGETHER_MAX ? 3 : 2);
        teardown(&f);
    }
    for (int i = 0; i < HALVES; i++)
        free(halves[i].buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half_close_of_the_application),
        cmocka_unit_test(test_time_wait_answers_and_makes_way),
        cmocka_unit_test(test_reset_ends_it),
        cmocka_unit_test(test_blind_segments_are_not_taken),
        cmocka_unit_test(test_idle_stack_wants_no_time),
        cmocka_unit_test(test_datagram_comes_and_goes),
        cmocka_unit_test(test_fragments_are_put_together),
        cmocka_unit_test(test_fragments_that_stay_alone_are_forgotten),
        cmocka_unit_test(test_fragments_give_way_to_later_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
