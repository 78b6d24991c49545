/*
 * A hostile server answers. The first two bytes choose what was asked and how the client takes
 * it. The rest is checked as an answer, and then sent, framed as it stands, over the connection of
 * a forwarder that asks: the ids in the frames are put right, so that the fuzzer need not guess.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/map.h"
#include "core/dns/dns_forward.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/fake_loop.h"

enum { AAAA = 1, EDNS = 2, DNSSEC_OK = 4, BIG = 8 };

static struct dns_request request_of(uint8_t options)
{
    struct dns_request rq = {.id = 0x4242, .flags = DNS_FLAG_RD, .has_question = true};
    dns_name_parse("A.Test", &rq.question.name);
    rq.question.type = options & AAAA ? DNS_TYPE_AAAA : DNS_TYPE_A;
    rq.question.class_ = DNS_CLASS_IN;
    rq.edns = (options & EDNS) != 0;
    rq.dnssec_ok = rq.edns && (options & DNSSEC_OK);
    return rq;
}

static void check_answer(const struct dns_request *rq, const uint8_t *data, size_t size,
                         size_t limit, uint32_t age)
{
    static uint8_t message[DNS_MESSAGE_MAX], out[DNS_MESSAGE_MAX];
    struct dns_key key;
    struct dns_answer answer, again;
    dns_key_make(&key, rq);
    memcpy(message, data, size);
    if (!dns_answer_check(&answer, message, size, &key))
        return;
    FUZZ_CHECK(answer.len >= DNS_HEADER_SIZE && answer.len <= size);
    FUZZ_CHECK(answer.ttl <= DNS_TTL_MAX);
    FUZZ_CHECK(dns_answer_check(&again, message, answer.len, &key)); /* the normal form is one */
    FUZZ_CHECK(again.len == answer.len && again.ttl == answer.ttl);

    size_t len = dns_answer_finish(rq, message, answer.len, age, limit, out);
    FUZZ_CHECK(len >= DNS_HEADER_SIZE && len <= limit);
    FUZZ_CHECK(out[0] == 0x42 && out[1] == 0x42);
    FUZZ_CHECK(memcmp(out + DNS_HEADER_SIZE, "\1A\4Test", 8) == 0);
    /* What the client gets is one too, but for names that point into TTLs, which age. */
    FUZZ_CHECK(age > 0 || dns_answer_check(&again, out, len, &key));
}

static void note_call(void *arg, const uint8_t *answer, size_t len)
{
    (void)answer;
    FUZZ_CHECK(len <= DNS_MESSAGE_MAX);
    ++*(unsigned *)arg;
}

static void note_answer(void *arg, const struct dns_key *key, const uint8_t *message,
                        const struct dns_answer *answer)
{
    (void)arg, (void)key, (void)message;
    FUZZ_CHECK(answer->len >= DNS_HEADER_SIZE);
}

/* Send what is left of the fuzzer's bytes, with the id of the query that the server was asked. */
static void serve(struct loop *loop, const uint8_t *data, size_t size)
{
    static uint8_t bytes[DNS_MESSAGE_MAX], query[2 + DNS_QUERY_MAX];
    int fd = fake_dials.servers[fake_dials.server_count - 1];
    if (recv(fd, query, sizeof(query), 0) < 4)
        return;
    memcpy(bytes, data, size);
    for (size_t at = 0; at + 4 <= size; at += 2u + ((size_t)bytes[at] << 8 | bytes[at + 1]))
        memcpy(bytes + at + 2, query + 2, 2);
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(fd, bytes + sent, size - sent, MSG_NOSIGNAL);
        fake_loop_settle(loop);
        if (n < 0)
            break;
        sent += (size_t)n;
    }
}

static void run_forwarder(const struct dns_request *rq, const uint8_t *data, size_t size)
{
    struct endpoint server;
    endpoint_parse("192.0.2.53", 53, &server);
    struct loop *loop = loop_new();
    fake_dials_reset(loop);
    struct dns_forward *f = dns_forward_new(loop, NULL, &server, note_answer, NULL);
    FUZZ_CHECK(f);
    unsigned calls = 0;
    struct dns_key key;
    struct dns_waiter waiter = {.fn = note_call, .arg = &calls};
    dns_key_make(&key, rq);
    FUZZ_CHECK(dns_forward_ask(f, &key, &waiter));
    fake_loop_settle(loop);
    serve(loop, data, size);
    fake_loop_advance(loop, 20000);
    FUZZ_CHECK(calls == 1);
    dns_forward_free(f);
    FUZZ_CHECK(fake_loop_timers(loop) == 0 && fake_loop_watched(loop) == 0);
    fake_dials_reset(NULL);
    loop_free(loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size - 2 > DNS_MESSAGE_MAX)
        return 0;
    hash_seed(1, 2);
    log_set_level(LOG_LEVEL_ERROR);
    struct dns_request rq = request_of(data[0]);
    check_answer(&rq, data + 2, size - 2, data[0] & BIG ? DNS_MESSAGE_MAX : DNS_UDP_MIN, data[1]);
    run_forwarder(&rq, data + 2, size - 2);
    return 0;
}
