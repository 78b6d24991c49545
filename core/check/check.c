/*
 * Theory: a step is a function that waits, which reads better than callbacks where nothing else
 * is to be done meanwhile. What is asynchronous by nature (resolver, dials, attempts) runs on a
 * loop that is turned as long as a step waits for it; plain descriptors are polled. Each step
 * has the time of one connection.
 */
#include "core/check/check_parts.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "core/dns/dns_message.h"

/* --- time ------------------------------------------------------------------------------------- */

double check_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

unsigned check_left(double began, unsigned timeout_ms)
{
    double left = began + timeout_ms - check_now();
    return left > 0 ? (unsigned)left : 0;
}

static void wake(void *arg)
{
    (void)arg;
}

bool check_wait_until(struct check *c, bool (*done)(const void *arg), const void *arg, unsigned ms)
{
    double began = check_now();
    struct loop_timer timer = {0};
    loop_turn(c->loop, false); /* its clock stands still between turns */
    loop_timer_start(c->loop, &timer, ms + 1u, wake, NULL);
    while (!done(arg) && check_left(began, ms + 1u) > 0)
        loop_turn(c->loop, true);
    loop_timer_stop(&timer);
    return done(arg);
}

static bool is_set(const void *flag)
{
    return *(const bool *)flag;
}

bool check_wait(struct check *c, const bool *done, unsigned ms)
{
    return check_wait_until(c, is_set, done, ms);
}

bool check_poll(int fd, short events, unsigned ms)
{
    double began = check_now();
    for (;;) {
        struct pollfd polled = {.fd = fd, .events = events};
        int n = poll(&polled, 1, (int)check_left(began, ms));
        if (n > 0)
            return true;
        if (n == 0 || errno != EINTR)
            return false;
    }
}

/* --- names and dials -------------------------------------------------------------------------- */

struct lookup {
    bool done;
    struct resolver_answer *out;
};

static void on_resolved(void *arg, const struct resolver_answer *answer)
{
    struct lookup *l = arg;
    *l->out = *answer;
    l->done = true;
}

bool check_resolve(struct check *c, const char *name, unsigned ms, struct resolver_answer *out)
{
    struct lookup l = {.out = out};
    *out = (struct resolver_answer){.error = strerror(ENOMEM)};
    struct resolver_request *request = resolver_lookup(c->resolver, name, on_resolved, &l);
    if (request && !check_wait(c, &l.done, ms)) {
        resolver_cancel(request);
        out->error = "no resolver answers";
    }
    return out->count > 0;
}

struct dialled {
    bool done;
    struct dial_result *out;
};

static void on_dialled(void *arg, const struct dial_result *result)
{
    struct dialled *d = arg;
    *d->out = *result;
    d->done = true;
}

enum dial_status check_dial(struct check *c, enum socks5_command command,
                            const struct target *target, struct dial_result *out)
{
    struct dialled d = {.out = out};
    *out = (struct dial_result){.status = DIAL_NO_RESOURCES, .error = ENOMEM, .fd = -1};
    loop_turn(c->loop, false); /* the dial's time begins now */
    struct dial *dial = dial_start(c->proxy, command, target, on_dialled, &d);
    if (dial && !check_wait(c, &d.done, c->timeout_ms + 100)) { /* its own end comes first */
        dial_cancel(dial);
        out->status = DIAL_TIMEOUT;
    }
    return out->status;
}

char *check_describe_dial(const struct dial_result *result, char text[CHECK_DIAL_TEXT_MAX])
{
    const char *name = dial_status_name(result->status);
    if (result->status == DIAL_REPLY)
        (void)snprintf(text, CHECK_DIAL_TEXT_MAX, "refused by the proxy: reply %u, %s",
                       result->reply, socks5_reply_name(result->reply));
    else if (result->error && result->status != DIAL_TIMEOUT)
        (void)snprintf(text, CHECK_DIAL_TEXT_MAX, "%s: %s", name, strerror(result->error));
    else
        (void)snprintf(text, CHECK_DIAL_TEXT_MAX, "%s", name);
    return text;
}

bool check_is_fake(const struct check *c, const struct addr *a)
{
    const struct cidr_list *ranges = &c->options->fake_ranges;
    for (size_t i = 0; i < ranges->count; i++) {
        if (cidr_contains(&ranges->items[i], a))
            return true;
    }
    return false;
}

bool check_is_direct(const struct check *c)
{
    return c->options->proxy.scheme == PROXY_SCHEME_DIRECT;
}

/* --- DNS -------------------------------------------------------------------------------------- */

/* Ids that nobody off the path guesses; where there is no entropy yet, they are what they are. */
void check_random(void *out, size_t len)
{
    if (getrandom(out, len, GRND_NONBLOCK) != (ssize_t)len)
        memset(out, 0x5a, len);
}

size_t check_write_query(uint8_t buf[CHECK_QUERY_MAX], const char *name, uint16_t id)
{
    struct dns_name wire;
    if (!dns_name_parse(name, &wire))
        wire = (struct dns_name){.len = 1}; /* the root, which every resolver knows something of */
    struct writer w = writer_over(buf, CHECK_QUERY_MAX);
    writer_u16(&w, id);
    writer_u16(&w, DNS_FLAG_RD);
    writer_u16(&w, 1);
    writer_u16(&w, 0);
    writer_u32(&w, 0);
    writer_bytes(&w, wire.bytes, wire.len);
    writer_u16(&w, DNS_TYPE_A);
    writer_u16(&w, DNS_CLASS_IN);
    return writer_used(&w);
}

bool check_is_dns_answer(const uint8_t *bytes, size_t len, uint16_t id)
{
    struct reader r = reader_over(bytes, len);
    uint16_t got = reader_u16(&r);
    uint16_t flags = reader_u16(&r);
    reader_skip(&r, 8);
    return !r.bad && got == id && (flags & DNS_FLAG_QR);
}
