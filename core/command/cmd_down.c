/* `culvert down`: undo what an `up` that was killed has left behind. */
#include "core/command/commands.h"

#include <errno.h>
#include <string.h>

#include "core/command/say.h"
#include "core/up/resolvconf.h"
#include "core/up/up_state.h"

static int explain_lock(int error, pid_t holder)
{
    if (error == -EWOULDBLOCK && holder > 0)
        say("culvert up is running, with process id %d: it undoes everything itself when it is "
            "stopped, as by kill %d",
            (int)holder, (int)holder);
    else if (error == -EWOULDBLOCK)
        say("culvert up is running: it undoes everything itself when it is stopped");
    else
        say("cannot use /run/culvert: %s%s", strerror(-error),
            error == -EACCES || error == -EPERM ? "; run as root" : "");
    return EXIT_REFUSED;
}

static int undo(const struct up_state *state)
{
    int count = up_state_undo(state, true);
    if (count < 0 && count != -ENOENT)
        return EXIT_REFUSED;
    /* /run is empty after a power failure, /etc is not. */
    if (count == -ENOENT && resolvconf_is_ours(RESOLVCONF_DEFAULT) &&
        resolvconf_restore(RESOLVCONF_DEFAULT, state->resolver) == 0)
        count = 1;
    up_state_forget(state);
    say(count > 0 ? "everything is as it was before" : "there is nothing to undo");
    return EXIT_STOPPED;
}

int command_down(const struct options *options)
{
    (void)options;
    struct up_state state;
    pid_t holder = 0;
    int error = up_state_init(&state);
    if (error == 0)
        error = up_state_lock(&state, &holder);
    if (error < 0)
        return explain_lock(error, holder);
    int status = undo(&state);
    up_state_unlock(&state);
    return status;
}
