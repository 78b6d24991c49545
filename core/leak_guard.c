#include "core/leak_guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/nft.h"
#include "core/say.h"

static void add_network(void *arg, const struct cidr *network)
{
    struct network_list *list = arg;
    if (list->count < sizeof(list->items) / sizeof(list->items[0]))
        list->items[list->count++] = *network;
}

static bool wants_cgroups(const struct options *o)
{
    return o->up.include_cgroups.count > 0 || o->up.exclude_cgroups.count > 0;
}

/* The script, to be freed; NULL: the user has been told. */
static char *compose(struct route_session *s, const struct options *o, const char *device)
{
    char mount[256] = "";
    const char *problem = NULL;
    struct network_list *networks = calloc(1, sizeof(*networks));
    char *script = malloc(NFT_SCRIPT_MAX);
    size_t len = 0;
    if (wants_cgroups(o) && !nft_cgroup_mount(mount, sizeof(mount))) {
        say("--include-cgroup and --exclude-cgroup need cgroup v2, which is not mounted here");
    } else if (networks && script) {
        if (o->up.kill_switch && o->up.lan)
            (void)route_each_network(s, ROUTE_TABLE_MAIN, add_network, networks);
        len = nft_compose(o, device, networks, mount, script, NFT_SCRIPT_MAX, &problem);
        if (problem)
            say("cgroup %s cannot be matched: it must be a path below %s, which must lie in "
                "/sys/fs/cgroup",
                problem, mount);
        else if (len == 0)
            say("the nftables script does not fit: too many networks");
    }
    free(networks);
    if (len == 0) {
        free(script);
        return NULL;
    }
    return script;
}

/* cgroups were asked for and must work; the rest is a second line of defence. */
static bool explain(const struct options *o, int error, const char *why)
{
    const char *reason = error == -ENOSYS ? "libnftables.so.1 is not installed" : why;
    if (wants_cgroups(o)) {
        say("cgroups cannot be matched on this machine: %s", reason);
        return false;
    }
    log_warn("no nftables (%s): DNS queries%s of programs that bind their sockets to a device "
             "are not stopped",
             reason, o->up.kill_switch ? ", and with the kill switch all packets," : "");
    return true;
}

bool leak_guard_apply(struct route_session *s, struct journal *j, const struct options *o,
                      const char *device)
{
    char why[256];
    char *script = compose(s, o, device);
    if (!script)
        return false;
    int error = journal_note(j, "nft");
    if (error < 0)
        say("cannot write the journal: %s", strerror(-error));
    bool applied = error == 0;
    if (applied && (error = nft_run(script, why, sizeof(why))) < 0)
        applied = explain(o, error, why);
    free(script);
    return applied;
}

void leak_guard_refresh(struct route_session *s, const struct options *o, const char *device)
{
    char why[256];
    if (!o->up.kill_switch || !o->up.lan)
        return;
    char *script = compose(s, o, device);
    if (script && nft_run(script, why, sizeof(why)) < 0)
        log_warn("cannot update the nftables table: %s", why);
    free(script);
}

int leak_guard_remove(void)
{
    char why[256];
    int error = nft_remove(why, sizeof(why));
    /* Where it cannot be done it could not be made either: no library, no nf_tables. */
    if (error == -EIO)
        log_warn("cannot take the nftables table inet culvert away: %s", why);
    return error == -ENOSYS || error == -EIO ? 0 : error;
}
