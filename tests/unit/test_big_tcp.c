/*
 * Super-packets above 64 KiB (stack/big_tcp.c): a download over a device whose every write is
 * looked at, from an application that acknowledges all it gets.
 */
#include <errno.h>

#include "tests/unit/stack_lab.h"
#include "tests/unit/wire.h"

enum { MSS = 1460, SCALE = 7, FULL_V4 = 44 * MSS, LEN_MAX = 600 * 1024 };

/* What the device was given last that goes beyond an IP header's 16 bits, or refused. */
struct written {
    size_t len;
    struct offload offload;
    uint8_t bytes[LEN_MAX];
};

static struct {
    struct written big;
    unsigned bigs, refused;
    int refuse_with; /* -errno for each such packet; 0: taken */
    const struct device_ops *memory;
    struct device_ops ops;
} card;

static int card_write(struct device *d, struct iovec *iov, int iov_count,
                      const struct offload *offload)
{
    size_t len = 0;
    for (int i = 1; i < iov_count; i++)
        len += iov[i].iov_len;
    if (len <= 65575)
        return card.memory->write(d, iov, iov_count, offload);
    if (card.refuse_with != 0) {
        card.refused++;
        return card.refuse_with;
    }
    assert_true(len <= PACKET_BIG_MAX);
    card.bigs++;
    card.big.len = 0;
    card.big.offload = *offload;
    for (int i = 1; i < iov_count; i++) {
        memcpy(card.big.bytes + card.big.len, iov[i].iov_base, iov[i].iov_len);
        card.big.len += iov[i].iov_len;
    }
    return 0;
}

static struct device_caps able = {.csum = true, .tso = true, .big_tcp = true};

struct download {
    struct fixture f;
    struct peer peer;
    bool v6;
    size_t full;     /* bytes of a full segment */
    uint32_t first;  /* the sequence number of its first byte */
    size_t sent;     /* bytes given to the stack */
    size_t received; /* in order */
    struct test_chunk *chunks[512];
    unsigned chunk_count;
};

/* `window` in units of 1 << SCALE bytes. */
static void begin_with(struct download *l, struct device_caps caps, bool v6, uint8_t hops,
                       uint16_t window)
{
    static const uint8_t options[8] = {2, 4, MSS >> 8, MSS & 0xff, 1, 3, 3, SCALE};
    uint8_t syn[100];
    memset(l, 0, sizeof *l);
    memset(&card, 0, sizeof card);
    setup_with(&l->f, caps);
    card.memory = l->f.device->ops;
    card.ops = *card.memory;
    card.ops.write = card_write;
    l->f.device->ops = &card.ops;
    l->v6 = v6;
    l->peer = peer_of(v6);
    size_t len = peer_write_segment(&l->peer, syn, SYN, NULL, 0, options, sizeof options);
    syn[v6 ? 7 : 8] = hops;
    if (!v6)
        wire_ipv4_checksum(syn);
    assert_true(device_memory_push(l->f.device, syn, len, NULL));
    receive(&l->f);
    conn_accept(l->f.stack, l->f.last, SIZE_MAX);
    l->peer.window = window;
    finish_handshake(&l->peer);
    l->first = l->peer.ack;
    l->full = conn_segment(l->f.last);
}

static void begin(struct download *l, struct device_caps caps, bool v6, uint8_t hops)
{
    begin_with(l, caps, v6, hops, (4 << 20) >> SCALE);
}

static void end(struct download *l)
{
    drop(&l->f);
    for (unsigned i = 0; i < l->chunk_count; i++) {
        assert_int_equal(l->chunks[i]->released, 1);
        free(l->chunks[i]);
    }
    teardown(&l->f);
}

static uint8_t byte_at(const struct download *l, size_t offset)
{
    size_t i = offset % l->full; /* as new_chunk() fills them */
    return (uint8_t)(i * 7 + i / 251);
}

