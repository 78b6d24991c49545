/*
 * The stack over the device in memory: every packet that the application's kernel would send is
 * made here, every answer looked at, and time passes only when a test says so.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stack/stack.h"
#include "tests/support/peer.h"

struct fixture {
    struct device *device;
    struct stack *stack;
    uint64_t now;
    struct conn *last; /* the conn of the last conn_open() */
    unsigned events;   /* all that conn_ready() has told, and not been taken */
    unsigned opened, readies, datagrams;
    bool refuse_at_once;
    uint8_t payload[70000];
    size_t payload_len;
    struct endpoint from, to;
};

static struct fixture *current; /* of the running test */

static struct conn *on_open(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    struct fixture *f = ctx;
    (void)src, (void)dst;
    f->opened++;
    if (f->refuse_at_once)
        return NULL;
    f->last = calloc(1, sizeof *f->last);
    return f->last;
}

static void on_ready(void *ctx, struct conn *c, unsigned events)
{
    struct fixture *f = ctx;
    (void)c;
    f->readies++;
    f->events |= events;
}

static void on_datagram(void *ctx, const struct endpoint *src, const struct endpoint *dst,
                        uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom)
{
    struct fixture *f = ctx;
    (void)gso_size;
    assert_true(headroom >= 300);
    f->datagrams++;
    f->from = *src;
    f->to = *dst;
    memcpy(f->payload, payload, len);
    f->payload_len = len;
}

static void on_batch_end(void *ctx)
{
    (void)ctx;
}

static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};

static void setup_with(struct fixture *f, struct device_caps caps)
{
    const struct stack_config config = {.icmp_reply = true, .now_ms = 1000};
    memset(f, 0, sizeof *f);
    f->now = 1000;
    current = f;
    f->device = device_memory_new(PEER_MTU, caps);
    f->stack = stack_new(f->device, &config, &ops, f);
    assert_non_null(f->stack);
}

static void setup(struct fixture *f)
{
    setup_with(f, (struct device_caps){0});
}

static void teardown(struct fixture *f)
{
    assert_int_equal(stack_counters(f->stack)->conns, 0);
    stack_free(f->stack);
    device_close(f->device);
}

/* Let go of the last conn. */
static void drop(struct fixture *f)
{
    conn_abort(f->stack, f->last);
    free(f->last);
    f->last = NULL;
}

static unsigned take_events(struct fixture *f)
{
    unsigned events = f->events;
    f->events = 0;
    return events;
}

static void pass_time(struct fixture *f, unsigned ms)
{
    for (uint64_t end = f->now + ms; f->now < end;) {
        uint64_t next = stack_next_tick(f->stack);
        f->now = next < end ? (next > f->now ? next : f->now + 1) : end;
        stack_tick(f->stack, f->now);
    }
}

static void receive(struct fixture *f)
{
    while (stack_receive(f->stack, 64, f->now) > 0)
        continue;
}

/* --- packets in and out ----------------------------------------------------------------------- */

static void send_segment(struct peer *p, uint8_t flags, const void *payload, size_t len,
                         const void *options, size_t options_len)
{
    static uint8_t out[66000];
    size_t n = peer_write_segment(p, out, flags, payload, len, options, options_len);
    assert_true(device_memory_push(current->device, out, n, NULL));
    receive(current);
}

static bool pop(struct fixture *f, struct segment *s)
{
    return peer_pop(f->device, s);
}

static struct segment got;

static void expect_flags(struct fixture *f, uint8_t flags)
{
    assert_true(pop(f, &got));
    assert_int_equal(got.info.verdict, PACKET_TCP);
    assert_int_equal(got.info.tcp_flags & (FIN | SYN | RST | ACK), flags);
}

static void expect_silence(struct fixture *f)
{
    assert_false(pop(f, &got));
}

