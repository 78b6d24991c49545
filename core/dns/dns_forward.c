/*
 * Theory: a question being asked is an exchange; all who ask the same meanwhile wait for the same
 * exchange. Exchanges are put on an upstream, a TCP connection to the server through the proxy:
 *
 *   ask --> queue --assign--> upstream.unsent --written--> upstream.sent --answer--> finished
 *             ^                     |                          |
 *             `------ attempt failed: once more on a fresh upstream; then finished without ----'
 *
 * There is one upstream as a rule. One that left a query unanswered for ATTEMPT_MS is retired: it
 * gets no new queries and is closed once its last is answered, while the other slot's, dialled
 * anew, takes over. So a server that is slow with one name does not cost the others their
 * connection, and one that fell silent costs each query one attempt.
 *
 * An attempt that fails because the server closed counts only where it answered nothing on that
 * connection: some servers close after each answer, and then progress is what counts. The
 * time-out of the attempt runs on meanwhile, so that nothing lives for ever.
 *
 * All writing, dialling and assigning happens in pump(), a deferred call: queries of one turn
 * leave in one write, and asking from within an answer's callback meets no half-changed state.
 */
#include "core/dns/dns_forward.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/map.h"
#include "core/base/memory.h"

enum {
    UPSTREAMS = 2,
    ATTEMPTS_MAX = 2,
    ATTEMPT_MS = 5000,
    IDLE_MS = 30000,
    IN_SIZE = 2 + DNS_MESSAGE_MAX, /* RFC 1035, 4.2.2: two bytes of length, then the message */
    OUT_SIZE = 4096,
};

struct upstream;

struct exchange {
    struct map_entry by_key;
    struct map_entry by_id; /* while it has an upstream */
    struct link link;       /* in dns_forward.queue, upstream.unsent or upstream.sent */
    struct link waiters;
    struct dns_forward *forward;
    struct upstream *upstream; /* NULL: in the queue */
    struct loop_timer timer;   /* ends the attempt */
    uint8_t attempts;          /* begun */
    uint16_t id;
    struct dns_key key;
};

enum upstream_state { UPSTREAM_CLOSED, UPSTREAM_DIALLING, UPSTREAM_OPEN };

struct upstream {
    struct dns_forward *forward;
    enum upstream_state state;
    bool retired;
    bool has_answered;
    struct dial *dial;
    int fd;
    struct loop_io io;
    bool watches_writing;
    struct loop_timer idle;
    struct link unsent, sent; /* exchanges */
    uint8_t *in;              /* IN_SIZE bytes; NULL while no message is half there */
    size_t in_len;
    size_t out_len, out_sent;
    uint8_t out[OUT_SIZE];
};

struct dns_forward {
    struct loop *loop;
    struct proxy *proxy;
    struct endpoint server;
    dns_answered_fn *answered;
    void *arg;
    struct map by_key, by_id;
    uint64_t ids_drawn;
    struct link queue;
    struct loop_deferred pump;
    struct upstream upstreams[UPSTREAMS];
};

static void pump(void *arg);
static void attempt_timed_out(void *arg);

/* --- exchanges ------------------------------------------------------------------------------- */

static bool has_key(const struct map_entry *entry, const void *key)
{
    return dns_key_equal(&CONTAINER_OF(entry, const struct exchange, by_key)->key, key);
}

static bool has_id(const struct map_entry *entry, const void *key)
{
    return CONTAINER_OF(entry, const struct exchange, by_id)->id == *(const uint16_t *)key;
}

static struct exchange *find_key(struct dns_forward *f, const struct dns_key *key)
{
    struct map_entry *found = map_find(&f->by_key, hash_bytes(key->bytes, key->len), key);
    return found ? CONTAINER_OF(found, struct exchange, by_key) : NULL;
}

static struct exchange *find_id(struct dns_forward *f, uint16_t id)
{
    struct map_entry *found = map_find(&f->by_id, hash_bytes(&id, sizeof(id)), &id);
    return found ? CONTAINER_OF(found, struct exchange, by_id) : NULL;
}

/* Of no other exchange, and unpredictable: a keyed hash whose key is the process's secret. */
static uint16_t draw_id(struct dns_forward *f)
{
    f->ids_drawn++;
    uint16_t id = (uint16_t)hash_bytes(&f->ids_drawn, sizeof(f->ids_drawn));
    while (find_id(f, id)) /* at most DNS_PENDING_MAX of 65,536 are taken */
        id++;
    return id;
}

static void leave_upstream(struct exchange *e)
{
    if (e->upstream)
        map_remove(&e->forward->by_id, &e->by_id);
    e->upstream = NULL;
    list_remove(&e->link);
}

