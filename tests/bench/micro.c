/*
 * What one packet costs with N connections open, for `valgrind --tool=callgrind` to count:
 *
 *     micro N PHASE COUNT
 *
 * opens N connections over the device in memory, then does PHASE COUNT times:
 *   up     a segment of 1,000 bytes from a connection chosen at random, consumed
 *   down   1,000 bytes to a connection chosen at random, acknowledged
 *   open   a SYN, accepted, its handshake completed, and a reset: from nothing to nothing
 *   stray  a segment of no connection
 *   tick   all that time wants in ten seconds while a connection waits for an ACK
 * The counts are collected inside the stack's own functions only; see tests/bench/flat.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stack/stack.h"
#include "tests/support/peer.h"

struct client {
    struct conn conn;
    struct peer peer;
    struct chunk chunk;
};

struct bench {
    struct device *device;
    struct stack *stack;
    uint64_t now;
    struct client **clients;
    size_t count;
    struct client *opening;
};

static uint32_t next_random(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state = state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)(state >> 33);
}

static struct conn *on_open(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    struct bench *b = ctx;
    (void)src, (void)dst;
    memset(&b->opening->conn, 0, sizeof b->opening->conn);
    return &b->opening->conn;
}

static void on_ready(void *ctx, struct conn *c, unsigned events)
{
    struct bench *b = ctx;
    struct iovec iov[4];
    if (events & (CONN_RESET | CONN_CLOSED)) {
        conn_abort(b->stack, c);
        return;
    }
    for (int n; (n = conn_peek(c, iov, 4)) > 0;)
        for (int i = 0; i < n; i++)
            conn_consume(b->stack, c, iov[i].iov_len, SIZE_MAX);
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

static void on_release(struct chunk *chunk)
{
    (void)chunk;
}

/* Take all that was written; the last packet stays in `last`. */
static void drain(struct bench *b, struct segment *last)
{
    while (peer_pop(b->device, last))
        continue;
}

static void send_segment(struct bench *b, const struct peer *p, uint8_t flags, const void *payload,
                         size_t len)
{
    static uint8_t out[66000];
    size_t options = flags & SYN ? sizeof peer_mss_1460 : 0;
    size_t n = peer_write_segment(p, out, flags, payload, len, peer_mss_1460, options);
    device_memory_push(b->device, out, n, NULL);
    stack_receive(b->stack, 1, b->now);
}

/* The endpoints of client `i`: 60,000 ports an address. */
static void name_client(struct client *c, size_t i)
{
    uint8_t src[4] = {10, 1, (uint8_t)(i / 60000 >> 8), (uint8_t)(i / 60000)};
    uint8_t dst[4] = {192, 0, 2, 1};
    c->peer.src = (struct endpoint){addr_from_v4(src), (uint16_t)(1024 + i % 60000)};
    c->peer.dst = (struct endpoint){addr_from_v4(dst), 80};
    c->peer.seq = next_random();
    c->peer.window = PEER_WINDOW;
    c->chunk.release = on_release;
}

static void open_client(struct bench *b, struct client *c)
{
    static struct segment got;
    b->opening = c;
    send_segment(b, &c->peer, SYN, NULL, 0);
    conn_accept(b->stack, &c->conn, SIZE_MAX);
    drain(b, &got);
    if ((got.info.tcp_flags & (SYN | ACK)) != (SYN | ACK))
        abort();
    c->peer.seq++;
    c->peer.ack = got.seq + 1;
    send_segment(b, &c->peer, ACK, NULL, 0);
}

static struct client *choose(struct bench *b)
{
    return b->clients[next_random() % b->count];
}

static void pass_time(struct bench *b, uint64_t ms)
{
    for (uint64_t end = b->now + ms; b->now < end;) {
        uint64_t next = stack_next_tick(b->stack);
        b->now = next < end ? (next > b->now ? next : b->now + 1) : end;
        stack_tick(b->stack, b->now);
    }
}

static uint8_t data[1000];
static struct segment scratch;

static void up(struct bench *b)
{
    struct client *c = choose(b);
    send_segment(b, &c->peer, ACK | PSH, data, sizeof data);
    c->peer.seq += sizeof data;
    drain(b, &scratch);
}

static void send_down(struct bench *b, struct client *c)
{
    if (conn_send(b->stack, &c->conn, &c->chunk, data, sizeof data) != 0)
        abort();
    conn_flush(b->stack, &c->conn);
}

static void acknowledge(struct bench *b, struct client *c)
{
    drain(b, &scratch);
    c->peer.ack += sizeof data;
    send_segment(b, &c->peer, ACK, NULL, 0);
}

static void down(struct bench *b)
{
    struct client *c = choose(b);
    send_down(b, c);
    acknowledge(b, c);
}

static void open_and_reset(struct bench *b)
{
    static struct client c;
    static size_t serial = 10000000;
    name_client(&c, serial++);
    open_client(b, &c);
    send_segment(b, &c.peer, RST | ACK, NULL, 0);
}

static void stray(struct bench *b)
{
    struct client c;
    name_client(&c, 20000000);
    c.peer.ack = 1;
    send_segment(b, &c.peer, ACK, NULL, 0);
    drain(b, &scratch);
}

static void tick(struct bench *b)
{
    struct client *c = b->clients[0];
    send_down(b, c);
    pass_time(b, 10000);
    acknowledge(b, c);
}

static const struct {
    const char *name;
    void (*run)(struct bench *b);
} phases[] = {
    {"up", up}, {"down", down}, {"open", open_and_reset}, {"stray", stray}, {"tick", tick}};

int main(int argc, char **argv)
{
    static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};
    const struct stack_config config = {.now_ms = 1000};
    struct bench b = {.now = 1000};
    if (argc != 4)
        return 2;
    hash_seed(1, 2);
    b.device = device_memory_new(PEER_MTU, (struct device_caps){.csum = true, .tso = true});
    b.stack = stack_new(b.device, &config, &ops, &b);
    b.count = strtoul(argv[1], NULL, 10);
    b.clients = calloc(b.count, sizeof(struct client *));
    for (size_t i = 0; i < b.count; i++) {
        b.clients[i] = calloc(1, sizeof(struct client));
        name_client(b.clients[i], i);
        open_client(&b, b.clients[i]);
    }
    pass_time(&b, 1000);
    size_t times = strtoul(argv[3], NULL, 10);
    for (size_t p = 0; p < sizeof phases / sizeof phases[0]; p++)
        for (size_t i = 0; strcmp(phases[p].name, argv[2]) == 0 && i < times; i++)
            phases[p].run(&b);
    printf("%s: %zu times with %zu connections\n", argv[2], times, b.count);
    return 0;
}
