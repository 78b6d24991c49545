/* The server machine against a table of clients, cut at every byte, and against our own client. */
#include "socks/server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const struct socks5_credentials credentials = {.user = "me", .password = "pw"};

struct bytes {
    size_t len;
    uint8_t at[600];
};
#define BYTES(...)                                                                                 \
    {                                                                                              \
        sizeof((uint8_t[]){__VA_ARGS__}),                                                          \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

#define CONNECT_V4    5, 1, 0, 1, 192, 0, 2, 9, 0x1f, 0x90
#define REFUSAL(code) 5, code, 0, 1, 0, 0, 0, 0, 0, 0
#define LOGIN         1, 2, 'm', 'e', 2, 'p', 'w'

struct scenario {
    const char *title;
    bool with_credentials;
    struct bytes said;
    struct bytes answers;
    enum socks5_server_state state;
    uint8_t command;
    const char *target; /* address or name */
};

static const struct scenario scenarios[] = {
    {"v4", false, BYTES(5, 1, 0, CONNECT_V4), BYTES(5, 0), SOCKS5_SERVER_READY, SOCKS5_CONNECT,
     "192.0.2.9"},
    {"v6", false,
     BYTES(5, 3, 1, 0, 2, 5, 1, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0x1f,
           0x90),
     BYTES(5, 0), SOCKS5_SERVER_READY, SOCKS5_CONNECT, "2001:db8::7"},
    {"name", false, BYTES(5, 1, 0, 5, 1, 0, 3, 3, 'a', '.', 'b', 0x1f, 0x90), BYTES(5, 0),
     SOCKS5_SERVER_READY, SOCKS5_CONNECT, "a.b"},
    {"udp", true, BYTES(5, 2, 0, 2, LOGIN, 5, 3, 0xee, 1, 0, 0, 0, 0, 0x1f, 0x90),
     BYTES(5, 2, 1, 0), SOCKS5_SERVER_READY, SOCKS5_UDP_ASSOCIATE, "0.0.0.0"},
    {"bind", false, BYTES(5, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0), BYTES(5, 0, REFUSAL(7)),
     SOCKS5_SERVER_FAILED, 2, NULL},
    {"no method", false, BYTES(5, 0), BYTES(5, 0xff), SOCKS5_SERVER_FAILED, 0, NULL},
    {"methods without ours", false, BYTES(5, 2, 2, 0x80), BYTES(5, 0xff), SOCKS5_SERVER_FAILED, 0,
     NULL},
    {"no auth where it is asked for", true, BYTES(5, 1, 0), BYTES(5, 0xff), SOCKS5_SERVER_FAILED, 0,
     NULL},
    {"wrong password", true, BYTES(5, 1, 2, 1, 2, 'm', 'e', 2, 'p', 'x'), BYTES(5, 2, 1, 1),
     SOCKS5_SERVER_FAILED, 0, NULL},
    {"wrong user", true, BYTES(5, 1, 2, 1, 2, 'm', 'f', 2, 'p', 'w'), BYTES(5, 2, 1, 1),
     SOCKS5_SERVER_FAILED, 0, NULL},
    {"password cut", true, BYTES(5, 1, 2, 1, 2, 'm', 'e', 1, 'p'), BYTES(5, 2, 1, 1),
     SOCKS5_SERVER_FAILED, 0, NULL},
    {"password repeated", true, BYTES(5, 1, 2, 1, 2, 'm', 'e', 4, 'p', 'w', 'p', 'w'),
     BYTES(5, 2, 1, 1), SOCKS5_SERVER_FAILED, 0, NULL},
    {"nothing at all", true, BYTES(5, 1, 2, 1, 0, 0), BYTES(5, 2, 1, 1), SOCKS5_SERVER_FAILED, 0,
     NULL},
    {"HTTP", false, BYTES('G'), {0}, SOCKS5_SERVER_FAILED, 0, NULL},
    {"SOCKS4", false, BYTES(4), {0}, SOCKS5_SERVER_FAILED, 0, NULL},
    {"auth in the wrong version", true, BYTES(5, 1, 2, 5), BYTES(5, 2), SOCKS5_SERVER_FAILED, 0,
     NULL},
    {"request in the wrong version", false, BYTES(5, 1, 0, 4), BYTES(5, 0), SOCKS5_SERVER_FAILED, 0,
     NULL},
    {"unknown address type", false, BYTES(5, 1, 0, 5, 1, 0, 2), BYTES(5, 0, REFUSAL(8)),
     SOCKS5_SERVER_FAILED, 1, NULL},
    {"empty name", false, BYTES(5, 1, 0, 5, 1, 0, 3, 0, 0, 80), BYTES(5, 0, REFUSAL(8)),
     SOCKS5_SERVER_FAILED, 1, NULL},
    {"name with NUL", false, BYTES(5, 1, 0, 5, 1, 0, 3, 2, 'a', 0, 0, 80), BYTES(5, 0, REFUSAL(8)),
     SOCKS5_SERVER_FAILED, 1, NULL},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static struct socks5_server start(const struct scenario *s)
{
    struct socks5_server server;
    socks5_server_init(&server, s->with_credentials ? &credentials : NULL);
    return server;
}

static bool is_over(const struct socks5_server *s)
{
    return s->state == SOCKS5_SERVER_READY || s->state == SOCKS5_SERVER_FAILED;
}

static void check_outcome(const struct scenario *s, struct socks5_server *server)
{
    const uint8_t *out;
    char text[ADDR_TEXT_MAX];

    if (server->state != s->state || server->command != s->command)
        fail_msg("%s: state %d command %d", s->title, (int)server->state, server->command);
    assert_int_equal(socks5_server_output(server, &out), s->answers.len);
    if (s->answers.len > 0)
        assert_memory_equal(out, s->answers.at, s->answers.len);
    if (s->state != SOCKS5_SERVER_READY)
        return;
    assert_int_equal(server->target.port, 0x1f90);
    assert_string_equal(
        server->target_is_name ? server->name : addr_format(&server->target.addr, text), s->target);
}

static void test_split_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        const struct bytes *said = &scenarios[i].said;
        for (size_t cut = 0; cut <= said->len; cut++) {
            struct socks5_server s = start(&scenarios[i]);
            assert_int_equal(socks5_server_input(&s, said->at, cut), cut);
            assert_int_equal(socks5_server_input(&s, said->at + cut, said->len - cut),
                             said->len - cut);
            check_outcome(&scenarios[i], &s);
        }
    }
}