static void join_upstream(struct exchange *e, struct upstream *u)
{
    list_remove(&e->link);
    e->id = draw_id(e->forward);
    map_insert(&e->forward->by_id, &e->by_id, hash_bytes(&e->id, sizeof(e->id)));
    e->upstream = u;
    list_push_back(&u->unsent, &e->link);
    loop_timer_stop(&u->idle);
}

static void free_exchange(struct exchange *e)
{
    leave_upstream(e);
    loop_timer_stop(&e->timer);
    map_remove(&e->forward->by_key, &e->by_key);
    free(e);
}

/* Over, with an answer in normal form or NULL. The callbacks may ask anew, the same even. */
static void finish(struct exchange *e, const uint8_t *answer, size_t len)
{
    struct link waiters;
    list_init(&waiters);
    list_insert_after(&e->waiters, &waiters);
    list_remove(&e->waiters); /* `waiters` now heads all of them */
    free_exchange(e);
    struct link *first;
    while ((first = list_first(&waiters)) != NULL) {
        struct dns_waiter *w = CONTAINER_OF(first, struct dns_waiter, link);
        list_remove(first);
        w->fn(w->arg, answer, len);
    }
}

static void begin_attempt(struct exchange *e)
{
    e->attempts++;
    loop_timer_start(e->forward->loop, &e->timer, ATTEMPT_MS, attempt_timed_out, e);
}

/* Back into the queue, for another upstream. */
static void requeue(struct exchange *e)
{
    struct dns_forward *f = e->forward;
    leave_upstream(e);
    list_push_back(&f->queue, &e->link);
    loop_defer(f->loop, &f->pump, pump, f);
}

static void fail_attempt(struct exchange *e)
{
    if (e->attempts >= ATTEMPTS_MAX || list_empty(&e->waiters)) {
        finish(e, NULL, 0);
        return;
    }
    requeue(e);
    begin_attempt(e);
}

/* --- upstreams ------------------------------------------------------------------------------- */

static bool is_unused(const struct upstream *u)
{
    return list_empty(&u->unsent) && list_empty(&u->sent);
}

/* Close, and see to what it leaves unanswered. */
static void close_upstream(struct upstream *u)
{
    if (u->dial)
        dial_cancel(u->dial);
    u->dial = NULL;
    loop_ignore(&u->io);
    if (u->fd >= 0)
        close(u->fd);
    u->fd = -1;
    loop_timer_stop(&u->idle);
    free(u->in);
    u->in = NULL;
    u->in_len = u->out_len = u->out_sent = 0;
    u->state = UPSTREAM_CLOSED;

    /* Closed first: the callbacks of what is lost for good find it as it is. */
    bool progress = u->has_answered;
    struct link *lists[] = {&u->sent, &u->unsent};
    for (size_t i = 0; i < 2; i++) {
        struct link *first;
        while ((first = list_first(lists[i])) != NULL) {
            struct exchange *e = CONTAINER_OF(first, struct exchange, link);
            if (progress)
                requeue(e);
            else
                fail_attempt(e);
        }
    }
}

/* The connection failed. Whatever a server or proxy can cause is said seldom. */
static void break_upstream(struct upstream *u, const char *why)
{
    static struct log_limit limit = LOG_LIMIT(3);
    char server[ENDPOINT_TEXT_MAX];
    endpoint_format(&u->forward->server, server);
    if (!is_unused(u))
        log_limited(LOG_LEVEL_WARN, &limit, "dns: connection to %s: %s", server, why);
    close_upstream(u);
}

static void idle_for_long(void *arg)
{
    close_upstream(arg);
}

/* After exchanges were taken off it. */
static void settle(struct upstream *u)
{
    if (u->state == UPSTREAM_CLOSED || !is_unused(u))
        return;
    if (u->retired)
        close_upstream(u);
    else if (u->state == UPSTREAM_OPEN && !u->idle.pending)
        loop_timer_start(u->forward->loop, &u->idle, IDLE_MS, idle_for_long, u);
}

static void attempt_timed_out(void *arg)
{
    struct exchange *e = arg;
    struct upstream *u = e->upstream;
    if (u)
        u->retired = true;
    fail_attempt(e);
    if (u)
        settle(u);
}

/* --- sending --------------------------------------------------------------------------------- */

