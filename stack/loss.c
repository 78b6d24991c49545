/*
 * Segments that were lost on the way to the application.
 *
 * lwIP sends one segment again after three duplicate ACKs, and all of them when its timer runs out.
 * A super-packet is many segments, and few of them are under way at a time: mostly it would be the
 * timer, 300 ms or more. But a TUN device keeps the order, so that one selective acknowledgment of
 * what lies behind a hole (RFC 2018) says that the hole is lost; the duplicate ACKs that RFC 6675 5
 * waits for are those of networks that reorder. The hole is sent again at once, whole and once,
 * with the congestion window of lwIP's own fast retransmit (RFC 5681 3.2); and again if something
 * is acknowledged that was sent later, as then it is lost again.
 *
 * If nothing was sent later, no ACK tells of it. But two segments are acknowledged at once (RFC
 * 9293 3.8.6.3), so that after two ticks without progress lwIP's timer need not be waited for: all
 * is sent again as when it runs out. (RFC 8985 7 probes for the same reason, after two round
 * trips.) That is for those whose handshake says that they are near: on this machine, or on its
 * network.
 *
 * A block that reports a duplicate lies below the ACK (RFC 2883 4) and tells of no hole. Nor is
 * such an ACK one of the three that lwIP counts (RFC 6675 2): a super-packet that was sent again
 * for one lost segment makes one for each of the others, for which lwIP would send the next whole,
 * and so on.
 *
 * Windows that shrink lose segments as well. An application that takes room back (a smaller
 * SO_RCVBUF in the middle of a download) drops what is under way beyond its new window, and what is
 * queued lies in segments that are larger than it: lwIP would send such a piece at each run of its
 * timer only. So an ACK that is repeated with a window that ends before the first segment under way
 * does takes all back into the queue (RFC 9293 3.8.6), and whenever nothing is under way, what the
 * window takes of the first queued segment is split off and sent.
 */
#include "stack/bytes.h"
#include "stack/internal.h"

enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_SACK = 5, SACK_BLOCK_LEN = 8 };

enum {
    NEAR_MS = 20,
    TIMER_MS = 200,     /* lwIP's runs out no sooner */
    SILENT_TICKS = 2,   /* TICK_MS each; twice as many after each time */
    EARLY_TIMEOUTS = 3, /* in a row; then lwIP's, which give up after some minutes */
    /*
     * Of round trips, in lwIP's slow ticks, as it is about to measure the first: it would give that
     * no more weight than to any other (RFC 6298 2.2), and wait a second for the first losses.
     */
    FIRST_DEVIATION = 4,
};

void loss_start(const struct stack *s, struct conn *c)
{
    c->is_near = (uint32_t)s->now_ms - c->sent_ms < NEAR_MS;
    if (c->pcb->nrtx == 0) /* else the SYN-ACK was sent twice, and the time says nothing */
        c->pcb->sv = FIRST_DEVIATION;
}

/* One SACK option of `len` bytes: the first hole ends at the lowest block above the ACK. */
static void read_blocks(const uint8_t *option, size_t len, struct ack_report *report)
{
    for (size_t at = 2; at + SACK_BLOCK_LEN <= len; at += SACK_BLOCK_LEN) {
        uint32_t left = get_u32(option + at), right = get_u32(option + at + 4);
        if (TCP_SEQ_LEQ(left, report->ack)) {
            report->has_duplicate = true;
            continue;
        }
        if (!report->has_hole || TCP_SEQ_LT(left, report->hole_end))
            report->hole_end = left;
        if (!report->has_hole || TCP_SEQ_GT(right, report->sacked_end))
            report->sacked_end = right;
        report->has_hole = true;
    }
}

static void read_options(const uint8_t *tcp, size_t len, struct ack_report *report)
{
    for (size_t at = TCP_HLEN; at < len && tcp[at] != OPTION_END;) {
        if (tcp[at] == OPTION_NOP) {
            at++;
            continue;
        }
        if (at + 2 > len || tcp[at + 1] < 2 || at + tcp[at + 1] > len)
            return;
        if (tcp[at] == OPTION_SACK)
            read_blocks(tcp + at, tcp[at + 1], report);
        at += tcp[at + 1];
    }
}

