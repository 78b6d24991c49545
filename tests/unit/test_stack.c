/* The stack packet by packet: handshakes that are held, and bytes both ways. */
#include "tests/unit/stack_lab.h"

/* --- what is held ----------------------------------------------------------------------------- */

static void test_syn_is_held_until_accepted(void **state)
{
    struct fixture f;
    (void)state;
    for (int v6 = 0; v6 < 2; v6++) {
        setup(&f);
        struct peer p = peer_of(v6);
        send_syn(&p);
        send_syn(&p); /* retransmitted */
        expect_silence(&f);
        assert_int_equal(f.opened, 1);
        conn_accept(f.stack, f.last, SIZE_MAX);
        finish_handshake(&p);
        drop(&f);
        expect_flags(&f, RST | ACK);
        teardown(&f);
    }
}

static void test_refused_by_reset(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = peer_of(false);
    send_syn(&p);
    conn_refuse(f.stack, f.last, REFUSE_RESET);
    free(f.last);
    expect_flags(&f, RST | ACK);
    assert_int_equal(got.ack, p.seq + 1);
    /* Tried again: asked for anew. */
    send_syn(&p);
    assert_int_equal(f.opened, 2);
    drop(&f);
    teardown(&f);
}

static void test_refused_by_icmp_is_said_again(void **state)
{
    static const struct {
        enum refusal how;
        uint8_t code4, code6;
    } table[] = {{REFUSE_NETWORK, 0, 0}, {REFUSE_HOST, 1, 3}, {REFUSE_PROHIBITED, 13, 1}};
    struct fixture f;
    (void)state;
    for (size_t i = 0; i < 2 * sizeof table / sizeof table[0]; i++) {
        bool v6 = i & 1;
        uint8_t type = v6 ? 1 : 3;
        uint8_t code = v6 ? table[i / 2].code6 : table[i / 2].code4;
        setup(&f);
        struct peer p = peer_of(v6);
        send_syn(&p);
        conn_refuse(f.stack, f.last, table[i / 2].how);
        free(f.last);
        expect_icmp(&f, type, code);
        pass_time(&f, 20);
        expect_icmp(&f, type, code);
        pass_time(&f, 200);
        expect_icmp(&f, type, code);
        pass_time(&f, 500);
        expect_silence(&f);
        send_syn(&p); /* a retransmission is not asked for again */
        expect_icmp(&f, type, code);
        assert_int_equal(f.opened, 1);
        pass_time(&f, 10000);
        assert_true(stack_next_tick(f.stack) == UINT64_MAX);
        send_syn(&p);
        assert_int_equal(f.opened, 2);
        drop(&f);
        teardown(&f);
    }
}

static void test_held_syn_is_given_up_by_reset(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = peer_of(false);
    send_syn(&p);
    p.seq++;
    send_segment(&p, RST, NULL, 0, NULL, 0);
    assert_int_equal(take_events(&f), CONN_RESET);
    conn_accept(f.stack, f.last, SIZE_MAX); /* the proxy's answer comes too late */
    drop(&f);
    expect_silence(&f);
    teardown(&f);
}

static void test_open_that_fails_is_reset(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    f.refuse_at_once = true;
    struct peer p = peer_of(false);
    send_syn(&p);
    expect_flags(&f, RST | ACK);
    teardown(&f);
}

static void test_stray_segment_is_reset(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = peer_of(true);
    p.ack = 77;
    send_segment(&p, ACK, "x", 1, NULL, 0);
    expect_flags(&f, RST);
    assert_int_equal(got.seq, 77);
    send_segment(&p, RST | ACK, NULL, 0, NULL, 0);
    expect_silence(&f);
    teardown(&f);
}

/* --- bytes ------------------------------------------------------------------------------------ */

static void test_upload_is_acknowledged_when_taken(void **state)
{
    struct fixture f;
    static uint8_t data[1460];
    (void)state;
    setup(&f);
    struct peer p = connect_peer(&f, false);
    for (int i = 0; i < 3; i++) {
        memset(data, 'a' + i, sizeof data);
        send_segment(&p, ACK | PSH, data, sizeof data, NULL, 0);
        p.seq += sizeof data;
    }
    expect_silence(&f);
    assert_true(take_events(&f) & CONN_DATA);
    struct iovec iov[8];
    int n = conn_peek(f.last, iov, 8);
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(iov[i].iov_len, sizeof data);
        assert_int_equal(((uint8_t *)iov[i].iov_base)[0], 'a' + i);
    }
    conn_consume(f.stack, f.last, 1000, SIZE_MAX); /* a partial one */
    assert_int_equal(conn_peek(f.last, iov, 8), 3);
    assert_int_equal(iov[0].iov_len, 460);
    conn_consume(f.stack, f.last, 3380, SIZE_MAX);
    expect_flags(&f, ACK);
    assert_int_equal(got.ack, p.seq);
    assert_int_equal(conn_peek(f.last, iov, 8), 0);
    drop(&f);
    teardown(&f);
}

