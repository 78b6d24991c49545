/*
 * The whole stack: raw and half-sensible packets into the device in memory, a scripted proxy behind
 * it that accepts, refuses, sends, stalls and gives up, and a clock that the fuzzer advances.
 *
 * The input is a script of operations, a byte each with their arguments behind:
 *
 *   0  raw bytes as a packet, as they are
 *   1  a segment of one of four peers, right in checksum and mostly in sequence
 *   2  a fragment of a datagram, right in checksum
 *   3  a datagram
 *   4  time passes
 *   5  the proxy's side does something to one of the conns
 *   6  a super-packet with a vnet header of the fuzzer's choice
 */
#include <stdlib.h>
#include <string.h>

#include "core/base/cursor.h"
#include "stack/bytes.h"
#include "stack/stack.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/peer.h"

enum { PEERS = 4, CONNS_MAX = 8, CHUNK_SIZE = 70000, STEPS_MAX = 256 };

struct flow {
    struct conn conn;
    bool used, accepted;
};

struct script {
    struct device *device;
    struct stack *stack;
    uint64_t now;
    struct flow flows[CONNS_MAX];
    struct peer peers[PEERS];
    bool stalled; /* the proxy's socket takes nothing */
    unsigned chunks;
};

static struct script s;

struct heap_chunk {
    struct chunk chunk;
    uint8_t bytes[]; /* freed as it is released: reading it later is found */
};

static void on_release(struct chunk *c)
{
    FUZZ_CHECK(s.chunks > 0);
    s.chunks--;
    free(CONTAINER_OF(c, struct heap_chunk, chunk));
}

static struct conn *on_open(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    (void)ctx, (void)src, (void)dst;
    for (size_t i = 0; i < CONNS_MAX; i++) {
        if (s.flows[i].used)
            continue;
        memset(&s.flows[i], 0, sizeof s.flows[i]);
        s.flows[i].used = true;
        return &s.flows[i].conn;
    }
    return NULL;
}

static void drop(struct flow *f)
{
    conn_abort(s.stack, &f->conn);
    f->used = false;
}

static void take_all(struct conn *c)
{
    struct iovec iov[8];
    for (int n; (n = conn_peek(c, iov, 8)) > 0;) {
        size_t total = 0;
        for (int i = 0; i < n; i++)
            total += iov[i].iov_len;
        conn_consume(s.stack, c, total, total & 4 ? SIZE_MAX : total * 7);
    }
}

static void on_ready(void *ctx, struct conn *c, unsigned events)
{
    (void)ctx;
    if (!s.stalled)
        take_all(c);
    if (events & (CONN_RESET | CONN_CLOSED))
        drop(CONTAINER_OF(c, struct flow, conn));
}

static void on_datagram(void *ctx, const struct endpoint *src, const struct endpoint *dst,
                        uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom)
{
    (void)ctx, (void)gso_size;
    FUZZ_CHECK(headroom >= 300);
    memset(payload - 300, 0, 300);
    if (len > 0)
        payload[0] ^= payload[len - 1];
    FUZZ_CHECK(addr_is_routable(&dst->addr));
    if (len & 1)
        stack_send_unreachable(s.stack, src, dst, payload, len, UNREACHABLE_PORT);
    else
        stack_send_datagram(s.stack, dst, src, payload, len, 0);
}

static void on_batch_end(void *ctx)
{
    (void)ctx;
}

/* --- what the script does --------------------------------------------------------------------- */

static void drain(void)
{
    static struct segment got;
    while (peer_pop(s.device, &got)) {
        if (got.info.verdict != PACKET_TCP)
            continue;
        FUZZ_CHECK(got.info.drop == PACKET_DROP_NONE);
        for (size_t i = 0; i < PEERS; i++) {
            struct peer *p = &s.peers[i];
            if (!endpoint_equal(&p->src, &got.info.dst) || !endpoint_equal(&p->dst, &got.info.src))
                continue;
            uint32_t end = got.seq + (uint32_t)got.payload_len;
            p->ack = end + ((got.info.tcp_flags & (SYN | FIN)) != 0);
        }
    }
}

