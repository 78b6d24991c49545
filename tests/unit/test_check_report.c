#include "core/check/check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/check/check_parts.h"
#include "core/command/host_port.h"

/* What `write` writes, to be freed. */
static char *written(void (*write)(FILE *out))
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    assert_non_null(out);
    write(out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static const struct check_step steps[] = {{"one", "the first", NULL}, {"two", "the other", NULL}};

static void report_two(FILE *out, bool json)
{
    struct check_report report = {.out = out, .json = json};
    static struct check_result r;
    check_report_begin(&report, "socks5://u@h:1");
    r = (struct check_result){.ms = 1.25};
    check_say(&r, CHECK_OK, "said \"%s\"\n", "a\\b\xc3");
    check_report_step(&report, &steps[0], &r);
    r = (struct check_result){.ms = 1234.4};
    check_say(&r, CHECK_FAIL, "no");
    check_remedy(&r, "do %s", "this");
    check_report_step(&report, &steps[1], &r);
    check_report_end(&report);
}

static void as_json(FILE *out)
{
    report_two(out, true);
}

static void as_text(FILE *out)
{
    report_two(out, false);
}

static void json(void **state)
{
    (void)state;
    char *text = written(as_json);
    assert_string_equal(
        text, "{\"proxy\": \"socks5://u@h:1\",\n \"steps\": [\n"
              "  {\"name\": \"one\", \"title\": \"the first\", \"verdict\": \"ok\", \"ms\": 1.250, "
              "\"detail\": \"said \\\"a\\\\b\\u00c3\\\"\\u000a\", \"remedy\": null},\n"
              "  {\"name\": \"two\", \"title\": \"the other\", \"verdict\": \"fail\", "
              "\"ms\": 1234.400, \"detail\": \"no\", \"remedy\": \"do this\"}\n"
              " ],\n \"up_works\": false, \"ok\": 1, \"warn\": 0, \"fail\": 1, \"skipped\": 0}\n");
    free(text);
}

static void human(void **state)
{
    (void)state;
    char *text = written(as_text);
    assert_non_null(strstr(text, "ok      the first               1.2 ms  said \"a\\b?\"?\n"));
    assert_non_null(strstr(text, "fail    the other              1234 ms  no\n"));
    assert_non_null(strstr(text, "  -> do this\n"));
    assert_non_null(strstr(text, "culvert up would not work: 1 ok, 0 warn, 1 fail, 0 skipped\n"));
    free(text);
}

/* Overlong texts are cut, not overrun. */
static void long_text(void **state)
{
    (void)state;
    static struct check_result r;
    static char text[2 * CHECK_TEXT_MAX];
    memset(text, 'x', sizeof(text) - 1);
    check_say(&r, CHECK_WARN, "%s", text);
    check_remedy(&r, "%s", text);
    assert_int_equal(strlen(r.detail), CHECK_TEXT_MAX - 1);
    assert_int_equal(strlen(r.remedy), CHECK_TEXT_MAX - 1);
}

static void steps_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < check_step_count; i++) {
        assert_true(strlen(check_steps[i].title) <= 20 && check_steps[i].run);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(check_steps[i].name, check_steps[j].name);
    }
}

static void dns_query(void **state)
{
    (void)state;
    uint8_t buf[CHECK_QUERY_MAX];
    static const uint8_t expected[] = {0x12, 0x34, 1, 0,   0, 1, 0, 0, 0, 0,
                                       0,    0,    1, 'a', 0, 0, 1, 0, 1};
    assert_int_equal(check_write_query(buf, "a", 0x1234), sizeof(expected));
    assert_memory_equal(buf, expected, sizeof(expected));
    /* What is no name asks for the root. */
    assert_int_equal(check_write_query(buf, "a..b", 1), 12 + 1 + 4);
    static char longest[400];
    memset(longest, 'a', sizeof(longest) - 1);
    assert_int_equal(check_write_query(buf, longest, 1), 12 + 1 + 4);

    uint8_t answer[12] = {0x12, 0x34, 0x80};
    assert_true(check_is_dns_answer(answer, sizeof(answer), 0x1234));
    assert_false(check_is_dns_answer(answer, sizeof(answer), 0x1235));
    assert_false(check_is_dns_answer(answer, sizeof(answer) - 1, 0x1234));
    answer[2] = 0;
    assert_false(check_is_dns_answer(answer, sizeof(answer), 0x1234));
}

static void dial_in_words(void **state)
{
    (void)state;
    char text[CHECK_DIAL_TEXT_MAX];
    struct dial_result d = {.status = DIAL_REPLY, .reply = 8};
    assert_non_null(strstr(check_describe_dial(&d, text), "reply 8"));
    d = (struct dial_result){.status = DIAL_NO_PROXY, .error = 111};
    assert_non_null(strstr(check_describe_dial(&d, text), "refused"));
    d = (struct dial_result){.status = DIAL_TIMEOUT, .error = 110};
    assert_string_equal(check_describe_dial(&d, text), "timed out");
}

static void hosts(void **state)
{
    (void)state;
    struct host_port h;
    assert_true(host_port_parse("a.test", 5, &h));
    assert_true(!h.is_addr && h.port == 5 && strcmp(h.name, "a.test") == 0);
    assert_true(host_port_parse("a.test:65535", 5, &h) && h.port == 65535);
    assert_true(host_port_parse("2001:db8::7", 5, &h) && h.is_addr && h.port == 5);
    assert_true(host_port_parse("[2001:db8::7]:9", 5, &h) && h.is_addr && h.port == 9);
    assert_true(host_port_parse("192.0.2.1:9", 5, &h) && h.is_addr && h.port == 9);
    static const char *const bad[] = {"",     ":5",        "a:",     "a:0", "a:65536",  "a:5x",
                                      "a b",  "[::1",      "a/b",    "u@a", "a:5:5",    "a:-1",
                                      "[]:5", "1.2.3.4:0", "[::1]:", "a\n", "a:123456", "[a]:5"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (host_port_parse(bad[i], 5, &h))
            fail_msg("%s is taken for a host", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json),      cmocka_unit_test(human),
        cmocka_unit_test(long_text), cmocka_unit_test(steps_are_named),
        cmocka_unit_test(dns_query), cmocka_unit_test(dial_in_words),
        cmocka_unit_test(hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