static void test_lone_segment_waits_for_a_ride(void **state)
{
    struct fixture f;
    (void)state;
    setup(&f);
    struct peer p = connect_peer(&f, false);
    send_segment(&p, ACK | PSH, "ping", 4, NULL, 0);
    p.seq += 4;
    conn_consume(f.stack, f.last, 4, SIZE_MAX);
    expect_silence(&f);
    pass_time(&f, 110);
    expect_flags(&f, ACK);
    assert_int_equal(got.ack, p.seq);
    drop(&f);
    teardown(&f);
}

static void test_download_comes_in_super_packets_with_tso(void **state)
{
    struct fixture f;
    (void)state;
    setup_with(&f, (struct device_caps){.csum = true, .tso = true});
    struct peer p = connect_peer(&f, false);
    struct test_chunk *c = new_chunk();
    size_t room = conn_room(f.last);
    assert_true(room >= 20000); /* the peer's window of 64,000 */
    assert_int_equal(conn_send(f.stack, f.last, &c->chunk, c->bytes, 20000), 0);
    conn_flush(f.stack, f.last);
    assert_true(pop(&f, &got));
    assert_int_equal(got.payload_len, 20000);
    assert_int_equal(got.offload.gso, PACKET_GSO_TCP4);
    assert_int_equal(got.offload.gso_size, 1460);
    assert_memory_equal(got.payload, c->bytes, 20000);
    assert_int_equal(c->released, 0);
    p.ack += 20000;
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    assert_int_equal(c->released, 1);
    assert_true(take_events(&f) & CONN_ROOM);
    free(c);
    drop(&f);
    teardown(&f);
}

static void test_download_is_cut_to_the_mss_without_tso(void **state)
{
    struct fixture f;
    (void)state;
    for (int v6 = 0; v6 < 2; v6++) {
        setup(&f);
        struct peer p = connect_peer(&f, v6);
        struct test_chunk *c = new_chunk();
        assert_int_equal(conn_send(f.stack, f.last, &c->chunk, c->bytes, 10000), 0);
        conn_flush(f.stack, f.last);
        size_t total = 0;
        while (pop(&f, &got)) {
            assert_int_equal(got.info.verdict, PACKET_TCP); /* its checksum is right */
            assert_int_equal(got.seq, p.ack + total);
            assert_true(got.info.len <= PEER_MTU);
            assert_memory_equal(got.payload, c->bytes + total, got.payload_len);
            total += got.payload_len;
        }
        assert_int_equal(total, 10000);
        drop(&f);
        assert_int_equal(c->released, 1);
        free(c);
        teardown(&f);
    }
}

/* More pieces in one segment than a packet has room for pieces. */
static void test_many_small_pieces(void **state)
{
    struct fixture f;
    (void)state;
    for (int tso = 0; tso < 2; tso++) {
        setup_with(&f, (struct device_caps){.csum = tso, .tso = tso});
        struct peer p = connect_peer(&f, false);
        struct test_chunk *c = new_chunk();
        enum { PIECES = 200, PIECE = 10 };
        for (size_t i = 0; i < PIECES; i++)
            assert_int_equal(conn_send(f.stack, f.last, &c->chunk, c->bytes + i * 37, PIECE), 0);
        conn_flush(f.stack, f.last);
        size_t total = 0;
        while (pop(&f, &got)) {
            assert_int_equal(got.seq, p.ack + total);
            for (size_t i = 0; i < got.payload_len; i++, total++)
                assert_int_equal(got.payload[i], c->bytes[total / PIECE * 37 + total % PIECE]);
        }
        assert_int_equal(total, PIECES * PIECE);
        drop(&f);
        free(c);
        teardown(&f);
    }
}

static void test_lost_segment_is_sent_again(void **state)
{
    struct fixture f;
    (void)state;
    setup_with(&f, (struct device_caps){.csum = true, .tso = true});
    struct peer p = connect_peer(&f, false);
    struct test_chunk *c = new_chunk();
    conn_send(f.stack, f.last, &c->chunk, c->bytes, 5000);
    conn_flush(f.stack, f.last);
    assert_true(pop(&f, &got)); /* and let it be lost */
    uint64_t sent = f.now;
    while (!pop(&f, &got) && f.now < sent + 5000)
        pass_time(&f, 10);
    assert_true(f.now - sent < 1500);
    assert_int_equal(got.payload_len, 5000);
    p.ack += 5000;
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    assert_int_equal(c->released, 1);
    free(c);
    drop(&f);
    teardown(&f);
}

