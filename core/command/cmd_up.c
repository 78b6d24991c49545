/*
 * `culvert up`: the machine's traffic through the proxy, and everything back in the end.
 *
 *   start:  lock -> undo what a killed one left -> device -> workers -> nftables -> rules
 *           -> resolver -> ready
 *   stop:   journal replayed backwards -> workers -> device
 *
 * This process keeps what needs privilege and watches (core/up/up_watch.h); the workers are
 * children that die with it. Each change is journalled before it is made (core/up/journal.h), and
 * undoing, by us or after our death by `culvert down`, is replaying the journal: there is one way
 * back, and it is taken every time.
 *
 * Signals are blocked from before the first change and arrive through a descriptor: nothing ends
 * this process between a change and its undoing but kill -9, for which the journal is.
 */
#include "core/command/commands.h"

#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/up/gateway.h"
#include "core/up/leak_guard.h"
#include "core/proxy/local_proxy.h"
#include "core/command/precheck.h"
#include "core/up/resolved.h"
#include "core/up/rp_filter.h"
#include "core/up/sysctl.h"
#include "core/command/say.h"
#include "core/up/up_watch.h"
#include "stack/link.h"

/* --- what may be changed ---------------------------------------------------------------------- */

static bool note(struct up *up, int error)
{
    if (error < 0)
        say("cannot write %s: %s", up->state.journal, strerror(-error));
    return error == 0;
}

static bool link_is_up(const char *name)
{
    struct ifreq ifr = {0};
    memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool up = fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &ifr) == 0 && (ifr.ifr_flags & IFF_UP);
    if (fd >= 0)
        close(fd);
    return up;
}

/* A device that is there already is not ours: note how it is. One that we make vanishes. */
static bool note_device(struct up *up)
{
    const char *name = up->options.tun_name;
    int mtu = link_get_mtu(name);
    if (mtu < 0)
        return note(up, journal_note(up->journal, "device %s", name));
    bool is_up = link_is_up(name);
    int addr_gen = link_get_addr_gen_mode(name);
    if (!note(up, journal_note(up->journal, "link %s %d %d %d", name, mtu, is_up, addr_gen)))
        return false;
    for (size_t i = 0; i < up->options.addresses.count; i++) {
        const struct cidr *address = &up->options.addresses.items[i];
        char owner[16];
        char text[CIDR_TEXT_MAX];
        if (link_address_in_use(&address->addr, "", owner))
            continue;
        if (!note(up, journal_note(up->journal, "address %s %s", name, cidr_format(address, text))))
            return false;
    }
    return true;
}

/*
 * A device that is not ours outlives us with its routes. Nobody holds it then, so it has no
 * carrier: its routes are not to count without.
 */
static void let_routes_end(struct up *up)
{
    static const char *const families[] = {"ipv4", "ipv6"};
    for (size_t i = 0; up->tun.existed && i < 2; i++) {
        char path[SYSCTL_PATH_MAX];
        (void)snprintf(path, sizeof(path), "net/%s/conf/%s/ignore_routes_with_linkdown",
                       families[i], up->tun.device->name);
        int error = sysctl_change(up->journal, path, "1");
        if (error < 0 && error != -ENOENT)
            log_warn("cannot set %s: %s; after a kill -9 nothing is reached until culvert down",
                     path, strerror(-error));
    }
}

static bool open_device(struct up *up)
{
    up->tun.options = &up->options;
    if (!note_device(up) || !tun_setup_open(&up->tun))
        return false;
    up->ifindex = link_index(up->tun.device->name);
    let_routes_end(up);
    return up->ifindex > 0;
}

static bool route_traffic(struct up *up)
{
    int base = routing_find_base(up->routes);
    if (base < 0) {
        say("no free priorities for policy rules between %d and %d: %s", ROUTING_BASE_FIRST,
            ROUTING_BASE_LAST, strerror(-base));
        return false;
    }
    up->base = (uint32_t)base;
    int error = rp_filter_relax(up->journal, up->tun.device->name);
    if (error < 0)
        log_warn("cannot loosen rp_filter: %s; answers of the proxy may be dropped",
                 strerror(-error));
    if (!note(up, journal_note(up->journal, "routing %d", base)))
        return false;
    return routing_apply(up->routes, &up->options, up->base, up->ifindex) == 0;
}

/*
 * Before the first packet goes into the tunnel: a connection whose answers went there only once
 * would be reset. Undone after the routes, for the same reason.
 */