/* Queue full segments as far as the window goes, at most `most`, then send them in one go. */
static unsigned send_full(struct download *l, unsigned most)
{
    unsigned n = 0;
    for (; n < most && conn_room(l->f.last) >= l->full; n++) {
        struct test_chunk *c = new_chunk();
        l->chunks[l->chunk_count++] = c;
        assert_int_equal(conn_send(l->f.stack, l->f.last, &c->chunk, c->bytes, l->full), 0);
        l->sent += l->full;
    }
    conn_flush(l->f.stack, l->f.last);
    return n;
}

static void take_bytes(struct download *l, uint32_t seq, const uint8_t *payload, size_t len)
{
    assert_int_equal(seq, l->first + (uint32_t)l->received);
    for (size_t i = 0; i < len; i++)
        if (payload[i] != byte_at(l, l->received + i))
            fail_msg("byte %zu differs", l->received + i);
    l->received += len;
}

static void take_small(struct download *l)
{
    while (pop(&l->f, &got))
        if (got.payload_len > 0)
            take_bytes(l, got.seq, got.payload, got.payload_len);
}

static void acknowledge(struct download *l)
{
    l->peer.ack = l->first + (uint32_t)l->received;
    send_segment(&l->peer, ACK, NULL, 0, NULL, 0);
}

/* Until lwIP's congestion window lets eight segments go at once. */
static void warm_up(struct download *l)
{
    for (int i = 0; i < 20; i++) {
        send_full(l, 1);
        take_small(l);
        acknowledge(l);
    }
    assert_int_equal(card.bigs, 0);
    assert_int_equal(l->received, l->sent);
}

/* Every byte of what the kernel reads in such a packet. */
static void check_big(struct download *l)
{
    const struct written *w = &card.big;
    const uint8_t *ip = w->bytes;
    size_t transport = l->v6 ? 48 : 20;
    assert_int_equal(w->offload.gso, l->v6 ? PACKET_GSO_TCP6 : PACKET_GSO_TCP4);
    assert_int_equal(w->offload.gso_size, l->v6 ? MSS - 20 - 8 : MSS);
    assert_int_equal(w->offload.csum, PACKET_CSUM_PARTIAL);
    assert_int_equal(w->offload.csum_start, transport);
    assert_int_equal(w->offload.csum_offset, 16);
    assert_int_equal(w->offload.header_len, transport + 20);
    if (l->v6) {
        static const uint8_t hop_by_hop[4] = {IPPROTO_TCP, 0, 0xc2, 4};
        assert_int_equal(wire_get16(ip + 4), 0);
        assert_int_equal(ip[6], IPPROTO_HOPOPTS);
        assert_memory_equal(ip + 40, hop_by_hop, 4);
        assert_int_equal(wire_get32(ip + 44), w->len - 40);
    } else {
        assert_int_equal(wire_get16(ip + 2), 0);
        assert_true(wire_ipv4_checksum_right(ip));
    }
    const uint8_t *tcp = ip + transport;
    assert_int_equal(wire_get16(tcp), l->peer.dst.port);
    assert_int_equal(wire_get16(tcp + 2), l->peer.src.port);
    assert_int_equal(wire_get32(tcp + 8), l->peer.seq);
    assert_int_equal(tcp[12], 5 << 4);
    assert_int_equal(tcp[13], ACK | PSH); /* the last one's */
    assert_int_equal(wire_get16(tcp + 16), wire_pseudo(ip, IPPROTO_TCP, w->len - transport));
    take_bytes(l, wire_get32(tcp + 4), tcp + 20, w->len - transport - 20);
}

/* Full segments are sent, and each goes by itself. */
static void expect_each(struct download *l, unsigned count)
{
    assert_int_equal(send_full(l, count), count);
    for (unsigned i = 0; i < count; i++) {
        assert_true(pop(&l->f, &got));
        assert_int_equal(got.payload_len, l->full);
        take_bytes(l, got.seq, got.payload, got.payload_len);
    }
    expect_silence(&l->f);
    acknowledge(l);
}

/* --- what is joined --------------------------------------------------------------------------- */

static struct download load;

