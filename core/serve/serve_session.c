/*
 * Theory of operation
 *
 *   HANDSHAKE --CONNECT--> DIALLING --connected--> RELAYING --both FIN, or an error--> CLOSED
 *       |         |            `--failed--> LINGERING
 *       |         `--UDP ASSOCIATE--> ASSOCIATED --control connection ends--> CLOSED
 *       `--not allowed, nonsense--> LINGERING --FIN, or two seconds--> CLOSED
 *
 *   HANDSHAKE   bytes go to the SOCKS5 machine; a timer ends it
 *   DIALLING    nothing is read; what came behind the request waits in the relay's spill
 *   RELAYING    the relay reads and writes, this file does nothing
 *   ASSOCIATED  what is read is thrown away; FIN or an error ends the association
 *   LINGERING   a refusal was said and our side shut; what comes is thrown away, since closing
 *               with unread bytes would send RST, and RST may overtake the refusal
 *   CLOSED      unhooked; freed at the end of the turn
 *
 * A client that pipelines has its answers in one piece: they are held back while its request is
 * already there, and sent with the reply.
 */
#include "core/serve/serve_parts.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "socks/server.h"

enum { HANDSHAKE_MS = 20 * 1000, LINGER_MS = 2000, READ_BYTES = 2048 };

enum session_state {
    SESSION_HANDSHAKE,
    SESSION_DIALLING,
    SESSION_RELAYING,
    SESSION_ASSOCIATED,
    SESSION_LINGERING,
    SESSION_CLOSED,
};

struct session {
    struct server *server;
    struct link link;      /* in server->sessions */
    struct link handshake; /* in server->handshakes while in HANDSHAKE */
    enum session_state state;
    uint64_t id;
    uint64_t since_ms;
    struct endpoint client;
    struct relay relay;            /* owns the client's socket, and the target's */
    struct socks5_server *machine; /* NULL once the reply was said */
    struct dial *dial;
    struct association *association;
    struct loop_timer timer;
    struct loop_deferred free_later;
};

static const char *const state_names[] = {
    [SESSION_HANDSHAKE] = "handshake", [SESSION_DIALLING] = "dialling",
    [SESSION_RELAYING] = "relaying",   [SESSION_ASSOCIATED] = "associated",
    [SESSION_LINGERING] = "lingering", [SESSION_CLOSED] = "closed",
};
static_assert(sizeof state_names / sizeof *state_names == SESSION_CLOSED + 1,
              "every state has a name");

static void set_state(struct session *s, enum session_state state)
{
    log_trace("serve %llu: %s -> %s", (unsigned long long)s->id, state_names[s->state],
              state_names[state]);
    s->state = state;
    list_remove(&s->handshake);
    loop_timer_stop(&s->timer);
}

/* --- the end -------------------------------------------------------------------------------- */

static void forget_machine(struct session *s)
{
    free(s->machine);
    s->machine = NULL;
}

static void free_session(void *arg)
{
    struct session *s = arg;

    if (s->association)
        association_free(s->association);
    free(s);
}

static void close_session(struct session *s, bool reset)
{
    if (s->state == SESSION_CLOSED)
        return;
    set_state(s, SESSION_CLOSED);
    if (s->dial)
        dial_cancel(s->dial);
    s->dial = NULL;
    relay_close(&s->relay, reset);
    forget_machine(s);
    list_remove(&s->link);
    loop_defer(s->server->loop, &s->free_later, free_session, s);
}

static void on_handshake_timeout(void *arg)
{
    struct session *s = arg;
    log_debug("serve %llu: no request within %d s", (unsigned long long)s->id, HANDSHAKE_MS / 1000);
    close_session(s, false);
}

static void on_linger_timeout(void *arg)
{
    close_session(arg, false);
}

/* Read and forget. False: FIN or an error was read. */
static bool discard(struct session *s)
{
    uint8_t buffer[READ_BYTES];

    for (int i = 0; i < 32; i++) {
        long n = relay_read_early(&s->relay, buffer, sizeof buffer);
        if (n == -EAGAIN)
            return true;
        if (n <= 0)
            return false;
    }
    return false; /* a flood of what nobody asked for */
}

