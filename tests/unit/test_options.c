#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/command/options.h"
#include "core/command/options_table.h"

enum { WORDS_MAX = 48 };

/* A command line that was split at spaces, as writable as a real argv is. */
struct line {
    char text[2048];
    char *argv[WORDS_MAX + 1];
    int argc;
    struct options options;
    char error[OPTIONS_ERROR_MAX];
    enum options_verdict verdict;
};

static void parse_line(struct line *l, const char *text)
{
    memset(l, 0, sizeof(*l));
    assert_true(strlen(text) < sizeof(l->text));
    strcpy(l->text, text);
    char *rest = NULL;
    for (char *w = strtok_r(l->text, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
        assert_true(l->argc < WORDS_MAX);
        l->argv[l->argc++] = w;
    }
    l->verdict = options_parse(l->argc, l->argv, &l->options, l->error);
}

static void parse_good(struct line *l, const char *text)
{
    parse_line(l, text);
    if (l->verdict != OPTIONS_RUN)
        fail_msg("\"%s\" was refused: %s", text, l->error);
}

/* --- what is taken ---------------------------------------------------------------------------- */

static void test_defaults_of_tun(void **state)
{
    (void)state;
    static struct line l;
    char text[CIDR_TEXT_MAX];
    parse_good(&l, "culvert tun socks5://192.0.2.1:1081");
    const struct options *o = &l.options;
    assert_int_equal(o->command, COMMAND_TUN);
    assert_int_equal(o->given, 0);
    assert_int_equal(o->proxy.port, 1081);
    assert_string_equal(o->tun_name, "culvert0");
    assert_int_equal(o->tun_fd, -1);
    assert_int_equal(o->mtu, 1500);
    assert_true(o->offload && o->pipeline && !o->outbound.allow_loopback);
    assert_int_equal(o->addresses.count, 2);
    assert_string_equal(cidr_format(&o->addresses.items[0], text), "198.18.0.1/15");
    assert_string_equal(cidr_format(&o->addresses.items[1], text), "fdc0:4c56::1/64");
    assert_int_equal(o->fake_ranges.count, 2);
    assert_memory_equal(&o->fake_ranges, &o->addresses, sizeof(o->addresses));
    assert_int_equal(o->dns, DNS_FAKE);
    assert_string_equal(endpoint_format(&o->dns_server, (char[ENDPOINT_TEXT_MAX]){0}),
                        "1.1.1.1:53");
    assert_int_equal(o->limits.udp_mode, UDP_ASSOCIATE);
    assert_int_equal(o->icmp, ICMP_DROP);
    assert_int_equal(o->limits.max_flows, 65536);
    assert_int_equal(o->limits.tcp_idle_timeout_s, 7440);
    assert_int_equal(o->limits.udp_idle_timeout_s, 60);
    assert_int_equal(o->outbound.connect_timeout_ms, 10000);
    assert_int_equal(o->outbound.mark, 0);
    assert_string_equal(o->outbound.bind_interface, "");
    assert_int_equal(o->log_level, LOG_LEVEL_INFO);
    assert_null(o->log_file);
    assert_false(o->low_latency);
}

static void test_every_option_of_tun(void **state)
{
    (void)state;
    static struct line l;
    char text[ENDPOINT_TEXT_MAX];
    parse_good(&l,
               "culvert tun --tun t1 --tun-fd=7 --mtu 65535 --address 10.0.0.1/24 "
               "--address=fd00::1/64 --address 10.1.0.1/32 --dns tcp --dns-server [2001:db8::5]:54 "
               "--fake-range 10.9.0.0/16 --udp block --icmp reply --mark 0xFf "
               "--bind-interface eth0.1 --connect-timeout 3 --tcp-idle-timeout 100 "
               "--udp-idle-timeout=30 --max-flows 100 --pipeline off --no-offload "
               "--allow-loopback --low-latency --log-level trace --log-file /tmp/a:b@c direct://");
    const struct options *o = &l.options;
    assert_string_equal(o->tun_name, "t1");
    assert_int_equal(o->tun_fd, 7);
    assert_int_equal(o->mtu, 65535);
    assert_int_equal(o->addresses.count, 3);
    assert_int_equal(o->addresses.items[2].prefix, 32);
    assert_int_equal(o->fake_ranges.count, 1);
    assert_int_equal(o->dns, DNS_TCP);
    assert_string_equal(endpoint_format(&o->dns_server, text), "[2001:db8::5]:54");
    assert_int_equal(o->limits.udp_mode, UDP_BLOCK);
    assert_int_equal(o->icmp, ICMP_REPLY);
    assert_int_equal(o->outbound.mark, 255);
    assert_string_equal(o->outbound.bind_interface, "eth0.1");
    assert_int_equal(o->outbound.connect_timeout_ms, 3000);
    assert_int_equal(o->limits.tcp_idle_timeout_s, 100);
    assert_int_equal(o->limits.udp_idle_timeout_s, 30);
    assert_int_equal(o->limits.max_flows, 100);
    assert_false(o->pipeline || o->offload);
    assert_true(o->outbound.allow_loopback && o->low_latency);
    assert_int_equal(o->log_level, LOG_LEVEL_TRACE);
    assert_string_equal(o->log_file, "/tmp/a:b@c");
    assert_int_equal(o->proxy.scheme, PROXY_SCHEME_DIRECT);
    assert_true(options_given(o, "mtu") && options_given(o, "pipeline"));
    assert_false(options_given(o, "auth"));
}

static void test_switches(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool on;
    } cases[] = {
        {"culvert tun --pipeline direct://", true},
        {"culvert tun --pipeline on direct://", true},
        {"culvert tun --pipeline=off direct://", false},
        {"culvert tun --pipeline off direct://", false},
        {"culvert tun --no-pipeline direct://", false},
        {"culvert tun --no-pipeline --pipeline direct://", true},
        {"culvert tun --pipeline --no-pipeline direct://", false},
        {"culvert tun direct:// --pipeline", true},
        {"culvert tun --pipeline --mtu 1500 direct://", true},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        static struct line l;
        parse_good(&l, cases[i].text);
        assert_int_equal(l.options.pipeline, cases[i].on);
        assert_int_equal(l.options.proxy.scheme, PROXY_SCHEME_DIRECT);
    }
}

