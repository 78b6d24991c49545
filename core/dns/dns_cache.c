#include "core/dns/dns_cache.h"

#include <stdlib.h>

#include "core/base/list.h"
#include "core/base/map.h"
#include "core/base/memory.h"

struct entry {
    struct map_entry by_key;
    struct link by_use; /* in dns_cache.by_use, the one used last at the end */
    struct dns_key key;
    uint64_t kept_ms, expires_ms;
    size_t len;
    uint8_t message[];
};

struct dns_cache {
    struct map by_key;
    struct link by_use;
    size_t max_answers, max_bytes;
    size_t bytes;
};

static bool has_key(const struct map_entry *entry, const void *key)
{
    return dns_key_equal(&CONTAINER_OF(entry, const struct entry, by_key)->key, key);
}

struct dns_cache *dns_cache_new(size_t max_answers, size_t max_bytes)
{
    struct dns_cache *c = memory_zeroed(sizeof(*c));
    if (!c)
        return NULL;
    if (map_init(&c->by_key, 8, has_key) < 0) {
        free(c);
        return NULL;
    }
    list_init(&c->by_use);
    c->max_answers = max_answers;
    c->max_bytes = max_bytes;
    return c;
}

static void drop(struct dns_cache *c, struct entry *e)
{
    map_remove(&c->by_key, &e->by_key);
    list_remove(&e->by_use);
    c->bytes -= sizeof(*e) + e->len;
    free(e);
}

void dns_cache_free(struct dns_cache *c)
{
    if (!c)
        return;
    LIST_EACH (it, &c->by_use)
        drop(c, CONTAINER_OF(it, struct entry, by_use));
    map_free(&c->by_key);
    free(c);
}

static struct entry *find(struct dns_cache *c, const struct dns_key *key)
{
    struct map_entry *found = map_find(&c->by_key, hash_bytes(key->bytes, key->len), key);
    return found ? CONTAINER_OF(found, struct entry, by_key) : NULL;
}

void dns_cache_put(struct dns_cache *c, const struct dns_key *key, const uint8_t *message,
                   size_t len, uint32_t ttl, uint64_t now_ms)
{
    struct entry *e = find(c, key);
    if (e)
        drop(c, e);
    size_t cost = sizeof(*e) + len;
    if (ttl == 0 || cost > c->max_bytes || c->max_answers == 0)
        return;
    while (c->by_key.size >= c->max_answers || c->bytes + cost > c->max_bytes)
        drop(c, CONTAINER_OF(list_first(&c->by_use), struct entry, by_use));

    e = memory_get(cost);
    if (!e)
        return;
    e->key = *key;
    e->kept_ms = now_ms;
    e->expires_ms = now_ms + (uint64_t)ttl * 1000;
    e->len = len;
    memcpy(e->message, message, len);
    list_push_back(&c->by_use, &e->by_use);
    map_insert(&c->by_key, &e->by_key, hash_bytes(key->bytes, key->len));
    c->bytes += cost;
}

const uint8_t *dns_cache_get(struct dns_cache *c, const struct dns_key *key, uint64_t now_ms,
                             size_t *len, uint32_t *age)
{
    struct entry *e = find(c, key);
    if (!e)
        return NULL;
    if (now_ms >= e->expires_ms) {
        drop(c, e);
        return NULL;
    }
    list_remove(&e->by_use);
    list_push_back(&c->by_use, &e->by_use);
    *len = e->len;
    *age = (uint32_t)((now_ms - e->kept_ms) / 1000);
    return e->message;
}
