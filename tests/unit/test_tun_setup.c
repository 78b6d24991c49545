/*
 * What programs are told to ask as their resolver, by `up` and by `run`: somebody in the device's
 * range, never the device itself, which would answer nothing.
 */
#include "core/command/tun_setup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void expect_resolver(const struct options *o, const char *text)
{
    struct addr got = tun_setup_resolver(o), expected;
    assert_true(addr_parse(text, &expected));
    assert_true(addr_equal(&got, &expected));
}

static void give_address(struct options *o, const char *text)
{
    assert_true(cidr_parse(text, &o->addresses.items[o->addresses.count++]));
}

static void test_resolver(void **state)
{
    static struct options o;
    (void)state;
    o.dns = DNS_FAKE;
    assert_true(endpoint_parse("9.9.9.9:53", 0, &o.dns_server));
    expect_resolver(&o, "9.9.9.9");
    give_address(&o, "198.18.0.1/15");
    expect_resolver(&o, "198.18.0.2");
    give_address(&o, "fd00::1/64");
    expect_resolver(&o, "198.18.0.2");
    give_address(&o, "198.18.0.2/15"); /* the device's own, too */
    expect_resolver(&o, "9.9.9.9");
    o.addresses.count = 1;
    o.dns = DNS_RELAY;
    expect_resolver(&o, "9.9.9.9");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resolver)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
