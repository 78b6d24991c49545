/*
 * What TCP flows, UDP associations and DNS share in one worker: the context that the stack's
 * callbacks get, and the limits.
 */
#ifndef CULVERT_FLOWS_H
#define CULVERT_FLOWS_H

#include "core/dns/dns.h"
#include "core/loop.h"
#include "core/proxy/proxy.h"
#include "stack/stack.h"

enum udp_mode { UDP_ASSOCIATE, UDP_BLOCK };

struct flow_limits {
    unsigned tcp_idle_timeout_s; /* seconds */
    unsigned udp_idle_timeout_s;
    unsigned max_flows; /* TCP flows and UDP associations together */
    enum udp_mode udp_mode;
};

struct tcp_flows; /* core/tcp_flow.c: TCP flows */
struct udp_flows; /* core/udp/udp_flow.c: UDP associations */
struct dns_front; /* core/dns/dns_front.c: queries on UDP and TCP port 53 */

/* Which of core's structures embeds a conn: conn.owner. */
enum conn_owner { CONN_OWNER_TCP_FLOW, CONN_OWNER_DNS };

struct worker {
    struct loop *loop;
    struct stack *stack;
    struct device *device;
    struct resolver *resolver;
    struct proxy *proxy;
    struct dns *dns;
    const struct flow_limits *limits;
    struct tcp_flows *tcp;
    struct udp_flows *udp;
    struct dns_front *dns_front;
    struct loop_io device_io;
    struct loop_timer tick;
    uint32_t flow_count;   /* TCP flows and UDP associations */
    uint64_t next_flow_id; /* for the log */
    bool relayed;          /* by a flow, since it was last looked at: for --low-latency */
    int error;             /* why the loop was stopped: 0, or the device's -errno */
    /* The last association has ended: time to give memory back. NULL: nobody wants to know. */
    void (*on_quiet)(struct worker *w);
};

/* Each *_new() returns NULL when out of memory. The worker outlives them. */
struct tcp_flows *tcp_flows_new(struct worker *w);
/* Aborts every flow. */
void tcp_flows_free(struct tcp_flows *t);
/* stack_ops.conn_open and .conn_ready, for what is not DNS. */
struct conn *tcp_flows_open(struct tcp_flows *t, const struct endpoint *src,
                            const struct endpoint *dst);
void tcp_flows_ready(struct tcp_flows *t, struct conn *conn, unsigned events);
/*
 * Give up one flow: the oldest that is half open, else the one idle longest. False: there is none.
 */
bool tcp_flows_evict(struct tcp_flows *t);

/* Is there an application whose last bytes, or the end of them, have not been passed on? */
bool tcp_flows_sending(const struct tcp_flows *t);

/* Give pooled buffers back to the system, when all is quiet. */
void tcp_flows_trim(struct tcp_flows *t);

struct udp_flows *udp_flows_new(struct worker *w);
void udp_flows_free(struct udp_flows *u);
/* A datagram (or a super-packet) from the tunnel; see stack_ops.datagram for payload's contract. */
void udp_flows_datagram(struct udp_flows *u, const struct endpoint *src, const struct endpoint *dst,
                        uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom);
/* The batch is over: payloads are about to become invalid, send them. */
void udp_flows_batch_end(struct udp_flows *u);
/*
 * Are there datagrams that wait for their association, or that were relayed a moment ago? The
 * proxy may forget those if the association ended now.
 */
bool udp_flows_sending(const struct udp_flows *u);
/* Give up the association idle longest; false when there is none. */
bool udp_flows_evict(struct udp_flows *u);

struct dns_front *dns_front_new(struct worker *w);
void dns_front_free(struct dns_front *f);
/* Is this destination DNS that the policy takes (port 53, mode not relay)? Same for UDP and TCP. */
bool dns_front_takes(const struct dns_front *f, const struct endpoint *dst);
/* One datagram to port 53. */
void dns_front_datagram(struct dns_front *f, const struct endpoint *src, const struct endpoint *dst,
                        const uint8_t *payload, size_t len);
/*
 * A TCP connection to port 53: returns the conn inside a session of its own (conn_accept()ed at the
 * turn's end, RFC 7766 framing, pipelined), or NULL when out of memory. Its events go to
 * dns_front_ready().
 */
struct conn *dns_front_open(struct dns_front *f, const struct endpoint *src,
                            const struct endpoint *dst);
void dns_front_ready(struct dns_front *f, struct conn *conn, unsigned events);

#endif
