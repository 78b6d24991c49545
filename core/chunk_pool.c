#include "core/chunk_pool.h"

#include <stdlib.h>

enum {
    CHUNK_TAIL_MIN = 2048, /* bytes; a chunk with less room left is not added to */
    CHUNKS_POOLED_MAX = 64,
};

void chunk_pool_put(struct chunk_pool *pool, struct down_chunk *c)
{
    if (pool->free_count >= CHUNKS_POOLED_MAX) {
        free(c);
        return;
    }
    c->next_free = pool->free;
    pool->free = c;
    pool->free_count++;
}

static void release(struct chunk *chunk)
{
    struct down_chunk *c = CONTAINER_OF(chunk, struct down_chunk, chunk);
    if (*c->tail == c)
        *c->tail = NULL;
    chunk_pool_put(c->pool, c);
}

struct down_chunk *chunk_pool_take(struct chunk_pool *pool, struct down_chunk **tail)
{
    struct down_chunk *c = *tail;
    if (c && CHUNK_BYTES - c->used >= CHUNK_TAIL_MIN)
        return c;
    c = pool->free;
    if (c) {
        pool->free = c->next_free;
        pool->free_count--;
    } else {
        c = aligned_alloc(64, sizeof(*c));
        if (!c)
            return NULL;
    }
    c->chunk = (struct chunk){.release = release};
    c->tail = tail;
    c->pool = pool;
    c->used = 0;
    return c;
}

void chunk_pool_trim(struct chunk_pool *pool)
{
    while (pool->free) {
        struct down_chunk *c = pool->free;
        pool->free = c->next_free;
        free(c);
    }
    pool->free_count = 0;
}
