/* The policy: what is answered here, from the cache, by the server, and how. */
#include "core/dns/dns.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "core/base/log.h"
#include "core/dns/dns_forward.h"
#include "core/dns/dns_message.h"
#include "failing_memory.h"
#include "fake_loop.h"

struct lab {
    struct loop *loop;
    struct dns *dns;
};

static struct addr own_addresses[2];

static struct dns *new_dns(struct loop *loop, enum dns_mode mode, const char *range4,
                           const char *range6)
{
    struct cidr ranges[2];
    size_t count = 0;
    if (range4)
        assert_true(cidr_parse(range4, &ranges[count++]));
    if (range6)
        assert_true(cidr_parse(range6, &ranges[count++]));
    assert_true(addr_parse("198.18.0.1", &own_addresses[0]));
    assert_true(addr_parse("fd00:cafe::1", &own_addresses[1]));
    struct dns_config config = {.mode = mode,
                                .fake_ranges = ranges,
                                .fake_range_count = count,
                                .own_addresses = own_addresses,
                                .own_address_count = 2};
    assert_true(endpoint_parse("192.0.2.53", 53, &config.server));
    struct dns *d = dns_new(loop, NULL, &config);
    assert_non_null(d);
    return d;
}

static struct lab lab;

static int setup_mode(void **state, enum dns_mode mode)
{
    lab.loop = loop_new();
    fake_dials_reset(lab.loop);
    lab.dns = new_dns(lab.loop, mode, "198.18.0.1/15", "fd00:cafe::1/64");
    log_set_level(LOG_LEVEL_ERROR);
    *state = &lab;
    return 0;
}

static int setup_fake(void **state)
{
    return setup_mode(state, DNS_FAKE);
}

static int setup_tcp(void **state)
{
    return setup_mode(state, DNS_TCP);
}

static int teardown(void **state)
{
    (void)state;
    dns_free(lab.dns);
    assert_int_equal(fake_loop_timers(lab.loop), 0);
    fake_dials_reset(NULL);
    loop_free(lab.loop);
    return 0;
}

/* --- asking ---------------------------------------------------------------------------------- */

struct got {
    unsigned calls;
    size_t len;
    uint8_t bytes[DNS_MESSAGE_MAX];
};
static struct got got; /* the last answer */

static void note(void *arg, const uint8_t *answer, size_t len)
{
    struct got *g = arg;
    g->calls++;
    g->len = len;
    memcpy(g->bytes, answer, len);
}

struct asked {
    uint16_t flags, type, class_;
    uint16_t edns; /* UDP size, 0: none */
    uint8_t edns_version;
    bool dnssec_ok, tcp;
};

static size_t write_query(uint8_t *buf, const char *name, const struct asked *q)
{
    struct writer w = writer_over(buf, 600);
    struct dns_name wire;
    assert_true(dns_name_parse(name, &wire));
    const uint16_t header[] = {0x4242, q->flags, 1, 0, 0, q->edns ? 1 : 0};
    for (size_t i = 0; i < 6; i++)
        writer_u16(&w, header[i]);
    writer_bytes(&w, wire.bytes, wire.len);
    writer_u16(&w, q->type);
    writer_u16(&w, q->class_ ? q->class_ : DNS_CLASS_IN);
    if (q->edns) {
        writer_u8(&w, 0);
        writer_u16(&w, DNS_TYPE_OPT);
        writer_u16(&w, q->edns);
        writer_u32(&w, (uint32_t)q->edns_version << 16 | (q->dnssec_ok ? 0x8000 : 0));
        writer_u16(&w, 0);
    }
    return writer_used(&w);
}

static struct dns_query *ask_with(const char *name, struct asked q)
{
    uint8_t query[600];
    size_t len = write_query(query, name, &q);
    got.calls = 0;
    return dns_ask(lab.dns, query, len, !q.tcp, note, &got);
}

