/*
 * The client machine against a proxy that is a table: each answer is fed whole, split at every
 * byte, byte by byte as wants() asks for it, truncated at every byte, and with payload behind it.
 */
#include "socks/client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
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

#define V4_REPLY   5, 0, 0, 1, 192, 0, 2, 9, 0x1f, 0x90
#define V6_REPLY   5, 0, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0x1f, 0x90
#define NAME_REPLY 5, 0, 0, 3, 3, 'a', '.', 'b', 0x1f, 0x90

struct scenario {
    const char *title;
    bool with_credentials;
    bool pipelined;
    struct bytes answers;
    /* the outcome once all of it was heard */
    enum socks5_client_state state;
    enum socks5_failure failure;
    uint8_t reply;
    const char *bound; /* NULL: a name */
};

static const struct scenario scenarios[] = {
    {"no auth", false, false, BYTES(5, 0, V4_REPLY), SOCKS5_CLIENT_DONE, SOCKS5_FAILURE_NONE, 0,
     "192.0.2.9"},
    {"no auth, pipelined", false, true, BYTES(5, 0, V6_REPLY), SOCKS5_CLIENT_DONE,
     SOCKS5_FAILURE_NONE, 0, "2001:db8::7"},
    {"bound is a name", false, false, BYTES(5, 0, NAME_REPLY), SOCKS5_CLIENT_DONE,
     SOCKS5_FAILURE_NONE, 0, NULL},
    {"bound is an empty name", false, true, BYTES(5, 0, 5, 0, 0, 3, 0, 0x1f, 0x90),
     SOCKS5_CLIENT_DONE, SOCKS5_FAILURE_NONE, 0, NULL},
    {"reserved byte set", false, false, BYTES(5, 0, 5, 0, 0xee, 1, 192, 0, 2, 9, 0x1f, 0x90),
     SOCKS5_CLIENT_DONE, SOCKS5_FAILURE_NONE, 0, "192.0.2.9"},
    {"credentials", true, false, BYTES(5, 2, 1, 0, V4_REPLY), SOCKS5_CLIENT_DONE,
     SOCKS5_FAILURE_NONE, 0, "192.0.2.9"},
    {"credentials, pipelined", true, true, BYTES(5, 2, 1, 0, V4_REPLY), SOCKS5_CLIENT_DONE,
     SOCKS5_FAILURE_NONE, 0, "192.0.2.9"},
    {"credentials not asked for", true, false, BYTES(5, 0, V4_REPLY), SOCKS5_CLIENT_DONE,
     SOCKS5_FAILURE_NONE, 0, "192.0.2.9"},
    {"no common method", false, false, BYTES(5, 0xff), SOCKS5_CLIENT_FAILED, SOCKS5_FAILURE_METHOD,
     0, NULL},
    {"password wanted, none known", false, true, BYTES(5, 2), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_METHOD, 0, NULL},
    {"method that was not offered", true, false, BYTES(5, 1), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_METHOD, 0, NULL},
    {"no auth, which a pipelined client did not offer", true, true, BYTES(5, 0),
     SOCKS5_CLIENT_FAILED, SOCKS5_FAILURE_METHOD, 0, NULL},
    {"credentials rejected", true, false, BYTES(5, 2, 1, 1), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_AUTH, 0, NULL},
    {"credentials rejected, pipelined", true, true, BYTES(5, 2, 1, 0xff), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_AUTH, 0, NULL},
    {"refused, cut short", false, false, BYTES(5, 0, 5, 5), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_REPLY, SOCKS5_REPLY_REFUSED, NULL},
    {"unassigned reply", false, true, BYTES(5, 0, 5, 0x99), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_REPLY, 0x99, NULL},
    {"HTTP", false, false, BYTES('H'), SOCKS5_CLIENT_FAILED, SOCKS5_FAILURE_BAD, 0, NULL},
    {"SOCKS4 answer", false, true, BYTES(0), SOCKS5_CLIENT_FAILED, SOCKS5_FAILURE_BAD, 0, NULL},
    {"auth in the wrong version", true, false, BYTES(5, 2, 5), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_BAD, 0, NULL},
    {"reply in the wrong version", false, false, BYTES(5, 0, 4), SOCKS5_CLIENT_FAILED,
     SOCKS5_FAILURE_BAD, 0, NULL},
    {"reply with an unknown address type", false, true, BYTES(5, 0, 5, 0, 0, 2),
     SOCKS5_CLIENT_FAILED, SOCKS5_FAILURE_BAD, 0, NULL},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static struct socks5_client start(const struct scenario *s)
{
    const uint8_t v4[4] = {198, 51, 100, 1};
    struct target t = {.addr = addr_from_v4(v4), .port = 443};
    struct socks5_client c;
    socks5_client_init(&c, s->with_credentials ? &credentials : NULL, SOCKS5_CONNECT, &t,
                       s->pipelined);
    return c;
}

static void send_all(struct socks5_client *c)
{
    const uint8_t *out;
    socks5_client_sent(c, socks5_client_output(c, &out));
}

/* One message at a time, as an honest proxy answers: it has heard what it answers. */
static size_t feed(struct socks5_client *c, const uint8_t *bytes, size_t len)
{
    size_t used = 0;
    while (used < len) {
        send_all(c);
        size_t wants = socks5_client_wants(c);
        size_t n = wants < len - used ? wants : len - used;
        if (n == 0)
            break;
        size_t took = socks5_client_input(c, bytes + used, n);
        used += took;
        if (took < n)
            break;
    }
    return used;
}

static bool is_over(const struct socks5_client *c)
{
    return c->state == SOCKS5_CLIENT_DONE || c->state == SOCKS5_CLIENT_FAILED;
}

static void check_outcome(const struct scenario *s, const struct socks5_client *c)
{
    char text[ADDR_TEXT_MAX];

    if (c->state != s->state || c->failure != s->failure)
        fail_msg("%s: state %d failure %d", s->title, (int)c->state, (int)c->failure);
    assert_int_equal(c->reply, s->reply);
    assert_int_equal(socks5_client_wants(c), 0);
    if (s->state != SOCKS5_CLIENT_DONE)
        return;
    assert_int_equal(c->bound.port, 0x1f90);
    assert_int_equal(c->bound_is_name, s->bound == NULL);
    if (s->bound)
        assert_string_equal(addr_format(&c->bound.addr, text), s->bound);
}

static void test_split_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        const struct bytes *a = &scenarios[i].answers;
        for (size_t cut = 0; cut <= a->len; cut++) {
            struct socks5_client c = start(&scenarios[i]);
            assert_int_equal(feed(&c, a->at, cut), cut);
            assert_int_equal(feed(&c, a->at + cut, a->len - cut), a->len - cut);
            check_outcome(&scenarios[i], &c);
        }
    }
}

