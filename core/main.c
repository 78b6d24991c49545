/* Where it begins: the command line, the process' own surroundings, and then one command. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "core/base/sanitized.h"
#include "core/command/commands.h"
#include "core/command/options.h"
#include "core/command/proxy_variables.h"
#include "core/command/say.h"
#include "core/command/secrets.h"
#include "core/worker/process.h"

/*
 * A closed stdin, stdout or stderr must not become the number of a socket or of the device. What
 * `run` executes finds it closed as before.
 */
static void occupy_standard_descriptors(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
}

static bool open_log(const struct options *o)
{
    log_set_level(o->log_level);
    if (!o->log_file)
        return true;
    int error = log_open_file(o->log_file);
    if (error == 0)
        return true;
    say("cannot open log file %s: %s; choose another with --log-file", o->log_file,
        strerror(-error));
    return false;
}

static int run_command(struct options *o)
{
    switch (o->command) {
    case COMMAND_TUN:
        return command_tun(o);
    case COMMAND_SERVE:
        return command_serve(o);
    case COMMAND_UP:
        return command_up(o);
    case COMMAND_DOWN:
        return command_down(o);
    case COMMAND_RUN:
        return command_run(o);
    case COMMAND_CHECK:
        return command_check(o);
    case COMMAND_NONE:
        break;
    }
    return EXIT_USAGE;
}

/*
 * From here on no password is in this process' memory or environment, nor may others of its user
 * look for one: an ordinary user's processes could trace it, and open its descriptors.
 */
static bool seal_secrets(struct options *o)
{
    if (o->command != COMMAND_SERVE && o->command != COMMAND_DOWN)
        proxy_variables_hide(o);
    (void)prctl(PR_SET_DUMPABLE, CULVERT_SANITIZED, 0, 0, 0);
    int error = secrets_seal(o);
    if (error < 0)
        say("cannot put the password away: %s", strerror(-error));
    return error == 0;
}

static int run(struct options *o)
{
    if (!seal_secrets(o) || !open_log(o))
        return EXIT_REFUSED;
    if (o->command != COMMAND_RUN) /* which hands on to its command what it was given */
        process_prepare_relay();
    return run_command(o);
}

int main(int argc, char **argv)
{
    static struct options options;
    char error[OPTIONS_ERROR_MAX];
    enum options_verdict verdict = options_parse(argc, argv, &options, error);
    occupy_standard_descriptors();
    switch (verdict) {
    case OPTIONS_HELP:
        options_print_help(options.command);
        return fflush(stdout) == 0 ? EXIT_STOPPED : EXIT_REFUSED;
    case OPTIONS_VERSION:
        printf("culvert %s\n", options_version());
        return fflush(stdout) == 0 ? EXIT_STOPPED : EXIT_REFUSED;
    case OPTIONS_BAD:
        say("%s", error);
        return EXIT_USAGE;
    case OPTIONS_RUN:
        break;
    }
    int status = run(&options);
    options_wipe(&options);
    return status;
}