/* Ask what is to be answered at once. */
static void ask_now(const char *name, uint16_t type)
{
    assert_null(ask_with(name, (struct asked){.flags = DNS_FLAG_RD, .type = type}));
    assert_int_equal(got.calls, 1);
    assert_int_equal(got.bytes[0] << 8 | got.bytes[1], 0x4242);
    assert_int_equal(got.bytes[2] & 0x81, 0x81); /* QR, RD */
}

static unsigned rcode(void)
{
    return got.bytes[3] & 15u;
}

static unsigned answers(void)
{
    return (unsigned)got.bytes[6] << 8 | got.bytes[7];
}

static unsigned authorities(void)
{
    return (unsigned)got.bytes[8] << 8 | got.bytes[9];
}

/* The address in the only answer's record, which is last in the message. */
static struct addr only_address(void)
{
    assert_int_equal(rcode(), DNS_NOERROR);
    assert_int_equal(answers(), 1);
    struct dns_name name;
    struct reader r = reader_over(got.bytes, got.len);
    reader_skip(&r, DNS_HEADER_SIZE);
    assert_true(dns_name_read(&r, &name));
    reader_skip(&r, 4);
    assert_true(dns_name_read(&r, &name));
    reader_skip(&r, 4);
    assert_in_range(reader_u32(&r), 1, 60); /* a short TTL */
    uint16_t len = reader_u16(&r);
    const uint8_t *bytes = reader_bytes(&r, len);
    assert_non_null(bytes);
    return len == 4 ? addr_from_v4(bytes) : addr_from_v6(bytes);
}

static void assert_no_data(void)
{
    assert_int_equal(rcode(), DNS_NOERROR);
    assert_int_equal(answers(), 0);
    assert_int_equal(authorities(), 1);
}

/* --- the server ------------------------------------------------------------------------------ */

/* Answer the next query with `count` TXT records of `size` bytes. False: there is none. */
static bool serve(size_t n, unsigned count, size_t size)
{
    static uint8_t frame[2 + DNS_MESSAGE_MAX];
    uint8_t prefix[2];
    fake_loop_settle(lab.loop);
    if (n >= fake_dials.server_count || recv(fake_dials.servers[n], prefix, 2, 0) != 2)
        return false;
    size_t len = (size_t)prefix[0] << 8 | prefix[1];
    assert_int_equal(recv(fake_dials.servers[n], frame + 2, len, 0), len);
    struct writer w = writer_over(frame, sizeof(frame));
    w.at += 2 + len;
    frame[4] |= 0x80;
    frame[8] = (uint8_t)(count >> 8);
    frame[9] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        writer_u16(&w, 0xc00c);
        writer_u16(&w, 16);
        writer_u16(&w, 1);
        writer_u32(&w, 100);
        writer_u16(&w, (uint16_t)size);
        uint8_t *data = writer_reserve(&w, size);
        memset(data, 'd', size);
    }
    size_t total = writer_used(&w);
    frame[0] = (uint8_t)((total - 2) >> 8);
    frame[1] = (uint8_t)(total - 2);
    assert_int_equal(send(fake_dials.servers[n], frame, total, MSG_NOSIGNAL), total);
    fake_loop_settle(lab.loop);
    return true;
}

/* --- fake ------------------------------------------------------------------------------------ */

static void test_addresses_are_answered_from_the_ranges(void **state)
{
    (void)state;
    char name[256];
    ask_now("Www.Example.COM", DNS_TYPE_A);
    assert_memory_equal(got.bytes + 12, "\3Www\7Example\3COM", 17); /* as it was asked */
    struct addr v4 = only_address();
    ask_now("www.example.com", DNS_TYPE_AAAA);
    struct addr v6 = only_address();
    assert_true(addr_is_v4(&v4) && !addr_is_v4(&v6));
    assert_int_equal(dns_fake_lookup(lab.dns, &v4, name), DNS_FAKE_KNOWN);
    assert_string_equal(name, "www.example.com");
    assert_int_equal(dns_fake_lookup(lab.dns, &v6, name), DNS_FAKE_KNOWN);
    assert_string_equal(name, "www.example.com");
    ask_now("WWW.EXAMPLE.COM", DNS_TYPE_A);
    struct addr again = only_address();
    assert_true(addr_equal(&v4, &again));
    assert_int_equal(fake_dials.started, 0); /* the network heard nothing */
}

