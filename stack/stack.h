/*
 * The packet side as core/ sees it: packets go in, flows come out, and the other way round.
 * lwIP lives behind this header and nowhere else; there is one stack a process, since lwIP's
 * state is global.
 *
 *   device -> packet.c (parse) -> tcp.c -> lwIP -> struct conn -> ops->conn_ready()
 *                              `-> udp.c -> ops->datagram()
 *                              `-> reassembly.c -> back to packet.c
 *
 * Time is passed in; nothing here waits. No call into the stack calls back, with one exception:
 * stack_receive() and stack_tick(). They call ops when lwIP has finished with the batch, so that
 * a callback may call anything in this header.
 */
#ifndef CULVERT_STACK_STACK_H
#define CULVERT_STACK_STACK_H

#include "core/base/list.h"
#include "core/base/map.h"
#include "stack/device.h"
#include "stack/packet.h"

struct stack;
struct tcp_pcb;
struct pbuf;

/* What happened to a conn since ops->conn_ready() was last called for it. */
enum {
    CONN_OPENED = 1,  /* the application completed the handshake that was accepted */
    CONN_DATA = 2,    /* conn_peek() has new bytes */
    CONN_FIN = 4,     /* the application sends no more, after what conn_peek() has */
    CONN_ROOM = 8,    /* conn_room() may have grown */
    CONN_RESET = 16,  /* over: reset by the application, timed out, or given up while held */
    CONN_CLOSED = 32, /* over: closed in both directions and acknowledged */
};

/*
 * A piece of memory that the stack reads from until the application has acknowledged what lies
 * in it. Owned by the stack from conn_send() to release(), which may come from within any call
 * into the stack. One chunk serves one conn; parts of it may be sent one after the other.
 */
struct chunk {
    struct chunk *next;
    void (*release)(struct chunk *chunk);
    uint32_t end_seq; /* the sequence number after its last byte that was queued */
    bool queued;
};

/*
 * One TCP connection of an application, embedded in core's flow and zeroed by it. The flow may be
 * freed after conn_refuse() or conn_abort(); CONN_RESET and CONN_CLOSED say that nothing more
 * comes, and what was received before can still be read. All fields but `owner` are the stack's.
 */
struct conn {
    struct map_entry by_tuple; /* key: `src` and `dst` */
    struct endpoint src;       /* the application */
    struct endpoint dst;       /* where it wants to go */
    struct link ready;         /* in the stack's list of conns with events */
    struct link busy;          /* in the list of those that lwIP's timers concern */
    struct tcp_pcb *pcb;       /* NULL while the SYN is held, and once it is over */
    struct pbuf *held_syn;
    struct pbuf *rx, *rx_last;  /* received and not consumed */
    struct chunk *tx, *tx_last; /* sent and not acknowledged, in order */
    uint64_t heard_ms;          /* when a segment last came */
    uint32_t seen_edge;         /* right edge of the window at the last CONN_ROOM */
    uint32_t seen_ack;          /* what was acknowledged then */
    uint32_t rx_bytes;          /* in `rx` */
    uint32_t window_withheld;   /* bytes by which its window is smaller than it may be */
    uint32_t window_owed;       /* ... and by which it is smaller still, for want of room */
    uint16_t held_ip_len;       /* bytes of held_syn before its TCP header */
    uint16_t mss;               /* negotiated, bytes; 0 before that */
    uint8_t events;
    uint8_t state;   /* enum conn_state, stack/tcp.c */
    uint8_t owner;   /* for core: which of its structures embeds this conn */
    bool fin_wanted; /* conn_shutdown() was called */
    bool joins;      /* may be sent packets above 64 KiB: big_tcp.c */
    /* Losses, loss.c: */
    uint32_t resent_end;    /* sequence number; what lies before it was sent again */
    uint32_t resent_before; /* ... and what lies here or beyond was sent later than that */
    uint32_t sent_ms;       /* when the SYN-ACK went out, or all was sent again for silence */
    bool resending;         /* what lies before `resent_end` is not acknowledged yet */
    bool is_near;           /* the SYN-ACK was acknowledged soon: silence tells of a loss */
    bool is_hurried;        /* all was sent again for silence, and nothing is acknowledged yet */
    uint8_t silent_ticks;   /* with much under way and nothing acknowledged */
};

enum { STACK_BATCH_MAX = 64 };

struct stack_ops {
    /*
     * A SYN for a new flow. Return its conn (zeroed, inside a flow), whose SYN is held until
     * conn_accept() or conn_refuse() (either not before the return), or NULL: answered with RST.
     */
    struct conn *(*conn_open)(void *ctx, const struct endpoint *src, const struct endpoint *dst);
    void (*conn_ready)(void *ctx, struct conn *conn, unsigned events);
    /*
     * A UDP datagram from `src` to `dst`. `payload` has `headroom` writable bytes before it (at
     * least 300), and stays valid and the callee's to modify until ops->batch_end(). A super-packet
     * comes as `gso_size` not 0: several datagrams of that size back to back (the headroom is
     * before the first only).
     */
    void (*datagram)(void *ctx, const struct endpoint *src, const struct endpoint *dst,
                     uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom);
    /* The batch was handed out: send what was gathered. */
    void (*batch_end)(void *ctx);
};

struct stack_config {
    bool icmp_reply;                 /* --icmp reply */
    uint64_t now_ms;                 /* monotonic */
    struct stack_counters *counters; /* where to count; NULL: in the stack itself */
};

