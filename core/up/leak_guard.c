#include "core/up/leak_guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/map.h"
#include "core/command/say.h"
#include "core/up/nft.h"

/* What is in place. A process has one table. */
static struct {
    uint64_t hash; /* of the script, 0: none */
    int owner_fd;  /* what the table belongs to, -1: to nobody */
    bool answers;  /* connections from outside are answered there */
    struct connection_list before;
} table = {.owner_fd = -1};

static void add_network(void *arg, const struct cidr *network)
{
    struct network_list *list = arg;
    if (list->count < sizeof(list->items) / sizeof(list->items[0]))
        list->items[list->count++] = *network;
}

/* The script, to be freed; NULL: the user has been told. */
static char *compose(struct route_session *s, const struct options *o, const char *device,
                     bool owned)
{
    char mount[256] = "";
    const char *problem = NULL;
    struct network_list *networks = calloc(1, sizeof(*networks));
    char *script = malloc(NFT_SCRIPT_MAX);
    size_t len = 0;
    if (nft_wants_cgroups(o) && !nft_cgroup_mount(mount, sizeof(mount))) {
        say("--include-cgroup and --exclude-cgroup need cgroup v2, which is not mounted here");
    } else if (networks && script) {
        if (o->up.kill_switch && o->up.lan)
            (void)route_each_network(s, ROUTE_TABLE_MAIN, add_network, networks);
        const struct nft_table t = {.options = o,
                                    .device = device,
                                    .networks = networks,
                                    .before = table.answers ? &table.before : NULL,
                                    .cgroup_mount = mount,
                                    .owned = owned};
        len = nft_compose(&t, script, NFT_SCRIPT_MAX, &problem);
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
    if (nft_wants_cgroups(o)) {
        say("cgroups cannot be matched on this machine: %s", reason);
        return false;
    }
    log_warn(
        "no nftables (%s): DNS queries%s of programs that bind their sockets to a device "
        "are not stopped, and connections from beyond the local networks are answered into the "
        "tunnel",
        reason, o->up.kill_switch ? ", and with the kill switch all packets," : "");
    return true;
}

static int try(struct route_session *s, const struct options *o, const char *device, bool owned,
               char *why, size_t size)
{
    char *script = compose(s, o, device, owned);
    if (!script)
        return -ECANCELED;
    int error = nft_run(script, owned ? &table.owner_fd : NULL, why, size);
    table.hash = hash_bytes(script, strlen(script));
    free(script);
    return error;
}

/*
 * An older kernel knows no owner: then a killed culvert leaves its table until `down`. Or it lacks
 * what answers need.
 */
static int run(struct route_session *s, const struct options *o, const char *device, char *why,
               size_t size)
{
    int error = -EIO;
    for (unsigned attempt = 0; attempt < 4 && error == -EIO; attempt++) {
        bool owned = (attempt & 1) == 0;
        if (owned && o->up.kill_switch)
            continue;
        table.answers = attempt < 2;
        error = try(s, o, device, owned, why, size);
    }
    return error;
}

/* Not without the table: marks would be handed down that others have set. */
static void answer_outside(struct journal *j)
{
    int error = table.answers ? answers_hand_down_marks(j) : -EOPNOTSUPP;
    if (error < 0)
        log_warn("connections that come from beyond the local networks are answered into the "
                 "tunnel (%s): reach this machine from there by --bypass",
                 table.answers ? strerror(-error) : "nftables here lacks fib or ct label");
}

bool leak_guard_apply(struct route_session *s, struct journal *j, const struct options *o,
                      const char *device)
{
    char why[256];
    int error = journal_note(j, "nft");
    if (error < 0) {
        say("cannot write the journal: %s", strerror(-error));
        return false;
    }
    answers_find(answers_tables, &table.before);
    error = run(s, o, device, why, sizeof(why));
    if (error == 0) {
        answer_outside(j);
        return true;
    }
    table.hash = 0;
    return error != -ECANCELED && explain(o, error, why);
}

void leak_guard_refresh(struct route_session *s, const struct options *o, const char *device,
                        bool lost)
{
    bool names_networks = o->up.kill_switch && o->up.lan;
    if (!table.hash || table.owner_fd >= 0 || (!lost && !names_networks))
        return;
    char *script = compose(s, o, device, false);
    uint64_t hash = script ? hash_bytes(script, strlen(script)) : table.hash;
    if (lost || hash != table.hash) {
        char why[256] = "";
        if (script && nft_run(script, NULL, why, sizeof(why)) < 0)
            log_warn("cannot update the nftables table: %s", why);
        table.hash = hash;
    }
    free(script);
}

int leak_guard_remove(void)
{
    char why[256];
    if (table.owner_fd >= 0)
        close(table.owner_fd); /* it goes with it, and nobody else may touch it */
    table.owner_fd = -1;
    int error = nft_remove(why, sizeof(why));
    /* Where it cannot be done it could not be made either: no library, no nf_tables. */
    if (error == -EIO)
        log_warn("cannot take the nftables table inet culvert away: %s", why);
    return error == -ENOSYS || error == -EIO ? 0 : error;
}