static void test_byte_by_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        struct socks5_server s = start(&scenarios[i]);
        for (size_t at = 0; at < scenarios[i].said.len; at++) {
            assert_false(is_over(&s));
            assert_int_equal(socks5_server_input(&s, scenarios[i].said.at + at, 1), 1);
        }
        check_outcome(&scenarios[i], &s);
    }
}

static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        for (size_t len = 0; len < scenarios[i].said.len; len++) {
            struct socks5_server s = start(&scenarios[i]);
            assert_int_equal(socks5_server_input(&s, scenarios[i].said.at, len), len);
            assert_false(is_over(&s));
        }
    }
}

static void test_payload_behind_is_untouched(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        struct bytes said = scenarios[i].said;
        memset(said.at + said.len, 5, 100);
        struct socks5_server s = start(&scenarios[i]);
        size_t used = socks5_server_input(&s, said.at, said.len + 100);
        /* A connection that is given up may have been read further. */
        assert_in_range(used, said.len,
                        scenarios[i].state == SOCKS5_SERVER_READY ? said.len : said.len + 100);
        check_outcome(&scenarios[i], &s);
        assert_int_equal(socks5_server_input(&s, said.at, said.len), 0);
        check_outcome(&scenarios[i], &s);
    }
}

static void test_every_value(void **state)
{
    static const struct {
        bool with_credentials;
        struct bytes before, after;
        uint8_t good[3]; /* padded with the first */
    } cases[] = {
        {false, {0}, BYTES(1, 0), {5, 5, 5}},
        {false, BYTES(5, 1), BYTES(CONNECT_V4), {0, 0, 0}},
        {true, BYTES(5, 1), BYTES(LOGIN, CONNECT_V4), {2, 2, 2}},
        {true, BYTES(5, 1, 2), BYTES(2, 'm', 'e', 2, 'p', 'w'), {1, 1, 1}},
        {false, BYTES(5, 1, 0), BYTES(1, 0, 1, 1, 2, 3, 4, 5, 6), {5, 5, 5}},
        {false, BYTES(5, 1, 0, 5), BYTES(0, 1, 1, 2, 3, 4, 5, 6), {1, 3, 3}},
        {false, BYTES(5, 1, 0, 5, 1, 0), BYTES(1, 'a', 3, 4, 5, 6), {1, 3, 4}},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (unsigned value = 0; value < 256; value++) {
            struct scenario scenario = {.with_credentials = cases[i].with_credentials};
            struct socks5_server s = start(&scenario);
            uint8_t byte = (uint8_t)value;
            socks5_server_input(&s, cases[i].before.at, cases[i].before.len);
            assert_false(is_over(&s));
            socks5_server_input(&s, &byte, 1);
            socks5_server_input(&s, cases[i].after.at, cases[i].after.len);
            bool good = memchr(cases[i].good, byte, 3) != NULL;
            assert_int_equal(s.state == SOCKS5_SERVER_FAILED, !good);
        }
    }
}

