/*
 * Queries as packets bring them: datagrams to port 53, and TCP connections to it (RFC 7766).
 *
 * UDP: each query that must wait is an ask; its answer leaves from the address and port that the
 * client asked. How many may wait is bounded by core/dns/dns.c.
 *
 * TCP: a session is accepted at once, there is no proxy behind it to wait for.
 *
 *   HELD --turn's end--> OPEN --client's FIN and all answered, or idle--> CLOSING --> (freed)
 *     `---------------------`---- reset, nonsense, stalled for IDLE_MS ------^
 *
 *   HELD     conn_accept() is due
 *   OPEN     messages are read as they come and answered as the answers come, in any order
 *   CLOSING  our FIN is out: what the client sends now is answered with a reset: it asks anew
 *   (over)   let go of by the stack, freed at the turn's end
 *
 * What a client can make us keep is bounded: SESSIONS_MAX sessions (the one idle longest gives
 * way), one query half read each, SESSION_ASKS_MAX queries unanswered and SESSION_OUT_MAX bytes of
 * answers unread each, past which its next queries stay where they are, and OUT_TOTAL_MAX bytes
 * of answers in all, past which the session that wants more is reset.
 */
#include "core/flows.h"

#include <stdlib.h>

#include "core/base/cursor.h"
#include "core/base/memory.h"

enum {
    DNS_PORT = 53,
    SESSIONS_MAX = 1024,
    SESSION_ASKS_MAX = 64,
    SESSION_OUT_MAX = 128 << 10, /* bytes */
    OUT_TOTAL_MAX = 16 << 20,    /* bytes */
    QUERY_SIZE_MAX = 4096,       /* bytes; a question and its options need less than 512 */
    IDLE_MS = 30000,
    PIECE_MAX = 65535, /* what conn_send() takes at once, bytes */
    SEGMENTS_AT_ONCE = 16,
};

struct dns_front {
    struct worker *worker;
    struct link datagram_asks;
    struct link sessions; /* the one active longest ago first */
    struct link ended;    /* sessions to be freed at the turn's end */
    struct loop_deferred reap;
    size_t session_count;
    size_t out_bytes; /* answers of all sessions, until the clients have acknowledged them */
};

/* A UDP query that waits for its answer. */
struct datagram_ask {
    struct link link; /* dns_front.datagram_asks */
    struct dns_front *front;
    struct endpoint src, dst;
    struct dns_query *query; /* NULL within dns_ask(), whose caller frees the ask then */
};

enum session_state { SESSION_HELD, SESSION_OPEN, SESSION_CLOSING, SESSION_OVER };

struct session {
    struct conn conn;
    struct dns_front *front;
    enum session_state state;
    struct link link; /* dns_front.sessions, or .ended */
    struct link asks; /* session_ask */
    unsigned ask_count;
    bool opened;       /* the handshake is complete */
    bool client_done;  /* its FIN has come */
    uint8_t prefix[2]; /* the length of the message being read */
    uint8_t prefix_len;
    uint8_t *query; /* the message being read, NULL between messages */
    size_t query_len, query_have;
    struct link out;  /* frame: not yet wholly handed to the stack */
    size_t out_bytes; /* of these and of those that the client has not acknowledged */
    uint64_t active_ms;
    struct loop_timer timer;
    struct loop_deferred work;
};

/* A TCP query that is being asked. */
struct session_ask {
    struct link link; /* session.asks */
    struct session *session;
    struct dns_query *query; /* NULL within dns_ask() */
};

/* An answer behind its length. Freed once all of it was sent and acknowledged, or lost. */
struct frame {
    struct chunk chunk;
    struct link link; /* session.out */
    struct session *session;
    size_t len, sent;
    bool in_stack;
    uint8_t bytes[];
};

static void session_work(void *arg);

/* --- UDP ------------------------------------------------------------------------------------- */

static void answer_datagram(void *arg, const uint8_t *answer, size_t len)
{
    struct datagram_ask *ask = arg;
    stack_send_datagram(ask->front->worker->stack, &ask->dst, &ask->src, answer, len, 0);
    list_remove(&ask->link);
    if (ask->query)
        free(ask);
}