static void test_serve(void **state)
{
    (void)state;
    static struct line l;
    char text[ENDPOINT_TEXT_MAX];
    parse_good(&l, "culvert serve");
    assert_int_equal(l.options.command, COMMAND_SERVE);
    assert_int_equal(l.options.listens.count, 1);
    assert_string_equal(endpoint_format(&l.options.listens.items[0], text), "127.0.0.1:1080");
    assert_false(l.options.auth.present);

    parse_good(&l, "culvert serve --listen 0.0.0.0:0 --listen [::1] --auth alice:a:b --mark 7");
    assert_int_equal(l.options.listens.count, 2);
    assert_int_equal(l.options.listens.items[0].port, 0);
    assert_string_equal(endpoint_format(&l.options.listens.items[1], text), "[::1]:1080");
    assert_true(l.options.auth.present);
    assert_string_equal(l.options.auth.user, "alice");
    assert_string_equal(l.options.auth.password, "a:b");
    assert_string_equal(l.argv[7], "alice:***");
}

static void test_up(void **state)
{
    (void)state;
    static struct line l;
    parse_good(&l, "culvert socks5://user:secret@192.0.2.1");
    assert_int_equal(l.options.command, COMMAND_UP);
    assert_string_equal(l.options.proxy.password, "secret");
    assert_null(strstr(l.argv[1], "secret"));
    assert_true(l.options.up.lan && l.options.up.dns_setup && !l.options.up.kill_switch);

    parse_good(
        &l,
        "culvert up --no-lan --no-dns-setup --kill-switch --low-latency "
        "--bypass 192.0.2.0/24 --bypass 2001:db8::/32 --exclude-uid 1000 --exclude-uid 2000-2999 "
        "--include-uid root direct://");
    const struct up_options *up = &l.options.up;
    assert_true(!up->lan && !up->dns_setup && up->kill_switch && l.options.low_latency);
    assert_int_equal(up->bypass.count, 2);
    assert_int_equal(up->exclude_uids.count, 2);
    assert_int_equal(up->exclude_uids.items[0].last, 1000);
    assert_int_equal(up->exclude_uids.items[1].first, 2000);
    assert_int_equal(up->exclude_uids.items[1].last, 2999);
    assert_int_equal(up->include_uids.items[0].first, 0);
    assert_int_equal(up->include_uids.items[0].last, 0);

    parse_good(&l, "culvert down");
    assert_int_equal(l.options.command, COMMAND_DOWN);
}

