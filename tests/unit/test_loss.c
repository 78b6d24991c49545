/*
 * What an application's selective acknowledgments (stack/loss.c) make the stack send again: the
 * hole, at once, whole and once.
 */
#include "tests/unit/stack_lab.h"
#include "tests/unit/wire.h"

enum { LEN = 1000, COUNT = 10 };

struct load {
    struct fixture f;
    struct peer peer;
    uint32_t first; /* sequence number of the first of COUNT segments of LEN bytes */
    struct test_chunk *chunk;
};

static struct load load;

static uint32_t seq_of(unsigned segment)
{
    return load.first + segment * LEN;
}

static void expect_segment(unsigned segment)
{
    expect_flags(&load.f, ACK);
    assert_int_equal(got.seq, seq_of(segment));
    assert_int_equal(got.payload_len, LEN);
    assert_memory_equal(got.payload, load.chunk->bytes + segment * LEN, LEN);
}

static void send_flight(void)
{
    load.first = load.peer.ack;
    load.chunk->released = 0; /* it was, if all of it was acknowledged */
    for (unsigned i = 0; i < COUNT; i++) {
        assert_true(conn_room(load.f.last) >= LEN);
        conn_send(load.f.stack, load.f.last, &load.chunk->chunk, load.chunk->bytes + i * LEN, LEN);
        conn_flush(load.f.stack, load.f.last);
        expect_segment(i);
    }
}

/* Ten segments are under way, in ten packets; the window for them is open. */
static void begin(bool v6)
{
    memset(&load, 0, sizeof load);
    setup(&load.f);
    load.peer = connect_peer(&load.f, v6);
    load.chunk = new_chunk();
    send_flight();
}

static void end(void)
{
    drop(&load.f);
    assert_int_equal(load.chunk->released, 1);
    free(load.chunk);
    teardown(&load.f);
}

struct block {
    uint32_t left, right;
};

/*
 * An ACK of what lies before segment `ack`, with blocks as a receiver writes them. Each has another
 * window, so that lwIP counts no duplicate ACKs.
 */
static void acknowledge(unsigned ack, const struct block *blocks, size_t count)
{
    uint8_t options[40] = {1, 1, 5, (uint8_t)(2 + 8 * count)};
    for (size_t i = 0; i < count; i++) {
        wire_put32(options + 4 + 8 * i, blocks[i].left);
        wire_put32(options + 8 + 8 * i, blocks[i].right);
    }
    load.peer.ack = seq_of(ack);
    load.peer.window++;
    send_segment(&load.peer, ACK, NULL, 0, options, count > 0 ? 4 + 8 * count : 0);
}

static void report(unsigned ack, unsigned left, unsigned right)
{
    const struct block b = {seq_of(left), seq_of(right)};
    acknowledge(ack, &b, 1);
}

static void test_a_hole_is_sent_again_at_once(void **state)
{
    (void)state;
    for (int v6 = 0; v6 <= 1; v6++) {
        begin(v6);
        report(2, 5, 6);
        expect_segment(2);
        expect_segment(3);
        expect_segment(4);
        expect_silence(&load.f);
        end();
    }
}

static void test_and_only_once(void **state)
{
    (void)state;
    begin(false);
    report(0, 1, 2);
    expect_segment(0);
    for (unsigned right = 3; right <= COUNT; right++)
        report(0, 1, right);
    expect_silence(&load.f);
    report(1, 0, 1); /* a duplicate came, and nothing is missing of what lies below it */
    expect_silence(&load.f);
    acknowledge(COUNT, NULL, 0);
    expect_silence(&load.f);
    end();
}

/* What was sent after the hole was filled has come, and the hole is there still: lost again. */
static void test_and_again_if_lost_again(void **state)
{
    (void)state;
    begin(false);
    report(0, 1, COUNT);
    expect_segment(0);
    for (unsigned i = COUNT; i < COUNT + 3; i++) {
        conn_send(load.f.stack, load.f.last, &load.chunk->chunk, load.chunk->bytes + i * LEN, LEN);
        conn_flush(load.f.stack, load.f.last);
        expect_segment(i);
    }
    report(0, 1, COUNT + 1);
    expect_segment(0);
    report(0, 1, COUNT + 2); /* this one was sent before that */
    report(0, 1, COUNT + 3);
    report(0, 1, COUNT + 9); /* never sent */
    expect_silence(&load.f);
    acknowledge(COUNT + 3, NULL, 0);
    expect_silence(&load.f);
    end();
}