static void receive(void)
{
    while (stack_receive(s.stack, 16, s.now) > 0)
        continue;
    drain();
}

static void push_segment(struct reader *r)
{
    static uint8_t out[66000], payload[4096];
    static const uint8_t options[40] = {2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 1};
    struct peer *p = &s.peers[reader_u8(r) % PEERS];
    uint8_t flags = reader_u8(r);
    uint8_t skew = reader_u8(r);
    size_t len = (size_t)reader_u8(r) * 16;
    p->window = reader_u16(r);
    struct peer skewed = *p;
    if (skew & 1)
        skewed.seq += (uint32_t)((int32_t)(int8_t)skew * 100);
    if (skew & 2)
        skewed.ack -= skew;
    size_t options_len = flags & SYN ? (size_t)(skew >> 4) % 11 * 4 : 0;
    const uint8_t *chosen = options;
    uint8_t sack[12] = {1, 1, 5, 10};
    if (flags & 128) { /* something is missing of what came */
        skewed.ack = p->ack - reader_u16(r) * 8u;
        put_u32(sack + 4, skewed.ack + reader_u16(r) * 8u);
        put_u32(sack + 8, p->ack);
        chosen = sack;
        options_len = skew & 4 ? 0 : sizeof sack; /* or does not fit the window any more */
    }
    size_t n = peer_write_segment(&skewed, out, flags & 63, payload, len, chosen, options_len);
    device_memory_push(s.device, out, n, NULL);
    if (!(skew & 1))
        p->seq += (uint32_t)len + ((flags & (SYN | FIN)) != 0);
    receive();
}

static void push_raw(struct reader *r)
{
    size_t len = reader_u16(r) % 2048;
    len = len < reader_left(r) ? len : reader_left(r);
    device_memory_push(s.device, reader_bytes(r, len), len, NULL);
    receive();
}

static void push_super(struct reader *r)
{
    static uint8_t out[66000], payload[65000];
    struct peer *p = &s.peers[reader_u8(r) % PEERS];
    struct offload o = {
        .csum = reader_u8(r) % 3,
        .gso = reader_u8(r) % 4,
        .gso_size = reader_u16(r),
        .header_len = reader_u8(r),
        .csum_start = reader_u8(r),
        .csum_offset = reader_u8(r),
    };
    size_t len = reader_u16(r) % sizeof payload;
    size_t n = reader_u8(r) & 1 ? peer_write_segment(p, out, ACK, payload, len, NULL, 0)
                                : peer_write_datagram(out, &p->src, &p->dst, payload, len);
    device_memory_push(s.device, out, n, &o);
    receive();
}

static void push_fragment(struct reader *r)
{
    uint8_t out[PEER_FRAGMENT_MAX];
    const struct peer *p = &s.peers[reader_u8(r) % PEERS];
    uint8_t id = reader_u8(r) % 4;
    uint16_t field = reader_u16(r);
    device_memory_push(s.device, out, peer_write_fragment(p, out, id, field, reader_u8(r)), NULL);
    receive();
}

static void push_datagram(struct reader *r)
{
    uint8_t out[40 + 8 + 1024], payload[1024] = {0};
    const struct peer *p = &s.peers[reader_u8(r) % PEERS];
    size_t n = peer_write_datagram(out, &p->src, &p->dst, payload, reader_u16(r) % sizeof payload);
    device_memory_push(s.device, out, n, NULL);
    receive();
}

static void pass_time(struct reader *r)
{
    uint64_t end = s.now + (uint64_t)reader_u16(r) * 4;
    for (int i = 0; s.now < end && i < 200; i++) {
        uint64_t next = stack_next_tick(s.stack);
        s.now = next < end ? (next > s.now ? next : s.now + 1) : end;
        stack_tick(s.stack, s.now);
        drain();
    }
}

