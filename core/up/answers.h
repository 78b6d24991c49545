/*
 * Answers to connections that came in from beyond the local networks, as by ssh from far away to
 * a server on which `up` is started. Led into the tunnel they would reach nobody, and whoever
 * administers the machine from there would be cut off.
 *
 * What is an answer is not to be told from a packet, but from how its connection began:
 *
 *   TCP, ICMP     nftables marks what comes in, for this machine, by any other interface than the
 *                 tunnel (core/up/nft.c). The kernel hands the mark down to the socket that is
 *                 made of an accepted connection (tcp_fwmark_accept), and to what it says itself:
 *                 resets, echo replies, unreachables (fwmark_reflect). Packets of that mark are
 *                 direct. No packet is looked up in a table of connections for it.
 *   TCP before    connections that were accepted before `up` have no mark. They are listed once,
 *                 and nftables marks their packets, which are then routed anew; where the first
 *                 look-up finds no way, behind a killed culvert's kill switch, they wait.
 *   forwarded     with --gateway, of those whom packets were forwarded to from outside: conntrack
 *                 tells who began, as it does for forwarded ports (DNAT) in any case.
 *   UDP           has no beginning: a datagram from outside may as well be an answer that came
 *                 past the tunnel, and answering it a leak. A service's user or cgroup is to be
 *                 excluded, or its sockets marked like ours.
 *
 * A marked packet that would begin a TCP connection, as an accepted socket can that is used
 * again, or that goes to port 53, is no answer and is stopped.
 */
#ifndef CULVERT_ANSWERS_H
#define CULVERT_ANSWERS_H

#include "core/base/addr.h"
#include "core/up/journal.h"

enum { CONNECTION_LIST_MAX = 512 };

struct connection {
    struct endpoint local, remote;
};

struct connection_list {
    struct connection items[CONNECTION_LIST_MAX];
    size_t count;
};

/*
 * The TCP connections of this machine that somebody else began, loopback's left out: those at a
 * port that is listened on. From tables of the form of /proc/net/tcp, `paths` NULL-terminated. Of
 * more than fit the others are left out.
 */
void answers_find(const char *const *paths, struct connection_list *out);
extern const char *const answers_tables[];

/* Have the kernel hand marks down, journalled. 0 or -errno. */
int answers_hand_down_marks(struct journal *j);

#endif
