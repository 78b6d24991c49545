/* PROXY_URL as a table: what is taken, what is refused, and what no error text may contain. */
#include "socks/url.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECRET "s3cr3t"

static void test_accepted(void **state)
{
    static const struct {
        const char *text;
        const char *host;
        bool is_addr;
        uint16_t port;
        const char *user; /* NULL: no credentials */
        const char *password;
        const char *formatted;
    } cases[] = {
        {"socks5://127.0.0.1", "127.0.0.1", true, 1080, NULL, NULL, "socks5://127.0.0.1:1080"},
        {"socks5://127.0.0.1:9050", "127.0.0.1", true, 9050, NULL, NULL, "socks5://127.0.0.1:9050"},
        {"socks5h://proxy.example", "proxy.example", false, 1080, NULL, NULL,
         "socks5://proxy.example:1080"},
        {"SOCKS5://Proxy.Example:1", "Proxy.Example", false, 1, NULL, NULL,
         "socks5://Proxy.Example:1"},
        {"socks5://proxy.example:65535/", "proxy.example", false, 65535, NULL, NULL,
         "socks5://proxy.example:65535"},
        {"socks5://proxy.example./", "proxy.example.", false, 1080, NULL, NULL,
         "socks5://proxy.example.:1080"},
        {"socks5://localhost", "localhost", false, 1080, NULL, NULL, "socks5://localhost:1080"},
        {"socks5://under_score.example", "under_score.example", false, 1080, NULL, NULL,
         "socks5://under_score.example:1080"},
        {"socks5://[2001:db8::1]", "2001:db8::1", true, 1080, NULL, NULL,
         "socks5://[2001:db8::1]:1080"},
        {"socks5://[::1]:1081", "::1", true, 1081, NULL, NULL, "socks5://[::1]:1081"},
        {"socks5://u:p@[::1]:1081/", "::1", true, 1081, "u", "p", "socks5://u@[::1]:1081"},
        {"socks5://user:" SECRET "@h:7", "h", false, 7, "user", SECRET, "socks5://user@h:7"},
        {"socks5://user@h", "h", false, 1080, "user", "", "socks5://user@h:1080"},
        {"socks5://user:@h", "h", false, 1080, "user", "", "socks5://user@h:1080"},
        {"socks5://u:p:q@h", "h", false, 1080, "u", "p:q", "socks5://u@h:1080"},
        {"socks5://u:p@q@h", "h", false, 1080, "u", "p@q", "socks5://u@h:1080"},
        {"socks5://a%40b%3Ac:%2f%3f%23%25%20%C3%a9@h", "h", false, 1080, "a@b:c", "/?#% \xc3\xa9",
         "socks5://a%40b%3Ac@h:1080"},
        {"socks5://%1b[31m:p@h", "h", false, 1080, "\x1b[31m", "p", "socks5://%1B%5B31m@h:1080"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct proxy_url url;
        char text[1200];
        const char *error = proxy_url_parse(cases[i].text, &url);
        if (error)
            fail_msg("%s: %s", cases[i].text, error);
        assert_int_equal(url.scheme, PROXY_SCHEME_SOCKS5);
        assert_string_equal(url.host, cases[i].host);
        assert_int_equal(url.host_is_addr, cases[i].is_addr);
        assert_int_equal(url.port, cases[i].port);
        assert_int_equal(url.has_credentials, cases[i].user != NULL);
        assert_string_equal(url.user, cases[i].user ? cases[i].user : "");
        assert_string_equal(url.password, cases[i].password ? cases[i].password : "");
        assert_string_equal(proxy_url_format(&url, text, sizeof text), cases[i].formatted);
    }
}

static void test_address_is_parsed(void **state)
{
    struct proxy_url url;
    struct addr expected;
    (void)state;

    assert_null(proxy_url_parse("socks5://[2001:db8::7]:1", &url));
    assert_true(addr_parse("2001:db8::7", &expected));
    assert_true(addr_equal(&url.addr, &expected));
    assert_null(proxy_url_parse("socks5://192.0.2.9", &url));
    assert_true(addr_parse("192.0.2.9", &expected));
    assert_true(addr_equal(&url.addr, &expected));
}

static void test_direct(void **state)
{
    static const char *const good[] = {"direct://", "direct:///", "DIRECT://"};
    struct proxy_url url;
    char text[64];
    (void)state;

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_null(proxy_url_parse(good[i], &url));
        assert_int_equal(url.scheme, PROXY_SCHEME_DIRECT);
        assert_string_equal(url.host, "");
        assert_false(url.has_credentials);
        assert_string_equal(proxy_url_format(&url, text, sizeof text), "direct://");
    }
}

