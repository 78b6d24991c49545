/*
 * How much an application may send before the proxy has taken it, and what all of them together
 * may make us keep.
 *
 * A flow that the proxy does not read holds what its window has let in: with a mebibyte each, two
 * thousand stalled uploads would hold two gigabytes. So
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
#include "stack/internal.h"

enum {
    WINDOW_MIN = 65535,         /* what a SYN-ACK can tell, as its window is not scaled */
    WINDOW_PLAIN = 256 * 1024,  /* without TSO */
    RX_EASY = 64 * 1024 * 1024, /* bytes */
    RX_MOST = 160 * 1024 * 1024,
};

void window_start(struct conn *c)
{
    struct tcp_pcb *pcb = c->pcb;
    if (pcb->rcv_wnd <= WINDOW_MIN)
        return; /* the application knows no window scale */
    c->window_withheld = pcb->rcv_wnd - WINDOW_MIN;
    pcb->rcv_wnd = pcb->rcv_ann_wnd = WINDOW_MIN;
    pcb->rcv_ann_right_edge = pcb->rcv_nxt + WINDOW_MIN;
}

/* Of `n` bytes that were passed on, how many open the window? More than `n` let it grow. */
static size_t window_grant(const struct stack *s, struct conn *c, size_t n)
{
    size_t most = TCP_WND_MAX(c->pcb);
    size_t window = most - c->window_withheld;
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

bool window_open(struct stack *s, struct conn *c, size_t n)
{
    struct tcp_pcb *pcb = c->pcb;
    for (size_t left = window_grant(s, c, n); left > 0;) {
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
    if (untold >= INT32_MAX || untold < c->mss)
        return false;
    pcb->rcv_ann_wnd = pcb->rcv_wnd;
    return untold >= (TCP_WND_MAX(pcb) - c->window_withheld) / 4;
}

bool window_takes(const struct stack *s, const struct conn *c, const uint8_t *ip,
                  const struct packet_info *info)
{
    size_t len = info->len - info->ip_header_len - info->transport_header_len;
    if (s->rx_held <= RX_MOST || len == 0 || c->pcb == NULL)
        return true;
    const uint8_t *seq = ip + info->ip_header_len + 4;
    uint32_t begin =
        (uint32_t)seq[0] << 24 | (uint32_t)seq[1] << 16 | (uint32_t)seq[2] << 8 | seq[3];
    return c->rx_bytes == 0 && c->pcb->rcv_nxt - begin < len;
}
