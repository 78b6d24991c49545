/*
 * The reaper, and what becomes the command.
 *
 * The reaper is a subreaper (prctl(2)): whoever loses its parent below it becomes its child, also
 * what has put itself into the background. So waiting until there is no child left is waiting
 * for the last process that uses the network, without a list of them. As long as the command lives
 * the reaper stays in its session and process group, so that a shell there is no orphan that may
 * not stop (POSIX, orphaned process group); signals of the terminal do not reach it.
 */
#include "core/run/run.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/command/proxy_variables.h"
#include "core/command/say.h"
#include "core/command/secrets.h"
#include "core/run/sandbox.h"

enum { EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

/* --- the command ------------------------------------------------------------------------------ */

/* Pass the device out, and wait until packets are relayed. False: the relay has said why not. */
static bool hand_over(struct run_job *job, const struct tun_setup *setup)
{
    char ready;
    if (run_send_device(job->handover[1], setup) < 0)
        return false;
    ssize_t n;
    do
        n = recv(job->handover[1], &ready, 1, 0);
    while (n < 0 && errno == EINTR);
    return n == 1;
}

/* Is there a file of that name where execvp(3) looks? */
static bool is_there(const char *name)
{
    const char *path = getenv("PATH");
    char file[PATH_MAX];
    if (strchr(name, '/'))
        return access(name, F_OK) == 0;
    while (path && *name) {
        size_t len = strcspn(path, ":");
        int n = snprintf(file, sizeof(file), "%.*s/%s", (int)len, path, name);
        if (n > 0 && (size_t)n < sizeof(file) && access(file, F_OK) == 0)
            return true;
        path = path[len] ? path + len + 1 : NULL;
    }
    return false;
}

/*
 * ENOENT of a file that is there: the interpreter that it names is not. EACCES without a path: a
 * folder of PATH is closed to the user, which says nothing of the command.
 */
static bool was_found(const char *name, int error)
{
    if (error == EACCES && strchr(name, '/'))
        return true;
    return (error != ENOENT && error != EACCES) || is_there(name);
}

static _Noreturn void execute(const struct run_job *job)
{
    char *const *argv = job->options->run.argv;
    (void)sigaction(SIGCHLD, &job->on_child, NULL);
    (void)sigprocmask(SIG_SETMASK, &job->mask, NULL);
    (void)execvp(argv[0], argv);
    int error = errno;
    bool found = was_found(argv[0], error);
    if (!found)
        say("%s: no such command", argv[0]);
    else
        say("%s cannot be executed: %s", argv[0],
            error == ENOENT ? "its interpreter is missing" : strerror(error));
    _exit(found ? EXIT_NOT_EXECUTABLE : EXIT_NOT_FOUND);
}

static _Noreturn void become_command(struct run_job *job)
{
    struct tun_setup setup = {.options = job->options};
    secrets_drop(job->options);
    run_close(&job->report[1]);
    run_close(&job->log[1]);
    run_close(&job->handover[0]);
    if (!sandbox_enter(&setup) || !hand_over(job, &setup))
        _exit(EXIT_REFUSED);
    proxy_variables_restore(job->options);
    execute(job);
}

/* --- the reaper ------------------------------------------------------------------------------- */

static void report(const struct run_job *job, enum run_event event, int value, bool last)
{
    struct run_report r = {.event = event, .value = value, .last = last};
    run_send_report(job, &r);
}

/* The command has ended. */
static void outlive(struct run_job *job, int status)
{
    pid_t pid;
    do
        pid = waitpid(-1, NULL, WNOHANG);
    while (pid > 0);
    bool last = pid < 0;
    report(job, RUN_ENDED, status, last);
    run_close(&job->report[1]);
    (void)setsid();
}

static void reap(struct run_job *job, pid_t command)
{
    report(job, RUN_STARTED, command, false);
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WUNTRACED);
        if (pid < 0 && errno != EINTR)
            return; /* ECHILD: the last is gone */
        if (pid != command)
            continue;
        if (WIFSTOPPED(status)) {
            report(job, RUN_STOPPED, 0, false);
            continue;
        }
        command = 0; /* the number may come again */
        outlive(job, status);
    }
}

void run_reaper(struct run_job *job)
{
    sigset_t all;
    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    (void)signal(SIGCHLD, SIG_DFL); /* ignored, it would take the children's statuses away */
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    pid_t command = fork();
    if (command == 0)
        become_command(job);
    if (command < 0)
        say("cannot start a process: %s", strerror(errno));
    run_forget_secrets(job);
    run_close(&job->handover[0]);
    run_close(&job->handover[1]);
    run_close(&job->log[1]);
    run_let_go(STDERR_FILENO);
    if (command > 0)
        reap(job, command);
    _exit(command > 0 ? EXIT_STOPPED : EXIT_REFUSED);
}
