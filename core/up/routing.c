#include "core/up/routing.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "core/command/say.h"

/* Priorities, counted from the base. */
enum {
    AT_MARKS = 0,
    AT_OWN_ADDRESS = 2,
    AT_FORWARDED = 3,
    AT_EXCLUDED = 4,
    AT_INCLUDED = 5,
    AT_OTHERS = 7,
    AT_CAPTURE = 20,
    AT_DNS = 21,
    AT_BYPASS = 22,
    AT_NETWORKS = 23,
    AT_ALL = 24,
    AT_DIRECT = 90,
    AT_FAKE = 91,
};
static_assert((int)AT_FAKE < (int)ROUTING_SPAN, "all rules of a base lie within its span");

enum { DNS_PORT = 53 };

struct plan {
    const struct options *options;
    int family;
    uint32_t base;
    struct rule *rules;
    size_t count;
};

/* --- the plan -------------------------------------------------------------------------------- */

static struct rule *add(struct plan *p, uint32_t at, enum rule_action action)
{
    assert(p->count < ROUTING_RULES_MAX);
    struct rule *rule = &p->rules[p->count++];
    *rule = (struct rule){.family = p->family, .priority = p->base + at, .action = action};
    return rule;
}

static struct rule *add_goto(struct plan *p, uint32_t at, uint32_t target)
{
    struct rule *rule = add(p, at, RULE_GOTO);
    rule->target = p->base + target;
    return rule;
}

static struct rule *add_lookup(struct plan *p, uint32_t at)
{
    struct rule *rule = add(p, at, RULE_LOOKUP);
    rule->table = p->base;
    return rule;
}

static bool same_family(const struct plan *p, const struct cidr *range)
{
    return addr_is_v4(&range->addr) == (p->family == AF_INET);
}

/* The network that `range` names, which the kernel wants without host bits. */
static struct cidr network_of(const struct cidr *range)
{
    struct cidr network = *range;
    unsigned bits = range->prefix + (addr_is_v4(&range->addr) ? 96u : 0u);
    for (unsigned i = 0; i < sizeof(network.addr.bytes); i++) {
        unsigned keep = bits > 8 * i ? bits - 8 * i : 0;
        if (keep < 8)
            network.addr.bytes[i] &= (uint8_t)(0xff00u >> keep);
    }
    return network;
}

static void add_to(struct plan *p, uint32_t at, const struct cidr *range)
{
    if (!same_family(p, range))
        return;
    struct rule *rule = add_goto(p, at, AT_DIRECT);
    rule->has_to = true;
    rule->to = network_of(range);
}

static void add_uids(struct plan *p, const struct uid_list *uids, uint32_t at, uint32_t target)
{
    for (size_t i = 0; i < uids->count; i++) {
        struct rule *rule = add_goto(p, at, target);
        rule->has_uids = true;
        rule->first_uid = uids->items[i].first;
        rule->last_uid = uids->items[i].last;
    }
}

/* Who is captured. */
static void plan_sources(struct plan *p)
{
    const struct up_options *up = &p->options->up;
    add_goto(p, AT_MARKS, AT_DIRECT)->mark = p->options->outbound.mark;
    add_goto(p, AT_MARKS, AT_DIRECT)->mark = ROUTING_MARK_ANSWER;
    if (up->exclude_cgroups.count > 0)
        add_goto(p, AT_MARKS, AT_DIRECT)->mark = ROUTING_MARK_EXCLUDED;
    for (size_t i = 0; i < p->options->addresses.count; i++) {
        if (!same_family(p, &p->options->addresses.items[i]))
            continue;
        struct rule *rule = add_lookup(p, AT_OWN_ADDRESS);
        rule->has_from = true;
        rule->from = p->options->addresses.items[i];
        rule->from.prefix = p->family == AF_INET ? 32 : 128;
    }
    add_goto(p, AT_FORWARDED, up->gateway ? AT_CAPTURE : AT_DIRECT)->forwarded = true;
    add_uids(p, &up->exclude_uids, AT_EXCLUDED, AT_DIRECT);
    add_uids(p, &up->include_uids, AT_INCLUDED, AT_CAPTURE);
    if (up->include_cgroups.count > 0)
        add_goto(p, AT_INCLUDED, AT_CAPTURE)->mark = ROUTING_MARK_INCLUDED;
    if (up->include_uids.count > 0 || up->include_cgroups.count > 0)
        add_goto(p, AT_OTHERS, AT_DIRECT);
}

/* What of theirs is captured. */
static void plan_destinations(struct plan *p)
{
    static const uint8_t protocols[] = {IPPROTO_UDP, IPPROTO_TCP};
    const struct up_options *up = &p->options->up;
    add(p, AT_CAPTURE, RULE_NOP);
    for (size_t i = 0; i < sizeof(protocols); i++) {
        struct rule *rule = add_lookup(p, AT_DNS);
        rule->protocol = protocols[i];
        rule->port = DNS_PORT;
    }
    for (size_t i = 0; i < up->bypass.count; i++)
        add_to(p, AT_BYPASS, &up->bypass.items[i]);
    if (up->lan) {
        static const uint8_t multicast[4] = {224, 0, 0, 0};
        static const uint8_t broadcast[4] = {255, 255, 255, 255};
        add_to(p, AT_BYPASS, &(struct cidr){.addr = addr_from_v4(multicast), .prefix = 4});
        add_to(p, AT_BYPASS, &(struct cidr){.addr = addr_from_v4(broadcast), .prefix = 32});
        struct rule *rule = add(p, AT_NETWORKS, RULE_LOOKUP);
        rule->table = ROUTE_TABLE_MAIN;
        rule->suppress_default = true;
    }
    add_lookup(p, AT_ALL);
}

