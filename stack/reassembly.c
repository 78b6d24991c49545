/*
 * Reassembly of IP fragments (RFC 791 3.2, RFC 8200 4.5).
 *
 * lwIP could do it, but counts what it puts together in 16 bits, headers included, which loses
 * the longest IPv6 datagrams; it chains fragments that lie past a datagram's end, and keeps IPv6
 * datagrams of whose fragments it took none (2.2.1); and it holds each fragment in a buffer of its
 * own. Here a datagram is put together where it will be read from: its payload grows in one receive
 * buffer, a bit for each unit of 8 bytes says what is there, and the header is that of the first
 * fragment.
 *
 * What packet_parse() has looked at need not be looked at again: a fragment is of a length that
 * fits, and what it is a part of begins with a transport header. A fragment that overlaps what is
 * there is dropped, and the datagram waits for one that does not. So many datagrams at a time, each
 * for so long; the oldest gives way.
 */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cursor.h"
#include "core/base/memory.h"
#include "stack/bytes.h"
#include "stack/internal.h"

enum {
    DATAGRAMS_MAX = 64,
    LIFETIME_MS = 15000, /* they come over a local link: what is not there by then was lost */
    UNIT = 8,
    UNITS = 65536 / UNIT,
};

struct key {
    struct addr src, dst;
    uint32_t id;
    uint32_t protocol; /* counts in IPv4 alone; 0 in IPv6 */
};

struct datagram {
    struct link age;
    struct key key;
    uint64_t since_ms;
    struct rx_buffer *buffer; /* the payload from PACKET_HEADROOM on, the header before it */
    size_t header_len;        /* bytes; 0: the first fragment has not come */
    size_t received;          /* bytes of payload */
    size_t end;               /* bytes of payload in all; 0: the last fragment has not come */
    size_t reach;             /* where the farthest fragment ends */
    uint64_t there[UNITS / 64];
};

/* Where a fragment belongs. */
struct place {
    struct key key;
    size_t header_len; /* up to the fragment header, or the payload in IPv4 */
    size_t offset, len;
    const uint8_t *bytes;
    bool more;
};

static struct datagram *from_age(struct link *l)
{
    return CONTAINER_OF(l, struct datagram, age);
}

static struct place find_place(const uint8_t *ip, const struct packet_info *info)
{
    struct place p = {
        .key = {.src = info->src.addr, .dst = info->dst.addr},
        .len = info->len - info->ip_header_len,
        .bytes = ip + info->ip_header_len,
    };
    if (addr_is_v4(&info->dst.addr)) {
        struct reader r = reader_over(ip + 4, 4);
        p.key.id = reader_u16(&r);
        p.key.protocol = info->protocol;
        uint16_t field = reader_u16(&r);
        p.header_len = info->ip_header_len;
        p.offset = (size_t)(field & 0x1fff) * UNIT;
        p.more = field & 0x2000;
        return p;
    }
    p.header_len = info->ip_header_len - 8u;
    struct reader r = reader_over(ip + p.header_len + 2, 6);
    uint16_t field = reader_u16(&r);
    p.key.id = reader_u32(&r);
    p.offset = field & 0xfff8;
    p.more = field & 1;
    return p;
}

static void forget(struct stack *s, struct datagram *d)
{
    list_remove(&d->age);
    s->datagram_count--;
    if (d->buffer)
        rx_buffer_put(d->buffer);
    free(d);
}

static struct datagram *find(struct stack *s, const struct key *key)
{
    LIST_EACH (it, &s->datagrams) {
        if (memcmp(&from_age(it)->key, key, sizeof *key) == 0)
            return from_age(it);
    }
    return NULL;
}

static struct datagram *begin(struct stack *s, const struct key *key)
{
    if (s->datagram_count >= DATAGRAMS_MAX)
        forget(s, from_age(s->datagrams.next));
    struct datagram *d = memory_zeroed(sizeof *d);
    struct rx_buffer *b = rx_buffer_get(s);
    if (d == NULL || b == NULL) {
        free(d);
        if (b)
            rx_buffer_put(b);
        return NULL;
    }
    d->key = *key;
    d->buffer = b;
    d->since_ms = s->now_ms;
    list_push_back(&s->datagrams, &d->age);
    s->datagram_count++;
    return d;
}

