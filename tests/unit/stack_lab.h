/*
 * A stack over the device in memory, for tests: every packet that the application's kernel would
 * send is made here, every answer looked at, and time passes only when a test says so.
 */
#ifndef CULVERT_TESTS_STACK_LAB_H
#define CULVERT_TESTS_STACK_LAB_H

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

static inline struct conn *on_open(void *ctx, const struct endpoint *src,
                                   const struct endpoint *dst)
{
    struct fixture *f = ctx;
    (void)src, (void)dst;
    f->opened++;
    if (f->refuse_at_once)
        return NULL;
    f->last = calloc(1, sizeof *f->last);
    return f->last;
}

static inline void on_ready(void *ctx, struct conn *c, unsigned events)
{
    struct fixture *f = ctx;
    (void)c;
    f->readies++;
    f->events |= events;
}

static inline void on_datagram(void *ctx, const struct endpoint *src, const struct endpoint *dst,
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

static inline void on_batch_end(void *ctx)
{
    (void)ctx;
}

static const struct stack_ops ops = {on_open, on_ready, on_datagram, on_batch_end};

static inline void setup_with(struct fixture *f, struct device_caps caps)
{
    const struct stack_config config = {.icmp_reply = true, .now_ms = 1000};
    memset(f, 0, sizeof *f);
    f->now = 1000;
    current = f;
    f->device = device_memory_new(PEER_MTU, caps);
    f->stack = stack_new(f->device, &config, &ops, f);
    assert_non_null(f->stack);
}

static inline void setup(struct fixture *f)
{
    setup_with(f, (struct device_caps){0});
}

static inline void teardown(struct fixture *f)
{
    assert_int_equal(stack_counters(f->stack)->conns, 0);
    stack_free(f->stack);
    device_close(f->device);
}

/* Let go of the last conn. */
static inline void drop(struct fixture *f)
{
    conn_abort(f->stack, f->last);
    free(f->last);
    f->last = NULL;
}

static inline unsigned take_events(struct fixture *f)
{
    unsigned events = f->events;
    f->events = 0;
    return events;
}

static inline void pass_time(struct fixture *f, unsigned ms)
{
    for (uint64_t end = f->now + ms; f->now < end;) {
        uint64_t next = stack_next_tick(f->stack);
        f->now = next < end ? (next > f->now ? next : f->now + 1) : end;
        stack_tick(f->stack, f->now);
    }
}

static inline void receive(struct fixture *f)
{
    while (stack_receive(f->stack, 64, f->now) > 0)
        continue;
}

/* --- packets in and out ----------------------------------------------------------------------- */

static inline void send_segment(struct peer *p, uint8_t flags, const void *payload, size_t len,
                                const void *options, size_t options_len)
{
    static uint8_t out[66000];
    size_t n = peer_write_segment(p, out, flags, payload, len, options, options_len);
    assert_true(device_memory_push(current->device, out, n, NULL));
    receive(current);
}

static inline bool pop(struct fixture *f, struct segment *s)
{
    return peer_pop(f->device, s);
}

static struct segment got;

static inline void expect_flags(struct fixture *f, uint8_t flags)
{
    assert_true(pop(f, &got));
    assert_int_equal(got.info.verdict, PACKET_TCP);
    assert_int_equal(got.info.tcp_flags & (FIN | SYN | RST | ACK), flags);
}

static inline void expect_silence(struct fixture *f)
{
    assert_false(pop(f, &got));
}

static inline struct endpoint at(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

static inline struct peer peer_of(bool v6)
{
    return (struct peer){
        .src = at(v6 ? "[fd00::2]:40000" : "10.0.0.2:40000"),
        .dst = at(v6 ? "[2001:db8::1]:80" : "192.0.2.1:80"),
        .seq = 1000,
        .window = PEER_WINDOW,
    };
}

static inline void send_syn(struct peer *p)
{
    send_segment(p, SYN, NULL, 0, peer_mss_1460, sizeof peer_mss_1460);
}

static inline void finish_handshake(struct peer *p)
{
    expect_flags(current, SYN | ACK);
    assert_int_equal(got.ack, p->seq + 1);
    p->seq++;
    p->ack = got.seq + 1;
    send_segment(p, ACK, NULL, 0, NULL, 0);
    assert_int_equal(take_events(current) & CONN_OPENED, CONN_OPENED);
}

static inline struct peer connect_peer(struct fixture *f, bool v6)
{
    struct peer p = peer_of(v6);
    send_syn(&p);
    conn_accept(f->stack, f->last, SIZE_MAX);
    finish_handshake(&p);
    return p;
}

/* A chunk that counts how often it was released, which must be once. */
struct test_chunk {
    struct chunk chunk;
    unsigned released;
    uint8_t bytes[65000];
};

static inline void on_release(struct chunk *c)
{
    CONTAINER_OF(c, struct test_chunk, chunk)->released++;
}

static inline struct test_chunk *new_chunk(void)
{
    struct test_chunk *c = calloc(1, sizeof *c);
    c->chunk.release = on_release;
    for (size_t i = 0; i < sizeof c->bytes; i++)
        c->bytes[i] = (uint8_t)(i * 7 + i / 251);
    return c;
}

static inline void expect_icmp(struct fixture *f, uint8_t type, uint8_t code)
{
    struct packet p = {.buffer = got.bytes};
    assert_true(device_memory_pop(f->device, &p));
    size_t ip_len = p.data[0] >> 4 == 4 ? 20 : 40;
    assert_int_equal(p.data[ip_len], type);
    assert_int_equal(p.data[ip_len + 1], code);
}

#endif