static void linger(struct session *s)
{
    set_state(s, SESSION_LINGERING);
    forget_machine(s);
    (void)shutdown(s->relay.ends[0].fd, SHUT_WR);
    loop_timer_start(s->server->loop, &s->timer, LINGER_MS, on_linger_timeout, s);
    if (!discard(s))
        close_session(s, false);
}

/* --- answers -------------------------------------------------------------------------------- */

/*
 * Send what the machine has to say. False when the client does not take it at once: so few bytes
 * always fit, unless the connection is broken.
 */
static bool say(struct session *s)
{
    const uint8_t *out;
    size_t len = socks5_server_output(s->machine, &out);

    if (len == 0)
        return true;
    long n = send(s->relay.ends[0].fd, out, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 || (size_t)n < len)
        return false;
    socks5_server_sent(s->machine, len);
    return true;
}

static bool reply(struct session *s, enum socks5_reply code, const struct endpoint *bound)
{
    socks5_server_reply(s->machine, code, bound);
    return say(s);
}

static void refuse(struct session *s, enum socks5_reply code)
{
    if (reply(s, code, NULL))
        linger(s);
    else
        close_session(s, false);
}

/* --- CONNECT -------------------------------------------------------------------------------- */

/* Where the proxy of a dial would be to blame it is the target here: the dial is direct. */
static enum socks5_reply reply_code(const struct dial_result *result)
{
    switch (result->status) {
    case DIAL_OK:
        return SOCKS5_REPLY_SUCCEEDED;
    case DIAL_REPLY:
        return (enum socks5_reply)result->reply;
    case DIAL_NO_PROXY:
    case DIAL_TIMEOUT:
        return SOCKS5_REPLY_HOST_UNREACHABLE;
    case DIAL_AUTH:
    case DIAL_CLOSED:
    case DIAL_NONSENSE:
    case DIAL_NO_RESOURCES:
        break;
    }
    return SOCKS5_REPLY_GENERAL_FAILURE;
}

static void on_dialled(void *arg, const struct dial_result *result)
{
    struct session *s = arg;
    enum socks5_reply code = reply_code(result);

    s->dial = NULL;
    log_debug("serve %llu: %s", (unsigned long long)s->id, socks5_reply_name((uint8_t)code));
    if (result->status != DIAL_OK) {
        refuse(s, code);
        return;
    }
    if (!reply(s, code, &result->bound)) {
        close(result->fd);
        close_session(s, true);
        return;
    }
    if (relay_run(&s->relay, result->fd) < 0) {
        close_session(s, true);
        return;
    }
    set_state(s, SESSION_RELAYING);
    forget_machine(s);
}

static void on_relay_over(void *arg, int error)
{
    struct session *s = arg;
    log_debug("serve %llu: over, %llu bytes up, %llu down%s%s", (unsigned long long)s->id,
              (unsigned long long)s->relay.ways[RELAY_UP].moved,
              (unsigned long long)s->relay.ways[RELAY_DOWN].moved, error ? ": " : "",
              error ? strerror(error) : "");
    close_session(s, false);
}

static void start_connect(struct session *s)
{
    const struct socks5_server *m = s->machine;
    struct target target = {
        .name = m->target_is_name ? m->name : NULL, .addr = m->target.addr, .port = m->target.port};
    char text[ADDR_TEXT_MAX];

    log_debug("serve %llu: CONNECT %s port %u", (unsigned long long)s->id,
              target.name ? target.name : addr_format(&target.addr, text), target.port);
    s->dial = dial_start(s->server->proxy, SOCKS5_CONNECT, &target, on_dialled, s);
    if (!s->dial)
        refuse(s, SOCKS5_REPLY_GENERAL_FAILURE);
    else
        set_state(s, SESSION_DIALLING);
}

/* --- UDP ASSOCIATE -------------------------------------------------------------------------- */

static void on_association_idle(void *arg)
{
    struct session *s = arg;
    log_debug("serve %llu: the association was idle for too long", (unsigned long long)s->id);
    close_session(s, false);
}

static int local_end(int fd, struct endpoint *out)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    return endpoint_from_sockaddr((const struct sockaddr *)&ss, out) ? 0 : -EAFNOSUPPORT;
}

