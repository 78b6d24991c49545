/*
 * A proxy on this very machine must itself reach the world: were its own sockets captured, it would
 * be its own client, and each connection a loop. They are kept out by user, cgroup, mark or
 * destination (--exclude-uid, --exclude-cgroup, --mark, --bypass).
 */
#ifndef CULVERT_LOCAL_PROXY_H
#define CULVERT_LOCAL_PROXY_H

#include "core/command/options.h"

/*
 * The user whose socket listens on TCP `port` of `host`, or of any address, according to a file
 * such as /proc/net/tcp or /proc/net/tcp6 (proc_pid_net(5)). False: nobody does.
 */
bool local_proxy_listener(const char *path, const struct addr *host, uint16_t port, uint32_t *uid);

/*
 * Is the proxy, at a loopback address, one of a user who is captured, with nothing said that could
 * keep it out? Writes who that is.
 */
bool local_proxy_would_loop(const struct options *o, uint32_t *uid);

/*
 * Is the proxy's name asked of a resolver on this machine (the first server of the file
 * `resolv_conf`) that is captured? Its own queries would be answered by culvert, who asks it: with
 * a fake address, as soon as it has forgotten the true one. Which user it runs as its listening
 * socket does not tell, as that was made by root: whoever excludes any is taken to know.
 */
bool local_resolver_would_loop(const struct options *o, const char *resolv_conf);

#endif
