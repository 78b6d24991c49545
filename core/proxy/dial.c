/*
 * Theory: a dial is the way from a target to a connected socket, or to the reason why not.
 *
 *   RESOLVING --addresses--> CONNECTING --one accepts--> TALKING --> DONE --turn's end--> freed
 *
 *   RESOLVING    the proxy's name (direct://: the target's) is looked up
 *   CONNECTING   attempts on one address after the other; the next one starts when the last
 *                failed, or beside it when it has not answered within STAGGER_MS, so that a dead
 *                address delays but does not eat the dial's time. The first to accept wins, the
 *                others are closed
 *   TALKING      one attempt speaks SOCKS5; a trial of pipelining may get a plain one beside it
 *   DONE         the result stands, everything else is closed; the callback is called at the
 *                turn's end
 *
 * One timer, connect-timeout, covers it all. Pipelining (core/proxy/handshake.h): a trial that gets
 * no further for HEDGE_MS is hedged by a plain attempt, and whichever gets a reply first is the
 * dial's answer. A trial that is cut off instead is repeated plainly, once. So a proxy that
 * chokes on a trial costs that one dial half a second, and no dial an error.
 *
 * A proxy gives up who takes long over a handshake. When we took long because the process was
 * stopped (loop_pauses()), the dial begins again, plainly, once a pause.
 *
 * Attempts are few (addresses and one plain repetition) and freed with their dial.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/proxy/attempt.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/proxy/handshake.h"

enum {
    STAGGER_MS = 300,       /* about RFC 8305's connection attempt delay */
    HEDGE_MS = 500,         /* after the proxy chose a method, which it does at once */
    HEDGE_SILENT_MS = 1500, /* after it accepted */
};

enum dial_state { DIAL_RESOLVING, DIAL_CONNECTING, DIAL_TALKING, DIAL_DONE };

struct dial {
    struct proxy *proxy;
    dial_fn *fn;
    void *arg;
    enum dial_state state;
    enum socks5_command command;
    struct target target; /* `name` points to `name_copy` */
    bool direct;
    bool keep_watch;
    unsigned pauses; /* of the loop, that this dial knows of */
    enum handshake handshake;
    bool trial_open; /* proxy_trial_over() is owed */
    struct resolver_request *request;
    struct resolver_answer answer;
    size_t next; /* the address to be tried next */
    struct link attempts;
    size_t live;              /* attempts that are connecting or talking */
    struct attempt *talking;  /* the one that won */
    struct attempt *plain;    /* the hedge, or the repetition of a trial that was cut off */
    enum dial_status cut_off; /* how the trial ended; DIAL_OK: it has not */
    int error;                /* errno of an attempt; one about resources is kept */
    struct loop_timer deadline;
    struct loop_timer step; /* CONNECTING: stagger; TALKING: hedge */
    struct loop_deferred deferred;
    struct dial_result result;
    char name_copy[];
};

const char *dial_status_name(enum dial_status status)
{
    static const char *const names[] = {
        [DIAL_OK] = "connected",
        [DIAL_REPLY] = "refused",
        [DIAL_NO_PROXY] = "proxy unreachable",
        [DIAL_AUTH] = "not authenticated",
        [DIAL_CLOSED] = "closed by the proxy",
        [DIAL_NONSENSE] = "not SOCKS5",
        [DIAL_TIMEOUT] = "timed out",
        [DIAL_NO_RESOURCES] = "out of resources",
    };
    static_assert(sizeof(names) / sizeof(names[0]) == DIAL_NO_RESOURCES + 1,
                  "every status has a name");
    return names[status];
}

/* --- the end --------------------------------------------------------------------------------- */

static void end_trial(struct dial *d, enum trial_verdict verdict)
{
    if (!d->trial_open)
        return;
    d->trial_open = false;
    proxy_trial_over(d->proxy, verdict);
}

static void close_attempt(struct dial *d, struct attempt *a)
{
    if (a->fd < 0)
        return;
    attempt_close(a);
    d->live--;
    if (a == d->talking)
        d->talking = NULL;
    if (a == d->plain)
        d->plain = NULL;
}

