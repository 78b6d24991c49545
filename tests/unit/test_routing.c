/*
 * The plan of policy rules, tried on a model of the kernel: rules are read in the order of their
 * priorities, gotos followed, and what a packet meets in the end is compared.
 */
#include "core/up/routing.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BASE = 8500 };

/* Where a packet ends. */
enum fate { TUNNEL, DIRECT, UNREACHABLE };

struct flow {
    uint32_t mark, uid;
    bool forwarded;
    uint8_t protocol;
    uint16_t port;
    const char *from, *to;
    bool on_lan; /* the main table has a route to it that is not the default one */
};

static bool in_range(bool has, const struct cidr *range, const char *text)
{
    struct addr a;
    if (!has)
        return true;
    return text && addr_parse(text, &a) && cidr_contains(range, &a);
}

static bool matches(const struct rule *r, const struct flow *f)
{
    return (!r->forwarded || f->forwarded) && (!r->mark || r->mark == f->mark) &&
           (!r->has_uids || (f->uid >= r->first_uid && f->uid <= r->last_uid)) &&
           (!r->protocol || r->protocol == f->protocol) && (!r->port || r->port == f->port) &&
           in_range(r->has_from, &r->from, f->from) && in_range(r->has_to, &r->to, f->to);
}

static enum fate follow(const struct rule *rules, size_t count, const struct flow *f)
{
    uint32_t from = 0;
    for (size_t i = 0; i < count; i++) {
        const struct rule *r = &rules[i];
        assert_in_range(r->priority, BASE, BASE + ROUTING_SPAN - 1);
        assert_true(i == 0 || r->priority >= rules[i - 1].priority);
        if (r->priority < from || !matches(r, f))
            continue;
        switch (r->action) {
        case RULE_LOOKUP:
            if (r->table == BASE)
                return TUNNEL;
            assert_true(r->suppress_default);
            if (f->on_lan)
                return DIRECT;
            break;
        case RULE_GOTO:
            assert_true(r->target > r->priority);
            from = r->target;
            break;
        case RULE_UNREACHABLE:
            return UNREACHABLE;
        case RULE_NOP:
            break;
        }
    }
    return DIRECT;
}

static struct options options_of(const char *text)
{
    char line[512] = "culvert up ";
    strcat(line, text);
    strcat(line, " socks5://192.0.2.1");
    char *argv[32];
    int argc = 0;
    char *rest = NULL;
    static char kept[512];
    strcpy(kept, line);
    for (char *w = strtok_r(kept, " ", &rest); w; w = strtok_r(NULL, " ", &rest))
        argv[argc++] = w;
    struct options o;
    char error[OPTIONS_ERROR_MAX];
    if (options_parse(argc, argv, &o, error) != OPTIONS_RUN)
        fail_msg("%s", error);
    o.outbound.mark = o.outbound.mark ? o.outbound.mark : ROUTING_MARK;
    return o;
}

static enum fate fate_of(const struct options *o, struct flow f)
{
    struct rule rules[ROUTING_RULES_MAX];
    int family = strchr(f.to, ':') ? AF_INET6 : AF_INET;
    if (!f.protocol)
        f.protocol = IPPROTO_TCP;
    size_t count = routing_plan(o, family, BASE, rules);
    return follow(rules, count, &f);
}

static void captures_all_but_its_own(void **state)
{
    (void)state;
    struct options o = options_of("");
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4"}), TUNNEL);
    assert_int_equal(fate_of(&o, (struct flow){.to = "2001:db8::1"}), TUNNEL);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .mark = ROUTING_MARK}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "2001:db8::1", .mark = ROUTING_MARK}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .mark = ROUTING_MARK_ANSWER}),
                     DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .mark = 7}), TUNNEL);
    o = options_of("--mark 7");
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .mark = 7}), DIRECT);
}

static void leaves_local_networks_alone(void **state)
{
    (void)state;
    struct flow lan = {.to = "192.168.1.9", .on_lan = true};
    struct options o = options_of("");
    assert_int_equal(fate_of(&o, lan), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "224.0.0.251"}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "255.255.255.255"}), DIRECT);
    o = options_of("--no-lan");
    assert_int_equal(fate_of(&o, lan), TUNNEL);
}

static void captures_queries_to_any_resolver(void **state)
{
    (void)state;
    static const uint8_t protocols[] = {IPPROTO_UDP, IPPROTO_TCP};
    struct options o = options_of("--bypass 192.168.1.1/24 --exclude-uid 500");
    for (size_t i = 0; i < 2; i++) {
        struct flow query = {
            .to = "192.168.1.1", .on_lan = true, .protocol = protocols[i], .port = 53};
        assert_int_equal(fate_of(&o, query), TUNNEL);
        query.to = "fe80::1";
        assert_int_equal(fate_of(&o, query), TUNNEL);
        query.mark = ROUTING_MARK;
        assert_int_equal(fate_of(&o, query), DIRECT);
        query.mark = 0;
        query.uid = 500;
        assert_int_equal(fate_of(&o, query), DIRECT);
    }
}

