/*
 * Theory: a table of chains. When it holds as many entries as buckets, a table twice as large is
 * allocated and the old one is kept beside it; each insertion then moves MOVED_PER_INSERT old
 * buckets, so that the old table is empty long before the new one is full. Meanwhile an entry
 * is in the old table where its old bucket has not been moved yet, else in the new one: which
 * of the two follows from its hash, so a look-up walks one chain in either case.
 */
#include "core/base/map.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { MOVED_PER_INSERT = 4, BUCKETS_MIN = 8 };

static uint64_t seed[2];
static bool seeded;

void hash_seed(uint64_t k0, uint64_t k1)
{
    seed[0] = k0;
    seed[1] = k1;
    seeded = true;
}

static void draw_seed(void)
{
    uint64_t drawn[2];
    if (getrandom(drawn, sizeof(drawn), 0) != (ssize_t)sizeof(drawn)) {
        /* No such call (it cannot fail otherwise for so few bytes): better than a constant. */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        drawn[0] = (uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec;
        drawn[1] = (uint64_t)getpid();
    }
    hash_seed(drawn[0], drawn[1]);
}

static inline uint64_t rotate_left(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotate_left(v[1], 13) ^ v[0];
    v[0] = rotate_left(v[0], 32);
    v[2] += v[3];
    v[3] = rotate_left(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotate_left(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotate_left(v[1], 17) ^ v[2];
    v[2] = rotate_left(v[2], 32);
}

/* `n` bytes (at most 8) as a little-endian number. */
static inline uint64_t load_little(const uint8_t *bytes, size_t n)
{
    uint64_t word = 0;
    memcpy(&word, bytes, n);
    return le64toh(word);
}

/* SipHash (Aumasson and Bernstein, 2012) with one round a word and three at the end. */
uint64_t hash_bytes(const void *bytes, size_t len)
{
    if (!seeded)
        draw_seed();
    uint64_t v[4] = {
        seed[0] ^ 0x736f6d6570736575,
        seed[1] ^ 0x646f72616e646f6d,
        seed[0] ^ 0x6c7967656e657261,
        seed[1] ^ 0x7465646279746573,
    };
    const uint8_t *at = bytes;
    size_t left = len;
    for (; left >= 8; at += 8, left -= 8) {
        uint64_t word = load_little(at, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)len << 56 | load_little(at, left);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

int map_init(struct map *m, size_t initial, map_equal_fn *equal)
{
    size_t count = BUCKETS_MIN;
    while (count < initial && count <= SIZE_MAX / 4)
        count *= 2;
    *m = (struct map){.bucket_count = count, .equal = equal};
    m->buckets = calloc(count, sizeof(struct map_entry *));
    return m->buckets ? 0 : -ENOMEM;
}

void map_free(struct map *m)
{
    free(m->buckets);
    free(m->old_buckets);
    *m = (struct map){0};
}

/* The head of the one chain that an entry with this hash is in, or would be put into. */
static struct map_entry **chain_of(struct map *m, uint64_t hash)
{
    if (m->old_buckets) {
        size_t old = (size_t)hash & (m->old_count - 1);
        if (old >= m->old_next)
            return &m->old_buckets[old];
    }
    return &m->buckets[(size_t)hash & (m->bucket_count - 1)];
}

struct map_entry *map_find(struct map *m, uint64_t hash, const void *key)
{
    for (struct map_entry *e = *chain_of(m, hash); e; e = e->next)
        if (e->hash == hash && m->equal(e, key))
            return e;
    return NULL;
}

static void move_old_buckets(struct map *m)
{
    for (int i = 0; i < MOVED_PER_INSERT && m->old_next < m->old_count; i++) {
        struct map_entry *e = m->old_buckets[m->old_next++];
        while (e) {
            struct map_entry *next = e->next;
            struct map_entry **bucket = &m->buckets[(size_t)e->hash & (m->bucket_count - 1)];
            e->next = *bucket;
            *bucket = e;
            e = next;
        }
    }
    if (m->old_next == m->old_count) {
        free(m->old_buckets);
        m->old_buckets = NULL;
    }
}

static void start_growing(struct map *m)
{
    struct map_entry **larger = calloc(m->bucket_count * 2, sizeof(struct map_entry *));
    if (!larger)
        return; /* longer chains are all that it costs */
    m->old_buckets = m->buckets;
    m->old_count = m->bucket_count;
    m->old_next = 0;
    m->buckets = larger;
    m->bucket_count *= 2;
}

void map_insert(struct map *m, struct map_entry *entry, uint64_t hash)
{
    if (m->old_buckets)
        move_old_buckets(m);
    else if (m->size >= m->bucket_count && m->bucket_count <= SIZE_MAX / 32)
        start_growing(m);
    struct map_entry **chain = chain_of(m, hash);
    entry->hash = hash;
    entry->next = *chain;
    *chain = entry;
    m->size++;
}

void map_remove(struct map *m, struct map_entry *entry)
{
    struct map_entry **at = chain_of(m, entry->hash);
    while (*at && *at != entry)
        at = &(*at)->next;
    assert(*at == entry);
    *at = entry->next;
    entry->next = NULL;
    m->size--;
}

static void chains_each(struct map_entry **chains, size_t from, size_t count,
                        void (*fn)(struct map_entry *entry, void *arg), void *arg)
{
    for (size_t i = from; i < count; i++) {
        for (struct map_entry *e = chains[i], *next; e; e = next) {
            next = e->next;
            fn(e, arg);
        }
    }
}

void map_each(struct map *m, void (*fn)(struct map_entry *entry, void *arg), void *arg)
{
    if (m->old_buckets)
        chains_each(m->old_buckets, m->old_next, m->old_count, fn, arg);
    chains_each(m->buckets, 0, m->bucket_count, fn, arg);
}
