/* The proxy itself: where it is, whether it answers, whom it lets in, how it takes a handshake. */
#include "core/check/check_parts.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "core/command/secrets.h"

static const char direct_text[] = "direct:// has no proxy";

/* --- its name --------------------------------------------------------------------------------- */

/* Append to a result's detail, as far as there is room. */
__attribute__((format(printf, 2, 3))) static void add(struct check_result *r, const char *format,
                                                      ...)
{
    size_t used = strlen(r->detail);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(r->detail + used, sizeof(r->detail) - used, format, args);
    va_end(args);
}

static void judge_addresses(const struct check *c, struct check_result *r)
{
    char text[ADDR_TEXT_MAX];
    for (size_t i = 0; i < c->addrs.count; i++) {
        add(r, "%s%s", i == 0 ? " is " : ", ", addr_format(&c->addrs.addrs[i], text));
        if (!check_is_fake(c, &c->addrs.addrs[i]))
            continue;
        r->verdict = CHECK_FAIL;
        check_remedy(r,
                     "%s lies in the range of fake addresses: stop the culvert that is up, or "
                     "give up another --fake-range",
                     text);
    }
}

void check_name(struct check *c, struct check_result *r)
{
    const struct proxy_url *url = &c->options->proxy;
    if (check_is_direct(c)) {
        check_say(r, CHECK_SKIPPED, direct_text);
        return;
    }
    if (url->host_is_addr) {
        c->addrs = (struct resolver_answer){.count = 1, .addrs = {url->addr}};
        check_say(r, CHECK_OK, "%s is an address", url->host);
        if (check_is_fake(c, &url->addr)) {
            r->verdict = CHECK_FAIL;
            check_remedy(r, "it lies in the range of fake addresses: give up another --fake-range");
        }
        return;
    }
    if (check_resolve(c, url->host, c->timeout_ms, &c->addrs)) {
        check_say(r, CHECK_OK, "%s", url->host);
        judge_addresses(c, r);
        return;
    }
    check_say(r, CHECK_FAIL, "%s does not resolve: %s", url->host, c->addrs.error);
    check_remedy(r, "check the name and this machine's resolver (/etc/resolv.conf), or give the "
                    "proxy's address");
}

/* --- its addresses ---------------------------------------------------------------------------- */

struct reaching {
    struct attempt attempt;
    double began, ended;
    bool done;
};

static void on_reach(void *arg, struct attempt *a, enum attempt_event event)
{
    struct reaching *t = arg;
    (void)event; /* connected or not: `connected` and `error` tell */
    t->ended = check_now();
    t->done = true;
    attempt_close(a);
}

static void start_reaching(struct check *c, struct reaching *t, const struct endpoint *peer)
{
    *t = (struct reaching){.began = check_now()};
    t->attempt.peer = *peer;
    t->attempt.fn = on_reach;
    t->attempt.arg = t;
    int error = attempt_start(&t->attempt, c->loop, &c->outbound);
    if (error == 0 && !t->attempt.connected)
        return;
    t->attempt.error = error;
    t->done = true;
    t->ended = check_now();
    attempt_close(&t->attempt);
}

/* Wait for each in turn: all share the step's time. */
static void finish_reaching(struct check *c, struct reaching *tries, size_t count)
{
    double began = check_now();
    for (size_t i = 0; i < count; i++) {
        if (check_wait(c, &tries[i].done, check_left(began, c->timeout_ms)))
            continue;
        attempt_close(&tries[i].attempt);
        tries[i].attempt.error = ETIMEDOUT;
    }
}

static const char *remedy_for(int error)
{
    switch (error) {
    case ECONNREFUSED:
        return "nothing listens there: start the proxy, or correct the port";
    case ETIMEDOUT:
        return "nothing answers: the host is down, or a firewall in between drops packets";
    case EHOSTUNREACH:
    case ENETUNREACH:
        return "this machine has no way there: check its address and routes";
    case EPERM:
    case EACCES:
        return "a firewall of this machine forbids it, or --mark and --bind-interface want root";
    case ENODEV:
        return "there is no such interface: correct --bind-interface";
    default:
        return "check host and port";
    }
}

static void judge_reach(struct check *c, struct check_result *r, const struct reaching *tries)
{
    size_t good = 0;
    int error = 0;
    char text[ENDPOINT_TEXT_MAX];
    r->ms = 0;
    for (size_t i = 0; i < c->addrs.count; i++) {
        const struct reaching *t = &tries[i];
        add(r, "%s%s", i == 0 ? "" : ", ", endpoint_format(&t->attempt.peer, text));
        if (t->attempt.error) {
            add(r, ": %s", strerror(error = t->attempt.error));
            continue;
        }
        add(r, " in %.1f ms", t->ended - t->began);
        if (!c->reached)
            c->peer = t->attempt.peer;
        c->reached = true;
        r->ms = good++ == 0 ? t->ended - t->began : r->ms;
    }
    r->verdict = good == c->addrs.count ? CHECK_OK : good > 0 ? CHECK_WARN : CHECK_FAIL;
    if (good == 0)
        r->ms = -1;
    if (error)
        check_remedy(r, "%s%s", remedy_for(error),
                     good > 0 ? "; the other addresses do meanwhile" : "");
}

