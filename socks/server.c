/*
 * Theory of operation
 *
 * Messages are gathered in `in` one at a time, never more than the message has, so that what
 * a client sends behind its request (it may be pipelining) stays with the caller. Refusals are
 * answered as the RFCs say before the machine fails; a peer that does not speak SOCKS5 at all
 * hears nothing.
 *
 * Answers are appended to `out`. A machine makes at most a method, a verdict and a reply
 * (2 + 2 + 262 bytes), so that the buffer cannot overflow.
 */
#include "socks/server.h"

#include <assert.h>

#include "core/base/cursor.h"
#include "socks/address.h"

enum { VERSION = 5, AUTH_VERSION = 1, METHOD_NONE = 0, METHOD_PASSWORD = 2, METHOD_REFUSED = 0xff };
enum { REQUEST_HEAD = 3 };

void socks5_server_init(struct socks5_server *s, const struct socks5_credentials *credentials)
{
    memset(s, 0, sizeof *s);
    s->state = SOCKS5_SERVER_GREETING;
    s->credentials = credentials;
}

size_t socks5_server_output(const struct socks5_server *s, const uint8_t **out)
{
    *out = s->out + s->out_sent;
    return (size_t)(s->out_len - s->out_sent);
}

void socks5_server_sent(struct socks5_server *s, size_t n)
{
    assert(n <= (size_t)(s->out_len - s->out_sent));
    s->out_sent = (uint16_t)(s->out_sent + n);
}

static struct writer answer(struct socks5_server *s)
{
    return writer_over(s->out + s->out_len, sizeof s->out - s->out_len);
}

static void answered(struct socks5_server *s, const struct writer *w)
{
    assert(!w->bad);
    s->out_len = (uint16_t)(s->out_len + writer_used(w));
}

static void answer_short(struct socks5_server *s, uint8_t version, uint8_t code)
{
    struct writer w = answer(s);
    writer_u8(&w, version);
    writer_u8(&w, code);
    answered(s, &w);
}

/* VER REP RSV ATYP BND.ADDR BND.PORT (RFC 1928, 6). */
static void answer_reply(struct socks5_server *s, enum socks5_reply reply,
                         const struct endpoint *bound)
{
    const uint8_t any[4] = {0};
    struct target t = {.addr = addr_from_v4(any)};
    struct writer w = answer(s);

    if (bound) {
        t.addr = bound->addr;
        t.port = bound->port;
    }
    writer_u8(&w, VERSION);
    writer_u8(&w, (uint8_t)reply);
    writer_u8(&w, 0);
    socks5_address_write(&w, &t);
    answered(s, &w);
}

void socks5_server_reply(struct socks5_server *s, enum socks5_reply reply,
                         const struct endpoint *bound)
{
    assert(s->state == SOCKS5_SERVER_READY);
    answer_reply(s, reply, bound);
    s->state = SOCKS5_SERVER_REPLIED;
}

/* VER NMETHODS METHODS (RFC 1928, 3). */
static void take_greeting(struct socks5_server *s, struct reader *r)
{
    uint8_t wanted = s->credentials ? METHOD_PASSWORD : METHOD_NONE;

    reader_skip(r, 1);
    size_t count = reader_u8(r);
    const uint8_t *methods = reader_bytes(r, count);
    if (!methods || !memchr(methods, wanted, count)) {
        answer_short(s, VERSION, METHOD_REFUSED);
        s->state = SOCKS5_SERVER_FAILED;
        return;
    }
    answer_short(s, VERSION, wanted);
    s->state = s->credentials ? SOCKS5_SERVER_AUTH : SOCKS5_SERVER_REQUEST;
}

/* The time this takes tells nothing about how much of a guess is right. */
static bool same_secret(const uint8_t *guess, size_t len, const char *secret)
{
    size_t secret_len = strlen(secret);
    unsigned difference = len != secret_len;

    for (size_t i = 0; i < len; i++)
        difference |= (unsigned)(guess[i] ^ (uint8_t)secret[secret_len ? i % secret_len : 0]);
    return difference == 0;
}

/* VER ULEN UNAME PLEN PASSWD (RFC 1929, 2). */
static void take_auth(struct socks5_server *s, struct reader *r)
{
    reader_skip(r, 1);
    size_t user_len = reader_u8(r);
    const uint8_t *user = reader_bytes(r, user_len);
    size_t password_len = reader_u8(r);
    const uint8_t *password = reader_bytes(r, password_len);
    bool user_ok = user && same_secret(user, user_len, s->credentials->user);
    bool password_ok = password && same_secret(password, password_len, s->credentials->password);

    answer_short(s, AUTH_VERSION, user_ok && password_ok ? 0 : 1);
    s->state = user_ok && password_ok ? SOCKS5_SERVER_REQUEST : SOCKS5_SERVER_FAILED;
    explicit_bzero(s->in, sizeof s->in);
}

