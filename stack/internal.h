/*
 * What the files of the packet side share among themselves; core/ sees stack/stack.h only.
 */
#ifndef CULVERT_STACK_INTERNAL_H
#define CULVERT_STACK_INTERNAL_H

#include "lwip/netif.h"
#include "lwip/pbuf.h"
#include "lwip/priv/tcp_priv.h"
#include "stack/aftermath.h"
#include "stack/output.h"
#include "stack/stack.h"

struct tcp_pcb_listen;

enum { TICK_MS = TCP_TMR_INTERVAL };

/*
 * A buffer that a device read fills. It is handed over whole to lwIP as a custom pbuf where its
 * packet is large, and returns to the pool when lwIP or the conn lets go of it.
 */
struct rx_buffer {
    struct pbuf_custom pbuf;
    struct stack *stack;
    struct rx_buffer *next_free;
    _Alignas(64) uint8_t bytes[PACKET_BUFFER_SIZE];
};

enum { BIG_SEGMENTS_MAX = 8, BIG_IOV_MAX = 64 };

/* Segments of one connection that go out as one packet (big_tcp.c). */
struct big_tcp {
    struct iovec iov[BIG_IOV_MAX]; /* their pieces, each one's first beginning with its headers */
    int iov_count;
    int pieces[BIG_SEGMENTS_MAX]; /* of each */
    unsigned segments;            /* 0: none is kept */
    size_t header_len, payload_len;
    uint32_t next_seq;
    uint16_t mss;
};

struct stack {
    struct device *device;
    const struct stack_ops *ops;
    void *ctx;
    bool icmp_reply;
    uint64_t now_ms;
    struct stack_counters *counters, own_counters;

    /* reading */
    struct packet batch[STACK_BATCH_MAX];
    struct rx_buffer *batch_buffers[STACK_BATCH_MAX]; /* allocated as batches first need them */
    struct rx_buffer *free_buffers;
    unsigned free_count;
    struct rx_buffer *reassembled; /* whole packets of this batch, kept until its end */
    size_t rx_held;                /* bytes of memory that received segments take, in all conns */

    /* lwIP */
    struct netif netif;
    struct tcp_pcb_listen *listener;
    struct conn *current; /* the conn that lwIP is working for */
    struct map conns;
    struct link ready;     /* conns with events to be told */
    struct link busy;      /* conns that want ticks */
    uint64_t next_tick_ms; /* of lwIP's timers; meaningful while `busy` has members */
    bool slow_half;        /* lwIP's slow timer runs at every other tick */
    struct link datagrams; /* being reassembled, oldest first */
    unsigned datagram_count;

    struct big_tcp big;
    struct aftermath after; /* TIME_WAIT, and refusals to be repeated */
};

/* The one stack of this process. */
struct stack *stack_instance(void);

/* --- tcp.c ---------------------------------------------------------------------------------- */

int conn_table_init(struct stack *s);
void conn_table_free(struct stack *s);
/* A TCP packet in `p`, parsed; `buffer` is the one it lies in, or NULL when it must be copied. */
void conn_input(struct stack *s, const struct packet *p, const struct packet_info *info,
                struct rx_buffer **buffer);
/* Tell core what happened, until nothing more does. */
void conn_tell_ready(struct stack *s);
void conn_tick(struct stack *s);

/* For calls into lwIP that concern one conn: show it to lwIP, and hide it again. */
void conn_enter(struct stack *s, struct conn *c);
void conn_leave(struct stack *s, struct conn *c);

/* The conn's MSS, for a packet of lwIP's that is on its way out. */
uint16_t conn_mss_of(struct stack *s, const struct endpoint *src, const struct endpoint *dst);

/* --- buffers.c -------------------------------------------------------------------------------- */

struct rx_buffer *rx_buffer_get(struct stack *s); /* NULL when out of memory */
void rx_buffer_put(struct rx_buffer *b);
/* Return what is pooled to the system: after a burst, and at the end. */
void rx_buffers_trim(struct stack *s);
/*
 * The TCP segment in `p` as a pbuf, header first, counted in rx_held until it is freed; NULL when
 * out of memory. In place where lwIP keeps it whole (`*buffer` is then NULL) or not at all, else
 * copied.
 */
