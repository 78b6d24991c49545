/*
 * CONNECT. A proxy's yes alone proves little, since some say it before they have connected: a
 * target counts as reached when something comes back from it.
 */
#include "core/check/check_parts.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER_MAX_MS = 5000 };

/* How a target is spoken to, and what it means when it does not answer. */
struct trial {
    struct target target;
    const char *text; /* the target, for people */
    enum check_verdict failure;
    const char *remedy;
};

/* Connected? Writes the whole result where not. `d->fd` is the caller's. */
static bool reach(struct check *c, struct check_result *r, const struct trial *t,
                  struct dial_result *d)
{
    char text[CHECK_DIAL_TEXT_MAX];
    if (!c->accepted) {
        check_say(r, CHECK_SKIPPED, "the proxy does not let us in");
        return false;
    }
    double began = check_now();
    if (check_dial(c, SOCKS5_CONNECT, &t->target, d) == DIAL_OK) {
        r->ms = check_now() - began;
        return true;
    }
    check_say(r, t->failure, "%s: %s", t->text, check_describe_dial(d, text));
    check_remedy(r, "%s", t->remedy);
    return false;
}

/* In one piece, for which a new connection has room. 0 or -errno. */
static int send_whole(int fd, const void *bytes, size_t len)
{
    ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
    if (n < 0)
        return -errno;
    return (size_t)n == len ? 0 : -EAGAIN;
}