/* Close what is open, all attempts but `kept`. */
static void close_others(struct dial *d, const struct attempt *kept)
{
    LIST_EACH (it, &d->attempts) {
        struct attempt *a = CONTAINER_OF(it, struct attempt, link);
        if (a != kept)
            close_attempt(d, a);
    }
}

static void unhook(struct dial *d)
{
    /* A trial that ends here without a verdict: did it wait for a reply, or for anything at all? */
    bool waited = d->cut_off != DIAL_OK || d->plain || (d->talking && d->talking->told_method);
    end_trial(d, waited ? TRIAL_OPEN : TRIAL_ABANDONED);
    close_others(d, NULL);
    loop_timer_stop(&d->deadline);
    loop_timer_stop(&d->step);
    if (d->request)
        resolver_cancel(d->request);
    d->request = NULL;
}

static void dial_free(struct dial *d)
{
    LIST_EACH (it, &d->attempts)
        free(CONTAINER_OF(it, struct attempt, link));
    free(d);
}

static void on_done(void *arg)
{
    struct dial *d = arg;
    struct loop_io *watch = d->result.watch;
    if (watch && !d->keep_watch) {
        loop_ignore(watch);
        d->result.watch = NULL;
    }
    d->fn(d->arg, &d->result);
    if (watch)
        loop_ignore(watch);
    dial_free(d);
}

static void finish(struct dial *d, enum dial_status status)
{
    unhook(d);
    d->state = DIAL_DONE;
    d->result.status = status;
    if (status != DIAL_OK)
        d->result.fd = -1;
    loop_defer(d->proxy->loop, &d->deferred, on_done, d);
}

static void finish_with_reply(struct dial *d, uint8_t reply)
{
    d->result.reply = reply;
    finish(d, DIAL_REPLY);
}

static bool is_about_resources(int error)
{
    switch (error) {
    case EMFILE:
    case ENFILE:
    case EADDRNOTAVAIL:
    case ENOBUFS:
    case ENOMEM:
    case ENOSPC: /* fs.epoll.max_user_watches */
        return true;
    default:
        return false;
    }
}

/* What a SOCKS5 server says when its connect() fails so (RFC 1928, 6). */
static uint8_t reply_for(int error)
{
    switch (error) {
    case ECONNREFUSED:
        return SOCKS5_REPLY_REFUSED;
    case ENETUNREACH:
    case ENETDOWN:
        return SOCKS5_REPLY_NETWORK_UNREACHABLE;
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ETIMEDOUT:
        return SOCKS5_REPLY_HOST_UNREACHABLE;
    case EACCES:
    case EPERM:
        return SOCKS5_REPLY_NOT_ALLOWED;
    default:
        return SOCKS5_REPLY_GENERAL_FAILURE;
    }
}

/* No address is left, and none was reached. */
static void finish_unreached(struct dial *d)
{
    d->result.error = d->error;
    if (is_about_resources(d->error)) {
        proxy_note_no_resources(d->proxy, d->error);
        finish(d, DIAL_NO_RESOURCES);
    } else if (d->direct) {
        finish_with_reply(d, reply_for(d->error));
    } else {
        proxy_note_unreachable(d->proxy, strerror(d->error));
        finish(d, DIAL_NO_PROXY);
    }
}

static void on_deadline(void *arg)
{
    struct dial *d = arg;
    d->result.error = ETIMEDOUT;
    if (d->direct) {
        finish_with_reply(d, SOCKS5_REPLY_HOST_UNREACHABLE);
        return;
    }
    if (d->state != DIAL_TALKING)
        proxy_note_unreachable(d->proxy, strerror(ETIMEDOUT));
    else if (d->handshake == HANDSHAKE_PIPELINED)
        proxy_doubt_pipelining(d->proxy, d->command);
    finish(d, DIAL_TIMEOUT);
}

/* --- attempts -------------------------------------------------------------------------------- */

static void on_attempt(void *arg, struct attempt *a, enum attempt_event event);