static void test_byte_by_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        struct socks5_client c = start(&scenarios[i]);
        for (size_t at = 0; at < scenarios[i].answers.len; at++) {
            assert_false(is_over(&c));
            assert_true(socks5_client_wants(&c) > 0);
            assert_int_equal(feed(&c, scenarios[i].answers.at + at, 1), 1);
        }
        check_outcome(&scenarios[i], &c);
    }
}

/* Until its last byte there is no verdict, and wants() never leads past that byte. */
static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        const struct bytes *a = &scenarios[i].answers;
        for (size_t len = 0; len < a->len; len++) {
            struct socks5_client c = start(&scenarios[i]);
            assert_int_equal(feed(&c, a->at, len), len);
            assert_false(is_over(&c));
            if (scenarios[i].state == SOCKS5_CLIENT_DONE)
                assert_in_range(socks5_client_wants(&c), 1, a->len - len);
        }
    }
}

/* Exactly the reply where a flow follows; where the connection is given up, more is no harm. */
static void check_consumed(bool exactly, size_t used, size_t len)
{
    assert_in_range(used, len, exactly ? len : len + 100);
}

static void test_payload_behind_is_untouched(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENARIOS; i++) {
        struct bytes a = scenarios[i].answers;
        memset(a.at + a.len, 5, 100); /* a byte that would pass for a version */
        for (int whole = 0; whole < 2; whole++) {
            struct socks5_client c = start(&scenarios[i]);
            size_t used = 0;
            if (whole && scenarios[i].pipelined) {
                send_all(&c);
                used = socks5_client_input(&c, a.at, a.len + 100);
            } else {
                used = feed(&c, a.at, a.len + 100);
            }
            check_consumed(scenarios[i].state == SOCKS5_CLIENT_DONE, used, a.len);
            check_outcome(&scenarios[i], &c);
            assert_int_equal(socks5_client_input(&c, a.at, a.len), 0);
            check_outcome(&scenarios[i], &c);
        }
    }
}