static ssize_t receive(int fd, void *bytes, size_t len, unsigned ms)
{
    if (!check_poll(fd, POLLIN, ms))
        return -ETIMEDOUT;
    ssize_t n = recv(fd, bytes, len, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/* A HEAD request: bytes come back, whatever they are? 0 or -errno, -ECONNRESET for an early end. */
static int ask_over_http(int fd, const char *host, unsigned ms)
{
    char request[400];
    uint8_t answer[16];
    int len = snprintf(request, sizeof(request), "HEAD / HTTP/1.0\r\nHost: %.255s\r\n\r\n", host);
    int error = send_whole(fd, request, (size_t)len);
    if (error)
        return error;
    ssize_t n = receive(fd, answer, sizeof(answer), ms);
    return n > 0 ? 0 : n == 0 ? -ECONNRESET : (int)n;
}

/* Which address family a name has led to, where BND.ADDR tells (RFC 1928, 6). */
static const char *family_taken(const struct trial *t, const struct dial_result *d)
{
    if (!t->target.name || addr_is_unspecified(&d->bound.addr))
        return "";
    return addr_is_v4(&d->bound.addr) ? " over IPv4" : " over IPv6";
}

static bool connect_to(struct check *c, struct check_result *r, const struct trial *t)
{
    struct dial_result d;
    double began = check_now();
    if (!reach(c, r, t, &d))
        return false;
    double connected = r->ms;
    unsigned left = check_left(began, c->timeout_ms);
    int error = ask_over_http(d.fd, t->target.name ? t->target.name : t->text,
                              left < ANSWER_MAX_MS ? left : ANSWER_MAX_MS);
    close(d.fd);
    if (error) {
        check_say(r, t->failure, "%s: the proxy says yes, then %s", t->text,
                  error == -ETIMEDOUT ? "nothing answers an HTTP request" : "the connection ends");
        check_remedy(r,
                     "a proxy that says yes before it is connected, or a target that does not "
                     "answer: try another one (--target-host, --target-v4, --target-v6); else: "
                     "%s",
                     t->remedy);
        return false;
    }
    check_say(r, CHECK_OK, "%s: connected%s in %.1f ms, answered after %.1f ms", t->text,
              family_taken(t, &d), connected, check_now() - began);
    if (!c->has_answering) {
        c->answering = t->target;
        c->has_answering = true;
        c->connect_ms = connected;
    }
    return true;
}

/* --- the steps -------------------------------------------------------------------------------- */

static struct target target_of(const struct host_port *h)
{
    struct target t = {.addr = h->addr, .port = h->port};
    if (!h->is_addr)
        t.name = h->name;
    return t;
}

void check_connect_name(struct check *c, struct check_result *r)
{
    const struct options *o = c->options;
    char text[300];
    (void)snprintf(text, sizeof(text), o->check.host.is_addr ? "%s" : "%s:%u", o->check.host.name,
                   o->check.host.port);
    if (o->check.host.is_addr && c->accepted) {
        check_say(r, CHECK_SKIPPED, "--target-host %s is an address", text);
        return;
    }
    bool needed = o->dns == DNS_FAKE;
    const struct trial t = {
        .target = target_of(&o->check.host),
        .text = text,
        .failure = needed ? CHECK_FAIL : CHECK_WARN,
        .remedy = needed ? "up hands names to the proxy: mend its resolver, or use --dns tcp"
                         : "names are resolved through the proxy with this --dns: not needed",
    };
    (void)connect_to(c, r, &t);
}

/* IPv6 comes first, so that the verdict on IPv4 knows whether anything is reached by address. */
void check_connect_v6(struct check *c, struct check_result *r)
{
    const struct endpoint *e = &c->options->check.v6;
    char text[ENDPOINT_TEXT_MAX];
    const struct trial t = {
        .target = {.addr = e->addr, .port = e->port},
        .text = endpoint_format(e, text),
        .failure = CHECK_WARN,
        .remedy = "the proxy's host seems to have no IPv6: applications hear so at once and use "
                  "IPv4",
    };
    c->v6_works = connect_to(c, r, &t);
}

void check_connect_v4(struct check *c, struct check_result *r)
{
    const struct endpoint *e = &c->options->check.v4;
    char text[ENDPOINT_TEXT_MAX];
    const struct trial t = {
        .target = {.addr = e->addr, .port = e->port},
        .text = endpoint_format(e, text),
        .failure = c->v6_works ? CHECK_WARN : CHECK_FAIL,
        .remedy = "check that the proxy's host reaches the Internet and that its rules allow it",
    };
    (void)connect_to(c, r, &t);
}

/* --- DNS -------------------------------------------------------------------------------------- */

/* Exactly `len` bytes before `ms` have passed. 0 or -errno. */
static int receive_all(int fd, uint8_t *bytes, size_t len, unsigned ms)
{
    double began = check_now();
    for (size_t at = 0; at < len;) {
        ssize_t n = receive(fd, bytes + at, len - at, check_left(began, ms));
        if (n <= 0)
            return n == 0 ? -ECONNRESET : (int)n;
        at += (size_t)n;
    }
    return 0;
}

/* RFC 1035, 4.2.2: messages behind their length. Only the answer's header is read. */
static int ask_dns(int fd, const char *name, unsigned ms)
{
    uint8_t query[2 + CHECK_QUERY_MAX];
    uint8_t answer[2 + 12];
    uint16_t id = 0;
    check_random(&id, sizeof(id));
    size_t len = check_write_query(query + 2, name, id);
    query[0] = (uint8_t)(len >> 8);
    query[1] = (uint8_t)len;
    int error = send_whole(fd, query, len + 2);
    if (error)
        return error;
    error = receive_all(fd, answer, sizeof(answer), ms);
    if (error)
        return error;
    return check_is_dns_answer(answer + 2, sizeof(answer) - 2, id) ? 0 : -EPROTO;
}

void check_dns_over_tcp(struct check *c, struct check_result *r)
{
    const struct options *o = c->options;
    char text[ENDPOINT_TEXT_MAX];
    const struct trial t = {
        .target = {.addr = o->dns_server.addr, .port = o->dns_server.port},
        .text = endpoint_format(&o->dns_server, text),
        .failure = o->dns == DNS_TCP ? CHECK_FAIL : CHECK_WARN,
        .remedy = "choose a resolver that answers over TCP and that the proxy reaches: "
                  "--dns-server",
    };
    struct dial_result d;
    double began = check_now();
    if (o->dns == DNS_RELAY) {
        check_say(r, CHECK_SKIPPED, "not used with --dns relay");
        return;
    }
    if (!reach(c, r, &t, &d))
        return;
    int error = ask_dns(d.fd, o->check.host.name, check_left(began, c->timeout_ms));
    close(d.fd);
    r->ms = check_now() - began;
    if (error == 0) {
        check_say(r, CHECK_OK, "%s answers", text);
        return;
    }
    check_say(r, t.failure, "%s: connected, but %s", text,
              error == -EPROTO ? "what comes is no answer" : "no answer comes");
    check_remedy(r, "%s", t.remedy);
}