/* An attempt on `addr`, under way; NULL when it failed at once, with the reason in d->error. */
static struct attempt *start_attempt(struct dial *d, const struct addr *addr, bool pipelined)
{
    struct attempt *a = memory_zeroed(sizeof(*a));
    int error = ENOMEM;
    if (a) {
        a->fn = on_attempt;
        a->arg = d;
        a->peer = (struct endpoint){.addr = *addr,
                                    .port = d->direct ? d->target.port : d->proxy->url->port};
        a->speaks_socks = !d->direct;
        if (a->speaks_socks)
            socks5_client_init(&a->client, proxy_credentials(d->proxy), d->command, &d->target,
                               pipelined);
        list_push_back(&d->attempts, &a->link);
        error = attempt_start(a, d->proxy->loop, d->proxy->outbound);
    }
    if (error == 0) {
        d->live++;
        return a;
    }
    if (!is_about_resources(d->error))
        d->error = error;
    return NULL;
}

static void try_next_address(struct dial *d);
static void succeed(struct dial *d, struct attempt *a);

/* A plain handshake with the same address, beside the trial or after it. */
static void start_plain(struct dial *d, const struct endpoint *peer)
{
    loop_timer_stop(&d->step);
    d->plain = start_attempt(d, &peer->addr, false);
}

static void on_hedge(void *arg)
{
    struct dial *d = arg;
    start_plain(d, &d->talking->peer);
}

/* `a` accepted first: it is the one to talk on. */
static void win(struct dial *d, struct attempt *a)
{
    d->state = DIAL_TALKING;
    d->talking = a;
    loop_timer_stop(&d->step);
    close_others(d, a);
    if (!d->direct)
        proxy_note_connected(d->proxy, &a->peer.addr);
    if (d->handshake == HANDSHAKE_TRIAL)
        loop_timer_start(d->proxy->loop, &d->step, HEDGE_SILENT_MS, on_hedge, d);
}

static void on_stagger(void *arg)
{
    try_next_address(arg);
}

static void try_next_address(struct dial *d)
{
    bool pipelined = d->handshake != HANDSHAKE_PLAIN;
    while (d->next < d->answer.count) {
        struct attempt *a = start_attempt(d, &d->answer.addrs[d->next++], pipelined);
        if (!a)
            continue;
        if (a->connected) {
            win(d, a);
            if (d->direct)
                succeed(d, a);
        } else if (d->next < d->answer.count) {
            loop_timer_start(d->proxy->loop, &d->step, STAGGER_MS, on_stagger, d);
        }
        return;
    }
    if (d->live == 0)
        finish_unreached(d);
}

static void succeed(struct dial *d, struct attempt *a)
{
    d->result.peer = a->peer;
    d->result.reply = SOCKS5_REPLY_SUCCEEDED;
    if (d->direct) {
        struct sockaddr_storage sa;
        socklen_t len = sizeof(sa);
        if (getsockname(a->fd, (struct sockaddr *)&sa, &len) == 0)
            endpoint_from_sockaddr((struct sockaddr *)&sa, &d->result.bound);
    } else {
        d->result.bound = a->client.bound;
    }
    d->live--;
    d->result.fd = attempt_take_socket(a);
    d->result.hung_up = a->hung_up;
    d->result.watch = &a->io; /* a connect() that succeeds at once comes before dial_keep_watch() */
    finish(d, DIAL_OK);
}

/* The proxy answered on `a`: what does that say about pipelining? */
static void judge(struct dial *d, const struct attempt *a)
{
    if (a == d->plain && d->handshake == HANDSHAKE_TRIAL)
        end_trial(d, TRIAL_CHOKED);
    else if (a == d->plain)
        proxy_stop_pipelining(d->proxy);
    else
        end_trial(d, TRIAL_PASSED);
}

static void log_bad_proxy(struct dial *d, enum dial_status status)
{
    static struct log_limit limit = LOG_LIMIT(2);
    char text[PROXY_TEXT_MAX];
    if (status == DIAL_AUTH)
        log_limited(LOG_LEVEL_WARN, &limit, "proxy %s rejects us: %s",
                    proxy_describe(d->proxy, text),
                    d->proxy->url->has_credentials ? "wrong user or password, or no such method"
                                                   : "it wants a user and a password");
    else if (status == DIAL_NONSENSE)
        log_limited(LOG_LEVEL_WARN, &limit, "%s answers, but does not speak SOCKS5",
                    proxy_describe(d->proxy, text));
}