static void test_edns_is_answered_with_edns(void **state)
{
    (void)state;
    assert_null(ask_with("a.test", (struct asked){.type = DNS_TYPE_A, .edns = 4096}));
    only_address();
    assert_int_equal(got.bytes[11], 1);
    assert_memory_equal(got.bytes + got.len - 11, "\0\0\x29\x04\xd0\0\0\0\0\0\0", 11);
}

/* RFC 6891, 6.1.3: BADVERS is 16, of which the header has the lower four bits, OPT the others. */
static void test_edns_of_a_later_version_is_refused(void **state)
{
    (void)state;
    struct asked q = {.type = DNS_TYPE_A, .edns = 4096, .edns_version = 1};
    for (int tcp = 0; tcp < 2; tcp++) {
        q.tcp = tcp != 0;
        assert_null(ask_with("a.test", q));
        assert_int_equal(got.calls, 1);
        assert_int_equal(rcode(), 0);
        assert_int_equal(answers() + authorities(), 0);
        assert_memory_equal(got.bytes + got.len - 11, "\0\0\x29\x04\xd0\1\0\0\0\0\0", 11);
    }
}

static void test_lookup_tells_fake_own_and_real(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        enum dns_fake expected;
    } cases[] = {
        {"198.18.0.1", DNS_FAKE_NOT},         {"fd00:cafe::1", DNS_FAKE_NOT},
        {"198.18.0.0", DNS_FAKE_UNKNOWN},     {"198.19.255.255", DNS_FAKE_UNKNOWN},
        {"198.18.7.7", DNS_FAKE_UNKNOWN},     {"198.20.0.1", DNS_FAKE_NOT},
        {"fd00:cafe::9:9", DNS_FAKE_UNKNOWN}, {"2001:db8::1", DNS_FAKE_NOT},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct addr a;
        char name[256];
        assert_true(addr_parse(cases[i].address, &a));
        assert_int_equal(dns_fake_lookup(lab.dns, &a, name), cases[i].expected);
    }
}

static void test_https_and_svcb_have_no_data(void **state)
{
    (void)state;
    static const char *const names[] = {"example.com", "_dns.resolver.arpa", "localhost"};
    for (size_t i = 0; i < 3; i++) {
        ask_now(names[i], DNS_TYPE_HTTPS);
        assert_no_data();
        ask_now(names[i], DNS_TYPE_SVCB);
        assert_no_data();
    }
}

static void test_any_gets_both_addresses(void **state)
{
    (void)state;
    ask_now("a.test", DNS_TYPE_ANY);
    assert_int_equal(answers(), 2);
    assert_int_equal(rcode(), DNS_NOERROR);
}

static void assert_reverse(const char *reverse, const char *expected)
{
    ask_now(reverse, DNS_TYPE_PTR);
    if (!expected) {
        assert_int_equal(rcode(), DNS_NXDOMAIN);
        return;
    }
    assert_int_equal(answers(), 1);
    struct dns_name name;
    assert_true(dns_name_parse(expected, &name));
    assert_memory_equal(got.bytes + got.len - name.len, name.bytes, name.len);
}

