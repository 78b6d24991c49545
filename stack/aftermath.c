#include "stack/aftermath.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cursor.h"
#include "core/base/memory.h"
#include "stack/bytes.h"
#include "stack/internal.h"

enum { TCP_FIN_BIT = 1, TCP_SYN_BIT = 2, TCP_RST_BIT = 4, TCP_ACK_BIT = 16 };
enum { TCP_HEADER_LEN = 20, IP_TCP_HEADER_MAX = 60 };

/* When a refusal is said again, ms after the first time. */
static const unsigned repeat_after_ms[AFTERMATH_REPEATS] = {15, 150};

struct tuple {
    struct endpoint src, dst;
};

struct lingering {
    struct map_entry by_tuple;
    struct tuple tuple;
    struct link age;    /* in time_wait or refused */
    struct link repeat; /* in repeats[said], while said < AFTERMATH_REPEATS */
    uint64_t since_ms;
    uint32_t snd_nxt, rcv_nxt; /* TIME_WAIT; a refused SYN's own sequence number + 1 in rcv_nxt */
    bool refused;
    uint8_t how; /* enum refusal */
    uint8_t said;
    uint8_t quote_len;
    uint8_t quote[AFTERMATH_QUOTE_MAX]; /* the SYN, for ICMP to quote */
};

static struct lingering *from_age(struct link *l)
{
    return CONTAINER_OF(l, struct lingering, age);
}

static struct lingering *from_repeat(struct link *l)
{
    return CONTAINER_OF(l, struct lingering, repeat);
}

static bool tuple_equal(const struct map_entry *entry, const void *key)
{
    const struct lingering *l = CONTAINER_OF(entry, const struct lingering, by_tuple);
    return memcmp(&l->tuple, key, sizeof l->tuple) == 0;
}

int aftermath_init(struct aftermath *l)
{
    list_init(&l->time_wait);
    list_init(&l->refused);
    for (unsigned i = 0; i < AFTERMATH_REPEATS; i++)
        list_init(&l->repeats[i]);
    l->count = 0;
    return map_init(&l->by_tuple, 64, tuple_equal);
}

static void forget(struct aftermath *l, struct lingering *e)
{
    map_remove(&l->by_tuple, &e->by_tuple);
    list_remove(&e->age);
    list_remove(&e->repeat);
    l->count--;
    free(e);
}

void aftermath_free(struct aftermath *l)
{
    LIST_EACH (it, &l->time_wait)
        forget(l, from_age(it));
    LIST_EACH (it, &l->refused)
        forget(l, from_age(it));
    map_free(&l->by_tuple);
}

static uint64_t lifetime(const struct lingering *e)
{
    return e->refused ? AFTERMATH_REFUSED_MS : AFTERMATH_TIME_WAIT_MS;
}

static void expire(struct aftermath *l, struct link *list, uint64_t now_ms)
{
    for (struct link *it = list_first(list); it != NULL; it = list_first(list)) {
        struct lingering *e = from_age(it);
        if (now_ms < e->since_ms + lifetime(e))
            return;
        forget(l, e);
    }
}

static struct lingering *find(struct aftermath *l, const struct tuple *t)
{
    struct map_entry *e = map_find(&l->by_tuple, hash_bytes(t, sizeof *t), t);
    return e ? CONTAINER_OF(e, struct lingering, by_tuple) : NULL;
}

/* A new entry for `t`, instead of what was there; NULL when out of memory. */
static struct lingering *add(struct stack *s, const struct tuple *t, bool refused)
{
    struct aftermath *l = &s->after;
    struct lingering *old = find(l, t);
    if (old)
        forget(l, old);
    if (l->count >= AFTERMATH_MAX) {
        struct link *oldest = list_first(&l->time_wait);
        forget(l, from_age(oldest ? oldest : list_first(&l->refused)));
    }
    struct lingering *e = memory_zeroed(sizeof *e);
    if (e == NULL)
        return NULL;
    e->tuple = *t;
    e->refused = refused;
    e->since_ms = s->now_ms;
    list_init(&e->repeat);
    list_push_back(refused ? &l->refused : &l->time_wait, &e->age);
    map_insert(&l->by_tuple, &e->by_tuple, hash_bytes(t, sizeof *t));
    l->count++;
    return e;
}

