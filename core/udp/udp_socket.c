/*
 * Theory: the packets of one batch from the tunnel come from one or from many sources, each with
 * a socket of its own. Datagrams are noted as units in one array, chained by socket, and sent
 * when the batch is over, while the packets that they lie in are still valid: one sendmmsg() a
 * socket. Neighbours in a chain that have the same size become one message with UDP_SEGMENT (a
 * shorter one may end the run), which crosses the kernel's stack once.
 *
 * UDP_SEGMENT has limits that show only when it is used: a segment must fit the path's MTU, and
 * the outgoing device must be able to compute checksums. Where the kernel refuses a run, its
 * datagrams are sent one by one, and the socket remembers from which size on not to try again.
 *
 * A connected socket reports the ICMP error that an earlier datagram caused at the next call,
 * whatever that is. Such a pending error says nothing about the datagram at hand, so sending is
 * tried once more.
 *
 * Receiving is level-triggered, one recvmmsg() an event: no extra call to hear EAGAIN, and a
 * socket with much to read cannot keep the others waiting.
 */
#include "core/udp/udp_socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/memory.h"

enum {
    UNITS_MAX = 256,       /* datagrams gathered at most */
    NO_UNIT = 0xffff,      /* ends a chain */
    MESSAGES_MAX = 64,     /* a sendmmsg() call */
    RUN_SEGMENTS_MAX = 64, /* UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.10 */
    RUN_BYTES_MAX = 65000, /* a run is an IP packet inside the kernel: below 65,507 */
    RECEIVE_MESSAGES = 32, /* a recvmmsg() call */
    RECEIVE_BYTES = 65536, /* a buffer: any datagram, any run */
    SOCKET_BUFFER = 1 << 20,
    FAILURES_MAX = 64,
};

/* --- sockets ---------------------------------------------------------------------------------- */

void udp_socket_init(struct udp_socket *s)
{
    memset(s, 0, sizeof(*s));
    s->fd = -1;
    s->first_unit = s->last_unit = NO_UNIT;
    s->gso_limit = UINT32_MAX;
    list_init(&s->dirty);
}

/* Bursts of small datagrams overrun the default. What the kernel does not grant does not matter. */
static void enlarge_buffers(int fd)
{
    int size = SOCKET_BUFFER;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) != 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static int connect_socket(int fd, const struct endpoint *peer)
{
    struct sockaddr_storage sa;
    socklen_t len = endpoint_to_sockaddr(peer, &sa);
    return connect(fd, (struct sockaddr *)&sa, len) == 0 ? 0 : -errno;
}

int udp_socket_open(struct udp_socket *s, int family, const struct endpoint *peer,
                    const struct outbound_options *outbound)
{
    int on = 1;
    int fd = outbound_open(outbound, family, SOCK_DGRAM);
    if (fd < 0)
        return fd;
    int error = peer ? connect_socket(fd, peer) : 0;
    if (error < 0) {
        close(fd);
        return error;
    }
    if (!outbound->broker) /* whose sockets have large ones already */
        enlarge_buffers(fd);
    (void)setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)); /* Linux 5.0; without it, no runs */
    s->fd = fd;
    s->gso_limit = UINT32_MAX;
    s->failures = 0;
    return 0;
}

