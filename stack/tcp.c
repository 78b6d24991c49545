/*
 * TCP flows over lwIP.
 *
 * lwIP believes that it is one host with one connection. Its lists of connections are global
 * variables; this file keeps them empty, keeps every connection's control block in its conn,
 * which a hash of both endpoints finds, and puts the one block into the list for as long as
 * lwIP works for it (conn_enter(), conn_leave()). So a packet costs the same whether there
 * are ten connections or fifty thousand, and lwIP needs no patch. Its timers want all the
 * connections that have something to time: those are in the `busy` list, and are strung
 * together for the tick only. An idle connection is in none of these lists.
 *
 * Accepting for everyone: lwIP has a single listener; its port is set to that of the SYN it is
 * fed. Segments go straight to tcp_input() with the addresses that they carry, past lwIP's
 * IP layer, which would ask whether they are its own.
 *
 *   state     what it is                            what may happen
 *   HELD      the SYN waits outside lwIP            conn_accept, conn_refuse, conn_abort; a
 *                                                   retransmitted SYN is dropped; RST ends it
 *   ACCEPTED  lwIP has the SYN, answered SYN+ACK    conn_abort; becomes OPEN or OVER
 *   OPEN      established, or closing in either     everything; becomes OVER
 *             direction
 *   OVER      lwIP has no control block any more    conn_peek, conn_consume, conn_abort
 *
 * Super-packets: once the application's MSS is known, lwIP is told a segment size of up to
 * 64 KiB, and the MSS goes with each packet to output_tcp(), or to big_tcp.c, which joins them.
 * What is queued never exceeds what the window takes at once (conn_budget()): lwIP stalls when a
 * segment turns out to be larger than a window that has shrunk; what loss.c does then is costly.
 *
 * Acknowledgements: a byte is acknowledged when the proxy's socket has taken it (conn_consume()):
 * once a batch if it was two segments or more, else riding on the answer; lwIP's fast timer, every
 * TICK_MS, sends what found no ride. window.c keeps ACKs of lwIP's from saying more, and the window
 * from letting in more than the socket has room for.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "lwip/ip.h"
#include "lwip_hooks.h"
#include "lwip/priv/tcp_priv.h"
#include "lwip/tcp.h"
#include "stack/bytes.h"
#include "stack/internal.h"

enum conn_state { CONN_STATE_HELD, CONN_STATE_ACCEPTED, CONN_STATE_OPEN, CONN_STATE_OVER };

enum {
    MSS_MIN = 48,             /* as Linux's tcp_min_snd_mss: less is an attack on the peer's CPU */
    SEGMENTS_PER_PACKET = 64, /* at most, in one super-packet */
    QUEUE_SPARE = 128,        /* pbufs; more than are queued between two looks at the room */
};

struct tuple {
    struct endpoint src, dst;
};
_Static_assert(offsetof(struct conn, dst) - offsetof(struct conn, src) ==
                   offsetof(struct tuple, dst),
               "a conn's endpoints are its key");

static const void *conn_key(const struct conn *c)
{
    return &c->src;
}

static bool conn_has_key(const struct map_entry *entry, const void *key)
{
    const struct conn *c = CONTAINER_OF(entry, const struct conn, by_tuple);
    return memcmp(conn_key(c), key, sizeof(struct tuple)) == 0;
}

static struct conn *conn_find(struct stack *s, const struct endpoint *src,
                              const struct endpoint *dst)
{
    const struct tuple t = {*src, *dst};
    struct map_entry *e = map_find(&s->conns, hash_bytes(&t, sizeof t), &t);
    return e ? CONTAINER_OF(e, struct conn, by_tuple) : NULL;
}

/* --- events and lists ------------------------------------------------------------------------- */

static void conn_note(struct stack *s, struct conn *c, unsigned events)
{
    c->events = (uint8_t)(c->events | events);
    if (list_empty(&c->ready))
        list_push_back(&s->ready, &c->ready);
}

/*
 * Where that begins which lwIP may still read: a segment that is acknowledged in part is sent again
 * as a whole, and may lie in more chunks than one.
 */
static uint32_t first_kept(const struct tcp_pcb *pcb)
{
    uint32_t first = pcb->lastack;
    const struct tcp_seg *heads[] = {pcb->unacked, pcb->unsent};
    for (int i = 0; i < 2; i++)
        if (heads[i] && TCP_SEQ_LT(lwip_ntohl(heads[i]->tcphdr->seqno), first))
            first = lwip_ntohl(heads[i]->tcphdr->seqno);
    return first;
}

