/*
 * How much an application may send before the proxy has taken it, what of it is acknowledged, and
 * what all of them together may make us keep.
 *
 * A byte is acknowledged when it has been passed on. lwIP acknowledges what it has received, so
 * culvert_tcp_header() takes back, in each header on its way out, what is still kept here; the
 * right edge of the window stays where lwIP has it.
 *
 * An ACK that is withheld for long does harm: the application's kernel sends again and again, and
 * gives the connection up in the end (Linux: after tcp_retries2, some 15 minutes). So no more is
 * let in than the proxy's socket has room for: the window that is told is what was passed on plus
 * that room at most, and what the window ought to be beyond is owed (`window_owed`) until there is
 * room. A proxy that does not read thus shuts the window as any receiver does, with everything
 * acknowledged, and the application probes it for as long as it likes. Bytes are kept, and their
 * ACK withheld, only when a socket takes less than the kernel had promised (it is short of memory).
 *
 * What is kept in all is bounded whatever happens:
 *
 *   - a window begins at WINDOW_MIN and doubles as its bytes are passed on, up to lwIP's TCP_WND;
 *     the application's own congestion window grows no faster, so this costs no time
 *   - past RX_EASY bytes of memory in all conns no window grows, and larger ones shrink back as
 *     their bytes are passed on. A right edge that was told is never taken back (RFC 9293 3.8.6)
 *   - past RX_MOST segments are dropped as if lost on the way, of every conn but those that hold
 *     nothing and get the next bytes in order: whoever is served goes on being served
 *
 * Without TSO each packet takes a place in the device's queue, and eight uploads with a mebibyte
 * each overflow 5,000 of them: a window stays at WINDOW_PLAIN then.
 *
 * `window_withheld` is the difference between TCP_WND and the conn's window.
 */
#include "lwip/priv/tcp_priv.h"
#include "lwip_hooks.h"
#include "stack/bytes.h"
#include "stack/internal.h"

enum {
    WINDOW_MIN = 65535,         /* what a SYN-ACK can tell, as its window is not scaled */
    WINDOW_SHORT = 16 * 1024,   /* with less, an application soon has to wait */
    WINDOW_PLAIN = 256 * 1024,  /* without TSO */
    RX_EASY = 64 * 1024 * 1024, /* bytes */
    RX_MOST = 160 * 1024 * 1024,
};

void window_prepare(struct conn *c, size_t room)
{
    c->window_owed = room < WINDOW_MIN ? WINDOW_MIN - (uint32_t)room : 0;
}

void window_start(struct conn *c)
{
    struct tcp_pcb *pcb = c->pcb;
    c->window_withheld = pcb->rcv_wnd - WINDOW_MIN; /* 0 where the application knows no scale */
    pcb->rcv_wnd = pcb->rcv_ann_wnd = WINDOW_MIN - c->window_owed;
    pcb->rcv_ann_right_edge = pcb->rcv_nxt + pcb->rcv_wnd;
}

/* What the application may send before any of it is passed on, were there room for it. */
static size_t window_of(const struct conn *c)
{
    return TCP_WND_MAX(c->pcb) - c->window_withheld;
}

/* What it may send now: received and not passed on, and what the window lets in. */
static size_t window_outstanding(const struct conn *c)
{
    return c->rx_bytes + c->pcb->rcv_wnd;
}

/* Of `n` bytes that were passed on, how many open the window? More than `n` let it grow. */
static size_t window_grant(const struct stack *s, struct conn *c, size_t n)
{
    size_t most = TCP_WND_MAX(c->pcb);
    size_t window = window_of(c);
    if (!s->device->caps.tso)
        most = LWIP_MIN(most, WINDOW_PLAIN);
    if (s->rx_held <= RX_EASY) {
        size_t more = window < most ? LWIP_MIN(n, most - window) : 0;
        c->window_withheld -= (uint32_t)more;
        return n + more;
    }
    size_t excess = window > WINDOW_MIN ? window - WINDOW_MIN : 0;
    size_t less = LWIP_MIN(n, excess);
    c->window_withheld += (uint32_t)less;
    return n - less;
}

