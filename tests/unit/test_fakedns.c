#include "core/dns/fakedns.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static struct cidr range(const char *text)
{
    struct cidr c;
    assert_true(cidr_parse(text, &c));
    return c;
}

static struct addr address(const char *text)
{
    struct addr a;
    assert_true(addr_parse(text, &a));
    return a;
}

static struct fakedns *with_ranges(const char *first, const char *second, const char *own)
{
    struct cidr ranges[2];
    size_t count = 0;
    struct addr mine[1];
    if (first)
        ranges[count++] = range(first);
    if (second)
        ranges[count++] = range(second);
    if (own)
        mine[0] = address(own);
    struct fakedns *f = fakedns_new(ranges, count, mine, own ? 1 : 0);
    assert_non_null(f);
    return f;
}

static struct addr assign(struct fakedns *f, const char *name, enum fakedns_family family)
{
    struct addr a;
    assert_true(fakedns_assign(f, name, family, &a));
    return a;
}

static void assert_name(struct fakedns *f, const struct addr *a, const char *expected)
{
    char name[DNS_TEXT_SIZE];
    assert_true(fakedns_name(f, a, name));
    assert_string_equal(name, expected);
}

static void test_a_name_keeps_its_addresses(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("198.18.0.1/15", "fd00:cafe::1/64", "198.18.0.1");
    struct addr v4 = assign(f, "example.com", FAKEDNS_V4);
    struct addr v6 = assign(f, "example.com", FAKEDNS_V6);
    struct addr other = assign(f, "example.net", FAKEDNS_V4);

    struct cidr range4 = range("198.18.0.0/15"), range6 = range("fd00:cafe::/64");
    assert_true(cidr_contains(&range4, &v4));
    assert_true(cidr_contains(&range6, &v6));
    assert_false(addr_equal(&v4, &other));
    struct addr again = assign(f, "example.com", FAKEDNS_V4);
    assert_true(addr_equal(&v4, &again));
    again = assign(f, "example.com", FAKEDNS_V6);
    assert_true(addr_equal(&v6, &again));
    assert_name(f, &v4, "example.com");
    assert_name(f, &v6, "example.com");
    assert_name(f, &other, "example.net");
    fakedns_free(f);
}

static void test_families_without_a_range(void **state)
{
    (void)state;
    struct addr a;
    struct fakedns *f = with_ranges("198.18.0.0/15", NULL, NULL);
    assert_true(fakedns_has(f, FAKEDNS_V4));
    assert_false(fakedns_has(f, FAKEDNS_V6));
    assert_false(fakedns_assign(f, "example.com", FAKEDNS_V6, &a));
    fakedns_free(f);

    f = fakedns_new(NULL, 0, NULL, 0);
    assert_non_null(f);
    assert_false(fakedns_has(f, FAKEDNS_V4));
    a = address("198.18.0.1");
    assert_false(fakedns_in_range(f, &a));
    fakedns_free(f);
}

static void test_network_broadcast_and_own_are_never_handed_out(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.9/29", "fd00::/125", "192.0.2.9");
    bool seen4[8] = {false}, seen6[8] = {false};
    char name[32];
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "n%d.test", i);
        struct addr a = assign(f, name, FAKEDNS_V4);
        seen4[a.bytes[15] - 8] = true;
        a = assign(f, name, FAKEDNS_V6);
        seen6[a.bytes[15]] = true;
    }
    /* .8 is the network, .9 our own, .15 broadcast; fd00:: is the subnet-router anycast. */
    const bool expected4[8] = {false, false, true, true, true, true, true, false};
    const bool expected6[8] = {false, true, true, true, true, true, true, true};
    assert_memory_equal(seen4, expected4, sizeof(seen4));
    assert_memory_equal(seen6, expected6, sizeof(seen6));

    struct addr own = address("192.0.2.9"), network = address("192.0.2.8");
    assert_true(fakedns_is_own(f, &own));
    assert_false(fakedns_is_own(f, &network));
    assert_true(fakedns_in_range(f, &network)); /* to be refused, not relayed */
    assert_false(fakedns_name(f, &network, (char[DNS_TEXT_SIZE]){0}));
    fakedns_free(f);
}