void aftermath_add_time_wait(struct stack *s, const struct endpoint *src,
                             const struct endpoint *dst, uint32_t snd_nxt, uint32_t rcv_nxt)
{
    const struct tuple t = {*src, *dst};
    struct lingering *e = add(s, &t, false);
    if (e == NULL)
        return; /* a stray segment will be answered by RST instead */
    e->snd_nxt = snd_nxt;
    e->rcv_nxt = rcv_nxt;
}

/* --- segments without a connection ------------------------------------------------------------ */

/* IP and TCP headers of a bare segment from `src` to `dst`; returns where the TCP header begins. */
static size_t write_headers(uint8_t out[IP_TCP_HEADER_MAX], const struct endpoint *src,
                            const struct endpoint *dst, uint32_t seq, uint32_t ack, uint8_t flags)
{
    struct writer w = writer_over(out, IP_TCP_HEADER_MAX);
    if (addr_is_v4(&src->addr)) {
        writer_u16(&w, 0x4500);
        writer_u16(&w, 20 + TCP_HEADER_LEN);
        writer_u32(&w, 0x00004000);                              /* id 0, don't fragment */
        writer_u32(&w, 64u << 24 | (uint32_t)IPPROTO_TCP << 16); /* TTL; output_tcp() sums */
        writer_bytes(&w, addr_v4_bytes(&src->addr), 4);
        writer_bytes(&w, addr_v4_bytes(&dst->addr), 4);
    } else {
        writer_u32(&w, 0x60000000);
        writer_u16(&w, TCP_HEADER_LEN);
        writer_u8(&w, IPPROTO_TCP);
        writer_u8(&w, 64);
        writer_bytes(&w, src->addr.bytes, 16);
        writer_bytes(&w, dst->addr.bytes, 16);
    }
    size_t ip_len = writer_used(&w);
    writer_u16(&w, src->port);
    writer_u16(&w, dst->port);
    writer_u32(&w, seq);
    writer_u32(&w, ack);
    writer_u16(&w, (uint16_t)(0x5000 | flags));
    writer_u16(&w, 0);
    writer_u32(&w, 0);
    return ip_len;
}

static void send_bare(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                      uint32_t seq, uint32_t ack, uint8_t flags, uint16_t window)
{
    uint8_t bytes[IP_TCP_HEADER_MAX];
    size_t ip_len = write_headers(bytes, src, dst, seq, ack, flags);
    put_u16(bytes + ip_len + 14, window);
    size_t len = ip_len + TCP_HEADER_LEN;
    struct iovec iov[2] = {{0}, {.iov_base = bytes, .iov_len = len}};
    output_tcp(s->device, iov, 2, len, 536);
}

void aftermath_send_reset(struct stack *s, const uint8_t *ip, const struct packet_info *info)
{
    if (info->tcp_flags & TCP_RST_BIT)
        return;
    const uint8_t *tcp = ip + info->ip_header_len;
    if (info->tcp_flags & TCP_ACK_BIT) {
        send_bare(s, &info->dst, &info->src, get_u32(tcp + 8), 0, TCP_RST_BIT, 0);
        return;
    }
    size_t payload = info->len - info->ip_header_len - info->transport_header_len;
    uint32_t ack = get_u32(tcp + 4) + (uint32_t)payload;
    ack += (info->tcp_flags & TCP_SYN_BIT) != 0;
    ack += (info->tcp_flags & TCP_FIN_BIT) != 0;
    send_bare(s, &info->dst, &info->src, 0, ack, TCP_RST_BIT | TCP_ACK_BIT, 0);
}

/* --- refusals --------------------------------------------------------------------------------- */

static enum unreachable as_unreachable(enum refusal how)
{
    switch (how) {
    case REFUSE_NETWORK:
        return UNREACHABLE_NETWORK;
    case REFUSE_HOST:
        return UNREACHABLE_HOST;
    case REFUSE_PROHIBITED:
        return UNREACHABLE_PROHIBITED;
    case REFUSE_RESET:
    case REFUSE_SILENTLY:
        break;
    }
    return UNREACHABLE_PORT;
}

static void say(struct stack *s, const struct lingering *e)
{
    if (e->how == REFUSE_SILENTLY)
        return;
    if (e->how == REFUSE_RESET) {
        send_bare(s, &e->tuple.dst, &e->tuple.src, 0, e->rcv_nxt, TCP_RST_BIT | TCP_ACK_BIT, 0);
        return;
    }
    uint8_t icmp[PACKET_ICMP_ERROR_MAX];
    size_t len = packet_build_unreachable(icmp, e->quote, e->quote_len,
                                          as_unreachable((enum refusal)e->how));
    if (len > 0)
        output_raw(s->device, icmp, len);
}

