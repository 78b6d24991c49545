/*
 * An intrusive hash map with a seeded hash, so that nobody who chooses keys (ports, names) can
 * choose collisions.
 *
 * The map links entries that the caller owns; it allocates only its table, which doubles when
 * it holds as many entries as buckets. A failed doubling is no error, the chains grow longer.
 * Growing moves a bounded number of buckets at each insertion, so that no single packet pays
 * for all of it.
 */
#ifndef CULVERT_BASE_MAP_H
#define CULVERT_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct map_entry {
    struct map_entry *next;
    uint64_t hash;
};

/* Does `entry` have the key that `key` points to? */
typedef bool map_equal_fn(const struct map_entry *entry, const void *key);

struct map {
    struct map_entry **buckets;
    size_t bucket_count;            /* a power of two */
    struct map_entry **old_buckets; /* while growing, else NULL */
    size_t old_count;
    size_t old_next; /* the next old bucket to be moved */
    size_t size;
    map_equal_fn *equal;
};

/* The process-wide secret seed is drawn from getrandom(2) on first use. SipHash-1-3. */
uint64_t hash_bytes(const void *bytes, size_t len);
/* Fix the seed: for tests and fuzzing only. */
void hash_seed(uint64_t k0, uint64_t k1);

/* 0 or -ENOMEM. `initial` is rounded up to a power of two. */
int map_init(struct map *m, size_t initial, map_equal_fn *equal);
/* Frees the table; the entries stay their owner's. */
void map_free(struct map *m);
/* `hash` is hash_bytes() of the key. NULL when absent. */
struct map_entry *map_find(struct map *m, uint64_t hash, const void *key);
/* The key must not be present. */
void map_insert(struct map *m, struct map_entry *entry, uint64_t hash);
/* The entry must be present. */
void map_remove(struct map *m, struct map_entry *entry);
/* Call `fn` for each entry; `fn` may remove the entry it is given, and no other. */
void map_each(struct map *m, void (*fn)(struct map_entry *entry, void *arg), void *arg);

#endif
