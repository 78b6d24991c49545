#include "core/up_watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/leak_guard.h"
#include "core/say.h"
#include "core/worker.h"

enum {
    RESTARTS_MAX = 5, /* within */
    RESTARTS_MS = 60000,
    STOP_MS = 5000,  /* how long a worker may take to drain */
    SETTLE_MS = 100, /* changes of routes and files come in bursts */
};

static uint64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

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
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
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
    up->watch_fd = up->options.up.dns_setup ? resolvconf_watch(up->resolvconf.path) : -1;
    if (up->signal_fd >= 0 && up->events_fd >= 0)
        return true;
    say("cannot watch signals and routes: %s", strerror(errno));
    return false;
}

void up_watch_close(struct up *up)
{
    const int fds[] = {up->signal_fd, up->events_fd, up->watch_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] > 0)
            close(fds[i]);
    }
}

/* --- the worker ------------------------------------------------------------------------------- */

static int on_worker_ready(void *arg)
{
    const int *ready_fd = arg;
    /* Control-C goes to all of the terminal's processes, and it is the supervisor that stops. */
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &interrupt, NULL);
    return write(*ready_fd, "", 1) == 1 ? 0 : -errno;
}

/* In the child. The lock's descriptor is closed: the lock is the supervisor's, and ends with it. */
static int run_worker(struct up *up, pid_t supervisor, int ready_fd)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != supervisor)
        return EXIT_REFUSED;
    close(up->state.lock_fd);
    up_watch_close(up);
    int error = worker_run(up->tun.device, &up->options, on_worker_ready, &ready_fd);
    if (error == 0)
        return EXIT_STOPPED;
    bool gone = error == -EBADFD || error == -ENODEV || error == -ENXIO || error == -EIO;
    if (gone)
        say("TUN device %s has vanished: %s", up->tun.device->name, strerror(-error));
    else
        say("cannot relay: %s", strerror(-error));
    return EXIT_REFUSED;
}

/* It has written its byte, or ended. */
static bool await_worker(int ready_fd)
{
    char byte;
    ssize_t n;
    while ((n = read(ready_fd, &byte, 1)) < 0 && errno == EINTR)
        continue;
    return n == 1;
}

bool up_watch_start_worker(struct up *up)
{
    int ends[2];
    pid_t self = getpid();
    pid_t pid = pipe(ends) == 0 ? fork() : -1;
    if (pid < 0) {
        say("cannot start a worker: %s", strerror(errno));
        return false;
    }
    if (pid == 0) {
        close(ends[0]);
        exit(run_worker(up, self, ends[1]));
    }
    up->worker = pid;
    close(ends[1]);
    bool ready = await_worker(ends[0]);
    close(ends[0]);
    return ready;
}

void up_watch_stop_worker(struct up *up)
{
    if (up->worker <= 0)
        return;
    (void)kill(up->worker, SIGTERM);
    uint64_t deadline = now_ms() + STOP_MS;
    pid_t ended = 0;
    while ((ended = waitpid(up->worker, NULL, WNOHANG)) == 0 && now_ms() < deadline) {
        struct pollfd fd = {.fd = up->signal_fd, .events = POLLIN};
        struct signalfd_siginfo info;
        (void)poll(&fd, 1, SETTLE_MS); /* SIGCHLD, in all likelihood */
        (void)!read(up->signal_fd, &info, sizeof(info));
    }
    if (ended == 0) {
        (void)kill(up->worker, SIGKILL);
        (void)waitpid(up->worker, NULL, 0);
    }
    up->worker = 0;
}

static bool may_restart(struct up *up)
{
    uint64_t now = now_ms();
    if (up->restarts == 0 || now - up->restarts_since_ms > RESTARTS_MS) {
        up->restarts = 0;
        up->restarts_since_ms = now;
    }
    return ++up->restarts <= RESTARTS_MAX;
}

/* False: there is no worker any more, nor will there be. */
static bool replace_worker(struct up *up)
{
    int status = 0;
    if (waitpid(up->worker, &status, WNOHANG) != up->worker)
        return true;
    up->worker = 0;
    if (!WIFSIGNALED(status)) /* it has told why */
        return false;
    log_error("the worker was ended by signal %d: starting another", WTERMSIG(status));
    if (!may_restart(up)) {
        say("the worker has ended %d times within a minute: giving up", RESTARTS_MAX);
        return false;
    }
    return up_watch_start_worker(up);
}

/* --- watching --------------------------------------------------------------------------------- */

enum verdict { GO_ON, STOP, GIVE_UP };

static enum verdict on_signals(struct up *up)
{
    struct signalfd_siginfo info;
    bool child = false;
    while (read(up->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo != SIGCHLD)
            return STOP;
        child = true;
    }
    return !child || replace_worker(up) ? GO_ON : GIVE_UP;
}

static void on_route_events(struct up *up)
{
    settle();
    unsigned events = route_events_read(up->events_fd);
    if (events & (ROUTE_EVENT_OURS_LOST | ROUTE_EVENT_LINKS))
        (void)routing_apply(up->routes, &up->options, up->base, up->ifindex);
    if (events & (ROUTE_EVENT_ROUTES | ROUTE_EVENT_LINKS))
        leak_guard_refresh(up->routes, &up->options, up->tun.device->name);
}

static void on_resolvconf(struct up *up)
{
    settle();
    resolvconf_watch_drain(up->watch_fd);
    if (!resolvconf_is_ours(up->resolvconf.path) && access(up->resolvconf.path, F_OK) == 0) {
        log_info("%s was rewritten: taking it over again", up->resolvconf.path);
        int error = resolvconf_install(&up->resolvconf, up->journal);
        if (error < 0)
            log_warn("cannot write %s: %s", up->resolvconf.path, strerror(-error));
    }
    resolvconf_watch_drain(up->watch_fd);
    resolvconf_watch_again(up->watch_fd, up->resolvconf.path);
}

int up_watch_run(struct up *up)
{
    struct pollfd fds[] = {
        {.fd = up->signal_fd, .events = POLLIN},
        {.fd = up->events_fd, .events = POLLIN},
        {.fd = up->watch_fd, .events = POLLIN},
    };
    if (up->watch_fd >= 0)
        resolvconf_watch_again(up->watch_fd, up->resolvconf.path);
    enum verdict verdict = GO_ON;
    while (verdict == GO_ON) {
        if (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0)
            continue;
        if (fds[0].revents)
            verdict = on_signals(up);
        if (verdict == GO_ON && fds[1].revents)
            on_route_events(up);
        if (verdict == GO_ON && fds[2].revents)
            on_resolvconf(up);
    }
    return verdict == STOP ? EXIT_STOPPED : EXIT_REFUSED;
}
