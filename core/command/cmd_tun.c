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
#include <string.h>

#include "core/command/precheck.h"
#include "core/command/say.h"
#include "core/command/tun_setup.h"
#include "core/worker/process.h"
#include "core/worker/tunnel.h"
#include "stack/link.h"

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
    int error = tunnel_run(s->queues, s->queue_count, s->options, announce, s);
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
    return precheck_user(o) && precheck_low_latency(o) && precheck_proxy_name(o);
}

int command_tun(const struct options *options)
{
    struct tun_setup setup = {.options = options};
    if (!check_surroundings(options))
        return EXIT_REFUSED;
    process_block_stop_signals();
    int status = tun_setup_open(&setup) ? relay(&setup) : EXIT_REFUSED;
    tun_setup_undo(&setup);
    return status;
}
