#include "tests/unit/dns_server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cursor.h"

enum { TYPE_A = 1, TYPE_AAAA = 28, CLASS_IN = 1 };

/* RFC 1035, 4.1.2: labels to "a.b.c". */
static bool read_name(struct reader *r, char *out, size_t cap)
{
    size_t used = 0;
    for (;;) {
        size_t label = reader_u8(r);
        const uint8_t *bytes = reader_bytes(r, label);
        if (!bytes || used + label + 2 > cap)
            return false;
        if (label == 0)
            break;
        if (used > 0)
            out[used++] = '.';
        memcpy(out + used, bytes, label);
        used += label;
    }
    out[used] = '\0';
    return true;
}

static uint16_t write_answers(struct writer *w, const struct dns_record *record, uint16_t type)
{
    uint16_t count = 0;
    for (size_t i = 0; i < DNS_SERVER_ADDRS_MAX && record->addrs[i]; i++) {
        struct addr a;
        assert_true(addr_parse(record->addrs[i], &a));
        if (addr_is_v4(&a) != (type == TYPE_A))
            continue;
        writer_u16(w, 0xc00c); /* the name of the question */
        writer_u16(w, type);
        writer_u16(w, CLASS_IN);
        writer_u32(w, record->ttl);
        writer_u16(w, addr_is_v4(&a) ? 4 : 16);
        writer_bytes(w, addr_is_v4(&a) ? addr_v4_bytes(&a) : a.bytes, addr_is_v4(&a) ? 4 : 16);
        count++;
    }
    return count;
}

static size_t make_answer(struct dns_server *s, const uint8_t *query, size_t len, uint8_t *out,
                          size_t cap)
{
    char name[256];
    struct reader r = reader_over(query, len);
    reader_skip(&r, 12);
    if (!read_name(&r, name, sizeof(name)))
        return 0;
    uint16_t type = reader_u16(&r);
    reader_skip(&r, 2);
    size_t question_end = reader_used(&r);
    if (r.bad)
        return 0;
    const struct dns_record *record = s->records;
    while (record->name && strcmp(record->name, name) != 0)
        record++;
    if (!record->name)
        return 0;
    struct writer w = writer_over(out, cap);
    writer_bytes(&w, query, question_end);
    uint16_t count = record->rcode == 0 ? write_answers(&w, record, type) : 0;
    out[2] = 0x81; /* QR, RD */
    out[3] = (uint8_t)(0x80 | record->rcode);
    out[6] = 0;
    out[7] = (uint8_t)count;
    memset(out + 8, 0, 4);
    return w.bad ? 0 : writer_used(&w);
}

static void on_query(void *arg, unsigned ready)
{
    (void)ready;
    struct dns_server *s = arg;
    uint8_t query[512];
    uint8_t answer[1500];
    struct sockaddr_storage from;
    socklen_t from_len = sizeof(from);
    ssize_t n = recvfrom(s->fd, query, sizeof(query), 0, (struct sockaddr *)&from, &from_len);
    if (n <= 0)
        return;
    s->queries++;
    size_t len = make_answer(s, query, (size_t)n, answer, sizeof(answer));
    if (len > 0)
        sendto(s->fd, answer, len, 0, (struct sockaddr *)&from, from_len);
}

void dns_server_write_conf(const struct dns_server *s, const char *nameserver)
{
    FILE *f = fopen(s->conf_path, "w");
    assert_non_null(f);
    fprintf(f, "nameserver %s\n", nameserver);
    fclose(f);
}

void dns_server_start(struct dns_server *s, struct loop *loop, const struct dns_record *records)
{
    *s = (struct dns_server){.records = records, .conf_path = "/tmp/culvert-test-conf-XXXXXX"};
    struct endpoint e;
    struct sockaddr_storage sa;
    assert_true(endpoint_parse("127.0.0.1:0", 0, &e));
    socklen_t len = endpoint_to_sockaddr(&e, &sa);
    s->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(s->fd >= 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&sa, &len), 0);
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&sa, &e));
    s->port = e.port;
    int conf = mkstemp(s->conf_path);
    assert_true(conf >= 0);
    close(conf);
    dns_server_write_conf(s, "127.0.0.1");
    assert_int_equal(loop_watch(loop, &s->io, s->fd, LOOP_READ, on_query, s), 0);
}

void dns_server_stop(struct dns_server *s)
{
    loop_ignore(&s->io);
    close(s->fd);
    unlink(s->conf_path);
}