struct pbuf *rx_segment_to_pbuf(struct stack *s, const struct packet *p,
                                const struct packet_info *info, struct rx_buffer **buffer);

/* --- window.c --------------------------------------------------------------------------------- */

/* The SYN is about to be fed to lwIP: see to the window that its answer tells of. */
void window_prepare(struct conn *c, size_t room);
/* lwIP has just made the conn's control block, and answered the SYN. */
void window_start(struct conn *c);
/*
 * `n` bytes have been passed on: open the window again, as far as `room` (conn_consume()) and
 * memory allow. True: by enough to tell the application at once.
 */
bool window_open(struct stack *s, struct conn *c, size_t n, size_t room);
/* Is there memory for the segment in the packet at `ip`? False: it is to be dropped. */
bool window_takes(const struct stack *s, const struct conn *c, const uint8_t *ip,
                  const struct packet_info *info);
/*
 * Does the segment in the packet at `ip` go beyond the window from behind a hole, or beyond a FIN
 * that waits there? lwIP would count more than the window has. Such a segment is answered and
 * dropped (RFC 9293, 3.10.7.4); what goes beyond the window from its beginning lwIP cuts off.
 */
bool window_is_overrun(const struct conn *c, const uint8_t *ip, const struct packet_info *info);

/* --- loss.c ----------------------------------------------------------------------------------- */

/* What an application's segment says of what was sent to it, in host byte order. */
struct ack_report {
    uint32_t ack;                  /* sequence numbers, all but `window` */
    uint32_t window;               /* bytes, scaled */
    bool has_duplicate;            /* something came twice */
    bool has_hole;                 /* something beyond `ack` is acknowledged (RFC 2018) */
    uint32_t hole_end, sacked_end; /* where the first hole and the last block end */
};

/* The application has acknowledged the SYN-ACK; lwIP's control block is about to know. */
void loss_start(const struct stack *s, struct conn *c);
/* What the TCP packet at `ip`, parsed, says; before lwIP has it, which alters or frees it. */
struct ack_report loss_read(const struct conn *c, const uint8_t *ip,
                            const struct packet_info *info);
/* lwIP has processed that segment of an open conn: send again what is lost, unless that was done.
 */
void loss_heard(struct stack *s, struct conn *c, const struct ack_report *report);
/* TICK_MS have passed for a conn that lwIP's timers concern. */
void loss_tick(struct stack *s, struct conn *c);

/* --- big_tcp.c -------------------------------------------------------------------------------- */

/* Is the application whose SYN is the IP packet at `syn` one of this machine's, not forwarded? */
bool big_tcp_is_local(const uint8_t *syn);
/*
 * A TCP packet of lwIP's, in `count` pieces of which the first begins with its headers. True: it
 * is sent by big_tcp_flush() at the latest, and must stay as it is until then. False: it is the
 * caller's to send; what was kept has been sent.
 */
bool big_tcp_take(struct stack *s, const struct iovec *iov, int count, size_t header_len,
                  uint16_t mss);
/* Send what is kept. */
void big_tcp_flush(struct stack *s);

/* --- input.c ---------------------------------------------------------------------------------- */

/* Hand one packet to whom it concerns. `buffer` as for conn_input(). */
void input_packet(struct stack *s, const struct packet *p, struct rx_buffer **buffer);

/* --- reassembly.c ----------------------------------------------------------------------------- */

void reassembly_init(struct stack *s);
void reassembly_free(struct stack *s);
/* A fragment at `ip`, parsed. What it completes goes to input_packet(). */
void reassembly_input(struct stack *s, const uint8_t *ip, const struct packet_info *info);
/* The next time that reassembly_tick() is wanted, ms; UINT64_MAX: never. */
uint64_t reassembly_next(const struct stack *s);
void reassembly_tick(struct stack *s);
/* Free what was put together in this batch. */
void reassembly_batch_end(struct stack *s);

#endif
