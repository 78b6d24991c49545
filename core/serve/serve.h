/*
 * `culvert serve`: a SOCKS5 server, CONNECT and UDP ASSOCIATE.
 */
#ifndef CULVERT_SERVE_H
#define CULVERT_SERVE_H

#include "core/proxy/resolver.h"
#include "socks/client.h"

struct serve_options {
    const struct endpoint *listens; /* --listen; port 0: the kernel chooses */
    size_t listen_count;
    const struct socks5_credentials *credentials; /* --auth; NULL: none asked for */
    struct outbound_options outbound;             /* mark, interface, loopback, connect timeout */
    unsigned udp_idle_timeout_s;                  /* seconds */
    /*
     * Called once, when connections are accepted; `bound` are the listeners' real addresses. NULL:
     * nobody wants to know. Signals may be blocked at serve_run() and are unblocked by this call.
     */
    void (*on_ready)(void *arg, const struct endpoint *bound, size_t count);
    void *arg;
};

/*
 * Serve until SIGTERM or SIGINT: returns 0 then. Else a -errno, after a log line that names the
 * cause (an address that cannot be listened on, memory). The options outlive the call.
 */
int serve_run(const struct serve_options *options);

#endif
