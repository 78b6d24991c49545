/*
 * Theory of operation
 *
 * Everything the client may have to say is known at the start, so socks5_client_init() lays it
 * out in one piece, | greeting | credentials | request |, and from then on only moves a window
 * [out_sent, out_len) over it: pipelined, the window is all of it at once; else it opens one
 * message at a time, and skips the credentials where the proxy does not ask for them.
 *
 * Answers are gathered in `in`, one message at a time, and never more of it than that message
 * is known to have; socks5_client_wants() tells the same number to whoever reads the socket.
 * That is how payload that a server sends right behind the proxy's reply stays untouched.
 *
 * A verdict falls with the byte that decides it: a wrong version with the first, a refusal with
 * REP. Servers are known that cut a refusal short or fill the rest of it with rubbish.
 */
#include "socks/client.h"

#include <assert.h>
#include <string.h>

#include "core/base/cursor.h"
#include "socks/address.h"

enum { VERSION = 5, AUTH_VERSION = 1, METHOD_NONE = 0, METHOD_PASSWORD = 2 };

/* Both the choice of a method and the verdict on credentials are a version and a code. */
enum { SHORT_ANSWER = 2, REPLY_HEAD = 3, REPLY_SHORTEST = REPLY_HEAD + 4 };

const char *socks5_reply_name(uint8_t reply)
{
    static const char *const names[] = {
        [SOCKS5_REPLY_SUCCEEDED] = "succeeded",
        [SOCKS5_REPLY_GENERAL_FAILURE] = "general failure",
        [SOCKS5_REPLY_NOT_ALLOWED] = "not allowed by its rules",
        [SOCKS5_REPLY_NETWORK_UNREACHABLE] = "network unreachable",
        [SOCKS5_REPLY_HOST_UNREACHABLE] = "host unreachable",
        [SOCKS5_REPLY_REFUSED] = "refused",
        [SOCKS5_REPLY_TTL_EXPIRED] = "TTL expired",
        [SOCKS5_REPLY_COMMAND_NOT_SUPPORTED] = "command not supported",
        [SOCKS5_REPLY_ADDRESS_NOT_SUPPORTED] = "address type not supported",
    };
    static_assert(sizeof names / sizeof *names == SOCKS5_REPLY_ADDRESS_NOT_SUPPORTED + 1,
                  "every reply has a name");
    return reply < sizeof names / sizeof *names ? names[reply] : "unknown reply";
}

/* --- what is said ------------------------------------------------------------------------- */

/* VER NMETHODS METHODS (RFC 1928, 3). */
static void write_greeting(struct writer *w, bool with_credentials, bool pipelined)
{
    writer_u8(w, VERSION);
    if (!with_credentials) {
        writer_u8(w, 1);
        writer_u8(w, METHOD_NONE);
    } else if (pipelined) { /* credentials follow unasked, so that the choice must not be open */
        writer_u8(w, 1);
        writer_u8(w, METHOD_PASSWORD);
    } else {
        writer_u8(w, 2);
        writer_u8(w, METHOD_NONE);
        writer_u8(w, METHOD_PASSWORD);
    }
}

/* VER ULEN UNAME PLEN PASSWD (RFC 1929, 2). */
static void write_credentials(struct writer *w, const struct socks5_credentials *credentials)
{
    size_t user_len = strnlen(credentials->user, 255);
    size_t password_len = strnlen(credentials->password, 255);

    writer_u8(w, AUTH_VERSION);
    writer_u8(w, (uint8_t)user_len);
    writer_bytes(w, credentials->user, user_len);
    writer_u8(w, (uint8_t)password_len);
    writer_bytes(w, credentials->password, password_len);
}

/* VER CMD RSV ATYP DST.ADDR DST.PORT (RFC 1928, 4). */
static void write_request(struct writer *w, enum socks5_command command,
                          const struct target *target)
{
    writer_u8(w, VERSION);
    writer_u8(w, (uint8_t)command);
    writer_u8(w, 0);
    socks5_address_write(w, target);
}

void socks5_client_init(struct socks5_client *c, const struct socks5_credentials *credentials,
                        enum socks5_command command, const struct target *target, bool pipelined)
{
    memset(c, 0, sizeof *c);
    c->state = SOCKS5_CLIENT_GREETING;
    c->pipelined = pipelined;
    c->with_credentials = credentials != NULL;

    struct writer w = writer_over(c->out, sizeof c->out);
    write_greeting(&w, c->with_credentials, pipelined);
    c->auth_at = (uint16_t)writer_used(&w);
    if (credentials) {
        c->credentials = *credentials;
        write_credentials(&w, credentials);
    }
    c->request_at = (uint16_t)writer_used(&w);
    write_request(&w, command, target);
    c->request_end = (uint16_t)writer_used(&w);
    assert(!w.bad);
    c->out_len = pipelined ? c->request_end : c->auth_at;
}

size_t socks5_client_output(const struct socks5_client *c, const uint8_t **out)
{
    *out = c->out + c->out_sent;
    return (size_t)(c->out_len - c->out_sent);
}

void socks5_client_sent(struct socks5_client *c, size_t n)
{
    assert(n <= (size_t)(c->out_len - c->out_sent));
    c->out_sent = (uint16_t)(c->out_sent + n);
}

void socks5_client_wipe(struct socks5_client *c)
{
    if (!c->with_credentials)
        return;
    explicit_bzero(c->out + c->auth_at, (size_t)(c->request_at - c->auth_at));
    c->out_len = c->out_sent;
}

/* --- what is heard ------------------------------------------------------------------------ */

