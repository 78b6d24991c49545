#include "core/chunk_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "core/base/memory.h"

enum {
    CHUNK_TAIL_MIN = 2048, /* bytes; a chunk with less room left is not added to */
    CHUNKS_POOLED_MAX = 64,
    CHUNKS_EASY = 1024, /* 64 MiB */
};

static void put(struct chunk_pool *pool, struct down_chunk *c)
{
    pool->taken--;
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
    if (c->user->tail == c)
        c->user->tail = NULL;
    put(c->pool, c);
}

static struct down_chunk *take(struct chunk_pool *pool, struct chunk_user *user)
{
    struct down_chunk *c = pool->free;
    if (c) {
        pool->free = c->next_free;
        pool->free_count--;
    } else {
        c = memory_aligned(64, sizeof(*c));
        if (!c)
            return NULL;
    }
    pool->taken++;
    c->chunk = (struct chunk){.release = release};
    c->user = user;
    c->pool = pool;
    c->used = 0;
    return c;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Choose where up to `room` bytes go: first into the tail, where that has room. */
static void gather(struct chunk_pool *pool, struct chunk_user *user, size_t room, size_t segment,
                   struct down_read *r)
{
    int chunks = 1 << user->doublings;
    struct down_chunk *c = user->tail;
    if (!c || CHUNK_BYTES - c->used < CHUNK_TAIL_MIN)
        c = take(pool, user);
    r->count = 0;
    r->wanted = 0;
    while (c) {
        size_t part = smaller(smaller(room - r->wanted, segment), CHUNK_BYTES - c->used);
        r->chunks[r->count] = c;
        r->iov[r->count++] = (struct iovec){.iov_base = c->bytes + c->used, .iov_len = part};
        r->wanted += part;
        bool more = r->wanted < room && r->count < chunks;
        c = more ? take(pool, user) : NULL;
    }
}

/* Shorten `r` to the `n` bytes that there were. A tail that nothing came to is with the stack. */
static void settle(struct chunk_user *user, struct down_read *r, size_t n)
{
    int filled = 0;
    for (; n > 0; filled++) {
        r->iov[filled].iov_len = smaller(n, r->iov[filled].iov_len);
        r->chunks[filled]->used += r->iov[filled].iov_len;
        n -= r->iov[filled].iov_len;
    }
    chunk_pool_drop(r, filled);
    r->count = filled;
    if (filled > 0)
        user->tail = r->chunks[filled - 1];
}

static void adapt(struct chunk_user *user, size_t n, size_t wanted)
{
    if (n == wanted && 1 << user->doublings < CHUNKS_READ_MAX)
        user->doublings++;
    else if (n < wanted / 2 && user->doublings > 0)
        user->doublings--;
}

/* recvmsg() costs small exchanges a little that they can be spared. */
static ssize_t receive(int fd, const struct down_read *r)
{
    if (r->count == 1)
        return recv(fd, r->iov[0].iov_base, r->iov[0].iov_len, 0);
    struct msghdr m = {.msg_iov = (struct iovec *)r->iov, .msg_iovlen = (size_t)r->count};
    return recvmsg(fd, &m, 0);
}

ssize_t chunk_pool_read(struct chunk_pool *pool, struct chunk_user *user, int fd, size_t room,
                        size_t segment, struct down_read *r)
{
    gather(pool, user, room, segment, r);
    if (r->count == 0)
        return -ENOMEM;
    ssize_t n = receive(fd, r);
    int error = n < 0 ? errno : 0;
    settle(user, r, n > 0 ? (size_t)n : 0);
    if (error != 0)
        return -error;
    adapt(user, (size_t)n, r->wanted);
    return n;
}

/* From the last to the first, which the next read then takes first. */
void chunk_pool_drop(const struct down_read *r, int from)
{
    for (int i = r->count - 1; i >= from; i--) {
        if (!r->chunks[i]->chunk.queued)
            release(&r->chunks[i]->chunk);
    }
}

bool chunk_pool_is_short(const struct chunk_pool *pool)
{
    return pool->taken > CHUNKS_EASY;
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
