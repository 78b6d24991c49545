/*
 * Super-packets of more than 64 KiB, which Linux calls BIG TCP.
 *
 * What a super-packet costs beside the copying of its bytes (a system call, the way through the
 * application's kernel, the ACK that it answers with, and our reading that) is a quarter of a bulk
 * download's CPU. lwIP's segments cannot be larger, its lengths having 16 bits; but those that it
 * sends one after the other go out as one packet, of up to PACKET_BIG_MAX bytes: a full segment is
 * kept until it is known whether the next continues it, and no longer than lwIP works
 * (conn_leave()). Until then its memory stays, for lwIP frees what was acknowledged before it sends
 * anew.
 *
 * None is larger than half of the largest window that the application has offered: it is to read
 * one while it is sent the next, and its kernel drops what its receive buffer has no room for.
 *
 * Only applications of this machine get them. The kernel forwards such a packet, too, but most
 * devices take none (gso_max_size): it would be cut in software into packets of an MTU each, where
 * a super-packet of 64 KiB goes to a container whole. Who was forwarded shows by the hop limit of
 * its SYN, of which routers, this machine included, take one each (RFC 791 3.2, RFC 8200 3), so
 * that it no longer is one that systems begin with. Nothing but speed depends on that.
 *
 * Nor do connections that have lost something: of few large packets fewer come after the one that
 * is lost, by which to hear of it (loss.c).
 *
 * A kernel may refuse them all (before Linux 6.6 a TUN device takes no packet of more than 17
 * pages), or one, for want of memory in one piece. Then the segments go one by one.
 */
#include <errno.h>
#include <string.h>

#include "lwip/prot/ip4.h"
#include "lwip/prot/ip6.h"
#include "lwip/prot/tcp.h"
#include "stack/internal.h"

enum {
    BEGIN_BYTES = 32 * 1024, /* of payload: what is shorter comes from a small window */
    SPARE_BYTES = 128,       /* for headers, a jumbo payload option included */
};
_Static_assert((int)BIG_IOV_MAX >= (int)OUTPUT_IOV_MAX, "one segment can always be kept");

bool big_tcp_is_local(const uint8_t *syn)
{
    uint8_t hops = syn[0] >> 4 == 4 ? syn[8] : syn[7];
    return hops == 64 || hops == 128 || hops == 255;
}

/* lwIP puts no options or extensions into its IP headers. */
static struct tcp_hdr *tcp_header(const struct iovec *first)
{
    uint8_t *ip = first->iov_base;
    return (struct tcp_hdr *)(ip + (ip[0] >> 4 == 4 ? IP_HLEN : IP6_HLEN));
}

static bool is_plain_data(const struct tcp_hdr *tcp)
{
    return (TCPH_FLAGS(tcp) & ~TCP_PSH) == TCP_ACK;
}

/* Two headers of one connection, of equal length: do they say the same but for the sequence? */
static bool say_the_same(const struct tcp_hdr *a, const struct tcp_hdr *b)
{
    size_t options_len = TCPH_HDRLEN_BYTES(a) - (size_t)TCP_HLEN;
    return a->ackno == b->ackno && a->wnd == b->wnd && memcmp(a + 1, b + 1, options_len) == 0;
}

static bool may_begin(const struct stack *s, size_t payload_len, uint16_t mss)
{
    return s->device->caps.big_tcp && s->current && s->current->joins &&
           payload_len >= BEGIN_BYTES && payload_len % mss == 0;
}

/* Is the packet still of use when that much more has joined it? */
static bool has_room(const struct stack *s, const struct big_tcp *b, size_t payload_len, int count)
{
    size_t joined = b->payload_len + payload_len;
    return b->iov_count + count <= BIG_IOV_MAX && joined + SPARE_BYTES <= PACKET_BIG_MAX &&
           joined <= s->current->pcb->snd_wnd_max / 2;
}

static bool continues(const struct big_tcp *b, const struct iovec *iov, size_t header_len,
                      uint16_t mss)
{
    return header_len == b->header_len && mss == b->mss &&
           lwip_ntohl(tcp_header(iov)->seqno) == b->next_seq &&
           say_the_same(tcp_header(b->iov), tcp_header(iov));
}

static void keep(struct big_tcp *b, const struct iovec *iov, int count, size_t payload_len)
{
    memcpy(b->iov + b->iov_count, iov, (size_t)count * sizeof(*iov));
    b->iov_count += count;
    b->pieces[b->segments++] = count;
    b->payload_len += payload_len;
    b->next_seq = lwip_ntohl(tcp_header(iov)->seqno) + (uint32_t)payload_len;
    if (TCPH_FLAGS(tcp_header(iov)) & TCP_PSH)
        TCPH_SET_FLAG(tcp_header(b->iov), TCP_PSH);
}

bool big_tcp_take(struct stack *s, const struct iovec *iov, int count, size_t header_len,
                  uint16_t mss)
{
    struct big_tcp *b = &s->big;
    size_t payload_len = 0;
    for (int i = 0; i < count; i++)
        payload_len += iov[i].iov_len;
    payload_len -= header_len;
    bool plain = payload_len > 0 && is_plain_data(tcp_header(iov));
    if (b->segments > 0 &&
        !(plain && has_room(s, b, payload_len, count) && continues(b, iov, header_len, mss)))
        big_tcp_flush(s);
    if (b->segments == 0) {
        if (!plain || !may_begin(s, payload_len, mss))
            return false;
        b->header_len = header_len;
        b->mss = mss;
        b->iov_count = 0;
        b->payload_len = 0;
    }
    keep(b, iov, count, payload_len);
    if (b->segments == BIG_SEGMENTS_MAX || b->payload_len % mss != 0)
        big_tcp_flush(s);
    return true;
}

static int send_joined(const struct stack *s, const struct big_tcp *b)
{
    struct iovec iov[2 + BIG_IOV_MAX] = {
        [1] = {.iov_base = b->iov[0].iov_base, .iov_len = b->header_len},
    };
    int count = 2;
    const struct iovec *from = b->iov;
    for (unsigned i = 0; i < b->segments; i++) {
        size_t skip = b->header_len;
        for (int left = b->pieces[i]; left > 0; left--, from++, skip = 0) {
            if (from->iov_len > skip)
                iov[count++] = (struct iovec){.iov_base = (uint8_t *)from->iov_base + skip,
                                              .iov_len = from->iov_len - skip};
        }
    }
    return output_big_tcp(s->device, iov, count, b->header_len, b->mss);
}

static void send_each(const struct stack *s, const struct big_tcp *b)
{
    const struct iovec *from = b->iov;
    for (unsigned i = 0; i < b->segments; from += b->pieces[i++]) {
        struct iovec iov[OUTPUT_IOV_MAX];
        memcpy(iov + 1, from, (size_t)b->pieces[i] * sizeof(*iov));
        output_tcp(s->device, iov, 1 + b->pieces[i], b->header_len, b->mss);
    }
}

void big_tcp_flush(struct stack *s)
{
    struct big_tcp *b = &s->big;
    if (b->segments == 0)
        return;
    int error = b->segments > 1 ? send_joined(s, b) : -EINVAL;
    if (error == -EMSGSIZE)
        s->device->caps.big_tcp = false;
    if (error == -EMSGSIZE || error == -EAGAIN || error == -EINVAL)
        send_each(s, b);
    b->segments = 0;
}
