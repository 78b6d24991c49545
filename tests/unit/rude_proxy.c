#include "tests/unit/rude_proxy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct session {
    struct link link;
    struct rude_proxy *proxy;
    struct loop_io io;
    struct loop_timer timer;
    int fd;
    bool method_sent;
    struct socks5_server server;
    uint8_t out[600];
    size_t out_len, out_sent;
};

static void session_end(struct session *s)
{
    loop_ignore(&s->io);
    loop_timer_stop(&s->timer);
    close(s->fd);
    list_remove(&s->link);
    free(s);
}

static void say(struct session *s, const void *bytes, size_t len)
{
    assert_true(s->out_len + len <= sizeof(s->out));
    memcpy(s->out + s->out_len, bytes, len);
    s->out_len += len;
}

static void on_drip(void *arg)
{
    struct session *s = arg;
    size_t left = s->out_len - s->out_sent;
    size_t n = s->proxy->rudeness == PROXY_DRIPS && left > 0 ? 1 : left;
    if (n > 0 && send(s->fd, s->out + s->out_sent, n, MSG_NOSIGNAL) == (ssize_t)n)
        s->out_sent += n;
    if (s->out_sent < s->out_len)
        loop_timer_start(s->proxy->loop, &s->timer, PROXY_DRIP_MS, on_drip, s);
}

static void flush(struct session *s)
{
    bool slow = s->proxy->rudeness == PROXY_SLOW && s->method_sent;
    if (slow)
        loop_timer_start(s->proxy->loop, &s->timer, PROXY_SLOW_MS, on_drip, s);
    else if (!s->timer.pending)
        on_drip(s);
    s->method_sent = true;
}

static void take_output(struct session *s)
{
    const uint8_t *out;
    size_t n = socks5_server_output(&s->server, &out);
    say(s, out, n);
    socks5_server_sent(&s->server, n);
}

static void note_request(struct session *s)
{
    struct rude_proxy *p = s->proxy;
    char text[ADDR_TEXT_MAX];
    p->requests++;
    snprintf(p->target, sizeof(p->target), "%d %s %u", s->server.command,
             s->server.target_is_name ? s->server.name : addr_format(&s->server.target.addr, text),
             s->server.target.port);
}

/* The reply that is called for; false where there is to be none. */
static bool reply(struct session *s)
{
    struct rude_proxy *p = s->proxy;
    note_request(s);
    if (p->rudeness == PROXY_CLOSES_UNASKED)
        return false;
    if (p->rudeness == PROXY_CUTS_REPLY) {
        const struct linger reset = {.l_onoff = 1};
        say(s, "\x05\x00\x00\x01\x0a", 5);
        flush(s);
        setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        return false;
    }
    if (p->rudeness == PROXY_NONSENSE_REPLY) {
        say(s, "\x05\x00\x00\x09rubbish", 11);
        return true;
    }
    socks5_server_reply(&s->server, p->reply, &p->bound);
    take_output(s);
    if (p->payload)
        say(s, p->payload, strlen(p->payload));
    return true;
}

/* What a proxy that cannot be pipelined to makes of the first bytes; false: it is over. */
static bool judge_greeting(struct session *s, const uint8_t *bytes, size_t *len)
{
    size_t greeting = 2 + (size_t)bytes[1];
    switch (s->proxy->rudeness) {
    case PROXY_ONE_MESSAGE:
        *len = greeting;
        return true;
    case PROXY_CLOSES_PIPELINE:
        return *len <= greeting;
    case PROXY_NOISE_PIPELINE:
        if (*len > greeting)
            say(s,
                "\x05\x00"
                "ERROR",
                7);
        return *len <= greeting;
    case PROXY_CHOOSES:
        if (!memchr(bytes + 2, 0, bytes[1])) {
            say(s, "\x05\xff", 2);
            return false;
        }
        return true;
    case PROXY_TALKS_HTTP:
        say(s, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
        return false;
    case PROXY_POLITE:
    case PROXY_DRIPS:
    case PROXY_CLOSES_AT_ONCE:
    case PROXY_CUTS_REPLY:
    case PROXY_CLOSES_UNASKED:
    case PROXY_NONSENSE_REPLY:
    case PROXY_SILENT:
    case PROXY_SLOW:
        return true;
    }
    return true;
}

static void on_session(void *arg, unsigned ready)
{
    (void)ready;
    struct session *s = arg;
    uint8_t bytes[1024];
    ssize_t n = recv(s->fd, bytes, sizeof(bytes), 0);
    if (n <= 0) {
        session_end(s);
        return;
    }
    size_t len = (size_t)n;
    bool first = s->server.state == SOCKS5_SERVER_GREETING && s->server.in_len == 0;
    if (s->proxy->rudeness == PROXY_SILENT)
        return;
    if (first && len >= 2 && !judge_greeting(s, bytes, &len)) {
        flush(s);
        session_end(s);
        return;
    }
    socks5_server_input(&s->server, bytes, len);
    take_output(s);
    if (s->server.state == SOCKS5_SERVER_READY && !reply(s)) {
        session_end(s);
        return;
    }
    flush(s);
}

static void on_accept(void *arg, unsigned ready)
{
    (void)ready;
    struct rude_proxy *p = arg;
    int fd = accept4(p->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    p->accepted++;
    struct session *s = calloc(1, sizeof(*s));
    assert_non_null(s);
    s->proxy = p;
    s->fd = fd;
    socks5_server_init(&s->server, p->credentials);
    list_push_back(&p->sessions, &s->link);
    if (p->rudeness == PROXY_CLOSES_AT_ONCE)
        session_end(s);
    else
        assert_int_equal(loop_watch(p->loop, &s->io, fd, LOOP_READ, on_session, s), 0);
}

void rude_proxy_start(struct rude_proxy *p, struct loop *loop, const char *addr, uint16_t port)
{
    struct endpoint e = {.port = port};
    struct sockaddr_storage sa;
    const int on = 1;
    *p = (struct rude_proxy){.loop = loop};
    list_init(&p->sessions);
    assert_true(addr_parse(addr, &e.addr));
    socklen_t len = endpoint_to_sockaddr(&e, &sa);
    p->fd = socket(sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(p->fd >= 0);
    setsockopt(p->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    assert_int_equal(bind(p->fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(listen(p->fd, 64), 0);
    assert_int_equal(getsockname(p->fd, (struct sockaddr *)&sa, &len), 0);
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&sa, &e));
    p->port = e.port;
    assert_true(endpoint_parse("192.0.2.99:4242", 0, &p->bound));
    assert_int_equal(loop_watch(loop, &p->io, p->fd, LOOP_READ, on_accept, p), 0);
}

void rude_proxy_stop(struct rude_proxy *p)
{
    LIST_EACH (it, &p->sessions)
        session_end(CONTAINER_OF(it, struct session, link));
    loop_ignore(&p->io);
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}
