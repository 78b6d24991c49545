/*
 * What happens on the way to the application: packets lost, in the wrong order, windows that
 * shrink. A reader with a small TCP of its own takes a long download from the stack over the device
 * in memory, one round trip a turn; how long nothing moves is measured in the test's own time.
 *
 * What must hold: nothing stands still for more than a few round trips, except that a packet that
 * is lost last, or twice, shows by silence only, as this reader tells of no blocks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stack/stack.h"
#include "tests/support/peer.h"

enum {
    ROUND_TRIP_MS = 10,
    TOTAL = 8 << 20,
    SILENCE_MS = 500, /* until what was lost three times has come */
    WINDOW_SHIFT = 7,
    MSS = 1460,
};

struct reader {
    struct device *device;
    struct stack *stack;
    struct conn *conn;
    struct peer peer;
    uint64_t now;
    bool opened, downloads;
    bool is_strict;      /* what goes beyond the window is dropped, as by one that has no room */
    uint32_t first;      /* sequence number of the download's first byte */
    size_t written;      /* bytes given to the stack */
    size_t next;         /* in order up to here */
    uint8_t *arrived;    /* a flag for each byte */
    unsigned chunks;     /* that the stack has */
    uint64_t moved_ms;   /* when `next` last moved on */
    uint64_t longest_ms; /* for which it did not */
    uint32_t window;     /* bytes, now */
    uint32_t random;
    struct segment got, other;
};

static struct reader *current;

struct piece {
    struct chunk chunk;
    uint8_t bytes[];
};

static uint8_t byte_at(size_t offset)
{
    return (uint8_t)(offset * 7 + offset / 251);
}

static unsigned draw(struct reader *r, unsigned below)
{
    r->random = r->random * 1664525 + 1013904223;
    return (r->random >> 8) % below;
}

/* --- the stack's side ------------------------------------------------------------------------- */

static struct conn *on_open(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    struct reader *r = ctx;
    (void)src, (void)dst;
    r->conn = calloc(1, sizeof *r->conn);
    return r->conn;
}

static void on_release(struct chunk *c)
{
    current->chunks--;
    free(CONTAINER_OF(c, struct piece, chunk));
}

static void write_all(struct reader *r)
{
    size_t room;
    while (r->downloads && r->written < TOTAL && (room = conn_room(r->conn)) > 0) {
        size_t len = room < TOTAL - r->written ? room : TOTAL - r->written;
        len = len < 60000 ? len : 60000;
        struct piece *p = malloc(sizeof *p + len);
        assert_non_null(p);
        p->chunk = (struct chunk){.release = on_release};
        for (size_t i = 0; i < len; i++)
            p->bytes[i] = byte_at(r->written + i);
        r->chunks++;
        assert_int_equal(conn_send(r->stack, r->conn, &p->chunk, p->bytes, len), 0);
        conn_flush(r->stack, r->conn);
        r->written += len;
    }
}

static void on_ready(void *ctx, struct conn *c, unsigned events)
{
    struct reader *r = ctx;
    (void)c;
    assert_int_equal(events & CONN_RESET, 0);
    r->opened = r->opened || (events & CONN_OPENED);
    if (events & CONN_ROOM)
        write_all(r);
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

static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};

/* --- the reader's side ------------------------------------------------------------------------ */

static void say(struct reader *r, uint8_t flags, const void *payload, size_t len,
                const void *options, size_t options_len)
{
    static uint8_t out[66000];
    r->peer.window = (uint16_t)(flags & SYN ? PEER_WINDOW : r->window >> WINDOW_SHIFT);
    size_t n = peer_write_segment(&r->peer, out, flags, payload, len, options, options_len);
    assert_true(device_memory_push(r->device, out, n, NULL));
}

/* What the reader has said arrives. */
static void deliver(struct reader *r)
{
    while (stack_receive(r->stack, 64, r->now) > 0)
        continue;
}

static void acknowledge(struct reader *r)
{
    r->peer.ack = r->first + (uint32_t)r->next;
    say(r, ACK, NULL, 0, NULL, 0);
}

static void take(struct reader *r, const struct segment *s)
{
    size_t at = s->seq - r->first;
    if (s->payload_len == 0 || at >= TOTAL)
        return; /* or what was there before: as an offset, huge */
    assert_true(at + s->payload_len <= r->written);
    if (r->is_strict && at + s->payload_len > r->next + r->window) {
        acknowledge(r);
        return;
    }
    for (size_t i = 0; i < s->payload_len; i++) {
        assert_int_equal(s->payload[i], byte_at(at + i));
        r->arrived[at + i] = 1;
    }
    if (at <= r->next && r->next < TOTAL && r->arrived[r->next]) {
        while (r->next < TOTAL && r->arrived[r->next])
            r->next++;
        uint64_t still = r->now - r->moved_ms;
        r->longest_ms = still > r->longest_ms ? still : r->longest_ms;
        r->moved_ms = r->now;
    }
    acknowledge(r);
}

/* What came within a round trip; with `reorder`, now and then one packet after its successor. */
static void take_round(struct reader *r, bool reorder)
{
    while (peer_pop(r->device, &r->got)) {
        if (reorder && draw(r, 8) == 0 && peer_pop(r->device, &r->other))
            take(r, &r->other);
        take(r, &r->got);
    }
}

static void pass_round_trip(struct reader *r)
{
    for (uint64_t end = r->now + ROUND_TRIP_MS; r->now < end;) {
        uint64_t next = stack_next_tick(r->stack);
        r->now = next < end ? (next > r->now ? next : r->now + 1) : end;
        stack_tick(r->stack, r->now);
    }
}