static void test_ranges_of_one_and_two_addresses(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.1/32", "192.0.2.4/31", NULL);
    bool seen[8] = {false};
    static const char *const names[] = {"a", "b", "c"};
    for (size_t i = 0; i < 3; i++)
        seen[assign(f, names[i], FAKEDNS_V4).bytes[15]] = true;
    assert_true(seen[1] && seen[4] && seen[5]);
    fakedns_free(f);

    f = with_ranges("192.0.2.1/32", NULL, "192.0.2.1"); /* nothing to hand out at all */
    struct addr a;
    assert_false(fakedns_assign(f, "a", FAKEDNS_V4, &a));
    fakedns_free(f);
}

static void test_overlapping_ranges_hand_an_address_out_once(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.0/29", "192.0.2.0/28", NULL);
    int seen[16] = {0};
    char name[32];
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof(name), "n%d", i);
        struct addr a = assign(f, name, FAKEDNS_V4);
        seen[a.bytes[15]]++;
        fakedns_hold(f, &a);
        assert_name(f, &a, name);
    }
    for (int i = 0; i < 16; i++)
        assert_true(seen[i] <= 1);
    fakedns_free(f);
}

static void test_the_name_used_longest_ago_gives_way(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.0/29", NULL, NULL); /* six addresses */
    char name[32];
    struct addr addrs[7];
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "n%d", i);
        addrs[i] = assign(f, name, FAKEDNS_V4);
    }
    assign(f, "n0", FAKEDNS_V4);     /* asked again */
    assert_name(f, &addrs[1], "n1"); /* a flow went there */
    addrs[6] = assign(f, "n6", FAKEDNS_V4);
    assert_true(addr_equal(&addrs[6], &addrs[2]));
    assert_name(f, &addrs[2], "n6");
    assert_name(f, &addrs[0], "n0");
    assert_name(f, &addrs[1], "n1");
    fakedns_free(f);
}

static void test_held_addresses_are_never_recycled(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.0/29", NULL, NULL);
    char name[32];
    struct addr held[6], a;
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "held%d", i);
        held[i] = assign(f, name, FAKEDNS_V4);
        fakedns_hold(f, &held[i]);
    }
    fakedns_hold(f, &held[3]); /* by two flows */
    assert_false(fakedns_assign(f, "one.more", FAKEDNS_V4, &a));
    a = assign(f, "held2", FAKEDNS_V4); /* what has an address is still answered */
    assert_true(addr_equal(&a, &held[2]));

    fakedns_release(f, &held[3]);
    assert_false(fakedns_assign(f, "one.more", FAKEDNS_V4, &a));
    fakedns_release(f, &held[3]);
    a = assign(f, "one.more", FAKEDNS_V4);
    assert_true(addr_equal(&a, &held[3]));
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "held%d", i);
        assert_name(f, &held[i], i == 3 ? "one.more" : name);
    }
    fakedns_free(f);
}

static void test_holding_what_is_nobodys_is_harmless(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("192.0.2.0/29", NULL, NULL);
    struct addr inside = address("192.0.2.3"), outside = address("203.0.113.1");
    fakedns_hold(f, &inside);
    fakedns_release(f, &inside);
    fakedns_hold(f, &outside);
    fakedns_release(f, &outside);
    struct addr a = assign(f, "a", FAKEDNS_V4);
    fakedns_release(f, &a); /* never held */
    assert_name(f, &a, "a");
    fakedns_free(f);
}

