#include "core/base/map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/list.h"

struct number {
    struct map_entry entry;
    uint32_t key;
    bool seen;
};

static bool number_equal(const struct map_entry *entry, const void *key)
{
    return ((const struct number *)(const void *)entry)->key == *(const uint32_t *)key;
}

static struct number *find(struct map *m, uint32_t key)
{
    struct map_entry *e = map_find(m, hash_bytes(&key, sizeof(key)), &key);
    return e ? CONTAINER_OF(e, struct number, entry) : NULL;
}

static void insert(struct map *m, struct number *n, uint32_t key)
{
    n->key = key;
    map_insert(m, &n->entry, hash_bytes(&key, sizeof(key)));
}

/* Reference values: CPython 3.11's siphash13 with PYTHONHASHSEED=0, a key of zeros. */
static void test_siphash13(void **state)
{
    (void)state;
    static const struct {
        size_t len;
        uint64_t hash;
    } rows[] = {
        {1, 0x68a914128e01e473},  {7, 0x2f098ab0c751325a},  {8, 0xead411e67ebe2eea},
        {9, 0x75927f9d95124362},  {15, 0xf30eb725bb91c9ea}, {16, 0x8972188433a5c5b7},
        {31, 0x169739443111d49b},
    };
    uint8_t bytes[32];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)i;
    hash_seed(0, 0);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(hash_bytes(bytes, rows[i].len), rows[i].hash);
    hash_seed(1, 0);
    assert_int_not_equal(hash_bytes(bytes, 8), rows[2].hash);
    hash_seed(0, 1);
    assert_int_not_equal(hash_bytes(bytes, 8), rows[2].hash);
}

enum { MANY = 20000 };

/* At each size, while tables grow in steps, exactly what was inserted is found. */
static void test_grows_and_finds_everything(void **state)
{
    (void)state;
    struct map m;
    struct number *numbers = calloc(MANY, sizeof(*numbers));
    assert_non_null(numbers);
    assert_int_equal(map_init(&m, 1, number_equal), 0);
    for (uint32_t i = 0; i < MANY; i++) {
        insert(&m, &numbers[i], i);
        assert_ptr_equal(find(&m, i), &numbers[i]);
        assert_ptr_equal(find(&m, i / 2), &numbers[i / 2]);
        assert_null(find(&m, i + 1));
    }
    assert_int_equal(m.size, MANY);
    assert_true(m.bucket_count >= MANY / 2);
    for (uint32_t i = 0; i < MANY; i++)
        assert_ptr_equal(find(&m, i), &numbers[i]);
    map_free(&m);
    free(numbers);
}

static void test_random_operations_against_a_table(void **state)
{
    (void)state;
    enum { KEYS = 512, STEPS = 100000 };
    static struct number numbers[KEYS];
    bool present[KEYS] = {false};
    size_t count = 0;
    struct map m;
    assert_int_equal(map_init(&m, 8, number_equal), 0);
    srand(7);
    for (int step = 0; step < STEPS; step++) {
        uint32_t key = (uint32_t)rand() % KEYS;
        struct number *found = find(&m, key);
        assert_ptr_equal(found, present[key] ? &numbers[key] : NULL);
        if (found) {
            map_remove(&m, &found->entry);
            count--;
        } else {
            insert(&m, &numbers[key], key);
            count++;
        }
        present[key] = !present[key];
        assert_int_equal(m.size, count);
    }
    map_free(&m);
}

struct visit {
    struct map *map;
    size_t count;
    bool remove;
};

static void on_each(struct map_entry *entry, void *arg)
{
    struct visit *v = arg;
    struct number *n = CONTAINER_OF(entry, struct number, entry);
    assert_false(n->seen);
    n->seen = true;
    v->count++;
    if (v->remove)
        map_remove(v->map, entry);
}

/* 65 entries are in the middle of the growth from 64 buckets to 128. */
static void test_each_visits_once_also_while_growing(void **state)
{
    (void)state;
    static struct number numbers[66];
    struct map m;
    assert_int_equal(map_init(&m, 8, number_equal), 0);
    for (uint32_t i = 0; i < 66; i++)
        insert(&m, &numbers[i], i);
    assert_non_null(m.old_buckets);
    struct visit v = {.map = &m};
    map_each(&m, on_each, &v);
    assert_int_equal(v.count, 66);
    for (size_t i = 0; i < 66; i++)
        numbers[i].seen = false;
    v = (struct visit){.map = &m, .remove = true};
    map_each(&m, on_each, &v);
    assert_int_equal(v.count, 66);
    assert_int_equal(m.size, 0);
    map_free(&m);
}

static void test_seed_is_drawn(void **state)
{
    (void)state;
    uint64_t first = hash_bytes("x", 1); /* runs first: nothing has fixed the seed */
    assert_int_equal(first, hash_bytes("x", 1));
    hash_seed(0, 0);
    assert_int_not_equal(first, hash_bytes("x", 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seed_is_drawn),
        cmocka_unit_test(test_siphash13),
        cmocka_unit_test(test_grows_and_finds_everything),
        cmocka_unit_test(test_random_operations_against_a_table),
        cmocka_unit_test(test_each_visits_once_also_while_growing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