/* Move unsent queries into the empty buffer, as many as fit. */
static void fill_out(struct upstream *u)
{
    struct writer w = writer_over(u->out, sizeof(u->out));
    while (!list_empty(&u->unsent) && writer_left(&w) >= 2 + DNS_QUERY_MAX) {
        struct exchange *e = CONTAINER_OF(u->unsent.next, struct exchange, link);
        uint8_t query[DNS_QUERY_MAX];
        size_t len = dns_key_query(&e->key, e->id, query);
        writer_u16(&w, (uint16_t)len);
        writer_bytes(&w, query, len);
        list_remove(&e->link);
        list_push_back(&u->sent, &e->link);
    }
    u->out_len = writer_used(&w);
    u->out_sent = 0;
}

static void on_io(void *arg, unsigned ready);

static void watch(struct upstream *u, bool writing)
{
    if (u->io.watching && u->watches_writing == writing)
        return;
    u->watches_writing = writing;
    unsigned what = LOOP_READ | (writing ? LOOP_WRITE : 0u);
    int error = loop_watch(u->forward->loop, &u->io, u->fd, what, on_io, u);
    if (error < 0)
        break_upstream(u, strerror(-error));
}

static void flush(struct upstream *u)
{
    for (;;) {
        if (u->out_sent == u->out_len)
            fill_out(u);
        if (u->out_len == 0)
            break;
        ssize_t n = send(u->fd, u->out + u->out_sent, u->out_len - u->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            break_upstream(u, strerror(errno));
            return;
        }
        u->out_sent += (size_t)n;
    }
    watch(u, u->out_sent < u->out_len);
}

/* --- receiving ------------------------------------------------------------------------------- */

/* RFC 1035, 7.3: some servers refuse without saying what. */
static bool is_bare_refusal(const uint8_t *message, size_t len)
{
    struct reader r = reader_over(message, len);
    reader_skip(&r, 2);
    uint16_t flags = reader_u16(&r);
    uint16_t questions = reader_u16(&r);
    return (flags & DNS_FLAG_RCODE) && questions == 0;
}

/* One message of the server. False: nonsense, the connection is not to be trusted any further. */
static bool take_answer(struct upstream *u, uint8_t *message, size_t len)
{
    struct reader r = reader_over(message, len);
    uint16_t id = reader_u16(&r);
    uint16_t flags = reader_u16(&r);
    if (len < DNS_HEADER_SIZE || !(flags & DNS_FLAG_QR) || (flags & DNS_FLAG_OPCODE))
        return false;
    struct exchange *e = find_id(u->forward, id);
    if (!e || e->upstream != u)
        return true; /* the answer to an attempt that was given up */

    struct dns_answer answer;
    if (is_bare_refusal(message, len)) {
        u->has_answered = true;
        finish(e, NULL, 0);
        return true;
    }
    if (!dns_answer_check(&answer, message, len, &e->key))
        return false;
    u->has_answered = true;
    u->forward->answered(u->forward->arg, &e->key, message, &answer);
    finish(e, message, answer.len);
    return true;
}

/* All whole messages in the buffer. False: nonsense. */
static bool take_answers(struct upstream *u)
{
    size_t at = 0;
    for (;;) {
        struct reader r = reader_over(u->in + at, u->in_len - at);
        size_t len = reader_u16(&r);
        uint8_t *message = u->in + at + 2;
        if (!reader_bytes(&r, len))
            break;
        at += 2 + len;
        if (!take_answer(u, message, len))
            return false;
    }
    u->in_len -= at;
    memmove(u->in, u->in + at, u->in_len);
    if (u->in_len == 0) {
        free(u->in);
        u->in = NULL;
    }
    return true;
}

static void receive(struct upstream *u)
{
    if (!u->in)
        u->in = memory_get(IN_SIZE);
    if (!u->in) {
        break_upstream(u, strerror(ENOMEM));
        return;
    }
    /* There is always room: a buffer of this size holds a whole message, which is then taken. */
    ssize_t n = recv(u->fd, u->in + u->in_len, IN_SIZE - u->in_len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        break_upstream(u, n == 0 ? "closed by the server" : strerror(errno));
        return;
    }
    u->in_len += (size_t)n;
    if (!take_answers(u)) {
        break_upstream(u, "what came is no answer");
        return;
    }
    settle(u);
}

static void on_io(void *arg, unsigned ready)
{
    struct upstream *u = arg;
    if (ready & LOOP_WRITE)
        flush(u);
    if (u->state == UPSTREAM_OPEN && (ready & LOOP_READ))
        receive(u);
}

/* --- dialling and assigning ------------------------------------------------------------------ */