void check_reach(struct check *c, struct check_result *r)
{
    struct reaching tries[RESOLVER_ADDRS_MAX];
    if (check_is_direct(c) || c->addrs.count == 0) {
        check_say(r, CHECK_SKIPPED, "%s", check_is_direct(c) ? direct_text : "no address");
        return;
    }
    for (size_t i = 0; i < c->addrs.count; i++) {
        struct endpoint peer = {.addr = c->addrs.addrs[i], .port = c->options->proxy.port};
        start_reaching(c, &tries[i], &peer);
    }
    finish_reaching(c, tries, c->addrs.count);
    judge_reach(c, r, tries);
}

void check_round_trip(struct check *c, struct check_result *r)
{
    enum { TIMES = 5 };
    double best = 0, worst = 0, sum = 0;
    double began = check_now();
    if (!c->reached) {
        check_say(r, CHECK_SKIPPED, "%s", check_is_direct(c) ? direct_text : "not reached");
        return;
    }
    for (int i = 0; i < TIMES; i++) {
        struct reaching t;
        start_reaching(c, &t, &c->peer);
        if (!check_wait(c, &t.done, check_left(began, c->timeout_ms)) || t.attempt.error) {
            attempt_close(&t.attempt);
            check_say(r, CHECK_WARN, "connection %d of %d more failed", i + 1, TIMES);
            check_remedy(r, "the proxy, or the way to it, loses connections: look there");
            return;
        }
        double ms = t.ended - t.began;
        best = i == 0 || ms < best ? ms : best;
        worst = ms > worst ? ms : worst;
        sum += ms;
    }
    r->ms = sum / TIMES;
    check_say(r, CHECK_OK, "to the proxy: least %.2f, mean %.2f, most %.2f ms", best, r->ms, worst);
}

/* --- handshakes ------------------------------------------------------------------------------- */

struct talk {
    struct attempt attempt;
    bool ended;
    enum attempt_event end;
    bool asked_for_password;
};

static void on_talk(void *arg, struct attempt *a, enum attempt_event event)
{
    struct talk *t = arg;
    switch (event) {
    case ATTEMPT_CONNECTED:
        return;
    case ATTEMPT_METHOD_SEEN:
        t->asked_for_password = a->client.state == SOCKS5_CLIENT_AUTH;
        return;
    case ATTEMPT_SUCCEEDED:
    case ATTEMPT_UNREACHED:
    case ATTEMPT_REPLIED:
    case ATTEMPT_NO_METHOD:
    case ATTEMPT_NOT_TRUSTED:
    case ATTEMPT_CLOSED:
    case ATTEMPT_NONSENSE:
        break;
    }
    t->ended = true;
    t->end = event;
    attempt_close(a);
}

static const struct socks5_credentials *credentials(const struct check *c,
                                                    struct socks5_credentials *room)
{
    const struct proxy_url *url = secrets_proxy(c->options);
    *room = (struct socks5_credentials){.user = url->user, .password = url->password};
    return url->has_credentials ? room : NULL;
}

/* False: no connection, and the verdict is said. */
static bool start_talk(struct check *c, struct talk *t, const struct target *target, bool pipelined)
{
    struct socks5_credentials room;
    *t = (struct talk){.attempt = {.peer = c->peer, .fn = on_talk, .arg = t, .speaks_socks = true}};
    socks5_client_init(&t->attempt.client, credentials(c, &room), SOCKS5_CONNECT, target,
                       pipelined);
    int error = attempt_start(&t->attempt, c->loop, &c->outbound);
    if (error == 0)
        return true;
    t->attempt.error = error;
    t->end = ATTEMPT_UNREACHED;
    t->ended = true;
    return false;
}

/* It is let in as soon as its request is what it waits on, whatever becomes of that. */
static bool is_let_in(const struct talk *t)
{
    const struct socks5_client *client = &t->attempt.client;
    return client->state == SOCKS5_CLIENT_REQUEST || client->state == SOCKS5_CLIENT_DONE ||
           client->failure == SOCKS5_FAILURE_REPLY;
}

static bool is_decided(const void *arg)
{
    const struct talk *t = arg;
    return t->ended || is_let_in(t);
}

