/*
 * Would `up` capture what the proxy itself sends? culvert's own sockets carry a mark and never
 * are captured. But a proxy that runs on this machine has sockets of its own, without the mark:
 * unless they are excluded they become flows through itself, without end.
 */
#include "core/check/check_parts.h"

#include <pwd.h>
#include <stdio.h>
#include <string.h>

#include "core/proxy/local_proxy.h"
#include "core/up/resolvconf.h"
#include "core/up/resolved.h"
#include "stack/link.h"

/* Who listens there, in this network namespace? False: nobody. */
static bool find_listener(const struct endpoint *at, uint32_t *uid)
{
    return local_proxy_listener("/proc/net/tcp", &at->addr, at->port, uid) ||
           local_proxy_listener("/proc/net/tcp6", &at->addr, at->port, uid);
}

static bool holds_uid(const struct uid_list *list, uint32_t uid)
{
    for (size_t i = 0; i < list->count; i++) {
        if (uid >= list->items[i].first && uid <= list->items[i].last)
            return true;
    }
    return false;
}

static bool is_local(const struct addr *a)
{
    char link[16];
    return addr_is_loopback(a) || link_address_in_use(a, "", link);
}

static const char *name_of(uint32_t uid, char text[64])
{
    const struct passwd *user = getpwuid(uid);
    (void)snprintf(text, 64, "%.40s (uid %u)", user ? user->pw_name : "an unknown user", uid);
    return text;
}

/* The proxy listens as `uid`: is what it sends kept out? */
static void judge_user(const struct options *o, struct check_result *r, const char *at,
                       uint32_t uid)
{
    const struct up_options *up = &o->up;
    char user[64];
    name_of(uid, user);
    bool some_are_included = up->include_uids.count + up->include_cgroups.count > 0;
    if (holds_uid(&up->exclude_uids, uid)) {
        check_say(r, CHECK_OK, "the proxy %s runs here as %s, which --exclude-uid leaves alone", at,
                  user);
    } else if (up->exclude_cgroups.count > 0) {
        check_say(r, CHECK_OK, "the proxy %s runs here as %s; --exclude-cgroup must be its own", at,
                  user);
    } else if (some_are_included && !holds_uid(&up->include_uids, uid)) {
        check_say(r, CHECK_OK, "the proxy %s runs here as %s, who is not included", at, user);
    } else if (up->bypass.count > 0) {
        check_say(r, CHECK_WARN,
                  "the proxy %s runs here as %s: --bypass must hold all that it "
                  "connects to",
                  at, user);
        check_remedy(r, "else exclude it: --exclude-uid %u, or --exclude-cgroup", uid);
    } else if (options_given(o, "mark")) {
        check_say(r, CHECK_WARN,
                  "the proxy %s runs here as %s: its own sockets must carry the mark "
                  "0x%x",
                  at, user, o->outbound.mark);
        check_remedy(r, "else exclude it: --exclude-uid %u, or --exclude-cgroup", uid);
    } else {
        check_say(r, CHECK_FAIL,
                  "the proxy %s runs here as %s: up would lead what it sends back "
                  "into it",
                  at, user);
        if (uid == 0)
            check_remedy(r, "run it as a user of its own and give --exclude-uid, or give its "
                            "--exclude-cgroup, or --bypass all that it connects to");
        else
            check_remedy(r,
                         "give --exclude-uid %u (if nothing else runs as that user), or its "
                         "--exclude-cgroup, or --bypass all that it connects to",
                         uid);
    }
}

/* Nothing outside of the tunnel is reached at a fake address (core/up/routing.h). */
static bool is_fake(const struct options *o, const struct addr *a)
{
    for (size_t i = 0; i < o->fake_ranges.count; i++) {
        if (cidr_contains(&o->fake_ranges.items[i], a))
            return true;
    }
    return false;
}

/* The proxy's name is asked of a resolver here, which asks culvert in turn. */
static void judge_resolver(struct check_result *r)
{
    check_say(r, CHECK_WARN,
              "the proxy's name is asked of a resolver on this machine, whose own queries up "
              "captures");
    check_remedy(r,
                 "give --exclude-uid with the user that it runs as, or the proxy by its address");
}

void check_route_loop(struct check *c, struct check_result *r)
{
    char text[ENDPOINT_TEXT_MAX];
    if (check_is_direct(c)) {
        check_say(r, CHECK_OK, "culvert's own sockets are marked");
        return;
    }
    for (size_t i = 0; i < c->addrs.count; i++) {
        struct endpoint at = {.addr = c->addrs.addrs[i], .port = c->options->proxy.port};
        uint32_t uid = 0;
        endpoint_format(&at, text);
        if (is_fake(c->options, &at.addr)) {
            check_say(r, CHECK_FAIL, "the proxy's address %s is one of the fake addresses", text);
            check_remedy(r, "choose another range with --address and --fake-range");
            return;
        }
        if (!is_local(&at.addr))
            continue;
        if (find_listener(&at, &uid)) {
            judge_user(c->options, r, text, uid);
            return;
        }
        check_say(r, CHECK_WARN, "%s is this machine's, but no program here listens there", text);
        check_remedy(r, "a container's port? Then what it sends stays direct, save with --gateway. "
                        "Or the proxy is down: it will need --exclude-uid or --exclude-cgroup");
        return;
    }
    if (c->addrs.count == 0)
        check_say(r, CHECK_SKIPPED, "the proxy has no address");
    else if (!resolved_is_resolver(RESOLVCONF_DEFAULT) &&
             local_resolver_would_loop(c->options, RESOLVCONF_DEFAULT))
        judge_resolver(r);
    else
        check_say(r, CHECK_OK, "the proxy is elsewhere; culvert's own sockets are marked");
}