static bool guard(struct up *up)
{
    return leak_guard_apply(up->routes, up->journal, &up->options, up->tun.device->name);
}

/* Rules and nftables table of ours are in place: a killed one's rules may go. */
static bool take_over_block(struct up *up)
{
    int error = up->resumed ? routing_remove_others(up->routes, up->base) : 0;
    if (error < 0)
        say("cannot take a killed culvert's policy rules away: %s", strerror(-error));
    return error == 0;
}

static bool forward(struct up *up)
{
    return !up->options.up.gateway || gateway_open(up->journal);
}

static bool captures_some(const struct options *o)
{
    return o->up.include_uids.count > 0 || o->up.include_cgroups.count > 0;
}

/*
 * Hand systemd-resolved over, where it runs. True when it is all that programs ask. Where only some
 * are captured it is not: it would ask for all of them.
 */
static bool take_resolved(struct up *up)
{
    if (captures_some(&up->options) || access(RESOLVED_UPSTREAM, F_OK) != 0)
        return false;
    if (!note(up, journal_note(up->journal, "resolved %d", up->ifindex)))
        return false;
    return resolved_take(up->ifindex, &up->resolvconf.server) == 0 &&
           resolved_is_resolver(up->resolvconf.path);
}

static bool hand_over_dns(struct up *up)
{
    bool wanted = up->options.up.dns_setup;
    up->leave_resolvconf = !wanted || take_resolved(up);
    if (!wanted && !up->upstream[0]) /* our own look-ups follow it */
        (void)strcpy(up->upstream, up->resolvconf.path);
    if (up->leave_resolvconf)
        return true;
    if (!up->upstream[0])
        (void)resolvconf_target(up->resolvconf.path, up->upstream);
    int error = resolvconf_install(&up->resolvconf, up->journal);
    if (error == 0)
        return true;
    say("cannot write %s: %s; --no-dns-setup leaves it alone", up->resolvconf.path,
        strerror(-error));
    return false;
}

static void announce(const struct up *up)
{
    const struct device *d = up->tun.device;
    char proxy[600];
    say("ready up %s mtu %u offload %s proxy %s", d->name, d->mtu, tun_setup_offload(&d->caps),
        proxy_url_format(&up->options.proxy, proxy, sizeof(proxy)));
    notify_service_manager("READY=1");
}

static bool set_up(struct up *up)
{
    if (up->options.up.kill_switch && !note(up, journal_note(up->journal, "blocking")))
        return false;
    return open_device(up) && up_watch_start_workers(up) && forward(up) && guard(up) &&
           route_traffic(up) && take_over_block(up) && hand_over_dns(up);
}

/* --- undoing ---------------------------------------------------------------------------------- */

static int put_back(struct up *up, int status)
{
    notify_service_manager("STOPPING=1");
    int undone = up_state_undo(&up->state, false);
    up_watch_stop_workers(up);
    tun_setup_undo(&up->tun);
    if (undone < 0 && undone != -ENOENT) {
        say("try culvert down when what hindered it is gone");
        return EXIT_REFUSED;
    }
    up_state_forget(&up->state);
    return status;
}

static int leave_blocked(struct up *up, int status)
{
    up_watch_stop_workers(up);
    tun_setup_undo(&up->tun);
    say("traffic stays blocked (--kill-switch) until culvert down");
    return status;
}

/* --- before the first change ------------------------------------------------------------------ */

static bool explain_lock(int error, pid_t holder)
{
    if (error == -EWOULDBLOCK)
        say("culvert up is running already, with process id %d: stop it first, as by kill %d",
            (int)holder, (int)holder);
    else
        say("cannot use /run/culvert: %s%s", strerror(-error),
            error == -EACCES || error == -EPERM ? "; run as root" : "");
    return false;
}

static bool claim(struct up *up)
{
    pid_t holder = 0;
    int error = up_state_init(&up->state);
    if (error == 0)
        error = up_state_lock(&up->state, &holder);
    return error == 0 ? true : explain_lock(error, holder);
}

/*
 * What a killed one blocks stays blocked: its journal is continued, ours is put in place beside,
 * and only then its rules are taken away (take_over_block()).
 */
static bool clean_up_after_killed(struct up *up)
{
    up->resumed = up->options.up.kill_switch && up_state_is_blocking(&up->state);
    if (up->resumed)
        return true;
    int count = up_state_undo(&up->state, true);
    if (count < 0 && count != -ENOENT)
        return false;
    if (resolvconf_is_ours(up->resolvconf.path)) /* /run is empty after a power failure */
        (void)resolvconf_restore(up->resolvconf.path, up->state.resolver);
    if (count > 0)
        log_info("undid what a culvert that was killed had left behind");
    up_state_forget(&up->state);
    return true;
}