static void test_eight_segments_are_one_packet(void **state)
{
    (void)state;
    for (int v6 = 0; v6 <= 1; v6++) {
        begin(&load, able, v6, 64);
        warm_up(&load);
        assert_int_equal(send_full(&load, 8), 8);
        assert_int_equal(card.bigs, 1);
        check_big(&load);
        expect_silence(&load.f);
        acknowledge(&load);
        assert_int_equal(load.received, load.sent);
        end(&load);
    }
}

/* Nine: eight and one. A short one ends a packet, and nothing follows it in the same. */
/* Segments of more pieces than a device is given, which the stack copies together. */
static void test_segments_in_many_pieces(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    warm_up(&load);
    for (int i = 0; i < 4; i++) {
        struct test_chunk *two[2] = {new_chunk(), new_chunk()}; /* lwIP joins neighbours */
        for (size_t at = 0, k = 0; at < load.full; at += MSS, k++) {
            struct test_chunk *c = two[k % 2];
            assert_int_equal(conn_send(load.f.stack, load.f.last, &c->chunk, c->bytes + at, MSS),
                             0);
        }
        load.chunks[load.chunk_count++] = two[0];
        load.chunks[load.chunk_count++] = two[1];
        load.sent += load.full;
    }
    conn_flush(load.f.stack, load.f.last);
    take_small(&load);
    assert_int_equal(card.bigs, 0);
    assert_int_equal(load.received, load.sent);
    acknowledge(&load);
    end(&load);
}

static void test_more_than_one_packet(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    warm_up(&load);
    assert_int_equal(send_full(&load, 9), 9);
    assert_int_equal(card.bigs, 1);
    check_big(&load);
    take_small(&load);
    assert_int_equal(load.received, load.sent);
    acknowledge(&load);
    end(&load);
}

static void test_fin_goes_by_itself(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    warm_up(&load);
    assert_int_equal(send_full(&load, 3), 3);
    conn_shutdown(load.f.stack, load.f.last);
    assert_int_equal(card.bigs, 1);
    check_big(&load);
    expect_flags(&load.f, FIN | ACK);
    assert_int_equal(got.seq, load.first + (uint32_t)load.sent);
    assert_int_equal(got.payload_len, 0);
    end(&load);
}

/* Lost on the way: its segments are sent again after a silence, whatever they were joined to. */
static void test_a_lost_packet_comes_again(void **state)
{
    (void)state;
    begin(&load, able, true, 64);
    warm_up(&load);
    assert_int_equal(send_full(&load, 8), 8);
    assert_int_equal(card.bigs, 1);
    card.bigs = 0;
    for (int i = 0; i < 100 && load.received < load.sent; i++) {
        size_t before = load.received;
        take_small(&load);
        if (load.received > before)
            acknowledge(&load);
        else
            pass_time(&load.f, 10);
    }
    assert_int_equal(card.bigs, 0);
    assert_int_equal(load.received, load.sent);
    end(&load);
}

/*
 * The first of two is lost, and the application's ACK tells that the second came: its segments come
 * again, one by one, and whatever is sent from then on. The congestion window is halved.
 */
static void test_after_a_loss_none_are_joined(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    for (int i = 0; i < 8; i++)
        warm_up(&load);
    size_t window = conn_budget(load.f.last);
    size_t lost = load.received;
    assert_int_equal(send_full(&load, 3), 3);
    conn_flush(load.f.stack, load.f.last);
    assert_int_equal(send_full(&load, 3), 3);
    assert_int_equal(card.bigs, 2);
    uint8_t sack[12] = {1, 1, 5, 10};
    wire_put32(sack + 4, load.first + (uint32_t)(lost + 3 * load.full));
    wire_put32(sack + 8, load.first + (uint32_t)(lost + 6 * load.full));
    send_segment(&load.peer, ACK, NULL, 0, sack, sizeof sack);
    take_small(&load);
    assert_int_equal(load.received, lost + 3 * load.full);
    assert_int_equal(card.bigs, 2);
    load.received += 3 * load.full;
    acknowledge(&load);
    assert_in_range(conn_budget(load.f.last), 1, window * 3 / 4);
    for (unsigned i = 0; i < 4; i++)
        expect_each(&load, 2);
    assert_int_equal(card.bigs, 2);
    end(&load);
}

