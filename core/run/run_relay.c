/*
 * The relay of `run`: outside the command's namespaces, where the proxy is to be reached.
 *
 * It leaves the user's session at once, so that neither the terminal's signals nor its end
 * reach it, and holds none of the command's descriptors, so that a pipe behind the command ends
 * with it. What it has to say goes through a pipe to the front, which passes it on to stderr; once
 * the front has gone it is lost, unless there is a log file. The pipe is non-blocking on this
 * side: a front that was stopped (Ctrl-Z) must not stop the relay.
 */
#include "core/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/command/proxy_variables.h"
#include "core/command/say.h"
#include "core/worker/process.h"
#include "core/worker/tunnel.h"

static volatile pid_t reaper; /* 0: none, or collected */

/* A child has ended. Without the reaper nobody is left to be served. */
static void on_child_end(int signo)
{
    (void)signo;
    int saved = errno;
    if (reaper > 0 && waitpid(reaper, NULL, WNOHANG) == reaper) {
        reaper = 0;
        (void)kill(getpid(), SIGTERM);
    }
    errno = saved;
}

static void block_child_end(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &child, NULL);
}

static void leave_session(struct run_job *job)
{
    sigset_t stop;
    (void)setsid();
    run_let_go(STDOUT_FILENO);
    (void)fcntl(job->log[1], F_SETFL, O_WRONLY | O_NONBLOCK);
    (void)dup2(job->log[1], STDERR_FILENO);
    run_close(&job->log[1]);
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    (void)sigprocmask(SIG_SETMASK, &stop, NULL); /* as workers_run() wants them */
}

struct relay {
    struct run_job *job;
    struct run_device device;
    bool ready; /* the command may begin */
};

static int announce(void *arg)
{
    struct relay *r = arg;
    const struct run_report report = {.event = RUN_READY, .caps = r->device.queues[0]->caps};
    run_send_report(r->job, &report);
    run_close(&r->job->report[1]);
    run_close(&r->job->handover[0]);
    r->ready = true;
    return 0;
}

static int relay(struct relay *r)
{
    const struct options *o = r->job->options;
    int error = run_take_device(r->job->handover[0], o->offload, &r->device);
    if (error == -ECONNRESET)
        return EXIT_REFUSED; /* the command's process has ended, and said why */
    if (error == 0)
        error = tunnel_run(r->device.queues, r->device.count, o, announce, r);
    if (error < 0)
        say("cannot relay: %s", strerror(-error));
    run_close_device(&r->device);
    return error == 0 ? EXIT_STOPPED : EXIT_REFUSED;
}

/*
 * No zombie for an init that may not care (containers). A command that was never told to begin
 * ends by itself, and the reaper with it; else the reaper is not to be waited for.
 */
static void collect(struct relay *r)
{
    if (!r->ready) /* closing is not enough, the front has this socket too */
        (void)shutdown(r->job->handover[0], SHUT_RDWR);
    run_close(&r->job->report[1]);
    run_close(&r->job->handover[0]);
    block_child_end();
    if (reaper > 0)
        (void)waitpid(reaper, NULL, r->ready ? WNOHANG : 0);
}

int run_relay(struct run_job *job)
{
    struct sigaction on_end = {.sa_handler = on_child_end, .sa_flags = SA_RESTART | SA_NOCLDSTOP};
    struct relay r = {.job = job};
    run_close(&job->report[0]);
    run_close(&job->log[0]);
    block_child_end();
    (void)sigaction(SIGCHLD, &on_end, NULL);
    pid_t pid = fork();
    if (pid == 0)
        run_reaper(job);
    run_close(&job->handover[1]);
    if (pid < 0) {
        say("cannot start a process: %s", strerror(errno));
        return EXIT_REFUSED;
    }
    reaper = pid;
    proxy_variables_forget(job->options);
    leave_session(job);
    process_prepare_relay();
    int status = relay(&r);
    collect(&r);
    return status;
}
