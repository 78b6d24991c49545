/*
 * Theory of operation
 *
 * Listeners are level-triggered and accept a few connections a turn: one while they come singly,
 * so that no system call is spent on hearing that there are no more, and up to a batch while they
 * queue up.
 *
 * When descriptors or memory run out, accepting pauses for a moment: the connection stays in the
 * listener's queue, which would otherwise wake us again at once, for ever. A client that has been
 * silent in its handshake gives way meanwhile, then the association that has been idle longest.
 */
#include "core/serve/serve_parts.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"

enum { ACCEPT_BATCH = 64, PAUSE_MS = 200, RESOURCES_QUIET_MS = 10 * 1000 };

struct listener {
    struct server *server;
    int fd;
    unsigned burst; /* connections to be accepted in one go */
    struct loop_io io;
};

struct listeners {
    struct server server;
    struct listener *items;
    size_t count;
    struct loop_timer pause;
    struct loop_signal term;
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

/* One line now and then: who floods the server must not flood its log. */
void server_note_no_resources(struct server *s, int error)
{
    if (loop_now(s->loop) < s->resources_quiet_until)
        return;
    s->resources_quiet_until = loop_now(s->loop) + RESOURCES_QUIET_MS;
    log_warn("serve: no new connections for the moment: %s%s", strerror(error),
             error == EMFILE ? " (raise the limit on open files, ulimit -n)" : "");
}

static void pause_accepting(struct server *s, int error)
{
    struct listeners *all = CONTAINER_OF(s, struct listeners, server);
    bool evicted = session_evict(s) || association_evict(s);

    server_note_no_resources(s, error);
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

/* --- listeners ------------------------------------------------------------------------------ */

static int watch_listeners(struct listeners *all, const struct serve_options *o)
{
    int error = 0;

    all->items = calloc(o->listener_count, sizeof *all->items);
    if (!all->items) {
        log_error("serve: out of memory");
        return -ENOMEM;
    }
    for (; all->count < o->listener_count && error == 0; all->count++) {
        struct listener *l = &all->items[all->count];
        *l = (struct listener){.server = &all->server, .burst = 1, .fd = o->listeners[all->count]};
        error = watch_listener(l);
    }
    return error;
}

static void ignore_listeners(struct listeners *all)
{
    loop_timer_stop(&all->pause);
    for (size_t i = 0; i < all->count; i++)
        loop_ignore(&all->items[i].io);
    free(all->items);
}

/* --- the server ----------------------------------------------------------------------------- */

static int make_parts(struct server *s, const struct serve_options *options)
{
    s->options = options;
    s->direct = (struct proxy_url){.scheme = PROXY_SCHEME_DIRECT};
    list_init(&s->sessions);
    list_init(&s->handshakes);
    list_init(&s->associations);
    s->loop = loop_new();
    s->resolver = s->loop ? resolver_new(s->loop, options->outbound) : NULL;
    if (s->resolver)
        s->proxy = proxy_new(s->loop, s->resolver, &s->direct, options->outbound, false);
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

/* Control-C goes to all of a terminal's processes, and it is the supervisor that stops. */
static int watch_signals(struct listeners *all)
{
    sigset_t interrupt;

    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, NULL);
    int error = loop_signal_watch(all->server.loop, &all->term, SIGTERM, on_signal, all);
    if (error < 0)
        log_error("serve: cannot watch for signals: %s", strerror(-error));
    return error;
}

int serve_run(const struct serve_options *options)
{
    struct listeners all = {0};

    int error = make_parts(&all.server, options);
    if (error == 0)
        error = watch_listeners(&all, options);
    if (error == 0)
        error = watch_signals(&all);
    if (error == 0)
        error = options->on_ready(options->ready_arg);
    if (error == 0)
        loop_run(all.server.loop);
    loop_signal_ignore(&all.term);
    ignore_listeners(&all);
    free_parts(&all.server);
    return error;
}