static void test_run(void **state)
{
    (void)state;
    static struct line l;
    parse_good(&l, "culvert run --udp block socks5://alice:secret@192.0.2.1 --mtu 1400 -- curl -s "
                   "--mtu socks5://bob:hunter2@192.0.2.9 -- x");
    const struct run_options *run = &l.options.run;
    assert_int_equal(l.options.command, COMMAND_RUN);
    assert_int_equal(l.options.mtu, 1400);
    assert_string_equal(l.options.proxy.password, "secret");
    assert_null(strstr(l.argv[4], "secret"));
    /* The command's own words, whatever they look like. */
    assert_string_equal(run->argv[0], "curl");
    assert_string_equal(run->argv[2], "--mtu");
    assert_string_equal(run->argv[3], "socks5://bob:hunter2@192.0.2.9");
    assert_string_equal(run->argv[4], "--");
    assert_string_equal(run->argv[5], "x");
    assert_null(run->argv[6]);
    assert_false(l.options.low_latency);
    parse_good(&l, "culvert run --netns blue --low-latency direct://");
    assert_true(l.options.low_latency);
    assert_string_equal(run->netns, "blue");
    assert_null(run->argv);
    parse_good(&l, "culvert run direct:// --pid 4711 --");
    assert_int_equal(run->pid, 4711);

    /* The environment is the command's: kept, but not in this process' environment. */
    assert_int_equal(setenv("all_proxy", "socks5://eve:hunter2@192.0.2.10", 1), 0);
    parse_good(&l, "culvert run -- true");
    assert_string_equal(l.options.proxy.user, "eve");
    assert_null(getenv("all_proxy"));
    assert_null(run->environment[0]);
    assert_string_equal(run->environment[1], "socks5://eve:hunter2@192.0.2.10");
    options_wipe(&l.options);
    assert_null(run->environment[1]);
}

static void test_help_and_version(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum options_verdict verdict;
        enum command command;
    } cases[] = {
        {"culvert --help", OPTIONS_HELP, COMMAND_NONE},
        {"culvert -h", OPTIONS_HELP, COMMAND_NONE},
        {"culvert --version", OPTIONS_VERSION, COMMAND_NONE},
        {"culvert tun --help", OPTIONS_HELP, COMMAND_TUN},
        {"culvert tun --mtu 1400 --help", OPTIONS_HELP, COMMAND_TUN},
        {"culvert serve -h", OPTIONS_HELP, COMMAND_SERVE},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        static struct line l;
        parse_line(&l, cases[i].text);
        assert_int_equal(l.verdict, cases[i].verdict);
        assert_int_equal(l.options.command, cases[i].command);
    }
    assert_true(strlen(options_version()) > 0);
}

static void test_check(void **state)
{
    (void)state;
    static struct line l;
    char text[ENDPOINT_TEXT_MAX];
    parse_good(&l, "culvert check socks5://a.test");
    const struct check_options *c = &l.options.check;
    assert_int_equal(l.options.command, COMMAND_CHECK);
    assert_false(c->json);
    assert_string_equal(c->host.name, "example.com");
    assert_int_equal(c->host.port, 80);
    assert_string_equal(endpoint_format(&c->v4, text), "1.1.1.1:80");
    assert_string_equal(endpoint_format(&c->v6, text), "[2606:4700:4700::1111]:80");
    assert_int_equal(c->stun.count, 2);
    assert_string_equal(c->stun.items[0].name, "stun.l.google.com");
    assert_int_equal(c->stun.items[0].port, 19302);
    parse_good(&l, "culvert check --json --stun 192.0.2.1 --stun [2001:db8::1]:5 --stun s.test "
                   "--target-host w.test --target-v4 192.0.2.7 --exclude-uid 7 socks5://a.test");
    assert_true(c->json);
    assert_int_equal(c->stun.count, 3);
    assert_true(c->stun.items[0].is_addr && c->stun.items[1].is_addr && !c->stun.items[2].is_addr);
    assert_int_equal(c->stun.items[0].port, 3478);
    assert_int_equal(c->stun.items[1].port, 5);
    assert_string_equal(c->stun.items[1].name, "2001:db8::1");
    assert_string_equal(c->stun.items[2].name, "s.test");
    assert_string_equal(endpoint_format(&c->v4, text), "192.0.2.7:80");
    assert_int_equal(l.options.up.exclude_uids.items[0].first, 7);
}

