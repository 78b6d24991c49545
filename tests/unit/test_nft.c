/* The nftables script as text, and where cgroups are. What the kernel makes of it: tests/e2e. */
#include "core/up/nft.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct network_list networks;
static struct connection_list *before;
static const char *problem;
static char script[NFT_SCRIPT_MAX];

static struct options plain_options(void)
{
    struct options o;
    memset(&o, 0, sizeof(o));
    o.outbound.mark = 0x63;
    o.up.lan = true;
    assert_true(cidr_parse("198.18.0.1/15", &o.addresses.items[0]));
    o.addresses.count = 1;
    o.fake_ranges = o.addresses;
    return o;
}

static size_t compose(const struct options *o, bool owned, size_t size)
{
    const struct nft_table t = {.options = o,
                                .device = "culvert0",
                                .networks = &networks,
                                .before = before,
                                .cgroup_mount = "/sys/fs/cgroup",
                                .owned = owned};
    return nft_compose(&t, script, size, &problem);
}

static void drops_queries(void **state)
{
    (void)state;
    struct options o = plain_options();
    size_t len = compose(&o, true, sizeof(script));
    assert_int_equal(len, strlen(script));
    assert_non_null(strstr(script, "flags owner"));
    assert_non_null(strstr(script, "meta mark 0x63 accept"));
    assert_non_null(strstr(script, "th dport 53 drop"));
    assert_null(strstr(script, "    drop\n"));
    assert_true(compose(&o, false, sizeof(script)) > 0);
    assert_null(strstr(script, "flags owner"));
}

static void blocks_all_but_local_networks(void **state)
{
    (void)state;
    struct options o = plain_options();
    o.up.kill_switch = true;
    assert_true(cidr_parse("192.0.2.0/24", &o.up.bypass.items[0]));
    o.up.bypass.count = 1;
    assert_true(cidr_parse("192.168.1.0/24", &networks.items[0]));
    assert_true(cidr_parse("2001:db8::/64", &networks.items[1]));
    networks.count = 2;
    assert_true(compose(&o, false, sizeof(script)) > 0);
    assert_non_null(strstr(script, "ip daddr 192.0.2.0/24 accept"));
    assert_non_null(strstr(script, "ip daddr 192.168.1.0/24 accept"));
    assert_non_null(strstr(script, "ip6 daddr 2001:db8::/64 accept"));
    assert_non_null(strstr(script, "    drop\n"));
    o.up.lan = false;
    assert_true(compose(&o, false, sizeof(script)) > 0);
    assert_null(strstr(script, "192.168.1.0/24"));
    networks.count = 0;
}

static void names_users_and_cgroups(void **state)
{
    (void)state;
    struct options o = plain_options();
    o.up.exclude_uids.items[0] = (struct uid_range){7, 9};
    o.up.include_uids.items[0] = (struct uid_range){1000, 1000};
    o.up.exclude_uids.count = o.up.include_uids.count = 1;
    o.up.exclude_cgroups.items[0] = "/a/b";
    o.up.include_cgroups.items[0] = "c";
    o.up.exclude_cgroups.count = o.up.include_cgroups.count = 1;
    assert_true(compose(&o, false, sizeof(script)) > 0);
    assert_non_null(strstr(script, "meta skuid { 7-9 } accept"));
    assert_non_null(strstr(script, "meta skuid { 1000-1000 } goto captured"));
    assert_non_null(strstr(script, "socket cgroupv2 level 2 \"a/b\""));
    assert_non_null(strstr(script, "socket cgroupv2 level 1 \"c\""));
    assert_non_null(strstr(script, "ip saddr 198.18.0.1 masquerade"));
    assert_non_null(strstr(script, "ip daddr 198.18.0.1/15 jump fake"));
}

static struct connection connection(const char *local, const char *remote)
{
    struct connection c;
    assert_true(endpoint_parse(local, 0, &c.local) && endpoint_parse(remote, 0, &c.remote));
    return c;
}

