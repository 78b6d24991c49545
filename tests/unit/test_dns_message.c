#include "core/dns/dns_message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* --- messages written by hand ---------------------------------------------------------------- */

struct message {
    uint8_t bytes[DNS_MESSAGE_MAX];
    struct writer w;
};

static void begin(struct message *m, uint16_t id, uint16_t flags, uint16_t qd, uint16_t an,
                  uint16_t ns, uint16_t ar)
{
    m->w = writer_over(m->bytes, sizeof(m->bytes));
    const uint16_t words[] = {id, flags, qd, an, ns, ar};
    for (size_t i = 0; i < 6; i++)
        writer_u16(&m->w, words[i]);
}

static void add_name(struct message *m, const char *text)
{
    struct dns_name name;
    assert_true(dns_name_parse(text, &name));
    writer_bytes(&m->w, name.bytes, name.len);
}

static void add_question(struct message *m, const char *name, uint16_t type)
{
    add_name(m, name);
    writer_u16(&m->w, type);
    writer_u16(&m->w, DNS_CLASS_IN);
}

static void add_record(struct message *m, uint16_t type, uint32_t ttl, const void *data, size_t len)
{
    writer_u16(&m->w, 0xc00c);
    writer_u16(&m->w, type);
    writer_u16(&m->w, DNS_CLASS_IN);
    writer_u32(&m->w, ttl);
    writer_u16(&m->w, (uint16_t)len);
    writer_bytes(&m->w, data, len);
}

static void add_opt(struct message *m, uint16_t size, uint32_t ttl)
{
    writer_u8(&m->w, 0);
    writer_u16(&m->w, DNS_TYPE_OPT);
    writer_u16(&m->w, size);
    writer_u32(&m->w, ttl);
    writer_u16(&m->w, 0);
}

static void add_soa(struct message *m, uint32_t ttl, uint32_t minimum)
{
    uint8_t data[22] = {0};
    struct writer w = writer_over(data + 18, 4);
    writer_u32(&w, minimum);
    add_record(m, DNS_TYPE_SOA, ttl, data, sizeof(data));
}

static size_t length(const struct message *m)
{
    assert_false(m->w.bad);
    return writer_used(&m->w);
}

static uint16_t word_at(const uint8_t *bytes, size_t at)
{
    return (uint16_t)(bytes[at] << 8 | bytes[at + 1]);
}

static uint32_t long_at(const uint8_t *bytes, size_t at)
{
    return (uint32_t)word_at(bytes, at) << 16 | word_at(bytes, at + 2);
}

static const uint8_t ADDRESS[4] = {192, 0, 2, 1};

/* A parsed query for the name; edns 0: none, else the client's UDP size. */
static struct dns_request request_for(const char *name, uint16_t type, uint16_t edns)
{
    static struct message m;
    begin(&m, 0x1234, DNS_FLAG_RD, 1, 0, 0, edns ? 1 : 0);
    add_question(&m, name, type);
    if (edns)
        add_opt(&m, edns, 0);
    struct dns_request request;
    enum dns_rcode rcode;
    assert_true(dns_request_parse(&request, m.bytes, length(&m), &rcode));
    assert_int_equal(rcode, DNS_NOERROR);
    return request;
}

/* --- queries --------------------------------------------------------------------------------- */