static void test_memory_is_bounded_and_survives_a_flood(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("10.0.0.0/8", "fd00::/8", "10.0.0.1");
    char name[DNS_TEXT_SIZE];
    struct addr first = assign(f, "first", FAKEDNS_V4);
    fakedns_hold(f, &first);
    for (int i = 0; i < 3 * FAKEDNS_NAMES_MAX; i++) {
        snprintf(name, sizeof(name), "flood-%d.test", i);
        struct addr a = assign(f, name, i & 1 ? FAKEDNS_V4 : FAKEDNS_V6);
        assert_name(f, &a, name);
    }
    assert_name(f, &first, "first");
    /* An address that no slot stands for is in the range all the same. */
    struct addr far = address("10.200.0.1");
    assert_true(fakedns_in_range(f, &far));
    assert_false(fakedns_name(f, &far, name));
    far = address("fd00:0:0:0:1::1");
    assert_true(fakedns_in_range(f, &far));
    assert_false(fakedns_name(f, &far, name));
    fakedns_free(f);
}

static void test_the_longest_name(void **state)
{
    (void)state;
    struct fakedns *f = with_ranges("10.0.0.0/8", NULL, NULL);
    char name[DNS_TEXT_MAX + 2];
    memset(name, 'x', sizeof(name));
    name[DNS_TEXT_MAX + 1] = '\0';
    struct addr a;
    assert_false(fakedns_assign(f, name, FAKEDNS_V4, &a));
    assert_false(fakedns_assign(f, "", FAKEDNS_V4, &a));
    name[DNS_TEXT_MAX] = '\0';
    a = assign(f, name, FAKEDNS_V4);
    assert_name(f, &a, name);
    fakedns_free(f);
}

/* --- several processes ----------------------------------------------------------------------- */

static struct fakedns *shared_by_two(void)
{
    const struct cidr small = range("198.18.0.0/24");
    struct fakedns *f = fakedns_new_shared(&small, 1, NULL, 0, 2);
    assert_non_null(f);
    return f;
}

static void test_processes_share_names(void **state)
{
    (void)state;
    struct fakedns *f = shared_by_two();
    fakedns_join(f, 0);
    struct addr a = assign(f, "of-the-parent.example", FAKEDNS_V4);
    pid_t child = fork();
    if (child == 0) {
        fakedns_join(f, 1);
        struct addr b;
        char name[DNS_TEXT_SIZE];
        bool good = fakedns_name(f, &a, name) && strcmp(name, "of-the-parent.example") == 0 &&
                    fakedns_assign(f, "of-the-child.example", FAKEDNS_V4, &b);
        _exit(good ? 0 : 1);
    }
    int status = 1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    struct addr b = assign(f, "of-the-child.example", FAKEDNS_V4);
    assert_false(addr_equal(&a, &b));
    fakedns_free(f);
}

/* What it held is its own again for others to have, once its successor has joined. */
static void test_a_dead_users_holds_are_released(void **state)
{
    (void)state;
    const struct cidr two = range("198.18.0.0/31");
    struct fakedns *f = fakedns_new_shared(&two, 1, NULL, 0, 2);
    assert_non_null(f);
    struct addr a = assign(f, "a.example", FAKEDNS_V4);
    struct addr b = assign(f, "b.example", FAKEDNS_V4);
    fakedns_hold(f, &a);
    fakedns_join(f, 1);
    fakedns_hold(f, &a);
    fakedns_hold(f, &b);
    struct addr c;
    assert_false(fakedns_assign(f, "c.example", FAKEDNS_V4, &c));
    fakedns_join(f, 1); /* the successor */
    assert_true(fakedns_assign(f, "c.example", FAKEDNS_V4, &c));
    assert_true(addr_equal(&c, &b));
    assert_name(f, &a, "a.example"); /* user 0 holds it still */
    fakedns_free(f);
}

/* Change the map without end, to be killed at any instruction. */
static void churn(struct fakedns *f)
{
    fakedns_join(f, 1);
    for (unsigned i = 0;; i++) {
        struct addr a;
        char name[32];
        (void)snprintf(name, sizeof(name), "n%u.example", i * 2654435761u % 500);
        if (!fakedns_assign(f, name, FAKEDNS_V4, &a))
            continue;
        fakedns_hold(f, &a);
        fakedns_release(f, &a);
    }
}