struct ack_report loss_read(const struct conn *c, const uint8_t *ip, const struct packet_info *info)
{
    const uint8_t *tcp = ip + info->ip_header_len;
    struct ack_report report = {
        .ack = get_u32(tcp + 8),
        .window = c->pcb ? (uint32_t)get_u16(tcp + 14) << c->pcb->snd_scale : 0,
    };
    read_options(tcp, info->transport_header_len, &report);
    return report;
}

/* Once a loss: what lwIP does at the third duplicate ACK, which then does nothing more. */
static void begin_recovery(struct tcp_pcb *pcb)
{
    if (pcb->flags & TF_INFR)
        return;
    pcb->ssthresh = LWIP_MAX(LWIP_MIN(pcb->cwnd, pcb->snd_wnd) / 2, 2u * pcb->mss);
    pcb->cwnd = pcb->ssthresh + 3u * pcb->mss;
    tcp_set_flags(pcb, TF_INFR);
}

/* Bytes from the first that is not acknowledged to the end of `seg`. */
static uint32_t reach_of(const struct tcp_pcb *pcb, const struct tcp_seg *seg)
{
    return lwip_ntohl(seg->tcphdr->seqno) + seg->len - pcb->lastack;
}

/*
 * The first of the segments under way, if it begins before `end`; NULL also if the window has
 * shrunk so far that it would have to wait.
 */
static const struct tcp_seg *first_before(const struct tcp_pcb *pcb, uint32_t end, uint32_t *reach)
{
    const struct tcp_seg *first = pcb->unacked;
    if (first == NULL || TCP_SEQ_GEQ(lwip_ntohl(first->tcphdr->seqno), end))
        return NULL;
    *reach = reach_of(pcb, first);
    return *reach <= pcb->snd_wnd ? first : NULL;
}

/*
 * The congestion window is opened as far as the hole goes: lwIP puts new data and the FIN behind
 * the last segment that waits to be sent, which may not be one with others after it under way.
 */
static void resend_until(struct stack *s, struct conn *c, uint32_t end)
{
    struct tcp_pcb *pcb = c->pcb;
    uint8_t tries = pcb->nrtx; /* lwIP counts segments; too many would end the connection */
    const struct tcp_seg *seg;
    uint32_t reach;
    conn_enter(s, c);
    begin_recovery(pcb);
    while ((seg = first_before(pcb, end, &reach)) != NULL && tcp_rexmit(pcb) == ERR_OK) {
        pcb->cwnd = LWIP_MAX(pcb->cwnd, reach);
        c->resent_end = lwip_ntohl(seg->tcphdr->seqno) + TCP_TCPLEN(seg);
    }
    pcb->nrtx = tries;
    pcb->rtime = 0;
    c->resent_before = pcb->snd_nxt;
    tcp_output(pcb);
    conn_leave(s, c);
}

/* Something has come that was sent after what was sent again, which therefore is lost again. */
static bool is_lost_again(const struct conn *c, const struct ack_report *report)
{
    return TCP_SEQ_GT(report->sacked_end, c->resent_before) &&
           TCP_SEQ_LEQ(report->sacked_end, c->pcb->snd_nxt);
}

/*
 * Until what was sent again is acknowledged nothing more is, whatever blocks say: holes behind it
 * show in that ACK. So an application that makes blocks up gets each segment twice at most, and
 * once more for each that is new.
 */
static void heard_of_hole(struct stack *s, struct conn *c, const struct ack_report *report)
{
    const struct tcp_pcb *pcb = c->pcb;
    uint32_t end = report->hole_end, reach;
    if (c->resending && !is_lost_again(c, report))
        return;
    if (TCP_SEQ_LEQ(end, pcb->lastack) || TCP_SEQ_GEQ(end, pcb->snd_nxt) ||
        first_before(pcb, end, &reach) == NULL)
        return;
    c->resending = true;
    c->resent_end = end;
    c->joins = false;
    resend_until(s, c, end);
}

/*
 * What is under way does not fit the window any more: the application has dropped it, or will. What
 * is being sent again is taken back only for a window of half the size or less, and once for none.
 */