void udp_socket_close(struct udp_socket *s)
{
    loop_ignore(&s->io);
    list_remove(&s->dirty);
    s->first_unit = s->last_unit = NO_UNIT;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

/* --- sending ---------------------------------------------------------------------------------- */

struct unit {
    const uint8_t *header;
    const uint8_t *payload;
    uint32_t len;
    uint16_t header_len;
    uint16_t next;
    struct endpoint to; /* port 0: the connected peer; nobody sends to port 0 */
};

union segment_control {
    struct cmsghdr header; /* for its alignment */
    char bytes[CMSG_SPACE(sizeof(uint16_t))];
};

/* The units that one message is made of. */
struct span {
    uint16_t first;
    uint16_t after; /* the unit behind it, or NO_UNIT */
    uint32_t size;  /* of its datagrams, the last may be shorter */
    uint16_t count;
};

struct udp_sender {
    struct link dirty;
    unsigned unit_count;
    struct unit units[UNITS_MAX];
    /* one sendmmsg() call */
    unsigned message_count;
    unsigned iov_count;
    struct mmsghdr messages[MESSAGES_MAX];
    struct span spans[MESSAGES_MAX];
    union segment_control control[MESSAGES_MAX];
    struct sockaddr_storage names[MESSAGES_MAX];
    struct iovec iov[2 * UNITS_MAX];
};

struct udp_sender *udp_sender_new(void)
{
    struct udp_sender *sender = memory_zeroed(sizeof(*sender));
    if (sender)
        list_init(&sender->dirty);
    return sender;
}

void udp_sender_free(struct udp_sender *sender)
{
    free(sender);
}

void udp_sender_add(struct udp_sender *sender, struct udp_socket *s, const struct udp_unit *unit)
{
    if (sender->unit_count == UNITS_MAX)
        udp_sender_flush(sender);
    uint16_t at = (uint16_t)sender->unit_count++;
    sender->units[at] = (struct unit){
        .header = unit->header,
        .payload = unit->payload,
        .len = (uint32_t)unit->len,
        .header_len = (uint16_t)unit->header_len,
        .next = NO_UNIT,
    };
    if (unit->to)
        sender->units[at].to = *unit->to;
    if (s->first_unit == NO_UNIT) {
        s->first_unit = at;
        list_push_back(&sender->dirty, &s->dirty);
    } else {
        sender->units[s->last_unit].next = at;
    }
    s->last_unit = at;
}

static uint32_t unit_size(const struct unit *u)
{
    return u->header_len + u->len;
}

/* How far does a run that begins with `first` reach? */
static struct span find_span(const struct udp_sender *sender, const struct udp_socket *s,
                             uint16_t first)
{
    const struct unit *u = &sender->units[first];
    struct span span = {.first = first, .after = u->next, .size = unit_size(u), .count = 1};
    if (span.size == 0 || span.size >= s->gso_limit)
        return span;
    uint32_t total = span.size;
    uint32_t last = span.size;
    while (span.after != NO_UNIT && last == span.size && span.count < RUN_SEGMENTS_MAX) {
        const struct unit *next = &sender->units[span.after];
        last = unit_size(next);
        if (last == 0 || last > span.size || total + last > RUN_BYTES_MAX ||
            !endpoint_equal(&next->to, &u->to))
            break;
        total += last;
        span.count++;
        span.after = next->next;
    }
    return span;
}

static void add_iov(struct udp_sender *sender, const uint8_t *bytes, size_t len)
{
    struct iovec *iov = &sender->iov[sender->iov_count++];
    iov->iov_base = (void *)(uintptr_t)bytes;
    iov->iov_len = len;
}

static void gather_span(struct udp_sender *sender, const struct span *span)
{
    for (uint16_t at = span->first; at != span->after; at = sender->units[at].next) {
        const struct unit *u = &sender->units[at];
        bool contiguous = u->header_len > 0 && u->header + u->header_len == u->payload;
        if (contiguous) {
            add_iov(sender, u->header, unit_size(u));
            continue;
        }
        if (u->header_len > 0)
            add_iov(sender, u->header, u->header_len);
        add_iov(sender, u->payload, u->len);
    }
}

static void set_segment_size(struct msghdr *m, union segment_control *control, uint16_t size)
{
    m->msg_control = control->bytes;
    m->msg_controllen = sizeof(control->bytes);
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(size));
    memcpy(CMSG_DATA(c), &size, sizeof(size));
}

static void add_message(struct udp_sender *sender, const struct span *span)
{
    unsigned i = sender->message_count++;
    struct msghdr *m = &sender->messages[i].msg_hdr;
    const struct endpoint *to = &sender->units[span->first].to;
    memset(m, 0, sizeof(*m));
    sender->spans[i] = *span;
    m->msg_iov = &sender->iov[sender->iov_count];
    gather_span(sender, span);
    m->msg_iovlen = (size_t)(&sender->iov[sender->iov_count] - m->msg_iov);
    if (to->port != 0) {
        m->msg_name = &sender->names[i];
        m->msg_namelen = endpoint_to_sockaddr(to, &sender->names[i]);
    }
    if (span->count > 1)
        set_segment_size(m, &sender->control[i], (uint16_t)span->size);
}

/* The first message was refused with `error`. Returns the unit to go on with. */
static uint16_t after_error(struct udp_sender *sender, struct udp_socket *s, int error)
{
    const struct span *span = &sender->spans[0];
    bool run_refused = error == EINVAL || error == EIO || error == EMSGSIZE || error == EOPNOTSUPP;
    if (span->count > 1 && run_refused) {
        s->gso_limit = span->size;
        return span->first;
    }
    if (error == EAGAIN || error == ENOBUFS || error == ENOMEM)
        return NO_UNIT; /* no room for the rest either */
    s->retried = !s->retried;
    return s->retried ? span->first : span->after;
}