/* A pipelined exchange takes two reads: wants() covers the answers that must still come. */
static void test_pipelined_wants(void **state)
{
    (void)state;
    struct socks5_client c = start(&scenarios[6]);
    const struct bytes *a = &scenarios[6].answers;
    send_all(&c);
    assert_int_equal(socks5_client_wants(&c), 2 + 2 + 7);
    assert_int_equal(socks5_client_input(&c, a->at, 11), 11);
    assert_int_equal(socks5_client_wants(&c), 3);
    assert_int_equal(socks5_client_input(&c, a->at + 11, 3), 3);
    check_outcome(&scenarios[6], &c);
}

/* Every value of every byte that decides: which of them carry on. */
static void test_every_value(void **state)
{
    static const struct {
        bool with_credentials, pipelined;
        struct bytes before;
        uint8_t good[4]; /* padded with the first */
        enum socks5_failure failure;
    } cases[] = {
        {false, false, {0}, {5, 5, 5, 5}, SOCKS5_FAILURE_BAD},
        {true, true, {0}, {5, 5, 5, 5}, SOCKS5_FAILURE_BAD},
        {false, false, BYTES(5), {0, 0, 0, 0}, SOCKS5_FAILURE_METHOD},
        {false, true, BYTES(5), {0, 0, 0, 0}, SOCKS5_FAILURE_METHOD},
        {true, false, BYTES(5), {0, 2, 2, 2}, SOCKS5_FAILURE_METHOD},
        {true, true, BYTES(5), {2, 2, 2, 2}, SOCKS5_FAILURE_METHOD},
        {true, false, BYTES(5, 2), {1, 1, 1, 1}, SOCKS5_FAILURE_BAD},
        {true, false, BYTES(5, 2, 1), {0, 0, 0, 0}, SOCKS5_FAILURE_AUTH},
        {false, false, BYTES(5, 0), {5, 5, 5, 5}, SOCKS5_FAILURE_BAD},
        {false, false, BYTES(5, 0, 5), {0, 0, 0, 0}, SOCKS5_FAILURE_REPLY},
        {false, false, BYTES(5, 0, 5, 0, 0), {1, 3, 4, 4}, SOCKS5_FAILURE_BAD},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (unsigned value = 0; value < 256; value++) {
            struct scenario s = {.with_credentials = cases[i].with_credentials,
                                 .pipelined = cases[i].pipelined};
            struct socks5_client c = start(&s);
            uint8_t byte = (uint8_t)value;
            assert_int_equal(feed(&c, cases[i].before.at, cases[i].before.len),
                             cases[i].before.len);
            assert_int_equal(feed(&c, &byte, 1), 1);
            bool good = memchr(cases[i].good, byte, 4) != NULL;
            assert_int_equal(c.state == SOCKS5_CLIENT_FAILED, !good);
            assert_int_equal(c.failure, good ? SOCKS5_FAILURE_NONE : cases[i].failure);
            if (cases[i].failure == SOCKS5_FAILURE_REPLY && !good)
                assert_int_equal(c.reply, byte);
        }
    }
}

static void test_method_seen(void **state)
{
    static const uint8_t refused[] = {5, 0xff}, http[] = {'H', 'T'};
    (void)state;

    struct socks5_client c = start(&scenarios[1]);
    feed(&c, refused, 1);
    assert_false(c.method_seen);
    feed(&c, refused + 1, 1);
    assert_true(c.method_seen);
    c = start(&scenarios[1]);
    feed(&c, http, 2);
    assert_false(c.method_seen);
}

/* An answer to what was not said yet is no answer. */
static void test_answers_before_questions(void **state)
{
    static const uint8_t answers[] = {5, 2, 1, 0, V4_REPLY};
    struct scenario s = {.with_credentials = true, .pipelined = true};
    const uint8_t *out;
    (void)state;

    for (int pipelined = 0; pipelined < 2; pipelined++) {
        s.pipelined = pipelined;
        struct socks5_client c = start(&s);
        assert_int_equal(socks5_client_input(&c, answers, sizeof answers), 2);
        assert_int_equal(c.failure, SOCKS5_FAILURE_BAD);
        assert_int_equal(socks5_client_output(&c, &out), 0);

        c = start(&s);
        socks5_client_sent(&c, pipelined ? 3 : 4); /* the greeting */
        assert_int_equal(socks5_client_input(&c, answers, sizeof answers), 4);
        assert_int_equal(c.failure, SOCKS5_FAILURE_BAD);
    }
}

