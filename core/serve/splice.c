/*
 * Theory of operation
 *
 * Each socket is registered edge-triggered once, and its readiness kept in flags. A pump then
 * moves bytes one way until the sender is drained, the receiver full, or its share of the turn
 * used up (then it goes on at the turn's end, so that one bulk flow cannot starve the others).
 *
 * Two ways to move bytes:
 *   copy    recv(2) into the pool's one buffer and send(2) from it: two system calls a message,
 *           which is as few as there can be, and cheaper than a pipe for what is small
 *   splice  socket -> pipe -> socket, where a read filled that buffer; back to copying when
 *           little comes
 * What the receiver does not take stays in the pipe, or in a spill on the heap, and until it is
 * gone nothing more is read: back-pressure. Pipes are borrowed from the pool while they hold
 * data. There is a most that may be out at a time, so that stalled flows hold bounded memory and
 * few descriptors; whoever gets none copies.
 *
 * System calls saved on small exchanges. A short read means "drained" only if no FIN and no error
 * is behind it, for those have been told by the event already. Of a FIN the event says so
 * (LOOP_CLOSED); of an error it does not. So an end that was not read to EAGAIN is doubted: once
 * it has been silent for a moment, its socket is asked for an error, once. Bulk flows read to
 * EAGAIN. A target is doubted from the start, and given keep-alives then: four system calls that
 * a flow which is over in a moment is spared. Writability is not watched until a send was short
 * for the first time, so that small exchanges wake nobody for it.
 *
 * Ends. FIN is passed on by shutdown(2) when all that came before it was taken; the other way
 * lives on without time limit (keep-alives find a dead peer). Any error resets both.
 */
#include "core/serve/splice.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/proxy/resolver.h"

enum {
    COPY_BYTES = 16 * 1024,        /* a read that fills it is bulk */
    PIPE_BYTES = 512 * 1024,       /* asked for; what the kernel allows counts */
    PIPE_BYTES_MIN = 64 * 1024,    /* with less splicing does not pay */
    SHARE_BYTES = 2 * 1024 * 1024, /* one way in one go */
    PIPES_IDLE_MAX = 8,
    PIPES_OUT_MAX = 256,
    DOUBT_MS = 100,
};

struct relay_pipe {
    int in, out; /* write end, read end */
    size_t capacity;
    struct relay_pipe *next;
};

struct relay_spill {
    size_t at, len;
    uint8_t bytes[];
};

struct relay_pool {
    struct loop *loop;
    struct link doubted; /* of ends */
    struct loop_timer doubt_timer;
    struct relay_pipe *idle;
    unsigned idle_count, out_count;
    uint8_t buffer[COPY_BYTES];
};

/* --- pipes ---------------------------------------------------------------------------------- */

struct relay_pool *relay_pool_new(struct loop *loop)
{
    struct relay_pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pool->loop = loop;
    list_init(&pool->doubted);
    return pool;
}

static void pipe_free(struct relay_pipe *p)
{
    close(p->in);
    close(p->out);
    free(p);
}

void relay_pool_free(struct relay_pool *pool)
{
    if (!pool)
        return;
    assert(pool->out_count == 0 && list_empty(&pool->doubted));
    loop_timer_stop(&pool->doubt_timer);
    while (pool->idle) {
        struct relay_pipe *p = pool->idle;
        pool->idle = p->next;
        pipe_free(p);
    }
    free(pool);
}

/* NULL where descriptors or memory are short, or the user's pipes are limited to a page each. */
static struct relay_pipe *pipe_new(void)
{
    int fds[2];
    struct relay_pipe *p = malloc(sizeof *p);

    if (!p)
        return NULL;
    if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0) {
        free(p);
        return NULL;
    }
    *p = (struct relay_pipe){.in = fds[1], .out = fds[0]};
    if (fcntl(p->in, F_SETPIPE_SZ, PIPE_BYTES) < 0)
        (void)fcntl(p->in, F_SETPIPE_SZ, PIPE_BYTES_MIN); /* past pipe(7)'s soft limit */
    int capacity = fcntl(p->in, F_GETPIPE_SZ);
    if (capacity < PIPE_BYTES_MIN) {
        pipe_free(p);
        return NULL;
    }
    p->capacity = (size_t)capacity;
    return p;
}

