/*
 * TCP flows: an application's connection on one side (struct conn of the stack), a socket through
 * the proxy on the other.
 *
 *   state      what it is                              leaves it by
 *   DIALING    the SYN is held; the proxy is asked     the proxy's answer -> ACCEPTING, or refused
 *                                                      as the answer says; given up by the
 *                                                      application; evicted
 *   ACCEPTING  connected; the application completes    CONN_OPENED -> RELAYING; CONN_RESET
 *              its handshake
 *   RELAYING   bytes go both ways, each direction      both directions done -> LINGERING; a reset
 *              until its own end                       of either side
 *   LINGERING  the socket is closed; the application   CONN_CLOSED, CONN_RESET
 *              has still to acknowledge the rest
 *   CLOSED     unhooked; freed at the turn's end       -
 *
 * Each direction ends by itself and without a time limit. Up: the application's FIN, once all
 * before it has been sent, becomes shutdown(SHUT_WR). Down: the socket's end of file becomes FIN.
 * A reset of one side becomes a reset of the other.
 *
 * Back-pressure: the application may send as much as the socket has room for, and is told that
 * its bytes have arrived when the socket has taken them; the socket is read only for as much as
 * conn_room() allows. Neither direction polls: the socket is watched edge-triggered, once, and the
 * stack tells when there is room again. What is read goes into chunks that the stack sends from
 * until they are acknowledged; an idle flow has none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/chunk_pool.h"
#include "core/destination.h"
#include "core/flows.h"

enum tcp_flow_state {
    TCP_FLOW_DIALING,
    TCP_FLOW_ACCEPTING,
    TCP_FLOW_RELAYING,
    TCP_FLOW_LINGERING,
    TCP_FLOW_CLOSED,
};
static const char *const state_names[] = {"dialing", "accepting", "relaying", "lingering",
                                          "closed"};
_Static_assert(sizeof state_names / sizeof state_names[0] == TCP_FLOW_CLOSED + 1,
               "a name for each state");

enum {
    IOV_MAX_UP = 64, /* pieces in one gathered send */
    DOUBT_MS = 100,
    BULK_BYTES = 256 * 1024, /* more than a proxy that does not read can take */
    SEND_OVERHEAD = 1280, /* bytes of its room that the socket needs for a send, beside the data */
    DOWN_A_TURN = 1024 * 1024, /* bytes, so that one busy flow leaves the others their turn */
};

struct tcp_flow {
    struct conn conn;
    struct tcp_flows *owner;
    struct dial *dial;       /* in DIALING */
    int fd;                  /* in ACCEPTING and RELAYING; else -1 */
    uint8_t state;           /* enum tcp_flow_state */
    bool readable, writable; /* as far as is known: until EAGAIN */
    bool watches_write;      /* since the first send that found the socket full */
    bool kept_alive;         /* outbound_keep_alive() */
    bool hung_up;            /* the proxy's side has ended, perhaps behind unread bytes */
    bool app_done;           /* CONN_FIN: no more from the application */
    bool up_done;            /* passed on by shutdown() */
    bool down_done;          /* end of file read and passed on */
    bool fake;               /* dst is held in the fake map */
    bool widened;            /* outbound_widen() */
    bool redialled;          /* others have given way to it once */
    uint32_t room;           /* bytes that the socket takes at once, at least */
    uint64_t id;
    uint64_t active_ms; /* coarse: the age list is ordered by it */
    uint64_t bytes_up, bytes_down;
    struct link age;   /* in half_open or flows, longest idle first */
    struct link doubt; /* in doubts: to be looked at after a moment of silence */
    struct chunk_user down;
    struct loop_io io;
};

struct tcp_flows {
    struct worker *worker;
    struct link half_open; /* DIALING and ACCEPTING, oldest first */
    struct link flows;     /* the others, longest idle first */
    struct link closed;    /* to be freed at the turn's end */
    struct link doubts;    /* flows to be looked at when they fall silent */
    struct loop_timer idle_timer;
    struct loop_timer doubt_timer;
    struct loop_deferred reap;
    struct chunk_pool chunks;
};

static struct tcp_flow *flow_of(struct conn *c)
{
    return CONTAINER_OF(c, struct tcp_flow, conn);
}