static void test_longest_everything(void **state)
{
    char user[256], password[256], name[256];
    const struct socks5_credentials longest = {.user = user, .password = password};
    const struct target t = {.name = name, .port = 80};
    struct socks5_client c;
    struct socks5_server s;
    const uint8_t *out;
    (void)state;

    memset(user, 'u', 255), user[255] = '\0';
    memset(password, 'p', 255), password[255] = '\0';
    memset(name, 'n', 255), name[255] = '\0';
    socks5_client_init(&c, &longest, SOCKS5_CONNECT, &t, true);
    socks5_server_init(&s, &longest);
    size_t len = socks5_client_output(&c, &out);
    assert_int_equal(socks5_server_input(&s, out, len), len);
    assert_int_equal(s.state, SOCKS5_SERVER_READY);
    assert_string_equal(s.name, name);
    assert_null(memmem(s.in, sizeof s.in, "ppp", 3)); /* no copy of the password stays */
}

static void test_replies(void **state)
{
    const uint8_t v6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2};
    const struct endpoint bound = {addr_from_v6(v6), 0x1234};
    const uint8_t with_bound[] = {5, 0, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0,    0,
                                  0, 0, 0, 0, 0,    0, 0,   0,    2, 0x12, 0x34};
    const uint8_t without[] = {REFUSAL(5)};
    const uint8_t *out;
    (void)state;

    struct socks5_server s = start(&scenarios[0]);
    socks5_server_input(&s, scenarios[0].said.at, scenarios[0].said.len);
    socks5_server_sent(&s, 2);
    socks5_server_reply(&s, SOCKS5_REPLY_SUCCEEDED, &bound);
    assert_int_equal(s.state, SOCKS5_SERVER_REPLIED);
    assert_int_equal(socks5_server_output(&s, &out), sizeof with_bound);
    assert_memory_equal(out, with_bound, sizeof with_bound);

    s = start(&scenarios[0]);
    socks5_server_input(&s, scenarios[0].said.at, scenarios[0].said.len);
    socks5_server_sent(&s, 1);
    socks5_server_reply(&s, SOCKS5_REPLY_REFUSED, NULL);
    assert_int_equal(socks5_server_output(&s, &out), 1 + sizeof without);
    assert_memory_equal(out + 1, without, sizeof without);
}

/* Both machines talk to one another, byte by byte: what one says the other understands. */
static void converse(bool with_credentials, bool pipelined)
{
    const struct target t = {.name = "host.example", .port = 0x1f90};
    const struct endpoint bound = {addr_from_v4((const uint8_t[4]){192, 0, 2, 1}), 9};
    struct socks5_client c;
    struct socks5_server s;
    const uint8_t *out;

    socks5_client_init(&c, with_credentials ? &credentials : NULL, SOCKS5_CONNECT, &t, pipelined);
    socks5_server_init(&s, with_credentials ? &credentials : NULL);
    for (int turn = 0; turn < 1000 && c.state < SOCKS5_CLIENT_DONE; turn++) {
        while (socks5_client_output(&c, &out) > 0) {
            assert_int_equal(socks5_server_input(&s, out, 1), 1);
            socks5_client_sent(&c, 1);
        }
        if (s.state == SOCKS5_SERVER_READY)
            socks5_server_reply(&s, SOCKS5_REPLY_SUCCEEDED, &bound);
        while (socks5_server_output(&s, &out) > 0) {
            assert_int_equal(socks5_client_input(&c, out, 1), 1);
            socks5_server_sent(&s, 1);
        }
    }
    assert_int_equal(c.state, SOCKS5_CLIENT_DONE);
    assert_true(endpoint_equal(&c.bound, &bound));
    assert_string_equal(s.name, "host.example");
}

static void test_conversations(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        converse(i & 1, i & 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_at_every_byte),
        cmocka_unit_test(test_byte_by_byte),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_payload_behind_is_untouched),
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_longest_everything),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_conversations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