bool routing_fake_by_nftables(const struct options *o)
{
    bool users = o->up.include_uids.count > 0 || o->up.exclude_uids.count > 0;
    return o->up.include_cgroups.count > 0 || (o->up.gateway && users);
}

static void plan_direct(struct plan *p)
{
    add(p, AT_DIRECT, RULE_NOP);
    const struct cidr_list *fake = &p->options->fake_ranges;
    bool by_nftables = routing_fake_by_nftables(p->options);
    for (size_t i = 0; i < fake->count && !by_nftables; i++) {
        if (!same_family(p, &fake->items[i]))
            continue;
        struct rule *rule = add(p, AT_FAKE, RULE_UNREACHABLE);
        rule->has_to = true;
        rule->to = network_of(&fake->items[i]);
    }
}

size_t routing_plan(const struct options *options, int family, uint32_t base,
                    struct rule out[ROUTING_RULES_MAX])
{
    struct plan p = {.options = options, .family = family, .base = base, .rules = out};
    plan_sources(&p);
    plan_destinations(&p);
    plan_direct(&p);
    return p.count;
}

/* --- in place -------------------------------------------------------------------------------- */

int routing_find_base(struct route_session *s)
{
    for (uint32_t base = ROUTING_BASE_FIRST; base <= ROUTING_BASE_LAST; base += ROUTING_SPAN) {
        int rules = rule_count(s, base, base + ROUTING_SPAN - 1, false);
        int routes = rules == 0 ? route_count(s, base, false) : 0;
        if (rules < 0 || routes < 0)
            return rules < 0 ? rules : routes;
        if (rules == 0 && routes == 0)
            return (int)base;
    }
    return -EBUSY;
}

static const char *family_name(int family)
{
    return family == AF_INET ? "IPv4" : "IPv6";
}

/*
 * The table: into the device, and where that fails (IPv6 is off on the device, say) or the kill
 * switch is set, unreachable. Packets of a family that cannot be relayed do not leak.
 */
static int apply_table(struct route_session *s, const struct options *options, int family,
                       uint32_t base, int ifindex)
{
    int error = route_add_default(s, family, base, ifindex);
    if (error < 0)
        log_warn("%s cannot be routed into %s (%s): it is unreachable", family_name(family),
                 options->tun_name, strerror(-error));
    if (error < 0 || options->up.kill_switch)
        error = route_add_default(s, family, base, 0);
    if (error < 0)
        say("cannot add a route to table %u: %s", base, strerror(-error));
    return error;
}

static int apply_rule(struct route_session *s, const struct rule *rule)
{
    int error = rule_add(s, rule);
    if (error < 0)
        say("cannot add an %s policy rule of priority %u: %s", family_name(rule->family),
            rule->priority, strerror(-error));
    return error;
}

/* What is gone to comes first, what captures last: never is one captured who is exempt. */
static int apply_rules(struct route_session *s, const struct options *options, int family,
                       uint32_t base)
{
    struct rule rules[ROUTING_RULES_MAX];
    size_t count = routing_plan(options, family, base, rules);
    int error = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < count && error == 0; i++) {
            if ((rules[i].action == RULE_NOP) == (pass == 0))
                error = apply_rule(s, &rules[i]);
        }
    }
    return error;
}

/* A kernel without IPv6 has nothing to be captured there. */
static bool has_family(struct route_session *s, int family, uint32_t base)
{
    struct rule probe = {.family = family, .priority = base + AT_DIRECT, .action = RULE_NOP};
    return rule_add(s, &probe) != -EAFNOSUPPORT;
}

int routing_apply(struct route_session *s, const struct options *options, uint32_t base,
                  int ifindex)
{
    static const int families[] = {AF_INET, AF_INET6};
    for (size_t i = 0; i < 2; i++) {
        if (!has_family(s, families[i], base))
            continue;
        int error = apply_rules(s, options, families[i], base);
        if (error == 0)
            error = apply_table(s, options, families[i], base, ifindex);
        if (error < 0)
            return error;
    }
    return 0;
}

int routing_remove(struct route_session *s, uint32_t base)
{
    int routes = route_delete_ours(s, base);
    int rules = rule_delete_ours(s, base, base + ROUTING_SPAN - 1);
    return routes < 0 ? routes : rules;
}

int routing_remove_others(struct route_session *s, uint32_t base)
{
    int error = 0;
    for (uint32_t b = ROUTING_BASE_FIRST; b <= ROUTING_BASE_LAST && error == 0; b += ROUTING_SPAN)
        error = b == base ? 0 : routing_remove(s, b);
    return error;
}
