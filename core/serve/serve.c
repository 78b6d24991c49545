/*
 * Theory of operation
 *
 * Listeners are level-triggered and accept a few connections a turn: one while they come singly,
 * so that no system call is spent on hearing that there are no more, and up to a batch while they
 * queue up. What an accepted socket needs (no delay, keep-alive) is set on the listener, from
 * which it is inherited.
 *
 * When descriptors or memory run out, accepting pauses for a moment: the connection stays in the
 * listener's queue, which would otherwise wake us again at once, for ever. A client that has been
 * silent in its handshake gives way meanwhile.
 */
#include "core/serve/serve_parts.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/log.h"

enum { BACKLOG = 4096, ACCEPT_BATCH = 64, PAUSE_MS = 200, KEEPALIVE_IDLE_S = 600 };

struct listener {
    struct server *server;
    struct endpoint bound;
    int fd;
    unsigned burst; /* connections to be accepted in one go */
    struct loop_io io;
};

struct listeners {
    struct server server;
    struct listener *items;
    size_t count;
    struct loop_timer pause;
    struct loop_signal term, interrupt;
};

/* --- accepting ------------------------------------------------------------------------------ */

static void on_connection(void *arg, unsigned ready);

static int watch_listener(struct listener *l)
{
    return loop_watch(l->server->loop, &l->io, l->fd, LOOP_READ, on_connection, l);
}

static void on_pause_over(void *arg)
{
    struct listeners *all = arg;

    for (size_t i = 0; i < all->count; i++)
        if (watch_listener(&all->items[i]) < 0)
            loop_timer_start(all->server.loop, &all->pause, PAUSE_MS, on_pause_over, all);
}

static void pause_accepting(struct server *s, int error)
{
    static struct log_limit limit = LOG_LIMIT(2);
    struct listeners *all = CONTAINER_OF(s, struct listeners, server);
    bool evicted = session_evict(s);

    log_limited(LOG_LEVEL_WARN, &limit, "serve: no new connections for the moment: %s%s",
                strerror(error),
                error == EMFILE ? " (raise the limit on open files, ulimit -n)" : "");
    if (evicted)
        return;
    for (size_t i = 0; i < all->count; i++)
        loop_ignore(&all->items[i].io);
    loop_timer_start(s->loop, &all->pause, PAUSE_MS, on_pause_over, all);
}

static bool out_of_resources(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Accept one; false when no more should be tried in this turn. */
static bool accept_one(struct listener *l)
{
    struct sockaddr_storage ss;
    struct endpoint client;
    socklen_t len = sizeof ss;
    int fd = accept4(l->fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0 && out_of_resources(errno))
        pause_accepting(l->server, errno);
    if (fd < 0) /* else the connection was gone before it was taken (accept(2)) */
        return errno == ECONNABORTED || errno == EINTR;
    if (!endpoint_from_sockaddr((const struct sockaddr *)&ss, &client)) {
        close(fd);
        return true;
    }
    int error = session_open(l->server, fd, &client);
    if (error == 0)
        return true;
    pause_accepting(l->server, -error);
    return false;
}

static void on_connection(void *arg, unsigned ready)
{
    struct listener *l = arg;
    unsigned accepted = 0;
    (void)ready;

    while (accepted < l->burst && accept_one(l))
        accepted++;
    if (accepted < l->burst)
        l->burst = 1;
    else if (l->burst < ACCEPT_BATCH)
        l->burst *= 2;
}

/* --- listening ------------------------------------------------------------------------------ */

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

static int open_listener(struct server *s, struct listener *l, const struct endpoint *at)
{
    char text[ENDPOINT_TEXT_MAX];
    int family = addr_is_v4(&at->addr) ? AF_INET : AF_INET6;

    l->server = s;
    l->burst = 1;
    l->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = l->fd < 0 ? -errno : bind_and_listen(l->fd, at);
    if (error == 0)
        error = name_of(l->fd, &l->bound);
    if (error == 0)
        error = watch_listener(l);
    if (error < 0)
        log_error("serve: cannot listen on %s: %s%s", endpoint_format(at, text), strerror(-error),
                  remedy(-error));
    return error;
}

static int open_listeners(struct listeners *all, const struct serve_options *o)
{
    int error = 0;

    all->items = calloc(o->listen_count, sizeof *all->items);
    if (!all->items) {
        log_error("serve: out of memory");
        return -ENOMEM;
    }
    for (all->count = 0; all->count < o->listen_count && error == 0; all->count++)
        error = open_listener(&all->server, &all->items[all->count], &o->listens[all->count]);
    return error;
}

static void close_listeners(struct listeners *all)
{
    loop_timer_stop(&all->pause);
    for (size_t i = 0; i < all->count; i++) {
        loop_ignore(&all->items[i].io);
        if (all->items[i].fd >= 0)
            close(all->items[i].fd);
    }
    free(all->items);
}

/* --- the server ----------------------------------------------------------------------------- */

/* Each CONNECT takes two descriptors; the soft limit is often 1,024 for the sake of select(2). */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        log_warn("serve: the limit on open files stays as it is: %s", strerror(errno));
}

