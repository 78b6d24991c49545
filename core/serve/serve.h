/*
 * `culvert serve`: a SOCKS5 server, CONNECT and UDP ASSOCIATE.
 */
#ifndef CULVERT_SERVE_H
#define CULVERT_SERVE_H

#include "core/proxy/resolver.h"
#include "socks/client.h"

/*
 * Listen at `at`; port 0: the kernel chooses. Returns a non-blocking socket and where it is bound,
 * or -errno, after a log line with the remedy.
 */
int serve_listen(const struct endpoint *at, struct endpoint *bound);

struct serve_options {
    const int *listeners; /* from serve_listen(); they stay the caller's */
    size_t listener_count;
    const struct socks5_credentials *credentials; /* --auth; NULL: none asked for */
    const struct outbound_options *outbound;      /* mark, interface, loopback, connect timeout */
    unsigned udp_idle_timeout_s;
    /* Called once, before the first connection is accepted. Not 0 (a -errno): serve_run() ends so.
     */
    int (*on_ready)(void *arg);
    void *ready_arg;
};

/*
 * Serve until SIGTERM, which may be blocked at the call; SIGINT is. Returns 0 then. Else a -errno,
 * after a log line that names the cause (memory). The options outlive the call.
 */
int serve_run(const struct serve_options *options);

#endif