static void conn_release_chunks(struct conn *c, bool all)
{
    uint32_t first = all ? 0 : first_kept(c->pcb);
    while (c->tx != NULL) {
        struct chunk *chunk = c->tx;
        if (!all && TCP_SEQ_LT(first, chunk->end_seq))
            return;
        c->tx = chunk->next;
        if (c->tx == NULL)
            c->tx_last = NULL;
        chunk->next = NULL;
        chunk->queued = false;
        chunk->release(chunk);
    }
}

/* lwIP has let go of the connection. */
static void conn_end(struct stack *s, struct conn *c, unsigned event)
{
    if (c->state == CONN_STATE_OVER)
        return;
    c->state = CONN_STATE_OVER;
    c->pcb = NULL;
    map_remove(&s->conns, &c->by_tuple);
    list_remove(&c->busy);
    conn_release_chunks(c, true);
    conn_note(s, c, event);
}

/* Has lwIP's timer anything to do for it? */
static bool conn_is_busy(const struct tcp_pcb *pcb)
{
    if (pcb->unacked || pcb->unsent || pcb->ooseq || pcb->persist_backoff)
        return true;
    if (pcb->flags & (TF_ACK_DELAY | TF_ACK_NOW | TF_CLOSEPEND | TF_NAGLEMEMERR))
        return true;
    /* FIN_WAIT_2 is a half-closed connection, which may last. */
    return pcb->state != ESTABLISHED && pcb->state != CLOSE_WAIT && pcb->state != FIN_WAIT_2;
}

static void conn_update_busy(struct stack *s, struct conn *c)
{
    if (!conn_is_busy(c->pcb)) {
        list_remove(&c->busy);
        return;
    }
    if (!list_empty(&c->busy))
        return;
    if (list_empty(&s->busy))
        s->next_tick_ms = s->now_ms + TICK_MS;
    list_push_back(&s->busy, &c->busy);
}

/* --- lwIP's world of one connection ----------------------------------------------------------- */

void conn_enter(struct stack *s, struct conn *c)
{
    s->current = c;
    tcp_active_pcbs = c->pcb;
    tcp_tw_pcbs = NULL;
}

void conn_leave(struct stack *s, struct conn *c)
{
    big_tcp_flush(s);
    if (tcp_tw_pcbs != NULL) {
        struct tcp_pcb *pcb = tcp_tw_pcbs;
        aftermath_add_time_wait(s, &c->src, &c->dst, pcb->snd_nxt, pcb->rcv_nxt);
        tcp_arg(pcb, NULL);
        tcp_abandon(pcb, 0);
        conn_end(s, c, CONN_CLOSED);
    }
    tcp_active_pcbs = NULL;
    s->current = NULL;
    if (c->pcb)
        conn_update_busy(s, c);
}

/* lwIP has asked for an ACK at once: let it find a ride first. */
static void delay_ack(struct tcp_pcb *pcb)
{
    tcp_clear_flags(pcb, TF_ACK_NOW);
    tcp_set_flags(pcb, TF_ACK_DELAY);
}

static err_t on_received(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t error)
{
    struct conn *c = arg;
    struct stack *s = stack_instance();
    (void)error;
    if (p == NULL) {
        /* Our own FIN often follows soon. Where it has been sent, this ACK is the last word. */
        if (pcb->state == CLOSE_WAIT)
            delay_ack(pcb);
        conn_note(s, c, CONN_FIN);
        return ERR_OK;
    }
    delay_ack(pcb);
    c->rx_bytes += p->tot_len;
    if (c->rx_last)
        c->rx_last->next = p; /* tot_len is of no use here: it is 16 bits wide */
    else
        c->rx = p;
    while (p->next)
        p = p->next;
    c->rx_last = p;
    conn_note(s, c, CONN_DATA);
    return ERR_OK;
}

/* The control block is freed already, or will be by lwIP. */
static void on_error(void *arg, err_t error)
{
    struct conn *c = arg;
    if (c == NULL)
        return;
    conn_end(stack_instance(), c, error == ERR_CLSD ? CONN_CLOSED : CONN_RESET);
}

