#include "tests/unit/echo_proxy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct echo_session {
    int fd;
    int udp; /* an association's socket, or -1 */
    struct socks5_server server;
    bool relaying;
    uint16_t target;
    bool ended;      /* the client's side has */
    size_t flooded;  /* of ECHO_FLOOD */
    size_t len, out; /* in `bytes`, and how many of them were sent */
    uint8_t bytes[8192];
};

/* As assert(), in release builds too. */
static void require(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "echo proxy: %s: %s\n", what, strerror(errno));
    abort();
}

/* A socket of `type` on a port of its own of 127.0.0.1, which goes into `at`. */
static int open_bound(int type, struct endpoint *at)
{
    struct sockaddr_storage sa;
    require(endpoint_parse("127.0.0.1:0", 0, at), "no address");
    socklen_t len = endpoint_to_sockaddr(at, &sa);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    require(fd >= 0, "no socket");
    require(bind(fd, (struct sockaddr *)&sa, len) == 0, "bind");
    len = sizeof(sa);
    require(getsockname(fd, (struct sockaddr *)&sa, &len) == 0, "getsockname");
    require(endpoint_from_sockaddr((struct sockaddr *)&sa, at), "its address");
    return fd;
}

void echo_proxy_start(struct echo_proxy *p, const struct socks5_credentials *credentials)
{
    struct endpoint at;
    *p = (struct echo_proxy){.credentials = credentials};
    p->fd = open_bound(SOCK_STREAM, &at);
    require(listen(p->fd, 64) == 0, "listen");
    p->port = at.port;
}

static void end(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    close(s->fd);
    if (s->udp >= 0)
        close(s->udp);
    free(s);
    *slot = NULL;
}