/* VER CMD RSV ATYP DST.ADDR DST.PORT (RFC 1928, 4). */
static void take_request(struct socks5_server *s, struct reader *r)
{
    struct socks5_address target;

    reader_skip(r, 1);
    s->command = reader_u8(r);
    reader_skip(r, 1);
    s->state = SOCKS5_SERVER_FAILED;
    if (!socks5_address_read(r, &target)) {
        answer_reply(s, SOCKS5_REPLY_ADDRESS_NOT_SUPPORTED, NULL);
        return;
    }
    if (s->command != SOCKS5_CONNECT && s->command != SOCKS5_UDP_ASSOCIATE) {
        answer_reply(s, SOCKS5_REPLY_COMMAND_NOT_SUPPORTED, NULL);
        return;
    }
    s->state = SOCKS5_SERVER_READY;
    s->target_is_name = target.is_name;
    s->target = target.endpoint;
    memcpy(s->name, target.name, sizeof s->name);
}

static bool ended(const struct socks5_server *s)
{
    switch (s->state) {
    case SOCKS5_SERVER_GREETING:
    case SOCKS5_SERVER_AUTH:
    case SOCKS5_SERVER_REQUEST:
        return false;
    case SOCKS5_SERVER_READY:
    case SOCKS5_SERVER_REPLIED:
    case SOCKS5_SERVER_FAILED:
        break;
    }
    return true;
}

/* VER ULEN UNAME PLEN PASSWD: the two lengths come one after the other. */
static size_t auth_size(const uint8_t *in, size_t have)
{
    struct reader r = reader_over(in, have);

    reader_skip(&r, 1);
    size_t user_len = reader_u8(&r);
    reader_skip(&r, user_len);
    return 1 + 1 + user_len + 1 + reader_u8(&r);
}

/*
 * The size of the message that is being gathered: the least it can be until that is known. 0:
 * it has an address of unknown type, where nobody can say.
 */
static size_t message_size(const struct socks5_server *s)
{
    size_t address;

    switch (s->state) {
    case SOCKS5_SERVER_GREETING:
        return 2 + (s->in_len >= 2 ? (size_t)s->in[1] : 0);
    case SOCKS5_SERVER_AUTH:
        return auth_size(s->in, s->in_len);
    case SOCKS5_SERVER_REQUEST:
        if (s->in_len < REQUEST_HEAD)
            return REQUEST_HEAD + 1;
        address = socks5_address_size(s->in + REQUEST_HEAD, s->in_len - (size_t)REQUEST_HEAD);
        return address > 0 ? REQUEST_HEAD + address : 0;
    case SOCKS5_SERVER_READY:
    case SOCKS5_SERVER_REPLIED:
    case SOCKS5_SERVER_FAILED:
        break;
    }
    return 0;
}

/* A message is whole. */
static void take(struct socks5_server *s)
{
    struct reader r = reader_over(s->in, s->in_len);

    switch (s->state) {
    case SOCKS5_SERVER_GREETING:
        take_greeting(s, &r);
        break;
    case SOCKS5_SERVER_AUTH:
        take_auth(s, &r);
        break;
    case SOCKS5_SERVER_REQUEST:
        take_request(s, &r);
        break;
    case SOCKS5_SERVER_READY:
    case SOCKS5_SERVER_REPLIED:
    case SOCKS5_SERVER_FAILED:
        break;
    }
    s->in_len = 0;
}

size_t socks5_server_input(struct socks5_server *s, const uint8_t *bytes, size_t len)
{
    struct reader r = reader_over(bytes, len);

    while (!ended(s) && reader_left(&r) > 0) {
        size_t n = message_size(s) - s->in_len;
        if (n > reader_left(&r))
            n = reader_left(&r);
        assert(n > 0 && s->in_len + n <= sizeof s->in);
        memcpy(s->in + s->in_len, reader_bytes(&r, n), n);
        s->in_len = (uint16_t)(s->in_len + n);

        if (s->in[0] != (s->state == SOCKS5_SERVER_AUTH ? AUTH_VERSION : VERSION))
            s->state = SOCKS5_SERVER_FAILED;
        else if (message_size(s) <= s->in_len)
            take(s);
    }
    return reader_used(&r);
}