static int make_parts(struct server *s, const struct serve_options *options)
{
    s->options = options;
    s->direct = (struct proxy_url){.scheme = PROXY_SCHEME_DIRECT};
    list_init(&s->sessions);
    list_init(&s->handshakes);
    s->loop = loop_new();
    s->resolver = s->loop ? resolver_new(s->loop, &options->outbound) : NULL;
    if (s->resolver)
        s->proxy = proxy_new(s->loop, s->resolver, &s->direct, &options->outbound, false);
    s->pool = s->loop ? relay_pool_new(s->loop) : NULL;
    s->batch = udp_batch_new();
    if (s->proxy && s->pool && s->batch)
        return 0;
    log_error("serve: out of memory");
    return -ENOMEM;
}

static void free_parts(struct server *s)
{
    if (s->loop) {
        session_close_all(s);
        loop_turn(s->loop, false); /* frees them */
    }
    if (s->proxy)
        proxy_free(s->proxy);
    if (s->resolver)
        resolver_free(s->resolver);
    relay_pool_free(s->pool);
    udp_batch_free(s->batch);
    loop_free(s->loop);
}

static void on_signal(void *arg, int signo)
{
    struct listeners *all = arg;
    log_debug("serve: signal %d, stopping", signo);
    loop_stop(all->server.loop);
}

/* SIGTERM and SIGINT stop the loop; writing to a connection that is gone is an errno. */
static int watch_signals(struct listeners *all)
{
    struct loop *loop = all->server.loop;

    signal(SIGPIPE, SIG_IGN);
    int error = loop_signal_watch(loop, &all->term, SIGTERM, on_signal, all);
    if (error == 0)
        error = loop_signal_watch(loop, &all->interrupt, SIGINT, on_signal, all);
    if (error < 0) {
        log_error("serve: cannot watch for signals: %s", strerror(-error));
        return error;
    }
    return 0;
}

static void tell_ready(const struct listeners *all, const struct serve_options *o)
{
    struct endpoint *bound = calloc(all->count, sizeof *bound);

    if (o->on_ready && bound) {
        for (size_t i = 0; i < all->count; i++)
            bound[i] = all->items[i].bound;
        o->on_ready(o->arg, bound, all->count);
    }
    free(bound);
}

int serve_run(const struct serve_options *options)
{
    struct listeners all = {0};

    raise_descriptor_limit();
    int error = make_parts(&all.server, options);
    if (error == 0)
        error = open_listeners(&all, options);
    if (error == 0)
        error = watch_signals(&all);
    if (error == 0) {
        tell_ready(&all, options);
        loop_run(all.server.loop);
    }
    loop_signal_ignore(&all.term);
    loop_signal_ignore(&all.interrupt);
    close_listeners(&all);
    free_parts(&all.server);
    return error;
}