/* What goes out, in pieces of every size. */
static void check_output(const struct scenario *s, enum socks5_command command,
                         const struct target *t, const struct bytes *answers,
                         const struct bytes *expected)
{
    for (size_t piece = 1; piece <= expected->len; piece++) {
        struct socks5_client c;
        struct bytes said = {0};
        size_t heard = 0;
        socks5_client_init(&c, s->with_credentials ? &credentials : NULL, command, t, s->pipelined);
        while (!is_over(&c)) {
            const uint8_t *out;
            size_t n;
            while ((n = socks5_client_output(&c, &out)) > 0) {
                n = n < piece ? n : piece;
                memcpy(said.at + said.len, out, n);
                said.len += n;
                socks5_client_sent(&c, n);
            }
            assert_true(heard < answers->len);
            heard += socks5_client_input(&c, answers->at + heard, 1);
        }
        assert_int_equal(c.state, SOCKS5_CLIENT_DONE);
        assert_int_equal(said.len, expected->len);
        assert_memory_equal(said.at, expected->at, expected->len);
    }
}

static void test_output(void **state)
{
    const uint8_t v4[4] = {198, 51, 100, 1};
    const uint8_t v6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2};
    const struct target to_v4 = {.addr = addr_from_v4(v4), .port = 443};
    const struct target to_v6 = {.addr = addr_from_v6(v6), .port = 65535};
    const struct target to_name = {.name = "ab.c", .port = 1};
    const struct target to_any = {.addr = addr_from_v4((const uint8_t[4]){0})};
    const struct bytes no_auth = BYTES(5, 0, V4_REPLY), auth = BYTES(5, 2, 1, 0, V4_REPLY);
    const struct scenario plain = {0}, pipelined = {.pipelined = true};
    const struct scenario named = {.with_credentials = true};
    const struct scenario named_pipelined = {.with_credentials = true, .pipelined = true};
    (void)state;

    check_output(&plain, SOCKS5_CONNECT, &to_v4, &no_auth,
                 &(struct bytes)BYTES(5, 1, 0, 5, 1, 0, 1, 198, 51, 100, 1, 1, 0xbb));
    check_output(&pipelined, SOCKS5_CONNECT, &to_name, &no_auth,
                 &(struct bytes)BYTES(5, 1, 0, 5, 1, 0, 3, 4, 'a', 'b', '.', 'c', 0, 1));
    check_output(&named, SOCKS5_UDP_ASSOCIATE, &to_any, &auth,
                 &(struct bytes)BYTES(5, 2, 0, 2, 1, 2, 'm', 'e', 2, 'p', 'w', 5, 3, 0, 1, 0, 0, 0,
                                      0, 0, 0));
    check_output(&named, SOCKS5_UDP_ASSOCIATE, &to_any, &no_auth,
                 &(struct bytes)BYTES(5, 2, 0, 2, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0));
    check_output(&named_pipelined, SOCKS5_CONNECT, &to_v6, &auth,
                 &(struct bytes)BYTES(5, 1, 2, 1, 2, 'm', 'e', 2, 'p', 'w', 5, 1, 0, 4, 0x20, 1,
                                      0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff));
}

static void test_longest_everything(void **state)
{
    char user[256], password[256], name[256];
    const struct socks5_credentials longest = {.user = user, .password = password};
    const struct target t = {.name = name, .port = 80};
    struct socks5_client c;
    const uint8_t *out;
    (void)state;

    memset(user, 'u', 255), user[255] = '\0';
    memset(password, 'p', 255), password[255] = '\0';
    memset(name, 'n', 255), name[255] = '\0';
    socks5_client_init(&c, &longest, SOCKS5_CONNECT, &t, true);
    assert_int_equal(socks5_client_output(&c, &out), 3 + 513 + 262);
    memset(name, 0, sizeof name); /* it was copied */
    assert_int_equal(out[3 + 513 + 5], 'n');

    uint8_t answers[4 + SOCKS5_REPLY_MAX] = {5, 2, 1, 0, 5, 0, 0, 3, 255};
    socks5_client_sent(&c, 3 + 513 + 262);
    assert_int_equal(feed(&c, answers, sizeof answers), sizeof answers);
    assert_int_equal(c.state, SOCKS5_CLIENT_DONE);
}

static void test_reply_names(void **state)
{
    (void)state;
    for (unsigned reply = 0; reply < 256; reply++) {
        const char *name = socks5_reply_name((uint8_t)reply);
        assert_non_null(name);
        assert_int_equal(strcmp(name, "unknown reply") == 0, reply > 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_at_every_byte),
        cmocka_unit_test(test_byte_by_byte),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_payload_behind_is_untouched),
        cmocka_unit_test(test_pipelined_wants),
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_method_seen),
        cmocka_unit_test(test_answers_before_questions),
        cmocka_unit_test(test_output),
        cmocka_unit_test(test_longest_everything),
        cmocka_unit_test(test_reply_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