static void test_closed_window_is_probed_and_opens(void **state)
{
    struct fixture f;
    (void)state;
    setup_with(&f, (struct device_caps){.csum = true, .tso = true});
    struct peer p = connect_peer(&f, false);
    struct test_chunk *c = new_chunk();
    conn_send(f.stack, f.last, &c->chunk, c->bytes, 100);
    conn_flush(f.stack, f.last);
    assert_true(pop(&f, &got));
    p.ack += 100;
    p.window = 0;
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    size_t room = conn_room(f.last);
    assert_true(room > 0 && room <= 1460);
    conn_send(f.stack, f.last, &c->chunk, c->bytes + 100, room);
    conn_flush(f.stack, f.last);
    expect_silence(&f);
    assert_int_equal(conn_room(f.last), 0); /* a stalled reader costs one segment */
    pass_time(&f, 3000);
    assert_true(pop(&f, &got)); /* the probe */
    assert_true(got.payload_len <= 1);
    while (pop(&f, &got))
        continue;
    p.window = 30000;
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    assert_true(pop(&f, &got));
    assert_int_equal(got.payload_len, room);
    drop(&f);
    free(c);
    teardown(&f);
}

/* Send whatever there is room for; returns how many bytes that was. */
static size_t fill(struct fixture *f, struct test_chunk *c)
{
    size_t total = 0;
    for (size_t room; (room = conn_room(f->last)) > 0; total += room) {
        room = room < sizeof c->bytes ? room : sizeof c->bytes;
        assert_int_equal(conn_send(f->stack, f->last, &c->chunk, c->bytes, room), 0);
        conn_flush(f->stack, f->last);
        while (pop(f, &got))
            continue;
    }
    return total;
}

/*
 * A reader that falls behind keeps the right edge where it is while it acknowledges. What stood in
 * the way was the send buffer, so there is room again, and core has to be told.
 */
static void test_room_is_told_when_no_edge_moves(void **state)
{
    static const uint8_t scaled[] = {2, 4, 0x05, 0xb4, 1, 3, 3, 7};
    struct fixture f;
    (void)state;
    setup_with(&f, (struct device_caps){.csum = true, .tso = true});
    struct peer p = peer_of(false);
    send_segment(&p, SYN, NULL, 0, scaled, sizeof scaled);
    conn_accept(f.stack, f.last, SIZE_MAX);
    finish_handshake(&p);
    struct test_chunk *c = new_chunk();
    uint32_t sent = p.ack;
    p.window = 17000;              /* 2,176,000 bytes: more than the send buffer */
    for (int i = 0; i < 40; i++) { /* until the congestion window is wider than that */
        sent += (uint32_t)fill(&f, c);
        p.ack = sent;
        send_segment(&p, ACK, NULL, 0, NULL, 0);
    }
    fill(&f, c);
    assert_int_equal(conn_room(f.last), 0);
    take_events(&f);
    p.ack += 128 * 502;                    /* a whole segment */
    p.window = (uint16_t)(p.window - 502); /* in units of 128 bytes: the same edge */
    send_segment(&p, ACK, NULL, 0, NULL, 0);
    assert_true(conn_room(f.last) > 0);
    assert_true(take_events(&f) & CONN_ROOM);
    drop(&f);
    free(c);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_syn_is_held_until_accepted),
        cmocka_unit_test(test_refused_by_reset),
        cmocka_unit_test(test_refused_by_icmp_is_said_again),
        cmocka_unit_test(test_held_syn_is_given_up_by_reset),
        cmocka_unit_test(test_open_that_fails_is_reset),
        cmocka_unit_test(test_stray_segment_is_reset),
        cmocka_unit_test(test_upload_is_acknowledged_when_taken),
        cmocka_unit_test(test_lone_segment_waits_for_a_ride),
        cmocka_unit_test(test_download_comes_in_super_packets_with_tso),
        cmocka_unit_test(test_download_is_cut_to_the_mss_without_tso),
        cmocka_unit_test(test_many_small_pieces),
        cmocka_unit_test(test_lost_segment_is_sent_again),
        cmocka_unit_test(test_closed_window_is_probed_and_opens),
        cmocka_unit_test(test_room_is_told_when_no_edge_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
