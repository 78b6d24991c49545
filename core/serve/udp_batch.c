/*
 * Theory of operation
 *
 * The outbox is an array of messages for one sendmmsg(2), each with a run of the iovec array. A
 * datagram joins the last message where it goes to the same place and is of the same size (the
 * last of a run may be shorter), up to what UDP_SEGMENT takes: 64 datagrams, 64 KiB.
 *
 * Whether a segment fits the path's MTU is not known here. If the kernel refuses a joined message
 * (EINVAL, EMSGSIZE, EIO), its datagrams are sent one by one and joining ends for that size and
 * all larger ones on that socket.
 */
#include "core/serve/udp_batch.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    IN_COUNT = 32,
    IN_BYTES = 65536,
    OUT_MESSAGES = 64,
    OUT_PIECES = 1024,
    SEGMENTS_MAX = 64,        /* UDP_MAX_SEGMENTS of kernels before 6.9 */
    JOINED_BYTES_MAX = 65000, /* with its headers an IP packet */
    SEGMENT_BYTES_MAX = 1472, /* worth a try on most links; a loopback's jumbo gains little */
    SOCKET_BUFFER_BYTES = 1024 * 1024,
};

struct out_message {
    struct sockaddr_storage to;
    struct endpoint endpoint;
    bool connected;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))];
    unsigned segments;
    unsigned pieces_each; /* pieces of one datagram */
    size_t segment;       /* bytes of the first datagram, and of all but the last */
    size_t bytes;         /* of all */
};

struct udp_batch {
    struct batch_socket *socket; /* whose datagrams are in the outbox */
    struct mmsghdr out[OUT_MESSAGES];
    struct out_message messages[OUT_MESSAGES];
    struct iovec pieces[OUT_PIECES];
    unsigned out_count, piece_count;
    uint64_t lost;

    struct mmsghdr in[IN_COUNT];
    struct iovec in_pieces[IN_COUNT];
    struct sockaddr_storage in_from[IN_COUNT];
    struct {
        _Alignas(struct cmsghdr) char bytes[CMSG_SPACE(sizeof(int))];
    } in_control[IN_COUNT];
    struct udp_received items[IN_COUNT];
    int in_count;
    uint8_t room[IN_COUNT][UDP_BATCH_HEADROOM + IN_BYTES];
};

struct udp_batch *udp_batch_new(void)
{
    struct udp_batch *b = calloc(1, sizeof *b); /* 2 MiB, of which what is used becomes real */

    if (!b)
        return NULL;
    for (int i = 0; i < IN_COUNT; i++)
        b->in_pieces[i] = (struct iovec){b->room[i] + UDP_BATCH_HEADROOM, IN_BYTES};
    return b;
}

void udp_batch_free(struct udp_batch *b)
{
    free(b);
}

uint64_t udp_batch_lost(const struct udp_batch *b)
{
    return b->lost;
}

/* --- sockets -------------------------------------------------------------------------------- */

/* As the socket's family wants it; `struct addr` keeps IPv4 in the mapped form already. */
static socklen_t socket_address(bool v6, const struct endpoint *e, struct sockaddr_storage *out)
{
    struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)out;

    if (!v6)
        return endpoint_to_sockaddr(e, out);
    memset(out, 0, sizeof *sin6);
    sin6->sin6_family = AF_INET6;
    sin6->sin6_port = htons(e->port);
    memcpy(&sin6->sin6_addr, e->addr.bytes, sizeof sin6->sin6_addr);
    return sizeof *sin6;
}

static void widen(int fd, int option, int forced)
{
    const int bytes = SOCKET_BUFFER_BYTES;
    if (setsockopt(fd, SOL_SOCKET, forced, &bytes, sizeof bytes) < 0)
        (void)setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes);
}

void batch_socket_widen(const struct batch_socket *s)
{
    widen(s->fd, SO_RCVBUF, SO_RCVBUFFORCE);
    widen(s->fd, SO_SNDBUF, SO_SNDBUFFORCE);
}