static bool queue_down(struct conn *c, size_t wanted)
{
    size_t room = conn_room(c);
    size_t len = wanted < room ? wanted : room;
    len = len < CHUNK_SIZE ? len : CHUNK_SIZE;
    len = len < 0xffff ? len : 0xffff;
    if (len == 0)
        return false;
    struct heap_chunk *h = malloc(sizeof *h + len);
    h->chunk = (struct chunk){.release = on_release};
    memset(h->bytes, 7, len);
    s.chunks++;
    return conn_send(s.stack, c, &h->chunk, h->bytes, len) == 0;
}

/* `times` pieces in one go, which may go out as one packet. */
static void send_down(struct conn *c, size_t wanted, unsigned times)
{
    while (times-- > 0 && queue_down(c, wanted))
        continue;
    conn_flush(s.stack, c);
}

static void act(struct reader *r)
{
    struct flow *f = &s.flows[reader_u8(r) % CONNS_MAX];
    uint8_t what = reader_u8(r);
    if (!f->used)
        return;
    switch (what % 8) {
    case 0:
        conn_accept(s.stack, &f->conn, what & 8 ? SIZE_MAX : what * 256u);
        f->accepted = true;
        break;
    case 1:
        if (f->accepted)
            break;
        conn_refuse(s.stack, &f->conn, (enum refusal)(what / 8 % 5));
        f->used = false;
        break;
    case 2:
    case 3:
        send_down(&f->conn, reader_u16(r), 1 + what / 8);
        break;
    case 4:
        if (conn_room(&f->conn) > 0)
            conn_shutdown(s.stack, &f->conn);
        break;
    case 5:
        drop(f);
        break;
    case 6:
        s.stalled = !s.stalled;
        break;
    case 7:
        take_all(&f->conn);
        break;
    }
    drain();
}

static void step(struct reader *r)
{
    switch (reader_u8(r) % 7) {
    case 0:
        push_raw(r);
        break;
    case 1:
        push_segment(r);
        break;
    case 2:
        push_fragment(r);
        break;
    case 3:
        push_datagram(r);
        break;
    case 4:
        pass_time(r);
        break;
    case 5:
        act(r);
        break;
    case 6:
        push_super(r);
        break;
    }
}

static void name_peers(void)
{
    static const char *const sources[PEERS] = {"10.0.0.2:1000", "10.0.0.2:1001", "[fd00::2]:1000",
                                               "[fd00::2]:1001"};
    static const char *const targets[PEERS] = {"192.0.2.1:80", "192.0.2.1:80", "[2001:db8::1]:80",
                                               "[2001:db8::1]:443"};
    for (size_t i = 0; i < PEERS; i++) {
        endpoint_parse(sources[i], 0, &s.peers[i].src);
        endpoint_parse(targets[i], 0, &s.peers[i].dst);
        s.peers[i].seq = 0xfffff000; /* wraps early */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};
    struct reader r = reader_over(data, size);
    uint8_t caps = reader_u8(&r);
    hash_seed(1, 2);
    memset(&s, 0, sizeof s);
    s.now = 1000;
    name_peers();
    const struct device_caps can = {
        .csum = caps & 1,
        .tso = (caps & 3) == 3,
        .uso = (caps & 7) == 7,
        .big_tcp = (caps & 19) == 19,
    };
    s.device = device_memory_new(PEER_MTU, can);
    const struct stack_config config = {.icmp_reply = caps & 8, .now_ms = s.now};
    s.stack = stack_new(s.device, &config, &ops, NULL);
    for (int i = 0; reader_left(&r) > 0 && i < STEPS_MAX; i++)
        step(&r);
    for (size_t i = 0; i < CONNS_MAX; i++)
        if (s.flows[i].used)
            drop(&s.flows[i]);
    FUZZ_CHECK(s.chunks == 0);
    FUZZ_CHECK(stack_counters(s.stack)->conns == 0);
    stack_free(s.stack);
    device_close(s.device);
    return 0;
}
