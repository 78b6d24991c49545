/*
 * The front: the process that the user, a shell or a script started and waits for.
 *
 * The terminal's own signals reach the command by themselves, since it is in this process group.
 * What somebody sent (kill(2)) was perhaps meant for this process alone, so it is passed on; save
 * for what comes from the command's own descendants, who reach it without us: a script that
 * kills its group from a handler would never end.
 *
 * Stopping is left to the command: it may have a terminal to tidy up first, or may not want to.
 * When it has stopped, this process stops too, and the shell sees it.
 */
#include "core/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/command/say.h"
#include "core/command/tun_setup.h"

enum {
    DRAIN_MS = 1000,     /* how long the relay may be silent before its last words */
    RELAY_GONE_MS = 100, /* an end without the command's becomes an event of its own after that */
    ANCESTORS_MAX = 64,
    STATUS_BY_SIGNAL = 128,
};

static const int passed_on[] = {
    SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1,   SIGUSR2, SIGALRM,  SIGCONT,
    SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,  SIGVTALRM, SIGPROF, SIGWINCH, SIGIO,
};

struct front {
    struct run_job *job;
    int signals; /* signalfd(2) */
    pid_t command;
    bool ended;
    bool last; /* nobody is served any more: the relay ends as well */
    int status;
    bool relay_gone;
};

static sigset_t passed_on_set(void)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(passed_on) / sizeof(passed_on[0]); i++)
        sigaddset(&set, passed_on[i]);
    return set;
}

/* SIGPIPE too: stderr may have gone. SIGTTOU lets this process write in the background. */
void run_block_signals(sigset_t *old)
{
    sigset_t set = passed_on_set();
    sigaddset(&set, SIGPIPE);
    (void)sigprocmask(SIG_BLOCK, &set, old);
}

/* --- other processes, through proc(5) --------------------------------------------------------- */

/* State and parent of a process. False: it has gone. */
static bool look_at(pid_t pid, char *state, pid_t *parent)
{
    char path[32];
    char text[512];
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    if (!rest || strlen(rest) < 5)
        return false;
    *state = rest[2];
    *parent = (pid_t)strtol(rest + 4, NULL, 10);
    return true;
}

static bool is_stopped(pid_t pid)
{
    char state;
    pid_t parent;
    return look_at(pid, &state, &parent) && state == 'T';
}

static bool descends_from_command(const struct front *f, pid_t pid)
{
    char state;
    for (int i = 0; i < ANCESTORS_MAX && pid > 1; i++) {
        if (pid == f->command)
            return true;
        if (!look_at(pid, &state, &pid))
            return false;
    }
    return false;
}

/* --- signals ---------------------------------------------------------------------------------- */

/* si_code above 0 is the kernel's own: the terminal's driver, a timer. */
static void pass_on(const struct front *f, const struct signalfd_siginfo *s)
{
    if (f->command <= 0 || f->ended || s->ssi_code > 0)
        return;
    if (descends_from_command(f, (pid_t)s->ssi_pid))
        return;
    (void)kill(f->command, (int)s->ssi_signo);
}

static void take_signals(const struct front *f)
{
    struct signalfd_siginfo s;
    while (read(f->signals, &s, sizeof(s)) == (ssize_t)sizeof(s))
        pass_on(f, &s);
}

/* It may be running again already: a SIGCONT that has come meanwhile is passed on first. */
static void follow_stop(const struct front *f)
{
    take_signals(f);
    if (is_stopped(f->command))
        (void)raise(SIGSTOP);
}

/* --- the reaper and the relay ----------------------------------------------------------------- */

static void take_end(struct front *f, int status, bool last)
{
    f->ended = true;
    f->last = last;
    f->status = WIFSIGNALED(status) ? STATUS_BY_SIGNAL + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Before CMD begins, so that the line precedes whatever CMD has to say. */
static void take_ready(const struct front *f, const struct device_caps *caps)
{
    const struct options *o = f->job->options;
    char proxy[600];
    char begin = 1;
    if (o->log_level >= LOG_LEVEL_INFO)
        say("ready run tun %s mtu %u offload %s proxy %s", o->tun_name, o->mtu,
            tun_setup_offload(caps), proxy_url_format(&o->proxy, proxy, sizeof(proxy)));
    (void)send(f->job->handover[0], &begin, 1, MSG_NOSIGNAL);
    run_close(&f->job->handover[0]);
}

static void take_report(struct front *f)
{
    struct run_report r;
    ssize_t n = recv(f->job->report[0], &r, sizeof(r), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != (ssize_t)sizeof(r)) { /* the reaper was killed, or never began */
        if (f->command > 0)
            say("lost sight of the command: the process that waits for it was killed");
        f->ended = true;
        f->status = EXIT_REFUSED;
        return;
    }
    switch (r.event) {
    case RUN_STARTED:
        f->command = r.value;
        take_signals(f); /* what was sent before there was anybody to pass it on to */
        break;
    case RUN_READY:
        take_ready(f, &r.caps);
        break;
    case RUN_STOPPED:
        follow_stop(f);
        break;
    case RUN_ENDED:
        take_end(f, r.value, r.last);
        break;
    }
}

static void take_log(struct front *f)
{
    char text[4096];
    ssize_t n = read(f->job->log[0], text, sizeof(text));
    if (n < 0 && errno == EINTR)
        return;
    if (n <= 0) {
        run_close(&f->job->log[0]);
        run_close(&f->job->handover[0]); /* a command that still waits has nobody to wait for */
        f->relay_gone = true;
        return;
    }
    for (ssize_t at = 0; at < n;) {
        ssize_t written = write(STDERR_FILENO, text + at, (size_t)(n - at));
        if (written <= 0)
            return;
        at += written;
    }
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* Wait for something and deal with it. False: nothing came. */
static bool turn(struct front *f, int timeout_ms)
{
    struct pollfd polled[] = {
        {.fd = f->ended ? -1 : f->job->report[0], .events = POLLIN},
        {.fd = f->command > 0 && !f->ended ? f->signals : -1, .events = POLLIN},
        {.fd = f->job->log[0], .events = POLLIN},
    };
    if (poll(polled, 3, timeout_ms) <= 0)
        return false;
    if (polled[0].revents)
        take_report(f);
    if (polled[1].revents)
        take_signals(f);
    if (polled[2].revents)
        take_log(f);
    return true;
}

static void wait_for_command(struct front *f)
{
    bool told = false;
    while (!f->ended) {
        bool something = turn(f, f->relay_gone && !told ? RELAY_GONE_MS : -1);
        if (something || !f->relay_gone || told || f->command <= 0)
            continue;
        say("the relay has ended: %s has no network any more", f->job->options->run.argv[0]);
        told = true;
    }
}

/* The relay ends by itself now. */
static void wait_for_relay(struct front *f)
{
    while (f->job->log[0] >= 0) {
        if (!turn(f, DRAIN_MS))
            return;
    }
    (void)waitpid(f->job->relay, NULL, 0);
}

int run_front(struct run_job *job)
{
    struct front f = {.job = job};
    sigset_t set = passed_on_set();
    run_forget_secrets(job);
    run_close(&job->report[1]);
    run_close(&job->handover[1]);
    run_close(&job->log[1]);
    f.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (f.signals < 0)
        log_warn("signals are not passed on to the command: %s", strerror(errno));
    wait_for_command(&f);
    if (f.last)
        wait_for_relay(&f);
    run_close(&f.signals);
    return f.status;
}