/* Blocks that an application makes up do not get it the same bytes again and again. */
static void test_a_growing_hole_is_sent_once(void **state)
{
    (void)state;
    begin(false);
    report(0, 1, 2);
    expect_segment(0);
    for (uint32_t left = seq_of(1) + 1; left < seq_of(COUNT); left += 37) {
        const struct block b = {left, seq_of(COUNT)};
        acknowledge(0, &b, 1);
    }
    expect_silence(&load.f);
    end();
}

/* The segment has gone as a whole, whatever part of it the block called missing. */
static void test_parts_of_a_segment_are_no_holes(void **state)
{
    (void)state;
    begin(false);
    const struct block b = {seq_of(0) + 1, seq_of(1)};
    acknowledge(0, &b, 1);
    expect_segment(0);
    for (uint32_t at = seq_of(0) + 2; at < seq_of(1) - 1; at += 37) {
        uint8_t options[12] = {1, 1, 5, 10};
        wire_put32(options + 4, at + 1);
        wire_put32(options + 8, seq_of(1));
        load.peer.ack = at;
        load.peer.window++;
        send_segment(&load.peer, ACK, NULL, 0, options, sizeof options);
    }
    expect_silence(&load.f);
    end();
}

/* The ACK moves into the hole: what is left of it is under way already. */
static void test_partial_acknowledgments(void **state)
{
    (void)state;
    begin(false);
    report(0, 4, 5);
    for (unsigned i = 0; i < 4; i++)
        expect_segment(i);
    for (unsigned i = 1; i < 4; i++)
        report(i, 4, 5);
    expect_silence(&load.f);
    end();
}

static void test_one_hole_after_the_other(void **state)
{
    (void)state;
    begin(true);
    const struct block two[] = {{seq_of(7), seq_of(8)}, {seq_of(2), seq_of(3)}};
    acknowledge(1, two, 2);
    expect_segment(1);
    expect_silence(&load.f);
    report(3, 7, 8);
    for (unsigned i = 3; i < 7; i++)
        expect_segment(i);
    expect_silence(&load.f);
    report(8, 9, 10);
    expect_segment(8);
    expect_silence(&load.f);
    end();
}

/* Duplicates, what was never sent, and options that are none. */
static void test_what_tells_of_no_hole(void **state)
{
    static const uint8_t nonsense[][12] = {
        {1, 1, 5, 10, 0, 0, 0, 0, 0, 0, 0, 0}, /* a block below the ACK */
        {5, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},  /* a length that would never end */
        {5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
        {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 10}, /* beyond the header */
        {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5},
        {5, 9, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0},           /* no whole block */
        {0, 0, 5, 10, 0x7f, 0xff, 0, 0, 0x7f, 0xff, 0xff, 0}, /* after the end */
    };
    (void)state;
    begin(false);
    report(5, 3, 4);
    report(5, 5, 6);
    const struct block beyond = {seq_of(COUNT) + 1000, seq_of(COUNT) + 2000};
    acknowledge(5, &beyond, 1);
    const struct block far = {seq_of(5) + 0x7fffffff, seq_of(5) + 0x7fffffff};
    acknowledge(5, &far, 1);
    for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++, load.peer.window++)
        send_segment(&load.peer, ACK, NULL, 0, nonsense[i], sizeof nonsense[i]);
    expect_silence(&load.f);
    acknowledge(COUNT, NULL, 0);
    report(COUNT, 2, 3); /* nothing is under way */
    expect_silence(&load.f);
    end();
}

/* What was sent again whole came twice but for the part that was lost: nothing else is lost for
 * that. */
static void test_reports_of_duplicates_are_no_losses(void **state)
{
    (void)state;
    begin(false);
    acknowledge(5, NULL, 0);
    for (unsigned i = 0; i < 5; i++, load.peer.window--)
        report(5, i, i + 1);
    expect_silence(&load.f);
    for (unsigned i = 0; i < 3; i++, load.peer.window--)
        acknowledge(5, NULL, 0);
    expect_segment(5);
    expect_silence(&load.f);
    end();
}