/* Nothing outside of the tunnel is reached at a fake address (core/up/routing.h). */
static bool is_outside(const struct options *o)
{
    for (size_t i = 0; i < o->fake_ranges.count && o->proxy.host_is_addr; i++) {
        char text[CIDR_TEXT_MAX];
        if (!cidr_contains(&o->fake_ranges.items[i], &o->proxy.addr))
            continue;
        say("the proxy's address is one of the fake addresses, %s: choose another range with "
            "--address and --fake-range",
            cidr_format(&o->fake_ranges.items[i], text));
        return false;
    }
    return true;
}

/* Only a warning: it may reach the world in ways that we do not see. */
static void warn_of_loop(const struct up *up)
{
    const struct options *o = &up->options;
    uint32_t uid = 0;
    if (!up->upstream[0] && local_resolver_would_loop(o, up->resolvconf.copy))
        log_warn("the proxy's name is asked of a resolver on this machine, whose own queries are "
                 "captured: keep the user that it runs as out by --exclude-uid, or give the "
                 "proxy's address");
    if (local_proxy_would_loop(o, &uid))
        log_warn("the proxy on this machine runs as user %u, whose traffic is captured: it would "
                 "be its own client; keep it out by --exclude-uid %u, or by --bypass with where "
                 "it connects to",
                 uid, uid);
}

/*
 * What our own look-ups, of the proxy's name, ask. A resolver on this machine whose own queries are
 * captured would ask us in turn: of systemd-resolved we know whom it asks.
 */
static bool save_resolvers(struct up *up)
{
    const struct resolvconf *r = &up->resolvconf;
    if (up->resumed && access(r->copy, F_OK) == 0)
        return true;
    int error = resolvconf_save(r);
    if (error == 0 && !captures_some(&up->options) && resolved_is_resolver(r->path) &&
        resolvconf_copy_others(RESOLVED_UPSTREAM, r) == 0)
        (void)strcpy(up->upstream, RESOLVED_UPSTREAM);
    if (error < 0)
        say("cannot copy %s to %s: %s", r->path, r->copy, strerror(-error));
    return error == 0;
}

static bool prepare(struct up *up)
{
    int error = 0;
    up->routes = route_open(&error);
    if (!up->routes) {
        say("cannot talk to the kernel over rtnetlink: %s", strerror(-error));
        return false;
    }
    if (!clean_up_after_killed(up))
        return false;
    up->clean = !up->resumed;
    if (!is_outside(&up->options) || !precheck_proxy_name(&up->options) || !save_resolvers(up))
        return false;
    warn_of_loop(up);
    up->journal = journal_open(up->state.journal, &error);
    if (!up->journal)
        say("cannot write %s: %s", up->state.journal, strerror(-error));
    return up->journal != NULL && up_watch_open(up);
}

static void fill_options(struct up *up, const struct options *given)
{
    struct options *o = &up->options;
    *o = *given;
    if (o->outbound.mark == 0)
        o->outbound.mark = ROUTING_MARK;
    o->resolver_conf = up->state.resolver;
    (void)snprintf(up->resolvconf.path, sizeof(up->resolvconf.path), "%s", RESOLVCONF_DEFAULT);
    (void)snprintf(up->resolvconf.copy, sizeof(up->resolvconf.copy), "%s", up->state.resolver);
    up->resolvconf.server = tun_setup_resolver(o);
}

static int run(struct up *up)
{
    if (!prepare(up)) {
        if (up->clean)
            up_state_forget(&up->state);
        return EXIT_REFUSED;
    }
    if (!set_up(up))
        return up->resumed ? leave_blocked(up, EXIT_REFUSED) : put_back(up, EXIT_REFUSED);
    announce(up);
    int status = up_watch_run(up);
    if (status != EXIT_STOPPED && up->options.up.kill_switch)
        return leave_blocked(up, status);
    return put_back(up, status);
}

int command_up(const struct options *options)
{
    static struct up up; /* large: two sets of options */
    up_watch_block_signals();
    if (!precheck_user(options) || !precheck_low_latency(options) || !claim(&up))
        return EXIT_REFUSED;
    fill_options(&up, options);
    int status = run(&up);
    up_watch_close(&up);
    journal_close(up.journal);
    route_close(up.routes);
    options_wipe(&up.options);
    up_state_unlock(&up.state);
    return status;
}