static err_t on_accepted(void *arg, struct tcp_pcb *pcb, err_t error)
{
    struct conn *c = arg;
    struct stack *s = stack_instance();
    if (pcb == NULL || error != ERR_OK || c == NULL)
        return ERR_ABRT;
    c->mss = pcb->mss > MSS_MIN ? pcb->mss : MSS_MIN;
    unsigned segments = (unsigned)TCP_MSS / c->mss;
    segments = segments < SEGMENTS_PER_PACKET ? segments : SEGMENTS_PER_PACKET;
    pcb->mss = (u16_t)(segments * c->mss);
    loss_start(s, c);
    tcp_nagle_disable(pcb);
    c->state = CONN_STATE_OPEN;
    conn_note(s, c, CONN_OPENED);
    return ERR_OK;
}

static void set_lwip_addr(ip_addr_t *out, const struct addr *a)
{
    if (addr_is_v4(a)) {
        memcpy(&ip_2_ip4(out)->addr, addr_v4_bytes(a), 4);
        IP_SET_TYPE(out, IPADDR_TYPE_V4);
    } else {
        memcpy(ip_2_ip6(out)->addr, a->bytes, 16);
        IP_SET_TYPE(out, IPADDR_TYPE_V6);
    }
}

/* Give lwIP one segment of `c`'s; consumes `segment`, which begins with the TCP header. */
static void conn_feed(struct stack *s, struct conn *c, struct pbuf *segment)
{
    ip_data.current_netif = &s->netif;
    ip_data.current_input_netif = &s->netif;
    ip_data.current_ip4_header = NULL;
    ip_data.current_ip6_header = NULL;
    set_lwip_addr(&ip_data.current_iphdr_src, &c->src.addr);
    set_lwip_addr(&ip_data.current_iphdr_dest, &c->dst.addr);
    conn_enter(s, c);
    tcp_input(segment, &s->netif);
    if (c->pcb == NULL && tcp_active_pcbs != NULL && c->state == CONN_STATE_ACCEPTED) {
        c->pcb = tcp_active_pcbs; /* the listener has made it */
        tcp_recv(c->pcb, on_received);
        tcp_err(c->pcb, on_error);
        window_start(c);
    }
    conn_leave(s, c);
}

/* --- what comes in ---------------------------------------------------------------------------- */

static bool hold_syn(struct conn *c, const uint8_t *ip, const struct packet_info *info)
{
    u16_t len = (u16_t)(info->ip_header_len + info->transport_header_len); /* data comes again */
    struct pbuf *syn = pbuf_alloc(PBUF_RAW, len, PBUF_RAM);
    if (syn == NULL)
        return false;
    memcpy(syn->payload, ip, len);
    if (c->held_syn)
        pbuf_free(c->held_syn);
    c->held_syn = syn;
    c->held_ip_len = info->ip_header_len;
    return true;
}

static void open_conn(struct stack *s, const uint8_t *ip, const struct packet_info *info)
{
    struct conn *c = s->ops->conn_open(s->ctx, &info->src, &info->dst);
    if (c == NULL) {
        aftermath_refuse(s, ip, info, REFUSE_RESET);
        return;
    }
    c->src = info->src;
    c->dst = info->dst;
    c->joins = big_tcp_is_local(ip);
    c->state = CONN_STATE_HELD;
    list_init(&c->ready);
    list_init(&c->busy);
    map_insert(&s->conns, &c->by_tuple, hash_bytes(conn_key(c), sizeof(struct tuple)));
    s->counters->conns++;
    s->counters->conns_opened++;
    if (!hold_syn(c, ip, info))
        conn_end(s, c, CONN_RESET);
}

static uint32_t held_seq(const struct conn *c)
{
    return get_u32((const uint8_t *)c->held_syn->payload + c->held_ip_len + 4);
}