/* However many segments holes have: lwIP ends a connection after TCP_MAXRTX of them in vain. */
static void test_holes_do_not_end_the_connection(void **state)
{
    (void)state;
    begin(false);
    report(0, 9, 10);
    for (unsigned i = 0; i < 9; i++)
        expect_segment(i);
    pass_time(&load.f, 100);
    assert_false(conn_is_over(load.f.last));
    for (unsigned i = 1; i < 9; i++) {
        pass_time(&load.f, 20);
        report(i, 9, 10);
    }
    acknowledge(COUNT, NULL, 0);
    pass_time(&load.f, 2000);
    assert_false(conn_is_over(load.f.last));
    assert_int_equal(conn_unacknowledged(load.f.last), 0);
    end();
}

enum { WIDE = 30 };

/* 30 segments are under way, where half the window and three segments are less. */
static void begin_wide(void)
{
    static const uint8_t mss_48[4] = {2, 4, 0, 48};
    memset(&load, 0, sizeof load);
    setup_with(&load.f, (struct device_caps){.csum = true, .tso = true});
    load.peer = peer_of(false);
    send_segment(&load.peer, SYN, NULL, 0, mss_48, sizeof mss_48);
    conn_accept(load.f.stack, load.f.last, SIZE_MAX);
    finish_handshake(&load.peer);
    load.chunk = new_chunk();
    load.first = load.peer.ack;
    for (unsigned i = 0; i < 2 * WIDE; i++) {
        if (i == WIDE) {
            load.first = load.peer.ack;
            load.chunk->released = 0; /* it was, each time that all of it was acknowledged */
        }
        assert_true(conn_room(load.f.last) >= LEN);
        const uint8_t *bytes = load.chunk->bytes + i % WIDE * LEN;
        conn_send(load.f.stack, load.f.last, &load.chunk->chunk, bytes, LEN);
        conn_flush(load.f.stack, load.f.last);
        expect_segment(i % WIDE);
        if (i < WIDE)
            acknowledge(i + 1, NULL, 0);
    }
}

/* Whatever the congestion window: a rest would be what lwIP appends the FIN to. */
static void test_a_wide_hole_is_sent_again_whole(void **state)
{
    (void)state;
    begin_wide();
    report(0, WIDE - 1, WIDE);
    conn_shutdown(load.f.stack, load.f.last);
    for (unsigned i = 0; i < WIDE - 1; i++)
        expect_segment(i);
    acknowledge(WIDE, NULL, 0);
    expect_flags(&load.f, FIN | ACK);
    assert_int_equal(got.seq, seq_of(WIDE));
    end();
}

/* --- silence --- */

enum { EARLY_MS = 150, AT_ONCE_MS = 40, LATE_MS = 190 };

static void expect_flight_again(void)
{
    for (unsigned i = 0; i < COUNT; i++)
        expect_segment(i);
    expect_silence(&load.f);
}

/* Lost again, or with nothing behind it: there is an ACK that does not come. */
static void test_silence_is_a_loss(void **state)
{
    (void)state;
    begin(false);
    pass_time(&load.f, AT_ONCE_MS);
    expect_silence(&load.f);
    pass_time(&load.f, EARLY_MS - AT_ONCE_MS);
    expect_flight_again();
    report(0, 1, COUNT);
    expect_segment(0);
    expect_silence(&load.f);
    pass_time(&load.f, 2 * EARLY_MS);
    expect_flight_again();
    acknowledge(COUNT, NULL, 0);
    expect_silence(&load.f);
    end();
}

/* An ACK of something says that the way is there; one of nothing does not. */
static void test_progress_is_no_silence(void **state)
{
    (void)state;
    begin(false);
    for (unsigned i = 1; i < COUNT - 2; i++) {
        pass_time(&load.f, AT_ONCE_MS);
        acknowledge(i, NULL, 0);
    }
    expect_silence(&load.f);
    for (unsigned i = 0; i < 4; i++) {
        pass_time(&load.f, AT_ONCE_MS);
        acknowledge(COUNT - 3, NULL, 0);
    }
    for (unsigned i = COUNT - 3; i < COUNT; i++)
        expect_segment(i);
    expect_silence(&load.f);
    end();
}

/* The ACK of less than two segments may be delayed: lwIP's timer. */
static void test_a_delayed_ack_is_no_silence(void **state)
{
    (void)state;
    begin(false);
    acknowledge(COUNT - 1, NULL, 0);
    pass_time(&load.f, LATE_MS);
    expect_silence(&load.f);
    pass_time(&load.f, EARLY_MS);
    expect_segment(COUNT - 1);
    expect_silence(&load.f);
    end();
}