/* Every option that has a default can have it said to it: the table is consistent. */
static void test_table_is_consistent(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option_spec *spec = &option_table[i];
        assert_true(spec->commands != 0 && strlen(spec->help) > 0);
        assert_true((spec->kind == OPTION_FLAG) == (spec->argument == NULL));
        assert_true((spec->kind == OPTION_CHOICE) == (spec->choices != NULL));
        if (!spec->fallback || strchr(spec->fallback, ' '))
            continue;
        static const struct {
            enum command command;
            const char *name, *url;
        } commands[] = {
            {COMMAND_TUN, "tun", " direct://"},
            {COMMAND_UP, "up", " direct://"},
            {COMMAND_SERVE, "serve", ""},
            {COMMAND_CHECK, "check", " direct://"},
        };
        size_t c = 0;
        while (!(spec->commands & (1u << commands[c].command)))
            assert_true(++c < sizeof(commands) / sizeof(commands[0]));
        char text[256];
        (void)snprintf(text, sizeof(text), "culvert %s --%s=%s%s", commands[c].name, spec->name,
                       spec->fallback, commands[c].url);
        static struct line l;
        parse_good(&l, text);
        assert_true(options_given(&l.options, spec->name));
    }
}

/* --- what is refused -------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *says; /* a part of the error */
    } cases[] = {
        {"culvert", "no command"},
        {"culvert check", "check wants a PROXY_URL"},
        {"culvert check --target-v4 [::1]:80 direct://", "--target-v4: must be an IPv4 address"},
        {"culvert check --target-v6 192.0.2.1 direct://", "--target-v6: must be an IPv6 address"},
        {"culvert check --target-v4 192.0.2.1:0 direct://", "--target-v4"},
        {"culvert check --target-host http://a.test/ direct://", "--target-host http://a.test/"},
        {"culvert check --stun a.test:0 direct://", "such as stun."},
        {"culvert check --json=yes direct://", "--json takes no value"},
        {"culvert check --kill-switch direct://", "check has no option --kill-switch"},
        {"culvert frobnicate", "unknown command frobnicate"},
        {"culvert up", "up wants a PROXY_URL"},
        {"culvert up --bypass 10.0.0.0/33 direct://", "--bypass"},
        {"culvert up --exclude-uid 2000-1000 direct://", "--exclude-uid 2000-1000"},
        {"culvert up --exclude-uid 4294967295 direct://", "--exclude-uid"},
        {"culvert up --exclude-uid nobody-such direct://", "--exclude-uid nobody-such"},
        {"culvert up --tun-fd 3 direct://", "up has no option --tun-fd"},
        {"culvert tun --kill-switch direct://", "tun has no option --kill-switch"},
        {"culvert serve --low-latency", "serve has no option --low-latency"},
        {"culvert run direct://", "wants a command"},
        {"culvert run direct:// --", "wants a command"},
        {"culvert run direct:// true", "run wants -- between"},
        {"culvert run -- true", "run wants a PROXY_URL"},
        {"culvert run --netns a direct:// -- true", "one of a command"},
        {"culvert run --netns a --pid 1 direct://", "one of a command"},
        {"culvert run --pid 0 direct://", "--pid 0"},
        {"culvert run --tun-fd 3 direct:// -- true", "run has no option --tun-fd"},
        {"culvert down direct://", "down takes options only"},
        {"culvert --mtu 1500 tun direct://", "a command must come before --mtu"},
        {"culvert tun", "tun wants a PROXY_URL"},
        {"culvert tun direct:// direct://", "one too many"},
        {"culvert tun http://192.0.2.1", "PROXY_URL"},
        {"culvert tun socks5://192.0.2.1:0", "PROXY_URL"},
        {"culvert tun socks5://", "PROXY_URL"},
        {"culvert tun --frob direct://", "tun has no option --frob"},
        {"culvert tun --mt 1500 direct://", "tun has no option --mt"},
        {"culvert tun --no-mtu direct://", "tun has no option --no-mtu"},
        {"culvert tun -m direct://", "tun has no option"},
        {"culvert tun --listen 127.0.0.1:1 direct://", "tun has no option --listen"},
        {"culvert serve --tun x", "serve has no option --tun"},
        {"culvert serve direct://", "serve takes options only"},
        {"culvert tun --config x direct://", "tun has no option --config"},
        {"culvert tun direct:// --mtu", "--mtu wants a value"},
        {"culvert tun --mtu 1279 direct://", "--mtu 1279: must be a number from 1280 to 65535"},
        {"culvert tun --mtu 65536 direct://", "--mtu 65536"},
        {"culvert tun --mtu 1500x direct://", "--mtu 1500x"},
        {"culvert tun --mtu -1500 direct://", "--mtu -1500"},
        {"culvert tun --mtu= direct://", "--mtu "},
        {"culvert tun --mark 0x direct://", "--mark 0x"},
        {"culvert tun --mark 0x0x1 direct://", "--mark 0x0x1"},
        {"culvert tun --mark 4294967296 direct://", "--mark"},
        {"culvert tun --mark 99999999999999999999999 direct://", "--mark"},
        {"culvert tun --connect-timeout 0 direct://", "--connect-timeout 0"},
        {"culvert tun --tun-fd -1 direct://", "--tun-fd -1"},
        {"culvert tun --tun 0123456789abcdef direct://", "1 to 15 characters"},
        {"culvert tun --tun= direct://", "1 to 15 characters"},
        {"culvert tun --tun a/b direct://", "1 to 15 characters"},
        {"culvert tun --tun tun%d direct://", "1 to 15 characters"},
        {"culvert tun --tun .. direct://", "1 to 15 characters"},
        {"culvert tun --address 10.0.0.1/33 direct://", "--address 10.0.0.1/33"},
        {"culvert tun --address 10.0.0.1 direct://", "with a prefix length"},
        {"culvert tun --address example.com direct://", "--address example.com"},
        {"culvert tun --dns-server example.com direct://", "--dns-server example.com"},
        {"culvert tun --dns-server 1.1.1.1:70000 direct://", "--dns-server"},
        {"culvert tun --dns udp direct://", "--dns udp: must be one of fake|tcp|relay"},
        {"culvert tun --udp on direct://", "associate|block"},
        {"culvert tun --icmp x direct://", "drop|reply"},
        {"culvert tun --pipeline=maybe direct://", "must be on or off"},
        {"culvert tun --pipeline sometimes direct://", "--pipeline sometimes: must be on or off"},
        {"culvert tun --no-pipeline=on direct://", "--no-pipeline takes no value"},
        {"culvert tun --allow-loopback=yes direct://", "--allow-loopback takes no value"},
        {"culvert tun --no-low-latency direct://", "tun has no option --no-low-latency"},
        {"culvert tun --log-level loud direct://", "--log-level loud"},
        {"culvert tun --log-file= direct://", "file name is empty"},
        {"culvert serve --listen 1080", "--listen 1080"},
        {"culvert serve --auth", "--auth wants a value"},
        {"culvert serve --auth alice", "must be USER:PASSWORD"},
        {"culvert serve --auth :x", "1 to 255 bytes"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        static struct line l;
        parse_line(&l, cases[i].text);
        if (l.verdict != OPTIONS_BAD)
            fail_msg("\"%s\" was taken", cases[i].text);
        if (!strstr(l.error, cases[i].says))
            fail_msg("\"%s\": \"%s\" lacks \"%s\"", cases[i].text, l.error, cases[i].says);
        assert_null(strchr(l.error, '\n'));
    }
}

