/*
 * A hostile application asks. The first byte chooses mode and transport, the rest is the query,
 * asked three times: of a server that says nothing, of one that is gone, and again. Every answer
 * must be one, to this query, no longer than the client takes.
 */
#include "core/dns/dns.h"

#include "core/base/log.h"
#include "core/base/map.h"
#include "core/dns/dns_message.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/fake_loop.h"

enum { FAKE = 1, UDP = 2, NO_V6 = 4, NO_V4 = 8 };

struct asked {
    const uint8_t *query;
    bool udp;
    unsigned answers;
};

static void check_answer(void *arg, const uint8_t *answer, size_t len)
{
    struct asked *asked = arg;
    asked->answers++;
    FUZZ_CHECK(len >= DNS_HEADER_SIZE && len <= DNS_MESSAGE_MAX);
    FUZZ_CHECK(answer[0] == asked->query[0] && answer[1] == asked->query[1]);
    FUZZ_CHECK(answer[2] & 0x80);
    if (asked->udp)
        FUZZ_CHECK(len <= DNS_UDP_MIN); /* nothing longer is made here */

    /* With the QR bit off it is a query that parses: question and OPT are in order. */
    uint8_t copy[DNS_UDP_MIN];
    struct dns_request request;
    enum dns_rcode rcode;
    memcpy(copy, answer, len < sizeof(copy) ? len : sizeof(copy));
    copy[2] &= 0x07;
    FUZZ_CHECK(dns_request_parse(&request, copy, len, &rcode));
    bool has_question = answer[4] != 0 || answer[5] != 0;
    FUZZ_CHECK(rcode == (has_question ? DNS_NOERROR : DNS_FORMERR));
}

static struct dns *start(struct loop *loop, uint8_t options)
{
    struct cidr ranges[2];
    struct addr own;
    size_t count = 0;
    if (!(options & NO_V4))
        cidr_parse("198.18.0.1/28", &ranges[count++]);
    if (!(options & NO_V6))
        cidr_parse("fd00::/124", &ranges[count++]);
    addr_parse("198.18.0.1", &own);
    struct dns_config config = {
        .mode = options & FAKE ? DNS_FAKE : DNS_TCP,
        .fake_ranges = ranges,
        .fake_range_count = count,
        .own_addresses = &own,
        .own_address_count = 1,
    };
    endpoint_parse("192.0.2.53", 53, &config.server);
    return dns_new(loop, NULL, &config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > DNS_MESSAGE_MAX)
        return 0;
    hash_seed(1, 2);
    log_set_level(LOG_LEVEL_ERROR);
    struct loop *loop = loop_new();
    fake_dials_reset(loop);
    struct dns *d = start(loop, data[0]);
    FUZZ_CHECK(d);
    struct asked asked = {.query = data + 1, .udp = (data[0] & UDP) != 0};
    for (int i = 0; i < 3; i++) {
        fake_dials.behaviour = i == 1 ? FAKE_DIAL_REFUSED : FAKE_DIAL_HANGS;
        asked.answers = 0;
        struct dns_query *q = dns_ask(d, data + 1, size - 1, asked.udp, check_answer, &asked);
        FUZZ_CHECK(asked.answers <= (q ? 0 : 1));
        if (q && i < 2) {
            fake_loop_advance(loop, 20000);
            FUZZ_CHECK(asked.answers == 1);
        }
    }
    dns_free(d);
    FUZZ_CHECK(fake_loop_timers(loop) == 0);
    loop_free(loop);
    return 0;
}