/* Each time twice as long, then lwIP's timer: no connection ends sooner for it. */
static void test_silence_that_lasts(void **state)
{
    (void)state;
    begin(false);
    unsigned times = 0;
    for (unsigned ms = 0; ms < 220 * 1000; ms += 50) {
        pass_time(&load.f, 50);
        assert_false(conn_is_over(load.f.last));
        times += pop(&load.f, &got);
        while (pop(&load.f, &got))
            continue;
    }
    assert_in_range(times, 9, 13);
    end();
}

/* Whose handshake takes longer is far away, and an ACK takes as long: lwIP's timer. */
static void test_a_long_way_is_no_silence(void **state)
{
    static const struct {
        unsigned handshake_ms;
        bool is_near;
    } rows[] = {{0, true}, {19, true}, {20, false}, {1000, false}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memset(&load, 0, sizeof load);
        setup(&load.f);
        load.peer = peer_of(false);
        send_syn(&load.peer);
        load.f.now += 500; /* until the proxy has connected */
        stack_set_time(load.f.stack, load.f.now);
        conn_accept(load.f.stack, load.f.last, SIZE_MAX);
        load.f.now += rows[i].handshake_ms;
        finish_handshake(&load.peer);
        load.chunk = new_chunk();
        send_flight();
        pass_time(&load.f, EARLY_MS);
        if (rows[i].is_near)
            expect_flight_again();
        expect_silence(&load.f);
        end();
    }
}

/* The SYN-ACK went twice: the answer may be to the first, so lwIP keeps to its first second. */
static void test_a_handshake_that_was_repeated(void **state)
{
    (void)state;
    memset(&load, 0, sizeof load);
    setup(&load.f);
    load.peer = peer_of(false);
    send_syn(&load.peer);
    conn_accept(load.f.stack, load.f.last, SIZE_MAX);
    pass_time(&load.f, 1200);
    expect_flags(&load.f, SYN | ACK);
    finish_handshake(&load.peer);
    load.chunk = new_chunk();
    send_flight();
    pass_time(&load.f, 800);
    expect_silence(&load.f);
    pass_time(&load.f, 600);
    expect_segment(0);
    end();
}

/* What was sent again for silence should be acknowledged as soon as the SYN-ACK was. */
static void test_a_way_that_becomes_long(void **state)
{
    (void)state;
    for (int is_near = 0; is_near <= 1; is_near++) {
        begin(false);
        pass_time(&load.f, 100);
        expect_flight_again();
        load.f.now += is_near ? 19 : 20;
        acknowledge(COUNT, NULL, 0);
        send_flight();
        pass_time(&load.f, EARLY_MS);
        if (is_near)
            expect_flight_again();
        expect_silence(&load.f);
        end();
    }
}

/* --- windows that shrink --- */

static void acknowledge_with_window(unsigned ack, uint16_t window)
{
    load.peer.ack = seq_of(ack);
    load.peer.window = window;
    send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
}

static void expect_bytes(unsigned offset, size_t len)
{
    expect_flags(&load.f, ACK);
    assert_int_equal(got.seq, load.first + offset);
    assert_int_equal(got.payload_len, len);
    assert_memory_equal(got.payload, load.chunk->bytes + offset, len);
}

/* What was under way does not fit any more: what does fit goes out again, piece by piece. */
static void test_a_window_that_shrinks(void **state)
{
    (void)state;
    begin(false);
    acknowledge_with_window(2, 300);
    expect_silence(&load.f); /* the rest may still arrive */
    acknowledge_with_window(2, 300);
    expect_bytes(2000, 300);
    expect_silence(&load.f);
    load.peer.ack = load.first + 2300;
    load.peer.window = 60000;
    send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
    for (unsigned at = 2300; at < COUNT * LEN; at += (unsigned)got.payload_len) {
        assert_true(pop(&load.f, &got));
        assert_int_equal(got.seq, load.first + at);
        assert_memory_equal(got.payload, load.chunk->bytes + at, got.payload_len);
    }
    expect_silence(&load.f);
    acknowledge_with_window(COUNT, 60000);
    end();
}