static void test_a_query(void **state)
{
    (void)state;
    static struct message m;
    struct dns_request rq;
    enum dns_rcode rcode;
    begin(&m, 0xbeef, DNS_FLAG_RD | DNS_FLAG_CD, 1, 0, 0, 1);
    add_question(&m, "wWw.eXample.COM", DNS_TYPE_AAAA);
    add_opt(&m, 4096, 0x8000);
    assert_true(dns_request_parse(&rq, m.bytes, length(&m), &rcode));
    assert_int_equal(rcode, DNS_NOERROR);
    assert_int_equal(rq.id, 0xbeef);
    assert_true(rq.has_question && rq.edns && rq.dnssec_ok);
    assert_int_equal(rq.udp_size, 4096);
    assert_int_equal(rq.question.type, DNS_TYPE_AAAA);
    assert_int_equal(rq.question.class_, DNS_CLASS_IN);
    char text[DNS_TEXT_SIZE];
    assert_true(dns_name_text(&rq.question.name, text));
    assert_string_equal(text, "wWw.eXample.COM");

    rq = request_for("a.test", DNS_TYPE_A, 0);
    assert_false(rq.edns);
    assert_int_equal(rq.udp_size, DNS_UDP_MIN);
    rq = request_for("a.test", DNS_TYPE_A, 100);
    assert_int_equal(rq.udp_size, DNS_UDP_MIN);
}