static struct relay_pipe *borrow_pipe(struct relay_pool *pool)
{
    if (pool->out_count >= PIPES_OUT_MAX)
        return NULL;
    struct relay_pipe *p = pool->idle;
    if (p) {
        pool->idle = p->next;
        pool->idle_count--;
    } else {
        p = pipe_new();
    }
    if (p)
        pool->out_count++;
    return p;
}

/* `dirty`: bytes of a dead flow are in it, so that it must not serve another one. */
static void return_pipe(struct relay_pool *pool, struct relay_pipe *p, bool dirty)
{
    pool->out_count--;
    if (dirty || pool->idle_count >= PIPES_IDLE_MAX) {
        pipe_free(p);
        return;
    }
    p->next = pool->idle;
    pool->idle = p;
    pool->idle_count++;
}

/* --- doubt ---------------------------------------------------------------------------------- */

static void check_doubts(void *arg);

/* There may be an error on this end of which no call will hear. */
static void doubt(struct relay_end *end)
{
    struct relay_pool *pool = end->relay->pool;

    end->doubted_ms = loop_now(pool->loop);
    if (!list_empty(&end->doubt))
        return;
    list_push_back(&pool->doubted, &end->doubt);
    if (!pool->doubt_timer.pending)
        loop_timer_start(pool->loop, &pool->doubt_timer, DOUBT_MS, check_doubts, pool);
}

/* --- one way -------------------------------------------------------------------------------- */

static void on_ready(void *arg, unsigned ready);

static bool interrupted(long n)
{
    return n < 0 && errno == EINTR;
}

static bool would_block(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK;
}

/* `end` took less than it was given: wait for its turn. 0 or -errno. */
static int wait_writable(struct relay_end *end)
{
    end->writable = false;
    if (end->watch_write)
        return 0;
    /* Registering anew tells at once if it has become writable meanwhile. */
    end->watch_write = true;
    end->drain = true;
    return loop_watch(end->relay->loop, &end->io, end->fd, LOOP_READ | LOOP_WRITE | LOOP_EDGE,
                      on_ready, end);
}

static int spill(struct relay_way *way, const uint8_t *bytes, size_t len)
{
    size_t before = way->spill ? way->spill->len - way->spill->at : 0;
    struct relay_spill *s = malloc(sizeof *s + before + len);

    if (!s)
        return -ENOMEM;
    s->at = 0;
    s->len = before + len;
    if (before > 0)
        memcpy(s->bytes, way->spill->bytes + way->spill->at, before);
    memcpy(s->bytes + before, bytes, len);
    free(way->spill);
    way->spill = s;
    return 0;
}

static bool holds_bytes(const struct relay_way *way)
{
    return way->piped > 0 || way->spill;
}