static void lets_ranges_by(void **state)
{
    (void)state;
    struct options o = options_of("--bypass 10.1.2.3/8 --bypass 2001:db8::/33");
    assert_int_equal(fate_of(&o, (struct flow){.to = "10.200.0.1"}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "11.0.0.1"}), TUNNEL);
    assert_int_equal(fate_of(&o, (struct flow){.to = "2001:db8:7fff::1"}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "2001:db8:8000::1"}), TUNNEL);
}

static void excludes_and_includes_users(void **state)
{
    (void)state;
    struct options o = options_of("--exclude-uid 1000-1999");
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .uid = 1999}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .uid = 2000}), TUNNEL);
    o = options_of("--include-uid 1000-1999 --exclude-uid 1500");
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .uid = 1000}), TUNNEL);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .uid = 1500}), DIRECT);
    assert_int_equal(fate_of(&o, (struct flow){.to = "1.2.3.4", .uid = 0}), DIRECT);
}

/* A fake address means nothing outside of the tunnel: neither to an excluded proxy, nor to us. */
static void keeps_fake_addresses_inside(void **state)
{
    (void)state;
    struct options o = options_of("--exclude-uid 1000");
    assert_int_equal(fate_of(&o, (struct flow){.to = "198.18.0.9"}), TUNNEL);
    assert_int_equal(fate_of(&o, (struct flow){.to = "198.18.0.9", .uid = 1000}), UNREACHABLE);
    assert_int_equal(fate_of(&o, (struct flow){.to = "fdc0:4c56::9", .uid = 1000}), UNREACHABLE);
    assert_int_equal(fate_of(&o, (struct flow){.to = "198.18.0.9", .mark = ROUTING_MARK}),
                     UNREACHABLE);
}

/* The kernel looks up the way back of a packet from the device as user 0 of the device's address.
 */
static void passes_reverse_path_checks(void **state)
{
    (void)state;
    struct options o = options_of("--exclude-uid 0");
    assert_int_equal(fate_of(&o, (struct flow){.from = "198.18.0.1", .to = "1.2.3.4"}), TUNNEL);
    o = options_of("--include-uid 1000");
    assert_int_equal(fate_of(&o, (struct flow){.from = "198.18.0.1", .to = "198.18.0.7"}), TUNNEL);
}

static void forwards_as_before(void **state)
{
    (void)state;
    struct options o = options_of("");
    struct flow f = {.from = "172.17.0.2", .to = "1.2.3.4", .forwarded = true};
    assert_int_equal(fate_of(&o, f), DIRECT);
}

/* The reverse path of what is forwarded is looked up as user 0's. */
static void forwards_through_the_tunnel(void **state)
{
    (void)state;
    struct options o = options_of("--gateway --exclude-uid 0");
    struct flow f = {.from = "172.17.0.2", .to = "1.2.3.4", .forwarded = true};
    assert_int_equal(fate_of(&o, f), TUNNEL);
    f.forwarded = false;
    f.to = "198.18.0.7";
    assert_int_equal(fate_of(&o, f), DIRECT); /* the main table has the device's network */
}

static void always_fits(void **state)
{
    (void)state;
    struct options o = options_of("");
    struct addr a;
    assert_true(addr_parse("192.0.2.1", &a));
    for (size_t i = 0; i < OPTIONS_LIST_MAX; i++) {
        o.addresses.items[i] = o.fake_ranges.items[i] = o.up.bypass.items[i] =
            (struct cidr){.addr = a, .prefix = 32};
        o.up.include_uids.items[i] = o.up.exclude_uids.items[i] = (struct uid_range){1, 2};
    }
    o.addresses.count = o.fake_ranges.count = o.up.bypass.count = OPTIONS_LIST_MAX;
    o.up.include_uids.count = o.up.exclude_uids.count = OPTIONS_LIST_MAX;
    o.up.exclude_cgroups.count = 1;
    struct rule rules[ROUTING_RULES_MAX];
    assert_in_range(routing_plan(&o, AF_INET, BASE, rules), 5 * OPTIONS_LIST_MAX,
                    ROUTING_RULES_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captures_all_but_its_own),
        cmocka_unit_test(leaves_local_networks_alone),
        cmocka_unit_test(captures_queries_to_any_resolver),
        cmocka_unit_test(lets_ranges_by),
        cmocka_unit_test(excludes_and_includes_users),
        cmocka_unit_test(keeps_fake_addresses_inside),
        cmocka_unit_test(passes_reverse_path_checks),
        cmocka_unit_test(forwards_as_before),
        cmocka_unit_test(forwards_through_the_tunnel),
        cmocka_unit_test(always_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
