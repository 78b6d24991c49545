/*
 * The buffers between a proxy's socket and the stack: what is read goes into chunks, and the
 * stack sends from there until it is acknowledged. Small reads share a chunk. A flow without bytes
 * in flight has none; some that are free are kept for the next.
 *
 * Bulk is read into many chunks at once, because each read makes the kernel acknowledge what was
 * read: that costs as much as copying 64 KiB does, and is paid by whoever reads.
 */
#ifndef CULVERT_CHUNK_POOL_H
#define CULVERT_CHUNK_POOL_H

#include "stack/stack.h"

enum {
    CHUNK_BYTES = 65536, /* a super-packet's payload, and a little */
    CHUNKS_READ_MAX = 8, /* in one read: what goes out as one packet (stack/big_tcp.c) */
};

struct chunk_pool {
    struct down_chunk *free;
    unsigned free_count;
    unsigned taken; /* chunks that are with flows or the stack */
};

struct down_chunk {
    struct chunk chunk;
    struct chunk_user *user;
    struct chunk_pool *pool;
    struct down_chunk *next_free;
    size_t used; /* bytes */
    _Alignas(64) uint8_t bytes[CHUNK_BYTES];
};

/* Whoever reads, zero-initialised. It outlives what it has in flight. */
struct chunk_user {
    struct down_chunk *tail; /* the chunk that was filled last, while it is in flight */
    unsigned doublings;      /* how many chunks to read into, as a power of two */
};

/* What was read: pieces to be given to the stack one by one, each with its chunk. */
struct down_read {
    int count;
    size_t wanted; /* bytes that were asked for */
    struct iovec iov[CHUNKS_READ_MAX];
    struct down_chunk *chunks[CHUNKS_READ_MAX];
};

/*
 * Read up to `room` bytes (not 0) from the socket `fd` into `r`, in pieces of at most `segment`
 * bytes. How many pieces there may be follows what `user` has read before: one while it makes small
 * exchanges. Returns how many bytes there were, 0 at their end, or -errno; -ENOMEM also when there
 * is no chunk. The stack releases the chunks that it is given back to the pool.
 */
ssize_t chunk_pool_read(struct chunk_pool *pool, struct chunk_user *user, int fd, size_t room,
                        size_t segment, struct down_read *r);
/* Take back `r`'s chunks from number `from` on, which the stack was not given. */
void chunk_pool_drop(const struct down_read *r, int from);
/* Do all flows together have so much in flight that each should have little? */
bool chunk_pool_is_short(const struct chunk_pool *pool);
/* After a burst: what is free goes back to the system. */
void chunk_pool_trim(struct chunk_pool *pool);

#endif