void aftermath_refuse(struct stack *s, const uint8_t *ip, const struct packet_info *info,
                      enum refusal how)
{
    const struct tuple t = {info->src, info->dst};
    struct lingering temporary = {.tuple = t};
    struct lingering *e = NULL;
    /* A reset is never lost; a refused port may be tried again at once, and be asked for anew. */
    if (how != REFUSE_RESET && how != REFUSE_SILENTLY)
        e = add(s, &t, true);
    struct lingering *what = e ? e : &temporary;
    what->how = (uint8_t)how;
    what->rcv_nxt = get_u32(ip + info->ip_header_len + 4) + 1;
    what->quote_len = (uint8_t)(info->len < AFTERMATH_QUOTE_MAX ? info->len : AFTERMATH_QUOTE_MAX);
    memcpy(what->quote, ip, what->quote_len);
    say(s, what);
    if (e)
        list_push_back(&s->after.repeats[0], &e->repeat);
}

/* RFC 9293 3.10.7.4, TIME-WAIT. True: answered, or to be ignored. */
static bool input_time_wait(struct stack *s, struct lingering *e, const uint8_t *ip,
                            const struct packet_info *info)
{
    uint32_t seq = get_u32(ip + info->ip_header_len + 4);
    if (info->tcp_flags & TCP_RST_BIT)
        return true; /* RFC 1337: no assassination */
    if ((info->tcp_flags & (TCP_SYN_BIT | TCP_ACK_BIT)) == TCP_SYN_BIT &&
        (int32_t)(seq - e->rcv_nxt) >= 0)
        return false;
    size_t payload = info->len - info->ip_header_len - info->transport_header_len;
    if (payload > 0 || info->tcp_flags & (TCP_SYN_BIT | TCP_FIN_BIT))
        send_bare(s, &e->tuple.dst, &e->tuple.src, e->snd_nxt, e->rcv_nxt, TCP_ACK_BIT, 0xffff);
    return true;
}

bool aftermath_input(struct stack *s, const uint8_t *ip, const struct packet_info *info)
{
    struct aftermath *l = &s->after;
    const struct tuple t = {info->src, info->dst};
    struct lingering *e = find(l, &t);
    if (e == NULL)
        return false;
    if (s->now_ms >= e->since_ms + lifetime(e)) {
        forget(l, e);
        return false;
    }
    bool syn = (info->tcp_flags & (TCP_SYN_BIT | TCP_ACK_BIT | TCP_RST_BIT)) == TCP_SYN_BIT;
    if (e->refused) {
        if (syn && get_u32(ip + info->ip_header_len + 4) + 1 == e->rcv_nxt) {
            say(s, e);
            return true;
        }
    } else if (input_time_wait(s, e, ip, info)) {
        return true;
    }
    forget(l, e);
    return false;
}

/* --- time ------------------------------------------------------------------------------------- */

static uint64_t repeat_due(const struct lingering *e)
{
    return e->since_ms + repeat_after_ms[e->said];
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Forgetting is in no hurry: once a second at most, so that an idle process is let sleep. */
static uint64_t expiry(const struct link *list)
{
    if (list_empty(list))
        return UINT64_MAX;
    const struct lingering *e = from_age(list->next);
    return (e->since_ms + lifetime(e) + 999) / 1000 * 1000;
}

uint64_t aftermath_next(const struct aftermath *l)
{
    uint64_t next = earlier(expiry(&l->refused), expiry(&l->time_wait));
    for (unsigned i = 0; i < AFTERMATH_REPEATS; i++)
        if (!list_empty(&l->repeats[i]))
            next = earlier(next, repeat_due(from_repeat(l->repeats[i].next)));
    return next;
}

static void say_again(struct stack *s, struct lingering *e)
{
    say(s, e);
    e->said++;
    list_remove(&e->repeat);
    if (e->said < AFTERMATH_REPEATS)
        list_push_back(&s->after.repeats[e->said], &e->repeat);
}

void aftermath_tick(struct stack *s)
{
    struct aftermath *l = &s->after;
    for (unsigned i = 0; i < AFTERMATH_REPEATS; i++) {
        LIST_EACH (it, &l->repeats[i]) {
            struct lingering *e = from_repeat(it);
            if (s->now_ms < repeat_due(e))
                break;
            say_again(s, e);
        }
    }
    expire(l, &l->refused, s->now_ms);
    expire(l, &l->time_wait, s->now_ms);
}
