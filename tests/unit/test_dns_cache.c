#include "core/dns/dns_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct dns_key key_of(const char *name, uint16_t type)
{
    struct dns_request request = {.has_question = true};
    struct dns_key key;
    assert_true(dns_name_parse(name, &request.question.name));
    request.question.type = type;
    request.question.class_ = DNS_CLASS_IN;
    dns_key_make(&key, &request);
    return key;
}

static void put(struct dns_cache *c, const char *name, const char *value, uint32_t ttl,
                uint64_t now)
{
    struct dns_key key = key_of(name, DNS_TYPE_A);
    dns_cache_put(c, &key, (const uint8_t *)value, strlen(value) + 1, ttl, now);
}

/* The value kept for `name` and its age; NULL when there is none. */
static const char *get(struct dns_cache *c, const char *name, uint64_t now, uint32_t *age)
{
    struct dns_key key = key_of(name, DNS_TYPE_A);
    size_t len;
    return (const char *)dns_cache_get(c, &key, now, &len, age);
}

static void test_an_answer_lives_for_its_ttl(void **state)
{
    (void)state;
    uint32_t age;
    struct dns_cache *c = dns_cache_new(10, 100000);
    put(c, "a.test", "one", 5, 1000);
    assert_string_equal(get(c, "a.test", 1000, &age), "one");
    assert_int_equal(age, 0);
    assert_string_equal(get(c, "A.TEST", 5999, &age), "one"); /* any case */
    assert_int_equal(age, 4);
    assert_null(get(c, "b.test", 5999, &age));
    assert_null(get(c, "a.test", 6000, &age));
    assert_null(get(c, "a.test", 1000, &age)); /* it is gone for good */
    put(c, "a.test", "none", 0, 1000);
    assert_null(get(c, "a.test", 1000, &age));
    dns_cache_free(c);
}

static void test_a_newer_answer_replaces(void **state)
{
    (void)state;
    uint32_t age;
    struct dns_cache *c = dns_cache_new(10, 100000);
    put(c, "a.test", "one", 5, 0);
    put(c, "a.test", "two", 50, 3000);
    assert_string_equal(get(c, "a.test", 10000, &age), "two");
    assert_int_equal(age, 7);
    put(c, "a.test", "", 0, 10000); /* an answer not to be kept ends the old one too */
    assert_null(get(c, "a.test", 10000, &age));
    dns_cache_free(c);
}

static void test_types_and_flags_are_kept_apart(void **state)
{
    (void)state;
    struct dns_cache *c = dns_cache_new(10, 100000);
    put(c, "a.test", "address", 5, 0);
    struct dns_key key = key_of("a.test", DNS_TYPE_AAAA);
    size_t len;
    uint32_t age;
    assert_null(dns_cache_get(c, &key, 0, &len, &age));

    struct dns_request request = {.dnssec_ok = true};
    assert_true(dns_name_parse("a.test", &request.question.name));
    request.question.type = DNS_TYPE_A;
    request.question.class_ = DNS_CLASS_IN;
    dns_key_make(&key, &request);
    assert_null(dns_cache_get(c, &key, 0, &len, &age));
    dns_cache_free(c);
}

static void test_the_answer_used_longest_ago_gives_way(void **state)
{
    (void)state;
    uint32_t age;
    struct dns_cache *c = dns_cache_new(3, 100000);
    put(c, "a", "a", 50, 0);
    put(c, "b", "b", 50, 0);
    put(c, "c", "c", 50, 0);
    assert_non_null(get(c, "a", 0, &age));
    put(c, "d", "d", 50, 0);
    assert_non_null(get(c, "a", 0, &age));
    assert_null(get(c, "b", 0, &age));
    assert_non_null(get(c, "c", 0, &age));
    assert_non_null(get(c, "d", 0, &age));
    dns_cache_free(c);
}

static void test_bytes_are_bounded(void **state)
{
    (void)state;
    uint32_t age;
    struct dns_cache *c = dns_cache_new(1000, 20000);
    static char big[8000], huge[30000];
    memset(big, 'x', sizeof(big) - 1);
    memset(huge, 'x', sizeof(huge) - 1);
    put(c, "a", big, 50, 0);
    put(c, "b", big, 50, 0);
    put(c, "c", big, 50, 0);
    assert_null(get(c, "a", 0, &age));
    assert_non_null(get(c, "b", 0, &age));
    assert_non_null(get(c, "c", 0, &age));
    put(c, "d", huge, 50, 0); /* fits never: the others stay */
    assert_null(get(c, "d", 0, &age));
    assert_non_null(get(c, "b", 0, &age));
    dns_cache_free(c);

    c = dns_cache_new(0, 0);
    put(c, "a", "a", 50, 0);
    assert_null(get(c, "a", 0, &age));
    dns_cache_free(c);
}

static void test_a_flood_of_names(void **state)
{
    (void)state;
    struct dns_cache *c = dns_cache_new(512, 1u << 20);
    char name[64];
    uint32_t age;
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof(name), "n%d.flood.test", i);
        put(c, name, name, (uint32_t)(i % 7), (uint64_t)i * 10);
        if (i % 7 != 0)
            assert_string_equal(get(c, name, (uint64_t)i * 10, &age), name);
    }
    dns_cache_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_answer_lives_for_its_ttl),
        cmocka_unit_test(test_a_newer_answer_replaces),
        cmocka_unit_test(test_types_and_flags_are_kept_apart),
        cmocka_unit_test(test_the_answer_used_longest_ago_gives_way),
        cmocka_unit_test(test_bytes_are_bounded),
        cmocka_unit_test(test_a_flood_of_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