void dns_front_datagram(struct dns_front *f, const struct endpoint *src, const struct endpoint *dst,
                        const uint8_t *payload, size_t len)
{
    struct datagram_ask *ask = memory_get(sizeof(*ask));
    if (!ask)
        return;
    *ask = (struct datagram_ask){.front = f, .src = *src, .dst = *dst};
    list_push_back(&f->datagram_asks, &ask->link);
    ask->query = dns_ask(f->worker->dns, payload, len, true, answer_datagram, ask);
    if (!ask->query) {
        list_remove(&ask->link);
        free(ask);
    }
}

/* --- a session's end ------------------------------------------------------------------------- */

static void free_frame(struct frame *frame)
{
    frame->session->out_bytes -= frame->len;
    frame->session->front->out_bytes -= frame->len;
    free(frame);
}

/* The stack reads from it no more. Where a part is still to be sent it goes on. */
static void release_frame(struct chunk *chunk)
{
    struct frame *frame = CONTAINER_OF(chunk, struct frame, chunk);
    frame->in_stack = false;
    if (frame->sent == frame->len)
        free_frame(frame);
}

static void free_ask(struct session_ask *ask)
{
    list_remove(&ask->link);
    ask->session->ask_count--;
    free(ask);
}

static void reap_sessions(void *arg)
{
    struct dns_front *f = arg;
    LIST_EACH (it, &f->ended) {
        list_remove(it);
        free(CONTAINER_OF(it, struct session, link));
    }
}

/* Whatever the reason. The conn is reset unless it is over. */
static void end_session(struct session *s)
{
    struct dns_front *f = s->front;
    s->state = SESSION_OVER;
    LIST_EACH (it, &s->asks) {
        struct session_ask *ask = CONTAINER_OF(it, struct session_ask, link);
        if (!ask->query)
            continue; /* within dns_ask(), whose caller frees it */
        dns_cancel(ask->query);
        free_ask(ask);
    }
    conn_abort(s->front->worker->stack, &s->conn);
    LIST_EACH (it, &s->out) {
        list_remove(it);
        free_frame(CONTAINER_OF(it, struct frame, link));
    }
    free(s->query);
    s->query = NULL;
    loop_timer_stop(&s->timer);
    loop_undefer(&s->work);
    list_remove(&s->link);
    f->session_count--;
    list_push_back(&f->ended, &s->link);
    loop_defer(f->worker->loop, &f->reap, reap_sessions, f);
}

static bool is_over(const struct session *s)
{
    return s->state == SESSION_OVER;
}

/* Something whole was asked, or taken: not a byte now and then, which anyone can drip. */
static void note_activity(struct session *s)
{
    s->active_ms = loop_now(s->front->worker->loop);
    list_remove(&s->link);
    list_push_back(&s->front->sessions, &s->link);
}

/* Nothing half asked or half answered? */
static bool is_idle(const struct session *s)
{
    return s->ask_count == 0 && s->out_bytes == 0;
}

static void close_session(struct session *s)
{
    s->state = SESSION_CLOSING;
    note_activity(s);
    conn_shutdown(s->front->worker->stack, &s->conn);
}

static void session_timer(void *arg)
{
    struct session *s = arg;
    struct loop *loop = s->front->worker->loop;
    uint64_t idle_ms = loop_now(loop) - s->active_ms;
    if (idle_ms >= IDLE_MS) {
        if (s->state != SESSION_OPEN || !s->opened || !is_idle(s)) {
            end_session(s); /* a client that neither reads nor goes, or never came */
            return;
        }
        close_session(s);
        idle_ms = 0;
    }
    loop_timer_start(loop, &s->timer, IDLE_MS - idle_ms, session_timer, s);
}

/* --- answers to a session -------------------------------------------------------------------- */

