/*
 * The relay of `run`: a worker outside the command's namespaces, where the proxy is to be reached.
 *
 * It leaves the user's session at once, so that neither the terminal's signals nor its end
 * reach it, and holds none of the command's descriptors, so that a pipe behind the command ends
 * with it. What it has to say goes through a pipe to the front, which passes it on to stderr; once
 * the front has gone it is lost, unless there is a log file. The pipe is non-blocking on this
 * side: a front that was stopped (Ctrl-Z) must not stop the relay.
 */
#include "core/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/process.h"
#include "core/say.h"
#include "core/tun_setup.h"
#include "core/worker.h"

/* The reaper has ended: nobody is left to be served. */
static void on_reaper_end(int signo)
{
    (void)signo;
    int saved = errno;
    (void)kill(getpid(), SIGTERM);
    errno = saved;
}

static void leave_session(void)
{
    sigset_t stop;
    (void)setsid();
    run_let_go(STDOUT_FILENO);
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    (void)sigprocmask(SIG_SETMASK, &stop, NULL); /* until the worker handles them */
}

static struct device *take_device(const struct run_job *job)
{
    const struct options *o = job->options;
    int fd = run_receive_descriptor(job->handover[0]);
    if (fd == -ECONNRESET)
        return NULL; /* the command's process has ended, and said why */
    int error = fd;
    struct device *d = fd < 0 ? NULL : device_tun_adopt(fd, o->mtu, o->offload, &error);
    if (d)
        return d;
    say("cannot take the TUN device over: %s", strerror(-error));
    if (fd >= 0)
        close(fd);
    return NULL;
}

struct relay {
    struct run_job *job;
    const struct device *device;
    bool ready; /* the command is on its way */
};

/* From here on stderr is the pipe. */
static void hand_log_over(struct run_job *job)
{
    int flags = fcntl(job->log[1], F_GETFL);
    (void)fcntl(job->log[1], F_SETFL, flags | O_NONBLOCK);
    (void)dup2(job->log[1], STDERR_FILENO);
    run_close(&job->log[1]);
}

static int announce(void *arg)
{
    struct relay *r = arg;
    const struct device *d = r->device;
    const struct options *o = r->job->options;
    char proxy[600];
    char ready = 1;
    if (o->log_level >= LOG_LEVEL_INFO)
        say("ready run tun %s mtu %u offload %s proxy %s", d->name, d->mtu,
            tun_setup_offload(&d->caps), proxy_url_format(&o->proxy, proxy, sizeof(proxy)));
    hand_log_over(r->job);
    if (send(r->job->handover[0], &ready, 1, MSG_NOSIGNAL) != 1)
        return -errno;
    run_close(&r->job->handover[0]);
    r->ready = true;
    return 0;
}

static int relay(struct relay *r)
{
    struct device *device = take_device(r->job);
    if (!device)
        return EXIT_REFUSED;
    r->device = device;
    int error = worker_run(device, r->job->options, announce, r);
    if (error < 0)
        say("cannot relay: %s", strerror(-error));
    device_close(device);
    return error == 0 ? EXIT_STOPPED : EXIT_REFUSED;
}

/*
 * No zombie for an init that may not care (containers). A command that was never told to begin
 * ends by itself, and the reaper with it; else the reaper has ended, or is not to be waited for.
 */
static void collect(struct relay *r, pid_t reaper)
{
    run_close(&r->job->handover[0]);
    (void)waitpid(reaper, NULL, r->ready ? WNOHANG : 0);
}

int run_relay(struct run_job *job)
{
    struct sigaction on_end = {.sa_handler = on_reaper_end, .sa_flags = SA_RESTART | SA_NOCLDSTOP};
    run_close(&job->report[0]);
    run_close(&job->log[0]);
    (void)sigaction(SIGCHLD, &on_end, NULL);
    pid_t reaper = fork();
    if (reaper == 0)
        run_reaper(job);
    run_close(&job->report[1]);
    run_close(&job->handover[1]);
    if (reaper < 0) {
        say("cannot start a process: %s", strerror(errno));
        return EXIT_REFUSED;
    }
    leave_session();
    process_prepare_relay();
    struct relay r = {.job = job};
    int status = relay(&r);
    collect(&r, reaper);
    return status;
}