static void end_by_reset(struct echo_session **slot)
{
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt((*slot)->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    end(slot);
}

static bool accept_one(struct echo_proxy *p)
{
    int fd = accept4(p->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return false;
    struct echo_session *s = calloc(1, sizeof(*s));
    require(s != NULL, "memory");
    s->fd = fd;
    s->udp = -1;
    socks5_server_init(&s->server, p->credentials);
    size_t i = 0;
    while (i < ECHO_SESSIONS_MAX && p->sessions[i])
        i++;
    require(i < ECHO_SESSIONS_MAX, "too many connections");
    p->sessions[i] = s;
    return true;
}

/* Read what there is room for. Was there anything, be it the end? */
static bool read_some(struct echo_session *s)
{
    if (s->ended || s->len == sizeof(s->bytes))
        return false;
    ssize_t n = recv(s->fd, s->bytes + s->len, sizeof(s->bytes) - s->len, 0);
    if (n < 0 && errno == EAGAIN)
        return false;
    s->ended = n <= 0;
    s->len += n > 0 ? (size_t)n : 0;
    return true;
}

static void forget(struct echo_session *s, size_t n)
{
    s->len -= n;
    memmove(s->bytes, s->bytes + n, s->len);
}

/* --- the handshake ---------------------------------------------------------------------------- */

static void reply(struct echo_session *s)
{
    struct endpoint bound = {.port = 0};
    enum socks5_reply code = SOCKS5_REPLY_SUCCEEDED;
    s->target = s->server.target.port;
    if (s->server.command == SOCKS5_UDP_ASSOCIATE)
        s->udp = open_bound(SOCK_DGRAM, &bound);
    else if (s->target == REFUSE_PORT)
        code = SOCKS5_REPLY_REFUSED;
    socks5_server_reply(&s->server, code, s->udp >= 0 ? &bound : NULL);
}

static bool shake_hands(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    const uint8_t *out;
    bool any = read_some(s);
    if (any)
        forget(s, socks5_server_input(&s->server, s->bytes, s->len));
    if (s->server.state == SOCKS5_SERVER_READY)
        reply(s);
    size_t n = socks5_server_output(&s->server, &out);
    if (n > 0 && send(s->fd, out, n, MSG_NOSIGNAL) == (ssize_t)n)
        socks5_server_sent(&s->server, n);
    s->relaying = s->server.state == SOCKS5_SERVER_REPLIED;
    if (s->relaying && s->target == BREAK_PORT && s->udp < 0)
        end_by_reset(slot);
    else if (s->ended || (s->relaying && s->target == REFUSE_PORT && s->udp < 0))
        end(slot);
    return any;
}

/* --- relaying --------------------------------------------------------------------------------- */

static bool echo(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    bool any = read_some(s);
    ssize_t n = s->len > 0 ? send(s->fd, s->bytes, s->len, MSG_NOSIGNAL) : 0;
    if (n > 0)
        forget(s, (size_t)n);
    if (s->ended && (s->len == 0 || n < 0))
        end(slot);
    return any || n > 0;
}

static bool flood(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    uint8_t piece[4096];
    bool any = read_some(s);
    s->len = 0;
    while (s->flooded < ECHO_FLOOD) {
        size_t len = ECHO_FLOOD - s->flooded;
        len = len < sizeof(piece) ? len : sizeof(piece);
        for (size_t i = 0; i < len; i++)
            piece[i] = (uint8_t)(s->flooded + i);
        ssize_t n = send(s->fd, piece, len, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        any = true;
        s->flooded += (size_t)n;
        if (s->flooded == ECHO_FLOOD)
            (void)shutdown(s->fd, SHUT_WR);
    }
    if (s->ended)
        end(slot);
    return any;
}

/* RFC 1035, 4.2.2; the query comes back as its own answer, no such name (4.1.1). */
static bool answer_queries(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    bool any = read_some(s);
    while (s->len >= 2) {
        size_t len = 2 + ((size_t)s->bytes[0] << 8 | s->bytes[1]);
        if (s->len < len)
            break;
        s->bytes[4] |= 0x80;
        s->bytes[5] = 0x83;
        (void)send(s->fd, s->bytes, len, MSG_NOSIGNAL);
        forget(s, len);
    }
    if (s->ended)
        end(slot);
    return any;
}

/* RFC 1928, 7: the header's target is whom it comes from on its way back. */
static bool relay_datagrams(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    struct sockaddr_storage from;
    socklen_t from_len = sizeof(from);
    uint8_t datagram[8192];
    bool any = read_some(s);
    ssize_t n;
    while ((n = recvfrom(s->udp, datagram, sizeof(datagram), 0, (struct sockaddr *)&from,
                         &from_len)) >= 0) {
        (void)sendto(s->udp, datagram, (size_t)n, 0, (struct sockaddr *)&from, from_len);
        any = true;
    }
    if (s->ended)
        end(slot);
    return any;
}

static bool serve(struct echo_session **slot)
{
    struct echo_session *s = *slot;
    if (!s->relaying)
        return shake_hands(slot);
    if (s->udp >= 0)
        return relay_datagrams(slot);
    if (s->target == FLOOD_PORT)
        return flood(slot);
    if (s->target == DOMAIN_PORT)
        return answer_queries(slot);
    return echo(slot);
}

bool echo_proxy_turn(struct echo_proxy *p)
{
    bool any = false;
    while (accept_one(p))
        any = true;
    for (size_t i = 0; i < ECHO_SESSIONS_MAX; i++)
        if (p->sessions[i] && serve(&p->sessions[i]))
            any = true;
    return any;
}

unsigned echo_proxy_count(const struct echo_proxy *p)
{
    unsigned count = 0;
    for (size_t i = 0; i < ECHO_SESSIONS_MAX; i++)
        count += p->sessions[i] != NULL;
    return count;
}

void echo_proxy_drop(struct echo_proxy *p)
{
    for (size_t i = 0; i < ECHO_SESSIONS_MAX; i++)
        if (p->sessions[i])
            end(&p->sessions[i]);
}

void echo_proxy_stop(struct echo_proxy *p)
{
    echo_proxy_drop(p);
    close(p->fd);
}