static struct frame *new_frame(struct session *s, const uint8_t *answer, size_t len)
{
    struct dns_front *f = s->front;
    struct frame *frame = NULL;
    if (f->out_bytes + 2 + len <= OUT_TOTAL_MAX)
        frame = memory_get(sizeof(*frame) + 2 + len);
    if (!frame)
        return NULL;
    *frame = (struct frame){.chunk = {.release = release_frame}, .session = s, .len = 2 + len};
    struct writer w = writer_over(frame->bytes, 2 + len);
    writer_u16(&w, (uint16_t)len);
    writer_bytes(&w, answer, len);
    s->out_bytes += frame->len;
    f->out_bytes += frame->len;
    return frame;
}

static void answer_session(void *arg, const uint8_t *answer, size_t len)
{
    struct session_ask *ask = arg;
    struct session *s = ask->session;
    bool later = ask->query != NULL;
    if (later)
        free_ask(ask);
    struct frame *frame = new_frame(s, answer, len);
    if (!frame) {
        end_session(s);
        return;
    }
    list_push_back(&s->out, &frame->link);
    if (later) /* the answers of one turn leave together */
        loop_defer(s->front->worker->loop, &s->work, session_work, s);
}

/* Hand as much as there is room for to the stack. False: the session is over. */
static bool send_frames(struct session *s)
{
    struct stack *stack = s->front->worker->stack;
    bool any = false;
    while (!list_empty(&s->out)) {
        struct frame *frame = CONTAINER_OF(s->out.next, struct frame, link);
        size_t n = conn_room(&s->conn);
        if (n == 0)
            break;
        if (n > frame->len - frame->sent)
            n = frame->len - frame->sent;
        if (n > PIECE_MAX)
            n = PIECE_MAX;
        frame->in_stack = true;
        if (conn_send(stack, &s->conn, &frame->chunk, frame->bytes + frame->sent, n) < 0) {
            end_session(s);
            return false;
        }
        any = true;
        frame->sent += n;
        if (frame->sent == frame->len) {
            list_remove(&frame->link);
            if (!frame->in_stack)
                free_frame(frame);
        }
    }
    if (any)
        conn_flush(stack, &s->conn);
    return true;
}

/* --- queries of a session -------------------------------------------------------------------- */

/* The message is whole. False: the session is over. */
static bool ask_for_session(struct session *s)
{
    struct session_ask *ask = memory_get(sizeof(*ask));
    if (!ask) {
        end_session(s);
        return false;
    }
    *ask = (struct session_ask){.session = s};
    list_push_back(&s->asks, &ask->link);
    s->ask_count++;
    note_activity(s);
    uint8_t *query = s->query;
    s->query = NULL;
    s->prefix_len = 0;
    ask->query = dns_ask(s->front->worker->dns, query, s->query_len, false, answer_session, ask);
    free(query);
    if (!ask->query)
        free_ask(ask);
    return !is_over(s);
}

/* Take bytes of the stream (RFC 1035, 4.2.2). False: the session is over. */
static bool take_bytes(struct session *s, struct reader *r)
{
    if (s->prefix_len < sizeof(s->prefix)) {
        s->prefix[s->prefix_len++] = reader_u8(r);
        if (s->prefix_len < sizeof(s->prefix))
            return true;
        s->query_len = (size_t)s->prefix[0] << 8 | s->prefix[1];
        s->query_have = 0;
        if (s->query_len > 0 && s->query_len <= QUERY_SIZE_MAX)
            s->query = memory_get(s->query_len);
        if (!s->query) {
            end_session(s); /* nobody asks nothing, or that much */
            return false;
        }
        return true;
    }
    size_t n = s->query_len - s->query_have;
    if (n > reader_left(r))
        n = reader_left(r);
    memcpy(s->query + s->query_have, reader_bytes(r, n), n);
    s->query_have += n;
    return s->query_have < s->query_len || ask_for_session(s);
}

static bool wants_more(const struct session *s)
{
    return s->ask_count < SESSION_ASKS_MAX && s->out_bytes < SESSION_OUT_MAX;
}