static void test_reverse_names_of_the_ranges(void **state)
{
    (void)state;
    char reverse[80];
    ask_now("A.Test", DNS_TYPE_A);
    struct addr a = only_address();
    const uint8_t *b = addr_v4_bytes(&a);
    snprintf(reverse, sizeof(reverse), "%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0]);
    assert_reverse(reverse, "a.test");
    ask_now(reverse, 16);
    assert_no_data();

    ask_now("a.test", DNS_TYPE_AAAA);
    a = only_address();
    char *at = reverse;
    for (int i = 15; i >= 0; i--)
        at += sprintf(at, "%x.%X.", a.bytes[i] & 15u, (unsigned)a.bytes[i] >> 4);
    sprintf(at, "ip6.arpa");
    assert_reverse(reverse, "a.test");

    assert_reverse("1.0.18.198.in-addr.arpa", NULL); /* our own */
    assert_reverse("9.9.19.198.in-addr.arpa", NULL); /* nobody's */
    assert_int_equal(fake_dials.started, 0);
    assert_non_null(ask_with("1.2.0.192.in-addr.arpa", (struct asked){.type = DNS_TYPE_PTR}));
}

static void test_special_names(void **state)
{
    (void)state;
    struct addr a, expected;
    static const char *const local[] = {"localhost", "LOCALHOST.", "a.b.Localhost"};
    for (size_t i = 0; i < 3; i++) {
        ask_now(local[i], DNS_TYPE_A);
        a = only_address();
        assert_true(addr_parse("127.0.0.1", &expected) && addr_equal(&a, &expected));
        ask_now(local[i], DNS_TYPE_AAAA);
        a = only_address();
        assert_true(addr_parse("::1", &expected) && addr_equal(&a, &expected));
        ask_now(local[i], 16);
        assert_no_data();
    }
    ask_now("use-application-dns.net", DNS_TYPE_A);
    assert_int_equal(rcode(), DNS_NXDOMAIN);
    ask_now("a.invalid", DNS_TYPE_A);
    assert_int_equal(rcode(), DNS_NXDOMAIN);
    ask_now("", DNS_TYPE_A); /* the root has no address */
    assert_no_data();
    ask_now("intranet", DNS_TYPE_A); /* the proxy may know it */
    only_address();
    ask_now("host.home.arpa", DNS_TYPE_A);
    only_address();
    ask_now("a.test", 252); /* AXFR */
    assert_int_equal(rcode(), DNS_NOTIMP);
    assert_int_equal(fake_dials.started, 0);
    /* Whether there is NAT64 is a fact of the network, not a host. */
    assert_non_null(ask_with("ipv4only.arpa", (struct asked){.type = DNS_TYPE_AAAA}));
    assert_non_null(ask_with("a.test", (struct asked){.type = DNS_TYPE_A, .class_ = 3}));
}

static void test_names_that_no_proxy_could_be_asked_for(void **state)
{
    (void)state;
    static const uint8_t query[] = "\0\1\1\0\0\1\0\0\0\0\0\0\3a.b\4test\0\0\1\0\1";
    assert_null(dns_ask(lab.dns, query, sizeof(query) - 1, true, note, &got));
    assert_int_equal(rcode(), DNS_NXDOMAIN);
}

static void test_the_longest_name(void **state)
{
    (void)state;
    char name[DNS_TEXT_MAX + 2], found[256];
    memset(name, 'n', sizeof(name));
    name[63] = name[127] = name[191] = '.';
    name[DNS_TEXT_MAX] = '.';
    name[DNS_TEXT_MAX + 1] = '\0';
    ask_now(name, DNS_TYPE_A);
    struct addr a = only_address();
    assert_int_equal(dns_fake_lookup(lab.dns, &a, found), DNS_FAKE_KNOWN);
    name[DNS_TEXT_MAX] = '\0';
    assert_string_equal(found, name);
}

static void test_a_family_without_range_has_no_data(void **state)
{
    (void)state;
    struct dns *both = lab.dns;
    lab.dns = new_dns(lab.loop, DNS_FAKE, NULL, "fd00:cafe::1/64");
    ask_now("a.test", DNS_TYPE_A);
    assert_no_data();
    ask_now("a.test", DNS_TYPE_AAAA);
    only_address();
    ask_now("a.test", DNS_TYPE_ANY);
    assert_int_equal(answers(), 1);
    dns_free(lab.dns);
    lab.dns = both;
}

static void test_a_range_that_flows_hold_is_servfail(void **state)
{
    (void)state;
    struct dns *big = lab.dns;
    lab.dns = new_dns(lab.loop, DNS_FAKE, "192.0.2.0/30", NULL);
    ask_now("a.test", DNS_TYPE_A);
    struct addr a = only_address();
    dns_fake_hold(lab.dns, &a);
    ask_now("b.test", DNS_TYPE_A);
    struct addr b = only_address();
    ask_now("c.test", DNS_TYPE_A);
    struct addr c = only_address();
    assert_true(addr_equal(&b, &c));
    dns_fake_hold(lab.dns, &c);
    ask_now("d.test", DNS_TYPE_A);
    assert_int_equal(rcode(), DNS_SERVFAIL);
    dns_fake_release(lab.dns, &a);
    ask_now("d.test", DNS_TYPE_A);
    struct addr d = only_address();
    assert_true(addr_equal(&a, &d));
    dns_free(lab.dns);
    lab.dns = big;
}

static void test_malformed_queries(void **state)
{
    (void)state;
    uint8_t query[600];
    size_t len = write_query(query, "a.test", &(struct asked){.type = DNS_TYPE_A});
    got.calls = 0;
    for (size_t n = 0; n < DNS_HEADER_SIZE; n++)
        assert_null(dns_ask(lab.dns, query, n, true, note, &got));
    assert_int_equal(got.calls, 0);
    for (size_t n = DNS_HEADER_SIZE; n < len; n++) {
        assert_null(dns_ask(lab.dns, query, n, true, note, &got));
        assert_int_equal(rcode(), DNS_FORMERR);
    }
    query[2] = 0x80;
    got.calls = 0;
    assert_null(dns_ask(lab.dns, query, len, true, note, &got));
    assert_int_equal(got.calls, 0);
    query[2] = 0x20;
    assert_null(dns_ask(lab.dns, query, len, true, note, &got));
    assert_int_equal(rcode(), DNS_NOTIMP);
}

/* --- forwarded ------------------------------------------------------------------------------- */

static void test_other_types_are_asked_of_the_server(void **state)
{
    (void)state;
    assert_non_null(ask_with("A.test", (struct asked){.flags = DNS_FLAG_RD, .type = 16}));
    assert_true(serve(0, 2, 10));
    assert_int_equal(got.calls, 1);
    assert_int_equal(answers(), 2);
    assert_int_equal(got.bytes[0] << 8 | got.bytes[1], 0x4242);
    assert_memory_equal(got.bytes + 12, "\1A\4test", 7);
}

static void test_tcp_mode_fakes_nothing(void **state)
{
    (void)state;
    struct addr a;
    char name[256];
    assert_true(addr_parse("198.18.0.77", &a));
    assert_int_equal(dns_fake_lookup(lab.dns, &a, name), DNS_FAKE_NOT);
    dns_fake_hold(lab.dns, &a);
    dns_fake_release(lab.dns, &a);
    static const struct {
        const char *name;
        uint16_t type;
    } forwarded[] = {{"a.test", DNS_TYPE_A},
                     {"a.test", DNS_TYPE_AAAA},
                     {"a.test", DNS_TYPE_HTTPS},
                     {"1.0.18.198.in-addr.arpa", DNS_TYPE_PTR},
                     {"use-application-dns.net", DNS_TYPE_A},
                     {"a.test", DNS_TYPE_ANY}};
    for (size_t i = 0; i < sizeof(forwarded) / sizeof(forwarded[0]); i++) {
        assert_non_null(ask_with(forwarded[i].name, (struct asked){.type = forwarded[i].type}));
        assert_true(serve(0, 1, 4));
        assert_int_equal(got.calls, 1);
        assert_int_equal(answers(), 1);
    }
    ask_now("localhost", DNS_TYPE_A);
    only_address();
}

static void test_answers_are_cached(void **state)
{
    (void)state;
    struct asked txt = {.flags = DNS_FLAG_RD, .type = 16};
    assert_non_null(ask_with("a.test", txt));
    assert_true(serve(0, 1, 4));
    fake_loop_advance(lab.loop, 99000); /* the TTL is 100 s */
    assert_null(ask_with("A.TEST", txt));
    assert_int_equal(got.calls, 1);
    assert_memory_equal(got.bytes + 12, "\1A\4TEST", 7);
    struct reader r = reader_over(got.bytes, got.len);
    reader_skip(&r, 12 + 8 + 4 + 6);
    assert_int_equal(reader_u32(&r), 1);
    fake_loop_advance(lab.loop, 1000);
    assert_non_null(ask_with("a.test", txt));
    assert_true(serve(1, 1, 4));
    /* Who wants signatures is not served what was asked for without. */
    txt.edns = 1400;
    txt.dnssec_ok = true;
    assert_non_null(ask_with("a.test", txt));
}

static void test_answers_are_cut_for_udp_only(void **state)
{
    (void)state;
    struct asked txt = {.flags = DNS_FLAG_RD, .type = 16};
    assert_non_null(ask_with("a.test", txt));
    assert_true(serve(0, 10, 200));
    assert_true(got.len <= 512);
    assert_int_equal(got.bytes[2] & 2, 2); /* TC */
    txt.tcp = true;
    assert_null(ask_with("a.test", txt)); /* the cache has all of it */
    assert_true(got.len > 2000);
    assert_int_equal(got.bytes[2] & 2, 0);
    assert_int_equal(answers(), 10);
    txt.tcp = false;
    txt.edns = 4096;
    assert_null(ask_with("a.test", txt));
    assert_int_equal(answers(), 10);
    txt.edns = 1232;
    assert_null(ask_with("a.test", txt));
    assert_int_equal(answers(), 0);
    assert_int_equal(got.bytes[2] & 2, 2);
}

static void test_failure_is_servfail(void **state)
{
    (void)state;
    fake_dials.behaviour = FAKE_DIAL_REFUSED;
    assert_non_null(ask_with("a.test", (struct asked){.type = 16, .edns = 1232}));
    fake_loop_settle(lab.loop);
    assert_int_equal(got.calls, 1);
    assert_int_equal(rcode(), DNS_SERVFAIL);
    assert_int_equal(got.bytes[11], 1);  /* OPT */
    fake_dials.behaviour = FAKE_DIAL_OK; /* and is not remembered */
    assert_non_null(ask_with("a.test", (struct asked){.type = 16}));
    assert_true(serve(0, 1, 4));
    assert_int_equal(answers(), 1);
}

static void test_too_many_open_questions_are_servfail(void **state)
{
    (void)state;
    char name[32];
    for (int i = 0; i < DNS_PENDING_MAX; i++) {
        snprintf(name, sizeof(name), "n%d.test", i % 7);
        assert_non_null(ask_with(name, (struct asked){.type = 16}));
    }
    assert_null(ask_with("n1.test", (struct asked){.type = 16}));
    assert_int_equal(got.calls, 1);
    assert_int_equal(rcode(), DNS_SERVFAIL);
}

static void test_cancelled_queries_are_not_answered(void **state)
{
    (void)state;
    struct dns_query *q = ask_with("a.test", (struct asked){.type = 16});
    fake_loop_settle(lab.loop);
    dns_cancel(q);
    assert_true(serve(0, 1, 4));
    assert_int_equal(got.calls, 0);
    assert_null(ask_with("a.test", (struct asked){.type = 16})); /* but the answer was kept */
}

static void test_relay_is_none_of_our_business(void **state)
{
    (void)state;
    struct dns *fake = lab.dns;
    lab.dns = new_dns(lab.loop, DNS_RELAY, NULL, NULL);
    assert_int_equal(dns_mode(lab.dns), DNS_RELAY);
    assert_null(ask_with("a.test", (struct asked){.type = DNS_TYPE_A}));
    assert_int_equal(got.calls, 0);
    dns_free(lab.dns);
    lab.dns = fake;
}

/* --- out of memory --------------------------------------------------------------------------- */

/* Ask and, where a server is to be asked, serve: one answer comes, whatever fails. */
static void ask_and_serve(const char *name, uint16_t type)
{
    struct dns_query *q = ask_with(name, (struct asked){.flags = DNS_FLAG_RD, .type = type});
    if (q) {
        fake_loop_settle(lab.loop);
        for (size_t n = fake_dials.server_count; got.calls == 0 && n > 0;)
            if (!serve(n - 1, 1, 40))
                n--;
        if (got.calls == 0)
            fake_loop_advance(lab.loop, 11000);
    }
    assert_int_equal(got.calls, 1);
}

static void use_all(void)
{
    struct addr a;
    assert_true(addr_parse("198.18.0.9", &a));
    ask_and_serve("a.test", DNS_TYPE_A);
    ask_and_serve("a.test", DNS_TYPE_AAAA);
    for (int i = 0; i < 12; i++) { /* enough for the maps to grow */
        char name[32];
        snprintf(name, sizeof(name), "n%d.test", i);
        ask_and_serve(name, 16);
    }
    ask_and_serve("n3.test", 16);
    struct dns_query *q = ask_with("b.test", (struct asked){.type = 16});
    fake_loop_settle(lab.loop);
    if (q && got.calls == 0)
        dns_cancel(q);
    dns_fake_hold(lab.dns, &a);
    dns_fake_release(lab.dns, &a);
}

/* Each allocation fails in its turn: nothing is lost but what needed it, and nothing leaks. */
static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    struct dns *good = lab.dns;
    struct cidr ranges[2];
    assert_true(cidr_parse("198.18.0.0/15", &ranges[0]) && cidr_parse("fd00::/64", &ranges[1]));
    struct dns_config config = {.mode = DNS_FAKE, .fake_ranges = ranges, .fake_range_count = 2};
    assert_true(endpoint_parse("192.0.2.53", 53, &config.server));
    unsigned long n = 0;
    do {
        fake_dials_reset(lab.loop);
        failing_memory.calls_left = ++n;
        lab.dns = dns_new(lab.loop, NULL, &config);
        if (lab.dns) {
            use_all();
            unsigned long left = failing_memory.calls_left;
            failing_memory.calls_left = 0;
            ask_and_serve("after.test", 16); /* it works when there is memory again */
            assert_int_equal(rcode(), DNS_NOERROR);
            dns_free(lab.dns);
            failing_memory.calls_left = left;
        }
    } while (failing_memory.calls_left == 0 && n < 1000);
    failing_memory.calls_left = 0;
    assert_in_range(n, 30, 999);
    lab.dns = good;
}

