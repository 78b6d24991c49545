/*
 * Connections that are over and must still be answered: TIME_WAIT, and refused SYNs.
 *
 * lwIP's own TIME_WAIT list is walked for every packet, is ticked, and never accepts a new SYN;
 * so what TIME_WAIT needs is kept here, in 1/4 of the memory, found by hash, and ends early for
 * a SYN that RFC 9293 3.10.7.4 (and RFC 6191 in spirit) permits: one beyond what was received.
 *
 * A refusal by ICMP that meets a connect() which holds its socket's lock is lost in Linux
 * (LockDroppedIcmps), so it is repeated twice, and a retransmitted SYN is answered in the same
 * way for a few seconds, instead of asking the proxy again.
 *
 * Both are bounded in number and the oldest gives way.
 */
#ifndef CULVERT_STACK_AFTERMATH_H
#define CULVERT_STACK_AFTERMATH_H

#include "core/base/list.h"
#include "core/base/map.h"
#include "stack/packet.h"

struct stack;
enum refusal;

enum {
    AFTERMATH_MAX = 16384,
    AFTERMATH_TIME_WAIT_MS = 60000, /* as Linux: what the applications' own kernels use */
    AFTERMATH_REFUSED_MS = 4000,    /* past the first retransmissions, at 1 and 3 seconds */
    AFTERMATH_QUOTE_MAX = 60,       /* of the SYN: headers without options */
    AFTERMATH_REPEATS = 2,          /* how often a refusal by ICMP is said again */
};

struct aftermath {
    struct map by_tuple;
    struct link time_wait; /* oldest first: each list has one lifetime */
    struct link refused;
    struct link repeats[AFTERMATH_REPEATS]; /* refusals to be said again, by how often they were */
    unsigned count;
};

int aftermath_init(struct aftermath *l);
void aftermath_free(struct aftermath *l);

/* The connection src -> dst has closed: `snd_nxt`, `rcv_nxt` in host byte order. */
void aftermath_add_time_wait(struct stack *s, const struct endpoint *src,
                             const struct endpoint *dst, uint32_t snd_nxt, uint32_t rcv_nxt);
/* Answer the SYN `ip` with a refusal now, twice again, and whenever it is retransmitted. */
void aftermath_refuse(struct stack *s, const uint8_t *ip, const struct packet_info *info,
                      enum refusal how);
/*
 * A TCP packet that belongs to no conn. True: it was answered here. False: it is none of ours,
 * or it is a SYN that may open a new connection (and what lingered is forgotten).
 */
bool aftermath_input(struct stack *s, const uint8_t *ip, const struct packet_info *info);
/* The next time that aftermath_tick() is wanted, ms; UINT64_MAX: never. */
uint64_t aftermath_next(const struct aftermath *l);
void aftermath_tick(struct stack *s);

/* RST in answer to a TCP packet that has no connection (RFC 9293 3.5.2). */
void aftermath_send_reset(struct stack *s, const uint8_t *ip, const struct packet_info *info);

#endif
