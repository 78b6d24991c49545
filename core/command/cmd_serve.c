/* `culvert serve`: the options' form of core/serve/serve.h. */
#include "core/command/commands.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/command/say.h"
#include "core/serve/serve.h"

static void announce(void *arg, const struct endpoint *bound, size_t count)
{
    const struct options *o = arg;
    char list[OPTIONS_LIST_MAX * (ENDPOINT_TEXT_MAX + 1) + 1] = "";
    size_t used = 0;
    for (size_t i = 0; i < count && i < OPTIONS_LIST_MAX; i++) {
        char text[ENDPOINT_TEXT_MAX];
        used += (size_t)snprintf(list + used, sizeof(list) - used, " %s",
                                 endpoint_format(&bound[i], text));
    }
    say("ready serve%s%s", list, o->auth.present ? " with authentication" : "");
    notify_service_manager("READY=1");
}

int command_serve(const struct options *o)
{
    struct socks5_credentials credentials = {.user = o->auth.user, .password = o->auth.password};
    struct serve_options serve = {
        .listens = o->listens.items,
        .listen_count = o->listens.count,
        .credentials = o->auth.present ? &credentials : NULL,
        .outbound = o->outbound,
        .udp_idle_timeout_s = o->limits.udp_idle_timeout_s,
        .on_ready = announce,
        .arg = (void *)(uintptr_t)o,
    };
    int error = serve_run(&serve);
    if (error == 0)
        return EXIT_STOPPED;
    say("the server could not run: %s", strerror(-error));
    return EXIT_REFUSED;
}