/* Every name has one address, every address its name, and everything goes on. */
static void assert_sound(struct fakedns *f)
{
    for (unsigned i = 0; i < 250; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "n%u.example", i);
        struct addr a = assign(f, name, FAKEDNS_V4);
        assert_name(f, &a, name);
    }
}

static void test_killed_in_the_middle_of_a_change(void **state)
{
    (void)state;
    struct fakedns *f = shared_by_two();
    fakedns_join(f, 0);
    for (unsigned round = 0; round < 60; round++) {
        pid_t child = fork();
        if (child == 0)
            churn(f);
        const struct timespec pause = {.tv_nsec = 1000000 + round * 7919 % 1000 * 1000};
        (void)nanosleep(&pause, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        fakedns_user_died(f, 1);
        assert_sound(f);
    }
    fakedns_free(f);
}

/* Random operations against a naive model: the map is one-to-one and respects holds. */
static void test_against_a_model(void **state)
{
    (void)state;
    enum { NAMES = 40, SLOTS = 14 };
    struct fakedns *f = with_ranges("192.0.2.0/28", NULL, NULL);
    int name_of[16]; /* by last octet: which name was assigned there last, -1: none */
    int holds[16] = {0};
    for (int i = 0; i < 16; i++)
        name_of[i] = -1;
    srand(7);
    for (int step = 0; step < 20000; step++) {
        int n = rand() % NAMES;
        char name[16], found[DNS_TEXT_SIZE];
        snprintf(name, sizeof(name), "n%d", n);
        struct addr a = address("192.0.2.0");
        a.bytes[15] = (uint8_t)(rand() % 16);
        int host = a.bytes[15];
        switch (rand() % 4) {
        case 0:
            if (name_of[host] >= 0 && holds[host] < 3) {
                fakedns_hold(f, &a);
                holds[host]++;
            }
            break;
        case 1:
            if (holds[host] > 0) {
                fakedns_release(f, &a);
                holds[host]--;
            }
            break;
        case 2:
            if (fakedns_assign(f, name, FAKEDNS_V4, &a)) {
                host = a.bytes[15];
                assert_true(host > 0 && host < 15);
                if (name_of[host] != n)
                    assert_int_equal(holds[host], 0);
                for (int i = 0; i < 16; i++)
                    assert_true(i == host || name_of[i] != n);
                name_of[host] = n;
            } else {
                for (int i = 1; i <= SLOTS; i++)
                    assert_true(holds[i] > 0 && name_of[i] != n);
            }
            break;
        case 3:
            if (name_of[host] < 0) {
                assert_false(fakedns_name(f, &a, found));
            } else {
                snprintf(name, sizeof(name), "n%d", name_of[host]);
                assert_name(f, &a, name);
            }
            break;
        }
    }
    fakedns_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_name_keeps_its_addresses),
        cmocka_unit_test(test_families_without_a_range),
        cmocka_unit_test(test_network_broadcast_and_own_are_never_handed_out),
        cmocka_unit_test(test_ranges_of_one_and_two_addresses),
        cmocka_unit_test(test_overlapping_ranges_hand_an_address_out_once),
        cmocka_unit_test(test_the_name_used_longest_ago_gives_way),
        cmocka_unit_test(test_held_addresses_are_never_recycled),
        cmocka_unit_test(test_holding_what_is_nobodys_is_harmless),
        cmocka_unit_test(test_processes_share_names),
        cmocka_unit_test(test_a_dead_users_holds_are_released),
        cmocka_unit_test(test_killed_in_the_middle_of_a_change),
        cmocka_unit_test(test_memory_is_bounded_and_survives_a_flood),
        cmocka_unit_test(test_the_longest_name),
        cmocka_unit_test(test_against_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
