/*
 * `culvert tun`: what needs privilege around a worker that needs none.
 *
 *   set up the device (core/command/tun_setup.h) -> workers (core/worker/workers.h) -> undo
 *
 * SIGTERM and SIGINT are blocked from before the first change on and read from a descriptor, so
 * that they cannot end the process between a change and its undoing.
 */
#include "core/command/commands.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "core/worker/confine.h"
#include "core/proxy/probe.h"
#include "core/command/say.h"
#include "core/command/tun_setup.h"
#include "core/worker/workers.h"
#include "stack/link.h"

static void block_stop_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &stop, NULL);
}

static int announce(void *arg)
{
    const struct tun_setup *s = arg;
    const struct device *d = s->device;
    char proxy[600];
    say("ready tun %s mtu %u offload %s proxy %s", d->name[0] ? d->name : "-", d->mtu,
        tun_setup_offload(&d->caps), proxy_url_format(&s->options->proxy, proxy, sizeof(proxy)));
    notify_service_manager("READY=1");
    return 0;
}

static int relay(struct tun_setup *s)
{
    int error = workers_run(s->queues, s->queue_count, s->options, announce, s);
    if (error == 0) {
        notify_service_manager("STOPPING=1");
        return EXIT_STOPPED;
    }
    bool gone = error == -EBADFD || error == -ENODEV || error == -ENXIO || error == -EIO;
    if (gone)
        say("TUN device %s has vanished: %s", s->device->name, strerror(-error));
    else
        say("cannot relay: %s", strerror(-error));
    return EXIT_REFUSED;
}

/* Nothing has been changed yet, and a signal may still end the process as it likes. */
static bool check_surroundings(const struct options *o)
{
    const char *interface = o->outbound.bind_interface;
    if (interface[0] != '\0' && link_index(interface) < 0)
        log_warn("no interface %s now; connections to the proxy will fail until it is there",
                 interface);
    struct confine_user user;
    const char *no_user = confine_find_user(o->user, &user);
    if (no_user) {
        say("cannot run as user %s: %s; choose another with --user", o->user, no_user);
        return false;
    }
    const char *error = probe_resolve(&o->proxy, &o->outbound);
    if (!error)
        return true;
    say("the proxy's name %s does not resolve: %s; check the name and this machine's resolver, or "
        "give its address",
        o->proxy.host, error);
    return false;
}

int command_tun(const struct options *options)
{
    struct tun_setup setup = {.options = options};
    if (!check_surroundings(options))
        return EXIT_REFUSED;
    block_stop_signals();
    int status = tun_setup_open(&setup) ? relay(&setup) : EXIT_REFUSED;
    tun_setup_undo(&setup);
    return status;
}