static void input_held(struct stack *s, struct conn *c, const uint8_t *ip,
                       const struct packet_info *info)
{
    uint32_t seq = get_u32(ip + info->ip_header_len + 4);
    if (info->tcp_flags & TCP_RST) {
        if (seq == held_seq(c) || seq == held_seq(c) + 1)
            conn_end(s, c, CONN_RESET);
        return;
    }
    /* Given up and tried again from the same port: the new SYN is the one to answer. */
    if ((info->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && seq != held_seq(c))
        hold_syn(c, ip, info);
}

/*
 * lwIP takes a segment's bytes and FIN whatever it acknowledges. RFC 9293, 3.10.7.4: one that
 * acknowledges what was never sent is answered and dropped, and RFC 5961, 5, what was acknowledged
 * longer ago than a window: who does not see the connection must guess two numbers, not one.
 */
static bool acknowledges_nonsense(const struct conn *c, const uint8_t *ip,
                                  const struct packet_info *info)
{
    const struct tcp_pcb *pcb = c->pcb;
    if (pcb == NULL || pcb->state < ESTABLISHED || info->tcp_flags & TCP_RST)
        return false;
    uint32_t ack = get_u32(ip + info->ip_header_len + 8);
    return pcb->snd_nxt - ack > pcb->snd_nxt - pcb->lastack + pcb->snd_wnd_max;
}

static void acknowledge_again(struct stack *s, struct conn *c)
{
    tcp_ack_now(c->pcb);
    conn_flush(s, c);
}

void conn_input(struct stack *s, const struct packet *p, const struct packet_info *info,
                struct rx_buffer **buffer)
{
    struct conn *c = conn_find(s, &info->src, &info->dst);
    if (c == NULL) {
        if (aftermath_input(s, p->data, info))
            return;
        if ((info->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN)
            open_conn(s, p->data, info);
        else
            aftermath_send_reset(s, p->data, info);
        return;
    }
    c->heard_ms = s->now_ms;
    if (c->state == CONN_STATE_HELD) {
        input_held(s, c, p->data, info);
        return;
    }
    if (acknowledges_nonsense(c, p->data, info) || window_is_overrun(c, p->data, info)) {
        acknowledge_again(s, c);
        return;
    }
    if (!window_takes(s, c, p->data, info))
        return;
    /* A connection's options are those of the SYN that was held. */
    if (info->tcp_flags & TCP_SYN)
        memset(p->data + info->ip_header_len + TCP_HLEN, LWIP_TCP_OPT_NOP,
               (size_t)info->transport_header_len - TCP_HLEN);
    struct pbuf *segment = rx_segment_to_pbuf(s, p, info, buffer);
    if (segment == NULL)
        return; /* out of memory: as if lost on the way */
    const struct ack_report report = loss_read(c, p->data, info);
    conn_feed(s, c, segment);
    if (c->pcb == NULL || c->state != CONN_STATE_OPEN)
        return;
    conn_release_chunks(c, false);
    loss_heard(s, c, &report);
    /*
     * A pure window update calls nothing back in lwIP, and an ACK may move no edge: compare both.
     */
    uint32_t edge = c->pcb->lastack + LWIP_MIN(c->pcb->snd_wnd, c->pcb->cwnd);
    if (edge != c->seen_edge || c->pcb->lastack != c->seen_ack) {
        c->seen_edge = edge;
        c->seen_ack = c->pcb->lastack;
        conn_note(s, c, CONN_ROOM);
    }
}

uint16_t conn_mss_of(struct stack *s, const struct endpoint *src, const struct endpoint *dst)
{
    const struct conn *c = s->current ? s->current : conn_find(s, src, dst);
    return c && c->mss ? c->mss : 536;
}

void conn_tell_ready(struct stack *s)
{
    for (struct link *l = list_first(&s->ready); l != NULL; l = list_first(&s->ready)) {
        struct conn *c = CONTAINER_OF(l, struct conn, ready);
        unsigned events = c->events;
        c->events = 0;
        list_remove(&c->ready);
        s->ops->conn_ready(s->ctx, c, events); /* may have freed it */
    }
}

/* --- what core asks for ----------------------------------------------------------------------- */

static void conn_forget(struct stack *s, struct conn *c)
{
    if (c->state != CONN_STATE_OVER)
        map_remove(&s->conns, &c->by_tuple);
    c->state = CONN_STATE_OVER;
    list_remove(&c->ready);
    list_remove(&c->busy);
    conn_release_chunks(c, true);
    if (c->held_syn)
        pbuf_free(c->held_syn);
    if (c->rx)
        pbuf_free(c->rx);
    c->held_syn = c->rx = c->rx_last = NULL;
    s->counters->conns--;
}

void conn_accept(struct stack *s, struct conn *c, size_t room)
{
    if (c->state != CONN_STATE_HELD)
        return; /* given up meanwhile: CONN_RESET is on its way */
    struct pbuf *syn = c->held_syn;
    c->held_syn = NULL;
    c->state = CONN_STATE_ACCEPTED;
    c->sent_ms = (uint32_t)s->now_ms;
    pbuf_remove_header(syn, c->held_ip_len);
    s->listener->local_port = c->dst.port;
    s->listener->callback_arg = c;
    window_prepare(c, room);
    conn_feed(s, c, syn);
    s->listener->callback_arg = NULL;
    if (c->pcb == NULL)
        conn_end(s, c, CONN_RESET); /* out of memory */
}

void conn_refuse(struct stack *s, struct conn *c, enum refusal how)
{
    assert(c->state == CONN_STATE_HELD || c->state == CONN_STATE_OVER);
    if (c->state == CONN_STATE_HELD) {
        const struct packet_info info = {
            .src = c->src,
            .dst = c->dst,
            .ip_header_len = c->held_ip_len,
            .len = c->held_syn->len,
        };
        aftermath_refuse(s, c->held_syn->payload, &info, how);
    }
    conn_forget(s, c);
}

void conn_abort(struct stack *s, struct conn *c)
{
    if (c->state == CONN_STATE_HELD) {
        conn_refuse(s, c, REFUSE_RESET);
        return;
    }
    if (c->pcb) {
        conn_enter(s, c);
        tcp_arg(c->pcb, NULL);
        tcp_abort(c->pcb);
        c->pcb = NULL;
        conn_leave(s, c);
    }
    conn_forget(s, c);
}

bool conn_is_over(const struct conn *c)
{
    return c->state == CONN_STATE_OVER;
}

uint64_t conn_heard_ms(const struct conn *c)
{
    return c->heard_ms;
}

int conn_peek(const struct conn *c, struct iovec *iov, int max)
{
    int n = 0;
    for (struct pbuf *p = c->rx; p != NULL && n < max; p = p->next) {
        if (p->len == 0)
            continue;
        iov[n].iov_base = p->payload;
        iov[n].iov_len = p->len;
        n++;
    }
    return n;
}

/* Drop `n` bytes, and empty pieces, from the front of what was received. */
static void rx_drop(struct conn *c, size_t n)
{
    while (c->rx != NULL && (n > 0 || c->rx->len == 0)) {
        struct pbuf *p = c->rx;
        if (p->len > n) {
            p->payload = (uint8_t *)p->payload + n;
            p->len = (u16_t)(p->len - n);
            return;
        }
        n -= p->len;
        c->rx = p->next;
        p->next = NULL;
        pbuf_free(p);
    }
    if (c->rx == NULL)
        c->rx_last = NULL;
}

void conn_consume(struct stack *s, struct conn *c, size_t n, size_t room)
{
    rx_drop(c, n);
    c->rx_bytes -= (uint32_t)n;
    if (c->pcb == NULL)
        return;
    bool bulk = n >= 2u * c->mss;
    /* No ACK is on its way: the last one was sent while these bytes were kept, without them. */
    bool kept = n > 0 && !(c->pcb->flags & (TF_ACK_DELAY | TF_ACK_NOW));
    conn_enter(s, c);
    bool worth_telling = window_open(s, c, n, room);
    if (worth_telling || bulk || kept) {
        tcp_ack_now(c->pcb);
        tcp_output(c->pcb);
    }
    conn_leave(s, c);
}

size_t conn_unacknowledged(const struct conn *c)
{
    return c->pcb ? c->pcb->snd_lbb - c->pcb->lastack : 0;
}

size_t conn_budget(const struct conn *c)
{
    const struct tcp_pcb *pcb = c->pcb;
    if (pcb == NULL || c->state != CONN_STATE_OPEN || c->fin_wanted)
        return 0;
    size_t in_flight = conn_unacknowledged(c);
    size_t window = LWIP_MIN(pcb->snd_wnd, pcb->cwnd);
    size_t room = window > in_flight ? window - in_flight : 0;
    if (pcb->snd_queuelen + QUEUE_SPARE > TCP_SND_QUEUELEN)
        return 0;
    if (in_flight == 0 && room == 0)
        return c->mss; /* to probe the closed window with */
    if (in_flight > 0 && room < c->mss)
        return 0; /* no silly windows */
    return LWIP_MIN(room, pcb->snd_buf);
}

size_t conn_segment(const struct conn *c)
{
    return c->pcb ? c->pcb->mss : 0;
}

size_t conn_room(const struct conn *c)
{
    return LWIP_MIN(conn_budget(c), conn_segment(c));
}

int conn_send(struct stack *s, struct conn *c, struct chunk *chunk, const void *bytes, size_t len)
{
    (void)s;
    assert(len > 0 && len <= 0xffff);
    err_t error = c->pcb ? tcp_write(c->pcb, bytes, (u16_t)len, 0) : ERR_CONN;
    if (!chunk->queued && error != ERR_OK) {
        chunk->release(chunk);
    } else if (!chunk->queued) {
        chunk->queued = true;
        chunk->next = NULL;
        if (c->tx_last)
            c->tx_last->next = chunk;
        else
            c->tx = chunk;
        c->tx_last = chunk;
    }
    if (error != ERR_OK)
        return error == ERR_CONN ? -ENOTCONN : -ENOMEM;
    chunk->end_seq = c->pcb->snd_lbb;
    return 0;
}

void conn_flush(struct stack *s, struct conn *c)
{
    if (c->pcb == NULL)
        return;
    conn_enter(s, c);
    tcp_output(c->pcb);
    conn_leave(s, c);
}

void conn_shutdown(struct stack *s, struct conn *c)
{
    if (c->pcb == NULL || c->fin_wanted)
        return;
    assert(c->state == CONN_STATE_OPEN);
    c->fin_wanted = true;
    conn_enter(s, c);
    tcp_shutdown(c->pcb, 0, 1); /* out of memory: lwIP tries again at its next tick */
    conn_leave(s, c);
}

/* --- time ------------------------------------------------------------------------------------- */

/* Run lwIP's timers over the connections that want them. */
void conn_tick(struct stack *s)
{
    if (list_empty(&s->busy) || s->now_ms < s->next_tick_ms)
        return;
    s->next_tick_ms = s->now_ms + TICK_MS;
    LIST_EACH (it, &s->busy)
        loss_tick(s, CONTAINER_OF(it, struct conn, busy));
    struct link concerned;
    list_init(&concerned);
    tcp_active_pcbs = NULL;
    LIST_EACH (it, &s->busy) {
        struct conn *c = CONTAINER_OF(it, struct conn, busy);
        list_remove(it);
        list_push_back(&concerned, it);
        c->pcb->next = tcp_active_pcbs;
        tcp_active_pcbs = c->pcb;
    }
    tcp_fasttmr();
    s->slow_half = !s->slow_half;
    if (s->slow_half)
        tcp_slowtmr();
    while (tcp_active_pcbs != NULL) {
        struct tcp_pcb *pcb = tcp_active_pcbs;
        tcp_active_pcbs = pcb->next;
        pcb->next = NULL;
    }
    /* Those that the timers ended have left the list by themselves. */
    LIST_EACH (it, &concerned) {
        struct conn *c = CONTAINER_OF(it, struct conn, busy);
        list_remove(it);
        c->joins = c->joins && c->pcb->nrtx == 0;
        if (conn_is_busy(c->pcb))
            list_push_back(&s->busy, it);
    }
}

/* --- life of the table ------------------------------------------------------------------------ */

/*
 * RFC 6528: a clock of 4 µs ticks and a keyed hash of the connection. lwIP asks through
 * LWIP_HOOK_TCP_ISN.
 */
u32_t culvert_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                      u16_t remote_port)
{
    const struct stack *s = stack_instance();
    (void)local_ip, (void)local_port, (void)remote_ip, (void)remote_port;
    const struct conn *c = s->current;
    return (u32_t)(hash_bytes(conn_key(c), sizeof(struct tuple)) >> 32) + (u32_t)(s->now_ms * 250);
}

int conn_table_init(struct stack *s)
{
    list_init(&s->ready);
    list_init(&s->busy);
    int error = map_init(&s->conns, 64, conn_has_key);
    if (error != 0)
        return error;
    struct tcp_pcb *pcb = tcp_new_ip_type(IPADDR_TYPE_ANY);
    if (pcb == NULL)
        return -ENOMEM;
    tcp_bind(pcb, IP_ANY_TYPE, 1); /* conn_accept() sets the port for each SYN */
    struct tcp_pcb *listener = tcp_listen(pcb);
    if (listener == NULL) {
        tcp_abort(pcb);
        return -ENOMEM;
    }
    tcp_accept(listener, on_accepted);
    s->listener = (struct tcp_pcb_listen *)(void *)listener;
    return 0;
}

void conn_table_free(struct stack *s)
{
    assert(s->counters->conns == 0);
    if (s->listener)
        tcp_close((struct tcp_pcb *)(void *)s->listener);
    map_free(&s->conns);
}
