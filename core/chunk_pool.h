/*
 * The buffers between a proxy's socket and the stack: what is read goes into a chunk, and the
 * stack sends from there until it is acknowledged. Small reads share a chunk. A flow without bytes
 * in flight has none; some that are free are kept for the next.
 */
#ifndef CULVERT_CHUNK_POOL_H
#define CULVERT_CHUNK_POOL_H

#include "stack/stack.h"

enum { CHUNK_BYTES = 65536 }; /* a super-packet's payload, and a little */

struct chunk_pool {
    struct down_chunk *free;
    unsigned free_count;
};

struct down_chunk {
    struct chunk chunk;
    struct down_chunk **tail; /* the flow's, see chunk_pool_take() */
    struct chunk_pool *pool;
    struct down_chunk *next_free;
    size_t used; /* bytes */
    _Alignas(64) uint8_t bytes[CHUNK_BYTES];
};

/*
 * A chunk with room for a flow's next bytes: `*tail`, which it filled last, or another one. NULL
 * when out of memory. As the stack releases the chunk, it returns to the pool, and `*tail`
 * becomes NULL where it pointed to it: both outlive what is in flight.
 */
struct down_chunk *chunk_pool_take(struct chunk_pool *pool, struct down_chunk **tail);
/* Give back a chunk that the stack has not been given. */
void chunk_pool_put(struct chunk_pool *pool, struct down_chunk *c);
/* After a burst: what is free goes back to the system. */
void chunk_pool_trim(struct chunk_pool *pool);

#endif