/* --- what is not ------------------------------------------------------------------------------ */

static void test_who_was_forwarded_gets_none(void **state)
{
    static const uint8_t hops[] = {63, 127, 254, 1, 65};
    (void)state;
    for (size_t i = 0; i < sizeof hops; i++) {
        begin(&load, able, i & 1, hops[i]);
        warm_up(&load);
        expect_each(&load, 8);
        assert_int_equal(card.bigs, 0);
        end(&load);
    }
}

static void test_all_that_systems_begin_with_are_local(void **state)
{
    static const uint8_t hops[] = {64, 128, 255};
    (void)state;
    for (size_t i = 0; i < sizeof hops; i++) {
        begin(&load, able, i & 1, hops[i]);
        warm_up(&load);
        send_full(&load, 8);
        assert_int_equal(card.bigs, 1);
        end(&load);
    }
}

static void test_device_without(void **state)
{
    (void)state;
    begin(&load, (struct device_caps){.csum = true, .tso = true}, false, 64);
    warm_up(&load);
    expect_each(&load, 8);
    assert_int_equal(card.bigs + card.refused, 0);
    end(&load);
}

/* Six segments fit into the window, three into half of it; of a smaller one, none but the first. */
static void test_small_windows(void **state)
{
    (void)state;
    begin_with(&load, able, false, 64, (6 * FULL_V4 + 1000) >> SCALE);
    warm_up(&load);
    assert_int_equal(send_full(&load, 3), 3);
    assert_int_equal(card.bigs, 1);
    check_big(&load);
    assert_int_equal(send_full(&load, 8), 3);
    assert_int_equal(card.bigs, 2);
    check_big(&load);
    expect_silence(&load.f);
    end(&load);

    begin_with(&load, able, false, 64, (3 * FULL_V4 + 1000) >> SCALE);
    warm_up(&load);
    expect_each(&load, 3);
    assert_int_equal(card.bigs, 0);
    end(&load);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void test_a_kernel_that_takes_none_is_asked_once(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    warm_up(&load);
    card.refuse_with = -EMSGSIZE;
    expect_each(&load, 8);
    assert_int_equal(card.refused, 1);
    expect_each(&load, 8);
    assert_int_equal(card.refused, 1);
    end(&load);
}

static void test_without_memory_for_one_the_segments_go_by_themselves(void **state)
{
    (void)state;
    begin(&load, able, true, 64);
    warm_up(&load);
    card.refuse_with = -EAGAIN;
    expect_each(&load, 8);
    assert_int_equal(card.refused, 1);
    card.refuse_with = 0;
    assert_int_equal(send_full(&load, 8), 8);
    assert_int_equal(card.bigs, 1);
    check_big(&load);
    end(&load);
}

/* A device that is down loses it, as it loses any packet. */
static void test_other_errors_are_losses(void **state)
{
    (void)state;
    begin(&load, able, false, 64);
    warm_up(&load);
    card.refuse_with = -EIO;
    assert_int_equal(send_full(&load, 8), 8);
    expect_silence(&load.f);
    end(&load);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eight_segments_are_one_packet),
        cmocka_unit_test(test_segments_in_many_pieces),
        cmocka_unit_test(test_more_than_one_packet),
        cmocka_unit_test(test_fin_goes_by_itself),
        cmocka_unit_test(test_a_lost_packet_comes_again),
        cmocka_unit_test(test_after_a_loss_none_are_joined),
        cmocka_unit_test(test_who_was_forwarded_gets_none),
        cmocka_unit_test(test_all_that_systems_begin_with_are_local),
        cmocka_unit_test(test_device_without),
        cmocka_unit_test(test_small_windows),
        cmocka_unit_test(test_a_kernel_that_takes_none_is_asked_once),
        cmocka_unit_test(test_without_memory_for_one_the_segments_go_by_themselves),
        cmocka_unit_test(test_other_errors_are_losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