/* Was the process stopped, so that whoever closed on us had waited for us in vain? */
static bool was_paused(struct dial *d)
{
    unsigned pauses = loop_pauses(d->proxy->loop);
    bool paused = pauses != d->pauses;
    d->pauses = pauses;
    return paused;
}

/* What happened until now says nothing of the proxy: speak with the same address, as if first. */
static void begin_again(struct dial *d, const struct endpoint *peer)
{
    end_trial(d, TRIAL_ABANDONED);
    close_others(d, NULL);
    loop_timer_stop(&d->step);
    d->state = DIAL_CONNECTING;
    d->handshake = HANDSHAKE_PLAIN;
    struct attempt *a = start_attempt(d, &peer->addr, false);
    if (!a)
        try_next_address(d);
    else if (a->connected)
        win(d, a);
}

/* Attempt `a` talked and got no reply: `status` says how it ended. */
static void lose(struct dial *d, struct attempt *a, enum dial_status status)
{
    bool was_plain = a == d->plain || d->handshake == HANDSHAKE_PLAIN;
    bool refused_choice = status == DIAL_AUTH && a->client.failure == SOCKS5_FAILURE_METHOD &&
                          d->proxy->url->has_credentials;
    /* It spoke with us and would not go on: no reply of RFC 1928's, but an answer. */
    bool answered = status == DIAL_AUTH || (status == DIAL_CLOSED && a->told_method);
    struct endpoint peer = a->peer;
    if (status == DIAL_CLOSED)
        d->result.error = a->error;
    if (a == d->plain && d->talking && answered)
        judge(d, a);
    close_attempt(d, a);
    if (status == DIAL_CLOSED && was_paused(d)) {
        begin_again(d, &peer);
        return;
    }
    if (!was_plain) {
        bool repeat = refused_choice || (d->handshake == HANDSHAKE_TRIAL && status != DIAL_AUTH);
        if (repeat)
            d->cut_off = status;
        else if (d->handshake == HANDSHAKE_PIPELINED && status != DIAL_AUTH)
            proxy_doubt_pipelining(d->proxy, d->command);
        if (repeat && !d->plain)
            start_plain(d, &peer);
        if (d->plain)
            return;
    } else if (d->talking && !answered) {
        return; /* the hedge failed; the trial may yet get its reply */
    }
    log_bad_proxy(d, status);
    finish(d, status);
}

static void lose_address(struct dial *d, struct attempt *a)
{
    if (!is_about_resources(d->error))
        d->error = a->error;
    bool was_plain = a == d->plain;
    close_attempt(d, a);
    if (d->state == DIAL_CONNECTING)
        try_next_address(d);
    else if (was_plain && !d->talking)
        finish(d, d->cut_off);
}

static void on_attempt(void *arg, struct attempt *a, enum attempt_event event)
{
    struct dial *d = arg;
    switch (event) {
    case ATTEMPT_CONNECTED:
        if (a != d->plain)
            win(d, a);
        break;
    case ATTEMPT_METHOD_SEEN:
        if (d->handshake == HANDSHAKE_TRIAL && a == d->talking && !d->plain)
            loop_timer_start(d->proxy->loop, &d->step, HEDGE_MS, on_hedge, d);
        break;
    case ATTEMPT_SUCCEEDED:
        if (!d->direct)
            judge(d, a);
        succeed(d, a);
        break;
    case ATTEMPT_REPLIED:
        judge(d, a);
        finish_with_reply(d, a->client.reply);
        break;
    case ATTEMPT_UNREACHED:
        lose_address(d, a);
        break;
    case ATTEMPT_NO_METHOD:
    case ATTEMPT_NOT_TRUSTED:
        lose(d, a, DIAL_AUTH);
        break;
    case ATTEMPT_CLOSED:
        lose(d, a, DIAL_CLOSED);
        break;
    case ATTEMPT_NONSENSE:
        lose(d, a, DIAL_NONSENSE);
        break;
    }
}

/* --- the beginning --------------------------------------------------------------------------- */