/* --- the log ---------------------------------------------------------------------------------- */

static void log_flow(enum log_level level, const struct tcp_flow *f, const char *what, int error)
{
    char src[ENDPOINT_TEXT_MAX], dst[ENDPOINT_TEXT_MAX];
    log_at(level, "tcp %llu %s -> %s: %s%s%s", (unsigned long long)f->id,
           endpoint_format(&f->conn.src, src), endpoint_format(&f->conn.dst, dst), what,
           error ? ": " : "", error ? strerror(error) : ""); /* 0: there is no errno to tell */
}

/* --- states ----------------------------------------------------------------------------------- */

static void on_idle(void *arg);

static void arm_idle_timer(struct tcp_flows *t)
{
    struct link *first = list_first(&t->flows);
    if (first == NULL) {
        loop_timer_stop(&t->idle_timer);
        return;
    }
    if (t->idle_timer.pending)
        return;
    struct loop *loop = t->worker->loop;
    const struct tcp_flow *f = CONTAINER_OF(first, struct tcp_flow, age);
    uint64_t due = f->active_ms + t->worker->limits->tcp_idle_timeout_s * UINT64_C(1000);
    uint64_t now = loop_now(loop);
    loop_timer_start(loop, &t->idle_timer, due > now ? due - now : 1, on_idle, t);
}

static void set_state(struct tcp_flow *f, enum tcp_flow_state state)
{
    struct tcp_flows *t = f->owner;
    if (log_threshold >= LOG_LEVEL_TRACE)
        log_flow(LOG_LEVEL_TRACE, f, state_names[state], 0);
    f->state = (uint8_t)state;
    switch (state) {
    case TCP_FLOW_DIALING:
        list_push_back(&t->half_open, &f->age);
        break;
    case TCP_FLOW_ACCEPTING:
    case TCP_FLOW_LINGERING:
        break;
    case TCP_FLOW_RELAYING:
        list_remove(&f->age);
        list_push_back(&t->flows, &f->age);
        arm_idle_timer(t);
        break;
    case TCP_FLOW_CLOSED:
        list_remove(&f->doubt);
        list_remove(&f->age);
        list_push_back(&t->closed, &f->age);
        break;
    }
}

/* Something happened: to the end of the list, but not for each packet of a burst. */
static void touch(struct tcp_flow *f)
{
    uint64_t now = loop_now(f->owner->worker->loop);
    f->owner->worker->relayed = true;
    if (now - f->active_ms < 10)
        return;
    f->active_ms = now;
    list_remove(&f->age);
    list_push_back(&f->owner->flows, &f->age);
}

static void reap(void *arg)
{
    struct tcp_flows *t = arg;
    LIST_EACH (it, &t->closed) {
        struct tcp_flow *f = CONTAINER_OF(it, struct tcp_flow, age);
        list_remove(&f->age);
        free(f);
    }
}

