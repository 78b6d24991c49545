/*
 * Does the kernel take the policy rules and the nftables table that `up` would make with these
 * options? They are made, in a network namespace of a child's own.
 */
#include "core/check/check_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/capability.h>

#include "core/run/sandbox.h"
#include "core/up/nft.h"
#include "core/up/routing.h"

enum rules_part {
    RULES_NAMESPACE, /* it was not even possible to try */
    RULES_POLICY,
    RULES_TABLE,
    RULES_DONE,
};

struct rules_finding {
    enum rules_part failed; /* RULES_DONE: nothing */
    int error;              /* errno; ENOSYS of TABLE: without libnftables */
    char why[256];          /* what nftables says */
};

/* 0 or errno. A kernel without IPv6 has nothing to be captured there. */
static int add_rules(struct route_session *s, const struct options *o, int family)
{
    static struct rule rules[ROUTING_RULES_MAX];
    size_t count = routing_plan(o, family, ROUTING_BASE_FIRST, rules);
    while (count-- > 0) { /* what is gone to comes first */
        int error = rule_add(s, &rules[count]);
        if (error < 0)
            return family == AF_INET6 && error == -EAFNOSUPPORT ? 0 : -error;
    }
    return 0;
}

static int try_rules(const struct options *o)
{
    int error = 0;
    struct route_session *s = route_open(&error);
    if (!s)
        return -error;
    error = add_rules(s, o, AF_INET);
    if (error == 0)
        error = add_rules(s, o, AF_INET6);
    route_close(s);
    return error;
}

static int try_table(const struct options *o, char *why, size_t size)
{
    static struct network_list networks;
    static struct connection_list before;
    char mount[256] = "";
    const struct nft_table table = {.options = o,
                                    .device = o->tun_name,
                                    .networks = &networks,
                                    .before = &before,
                                    .cgroup_mount = mount,
                                    .owned = !o->up.kill_switch};
    const char *problem = NULL;
    char *script = malloc(NFT_SCRIPT_MAX);
    int error = ENOMEM;
    if (nft_wants_cgroups(o) && !nft_cgroup_mount(mount, sizeof(mount))) {
        (void)snprintf(why, size, "cgroup v2 is not mounted here");
        error = EIO;
    } else if (script && nft_compose(&table, script, NFT_SCRIPT_MAX, &problem) > 0) {
        error = -nft_run(script, NULL, why, size);
    } else if (script) {
        (void)snprintf(why, size, "cgroup %s cannot be matched", problem ? problem : "");
        error = EIO;
    }
    free(script);
    return error;
}

static void look_at_rules(const struct check *c, void *out)
{
    struct rules_finding *f = out;
    struct options o = *c->options;
    if (o.outbound.mark == 0)
        o.outbound.mark = ROUTING_MARK;
    f->failed = RULES_NAMESPACE;
    f->error = -sandbox_unshare();
    if (f->error)
        return;
    f->failed = RULES_POLICY;
    f->error = try_rules(&o);
    if (f->error)
        return;
    f->error = try_table(&o, f->why, sizeof(f->why));
    f->failed = f->error ? RULES_TABLE : RULES_DONE;
}

static void judge_table(const struct options *o, struct check_result *r,
                        const struct rules_finding *f)
{
    const char *why = f->error == ENOSYS ? "libnftables.so.1 is not installed"
                      : f->why[0]        ? f->why
                                         : strerror(f->error);
    check_say(r, nft_wants_cgroups(o) ? CHECK_FAIL : CHECK_WARN,
              "policy rules are taken, nftables is "
              "not there: %s",
              why);
    check_remedy(r, "install libnftables1 and use a kernel with nf_tables, and cgroup v2 for "
                    "--include-cgroup and --exclude-cgroup; without it DNS queries of programs "
                    "that bind their sockets to a device are not stopped");
}

void check_rules(struct check *c, struct check_result *r)
{
    struct rules_finding f = {.error = 0};
    if (!check_has_capability(CAP_NET_ADMIN)) {
        check_say(r, CHECK_SKIPPED, "to be tried by root");
        return;
    }
    if (!check_in_child(c, look_at_rules, &f, sizeof(f))) {
        check_say(r, CHECK_SKIPPED, "cannot be tried: no answer");
        return;
    }
    switch (f.failed) {
    case RULES_NAMESPACE:
        check_say(r, CHECK_SKIPPED, "no network namespace can be made to try them: %s",
                  strerror(f.error));
        break;
    case RULES_POLICY:
        check_say(r, CHECK_FAIL, "policy rules are refused: %s", strerror(f.error));
        check_remedy(r, "use a kernel with policy routing (CONFIG_IP_MULTIPLE_TABLES, "
                        "CONFIG_IPV6_MULTIPLE_TABLES)");
        break;
    case RULES_TABLE:
        judge_table(c->options, r, &f);
        break;
    case RULES_DONE:
        check_say(r, CHECK_OK, "the kernel takes policy rules and nftables' table");
        break;
    }
}