/* direct:// must not lead to services of the host that listen on loopback only. */
static void drop_loopback(struct resolver_answer *answer)
{
    size_t kept = 0;
    for (size_t i = 0; i < answer->count; i++)
        if (!addr_is_loopback(&answer->addrs[i]) && !addr_is_unspecified(&answer->addrs[i]))
            answer->addrs[kept++] = answer->addrs[i];
    answer->count = kept;
}

/* The address that accepted last comes first: a dead one delays one dial, not each. */
static void put_preferred_first(const struct proxy *p, struct resolver_answer *answer)
{
    for (size_t i = 1; p->has_preferred && i < answer->count; i++) {
        if (!addr_equal(&answer->addrs[i], &p->preferred))
            continue;
        memmove(&answer->addrs[1], &answer->addrs[0], i * sizeof(answer->addrs[0]));
        answer->addrs[0] = p->preferred;
        return;
    }
}

static void start_connecting(struct dial *d)
{
    d->state = DIAL_CONNECTING;
    if (!d->direct) {
        put_preferred_first(d->proxy, &d->answer);
        d->handshake = proxy_choose_handshake(d->proxy, d->command);
        d->trial_open = d->handshake == HANDSHAKE_TRIAL;
    } else if (!d->proxy->outbound->allow_loopback) {
        drop_loopback(&d->answer);
        if (d->answer.count == 0) {
            finish_with_reply(d, SOCKS5_REPLY_NOT_ALLOWED);
            return;
        }
    }
    try_next_address(d);
}

static void on_resolved(void *arg, const struct resolver_answer *answer)
{
    struct dial *d = arg;
    d->request = NULL;
    d->answer = *answer;
    if (answer->count > 0) {
        start_connecting(d);
    } else if (d->direct) {
        finish_with_reply(d, SOCKS5_REPLY_HOST_UNREACHABLE);
    } else {
        proxy_note_unreachable(d->proxy, answer->error);
        finish(d, DIAL_NO_PROXY);
    }
}

static void start_resolving(struct dial *d, const char *name)
{
    d->state = DIAL_RESOLVING;
    d->request = resolver_lookup(d->proxy->resolver, name, on_resolved, d);
    if (d->request)
        return;
    d->error = ENOMEM;
    finish_unreached(d);
}

static struct dial *dial_new(struct proxy *p, enum socks5_command command,
                             const struct target *target, dial_fn *fn, void *arg)
{
    size_t name_len = target->name ? strlen(target->name) : 0;
    struct dial *d = memory_zeroed(sizeof(*d) + name_len + 1);
    if (!d)
        return NULL;
    d->proxy = p;
    d->fn = fn;
    d->arg = arg;
    d->command = command;
    d->target = *target;
    d->direct = proxy_is_direct(p);
    d->pauses = loop_pauses(p->loop);
    if (target->name) {
        memcpy(d->name_copy, target->name, name_len);
        d->target.name = d->name_copy;
    }
    list_init(&d->attempts);
    d->result.fd = -1;
    return d;
}

struct dial *dial_start(struct proxy *p, enum socks5_command command, const struct target *target,
                        dial_fn *fn, void *arg)
{
    struct dial *d = dial_new(p, command, target, fn, arg);
    if (!d)
        return NULL;
    if (d->direct && command != SOCKS5_CONNECT) {
        finish_with_reply(d, SOCKS5_REPLY_COMMAND_NOT_SUPPORTED);
        return d;
    }
    loop_timer_start(p->loop, &d->deadline, p->outbound->connect_timeout_ms, on_deadline, d);
    const char *name = d->direct ? d->target.name : p->url->host;
    bool numeric = d->direct ? name == NULL : p->url->host_is_addr;
    if (!numeric) {
        start_resolving(d, name);
        return d;
    }
    d->answer.count = 1;
    d->answer.addrs[0] = d->direct ? d->target.addr : p->url->addr;
    start_connecting(d);
    return d;
}

void dial_keep_watch(struct dial *d)
{
    d->keep_watch = true;
}

void dial_cancel(struct dial *d)
{
    unhook(d);
    loop_undefer(&d->deferred);
    if (d->result.watch)
        loop_ignore(d->result.watch);
    if (d->result.fd >= 0)
        close(d->result.fd);
    dial_free(d);
}