void batch_socket_init(struct batch_socket *s, int fd, bool v6, bool v6_only)
{
    const int on = 1, off = 0;
    socklen_t len = sizeof(int);
    int probed;

    s->fd = fd;
    s->v6 = v6;
    if (v6)
        (void)setsockopt(s->fd, IPPROTO_IPV6, IPV6_V6ONLY, v6_only ? &on : &off, sizeof on);
    (void)setsockopt(s->fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on);
    bool joins = getsockopt(s->fd, IPPROTO_UDP, UDP_SEGMENT, &probed, &len) == 0;
    s->segment_max = joins ? SEGMENT_BYTES_MAX : 0;
}

void batch_socket_close(struct batch_socket *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

int batch_socket_bind(const struct batch_socket *s, const struct endpoint *to)
{
    struct sockaddr_storage ss;
    socklen_t len = socket_address(s->v6, to, &ss);
    return bind(s->fd, (const struct sockaddr *)&ss, len) < 0 ? -errno : 0;
}

int batch_socket_connect(const struct batch_socket *s, const struct endpoint *to)
{
    struct sockaddr_storage ss;
    socklen_t len = socket_address(s->v6, to, &ss);
    return connect(s->fd, (const struct sockaddr *)&ss, len) < 0 ? -errno : 0;
}

int batch_socket_name(const struct batch_socket *s, struct endpoint *out)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (getsockname(s->fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    return endpoint_from_sockaddr((const struct sockaddr *)&ss, out) ? 0 : -EAFNOSUPPORT;
}

/* --- receiving ------------------------------------------------------------------------------ */

/* What UDP_GRO says of a message: the size of its segments; 0: it is one datagram. */
static size_t joined_segment(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != IPPROTO_UDP || c->cmsg_type != UDP_GRO)
            continue;
        int size;
        memcpy(&size, CMSG_DATA(c), sizeof size);
        return size > 0 ? (size_t)size : 0;
    }
    return 0;
}

static void take_item(struct udp_batch *b, int i)
{
    struct udp_received *item = &b->items[i];
    size_t segment = joined_segment(&b->in[i].msg_hdr);

    item->payload = b->room[i] + UDP_BATCH_HEADROOM;
    item->len = b->in[i].msg_len;
    item->segment = segment > 0 && segment < item->len ? segment : item->len;
    if (!endpoint_from_sockaddr((const struct sockaddr *)&b->in_from[i], &item->from))
        memset(&item->from, 0, sizeof item->from);
}

int udp_batch_receive(struct udp_batch *b, const struct batch_socket *s)
{
    for (int i = 0; i < IN_COUNT; i++)
        b->in[i].msg_hdr = (struct msghdr){.msg_name = &b->in_from[i],
                                           .msg_namelen = sizeof b->in_from[i],
                                           .msg_iov = &b->in_pieces[i],
                                           .msg_iovlen = 1,
                                           .msg_control = &b->in_control[i],
                                           .msg_controllen = sizeof b->in_control[i]};
    int count;
    do
        count = recvmmsg(s->fd, b->in, IN_COUNT, MSG_DONTWAIT, NULL);
    while (count < 0 && errno == EINTR);
    b->in_count = count > 0 ? count : 0;
    if (count < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    for (int i = 0; i < count; i++)
        take_item(b, i);
    return count;
}

const struct udp_received *udp_batch_item(const struct udp_batch *b, int i)
{
    assert(i >= 0 && i < b->in_count);
    return &b->items[i];
}

bool udp_batch_was_full(const struct udp_batch *b)
{
    return b->in_count == IN_COUNT;
}

/* --- sending -------------------------------------------------------------------------------- */

static bool joins(const struct udp_batch *b, const struct out_message *m, const struct endpoint *to,
                  size_t bytes, size_t count)
{
    if (m->segment == 0 || m->segment > b->socket->segment_max || bytes == 0)
        return false;
    if (m->bytes != m->segment * m->segments) /* its last datagram is a short one already */
        return false;
    if (m->pieces_each != count || m->connected != !to)
        return false;
    return bytes <= m->segment && m->segments < SEGMENTS_MAX &&
           m->bytes + bytes <= JOINED_BYTES_MAX && (!to || endpoint_equal(&m->endpoint, to));
}

static void start_message(struct udp_batch *b, const struct endpoint *to, size_t bytes,
                          size_t count)
{
    struct msghdr *h = &b->out[b->out_count].msg_hdr;
    struct out_message *m = &b->messages[b->out_count++];

    *h = (struct msghdr){.msg_iov = &b->pieces[b->piece_count]};
    m->connected = !to;
    m->segments = 0;
    m->pieces_each = (unsigned)count;
    m->segment = bytes;
    m->bytes = 0;
    if (!to)
        return;
    m->endpoint = *to;
    h->msg_name = &m->to;
    h->msg_namelen = socket_address(b->socket->v6, to, &m->to);
}

/* From its second datagram on a message says how it is to be cut. */
static void tell_segment(struct msghdr *h, struct out_message *m)
{
    uint16_t segment = (uint16_t)m->segment;

    h->msg_control = &m->control;
    h->msg_controllen = sizeof m->control;
    struct cmsghdr *c = CMSG_FIRSTHDR(h);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof segment);
    memcpy(CMSG_DATA(c), &segment, sizeof segment);
}