static void test_lists_are_bounded(void **state)
{
    (void)state;
    static struct line l;
    char text[1024] = "culvert serve";
    for (int i = 0; i <= OPTIONS_LIST_MAX; i++)
        strcat(text, " --listen=[::1]:1");
    parse_line(&l, text);
    assert_int_equal(l.verdict, OPTIONS_BAD);
    assert_non_null(strstr(l.error, "at most 16"));
}

static void test_long_credentials(void **state)
{
    (void)state;
    static struct line l;
    char text[1024];
    (void)snprintf(text, sizeof(text), "culvert serve --auth=u:%0255d", 1);
    parse_good(&l, text);
    assert_int_equal(strlen(l.options.auth.password), 255);
    (void)snprintf(text, sizeof(text), "culvert serve --auth=u:%0256d", 1);
    parse_line(&l, text);
    assert_int_equal(l.verdict, OPTIONS_BAD);
    (void)snprintf(text, sizeof(text), "culvert serve --auth=%0256d:p", 1);
    parse_line(&l, text);
    assert_int_equal(l.verdict, OPTIONS_BAD);
}

/* --- secrets ---------------------------------------------------------------------------------- */

static void test_passwords_are_overwritten(void **state)
{
    (void)state;
    /* Each line holds "hunter2"; neither argv nor the error may, afterwards. */
    static const char *const lines[] = {
        "culvert tun socks5://alice:hunter2@192.0.2.1:1080",
        "culvert tun socks5://alice:hunter2@@192.0.2.1",
        "culvert tun socks5://alice:x:hunter2@proxy.example",
        "culvert tun socks5:/alice:hunter2@192.0.2.1",
        "culvert tun http://alice:hunter2@192.0.2.1",
        "culvert tun alice:hunter2@192.0.2.1",
        "culvert socks5://alice:hunter2@192.0.2.1",
        "culvert tun --mtu socks5://alice:hunter2@192.0.2.1",
        "culvert tun --tun=socks5://alice:hunter2@192.0.2.1",
        "culvert tun --proxy=socks5://alice:hunter2@192.0.2.1",
        "culvert tun direct:// socks5://alice:hunter2@192.0.2.1",
        "culvert --nonsense tun socks5://alice:hunter2@192.0.2.1",
        "culvert tun --help socks5://alice:hunter2@192.0.2.1",
        "culvert serve --auth alice:hunter2",
        "culvert serve --auth=alice:hunter2",
        "culvert serve --auth hunter2",
        "culvert serve --auth alice:hunter2 --listen 1080",
        "culvert tun --auth=alice:hunter2 direct://",
        "culvert serve alice:hunter2@",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        static struct line l;
        parse_line(&l, lines[i]);
        assert_null(strstr(l.error, "hunter2"));
        for (int a = 0; a < l.argc; a++) {
            if (strstr(l.argv[a], "hunter2"))
                fail_msg("\"%s\" still shows its password", lines[i]);
        }
    }
}

