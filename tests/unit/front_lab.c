#include "front_lab.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "failing_memory.h"

/* --- the policy: a query "now..." is answered at once, others when the test says so ----------- */

struct dns_query {
    struct link link;
    dns_answer_fn *fn;
    void *arg;
    char text[64];
};

struct front_lab front_lab;

void front_lab_reset(void)
{
    memset(&front_lab, 0, sizeof(front_lab));
    list_init(&front_lab.open_queries);
    front_lab.mode = DNS_FAKE;
}

static size_t make_answer(const char *query, uint8_t *out)
{
    size_t len = (size_t)snprintf((char *)out, 100, "re:%s", query);
    while (len < front_lab.answer_size)
        out[len++] = '.';
    return len;
}

enum dns_mode dns_mode(const struct dns *d)
{
    (void)d;
    return front_lab.mode;
}

struct dns_query *dns_ask(struct dns *d, const uint8_t *query, size_t len, bool udp,
                          dns_answer_fn *fn, void *arg)
{
    (void)d;
    static uint8_t answer[65535];
    if (len == 4 && memcmp(query, "junk", 4) == 0)
        return NULL;
    failing_memory.paused = true;
    struct dns_query *q = calloc(1, sizeof(*q));
    failing_memory.paused = false;
    assert_non_null(q);
    memcpy(q->text, query, len < 60 ? len : 60);
    front_lab.last_was_udp = udp;
    if (strncmp(q->text, "now", 3) == 0) {
        fn(arg, answer, make_answer(q->text, answer));
        free(q);
        return NULL;
    }
    q->fn = fn;
    q->arg = arg;
    list_push_back(&front_lab.open_queries, &q->link);
    front_lab.open_count++;
    return q;
}

void dns_cancel(struct dns_query *q)
{
    list_remove(&q->link);
    front_lab.open_count--;
    free(q);
}

void front_lab_answer(const char *text)
{
    static uint8_t answer[65535];
    LIST_EACH (it, &front_lab.open_queries) {
        struct dns_query *q = CONTAINER_OF(it, struct dns_query, link);
        if (strcmp(q->text, text) != 0)
            continue;
        dns_answer_fn *fn = q->fn;
        void *arg = q->arg;
        size_t len = make_answer(q->text, answer);
        dns_cancel(q);
        fn(arg, answer, len);
        return;
    }
    fail_msg("no query %s", text);
}

/* --- the stack ------------------------------------------------------------------------------- */

static struct peer *peer_of(const struct conn *c)
{
    for (size_t i = 0; i < front_lab.peer_count; i++)
        if (front_lab.peers[i].conn == c)
            return &front_lab.peers[i];
    fail_msg("a conn that the stack does not know");
    return NULL;
}

int stack_send_datagram(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                        const void *payload, size_t len, uint16_t gso_size)
{
    (void)s;
    assert_int_equal(gso_size, 0);
    front_lab.sent.src = *src;
    front_lab.sent.dst = *dst;
    front_lab.sent.count++;
    memcpy(front_lab.sent.text, payload, len);
    front_lab.sent.text[len] = '\0';
    return 0;
}

void conn_accept(struct stack *s, struct conn *c, size_t room)
{
    (void)s, (void)room;
    peer_of(c)->accepted = true;
}

int conn_peek(const struct conn *c, struct iovec *iov, int max)
{
    struct peer *p = peer_of(c);
    int n = 0;
    for (size_t at = 0; at < p->rx_len && n < max; n++) {
        iov[n].iov_base = p->rx + at;
        iov[n].iov_len = p->rx_len - at < p->piece ? p->rx_len - at : p->piece;
        at += iov[n].iov_len;
    }
    return n;
}

void conn_consume(struct stack *s, struct conn *c, size_t n, size_t room)
{
    (void)s, (void)room;
    struct peer *p = peer_of(c);
    assert_true(n <= p->rx_len);
    p->rx_len -= n;
    memmove(p->rx, p->rx + n, p->rx_len);
}

size_t conn_room(const struct conn *c)
{
    return peer_of(c)->room;
}

int conn_send(struct stack *s, struct conn *c, struct chunk *chunk, const void *bytes, size_t len)
{
    (void)s;
    struct peer *p = peer_of(c);
    assert_true(len > 0 && len <= 65535 && len <= p->room && !p->shut);
    if (p->send_fails) {
        if (!chunk->queued)
            chunk->release(chunk);
        return -ENOMEM;
    }
    if (!chunk->queued) {
        assert_true(p->chunk_count < 256);
        p->chunks[p->chunk_count++] = chunk;
        chunk->queued = true;
    }
    p->tx = realloc(p->tx, p->tx_len + len);
    assert_non_null(p->tx);
    memcpy(p->tx + p->tx_len, bytes, len);
    p->tx_len += len;
    p->room -= len;
    return 0;
}

void conn_flush(struct stack *s, struct conn *c)
{
    (void)s, (void)c;
}

void conn_shutdown(struct stack *s, struct conn *c)
{
    (void)s;
    peer_of(c)->shut = true;
}

void front_lab_release_chunks(struct peer *p)
{
    size_t n = p->chunk_count;
    p->chunk_count = 0;
    for (size_t i = 0; i < n; i++) {
        p->chunks[i]->queued = false;
        p->chunks[i]->release(p->chunks[i]);
    }
}

void conn_abort(struct stack *s, struct conn *c)
{
    (void)s;
    struct peer *p = peer_of(c);
    front_lab_release_chunks(p);
    p->conn = NULL;
    p->aborted = true;
}