static bool is_taken_back(const struct conn *c, const struct ack_report *report)
{
    const struct tcp_pcb *pcb = c->pcb;
    if (pcb->unacked == NULL || report->ack != pcb->lastack || report->ack != c->seen_ack)
        return false;
    uint32_t before = c->resending ? c->resent_end - pcb->lastack : UINT32_MAX;
    return report->window < before && report->window <= before / 2 &&
           report->window < reach_of(pcb, pcb->unacked);
}

/* lwIP believes in a window that shrinks only with a new ACK (as Linux does, but for 0). */
static void take_back(struct conn *c, uint32_t window)
{
    struct tcp_pcb *pcb = c->pcb;
    if (tcp_rexmit_rto_prepare(pcb) != ERR_OK)
        return;
    pcb->snd_wnd = window;
    pcb->rtime = 0;
    c->resending = true;
    c->resent_end = pcb->lastack + window;
    c->resent_before = pcb->snd_nxt;
    c->joins = false;
}

/* Nothing is under way, and the first segment that waits is larger than the window, which is open.
 */
static bool is_stuck(const struct tcp_pcb *pcb)
{
    return pcb->unacked == NULL && pcb->unsent != NULL && pcb->snd_wnd > 0 &&
           reach_of(pcb, pcb->unsent) > pcb->snd_wnd;
}

/* lwIP copies what it splits off: by halves, that is little even for tiny windows. */
static void send_what_fits(struct stack *s, struct conn *c)
{
    struct tcp_pcb *pcb = c->pcb;
    const struct tcp_seg *first = pcb->unsent;
    uint32_t fits = pcb->lastack + pcb->snd_wnd - lwip_ntohl(first->tcphdr->seqno);
    while (first->len / 2 > fits && tcp_split_unsent_seg(pcb, first->len / 2) == ERR_OK)
        continue;
    if (tcp_split_unsent_seg(pcb, (u16_t)fits) == ERR_OK)
        conn_flush(s, c);
}

/* --- silence ---------------------------------------------------------------------------------- */

static void time_out(struct stack *s, struct conn *c)
{
    struct tcp_pcb *pcb = c->pcb;
    if (tcp_rexmit_rto_prepare(pcb) != ERR_OK)
        return;
    c->joins = false;
    c->is_hurried = true;
    c->sent_ms = (uint32_t)s->now_ms;
    pcb->ssthresh = LWIP_MAX(LWIP_MIN(pcb->cwnd, pcb->snd_wnd) / 2, 2u * pcb->mss);
    pcb->cwnd = pcb->mss;
    pcb->rtime = 0;
    conn_enter(s, c);
    tcp_rexmit_rto_commit(pcb);
    conn_leave(s, c);
    if (is_stuck(pcb))
        send_what_fits(s, c);
}

void loss_tick(struct stack *s, struct conn *c)
{
    const struct tcp_pcb *pcb = c->pcb;
    bool much = pcb->unacked != NULL && pcb->snd_nxt - pcb->lastack >= 2u * c->mss;
    if (!c->is_near || !much || pcb->nrtx >= EARLY_TIMEOUTS) {
        c->silent_ticks = 0;
        return;
    }
    if (++c->silent_ticks < SILENT_TICKS << pcb->nrtx)
        return;
    c->silent_ticks = 0;
    time_out(s, c);
}

/* What is acknowledged later than TIMER_MS may have been sent once more meanwhile. */
static void note_progress(const struct stack *s, struct conn *c)
{
    uint32_t ms = (uint32_t)s->now_ms - c->sent_ms;
    c->silent_ticks = 0;
    if (c->is_hurried && ms >= NEAR_MS && ms < TIMER_MS)
        c->is_near = false;
    c->is_hurried = false;
    if (TCP_SEQ_GEQ(c->pcb->lastack, c->resent_end))
        c->resending = false;
}

void loss_heard(struct stack *s, struct conn *c, const struct ack_report *report)
{
    if (c->pcb->lastack != c->seen_ack) /* else what went back to a shut window still waits */
        note_progress(s, c);
    if (report->has_duplicate)
        c->pcb->dupacks = 0;
    if (report->has_hole)
        heard_of_hole(s, c, report);
    if (is_taken_back(c, report))
        take_back(c, report->window);
    if (is_stuck(c->pcb))
        send_what_fits(s, c);
}