static void judge_admission(const struct check *c, const struct talk *t, struct check_result *r)
{
    bool given = c->options->proxy.has_credentials;
    if (t->asked_for_password) {
        check_say(r, CHECK_OK, "user and password accepted (RFC 1929)");
        return;
    }
    check_say(r, CHECK_OK, "no authentication%s",
              given ? " wanted: user and password were not asked for" : "");
}

static void judge_rejection(const struct check *c, const struct talk *t, struct check_result *r)
{
    bool given = c->options->proxy.has_credentials;
    r->verdict = CHECK_FAIL;
    if (!t->ended) {
        check_say(r, CHECK_FAIL, "it accepts connections, and says nothing to a SOCKS5 greeting");
        check_remedy(r, "is it a SOCKS5 proxy, and is it the right port? It may also be hung");
        return;
    }
    switch (t->end) {
    case ATTEMPT_NO_METHOD:
        check_say(r, CHECK_FAIL, "%s",
                  given ? "it takes neither user and password nor none"
                        : "it wants a user and a password, or another method");
        check_remedy(r, "%s",
                     given ? "only these two methods are supported: configure the proxy so"
                           : "give them in the URL: socks5://USER:PASSWORD@HOST:PORT");
        break;
    case ATTEMPT_NOT_TRUSTED:
        check_say(r, CHECK_FAIL, "user or password rejected");
        check_remedy(r, "correct them; special characters are written as %%XX");
        break;
    case ATTEMPT_NONSENSE:
        check_say(r, CHECK_FAIL, "it answers, but does not speak SOCKS5");
        check_remedy(r, "is it an HTTP proxy, or the wrong port?");
        break;
    case ATTEMPT_UNREACHED:
        check_say(r, CHECK_FAIL, "%s", strerror(t->attempt.error));
        check_remedy(r, "%s", remedy_for(t->attempt.error));
        break;
    case ATTEMPT_CONNECTED:
    case ATTEMPT_METHOD_SEEN:
    case ATTEMPT_SUCCEEDED:
    case ATTEMPT_REPLIED:
    case ATTEMPT_CLOSED:
        check_say(r, CHECK_FAIL, "it closes the connection instead of answering");
        check_remedy(r, "is it a SOCKS5 proxy, and does it allow this host as a client?");
        break;
    }
}

void check_login(struct check *c, struct check_result *r)
{
    struct talk t;
    struct target target = {.addr = c->options->check.v4.addr, .port = c->options->check.v4.port};
    double began = check_now();
    if (!c->reached) {
        check_say(r, CHECK_SKIPPED, "%s", check_is_direct(c) ? direct_text : "not reached");
        return;
    }
    if (start_talk(c, &t, &target, false))
        (void)check_wait_until(c, is_decided, &t, c->timeout_ms);
    r->ms = check_now() - began;
    c->accepted = is_let_in(&t);
    if (c->accepted)
        judge_admission(c, &t, r);
    else
        judge_rejection(c, &t, r);
    attempt_close(&t.attempt);
    explicit_bzero(&t.attempt.client, sizeof(t.attempt.client));
}

/* --- pipelining ------------------------------------------------------------------------------- */

enum { CHOKED_MIN_MS = 2000 }; /* a proxy that answers does so in a few times what it took before */

void check_pipelining(struct check *c, struct check_result *r)
{
    struct talk t;
    if (!c->has_answering || check_is_direct(c)) {
        check_say(r, CHECK_SKIPPED, "%s", check_is_direct(c) ? direct_text : "nothing is reached");
        return;
    }
    double wait = 4 * c->connect_ms > CHOKED_MIN_MS ? 4 * c->connect_ms : CHOKED_MIN_MS;
    double began = check_now();
    if (start_talk(c, &t, &c->answering, true))
        (void)check_wait(c, &t.ended, wait < c->timeout_ms ? (unsigned)wait : c->timeout_ms);
    r->ms = check_now() - began;
    bool answered = t.ended && (t.end == ATTEMPT_SUCCEEDED || t.end == ATTEMPT_REPLIED);
    if (answered) {
        check_say(r, CHECK_OK, "greeting, credentials and request in one piece: answered");
    } else {
        bool method = t.ended && t.end == ATTEMPT_NO_METHOD;
        check_say(r, CHECK_WARN, "%s",
                  method    ? "it wants no credentials, which rules out sending them ahead"
                  : t.ended ? "it closes when greeting and request come in one piece"
                            : "it chokes when greeting and request come in one piece");
        check_remedy(r, "%s",
                     method ? "leave user and password out of the URL"
                            : "none needed: culvert notices and speaks step by step, a "
                              "round trip slower; with --no-pipeline it does not try");
    }
    attempt_close(&t.attempt);
    explicit_bzero(&t.attempt.client, sizeof(t.attempt.client));
}