#define FAKE(name) cmocka_unit_test_setup_teardown(name, setup_fake, teardown)
#define TCP(name)  cmocka_unit_test_setup_teardown(name, setup_tcp, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAKE(test_addresses_are_answered_from_the_ranges),
        FAKE(test_edns_is_answered_with_edns),
        FAKE(test_edns_of_a_later_version_is_refused),
        FAKE(test_lookup_tells_fake_own_and_real),
        FAKE(test_https_and_svcb_have_no_data),
        FAKE(test_any_gets_both_addresses),
        FAKE(test_reverse_names_of_the_ranges),
        FAKE(test_special_names),
        FAKE(test_names_that_no_proxy_could_be_asked_for),
        FAKE(test_the_longest_name),
        FAKE(test_a_family_without_range_has_no_data),
        FAKE(test_a_range_that_flows_hold_is_servfail),
        FAKE(test_malformed_queries),
        TCP(test_malformed_queries),
        FAKE(test_other_types_are_asked_of_the_server),
        TCP(test_other_types_are_asked_of_the_server),
        TCP(test_tcp_mode_fakes_nothing),
        TCP(test_answers_are_cached),
        TCP(test_answers_are_cut_for_udp_only),
        TCP(test_failure_is_servfail),
        TCP(test_too_many_open_questions_are_servfail),
        TCP(test_cancelled_queries_are_not_answered),
        FAKE(test_relay_is_none_of_our_business),
        FAKE(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