void udp_batch_send(struct udp_batch *b, struct batch_socket *s, const struct endpoint *to,
                    const struct iovec *pieces, size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += pieces[i].iov_len;

    if (b->socket != s || b->piece_count + count > OUT_PIECES)
        udp_batch_flush(b);
    b->socket = s;
    if (b->out_count == 0 || !joins(b, &b->messages[b->out_count - 1], to, bytes, count)) {
        if (b->out_count == OUT_MESSAGES)
            udp_batch_flush(b);
        b->socket = s;
        start_message(b, to, bytes, count);
    }
    struct msghdr *h = &b->out[b->out_count - 1].msg_hdr;
    struct out_message *m = &b->messages[b->out_count - 1];
    memcpy(&b->pieces[b->piece_count], pieces, count * sizeof *pieces);
    b->piece_count += (unsigned)count;
    h->msg_iovlen += count;
    m->bytes += bytes;
    if (++m->segments == 2)
        tell_segment(h, m);
}

/* The kernel does not cut this message: send its datagrams one by one. */
static void send_apart(struct udp_batch *b, unsigned i)
{
    struct out_message *m = &b->messages[i];
    struct msghdr h = b->out[i].msg_hdr;

    b->socket->segment_max = m->segment - 1;
    h.msg_control = NULL;
    h.msg_controllen = 0;
    h.msg_iovlen = m->pieces_each;
    for (unsigned n = 0; n < m->segments; n++) {
        if (sendmsg(b->socket->fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            b->lost++;
        h.msg_iov += m->pieces_each;
    }
}

/* The message at `i` was refused. True: those behind it are worth a try. */
static bool handle_refusal(struct udp_batch *b, unsigned i, int error)
{
    struct out_message *m = &b->messages[i];

    if (m->segments > 1 && (error == EINVAL || error == EMSGSIZE || error == EIO)) {
        send_apart(b, i);
        return true;
    }
    b->lost += m->segments;
    return error != EAGAIN && error != EWOULDBLOCK && error != ENOBUFS;
}

void udp_batch_flush(struct udp_batch *b)
{
    unsigned i = 0;

    while (i < b->out_count) {
        int sent =
            sendmmsg(b->socket->fd, b->out + i, b->out_count - i, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            i += (unsigned)sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        bool go_on = handle_refusal(b, i++, sent < 0 ? errno : EAGAIN);
        for (; !go_on && i < b->out_count; i++)
            b->lost += b->messages[i].segments;
    }
    b->out_count = 0;
    b->piece_count = 0;
    b->socket = NULL;
}