/* One sendmmsg() call, beginning with unit `at`. Returns the unit to go on with. */
static uint16_t send_some(struct udp_sender *sender, struct udp_socket *s, uint16_t at)
{
    sender->message_count = sender->iov_count = 0;
    while (at != NO_UNIT && sender->message_count < MESSAGES_MAX) {
        struct span span = find_span(sender, s, at);
        add_message(sender, &span);
        at = span.after;
    }
    int sent =
        sendmmsg(s->fd, sender->messages, sender->message_count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return after_error(sender, s, errno);
    s->retried = false;
    return sent > 0 ? sender->spans[sent - 1].after : NO_UNIT;
}

void udp_sender_flush(struct udp_sender *sender)
{
    LIST_EACH (it, &sender->dirty) {
        struct udp_socket *s = CONTAINER_OF(it, struct udp_socket, dirty);
        uint16_t at = s->first_unit;
        while (at != NO_UNIT)
            at = send_some(sender, s, at);
        s->first_unit = s->last_unit = NO_UNIT;
        s->retried = false;
        list_remove(it);
    }
    sender->unit_count = 0;
}

/* --- receiving -------------------------------------------------------------------------------- */

union run_control {
    struct cmsghdr header; /* for its alignment */
    char bytes[CMSG_SPACE(sizeof(int))];
};

struct udp_receiver {
    uint8_t *memory; /* RECEIVE_MESSAGES buffers; pages come as they are written to */
    struct mmsghdr messages[RECEIVE_MESSAGES];
    struct iovec iov[RECEIVE_MESSAGES];
    struct sockaddr_storage names[RECEIVE_MESSAGES];
    union run_control control[RECEIVE_MESSAGES];
};

enum { RECEIVE_MEMORY = RECEIVE_MESSAGES * RECEIVE_BYTES };

struct udp_receiver *udp_receiver_new(void)
{
    struct udp_receiver *r = memory_zeroed(sizeof(*r));
    if (!r)
        return NULL;
    void *memory = mmap(NULL, RECEIVE_MEMORY, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        free(r);
        return NULL;
    }
    r->memory = memory;
    for (size_t i = 0; i < RECEIVE_MESSAGES; i++) {
        struct msghdr *m = &r->messages[i].msg_hdr;
        r->iov[i].iov_base = r->memory + i * RECEIVE_BYTES;
        r->iov[i].iov_len = RECEIVE_BYTES;
        m->msg_iov = &r->iov[i];
        m->msg_iovlen = 1;
        m->msg_name = &r->names[i];
        m->msg_control = r->control[i].bytes;
    }
    return r;
}

void udp_receiver_free(struct udp_receiver *receiver)
{
    if (!receiver)
        return;
    (void)munmap(receiver->memory, RECEIVE_MEMORY);
    free(receiver);
}

void udp_receiver_trim(struct udp_receiver *receiver)
{
    (void)madvise(receiver->memory, RECEIVE_MEMORY, MADV_DONTNEED);
}

/* The size of the datagrams in a message: UDP_GRO's, or the message is one datagram. */
static size_t segment_size(struct msghdr *m, size_t len)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        int size = 0;
        if (c->cmsg_level != SOL_UDP || c->cmsg_type != UDP_GRO)
            continue;
        memcpy(&size, CMSG_DATA(c), sizeof(size));
        if (size > 0)
            return (size_t)size;
    }
    return len;
}

static int hand_out(struct udp_receiver *r, unsigned i, udp_receive_fn *fn, void *arg)
{
    struct msghdr *m = &r->messages[i].msg_hdr;
    struct udp_received received = {
        .bytes = r->iov[i].iov_base,
        .end = (uint8_t *)r->iov[i].iov_base + RECEIVE_BYTES,
    };
    size_t left = r->messages[i].msg_len;
    size_t size = segment_size(m, left);
    if ((m->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        !endpoint_from_sockaddr(m->msg_name, &received.from))
        return 0;
    int count = 0;
    do {
        received.len = left < size ? left : size;
        fn(arg, &received);
        received.bytes += received.len;
        left -= received.len;
        count++;
    } while (left > 0);
    return count;
}

/* What is pending on the socket is reported once; what comes again and again is there to stay. */
static int after_receive_error(struct udp_socket *s, int error)
{
    if (error == EAGAIN || error == EINTR)
        return 0;
    if (s->failures < FAILURES_MAX) {
        s->failures++;
        return 0;
    }
    return -error;
}

int udp_receiver_read(struct udp_receiver *receiver, struct udp_socket *s, udp_receive_fn *fn,
                      void *arg)
{
    for (size_t i = 0; i < RECEIVE_MESSAGES; i++) {
        receiver->messages[i].msg_hdr.msg_namelen = sizeof(receiver->names[i]);
        receiver->messages[i].msg_hdr.msg_controllen = sizeof(receiver->control[i].bytes);
    }
    int n = recvmmsg(s->fd, receiver->messages, RECEIVE_MESSAGES, MSG_DONTWAIT, NULL);
    if (n < 0)
        return after_receive_error(s, errno);
    s->failures = 0;
    int datagrams = 0;
    for (int i = 0; i < n && s->fd >= 0; i++)
        datagrams += hand_out(receiver, (unsigned)i, fn, arg);
    return datagrams;
}