static bool ended(const struct socks5_client *c)
{
    return c->state == SOCKS5_CLIENT_DONE || c->state == SOCKS5_CLIENT_FAILED;
}

static void fail(struct socks5_client *c, enum socks5_failure failure)
{
    c->state = SOCKS5_CLIENT_FAILED;
    c->failure = failure;
    c->out_len = c->out_sent; /* nothing more is to be said */
}

/* Go on to `state`; its message, out[from, to), may be sent now unless it was pipelined. */
static void advance(struct socks5_client *c, enum socks5_client_state state, uint16_t from,
                    uint16_t to)
{
    c->state = state;
    c->in_len = 0;
    if (c->pipelined)
        return;
    c->out_sent = from;
    c->out_len = to;
}

/* The size of the message that is being gathered: the least it can be until that is known. */
static size_t message_size(const struct socks5_client *c)
{
    if (c->state != SOCKS5_CLIENT_REQUEST)
        return SHORT_ANSWER;
    if (c->in_len < REPLY_HEAD)
        return REPLY_SHORTEST;
    return REPLY_HEAD + socks5_address_size(c->in + REPLY_HEAD, c->in_len - (size_t)REPLY_HEAD);
}

/* VER METHOD (RFC 1928, 3). */
static void take_method(struct socks5_client *c, struct reader *r)
{
    if (reader_u8(r) != VERSION || c->out_sent < c->auth_at) {
        fail(c, SOCKS5_FAILURE_BAD);
        return;
    }
    uint8_t method = reader_u8(r);
    if (r->bad)
        return;
    c->method_seen = true;
    if (method == METHOD_PASSWORD && c->with_credentials)
        advance(c, SOCKS5_CLIENT_AUTH, c->auth_at, c->request_at);
    else if (method == METHOD_NONE && !(c->with_credentials && c->pipelined))
        advance(c, SOCKS5_CLIENT_REQUEST, c->request_at, c->request_end);
    else
        fail(c, SOCKS5_FAILURE_METHOD);
}

/* VER STATUS (RFC 1929, 2). */
static void take_auth(struct socks5_client *c, struct reader *r)
{
    if (reader_u8(r) != AUTH_VERSION || c->out_sent < c->request_at) {
        fail(c, SOCKS5_FAILURE_BAD);
        return;
    }
    uint8_t status = reader_u8(r);
    if (r->bad)
        return;
    if (status != 0)
        fail(c, SOCKS5_FAILURE_AUTH);
    else
        advance(c, SOCKS5_CLIENT_REQUEST, c->request_at, c->request_end);
}

/* BND.ADDR as a name says nothing that could be used, so that any name is as good as none. */
static void take_bound(struct socks5_client *c, struct reader *r)
{
    struct socks5_address bound;

    if (*r->at == SOCKS5_ADDRESS_NAME) {
        reader_skip(r, 1);
        reader_skip(r, reader_u8(r));
        c->bound_is_name = true;
        c->bound.port = reader_u16(r);
    } else if (socks5_address_read(r, &bound)) {
        c->bound = bound.endpoint;
    }
    c->state = SOCKS5_CLIENT_DONE;
}

/* VER REP RSV ATYP BND.ADDR BND.PORT (RFC 1928, 6). */
static void take_reply(struct socks5_client *c, struct reader *r)
{
    if (reader_u8(r) != VERSION || c->out_sent < c->request_end) {
        fail(c, SOCKS5_FAILURE_BAD);
        return;
    }
    uint8_t reply = reader_u8(r);
    if (r->bad)
        return;
    c->reply = reply;
    if (reply != SOCKS5_REPLY_SUCCEEDED) {
        fail(c, SOCKS5_FAILURE_REPLY);
        return;
    }
    reader_skip(r, 1); /* RSV */
    if (r->bad || reader_left(r) == 0)
        return;
    size_t size = socks5_address_size(r->at, reader_left(r));
    if (size == 0)
        fail(c, SOCKS5_FAILURE_BAD);
    else if (size == reader_left(r))
        take_bound(c, r);
}

static void take(struct socks5_client *c)
{
    struct reader r = reader_over(c->in, c->in_len);

    switch (c->state) {
    case SOCKS5_CLIENT_GREETING:
        take_method(c, &r);
        break;
    case SOCKS5_CLIENT_AUTH:
        take_auth(c, &r);
        break;
    case SOCKS5_CLIENT_REQUEST:
        take_reply(c, &r);
        break;
    case SOCKS5_CLIENT_DONE:
    case SOCKS5_CLIENT_FAILED:
        break;
    }
}

size_t socks5_client_wants(const struct socks5_client *c)
{
    if (ended(c))
        return 0;
    size_t wants = message_size(c) - c->in_len;
    if (!c->pipelined)
        return wants;
    /* The answers yet to come are asked for in the same read: one system call less each. */
    if (c->state == SOCKS5_CLIENT_GREETING && c->with_credentials)
        wants += SHORT_ANSWER;
    if (c->state != SOCKS5_CLIENT_REQUEST)
        wants += REPLY_SHORTEST;
    return wants;
}

size_t socks5_client_input(struct socks5_client *c, const uint8_t *bytes, size_t len)
{
    struct reader r = reader_over(bytes, len);

    while (!ended(c) && reader_left(&r) > 0) {
        size_t n = message_size(c) - c->in_len;
        if (n > reader_left(&r))
            n = reader_left(&r);
        assert(n > 0 && c->in_len + n <= sizeof c->in);
        memcpy(c->in + c->in_len, reader_bytes(&r, n), n);
        c->in_len = (uint16_t)(c->in_len + n);
        take(c);
    }
    return reader_used(&r);
}