/* What was sent again is sent once more for half the window, not for a little less. */
static void test_a_window_that_goes_on_shrinking(void **state)
{
    static const struct {
        uint16_t window;
        size_t again; /* bytes; 0: nothing */
    } rows[] = {{299, 0}, {151, 0}, {150, 150}, {1, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        begin(false);
        acknowledge_with_window(2, 300);
        acknowledge_with_window(2, 300);
        expect_bytes(2000, 300);
        acknowledge_with_window(2, rows[i].window);
        if (rows[i].again > 0)
            expect_bytes(2000, rows[i].again);
        expect_silence(&load.f);
        end();
    }
}

/* It shuts, and what is under way is dropped: it goes out when it opens, without a timer. */
static void test_a_window_that_shuts(void **state)
{
    (void)state;
    begin(false);
    acknowledge_with_window(2, 0);
    acknowledge_with_window(2, 0);
    expect_silence(&load.f);
    acknowledge_with_window(2, 500);
    expect_bytes(2000, 500);
    load.peer.ack = load.first + 2500;
    send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
    expect_bytes(2500, 500);
    expect_silence(&load.f);
    end();
}

/* One that shuts and opens without end gets the flight once more, not each time. */
static void test_a_window_that_oscillates(void **state)
{
    (void)state;
    begin(false);
    acknowledge_with_window(2, 0);
    unsigned again = 0;
    for (int i = 0; i < 20; i++) {
        acknowledge_with_window(2, 0);
        acknowledge_with_window(2, 60000);
        while (pop(&load.f, &got))
            again += got.payload_len > 0;
    }
    assert_in_range(again, COUNT - 2, 2 * COUNT);
    end();
}

/*
 * Two chunks as core sends them, in one go: the window is smaller than both, so that lwIP's second
 * segment has bytes of either. What it will send again as a whole may not be given back in part.
 */
static void test_a_chunk_is_kept_with_its_segment(void **state)
{
    enum { CHUNK = 18000, SPLIT = 16000 }; /* lwIP's segments: half the largest window */
    (void)state;
    memset(&load, 0, sizeof load);
    setup_with(&load.f, (struct device_caps){.csum = true, .tso = true});
    load.peer = peer_of(false);
    load.peer.window = 2 * SPLIT;
    send_syn(&load.peer);
    conn_accept(load.f.stack, load.f.last, SIZE_MAX);
    finish_handshake(&load.peer);
    struct test_chunk *warm = new_chunk();
    while (conn_budget(load.f.last) < 2 * SPLIT) {
        size_t len = conn_room(load.f.last) < SPLIT ? conn_room(load.f.last) : SPLIT;
        conn_send(load.f.stack, load.f.last, &warm->chunk, warm->bytes, len);
        conn_flush(load.f.stack, load.f.last);
        while (pop(&load.f, &got))
            continue;
        load.peer.ack += (uint32_t)len;
        send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
    }
    load.first = load.peer.ack;
    struct test_chunk *one = new_chunk(), *two = new_chunk();
    conn_send(load.f.stack, load.f.last, &one->chunk, one->bytes, CHUNK);
    conn_send(load.f.stack, load.f.last, &two->chunk, two->bytes, 2 * SPLIT - CHUNK);
    conn_flush(load.f.stack, load.f.last);
    for (int i = 0; i < 2; i++) {
        expect_flags(&load.f, ACK);
        assert_int_equal(got.seq, load.first + (uint32_t)i * SPLIT);
        assert_int_equal(got.payload_len, SPLIT);
    }
    load.peer.ack = load.first + CHUNK + 1000;
    send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
    assert_int_equal(one->released, 0);
    pass_time(&load.f, 3000);
    expect_flags(&load.f, ACK);
    assert_int_equal(got.seq, load.first + SPLIT);
    assert_memory_equal(got.payload, one->bytes + SPLIT, CHUNK - SPLIT);
    load.peer.ack = load.first + 2 * SPLIT;
    send_segment(&load.peer, ACK, NULL, 0, NULL, 0);
    assert_int_equal(one->released, 1);
    assert_int_equal(two->released, 1);
    drop(&load.f);
    teardown(&load.f);
    free(warm);
    free(one);
    free(two);
}

/* --- segments of the application's that should not be there ------------------------------------
 */

static uint8_t bytes[66000];

/* What the stack acknowledges after a segment that begins `offset` bytes behind what it waits for.
 */
static uint32_t answer_to(uint8_t flags, uint32_t offset, size_t len)
{
    uint32_t seq = load.peer.seq;
    load.peer.seq += offset;
    send_segment(&load.peer, flags, bytes, len, NULL, 0);
    load.peer.seq = seq;
    pass_time(&load.f, 100); /* delayed ACKs */
    assert_true(pop(&load.f, &got));
    uint32_t ack = got.ack - seq;
    while (pop(&load.f, &got))
        ack = got.ack - seq;
    return ack;
}

static void expect_readable(size_t len)
{
    struct iovec iov[8];
    size_t found = 0;
    for (int i = 0, n = conn_peek(load.f.last, iov, 8); i < n; i++)
        found += iov[i].iov_len;
    assert_int_equal(found, len);
    conn_consume(load.f.stack, load.f.last, len, SIZE_MAX);
}

static void begin_upload(void)
{
    memset(&load, 0, sizeof load);
    setup(&load.f);
    load.peer = connect_peer(&load.f, false); /* its window is 65,535 bytes */
    while (pop(&load.f, &got))
        continue;
}

/* Behind a hole, and beyond the window: dropped; up to its edge: kept. */
static void test_beyond_the_window_behind_a_hole(void **state)
{
    enum { HOLE = 100 };
    static const struct {
        uint8_t flags;
        size_t len;
        bool kept;
    } rows[] = {
        {ACK, 65535 - HOLE, true},
        {ACK, 65535 - HOLE + 1, false},
        {ACK | FIN, 65535 - HOLE - 1, true},
        {ACK | FIN, 65535 - HOLE, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        begin_upload();
        assert_int_equal(answer_to(rows[i].flags, HOLE, rows[i].len), 0);
        send_segment(&load.peer, ACK, bytes, HOLE, NULL, 0);
        expect_readable(rows[i].kept ? HOLE + rows[i].len : HOLE);
        drop(&load.f);
        teardown(&load.f);
    }
}

/* A FIN waits behind a hole: what would lie beyond it is not taken, with or without the hole. */
static void test_beyond_a_fin_behind_a_hole(void **state)
{
    (void)state;
    begin_upload();
    assert_int_equal(answer_to(ACK | FIN, 1000, 100), 0);
    assert_int_equal(answer_to(ACK, 1000, 101), 0);
    assert_int_equal(answer_to(ACK, 0, 65000), 0);
    send_segment(&load.peer, ACK, bytes, 1000, NULL, 0);
    expect_readable(1100);
    assert_true(take_events(&load.f) & CONN_FIN);
    drop(&load.f);
    teardown(&load.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_hole_is_sent_again_at_once),
        cmocka_unit_test(test_and_only_once),
        cmocka_unit_test(test_and_again_if_lost_again),
        cmocka_unit_test(test_a_growing_hole_is_sent_once),
        cmocka_unit_test(test_parts_of_a_segment_are_no_holes),
        cmocka_unit_test(test_partial_acknowledgments),
        cmocka_unit_test(test_one_hole_after_the_other),
        cmocka_unit_test(test_what_tells_of_no_hole),
        cmocka_unit_test(test_reports_of_duplicates_are_no_losses),
        cmocka_unit_test(test_holes_do_not_end_the_connection),
        cmocka_unit_test(test_a_wide_hole_is_sent_again_whole),
        cmocka_unit_test(test_silence_is_a_loss),
        cmocka_unit_test(test_progress_is_no_silence),
        cmocka_unit_test(test_a_delayed_ack_is_no_silence),
        cmocka_unit_test(test_silence_that_lasts),
        cmocka_unit_test(test_a_long_way_is_no_silence),
        cmocka_unit_test(test_a_way_that_becomes_long),
        cmocka_unit_test(test_a_handshake_that_was_repeated),
        cmocka_unit_test(test_a_window_that_shrinks),
        cmocka_unit_test(test_a_window_that_goes_on_shrinking),
        cmocka_unit_test(test_a_window_that_shuts),
        cmocka_unit_test(test_a_window_that_oscillates),
        cmocka_unit_test(test_a_chunk_is_kept_with_its_segment),
        cmocka_unit_test(test_beyond_the_window_behind_a_hole),
        cmocka_unit_test(test_beyond_a_fin_behind_a_hole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