static struct endpoint at(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

static struct peer peer_of(bool v6)
{
    return (struct peer){
        .src = at(v6 ? "[fd00::2]:40000" : "10.0.0.2:40000"),
        .dst = at(v6 ? "[2001:db8::1]:80" : "192.0.2.1:80"),
        .seq = 1000,
        .window = PEER_WINDOW,
    };
}

static void send_syn(struct peer *p)
{
    send_segment(p, SYN, NULL, 0, peer_mss_1460, sizeof peer_mss_1460);
}

static void finish_handshake(struct peer *p)
{
    expect_flags(current, SYN | ACK);
    assert_int_equal(got.ack, p->seq + 1);
    p->seq++;
    p->ack = got.seq + 1;
    send_segment(p, ACK, NULL, 0, NULL, 0);
    assert_int_equal(take_events(current) & CONN_OPENED, CONN_OPENED);
}

static struct peer connect_peer(struct fixture *f, bool v6)
{
    struct peer p = peer_of(v6);
    send_syn(&p);
    conn_accept(f->stack, f->last);
    finish_handshake(&p);
    return p;
}

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
        conn_accept(f.stack, f.last);
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

static void expect_icmp(struct fixture *f, uint8_t type, uint8_t code)
{
    struct packet p = {.buffer = got.bytes};
    assert_true(device_memory_pop(f->device, &p));
    size_t ip_len = p.data[0] >> 4 == 4 ? 20 : 40;
    assert_int_equal(p.data[ip_len], type);
    assert_int_equal(p.data[ip_len + 1], code);
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
    conn_accept(f.stack, f.last); /* the proxy's answer comes too late */
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
    conn_consume(f.stack, f.last, 1000); /* a partial one */
    assert_int_equal(conn_peek(f.last, iov, 8), 3);
    assert_int_equal(iov[0].iov_len, 460);
    conn_consume(f.stack, f.last, 3380);
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
    conn_consume(f.stack, f.last, 4);
    expect_silence(&f);
    pass_time(&f, 110);
    expect_flags(&f, ACK);
    assert_int_equal(got.ack, p.seq);
    drop(&f);
    teardown(&f);
}

struct test_chunk {
    struct chunk chunk;
    unsigned released;
    uint8_t bytes[65000];
};

static void on_release(struct chunk *c)
{
    CONTAINER_OF(c, struct test_chunk, chunk)->released++;
}

static struct test_chunk *new_chunk(void)
{
    struct test_chunk *c = calloc(1, sizeof *c);
    c->chunk.release = on_release;
    for (size_t i = 0; i < sizeof c->bytes; i++)
        c->bytes[i] = (uint8_t)(i * 7 + i / 251);
    return c;
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
    conn_accept(f.stack, f.last);
    finish_handshake(&p);
    struct test_chunk *c = new_chunk();
    uint32_t sent = p.ack;
    p.window = 4500;               /* 576,000 bytes: more than the send buffer */
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
    conn_consume(f.stack, f.last, 3);
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
    conn_accept(f.stack, f.last);
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

/* A datagram in fragments, out of order, makes the round through lwIP's reassembly. */
static void test_fragments_are_put_together(void **state)
{
    struct fixture sender, f;
    static uint8_t payload[9000];
    static struct packet pieces[16];
    (void)state;
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31 + i / 257);
    for (int v6 = 0; v6 < 2; v6++) {
        setup(&sender);
        struct peer p = peer_of(v6);
        stack_send_datagram(sender.stack, &p.src, &p.dst, payload, sizeof payload, 0);
        int n = 0;
        for (; n < 16; n++) {
            pieces[n].buffer = malloc(PACKET_BUFFER_SIZE);
            if (!device_memory_pop(sender.device, &pieces[n]))
                break;
        }
        free(pieces[n].buffer);
        assert_true(n >= 6 && n < 16);
        teardown(&sender);
        setup(&f);
        for (int i = n - 1; i >= 0; i--) {
            device_memory_push(f.device, pieces[i].data, pieces[i].len, NULL);
            free(pieces[i].buffer);
        }
        receive(&f);
        assert_int_equal(f.datagrams, 1);
        assert_int_equal(f.payload_len, sizeof payload);
        assert_memory_equal(f.payload, payload, sizeof payload);
        assert_true(endpoint_equal(&f.from, &p.src) && endpoint_equal(&f.to, &p.dst));
        pass_time(&f, 120000);
        assert_true(stack_next_tick(f.stack) == UINT64_MAX);
        teardown(&f);
    }
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
        cmocka_unit_test(test_half_close_of_the_application),
        cmocka_unit_test(test_time_wait_answers_and_makes_way),
        cmocka_unit_test(test_reset_ends_it),
        cmocka_unit_test(test_idle_stack_wants_no_time),
        cmocka_unit_test(test_datagram_comes_and_goes),
        cmocka_unit_test(test_fragments_are_put_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