static int flush_spill(struct relay_way *way, struct relay_end *to)
{
    struct relay_spill *s = way->spill;
    long n;

    do
        n = send(to->fd, s->bytes + s->at, s->len - s->at, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (interrupted(n));
    if (n < 0)
        return would_block() ? wait_writable(to) : -errno;
    way->moved += (size_t)n;
    s->at += (size_t)n;
    if (s->at < s->len)
        return wait_writable(to);
    free(s);
    way->spill = NULL;
    return 0;
}

static int flush_pipe(struct relay_way *way, struct relay_end *to)
{
    while (way->piped > 0) {
        long n = splice(way->pipe->out, NULL, to->fd, NULL, way->piped,
                        SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (interrupted(n))
            continue;
        if (n < 0)
            return would_block() ? wait_writable(to) : -errno;
        if (n == 0) /* cannot be: the pipe holds bytes */
            return -EIO;
        way->moved += (size_t)n;
        way->piped -= (size_t)n;
    }
    return 0;
}

static int take_end(struct relay_way *way, struct relay_end *from)
{
    way->ended = true;
    from->readable = false;
    return 0;
}

static int take_copied(struct relay_way *way, struct relay_end *from, struct relay_end *to)
{
    uint8_t *buffer = from->relay->pool->buffer;
    long n, sent;

    do
        n = recv(from->fd, buffer, COPY_BYTES, MSG_DONTWAIT);
    while (interrupted(n));
    if (n < 0 && !would_block())
        return -errno;
    if (n == 0)
        return take_end(way, from);
    if (n < COPY_BYTES && (n < 0 || !from->drain))
        from->readable = false;
    if (n < 0)
        return 0;
    if (!from->readable)
        doubt(from);
    way->bulk = n == COPY_BYTES;

    do
        sent = send(to->fd, buffer, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (interrupted(sent));
    if (sent < 0 && !would_block())
        return -errno;
    if (sent < 0)
        sent = 0;
    way->moved += (size_t)sent;
    if (sent == n)
        return 0;
    int error = spill(way, buffer + sent, (size_t)(n - sent));
    return error < 0 ? error : wait_writable(to);
}

static int take_spliced(struct relay_way *way, struct relay_end *from)
{
    long n;

    do
        n = splice(from->fd, NULL, way->pipe->in, NULL, way->pipe->capacity,
                   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    while (interrupted(n));
    if (n < 0 && !would_block())
        return -errno;
    if (n < 0)
        from->readable = false; /* the pipe is empty, so it is not the one that is full */
    else if (n == 0)
        return take_end(way, from);
    else
        way->piped = (size_t)n;
    way->bulk = n >= COPY_BYTES;
    return 0;
}

static int take(struct relay_way *way, struct relay_end *from, struct relay_end *to)
{
    struct relay_pool *pool = from->relay->pool;

    if (way->bulk && !way->pipe)
        way->pipe = borrow_pipe(pool);
    if (way->bulk && way->pipe)
        return take_spliced(way, from);
    return take_copied(way, from, to);
}

/* `last`: the other way has ended already, and close(2) will say the FIN. */
static int pass_end_on(struct relay_way *way, struct relay_end *to, bool last)
{
    if (way->shut)
        return 0;
    way->shut = true;
    if (last)
        return 0;
    return shutdown(to->fd, SHUT_WR) < 0 ? -errno : 0;
}

/* Move bytes until an end cannot go on. 0, -errno, or 1: its share is used up. */
static int pump(struct relay *r, unsigned i)
{
    struct relay_way *way = &r->ways[i];
    struct relay_end *from = &r->ends[i], *to = &r->ends[!i];
    uint64_t share = way->moved + SHARE_BYTES;

    while (to->writable) {
        int error = way->spill ? flush_spill(way, to) : flush_pipe(way, to);
        if (error < 0)
            return error;
        if (holds_bytes(way))
            continue; /* not writable any more */
        if (way->ended)
            return pass_end_on(way, to, r->ways[!i].shut);
        if (!from->readable)
            return 0;
        if (way->moved >= share)
            return 1;
        error = take(way, from, to);
        if (error < 0)
            return error;
    }
    return 0;
}

static int pump_way(struct relay *r, unsigned i)
{
    struct relay_way *way = &r->ways[i];
    int result = pump(r, i);

    if (way->pipe && way->piped == 0 && result == 0) {
        return_pipe(r->pool, way->pipe, false);
        way->pipe = NULL;
    }
    return result;
}

/* --- both ways ------------------------------------------------------------------------------ */

static void close_end(struct relay_end *end, bool reset)
{
    if (end->fd < 0)
        return;
    loop_ignore(&end->io);
    list_remove(&end->doubt);
    if (reset) { /* so close(2) sends RST (socket(7), SO_LINGER) */
        const struct linger now = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    close(end->fd);
    end->fd = -1;
}

void relay_close(struct relay *r, bool reset)
{
    loop_undefer(&r->again);
    for (unsigned i = 0; i < 2; i++) {
        struct relay_way *way = &r->ways[i];
        close_end(&r->ends[i], reset);
        if (way->pipe)
            return_pipe(r->pool, way->pipe, way->piped > 0);
        way->pipe = NULL;
        way->piped = 0;
        free(way->spill);
        way->spill = NULL;
    }
    r->running = false;
}

static void finish(struct relay *r, int error)
{
    relay_close(r, error != 0);
    r->over(r->arg, error);
}

/* The errno that waits on a socket which nobody is reading or writing now. */
static int pending_error(const struct relay_end *end)
{
    int error = 0;
    socklen_t len = sizeof error;

    if (getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        return -errno;
    return -error;
}

static void go_on(void *arg)
{
    struct relay *r = arg;
    bool more = false;

    for (unsigned i = 0; i < 2; i++) {
        int result = pump_way(r, i);
        if (result < 0) {
            finish(r, -result);
            return;
        }
        more = more || result > 0;
    }
    if (r->ways[0].shut && r->ways[1].shut)
        finish(r, 0);
    else if (more)
        loop_defer(r->loop, &r->again, go_on, r);
}

static void check_end(struct relay_end *end)
{
    struct relay *r = end->relay;

    if (!r->running) {
        end->readable = true;
        r->early(r->arg);
        return;
    }
    if (end->keep_alive)
        outbound_keep_alive(end->fd);
    end->keep_alive = false;
    int error = pending_error(end);
    if (error < 0)
        finish(r, -error);
}

/* Those that have been silent since are asked once; for the others it is too early. */
static void check_doubts(void *arg)
{
    struct relay_pool *pool = arg;
    uint64_t now = loop_now(pool->loop);
    struct link round, *first;

    list_init(&round);
    list_insert_after(&pool->doubted, &round);
    list_remove(&pool->doubted); /* `round` now heads all of them */
    while ((first = list_first(&round)) != NULL) {
        struct relay_end *end = CONTAINER_OF(first, struct relay_end, doubt);
        list_remove(first);
        if (now - end->doubted_ms < DOUBT_MS) {
            list_push_back(&pool->doubted, first);
            continue;
        }
        check_end(end);
    }
    if (!list_empty(&pool->doubted))
        loop_timer_start(pool->loop, &pool->doubt_timer, DOUBT_MS, check_doubts, pool);
}

/* Does nobody read or write this end now, so that no call would hear of its error? */
static bool unattended(const struct relay *r, unsigned i)
{
    bool read = !r->ways[i].ended && r->ends[!i].writable;
    bool written = holds_bytes(&r->ways[!i]);
    return !read && !written;
}

static void on_ready(void *arg, unsigned ready)
{
    struct relay_end *end = arg;
    struct relay *r = end->relay;

    if (ready & (LOOP_READ | LOOP_CLOSED))
        end->readable = true;
    if (ready & LOOP_CLOSED)
        end->drain = true;
    if (ready & LOOP_WRITE)
        end->writable = true;
    if (!r->running) {
        r->early(r->arg);
        return;
    }
    if (unattended(r, end == &r->ends[1]) && list_empty(&end->doubt))
        doubt(end);
    go_on(r);
}

static int attach(struct relay *r, unsigned i, int fd)
{
    struct relay_end *end = &r->ends[i];

    *end = (struct relay_end){.relay = r, .fd = fd, .writable = true};
    list_init(&end->doubt);
    int error = loop_watch(r->loop, &end->io, fd, LOOP_READ | LOOP_EDGE, on_ready, end);
    if (error < 0)
        end->fd = -1;
    return error;
}

int relay_init(struct relay *r, struct loop *loop, struct relay_pool *pool, int fd,
               relay_early_fn *early, relay_over_fn *over, void *arg)
{
    *r = (struct relay){.loop = loop, .pool = pool, .early = early, .over = over, .arg = arg};
    r->ends[1].fd = -1;
    return attach(r, 0, fd);
}

long relay_read_early(struct relay *r, void *buf, size_t cap)
{
    struct relay_end *end = &r->ends[0];
    long n;

    if (!end->readable)
        return -EAGAIN;
    do
        n = recv(end->fd, buf, cap, MSG_DONTWAIT);
    while (interrupted(n));
    int error = n < 0 ? -errno : 0;
    if (n < (long)cap && (n < 0 || !end->drain))
        end->readable = false;
    if (n > 0 && !end->readable)
        doubt(end);
    return error < 0 ? error : n;
}

int relay_early_error(const struct relay *r)
{
    return -pending_error(&r->ends[0]);
}

int relay_push(struct relay *r, unsigned way, const void *bytes, size_t len)
{
    return len > 0 ? spill(&r->ways[way], bytes, len) : 0;
}

int relay_run(struct relay *r, int fd)
{
    int error = attach(r, 1, fd);
    if (error < 0) {
        close(fd);
        return error;
    }
    r->running = true;
    r->ends[1].keep_alive = true;
    doubt(&r->ends[1]);
    loop_defer(r->loop, &r->again, go_on, r);
    return 0;
}