bool window_open(struct stack *s, struct conn *c, size_t n, size_t room)
{
    struct tcp_pcb *pcb = c->pcb;
    size_t outstanding = window_outstanding(c);
    size_t due = c->window_owed + window_grant(s, c, n);
    size_t left = LWIP_MIN(due, room > outstanding ? room - outstanding : 0);
    c->window_owed = (uint32_t)(due - left);
    while (left > 0) {
        u16_t piece = (u16_t)LWIP_MIN(left, 0xffff);
        tcp_recved(pcb, piece);
        left -= piece;
    }
    /*
     * lwIP itself tells at a quarter of TCP_WND, which a smaller window never reaches; and it
     * moves the edge by no less than pcb->mss, a super-packet's size, so that an ACK which is to
     * tell of less would tell nothing. Small exchanges tell with their answers.
     */
    uint32_t untold = pcb->rcv_nxt + pcb->rcv_wnd - pcb->rcv_ann_right_edge;
    size_t window = window_of(c) - c->window_owed;
    if (untold >= INT32_MAX || untold < LWIP_MIN(c->mss, window / 2))
        return false;
    pcb->rcv_ann_wnd = pcb->rcv_wnd;
    return untold > 0 && untold >= window / 4;
}

bool window_takes(const struct stack *s, const struct conn *c, const uint8_t *ip,
                  const struct packet_info *info)
{
    size_t len = info->len - info->ip_header_len - info->transport_header_len;
    if (s->rx_held <= RX_MOST || len == 0 || c->pcb == NULL)
        return true;
    uint32_t begin = get_u32(ip + info->ip_header_len + 4);
    return c->rx_bytes == 0 && c->pcb->rcv_nxt - begin < len;
}

/* Where the stream ends, if a FIN waits behind a hole. lwIP keeps those segments in host order. */
static bool waiting_fin(const struct tcp_pcb *pcb, uint32_t *end)
{
    const struct tcp_seg *last = pcb->ooseq;
    while (last && last->next)
        last = last->next;
    if (last == NULL || !(TCPH_FLAGS(last->tcphdr) & TCP_FIN))
        return false;
    *end = last->tcphdr->seqno + last->len;
    return true;
}

bool window_is_overrun(const struct conn *c, const uint8_t *ip, const struct packet_info *info)
{
    const struct tcp_pcb *pcb = c->pcb;
    if (pcb == NULL || pcb->state < ESTABLISHED || info->tcp_flags & TCP_RST)
        return false;
    uint32_t begin = get_u32(ip + info->ip_header_len + 4), fin;
    uint32_t len = (uint32_t)(info->len - info->ip_header_len - info->transport_header_len);
    if (len > 0 && waiting_fin(pcb, &fin) && TCP_SEQ_GT(begin + len, fin))
        return true;
    len += (info->tcp_flags & TCP_FIN) != 0;
    return TCP_SEQ_GT(begin, pcb->rcv_nxt) && begin - pcb->rcv_nxt + len > pcb->rcv_wnd;
}

/* --- what an ACK says ------------------------------------------------------------------------- */

/*
 * How much of what lwIP has received is not to be acknowledged yet, in sequence numbers: what is
 * kept, and the FIN behind it.
 */
static uint32_t unconsumed(const struct conn *c, const struct tcp_pcb *pcb)
{
    if (c->rx_bytes == 0)
        return 0;
    switch (pcb->state) {
    case CLOSE_WAIT:
    case LAST_ACK:
    case CLOSING:
    case TIME_WAIT:
        return c->rx_bytes + 1;
    default:
        return c->rx_bytes;
    }
}

u32_t *culvert_tcp_header(struct tcp_hdr *header, const struct tcp_pcb *pcb, u32_t *options)
{
    const struct conn *c = pcb ? pcb->callback_arg : NULL;
    if (c == NULL)
        return options;
    if (TCPH_FLAGS(header) & TCP_SYN)
        header->wnd = lwip_htons((u16_t)(WINDOW_MIN - c->window_owed));
    uint32_t kept = unconsumed(c, pcb);
    if (kept == 0)
        return options;
    header->ackno = lwip_htonl(pcb->rcv_nxt - kept);
    uint32_t window = (pcb->rcv_ann_wnd + kept) >> pcb->rcv_scale;
    header->wnd = lwip_htons((u16_t)LWIP_MIN(window, 0xffff));
    return options;
}

/* --- what core asks --------------------------------------------------------------------------- */

bool conn_wants_room(const struct conn *c, size_t n, size_t room)
{
    if (c->pcb == NULL || room >= LWIP_MIN(window_of(c) + n, (size_t)TCP_WND_MAX(c->pcb)))
        return false;
    return n >= WINDOW_SHORT || window_outstanding(c) < 2 * WINDOW_SHORT + n;
}

bool conn_window_is_short(const struct conn *c)
{
    return c->pcb && c->window_owed > 0 && window_outstanding(c) < WINDOW_SHORT;
}
