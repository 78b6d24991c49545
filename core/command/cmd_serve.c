/*
 * `culvert serve`: listens, with the privilege that it was started with, and leaves serving to a
 * worker that has none (core/worker/workers.h).
 */
#include "core/command/commands.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/command/precheck.h"
#include "core/command/say.h"
#include "core/command/secrets.h"
#include "core/serve/serve.h"
#include "core/worker/process.h"
#include "core/worker/workers.h"

struct service {
    const struct options *options;
    int listeners[OPTIONS_LIST_MAX];
    struct endpoint bound[OPTIONS_LIST_MAX];
    size_t count;
};

/* In the worker. */
static int serve(void *arg, unsigned index, const struct options *o, worker_ready_fn *on_ready,
                 void *ready_arg)
{
    const struct service *s = arg;
    const struct auth_option *auth = secrets_auth(o);
    const struct socks5_credentials credentials = {.user = auth->user, .password = auth->password};
    const struct serve_options serve = {
        .listeners = s->listeners,
        .listener_count = s->count,
        .credentials = auth->present ? &credentials : NULL,
        .outbound = &o->outbound,
        .udp_idle_timeout_s = o->limits.udp_idle_timeout_s,
        .on_ready = on_ready,
        .ready_arg = ready_arg,
    };
    (void)index;
    return serve_run(&serve);
}

static int announce(void *arg)
{
    const struct service *s = arg;
    char list[OPTIONS_LIST_MAX * (ENDPOINT_TEXT_MAX + 1) + 1] = "";
    size_t used = 0;
    for (size_t i = 0; i < s->count; i++) {
        char text[ENDPOINT_TEXT_MAX];
        used += (size_t)snprintf(list + used, sizeof(list) - used, " %s",
                                 endpoint_format(&s->bound[i], text));
    }
    say("ready serve%s%s", list, s->options->auth.present ? " with authentication" : "");
    notify_service_manager("READY=1");
    return 0;
}

static int listen_everywhere(struct service *s)
{
    const struct endpoint_list *wanted = &s->options->listens;
    for (s->count = 0; s->count < wanted->count; s->count++) {
        int fd = serve_listen(&wanted->items[s->count], &s->bound[s->count]);
        if (fd < 0)
            return fd;
        s->listeners[s->count] = fd;
    }
    return 0;
}

static int run(struct service *s)
{
    const struct work work = {
        .name = "culvert-server",
        .options = s->options,
        .count = 1,
        .fds = s->listeners,
        .fds_each = s->count,
        .role = CONFINE_SERVER,
        .run = serve,
        .arg = s,
    };
    process_block_stop_signals();
    return workers_run(&work, announce, s);
}

int command_serve(const struct options *o)
{
    struct service s = {.options = o};
    if (!precheck_user(o))
        return EXIT_REFUSED;
    int error = listen_everywhere(&s);
    if (error == 0)
        error = run(&s);
    while (s.count > 0)
        close(s.listeners[--s.count]);
    if (error == 0)
        return EXIT_STOPPED;
    say("the server could not run: %s", strerror(-error));
    return EXIT_REFUSED;
}