static void answers_outside(void **state)
{
    (void)state;
    static struct connection_list list;
    struct options o = plain_options();
    assert_true(compose(&o, true, sizeof(script)) > 0);
    assert_null(strstr(script, "chain arriving"));
    list.items[0] = connection("192.0.2.1:22", "198.51.100.7:50000");
    list.items[1] = connection("[2001:db8::1]:22", "[2001:db8:1::7]:50001");
    list.items[2] = connection("192.0.2.1:22", "198.51.100.8:50002");
    list.count = 3;
    before = &list;
    assert_true(compose(&o, true, sizeof(script)) > 0);
    assert_non_null(strstr(script, "chain arriving"));
    assert_non_null(strstr(script, "192.0.2.1 . 22 . 198.51.100.7 . 50000,\n"));
    assert_non_null(strstr(script, "192.0.2.1 . 22 . 198.51.100.8 . 50002 }\n"));
    assert_non_null(strstr(script, "2001:db8::1 . 22 . 2001:db8:1::7 . 50001 }\n"));
    assert_null(strstr(script, "iifname \"culvert0\" meta mark 0 fib"));
    assert_null(strstr(script, " ct ")); /* a table of connections has its price */
    o.up.include_cgroups.items[0] = "c";
    o.up.include_cgroups.count = 1;
    assert_true(compose(&o, true, sizeof(script)) > 0);
    assert_non_null(strstr(script, "iifname \"culvert0\" meta mark 0 fib"));
    o.up.gateway = true;
    assert_true(compose(&o, true, sizeof(script)) > 0);
    assert_non_null(strstr(script, "ct status dnat"));
    struct connection longest = connection("[fd00:1111:2222:3333:4444:5555:6666:7777]:65535",
                                           "[fd00:1111:2222:3333:4444:5555:6666:7778]:65535");
    for (list.count = 0; list.count < CONNECTION_LIST_MAX; list.count++)
        list.items[list.count] = longest;
    assert_true(compose(&o, true, sizeof(script)) > 0);
    before = NULL;
}

static void tells_what_cannot_be(void **state)
{
    (void)state;
    struct options o = plain_options();
    for (size_t size = 1; size < 200; size++)
        assert_int_equal(compose(&o, true, size), 0);
    o.up.exclude_cgroups.items[0] = "a\" accept }";
    o.up.exclude_cgroups.count = 1;
    assert_int_equal(compose(&o, true, sizeof(script)), 0);
    assert_ptr_equal(problem, o.up.exclude_cgroups.items[0]);
}

static void finds_cgroups(void **state)
{
    (void)state;
    static const struct {
        const char *mount, *name, *path;
        unsigned level;
    } cases[] = {
        {"/sys/fs/cgroup", "user.slice", "user.slice", 1},
        {"/sys/fs/cgroup", "/user.slice/a.service", "user.slice/a.service", 2},
        {"/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/a//", "user.slice/a", 2},
        {"/sys/fs/cgroup/unified", "x/y/z", "unified/x/y/z", 3},
        {"/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/x", "unified/x", 1},
    };
    struct nft_cgroup c;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_true(nft_find_cgroup(cases[i].mount, cases[i].name, &c));
        assert_string_equal(c.path, cases[i].path);
        assert_int_equal(c.level, cases[i].level);
    }
    assert_false(nft_find_cgroup("/mnt/cgroup", "x", &c));
    assert_false(nft_find_cgroup("/sys/fs/cgroup", "/", &c));
    assert_false(nft_find_cgroup("/sys/fs/cgroup", "../x", &c));
    assert_false(nft_find_cgroup("/sys/fs/cgroup", "a/../x", &c));
    assert_false(nft_find_cgroup("/sys/fs/cgroup", "a\"b", &c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drops_queries),           cmocka_unit_test(blocks_all_but_local_networks),
        cmocka_unit_test(names_users_and_cgroups), cmocka_unit_test(tells_what_cannot_be),
        cmocka_unit_test(answers_outside),         cmocka_unit_test(finds_cgroups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
