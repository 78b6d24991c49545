/*
 * Sockets as /proc/net/tcp, tcp6, udp and udp6 show them (proc_pid_net(5)): one a line.
 */
#ifndef CULVERT_BASE_PROC_NET_H
#define CULVERT_BASE_PROC_NET_H

#include "core/base/addr.h"

/* The states that are asked for (net/tcp_states.h). */
enum { PROC_NET_SYN_SENT = 0x02, PROC_NET_TIME_WAIT = 0x06, PROC_NET_LISTEN = 0x0a };

struct proc_socket {
    struct endpoint local, remote; /* an IPv4 connection of an IPv6 socket is IPv4 here */
    unsigned state;
    uint32_t uid; /* the owner */
};

/*
 * Call `fn` for each socket of the file at `path`, until it returns false. Lines that cannot be
 * read, as the headline, are left out; a file that is not there has none.
 */
void proc_net_each(const char *path, bool (*fn)(void *arg, const struct proc_socket *s), void *arg);

#endif