/* Close the socket; with `reset`, so that the proxy sees a reset and not an end of file. */
static void close_socket(struct tcp_flow *f, bool reset)
{
    if (f->fd < 0)
        return;
    loop_ignore(&f->io);
    if (reset) {
        const struct linger now = {.l_onoff = 1, .l_linger = 0};
        setsockopt(f->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    close(f->fd);
    f->fd = -1;
}

/* The end of every flow, whose conn has been let go of. */
static void flow_end(struct tcp_flow *f)
{
    struct tcp_flows *t = f->owner;
    struct worker *w = t->worker;
    if (f->dial)
        dial_cancel(f->dial);
    f->dial = NULL;
    if (f->fake)
        dns_fake_release(w->dns, &f->conn.dst.addr);
    if (log_threshold >= LOG_LEVEL_DEBUG) {
        char text[80];
        snprintf(text, sizeof text, "closed after %llu bytes up, %llu down",
                 (unsigned long long)f->bytes_up, (unsigned long long)f->bytes_down);
        log_flow(LOG_LEVEL_DEBUG, f, text, 0);
    }
    w->flow_count--;
    set_state(f, TCP_FLOW_CLOSED);
    loop_defer(w->loop, &t->reap, reap, t);
}

/* Reset both sides, whatever is left of them. */
static void flow_reset(struct tcp_flow *f)
{
    close_socket(f, true);
    conn_abort(f->owner->worker->stack, &f->conn);
    flow_end(f);
}

/* It cannot go on: false. What has run out concerns the user, what the network did who debugs. */
static bool flow_fail(struct tcp_flow *f, const char *what, int error)
{
    static struct log_limit limit = LOG_LIMIT(3);
    bool ours = error == ENOMEM || error == ENOBUFS || error == ENOSPC;
    if (!ours || log_allowed(&limit))
        log_flow(ours ? LOG_LEVEL_WARN : LOG_LEVEL_DEBUG, f, what, error);
    flow_reset(f);
    return false;
}

/* --- relaying --------------------------------------------------------------------------------- */

/* Both directions are done: nothing more is expected of the proxy. */
static void finish_if_done(struct tcp_flow *f)
{
    if (!f->up_done || !f->down_done)
        return;
    close_socket(f, false);
    if (!conn_is_over(&f->conn)) {
        set_state(f, TCP_FLOW_LINGERING);
        return;
    }
    conn_abort(f->owner->worker->stack, &f->conn);
    flow_end(f);
}

static void on_socket(void *arg, unsigned ready);

/* Most flows never find their socket full, and are spared the event that it has room. */
static void watch_write(struct tcp_flow *f)
{
    if (f->watches_write)
        return;
    f->watches_write = true;
    int error = loop_watch(f->owner->worker->loop, &f->io, f->fd,
                           LOOP_READ | LOOP_WRITE | LOOP_EDGE, on_socket, f);
    if (error != 0)
        flow_fail(f, "cannot be watched", -error);
}

/* The socket has taken `n` bytes, or may have room again (0). */
static void consume(struct tcp_flow *f, size_t n)
{
    uint32_t spent = (uint32_t)n + SEND_OVERHEAD;
    f->room = f->room > spent ? f->room - spent : 0;
    if (conn_wants_room(&f->conn, n, f->room)) {
        if (f->bytes_up >= BULK_BYTES && !f->widened)
            outbound_widen(f->fd);
        f->widened = f->bytes_up >= BULK_BYTES;
        f->room = outbound_room(f->fd);
    }
    conn_consume(f->owner->worker->stack, &f->conn, n, f->room);
}

/* The application waits for the socket to have room. */
static void await_room(struct tcp_flow *f)
{
    if (!f->watches_write)
        watch_write(f); /* it may be writable now: that is an event, too */
    else if (outbound_writable(f->fd))
        consume(f, 0);
}

/* One gathered send. Returns false when the flow has ended, or the socket takes no more. */
static bool send_up(struct tcp_flow *f, struct iovec *iov, int count)
{
    ssize_t sent = outbound_send(f->fd, iov, count);
    if (sent < 0 && errno == EINTR)
        return true;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
        f->writable = false;
        watch_write(f);
        return false;
    }
    if (sent < 0)
        return flow_fail(f, "sending to the proxy", errno);
    f->bytes_up += (uint64_t)sent;
    consume(f, (size_t)sent);
    return true;
}

/* From the application to the socket. False: the flow has ended. */
static bool relay_up(struct tcp_flow *f)
{
    struct iovec iov[IOV_MAX_UP];
    if (f->up_done)
        return true;
    int count = 0;
    while (f->writable && (count = conn_peek(&f->conn, iov, IOV_MAX_UP)) > 0) {
        if (!send_up(f, iov, count))
            return f->state == TCP_FLOW_RELAYING;
    }
    if (!f->app_done && conn_window_is_short(&f->conn))
        await_room(f);
    if (count > 0 || !f->app_done || !f->writable)
        return f->state == TCP_FLOW_RELAYING;
    if (shutdown(f->fd, SHUT_WR) != 0)
        return flow_fail(f, "ending towards the proxy", errno);
    f->up_done = true;
    finish_if_done(f);
    return f->state == TCP_FLOW_RELAYING;
}

static bool relay_down(struct tcp_flow *f);

static void resolve_doubts(void *arg)
{
    struct tcp_flows *t = arg;
    struct loop *loop = t->worker->loop;
    uint64_t now = loop_now(loop);
    LIST_EACH (it, &t->doubts) {
        struct tcp_flow *f = CONTAINER_OF(it, struct tcp_flow, doubt);
        if (now - f->active_ms < DOUBT_MS)
            continue;
        list_remove(it);
        if (f->fd >= 0 && !f->kept_alive)
            outbound_keep_alive(f->fd);
        f->kept_alive = true;
        f->readable = true;
        relay_down(f);
    }
    if (!list_empty(&t->doubts))
        loop_timer_start(loop, &t->doubt_timer, DOUBT_MS, resolve_doubts, t);
}

/* Look at the flow when it has fallen silent. */
static void doubt(struct tcp_flow *f)
{
    struct tcp_flows *t = f->owner;
    if (!list_empty(&f->doubt))
        return;
    list_push_back(&t->doubts, &f->doubt);
    if (!t->doubt_timer.pending)
        loop_timer_start(t->worker->loop, &t->doubt_timer, DOUBT_MS, resolve_doubts, t);
}

/*
 * Less was read than asked for: the socket is empty, and edge-triggered epoll tells of whatever
 * comes later, so that a small exchange costs one read. Only an end that was there already tells
 * no more. An end of file is known from LOOP_CLOSED; a reset right behind the data is hidden by
 * libevent (EPOLLERR becomes "readable and writable"), so after a moment of silence the flow is
 * read once more.
 */
static void trust_short_read(struct tcp_flow *f)
{
    f->readable = false;
    doubt(f);
}

enum read_result { READ_MORE, READ_EMPTY, READ_ENDED };

/* Hand what was read to the stack. False: the flow has ended. */
static bool pass_down(struct tcp_flow *f, const struct down_read *r)
{
    struct stack *stack = f->owner->worker->stack;
    for (int i = 0; i < r->count; i++) {
        f->bytes_down += r->iov[i].iov_len;
        int error =
            conn_send(stack, &f->conn, &r->chunks[i]->chunk, r->iov[i].iov_base, r->iov[i].iov_len);
        if (error != 0) {
            chunk_pool_drop(r, i + 1);
            return flow_fail(f, "passing on what was received", -error);
        }
    }
    conn_flush(stack, &f->conn);
    return true;
}

static enum read_result end_down(struct tcp_flow *f)
{
    f->readable = false;
    f->down_done = true;
    conn_shutdown(f->owner->worker->stack, &f->conn);
    finish_if_done(f);
    return f->state == TCP_FLOW_RELAYING ? READ_EMPTY : READ_ENDED;
}

/* One read of at most `room` bytes, handed to the stack. READ_ENDED: the flow has. */
static enum read_result read_down(struct tcp_flow *f, size_t room)
{
    struct down_read r;
    ssize_t n =
        chunk_pool_read(&f->owner->chunks, &f->down, f->fd, room, conn_segment(&f->conn), &r);
    if (n == 0)
        return end_down(f);
    if (n == -EINTR)
        return READ_MORE;
    if (n == -EAGAIN) {
        f->readable = false;
        return READ_EMPTY;
    }
    if (n < 0) {
        flow_fail(f, "receiving from the proxy", (int)-n);
        return READ_ENDED;
    }
    if (!pass_down(f, &r))
        return READ_ENDED;
    if ((size_t)n < r.wanted && !f->hung_up) {
        trust_short_read(f);
        return READ_EMPTY;
    }
    return READ_MORE;
}

/* Many flows whose applications acknowledge nothing must not make us keep a window for each. */
static size_t down_room(const struct tcp_flow *f)
{
    if (!chunk_pool_is_short(&f->owner->chunks))
        return conn_budget(&f->conn);
    return conn_unacknowledged(&f->conn) < CHUNK_BYTES ? conn_room(&f->conn) : 0;
}

/* From the socket to the application. False: the flow has ended. */
static bool relay_down(struct tcp_flow *f)
{
    size_t left = DOWN_A_TURN;
    while (left > 0 && f->readable && !f->down_done) {
        size_t room = down_room(f);
        room = room < left ? room : left;
        if (room == 0)
            break;
        if (read_down(f, room) == READ_ENDED)
            return false;
        left -= room;
    }
    return true;
}

static void on_socket(void *arg, unsigned ready)
{
    struct tcp_flow *f = arg;
    if (ready & LOOP_READ)
        f->readable = true;
    if (ready & LOOP_WRITE)
        f->writable = true;
    if (ready & LOOP_CLOSED)
        f->readable = f->hung_up = true;
    if (f->state != TCP_FLOW_RELAYING)
        return;
    touch(f);
    if (ready & LOOP_WRITE && conn_window_is_short(&f->conn))
        consume(f, 0);
    if (relay_up(f))
        relay_down(f);
}

/*
 * culvert stops: what the application was told is acknowledged is in the socket, and goes on its
 * way after an orderly close; the application hears a reset, since more it cannot send.
 */
static void flow_quit(struct tcp_flow *f)
{
    if (f->state == TCP_FLOW_RELAYING)
        relay_up(f);
    if (f->state == TCP_FLOW_CLOSED)
        return;
    close_socket(f, false);
    conn_abort(f->owner->worker->stack, &f->conn);
    flow_end(f);
}

static void start_relaying(struct tcp_flow *f)
{
    set_state(f, TCP_FLOW_RELAYING);
    f->readable = f->writable = true;
    doubt(f); /* one that is not over in a moment wants keep-alives */
}

void tcp_flows_ready(struct tcp_flows *t, struct conn *conn, unsigned events)
{
    struct tcp_flow *f = flow_of(conn);
    (void)t;
    if (f->state == TCP_FLOW_CLOSED)
        return;
    if (events & CONN_RESET) {
        flow_reset(f);
        return;
    }
    if (f->state == TCP_FLOW_LINGERING) {
        if (events & CONN_CLOSED) {
            conn_abort(f->owner->worker->stack, &f->conn);
            flow_end(f);
        }
        return;
    }
    if (events & CONN_OPENED)
        start_relaying(f);
    if (f->state != TCP_FLOW_RELAYING)
        return;
    touch(f);
    if (events & CONN_FIN)
        f->app_done = true;
    if (!relay_up(f))
        return;
    if (events & (CONN_OPENED | CONN_ROOM))
        relay_down(f);
}

/* --- opening ---------------------------------------------------------------------------------- */

static bool dial_again(struct tcp_flow *f);

static void on_dialed(void *arg, const struct dial_result *r)
{
    struct tcp_flow *f = arg;
    struct stack *stack = f->owner->worker->stack;
    f->dial = NULL;
    if (r->status == DIAL_OK) {
        f->fd = r->fd;
        f->hung_up = r->hung_up;
        set_state(f, TCP_FLOW_ACCEPTING);
        f->room = outbound_room(f->fd);
        stack_set_time(stack, loop_now(f->owner->worker->loop));
        if (loop_take_over(f->owner->worker->loop, &f->io, r->watch, LOOP_READ, on_socket, f) == 0)
            conn_accept(stack, &f->conn, f->room);
        else
            flow_reset(f);
        return;
    }
    if (r->status == DIAL_NO_RESOURCES && dial_again(f))
        return;
    bool replied = r->status == DIAL_REPLY;
    log_flow(LOG_LEVEL_DEBUG, f,
             replied ? socks5_reply_name(r->reply) : dial_status_name(r->status), r->error);
    conn_refuse(stack, &f->conn, destination_refusal(r));
    flow_end(f);
}

static struct dial *start_dial(struct tcp_flow *f, const struct target *target)
{
    struct dial *d = dial_start(f->owner->worker->proxy, SOCKS5_CONNECT, target, on_dialed, f);
    if (d)
        dial_keep_watch(d);
    return d;
}

/*
 * Descriptors (or ports, or memory) have run out: another flow gives way, and this one tries once
 * more. False: there is none, or that was not enough.
 */
static bool dial_again(struct tcp_flow *f)
{
    struct tcp_flows *t = f->owner;
    char name[TARGET_NAME_MAX + 1];
    struct target target;
    if (f->redialled || !destination_find(t->worker->dns, &f->conn.dst, &target, name))
        return false;
    f->redialled = true;
    list_remove(&f->age); /* not the one to give way */
    bool made_room = tcp_flows_evict(t) || udp_flows_evict(t->worker->udp);
    list_push_back(&t->half_open, &f->age);
    if (made_room)
        f->dial = start_dial(f, &target);
    return f->dial != NULL;
}

struct conn *tcp_flows_open(struct tcp_flows *t, const struct endpoint *src,
                            const struct endpoint *dst)
{
    struct worker *w = t->worker;
    char name[TARGET_NAME_MAX + 1];
    struct target target;
    if (!destination_find(w->dns, dst, &target, name))
        return NULL;
    struct tcp_flow *f = memory_zeroed(sizeof *f);
    if (f == NULL)
        return NULL;
    f->owner = t;
    f->fd = -1;
    f->id = ++w->next_flow_id;
    f->conn.owner = CONN_OWNER_TCP_FLOW;
    f->conn.src = *src;
    f->conn.dst = *dst;
    f->active_ms = loop_now(w->loop);
    list_init(&f->age);
    list_init(&f->doubt);
    f->dial = start_dial(f, &target);
    if (f->dial == NULL) {
        free(f);
        return NULL;
    }
    if (target.name) {
        f->fake = true;
        dns_fake_hold(w->dns, &dst->addr);
    }
    w->flow_count++;
    log_flow(LOG_LEVEL_DEBUG, f, target.name ? target.name : "opening", 0);
    set_state(f, TCP_FLOW_DIALING);
    return &f->conn;
}

/* --- limits ----------------------------------------------------------------------------------- */

bool tcp_flows_evict(struct tcp_flows *t)
{
    struct link *victim = list_first(&t->half_open);
    if (victim == NULL)
        victim = list_first(&t->flows);
    if (victim == NULL)
        return false;
    flow_reset(CONTAINER_OF(victim, struct tcp_flow, age));
    return true;
}

static void on_idle(void *arg)
{
    struct tcp_flows *t = arg;
    struct worker *w = t->worker;
    uint64_t timeout = w->limits->tcp_idle_timeout_s * UINT64_C(1000);
    uint64_t now = loop_now(w->loop);
    LIST_EACH (it, &t->flows) {
        struct tcp_flow *f = CONTAINER_OF(it, struct tcp_flow, age);
        /* Keep-alives of the application count, but are not worth a callback each. */
        uint64_t heard = conn_heard_ms(&f->conn);
        if (heard > f->active_ms && now - heard < timeout) {
            f->active_ms = heard;
            list_remove(&f->age);
            list_push_back(&t->flows, &f->age);
            continue;
        }
        if (now - f->active_ms < timeout)
            break;
        log_flow(LOG_LEVEL_DEBUG, f, "idle for too long", 0);
        flow_reset(f);
    }
    arm_idle_timer(t);
}

void tcp_flows_trim(struct tcp_flows *t)
{
    chunk_pool_trim(&t->chunks);
}

/* A SYN that is held has nothing behind it yet. */
bool tcp_flows_sending(const struct tcp_flows *t)
{
    LIST_EACH (it, &t->half_open) {
        if (CONTAINER_OF(it, struct tcp_flow, age)->state == TCP_FLOW_ACCEPTING)
            return true;
    }
    LIST_EACH (it, &t->flows) {
        const struct tcp_flow *f = CONTAINER_OF(it, struct tcp_flow, age);
        if (f->state == TCP_FLOW_RELAYING && !f->up_done)
            return true;
    }
    return false;
}

struct tcp_flows *tcp_flows_new(struct worker *w)
{
    struct tcp_flows *t = memory_zeroed(sizeof *t);
    if (t == NULL)
        return NULL;
    t->worker = w;
    list_init(&t->half_open);
    list_init(&t->flows);
    list_init(&t->closed);
    list_init(&t->doubts);
    return t;
}

void tcp_flows_free(struct tcp_flows *t)
{
    if (t == NULL)
        return;
    LIST_EACH (it, &t->half_open)
        flow_reset(CONTAINER_OF(it, struct tcp_flow, age));
    LIST_EACH (it, &t->flows)
        flow_quit(CONTAINER_OF(it, struct tcp_flow, age));
    loop_timer_stop(&t->idle_timer);
    loop_timer_stop(&t->doubt_timer);
    loop_undefer(&t->reap);
    reap(t);
    chunk_pool_trim(&t->chunks);
    free(t);
}