/* Each has SECRET where a password may stand; no error text may show it, nor `out` keep it. */
static void test_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "socks5",
        "socks5:",
        "socks5:/",
        "socks5:/h",
        "127.0.0.1:1080",
        "http://127.0.0.1:1080",
        "socks4://127.0.0.1:1080",
        "socks5s://127.0.0.1",
        " socks5://127.0.0.1",
        "u:" SECRET "@127.0.0.1:1080",
        "socks5://",
        "socks5:///",
        "socks5://:1080",
        "socks5://u:" SECRET "@",
        "socks5://u:" SECRET "@:1080",
        /* ports */
        "socks5://h:",
        "socks5://h:/",
        "socks5://h:0",
        "socks5://h:00000",
        "socks5://h:65536",
        "socks5://h:4294967297",
        "socks5://h:99999999999999999999999999",
        "socks5://h:-1",
        "socks5://h:+1",
        "socks5://h: 1",
        "socks5://h:1 ",
        "socks5://h:0x50",
        "socks5://h:http",
        /* a password that was not encoded must not come back as a bad port */
        "socks5://u:" SECRET "/x@h",
        "socks5://u:" SECRET "?x@h",
        "socks5://u:" SECRET "#x@h",
        "socks5://u:" SECRET,
        "socks5://u:1" SECRET,
        /* what follows the port */
        "socks5://h:1080//",
        "socks5://h:1080/path",
        "socks5://h:1080?query",
        "socks5://h#fragment",
        /* hosts */
        "socks5://h h",
        "socks5://h%41",
        "socks5://-\x01",
        "socks5://h\xc3\xa9",
        "socks5://a..b",
        "socks5://.a",
        "socks5://.",
        "socks5://a..",
        "socks5://1.2.3",
        "socks5://1.2.3.4.5",
        "socks5://256.1.1.1",
        "socks5://1.2.3.04x.5",
        "socks5://2001:db8::1",
        "socks5://2001:db8::1:1080",
        "socks5://::1",
        "socks5://a:b:1080",
        "socks5://[::1",
        "socks5://::1]",
        "socks5://[]",
        "socks5://[]:1080",
        "socks5://[::1]1080",
        "socks5://[::1]x:1080",
        "socks5://[::1]:",
        "socks5://[::1]:0",
        "socks5://[::g]",
        "socks5://[1.2.3.4]",
        "socks5://[fe80::1%eth0]",
        "socks5://[fe80::1%25eth0]:1080",
        "socks5://[h]",
        "socks5://[[::1]]",
        /* credentials */
        "socks5://@h",
        "socks5://:@h",
        "socks5://:" SECRET "@h",
        "socks5://u%00:" SECRET "@h",
        "socks5://u:" SECRET "%00@h",
        "socks5://u:%00" SECRET "@h",
        "socks5://u:" SECRET "%@h",
        "socks5://u:" SECRET "%4@h",
        "socks5://u:" SECRET "%4g@h",
        "socks5://u:" SECRET "%g4@h",
        "socks5://u%:" SECRET "@h",
        "socks5://u%4:" SECRET "@h",
        "socks5://u:" SECRET "@h:bad",
        "socks5://u:" SECRET "@h:1/" SECRET,
        /* direct:// */
        "direct:",
        "direct://h",
        "direct://u:" SECRET "@",
        "direct://:1080",
        "direct:////",
    };
    static const struct proxy_url wiped;
    (void)state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct proxy_url url;
        memset(&url, 0xa5, sizeof url);
        const char *error = proxy_url_parse(bad[i], &url);
        if (!error)
            fail_msg("accepted: %s", bad[i]);
        assert_null(strstr(error, SECRET));
        assert_null(strchr(error, '\n'));
        assert_memory_equal(&url, &wiped, sizeof url);
    }
}

