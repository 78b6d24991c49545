/*
 * Listening is what may need privilege (ports below 1024), so it is done before it is given up, by
 * the process that keeps it. What an accepted socket needs (no delay, keep-alive) is set on the
 * listener, from which it is inherited.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/serve/serve.h"

enum { BACKLOG = 4096, KEEPALIVE_IDLE_S = 600 };

static const char *remedy(int error)
{
    switch (error) {
    case EADDRINUSE:
        return " (another program listens there: stop it, or take another --listen)";
    case EADDRNOTAVAIL:
        return " (no interface of this host has that address)";
    case EACCES:
        return " (ports below 1024 want CAP_NET_BIND_SERVICE)";
    case EAFNOSUPPORT:
        return " (this kernel lacks that address family)";
    default:
        return "";
    }
}

static int name_of(int fd, struct endpoint *out)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    return endpoint_from_sockaddr((const struct sockaddr *)&ss, out) ? 0 : -EAFNOSUPPORT;
}

/* What every accepted socket inherits, and what listening itself wants. */
static void set_options(int fd, bool v6)
{
    const int on = 1, idle = KEEPALIVE_IDLE_S;

    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (v6) /* 0.0.0.0 and [::] may be listened on side by side */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
}

static int bind_and_listen(int fd, const struct endpoint *at)
{
    struct sockaddr_storage ss;
    socklen_t len = endpoint_to_sockaddr(at, &ss);

    set_options(fd, ss.ss_family == AF_INET6);
    if (bind(fd, (const struct sockaddr *)&ss, len) < 0 || listen(fd, BACKLOG) < 0)
        return -errno;
    return 0;
}

int serve_listen(const struct endpoint *at, struct endpoint *bound)
{
    char text[ENDPOINT_TEXT_MAX];
    int family = addr_is_v4(&at->addr) ? AF_INET : AF_INET6;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = fd < 0 ? -errno : bind_and_listen(fd, at);

    if (error == 0)
        error = name_of(fd, bound);
    if (error == 0)
        return fd;
    log_error("serve: cannot listen on %s: %s%s", endpoint_format(at, text), strerror(-error),
              remedy(-error));
    if (fd >= 0)
        close(fd);
    return error;
}