static void open_reader(struct reader *r, bool tso)
{
    static const uint8_t scaled[] = {2, 4, MSS >> 8, MSS & 255, 1, 3, 3, WINDOW_SHIFT};
    const struct stack_config config = {.now_ms = 1000};
    *r = (struct reader){.now = 1000, .moved_ms = 1000, .random = 1, .window = 512000};
    current = r;
    r->arrived = calloc(1, TOTAL);
    r->device = device_memory_new(PEER_MTU, (struct device_caps){.csum = tso, .tso = tso});
    r->stack = stack_new(r->device, &config, &ops, r);
    assert_non_null(r->stack);
    assert_true(endpoint_parse("10.0.0.2:40000", 0, &r->peer.src));
    assert_true(endpoint_parse("192.0.2.1:80", 0, &r->peer.dst));
    r->peer.seq = 1000;
    say(r, SYN, NULL, 0, scaled, sizeof scaled);
    deliver(r);
    conn_accept(r->stack, r->conn, SIZE_MAX);
    assert_true(peer_pop(r->device, &r->got));
    r->first = r->got.seq + 1;
    r->peer.seq++;
    acknowledge(r);
    deliver(r);
    assert_true(r->opened);
}

static void close_reader(struct reader *r)
{
    conn_abort(r->stack, r->conn);
    free(r->conn);
    assert_int_equal(r->chunks, 0);
    stack_free(r->stack);
    device_close(r->device);
    free(r->arrived);
}

/* --- downloads -------------------------------------------------------------------------------- */

/* The window of the next round: as it is for most, now and then another, perhaps a tiny one. */
static uint32_t next_window(struct reader *r)
{
    static const uint32_t sizes[] = {512000, 200000, 60000, 9000, 3000, 1408, 512, 128, 0};
    return draw(r, 4) == 0 ? sizes[draw(r, sizeof sizes / sizeof sizes[0])] : r->window;
}

/* The whole download. A window of 0 is opened in the next round, as any reader's is. */
static void download(struct reader *r, bool reorder, bool windows)
{
    r->downloads = true;
    write_all(r);
    while (r->next < TOTAL) {
        take_round(r, reorder);
        pass_round_trip(r);
        assert_true(r->now - r->moved_ms < 10000);
        uint32_t window = windows ? next_window(r) : r->window;
        window = r->window == 0 && window == 0 ? 60000 : window;
        if (window != r->window) {
            r->window = window;
            acknowledge(r); /* a pure window update */
        }
        deliver(r);
    }
}

static void test_loss_never_stalls(void **state)
{
    static const struct {
        bool tso;
        unsigned every;
    } cases[] = {{true, 50}, {true, 7}, {false, 1000}, {false, 97}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct reader r;
        open_reader(&r, cases[i].tso);
        device_memory_drop_every(r.device, cases[i].every);
        download(&r, false, false);
        print_message("tso %d, each %u lost: %llu ms, longest stall %llu ms\n", cases[i].tso,
                      cases[i].every, (unsigned long long)r.now - 1000,
                      (unsigned long long)r.longest_ms);
        assert_true(r.longest_ms <= SILENCE_MS);
        close_reader(&r);
    }
}

static void test_reordering_never_stalls(void **state)
{
    (void)state;
    for (int tso = 0; tso < 2; tso++) {
        struct reader r;
        open_reader(&r, tso);
        download(&r, true, false);
        print_message("tso %d, reordered: %llu ms, longest stall %llu ms\n", tso,
                      (unsigned long long)r.now - 1000, (unsigned long long)r.longest_ms);
        assert_true(r.longest_ms <= 5 * ROUND_TRIP_MS);
        close_reader(&r);
    }
}

/* The trap of large segments: a window smaller than what lies queued, or than what is under way. */
static void test_windows_that_shrink_never_stall(void **state)
{
    (void)state;
    for (unsigned run = 0; run < 16; run++) {
        struct reader r;
        open_reader(&r, run & 1);
        r.is_strict = run & 2;
        r.random = run;
        download(&r, false, true);
        print_message("tso %u, strict %u, run %u, windows: %llu ms, longest stall %llu ms\n",
                      run & 1, r.is_strict, run, (unsigned long long)r.now - 1000,
                      (unsigned long long)r.longest_ms);
        assert_true(r.longest_ms <= 5 * ROUND_TRIP_MS);
        close_reader(&r);
    }
}

/* --- uploads ---------------------------------------------------------------------------------- */

/* Each segment behind a hole is answered at once, so that the application retransmits fast. */
static void test_a_hole_in_an_upload_is_told_at_once(void **state)
{
    struct reader r;
    static uint8_t data[MSS];
    (void)state;
    open_reader(&r, true);
    uint32_t hole = r.peer.seq;
    for (int i = 1; i <= 4; i++) {
        r.peer.seq = hole + (uint32_t)i * MSS;
        say(&r, ACK, data, sizeof data, NULL, 0);
        deliver(&r);
        assert_true(peer_pop(r.device, &r.got));
        assert_int_equal(r.got.ack, hole);
        assert_int_equal(r.got.payload_len, 0);
    }
    r.peer.seq = hole;
    say(&r, ACK, data, sizeof data, NULL, 0);
    deliver(&r);
    struct iovec iov[16];
    size_t len = 0;
    int count = conn_peek(r.conn, iov, 16);
    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    assert_int_equal(len, 5 * MSS);
    conn_consume(r.stack, r.conn, len, SIZE_MAX);
    while (peer_pop(r.device, &r.got))
        continue;
    assert_int_equal(r.got.ack, hole + 5 * MSS);
    close_reader(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_never_stalls),
        cmocka_unit_test(test_reordering_never_stalls),
        cmocka_unit_test(test_windows_that_shrink_never_stall),
        cmocka_unit_test(test_a_hole_in_an_upload_is_told_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