/* "socks5://" + user of `user_len` + ":" + password of `password_len` + "@h"; the caller frees. */
static char *long_url(size_t user_len, size_t password_len, bool encoded)
{
    char *text = malloc(64 + 3 * (user_len + password_len));
    assert_non_null(text);
    char *at = text + sprintf(text, "socks5://");
    for (size_t i = 0; i < user_len; i++)
        at += sprintf(at, encoded ? "%%75" : "u");
    *at++ = ':';
    for (size_t i = 0; i < password_len; i++)
        at += sprintf(at, encoded ? "%%70" : "p");
    sprintf(at, "@h");
    return text;
}

static void test_credential_limits(void **state)
{
    static const struct {
        size_t user_len, password_len;
        bool good;
    } cases[] = {
        {1, 0, true},    {1, 255, true},    {255, 1, true},     {255, 255, true},
        {256, 0, false}, {255, 256, false}, {1000, 255, false}, {1, 100000, false},
    };
    (void)state;

    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        size_t n = i / 2;
        char *text = long_url(cases[n].user_len, cases[n].password_len, i % 2);
        struct proxy_url url;
        const char *error = proxy_url_parse(text, &url);
        assert_int_equal(!error, cases[n].good);
        assert_int_equal(strlen(url.user), cases[n].good ? cases[n].user_len : 0);
        assert_int_equal(strlen(url.password), cases[n].good ? cases[n].password_len : 0);
        free(text);
    }
}

/* A host name of `labels` labels of `len` letters. */
static const char *parse_labels(size_t labels, size_t len, size_t last, struct proxy_url *url)
{
    static char text[2000];
    char *at = text + sprintf(text, "socks5://");
    for (size_t i = 0; i < labels; i++) {
        memset(at, 'a', len);
        at += len;
        *at++ = '.';
    }
    memset(at, 'b', last);
    at[last] = '\0';
    return proxy_url_parse(text, url);
}

static void test_host_limits(void **state)
{
    struct proxy_url url;
    (void)state;

    assert_null(parse_labels(0, 0, 63, &url));
    assert_non_null(parse_labels(0, 0, 64, &url));
    assert_null(parse_labels(3, 63, 61, &url)); /* 253 bytes */
    assert_int_equal(strlen(url.host), 253);
    assert_null(parse_labels(4, 62, 0, &url)); /* with its trailing dot */
    assert_non_null(parse_labels(3, 63, 62, &url));
    assert_non_null(parse_labels(4, 63, 0, &url)); /* 255 with a trailing dot of 256 */
    assert_non_null(parse_labels(20, 63, 10, &url));
}

static void test_format_is_cut(void **state)
{
    struct proxy_url url;
    char text[12];
    (void)state;

    assert_null(proxy_url_parse("socks5://user:p@host:1080", &url));
    assert_string_equal(proxy_url_format(&url, text, sizeof text), "socks5://us");
}

static void test_wipe(void **state)
{
    struct proxy_url url;
    char text[64];
    (void)state;

    assert_null(proxy_url_parse("socks5://user:" SECRET "@h", &url));
    proxy_url_wipe(&url);
    assert_null(memmem(&url, sizeof url, SECRET, strlen(SECRET)));
    assert_null(memmem(&url, sizeof url, "user", 4));
    assert_string_equal(proxy_url_format(&url, text, sizeof text), "socks5://h:1080");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_address_is_parsed),
        cmocka_unit_test(test_direct),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_credential_limits),
        cmocka_unit_test(test_host_limits),
        cmocka_unit_test(test_format_is_cut),
        cmocka_unit_test(test_wipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