static bool is_there(const struct datagram *d, size_t unit)
{
    return d->there[unit / 64] >> unit % 64 & 1;
}

/* May the fragment be added: does it contradict nothing that is known? */
static bool fits(const struct datagram *d, const struct place *p)
{
    size_t end = p->offset + p->len;
    if (p->more ? d->end != 0 && end > d->end : d->end != 0 || end < d->reach)
        return false;
    for (size_t unit = p->offset / UNIT; unit * UNIT < end; unit++)
        if (is_there(d, unit))
            return false;
    return true;
}

static void add(struct datagram *d, const struct place *p, const uint8_t *ip)
{
    size_t end = p->offset + p->len;
    uint8_t *payload = d->buffer->bytes + PACKET_HEADROOM;
    memcpy(payload + p->offset, p->bytes, p->len);
    for (size_t unit = p->offset / UNIT; unit * UNIT < end; unit++)
        d->there[unit / 64] |= (uint64_t)1 << unit % 64;
    d->received += p->len;
    d->reach = end > d->reach ? end : d->reach;
    if (!p->more)
        d->end = end;
    if (p->offset == 0) {
        d->header_len = p->header_len;
        memcpy(payload - p->header_len, ip, p->header_len);
    }
}

/* As if it had never been fragmented: length, no offset, a right sum. */
static void finish_ip4(uint8_t *ip, size_t header_len, size_t len)
{
    put_u16(ip + 2, len);
    put_u16(ip + 6, 0);
    put_u16(ip + 10, 0);
    put_u16(ip + 10, (uint16_t)~packet_sum_fold(packet_sum(ip, header_len, 0)));
}

/* The header before the fragment header now leads to what was behind that. */
static void finish_ip6(uint8_t *ip, size_t header_len, size_t len, uint8_t protocol)
{
    size_t field = 6, at = 40;
    while (at < header_len) {
        size_t size = ip[field] == IPPROTO_FRAGMENT ? 8 : 8 + (size_t)ip[at + 1] * 8;
        field = at;
        at += size;
    }
    ip[field] = protocol;
    put_u16(ip + 4, len - 40);
}

/* All is there: hand it on. Its buffer lives until the batch's end. */
static void complete(struct stack *s, struct datagram *d, uint8_t protocol)
{
    struct rx_buffer *b = d->buffer;
    size_t len = d->header_len + d->end;
    uint8_t *ip = b->bytes + PACKET_HEADROOM - d->header_len;
    if (addr_is_v4(&d->key.dst))
        finish_ip4(ip, d->header_len, len);
    else
        finish_ip6(ip, d->header_len, len, protocol);
    d->buffer = NULL;
    forget(s, d);
    b->next_free = s->reassembled;
    s->reassembled = b;
    const struct packet whole = {.buffer = b->bytes, .data = ip, .len = len};
    input_packet(s, &whole, NULL);
}

void reassembly_input(struct stack *s, const uint8_t *ip, const struct packet_info *info)
{
    struct place p = find_place(ip, info);
    if (p.header_len > PACKET_HEADROOM)
        return;
    struct datagram *d = find(s, &p.key);
    if (d == NULL)
        d = begin(s, &p.key);
    if (d == NULL || !fits(d, &p))
        return;
    add(d, &p, ip);
    /* No packet is longer: the first fragment's header was larger than the others'. */
    if (d->header_len + d->end > 65535u + (addr_is_v4(&p.key.dst) ? 0 : 40))
        forget(s, d);
    else if (d->header_len > 0 && d->end > 0 && d->received == d->end)
        complete(s, d, info->protocol);
}

uint64_t reassembly_next(const struct stack *s)
{
    if (list_empty(&s->datagrams))
        return UINT64_MAX;
    return from_age(s->datagrams.next)->since_ms + LIFETIME_MS;
}

void reassembly_tick(struct stack *s)
{
    while (reassembly_next(s) <= s->now_ms)
        forget(s, from_age(s->datagrams.next));
}

void reassembly_init(struct stack *s)
{
    list_init(&s->datagrams);
}

void reassembly_free(struct stack *s)
{
    LIST_EACH (it, &s->datagrams)
        forget(s, from_age(it));
}

void reassembly_batch_end(struct stack *s)
{
    while (s->reassembled) {
        struct rx_buffer *b = s->reassembled;
        s->reassembled = b->next_free;
        rx_buffer_put(b);
    }
}
