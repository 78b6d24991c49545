/*
 * Reads from a socket into chunks: small ones share a chunk, bulk goes into many at once, and
 * whatever the stack was not given returns to the pool.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/chunk_pool.h"

enum { SEGMENT = 64240, SMALL_SEGMENT = 4000, BULK = 2 * SEGMENT };

struct fixture {
    struct chunk_pool pool;
    struct chunk_user user;
    int ours, theirs;
    uint8_t *sent;
    size_t segment, sent_len, seen;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int pair[2];
    assert_non_null(f);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    f->ours = pair[0];
    f->theirs = pair[1];
    f->segment = SEGMENT;
    f->sent = malloc(BULK);
    assert_non_null(f->sent);
    for (size_t i = 0; i < BULK; i++)
        f->sent[i] = (uint8_t)(i * 2654435761u >> 16);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(f->pool.taken, 0);
    chunk_pool_trim(&f->pool);
    close(f->ours);
    close(f->theirs);
    free(f->sent);
    free(f);
    return 0;
}

static void send_more(struct fixture *f, size_t n)
{
    ssize_t sent = send(f->theirs, f->sent + f->sent_len, n, 0);
    assert_true(sent > 0);
    f->sent_len += (size_t)sent;
}

static ssize_t read_some(struct fixture *f, size_t room, struct down_read *r)
{
    return chunk_pool_read(&f->pool, &f->user, f->ours, room, f->segment, r);
}

/* What the stack does: it owns the chunks, and their pieces are what was sent, in order. */
static void give(struct fixture *f, const struct down_read *r)
{
    for (int i = 0; i < r->count; i++) {
        assert_true(r->iov[i].iov_len <= SEGMENT);
        assert_memory_equal(r->iov[i].iov_base, f->sent + f->seen, r->iov[i].iov_len);
        f->seen += r->iov[i].iov_len;
        r->chunks[i]->chunk.queued = true;
    }
}

static void release(struct down_chunk *c)
{
    c->chunk.queued = false;
    c->chunk.release(&c->chunk);
}

static void release_all(const struct down_read *r)
{
    for (int i = 0; i < r->count; i++)
        release(r->chunks[i]);
}

static void small_reads_share_a_chunk(void **state)
{
    struct fixture *f = *state;
    struct down_read r;
    struct down_chunk *first = NULL;
    for (int i = 0; i < 10; i++) {
        send_more(f, 100);
        assert_int_equal(read_some(f, SEGMENT, &r), 100);
        assert_int_equal(r.count, 1);
        give(f, &r);
        first = i == 0 ? r.chunks[0] : first;
        assert_ptr_equal(r.chunks[0], first);
        assert_int_equal(f->pool.taken, 1);
    }
    release(first);
    assert_null(f->user.tail);
}

static void a_full_chunk_is_followed_by_another(void **state)
{
    struct fixture *f = *state;
    struct down_read r, next;
    send_more(f, SEGMENT);
    assert_int_equal(read_some(f, SEGMENT, &r), SEGMENT);
    give(f, &r);
    send_more(f, 10);
    assert_int_equal(read_some(f, SEGMENT, &next), 10);
    give(f, &next);
    assert_ptr_not_equal(r.chunks[0], next.chunks[0]);
    release_all(&r);
    assert_ptr_equal(f->user.tail, next.chunks[0]);
    release_all(&next);
}

/* Each read that was filled doubles the next; one that finds little halves it. */
static void bulk_is_read_at_once(void **state)
{
    struct fixture *f = *state;
    struct down_read r;
    f->segment = SMALL_SEGMENT; /* all of it fits the socket's buffer */
    send_more(f, (2 * CHUNKS_READ_MAX - 1) * SMALL_SEGMENT + 1);
    for (int expected = 1; expected <= CHUNKS_READ_MAX; expected *= 2) {
        ssize_t n = read_some(f, BULK, &r);
        assert_int_equal(n, (size_t)expected * SMALL_SEGMENT);
        assert_int_equal(r.count, expected);
        assert_int_equal(f->pool.taken, expected);
        give(f, &r);
        release_all(&r);
    }
    for (int i = 0; i < 4; i++) {
        send_more(f, 1);
        assert_int_equal(read_some(f, BULK, &r), f->sent_len - f->seen);
        give(f, &r);
        release_all(&r);
    }
    assert_true(r.wanted < 4 * SMALL_SEGMENT);
}

static void nothing_read_is_nothing_kept(void **state)
{
    struct fixture *f = *state;
    struct down_read r;
    f->user.doublings = 3;
    assert_int_equal(read_some(f, BULK, &r), -EAGAIN);
    assert_int_equal(r.count, 0);
    assert_int_equal(f->pool.taken, 0);
    assert_null(f->user.tail);
    send_more(f, 5);
    assert_int_equal(read_some(f, BULK, &r), 5);
    give(f, &r);
    assert_int_equal(read_some(f, BULK, &r), -EAGAIN); /* the tail stays with the stack */
    assert_int_equal(f->pool.taken, 1);
    release(f->user.tail);
    shutdown(f->theirs, SHUT_WR);
    assert_int_equal(read_some(f, BULK, &r), 0);
    assert_int_equal(f->pool.taken, 0);
}

/* The stack refuses the second piece: it and the rest return, the first does with its ACK. */
static void what_the_stack_refuses_returns(void **state)
{
    struct fixture *f = *state;
    struct down_read r;
    f->user.doublings = 2;
    send_more(f, 3 * SEGMENT / 2);
    assert_int_equal(read_some(f, 3 * SEGMENT, &r), 3 * SEGMENT / 2);
    assert_int_equal(r.count, 2);
    r.chunks[0]->chunk.queued = true;
    chunk_pool_drop(&r, 1);
    assert_int_equal(f->pool.taken, 1);
    assert_null(f->user.tail);
    release(r.chunks[0]);
}

static void many_in_flight_are_short(void **state)
{
    struct fixture *f = *state;
    enum { SHORT = 1025 };
    static struct down_chunk *kept[SHORT];
    struct down_read r;
    for (int i = 0; i < SHORT; i++) {
        assert_false(chunk_pool_is_short(&f->pool));
        f->user.tail = NULL; /* as another flow */
        f->sent_len = f->seen = 0;
        send_more(f, 1);
        assert_int_equal(read_some(f, SEGMENT, &r), 1);
        give(f, &r);
        kept[i] = r.chunks[0];
    }
    assert_true(chunk_pool_is_short(&f->pool));
    for (int i = 0; i < SHORT; i++)
        release(kept[i]);
    assert_false(chunk_pool_is_short(&f->pool));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(small_reads_share_a_chunk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_full_chunk_is_followed_by_another, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bulk_is_read_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nothing_read_is_nothing_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_the_stack_refuses_returns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_in_flight_are_short, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