static void on_dialled(void *arg, const struct dial_result *result)
{
    struct upstream *u = arg;
    u->dial = NULL;
    if (result->status != DIAL_OK) {
        const char *why = dial_status_name(result->status);
        if (result->status == DIAL_REPLY)
            why = socks5_reply_name(result->reply);
        else if (result->error != 0)
            why = strerror(result->error);
        break_upstream(u, why);
        return;
    }
    u->fd = result->fd;
    outbound_keep_alive(u->fd);
    u->state = UPSTREAM_OPEN;
    flush(u);
    settle(u);
}

static bool dial_upstream(struct upstream *u)
{
    struct target target = {.addr = u->forward->server.addr, .port = u->forward->server.port};
    u->dial = dial_start(u->forward->proxy, SOCKS5_CONNECT, &target, on_dialled, u);
    if (!u->dial)
        return false;
    u->state = UPSTREAM_DIALLING;
    u->retired = false;
    u->has_answered = false;
    return true;
}

/* The upstream for new queries; NULL when none can be had. */
static struct upstream *pick_upstream(struct dns_forward *f)
{
    struct upstream *unused = NULL;
    for (size_t i = 0; i < UPSTREAMS; i++) {
        struct upstream *u = &f->upstreams[i];
        if (u->state != UPSTREAM_CLOSED && !u->retired)
            return u;
        if (u->state == UPSTREAM_CLOSED)
            unused = u;
    }
    if (!unused) {
        /* Both are retired: one gives way, and what it still had is queued, behind. */
        unused = &f->upstreams[0];
        close_upstream(unused);
    }
    return dial_upstream(unused) ? unused : NULL;
}

static void pump(void *arg)
{
    struct dns_forward *f = arg;
    while (!list_empty(&f->queue)) {
        struct upstream *u = pick_upstream(f);
        struct exchange *e = CONTAINER_OF(f->queue.next, struct exchange, link);
        if (u)
            join_upstream(e, u);
        else
            finish(e, NULL, 0);
    }
    for (size_t i = 0; i < UPSTREAMS; i++)
        if (f->upstreams[i].state == UPSTREAM_OPEN && !list_empty(&f->upstreams[i].unsent))
            flush(&f->upstreams[i]);
}

/* --- in and out ------------------------------------------------------------------------------ */

struct dns_forward *dns_forward_new(struct loop *loop, struct proxy *proxy,
                                    const struct endpoint *server, dns_answered_fn *answered,
                                    void *arg)
{
    struct dns_forward *f = memory_zeroed(sizeof(*f));
    if (!f)
        return NULL;
    if (map_init(&f->by_key, 8, has_key) < 0 || map_init(&f->by_id, 8, has_id) < 0) {
        map_free(&f->by_key);
        free(f);
        return NULL;
    }
    f->loop = loop;
    f->proxy = proxy;
    f->server = *server;
    f->answered = answered;
    f->arg = arg;
    list_init(&f->queue);
    for (size_t i = 0; i < UPSTREAMS; i++) {
        struct upstream *u = &f->upstreams[i];
        u->forward = f;
        u->fd = -1;
        list_init(&u->unsent);
        list_init(&u->sent);
    }
    return f;
}

static void drop_exchange(struct map_entry *entry, void *arg)
{
    (void)arg;
    struct exchange *e = CONTAINER_OF(entry, struct exchange, by_key);
    list_remove(&e->waiters);
    free_exchange(e);
}

void dns_forward_free(struct dns_forward *f)
{
    if (!f)
        return;
    map_each(&f->by_key, drop_exchange, NULL);
    for (size_t i = 0; i < UPSTREAMS; i++)
        close_upstream(&f->upstreams[i]);
    loop_undefer(&f->pump);
    map_free(&f->by_key);
    map_free(&f->by_id);
    free(f);
}

static struct exchange *new_exchange(struct dns_forward *f, const struct dns_key *key)
{
    if (f->by_key.size >= DNS_PENDING_MAX)
        return NULL;
    struct exchange *e = memory_zeroed(sizeof(*e));
    if (!e)
        return NULL;
    e->forward = f;
    e->key = *key;
    list_init(&e->waiters);
    map_insert(&f->by_key, &e->by_key, hash_bytes(key->bytes, key->len));
    list_push_back(&f->queue, &e->link);
    loop_defer(f->loop, &f->pump, pump, f);
    begin_attempt(e);
    return e;
}

bool dns_forward_ask(struct dns_forward *f, const struct dns_key *key, struct dns_waiter *waiter)
{
    struct exchange *e = find_key(f, key);
    if (!e)
        e = new_exchange(f, key);
    if (!e)
        return false;
    list_push_back(&e->waiters, &waiter->link);
    return true;
}

void dns_forward_cancel(struct dns_waiter *waiter)
{
    list_remove(&waiter->link);
}