static void test_the_password_is_kept_for_the_proxy(void **state)
{
    (void)state;
    static struct line l;
    parse_good(&l, "culvert tun --mtu 1400 socks5://al:p%40ss@proxy.example:99");
    assert_string_equal(l.argv[4], "socks5://al:******@proxy.example:99");
    assert_true(l.options.proxy.has_credentials);
    assert_string_equal(l.options.proxy.user, "al");
    assert_string_equal(l.options.proxy.password, "p@ss");
    options_wipe(&l.options);
    assert_string_equal(l.options.proxy.password, "");
}

static void test_environment(void **state)
{
    (void)state;
    static struct line l;
    assert_int_equal(setenv("ALL_PROXY", "socks5://bob:hunter2@192.0.2.9", 1), 0);
    assert_int_equal(setenv("all_proxy", "socks5://eve:hunter2@192.0.2.10", 1), 0);
    const char *value = getenv("ALL_PROXY");
    parse_good(&l, "culvert tun");
    assert_string_equal(l.options.proxy.user, "bob");
    assert_string_equal(l.options.proxy.password, "hunter2");
    assert_null(getenv("ALL_PROXY"));
    assert_null(getenv("all_proxy"));
    assert_string_equal(value, "");

    assert_int_equal(setenv("all_proxy", "socks5h://192.0.2.10", 1), 0);
    parse_good(&l, "culvert tun");
    assert_string_equal(l.options.proxy.host, "192.0.2.10");

    /* A URL on the command line goes first; the environment is wiped all the same. */
    assert_int_equal(setenv("ALL_PROXY", "socks5://bob:hunter2@192.0.2.9", 1), 0);
    parse_good(&l, "culvert tun socks5://192.0.2.1");
    assert_string_equal(l.options.proxy.host, "192.0.2.1");
    assert_null(getenv("ALL_PROXY"));

    assert_int_equal(setenv("ALL_PROXY", "http://bob:hunter2@192.0.2.9", 1), 0);
    parse_line(&l, "culvert tun");
    assert_int_equal(l.verdict, OPTIONS_BAD);
    assert_non_null(strstr(l.error, "ALL_PROXY"));
    assert_null(strstr(l.error, "hunter2"));
}

static void test_double_dash_ends_options(void **state)
{
    (void)state;
    static struct line l;
    parse_good(&l, "culvert tun --mtu 1400 -- direct://");
    assert_int_equal(l.options.mtu, 1400);
    parse_line(&l, "culvert tun -- --mtu");
    assert_int_equal(l.verdict, OPTIONS_BAD);
    assert_non_null(strstr(l.error, "PROXY_URL"));
}

int main(void)
{
    (void)unsetenv("ALL_PROXY");
    (void)unsetenv("all_proxy");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_of_tun),
        cmocka_unit_test(test_every_option_of_tun),
        cmocka_unit_test(test_switches),
        cmocka_unit_test(test_serve),
        cmocka_unit_test(test_up),
        cmocka_unit_test(test_run),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_help_and_version),
        cmocka_unit_test(test_table_is_consistent),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_lists_are_bounded),
        cmocka_unit_test(test_long_credentials),
        cmocka_unit_test(test_passwords_are_overwritten),
        cmocka_unit_test(test_the_password_is_kept_for_the_proxy),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_double_dash_ends_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