/* Read what has come, as far as the limits allow. False: the session is over. */
static bool read_queries(struct session *s)
{
    struct stack *stack = s->front->worker->stack;
    struct iovec iov[SEGMENTS_AT_ONCE];
    int count;
    while (wants_more(s) && (count = conn_peek(&s->conn, iov, SEGMENTS_AT_ONCE)) > 0) {
        size_t taken = 0;
        for (int i = 0; i < count && wants_more(s); i++) {
            struct reader r = reader_over(iov[i].iov_base, iov[i].iov_len);
            while (reader_left(&r) > 0 && wants_more(s))
                if (!take_bytes(s, &r))
                    return false;
            taken += reader_used(&r);
        }
        conn_consume(stack, &s->conn, taken, SIZE_MAX);
    }
    return true;
}

static bool has_unread(const struct session *s)
{
    struct iovec iov[1];
    return conn_peek(&s->conn, iov, 1) > 0;
}

/* All that can be done now. */
static void advance(struct session *s)
{
    /* Answers that were sent may make room for queries that wait. */
    if (!read_queries(s) || !send_frames(s))
        return;
    bool asked_all = s->client_done && !has_unread(s);
    if (asked_all && s->ask_count == 0 && list_empty(&s->out))
        close_session(s);
}

static void session_work(void *arg)
{
    struct session *s = arg;
    if (s->state == SESSION_HELD) {
        s->state = SESSION_OPEN;
        conn_accept(s->front->worker->stack, &s->conn, SIZE_MAX);
    } else if (s->state == SESSION_OPEN) {
        advance(s);
    }
}

/* --- in and out ------------------------------------------------------------------------------ */

struct conn *dns_front_open(struct dns_front *f, const struct endpoint *src,
                            const struct endpoint *dst)
{
    (void)src;
    (void)dst; /* the stack writes both into the conn */
    if (f->session_count >= SESSIONS_MAX)
        end_session(CONTAINER_OF(f->sessions.next, struct session, link));
    struct session *s = memory_zeroed(sizeof(*s));
    if (!s)
        return NULL;
    struct loop *loop = f->worker->loop;
    s->front = f;
    s->active_ms = loop_now(loop);
    list_init(&s->asks);
    list_init(&s->out);
    list_push_back(&f->sessions, &s->link);
    f->session_count++;
    loop_timer_start(loop, &s->timer, IDLE_MS, session_timer, s);
    loop_defer(loop, &s->work, session_work, s);
    return &s->conn;
}

void dns_front_ready(struct dns_front *f, struct conn *conn, unsigned events)
{
    (void)f;
    struct session *s = CONTAINER_OF(conn, struct session, conn);
    if (is_over(s))
        return;
    if (events & (CONN_RESET | CONN_CLOSED)) {
        end_session(s);
        return;
    }
    if (events & CONN_OPENED)
        s->opened = true;
    if (events & CONN_FIN)
        s->client_done = true;
    if (events & CONN_ROOM)
        note_activity(s);
    if (s->state == SESSION_OPEN)
        advance(s);
    else if (s->state == SESSION_CLOSING && has_unread(s))
        end_session(s);
}

bool dns_front_takes(const struct dns_front *f, const struct endpoint *dst)
{
    return dst->port == DNS_PORT && dns_mode(f->worker->dns) != DNS_RELAY;
}

struct dns_front *dns_front_new(struct worker *w)
{
    struct dns_front *f = memory_zeroed(sizeof(*f));
    if (!f)
        return NULL;
    f->worker = w;
    list_init(&f->datagram_asks);
    list_init(&f->sessions);
    list_init(&f->ended);
    return f;
}

void dns_front_free(struct dns_front *f)
{
    if (!f)
        return;
    LIST_EACH (it, &f->datagram_asks) {
        struct datagram_ask *ask = CONTAINER_OF(it, struct datagram_ask, link);
        dns_cancel(ask->query);
        free(ask);
    }
    LIST_EACH (it, &f->sessions)
        end_session(CONTAINER_OF(it, struct session, link));
    loop_undefer(&f->reap); /* there may be no further turn */
    reap_sessions(f);
    free(f);
}
