/* `culvert run`: the front and its relay (core/run/run.h), or an existing namespace. */
#include "core/command/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/run/run.h"
#include "core/run/sandbox.h"
#include "core/command/precheck.h"
#include "core/command/proxy_variables.h"
#include "core/command/say.h"

/* For what the last of the command's processes has sent, such as an upload's end. */
enum { LINGER_S = 120 };

static bool open_channels(struct run_job *job)
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, job->report) == 0 &&
           socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, job->handover) == 0 &&
           pipe2(job->log, O_CLOEXEC) == 0;
}

static void close_channels(struct run_job *job)
{
    for (size_t i = 0; i < 2; i++) {
        run_close(&job->report[i]);
        run_close(&job->handover[i]);
        run_close(&job->log[i]);
    }
}

static int start(struct run_job *job)
{
    if (!open_channels(job)) {
        say("cannot make pipes: %s", strerror(errno));
        return EXIT_REFUSED;
    }
    struct sigaction take_default = {.sa_handler = SIG_DFL};
    (void)sigaction(SIGCHLD, &take_default, &job->on_child);
    run_block_signals(&job->mask);
    job->relay = fork();
    if (job->relay == 0)
        return run_relay(job);
    if (job->relay > 0)
        return run_front(job);
    say("cannot start a process: %s", strerror(errno));
    return EXIT_REFUSED;
}

static int run_and_wait(struct options *o)
{
    struct run_job job = {.options = o, .report = {-1, -1}, .handover = {-1, -1}, .log = {-1, -1}};
    o->linger_s = LINGER_S;
    int status = start(&job);
    close_channels(&job);
    return status;
}

int command_run(struct options *options)
{
    if (!sandbox_check() || !precheck_user(options) || !precheck_low_latency(options) ||
        !precheck_proxy_name(options))
        return EXIT_REFUSED;
    if (options->run.argv)
        return run_and_wait(options);
    proxy_variables_forget(options);
    return run_attach(options);
}
