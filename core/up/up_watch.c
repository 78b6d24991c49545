#include "core/up/up_watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "core/command/say.h"
#include "core/up/leak_guard.h"

enum { SETTLE_MS = 100 }; /* changes of routes and files come in bursts */

static void settle(void)
{
    const struct timespec step = {.tv_nsec = SETTLE_MS * 1000000L};
    (void)nanosleep(&step, NULL);
}

/* --- signals ---------------------------------------------------------------------------------- */

static sigset_t watched_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup(1) */
        sigaddset(&set, SIGHUP);
    return set;
}

void up_watch_block_signals(void)
{
    sigset_t set = watched_signals();
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
}

bool up_watch_open(struct up *up)
{
    sigset_t set = watched_signals();
    up->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    up->events_fd = route_events_open();
    up->nft_fd = nft_events_open();
    up->watch_fd = resolvconf_watch(up->resolvconf.path);
    if (up->signal_fd >= 0 && up->events_fd >= 0)
        return true;
    say("cannot watch signals and routes: %s", strerror(errno));
    return false;
}

void up_watch_close(struct up *up)
{
    const int fds[] = {up->signal_fd, up->events_fd, up->nft_fd, up->watch_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] > 0)
            close(fds[i]);
    }
}

/* --- workers ---------------------------------------------------------------------------------- */

static void explain(const struct up *up, int error)
{
    bool gone = error == -EBADFD || error == -ENODEV || error == -ENXIO || error == -EIO;
    if (gone)
        say("TUN device %s has vanished: %s", up->tun.device->name, strerror(-error));
    else
        say("cannot relay: %s", strerror(-error));
}

void up_watch_stop_workers(struct up *up)
{
    workers_free(up->workers);
    tunnel_free(&up->tunnel);
    up->workers = NULL;
}

bool up_watch_start_workers(struct up *up)
{
    int error = tunnel_init(&up->tunnel, up->tun.queues, up->tun.queue_count, &up->options);
    up->workers = error == 0 ? workers_new(&up->tunnel.work) : NULL;
    error = up->workers ? workers_start(up->workers) : -ENOMEM;
    if (error < 0)
        explain(up, error);
    return error == 0;
}

/* --- watching --------------------------------------------------------------------------------- */

static void on_route_events(struct up *up)
{
    settle();
    unsigned events = route_events_read(up->events_fd);
    if (events & (ROUTE_EVENT_OURS_LOST | ROUTE_EVENT_LINKS))
        (void)routing_apply(up->routes, &up->options, up->base, up->ifindex);
    if (events & (ROUTE_EVENT_ROUTES | ROUTE_EVENT_LINKS))
        leak_guard_refresh(up->routes, &up->options, up->tun.device->name, false);
}

static void on_nft_events(struct up *up)
{
    settle();
    if (nft_events_read(up->nft_fd, "culvert"))
        leak_guard_refresh(up->routes, &up->options, up->tun.device->name, true);
}

static void watch_files(const struct up *up)
{
    if (up->watch_fd < 0)
        return;
    resolvconf_watch_again(up->watch_fd, up->resolvconf.path);
    if (up->upstream[0])
        resolvconf_watch_again(up->watch_fd, up->upstream);
}

static void take_over_again(struct up *up)
{
    log_info("%s was rewritten: taking it over again", up->resolvconf.path);
    int error = resolvconf_install(&up->resolvconf, up->journal);
    if (error < 0)
        log_warn("cannot write %s: %s", up->resolvconf.path, strerror(-error));
}

static void on_resolvconf(struct up *up)
{
    settle();
    resolvconf_watch_drain(up->watch_fd);
    if (up->upstream[0])
        (void)resolvconf_copy_others(up->upstream, &up->resolvconf);
    if (!up->leave_resolvconf && access(up->resolvconf.path, F_OK) == 0 &&
        !resolvconf_is_ours(up->resolvconf.path)) {
        up->upstream[0] = '\0'; /* what was written now counts */
        take_over_again(up);
    }
    resolvconf_watch_drain(up->watch_fd);
    watch_files(up);
}

int up_watch_run(struct up *up)
{
    struct pollfd fds[] = {
        {.fd = up->signal_fd, .events = POLLIN}, {.fd = workers_fd(up->workers), .events = POLLIN},
        {.fd = up->events_fd, .events = POLLIN}, {.fd = up->watch_fd, .events = POLLIN},
        {.fd = up->nft_fd, .events = POLLIN},
    };
    watch_files(up);
    int error = 0;
    while (error == 0) {
        if (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0)
            continue;
        if (fds[0].revents)
            return EXIT_STOPPED;
        if (fds[1].revents)
            error = workers_turn(up->workers);
        if (error == 0 && fds[2].revents)
            on_route_events(up);
        if (error == 0 && fds[3].revents)
            on_resolvconf(up);
        if (error == 0 && fds[4].revents)
            on_nft_events(up);
    }
    explain(up, error);
    return EXIT_REFUSED;
}