static void test_what_is_no_query_is_dropped(void **state)
{
    (void)state;
    static struct message m;
    struct dns_request rq;
    enum dns_rcode rcode;
    begin(&m, 1, 0, 1, 0, 0, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    for (size_t len = 0; len < DNS_HEADER_SIZE; len++)
        assert_false(dns_request_parse(&rq, m.bytes, len, &rcode));
    m.bytes[2] = 0x80; /* QR */
    assert_false(dns_request_parse(&rq, m.bytes, length(&m), &rcode));
}

static void assert_parse(const struct message *m, size_t len, enum dns_rcode expected)
{
    struct dns_request rq;
    enum dns_rcode rcode;
    uint8_t answer[DNS_LOCAL_ANSWER_MAX];
    assert_true(dns_request_parse(&rq, m->bytes, len, &rcode));
    assert_int_equal(rcode, expected);
    size_t used = dns_reply_empty(&rq, rcode, answer);
    assert_true(used >= DNS_HEADER_SIZE);
    assert_int_equal(answer[3] & 15, expected & 15);
    assert_int_equal(word_at(answer, 0), word_at(m->bytes, 0));
    assert_int_equal(word_at(answer, 4), rq.has_question);
}

static void test_queries_that_make_no_sense_are_answered_with_why(void **state)
{
    (void)state;
    static struct message m;
    begin(&m, 7, 0, 0, 0, 0, 0);
    assert_parse(&m, length(&m), DNS_FORMERR); /* no question */

    begin(&m, 7, 0, 2, 0, 0, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_question(&m, "b.test", DNS_TYPE_A);
    assert_parse(&m, length(&m), DNS_FORMERR);

    begin(&m, 7, 0x2800, 1, 0, 0, 0); /* UPDATE */
    add_question(&m, "a.test", DNS_TYPE_A);
    assert_parse(&m, length(&m), DNS_NOTIMP);

    begin(&m, 7, 0, 1, 0, 0, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    for (size_t len = DNS_HEADER_SIZE; len < length(&m); len++)
        assert_parse(&m, len, DNS_FORMERR);

    begin(&m, 7, 0, 1, 0, 0, 0); /* a pointer into the header */
    writer_u16(&m.w, 0xc004);
    writer_u32(&m.w, 0x00010001);
    assert_parse(&m, length(&m), DNS_FORMERR);

    begin(&m, 7, 0, 1, 0, 0, 1); /* a record that is not there */
    add_question(&m, "a.test", DNS_TYPE_A);
    assert_parse(&m, length(&m), DNS_FORMERR);

    begin(&m, 7, 0, 1, 0, 0, 2); /* two OPT records */
    add_question(&m, "a.test", DNS_TYPE_A);
    add_opt(&m, 512, 0);
    add_opt(&m, 512, 0);
    assert_parse(&m, length(&m), DNS_FORMERR);

    begin(&m, 7, 0, 1, 0, 0, 1); /* OPT of a name other than the root */
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_OPT, 0, NULL, 0);
    assert_parse(&m, length(&m), DNS_FORMERR);

    begin(&m, 7, 0, 1, 0, 0, 1); /* EDNS version 1 */
    add_question(&m, "a.test", DNS_TYPE_A);
    add_opt(&m, 512, 0x00010000);
    assert_parse(&m, length(&m), DNS_BADVERS);
}

static void test_other_records_in_a_query_are_skipped(void **state)
{
    (void)state;
    static struct message m;
    struct dns_request rq;
    enum dns_rcode rcode;
    begin(&m, 7, 0, 1, 0, 1, 2);
    add_question(&m, "a.test", 251);
    add_soa(&m, 1, 1);
    add_opt(&m, 1400, 0);
    add_record(&m, 250, 0, "abc", 3);
    assert_true(dns_request_parse(&rq, m.bytes, length(&m), &rcode));
    assert_int_equal(rcode, DNS_NOERROR);
    assert_int_equal(rq.udp_size, 1400);
}

/* --- answers of our own ---------------------------------------------------------------------- */

static void test_an_address_answer(void **state)
{
    (void)state;
    struct dns_request rq = request_for("eXample.COM", DNS_TYPE_A, 1400);
    uint8_t buf[DNS_LOCAL_ANSWER_MAX];
    struct dns_reply reply;
    struct addr a = addr_from_v4(ADDRESS);
    dns_reply_begin(&reply, &rq, buf);
    dns_reply_address(&reply, &a, 10);
    size_t len = dns_reply_end(&reply, DNS_NOERROR);

    static const uint8_t expected[] = "\x12\x34\x81\x80\0\1\0\1\0\0\0\1"
                                      "\7eXample\3COM\0\0\1\0\1"
                                      "\xc0\x0c\0\1\0\1\0\0\0\x0a\0\4\xc0\0\2\1"
                                      "\0\0\x29\x04\xd0\0\0\0\0\0\0";
    assert_int_equal(len, sizeof(expected) - 1);
    assert_memory_equal(buf, expected, len);
}

static void test_an_ipv6_answer_with_dnssec_ok(void **state)
{
    (void)state;
    struct dns_request rq = request_for("a", DNS_TYPE_AAAA, 512);
    rq.dnssec_ok = true;
    uint8_t buf[DNS_LOCAL_ANSWER_MAX];
    struct dns_reply reply;
    struct addr a;
    assert_true(addr_parse("fd00::5", &a));
    dns_reply_begin(&reply, &rq, buf);
    dns_reply_address(&reply, &a, 10);
    size_t len = dns_reply_end(&reply, DNS_NOERROR);
    static const uint8_t record[] =
        "\xc0\x0c\0\x1c\0\1\0\0\0\x0a\0\x10\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\5"
        "\0\0\x29\x04\xd0\0\0\x80\0\0\0";
    size_t tail = sizeof(record) - 1;
    assert_memory_equal(buf + len - tail, record, tail);
}

static void test_the_longest_answers_fit(void **state)
{
    (void)state;
    char name[DNS_TEXT_MAX + 1];
    memset(name, 'x', DNS_TEXT_MAX);
    name[DNS_TEXT_MAX] = '\0';
    name[63] = name[127] = name[191] = '.';
    struct dns_request rq = request_for(name, DNS_TYPE_ANY, 512);
    uint8_t buf[DNS_LOCAL_ANSWER_MAX];
    struct dns_reply reply;
    struct addr v4 = addr_from_v4(ADDRESS), v6;
    assert_true(addr_parse("fd00::5", &v6));
    dns_reply_begin(&reply, &rq, buf);
    dns_reply_address(&reply, &v4, 10);
    dns_reply_address(&reply, &v6, 10);
    dns_reply_soa(&reply, 10);
    size_t len = dns_reply_end(&reply, DNS_NOERROR);
    assert_int_equal(len, 12 + 259 + 16 + 28 + 33 + 11);

    rq = request_for("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                     DNS_TYPE_PTR, 512);
    dns_reply_begin(&reply, &rq, buf);
    dns_reply_ptr(&reply, name, 10);
    assert_int_equal(dns_reply_end(&reply, DNS_NOERROR), 12 + 78 + 12 + 255 + 11);
    assert_int_equal(word_at(buf, 6), 1);
}

static void test_negative_answers(void **state)
{
    (void)state;
    struct dns_request rq = request_for("a", 65, 0);
    uint8_t buf[DNS_LOCAL_ANSWER_MAX];
    struct dns_reply reply;
    dns_reply_begin(&reply, &rq, buf);
    dns_reply_soa(&reply, 10);
    size_t len = dns_reply_end(&reply, DNS_NXDOMAIN);
    static const uint8_t expected[] = "\x12\x34\x81\x83\0\1\0\0\0\1\0\0"
                                      "\1a\0\0\x41\0\1"
                                      "\0\0\6\0\1\0\0\0\x0a\0\x16\0\0\0\0\0\1\0\0\x0e\x10\0\0\2\x58"
                                      "\0\1\x51\x80\0\0\0\x0a";
    assert_int_equal(len, sizeof(expected) - 1);
    assert_memory_equal(buf, expected, len);

    rq = request_for("a", DNS_TYPE_A, 512); /* an rcode beyond four bits lives in OPT */
    len = dns_reply_empty(&rq, DNS_BADVERS, buf);
    assert_int_equal(buf[3] & 15, 0);
    assert_int_equal(buf[len - 6], 1);
}

/* --- keys ------------------------------------------------------------------------------------ */

static void test_keys(void **state)
{
    (void)state;
    struct dns_request rq = request_for("A.tEst", DNS_TYPE_A, 0);
    struct dns_key key, other;
    dns_key_make(&key, &rq);
    rq = request_for("a.test", DNS_TYPE_A, 4096);
    dns_key_make(&other, &rq);
    assert_true(dns_key_equal(&key, &other)); /* case and size make no difference */
    uint8_t query[DNS_QUERY_MAX];
    static const uint8_t plain[] = "\xab\xcd\x01\x20\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1";
    assert_int_equal(dns_key_query(&key, 0xabcd, query), sizeof(plain) - 1);
    assert_memory_equal(query, plain, sizeof(plain) - 1);

    rq.dnssec_ok = true;
    dns_key_make(&other, &rq);
    assert_false(dns_key_equal(&key, &other));
    static const uint8_t signed_[] = "\xab\xcd\x01\x20\0\1\0\0\0\0\0\1\1a\4test\0\0\1\0\1"
                                     "\0\0\x29\x04\xd0\0\0\x80\0\0\0";
    assert_int_equal(dns_key_query(&other, 0xabcd, query), sizeof(signed_) - 1);
    assert_memory_equal(query, signed_, sizeof(signed_) - 1);

    rq = request_for("a.test", DNS_TYPE_A, 0);
    rq.flags = DNS_FLAG_CD;
    dns_key_make(&other, &rq);
    assert_false(dns_key_equal(&key, &other));
    rq = request_for("a.test", DNS_TYPE_AAAA, 0);
    dns_key_make(&other, &rq);
    assert_false(dns_key_equal(&key, &other));
}

/* --- answers of a server --------------------------------------------------------------------- */

static struct dns_key key_for(const char *name, uint16_t type)
{
    struct dns_request rq = request_for(name, type, 0);
    struct dns_key key;
    dns_key_make(&key, &rq);
    return key;
}

static void begin_answer(struct message *m, uint16_t flags, uint16_t an, uint16_t ns, uint16_t ar)
{
    begin(m, 0x5555, (uint16_t)(DNS_FLAG_QR | DNS_FLAG_RD | DNS_FLAG_RA | flags), 1, an, ns, ar);
}

static void test_a_positive_answer(void **state)
{
    (void)state;
    static struct message m;
    static uint8_t out[DNS_MESSAGE_MAX];
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    begin_answer(&m, DNS_FLAG_AA | DNS_FLAG_AD, 2, 0, 1);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_A, 300, ADDRESS, 4);
    add_record(&m, DNS_TYPE_A, 200, ADDRESS, 4);
    add_record(&m, DNS_TYPE_AAAA, 100, "0123456789abcdef", 16);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    assert_int_equal(answer.len, length(&m));
    assert_int_equal(answer.ttl, 100);

    struct dns_request rq = request_for("A.TEST", DNS_TYPE_A, 0);
    size_t len = dns_answer_finish(&rq, m.bytes, answer.len, 30, 512, out);
    assert_int_equal(len, answer.len);
    assert_int_equal(word_at(out, 0), 0x1234);
    assert_int_equal(word_at(out, 2), 0x8580); /* no AD: not asked for */
    assert_memory_equal(out + 12, "\1A\4TEST", 8);
    size_t first = 12 + 8 + 4;
    assert_int_equal(long_at(out, first + 6), 270);
    assert_int_equal(long_at(out, first + 16 + 6), 170);
    assert_int_equal(long_at(out, first + 32 + 6), 70);
    dns_answer_finish(&rq, m.bytes, answer.len, 250, 512, out);
    assert_int_equal(long_at(out, first + 6), 50);
    assert_int_equal(long_at(out, first + 32 + 6), 0);

    rq = request_for("a.test", DNS_TYPE_A, 1400);
    rq.dnssec_ok = true;
    len = dns_answer_finish(&rq, m.bytes, answer.len, 0, 1400, out);
    assert_int_equal(len, answer.len + 11);
    assert_int_equal(word_at(out, 2), 0x85a0);
    assert_int_equal(word_at(out, 10), 2);
    assert_memory_equal(out + len - 11, "\0\0\x29\x04\xd0\0\0\x80\0\0\0", 11);
}

static void test_how_long_answers_live(void **state)
{
    (void)state;
    static struct message m;
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    static const struct {
        uint16_t flags;
        bool data;
        uint32_t data_ttl;
        bool soa;
        uint32_t soa_ttl, minimum;
        uint32_t expected;
    } cases[] = {
        {DNS_NOERROR, true, 77, false, 0, 0, 77},
        {DNS_NOERROR, true, 0, false, 0, 0, 0},
        {DNS_NOERROR, true, 0x80000000, false, 0, 0, 0}, /* RFC 2181, 8 */
        {DNS_NOERROR, true, 0x7fffffff, false, 0, 0, DNS_TTL_MAX},
        {DNS_NOERROR, true, 77, true, 20, 5, 20}, /* an SOA beside data is data */
        {DNS_NOERROR, false, 0, true, 600, 60, 60},
        {DNS_NOERROR, false, 0, true, 60, 600, 60},
        {DNS_NOERROR, false, 0, true, 100000, 100000, DNS_NEGATIVE_TTL_MAX},
        {DNS_NOERROR, false, 0, false, 0, 0, 0}, /* nothing says how long */
        {DNS_NXDOMAIN, false, 0, true, 30, 20, 20},
        {DNS_NXDOMAIN, false, 0, false, 0, 0, 0},
        {DNS_SERVFAIL, false, 0, true, 30, 20, 0},
        {DNS_REFUSED, true, 30, false, 0, 0, 0},
        {DNS_FLAG_TC, true, 30, false, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin_answer(&m, cases[i].flags, cases[i].data, cases[i].soa, 0);
        add_question(&m, "a.test", DNS_TYPE_A);
        if (cases[i].data)
            add_record(&m, DNS_TYPE_A, cases[i].data_ttl, ADDRESS, 4);
        if (cases[i].soa)
            add_soa(&m, cases[i].soa_ttl, cases[i].minimum);
        assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
        assert_int_equal(answer.ttl, cases[i].expected);
    }

    /* A CNAME that ends nowhere is negative: it lives no longer than the SOA allows. */
    begin_answer(&m, 0, 1, 1, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_CNAME, 500, "\1b\xc0\x0e", 4);
    add_soa(&m, 300, 40);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    assert_int_equal(answer.ttl, 40);

    /* An SOA cut short is none. */
    begin_answer(&m, 0, 0, 1, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_SOA, 300, "\0\0\0\0\0\1", 6);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    assert_int_equal(answer.ttl, 0);
}

static void test_the_servers_opt_stays_with_us(void **state)
{
    (void)state;
    static struct message m;
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    begin_answer(&m, 0, 1, 0, 3);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    size_t before_opt = length(&m);
    add_opt(&m, 4096, 0x8000);
    add_record(&m, 250, 0, "signature", 9);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    assert_int_equal(answer.len, before_opt);
    assert_int_equal(word_at(m.bytes, 10), 1);
    assert_int_equal(answer.ttl, 60);

    begin_answer(&m, 0, 0, 0, 1); /* an extended rcode that has no meaning for our client */
    add_question(&m, "a.test", DNS_TYPE_A);
    add_opt(&m, 4096, 0x01000000);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    assert_int_equal(word_at(m.bytes, 2) & 15, DNS_SERVFAIL);
    assert_int_equal(answer.ttl, 0);
}

static void test_what_is_not_the_answer(void **state)
{
    (void)state;
    static struct message m;
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    begin_answer(&m, 0, 1, 0, 0);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    size_t len = length(&m);
    for (size_t cut = 0; cut < len; cut++)
        assert_false(dns_answer_check(&answer, m.bytes, cut, &key));
    assert_true(dns_answer_check(&answer, m.bytes, len, &key));
    m.bytes[2] &= 0x7f; /* a query */
    assert_false(dns_answer_check(&answer, m.bytes, len, &key));
    m.bytes[2] |= 0x80 | 0x08; /* another opcode */
    assert_false(dns_answer_check(&answer, m.bytes, len, &key));

    static const struct {
        const char *name;
        uint16_t type;
    } others[] = {{"b.test", DNS_TYPE_A}, {"a.test", DNS_TYPE_AAAA}, {"aa.test", DNS_TYPE_A}};
    for (size_t i = 0; i < 3; i++) {
        begin_answer(&m, 0, 0, 0, 0);
        add_question(&m, others[i].name, others[i].type);
        assert_false(dns_answer_check(&answer, m.bytes, length(&m), &key));
    }
    begin(&m, 1, DNS_FLAG_QR, 0, 0, 0, 0);
    assert_false(dns_answer_check(&answer, m.bytes, length(&m), &key));
    begin_answer(&m, 0, 1, 0, 0); /* OPT where it must not be */
    add_question(&m, "a.test", DNS_TYPE_A);
    add_opt(&m, 512, 0);
    assert_false(dns_answer_check(&answer, m.bytes, length(&m), &key));
    begin_answer(&m, 0, 1, 0, 0); /* an owner that points at itself */
    add_question(&m, "a.test", DNS_TYPE_A);
    size_t at = length(&m);
    add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    m.bytes[at + 1] = (uint8_t)at;
    assert_false(dns_answer_check(&answer, m.bytes, length(&m), &key));
}

static void test_answers_are_cut_to_the_clients_size(void **state)
{
    (void)state;
    static struct message m;
    static uint8_t out[DNS_MESSAGE_MAX];
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    begin_answer(&m, 0, 20, 0, 10);
    add_question(&m, "a.test", DNS_TYPE_A);
    for (int i = 0; i < 30; i++)
        add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    size_t question_end = 12 + 8 + 4;

    struct dns_request rq = request_for("a.test", DNS_TYPE_A, 0);
    size_t len = dns_answer_finish(&rq, m.bytes, answer.len, 0, 400, out);
    assert_int_equal(len, question_end + 20 * 16); /* without the additional ones it fits */
    assert_int_equal(word_at(out, 10), 0);
    assert_int_equal(word_at(out, 2) & DNS_FLAG_TC, 0);

    len = dns_answer_finish(&rq, m.bytes, answer.len, 0, 300, out);
    assert_int_equal(len, question_end);
    assert_int_equal(word_at(out, 2) & DNS_FLAG_TC, DNS_FLAG_TC);
    assert_int_equal(word_at(out, 4), 1);
    assert_int_equal(word_at(out, 6), 0);

    rq = request_for("a.test", DNS_TYPE_A, 512);
    len = dns_answer_finish(&rq, m.bytes, answer.len, 0, question_end + 30 * 16 + 10, out);
    assert_int_equal(len, question_end + 20 * 16 + 11); /* our OPT would not have fitted */
    assert_int_equal(word_at(out, 10), 1);
    len = dns_answer_finish(&rq, m.bytes, answer.len, 0, question_end + 30 * 16 + 11, out);
    assert_int_equal(len, question_end + 30 * 16 + 11);
}

static void test_the_largest_answer(void **state)
{
    (void)state;
    static struct message m;
    static uint8_t out[DNS_MESSAGE_MAX], data[60000];
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", 16);
    begin_answer(&m, 0, 2, 0, 0);
    add_question(&m, "a.test", 16);
    add_record(&m, 16, 60, data, sizeof(data));
    size_t left = DNS_MESSAGE_MAX - length(&m) - 12;
    add_record(&m, 16, 60, data, left);
    assert_int_equal(length(&m), DNS_MESSAGE_MAX);
    assert_true(dns_answer_check(&answer, m.bytes, length(&m), &key));
    struct dns_request rq = request_for("a.test", 16, 0);
    assert_int_equal(dns_answer_finish(&rq, m.bytes, answer.len, 0, DNS_MESSAGE_MAX, out),
                     DNS_MESSAGE_MAX);
    rq = request_for("a.test", 16, 4096); /* no room for OPT: truncated rather than too long */
    size_t len = dns_answer_finish(&rq, m.bytes, answer.len, 0, DNS_MESSAGE_MAX, out);
    assert_int_equal(len, 12 + 8 + 4 + 11);
    assert_int_equal(word_at(out, 2) & DNS_FLAG_TC, DNS_FLAG_TC);
}

/* Whatever a server sends: each byte of an answer changed in many ways. */
static void test_mutated_answers(void **state)
{
    (void)state;
    static struct message m;
    static uint8_t mutated[512], out[DNS_MESSAGE_MAX];
    struct dns_answer answer;
    struct dns_key key = key_for("a.test", DNS_TYPE_A);
    struct dns_request rq = request_for("a.test", DNS_TYPE_A, 512);
    begin_answer(&m, 0, 1, 1, 1);
    add_question(&m, "a.test", DNS_TYPE_A);
    add_record(&m, DNS_TYPE_A, 60, ADDRESS, 4);
    add_soa(&m, 60, 60);
    add_opt(&m, 4096, 0);
    size_t len = length(&m);
    for (size_t at = 0; at < len; at++) {
        for (unsigned value = 0; value < 256; value++) {
            memcpy(mutated, m.bytes, len);
            mutated[at] = (uint8_t)value;
            if (!dns_answer_check(&answer, mutated, len, &key))
                continue;
            size_t used = dns_answer_finish(&rq, mutated, answer.len, 5, 512, out);
            assert_true(used >= DNS_HEADER_SIZE && used <= 512);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_query),
        cmocka_unit_test(test_what_is_no_query_is_dropped),
        cmocka_unit_test(test_queries_that_make_no_sense_are_answered_with_why),
        cmocka_unit_test(test_other_records_in_a_query_are_skipped),
        cmocka_unit_test(test_an_address_answer),
        cmocka_unit_test(test_an_ipv6_answer_with_dnssec_ok),
        cmocka_unit_test(test_the_longest_answers_fit),
        cmocka_unit_test(test_negative_answers),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_a_positive_answer),
        cmocka_unit_test(test_how_long_answers_live),
        cmocka_unit_test(test_the_servers_opt_stays_with_us),
        cmocka_unit_test(test_what_is_not_the_answer),
        cmocka_unit_test(test_answers_are_cut_to_the_clients_size),
        cmocka_unit_test(test_the_largest_answer),
        cmocka_unit_test(test_mutated_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