struct stack_counters {
    uint64_t packets_in, packets_out, bytes_in, bytes_out;
    uint64_t drops[PACKET_DROP_COUNT];
    uint64_t conns_opened; /* SYNs that became a conn */
    uint64_t conns;        /* gauge: conns that exist */
};

/* The device stays the caller's. One stack a process. NULL when out of memory. */
struct stack *stack_new(struct device *device, const struct stack_config *config,
                        const struct stack_ops *ops, void *ctx);
/* Every conn must be gone (conn_abort()). */
void stack_free(struct stack *s);

/*
 * Read and process up to `max_packets` (1 to STACK_BATCH_MAX) packets. Returns how many there
 * were (fewer than asked for: the device is empty), or -errno when it is gone.
 */
int stack_receive(struct stack *s, unsigned max_packets, uint64_t now_ms);
/*
 * When stack_tick() wants to be called next: a monotonic time in ms; UINT64_MAX while nothing
 * needs time.
 */
uint64_t stack_next_tick(const struct stack *s);
void stack_tick(struct stack *s, uint64_t now_ms);
/* Time has passed since either of them; before conn_accept(), which times the handshake. */
void stack_set_time(struct stack *s, uint64_t now_ms);
/* Give the pooled receive buffers back, up to 12 MB after a burst; they are made anew when needed.
 */
void stack_trim(struct stack *s);
const struct stack_counters *stack_counters(const struct stack *s);

/* --- TCP ------------------------------------------------------------------------------------ */

/* How a held SYN is refused. */
enum refusal {
    REFUSE_RESET, /* RST: ECONNREFUSED */
    REFUSE_NETWORK,
    REFUSE_HOST,
    REFUSE_PROHIBITED, /* ICMP, as enum unreachable */
    REFUSE_SILENTLY,   /* nothing is sent */
};
/*
 * The target has connected: feed the held SYN to lwIP. CONN_OPENED or CONN_RESET follows. `room` as
 * for conn_consume().
 */
void conn_accept(struct stack *s, struct conn *c, size_t room);
/*
 * Refuse the held SYN; the conn is gone. ICMP errors are repeated a moment later, and the same
 * answer is given to a retransmitted SYN for a while: an ICMP that meets a connect() that still
 * holds its socket is lost (LockDroppedIcmps).
 */
void conn_refuse(struct stack *s, struct conn *c, enum refusal how);

/* Gather what was received and not consumed into at most `max` entries; returns how many. */
int conn_peek(const struct conn *c, struct iovec *iov, int max);
/*
 * `n` bytes have been passed on, and `room` more would be at once, as far as is known (SIZE_MAX:
 * any number): these are acknowledged, and the window opens by no more than that.
 */
void conn_consume(struct stack *s, struct conn *c, size_t n, size_t room);
/*
 * Is `room` too little a promise to consume `n` bytes with? Then it pays to find out how much there
 * really is.
 */
bool conn_wants_room(const struct conn *c, size_t n, size_t room);
/*
 * Has the application next to nothing that it may send, for want of room? Then conn_consume() of 0
 * bytes is to follow as soon as there is room.
 */
bool conn_window_is_short(const struct conn *c);

/*
 * Bytes that conn_send() would take now without delay: window, congestion window and buffer, at
 * most one super-packet. Not 0 when nothing is in flight: a closed window has to be probed.
 */
size_t conn_room(const struct conn *c);
/*
 * The same without the limit of one super-packet: what several conn_send(), each of at most
 * conn_segment() bytes and all before the next conn_flush(), would take.
 */
size_t conn_budget(const struct conn *c);
/* The payload of one super-packet to this application, bytes; 0 once the conn is over. */
size_t conn_segment(const struct conn *c);
/*
 * Queue `len` bytes (1 to 65,535, within conn_room() or conn_budget()) of `chunk` at `bytes`, by
 * reference. 0 or -ENOMEM or -ENOTCONN; then the conn is of no more use: conn_abort(). Sent by
 * conn_flush().
 */
int conn_send(struct stack *s, struct conn *c, struct chunk *chunk, const void *bytes, size_t len);
/* Bytes queued that the application has not acknowledged. */
size_t conn_unacknowledged(const struct conn *c);
void conn_flush(struct stack *s, struct conn *c);
/* FIN after what was queued. The other direction goes on. */
void conn_shutdown(struct stack *s, struct conn *c);
/* RST, unless it is over already. The conn is gone: chunks are released, what was received too. */
void conn_abort(struct stack *s, struct conn *c);
/* Is it over (CONN_RESET, CONN_CLOSED)? Then conn_abort() only lets go of it and sends nothing. */
bool conn_is_over(const struct conn *c);
/* When the application was last heard of, be it by a keep-alive: monotonic ms. */
uint64_t conn_heard_ms(const struct conn *c);

/* --- UDP and ICMP --------------------------------------------------------------------------- */

/* A datagram to the application at `dst`, as if from `src`; see output_udp(). */
int stack_send_datagram(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                        const void *payload, size_t len, uint16_t gso_size);
/*
 * Tell the application at `src` that `dst` cannot be reached; `payload` is the datagram that was
 * refused (its beginning is quoted).
 */
void stack_send_unreachable(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                            const void *payload, size_t len, enum unreachable why);

#endif