static void start_association(struct session *s)
{
    struct association_request request = {.client = s->client,
                                          .hint = s->machine->target,
                                          .id = s->id,
                                          .idle = on_association_idle,
                                          .arg = s};
    struct endpoint bound;
    char text[ENDPOINT_TEXT_MAX];
    int error = local_end(s->relay.ends[0].fd, &request.local);

    if (error == 0)
        s->association = association_new(s->server, &request, &bound, &error);
    if (!s->association) {
        server_note_no_resources(s->server, -error);
        refuse(s, SOCKS5_REPLY_GENERAL_FAILURE);
        return;
    }
    log_debug("serve %llu: UDP ASSOCIATE at %s", (unsigned long long)s->id,
              endpoint_format(&bound, text));
    set_state(s, SESSION_ASSOCIATED);
    if (!reply(s, SOCKS5_REPLY_SUCCEEDED, &bound)) {
        close_session(s, false);
        return;
    }
    forget_machine(s);
}

/* --- the handshake -------------------------------------------------------------------------- */

static void act_on_request(struct session *s)
{
    if (s->machine->command == SOCKS5_CONNECT)
        start_connect(s);
    else
        start_association(s);
}

/* Feed what was read; false: the session has gone on to another state. */
static bool hear(struct session *s, const uint8_t *bytes, size_t len)
{
    size_t used = socks5_server_input(s->machine, bytes, len);

    switch (s->machine->state) {
    case SOCKS5_SERVER_GREETING:
    case SOCKS5_SERVER_AUTH:
    case SOCKS5_SERVER_REQUEST:
        if (say(s))
            return true;
        close_session(s, false);
        return false;
    case SOCKS5_SERVER_READY:
        if (relay_push(&s->relay, RELAY_UP, bytes + used, len - used) == 0)
            act_on_request(s);
        else
            refuse(s, SOCKS5_REPLY_GENERAL_FAILURE);
        return false;
    case SOCKS5_SERVER_FAILED:
    case SOCKS5_SERVER_REPLIED:
        break;
    }
    if (say(s))
        linger(s);
    else
        close_session(s, false);
    return false;
}

static void shake_hands(struct session *s)
{
    uint8_t buffer[READ_BYTES];
    long n;
    bool more;

    do {
        n = relay_read_early(&s->relay, buffer, sizeof buffer);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            close_session(s, false);
            return;
        }
        more = hear(s, buffer, (size_t)n);
        explicit_bzero(buffer, (size_t)n); /* a password may be in it */
    } while (more);
}

/* The client's socket became ready before it is relayed. */
static void on_early(void *arg)
{
    struct session *s = arg;

    switch (s->state) {
    case SESSION_HANDSHAKE:
        shake_hands(s);
        break;
    case SESSION_ASSOCIATED:
    case SESSION_LINGERING:
        if (!discard(s))
            close_session(s, false);
        break;
    case SESSION_DIALLING:
        if (relay_early_error(&s->relay) != 0)
            close_session(s, true);
        break;
    case SESSION_RELAYING:
    case SESSION_CLOSED:
        break;
    }
}

/* --- from the server ------------------------------------------------------------------------ */

int session_open(struct server *server, int fd, const struct endpoint *client)
{
    struct session *s = calloc(1, sizeof *s);
    int error = -ENOMEM;

    if (!s)
        goto fail;
    s->machine = malloc(sizeof *s->machine);
    if (!s->machine)
        goto fail;
    error = relay_init(&s->relay, server->loop, server->pool, fd, on_early, on_relay_over, s);
    if (error < 0)
        goto fail;
    socks5_server_init(s->machine, server->options->credentials);
    s->server = server;
    s->client = *client;
    s->id = ++server->next_id;
    s->since_ms = loop_now(server->loop);
    list_push_back(&server->sessions, &s->link);
    list_push_back(&server->handshakes, &s->handshake);
    loop_timer_start(server->loop, &s->timer, HANDSHAKE_MS, on_handshake_timeout, s);
    return 0;

fail:
    if (s)
        free(s->machine);
    free(s);
    close(fd);
    return error;
}

bool session_evict(struct server *server)
{
    struct link *first = list_first(&server->handshakes);

    if (!first)
        return false;
    struct session *s = CONTAINER_OF(first, struct session, handshake);
    if (loop_now(server->loop) - s->since_ms < EVICT_AFTER_MS)
        return false;
    close_session(s, true);
    return true;
}

void session_close_all(struct server *server)
{
    LIST_EACH (it, &server->sessions)
        close_session(CONTAINER_OF(it, struct session, link), false);
}
