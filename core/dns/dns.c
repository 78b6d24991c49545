/*
 * The order in which a query is looked at:
 *
 *   1. not a query: dropped; malformed, or of a kind that nobody here serves: told so
 *   2. names that mean the same everywhere (RFC 6761): localhost, invalid
 *   3. `fake` only: HTTPS and SVCB have no data (their address hints would lead around the fake
 *      addresses), reverse names of the fake ranges, use-application-dns.net does not exist (the
 *      sign for browsers to keep using this resolver), and every other name has an address of
 *      each family that has a range; ANY gets those (RFC 8482 allows a selection). Names below
 *      arpa describe the network (ipv4only.arpa: is there NAT64?) and are no hosts, but for
 *      those below home.arpa
 *   4. the cache
 *   5. the server, through the proxy
 */
#include "core/dns/dns.h"

#include <stdlib.h>

#include "core/base/memory.h"
#include "core/dns/dns_cache.h"
#include "core/dns/dns_forward.h"
#include "core/dns/dns_message.h"
#include "core/dns/fakedns.h"

enum {
    LOCAL_TTL = 10, /* seconds: what a client remembers is soon asked for again, so stays known */
    CACHE_ANSWERS = 4096,
    CACHE_BYTES = 2 << 20,
    UDP_PAYLOAD_MAX = 65507, /* an IPv4 datagram's, bytes */
};

struct dns {
    struct loop *loop;
    enum dns_mode mode;
    struct fakedns *fake;     /* DNS_FAKE only */
    struct fakedns *own_fake; /* the same, where it is not shared */
    struct dns_cache *cache;
    struct dns_forward *forward;
    struct link queries; /* dns_query: who waits */
    size_t query_count;
    uint8_t answer[DNS_MESSAGE_MAX]; /* what is handed to dns_answer_fn */
};

struct dns_query {
    struct dns *dns;
    struct link link;
    struct dns_waiter waiter;
    struct dns_request request;
    bool udp;
    dns_answer_fn *fn;
    void *arg;
};

/* --- answers without a server ---------------------------------------------------------------- */

static size_t answer_empty(struct dns *d, const struct dns_request *rq, enum dns_rcode rcode)
{
    struct dns_reply r;
    dns_reply_begin(&r, rq, d->answer);
    if (rcode == DNS_NOERROR || rcode == DNS_NXDOMAIN)
        dns_reply_soa(&r, LOCAL_TTL);
    return dns_reply_end(&r, rcode);
}

static bool asks_for(const struct dns_request *rq, enum dns_type type)
{
    return rq->question.type == type || rq->question.type == DNS_TYPE_ANY;
}

static size_t answer_localhost(struct dns *d, const struct dns_request *rq)
{
    static const uint8_t v4[4] = {127, 0, 0, 1}, v6[16] = {[15] = 1};
    struct addr loopback4 = addr_from_v4(v4), loopback6 = addr_from_v6(v6);
    struct dns_reply r;
    dns_reply_begin(&r, rq, d->answer);
    if (asks_for(rq, DNS_TYPE_A))
        dns_reply_address(&r, &loopback4, LOCAL_TTL);
    if (asks_for(rq, DNS_TYPE_AAAA))
        dns_reply_address(&r, &loopback6, LOCAL_TTL);
    if (r.answers == 0)
        dns_reply_soa(&r, LOCAL_TTL);
    return dns_reply_end(&r, DNS_NOERROR);
}

static size_t answer_reverse(struct dns *d, const struct dns_request *rq, const struct addr *a)
{
    char name[DNS_TEXT_SIZE];
    if (!fakedns_name(d->fake, a, name))
        return answer_empty(d, rq, DNS_NXDOMAIN);
    struct dns_reply r;
    dns_reply_begin(&r, rq, d->answer);
    if (asks_for(rq, DNS_TYPE_PTR))
        dns_reply_ptr(&r, name, LOCAL_TTL);
    else
        dns_reply_soa(&r, LOCAL_TTL);
    return dns_reply_end(&r, DNS_NOERROR);
}

/* Add the fake address of one family, where asked for. False when flows hold all there are. */
static bool add_fake(struct dns *d, struct dns_reply *r, const char *name,
                     enum fakedns_family family)
{
    static const enum dns_type types[FAKEDNS_FAMILIES] = {
        [FAKEDNS_V4] = DNS_TYPE_A,
        [FAKEDNS_V6] = DNS_TYPE_AAAA,
    };
    if (!asks_for(r->request, types[family]) || !fakedns_has(d->fake, family))
        return true;
    struct addr a;
    if (!fakedns_assign(d->fake, name, family, &a))
        return false;
    dns_reply_address(r, &a, LOCAL_TTL);
    return true;
}

static size_t answer_fake(struct dns *d, const struct dns_request *rq)
{
    struct dns_name lower = rq->question.name;
    dns_name_lower(&lower);
    char name[DNS_TEXT_SIZE];
    if (!dns_name_text(&lower, name)) /* a proxy could not be asked for such a host */
        return answer_empty(d, rq, DNS_NXDOMAIN);

    struct dns_reply r;
    dns_reply_begin(&r, rq, d->answer);
    bool root = name[0] == '\0';
    if (!root && (!add_fake(d, &r, name, FAKEDNS_V4) || !add_fake(d, &r, name, FAKEDNS_V6)))
        return answer_empty(d, rq, DNS_SERVFAIL);
    if (r.answers == 0)
        dns_reply_soa(&r, LOCAL_TTL);
    return dns_reply_end(&r, DNS_NOERROR);
}

/* 0: the server is to be asked. */
static size_t answer_in_fake_mode(struct dns *d, const struct dns_request *rq)
{
    const struct dns_name *name = &rq->question.name;
    uint16_t type = rq->question.type;
    struct addr a;

    if (type == DNS_TYPE_HTTPS || type == DNS_TYPE_SVCB)
        return answer_empty(d, rq, DNS_NOERROR);
    if (dns_name_within(name, "use-application-dns.net"))
        return answer_empty(d, rq, DNS_NXDOMAIN);
    if (dns_name_reverse(name, &a) && fakedns_in_range(d->fake, &a))
        return answer_reverse(d, rq, &a);
    if (dns_name_within(name, "arpa") && !dns_name_within(name, "home.arpa"))
        return 0;
    if (type == DNS_TYPE_A || type == DNS_TYPE_AAAA || type == DNS_TYPE_ANY)
        return answer_fake(d, rq);
    return 0;
}

/* The answer, in d->answer, for what needs no server; 0: the server is to be asked. */
static size_t answer_locally(struct dns *d, const struct dns_request *rq)
{
    const struct dns_question *q = &rq->question;
    if (q->type == DNS_TYPE_OPT || (q->type >= DNS_TYPE_META_FIRST && q->type < DNS_TYPE_ANY))
        return answer_empty(d, rq, DNS_NOTIMP); /* transfers and transactions, not look-ups */
    if (q->class_ != DNS_CLASS_IN)
        return 0;
    if (dns_name_within(&q->name, "localhost"))
        return answer_localhost(d, rq);
    if (dns_name_within(&q->name, "invalid"))
        return answer_empty(d, rq, DNS_NXDOMAIN);
    return d->mode == DNS_FAKE ? answer_in_fake_mode(d, rq) : 0;
}

/* --- answers of the server ------------------------------------------------------------------- */

/* Fit an answer in normal form to the client, into d->answer. */
static size_t finish_answer(struct dns *d, const struct dns_request *rq, bool udp,
                            const uint8_t *message, size_t len, uint32_t age)
{
    size_t limit = DNS_MESSAGE_MAX;
    if (udp)
        limit = rq->udp_size < UDP_PAYLOAD_MAX ? rq->udp_size : UDP_PAYLOAD_MAX;
    return dns_answer_finish(rq, message, len, age, limit, d->answer);
}

static size_t answer_from_cache(struct dns *d, const struct dns_request *rq, bool udp,
                                const struct dns_key *key)
{
    size_t len;
    uint32_t age;
    const uint8_t *message = dns_cache_get(d->cache, key, loop_now(d->loop), &len, &age);
    return message ? finish_answer(d, rq, udp, message, len, age) : 0;
}

static void keep_answer(void *arg, const struct dns_key *key, const uint8_t *message,
                        const struct dns_answer *answer)
{
    struct dns *d = arg;
    dns_cache_put(d->cache, key, message, answer->len, answer->ttl, loop_now(d->loop));
}

static void free_query(struct dns_query *q)
{
    list_remove(&q->link);
    q->dns->query_count--;
    free(q);
}

static void on_answer(void *arg, const uint8_t *message, size_t len)
{
    struct dns_query *q = arg;
    struct dns *d = q->dns;
    dns_answer_fn *fn = q->fn;
    void *fn_arg = q->arg;
    size_t used = message ? finish_answer(d, &q->request, q->udp, message, len, 0)
                          : dns_reply_empty(&q->request, DNS_SERVFAIL, d->answer);
    free_query(q);
    fn(fn_arg, d->answer, used);
}

/* NULL: too many questions are open, or out of memory. */
static struct dns_query *ask_server(struct dns *d, const struct dns_request *rq,
                                    const struct dns_key *key)
{
    if (d->query_count >= DNS_PENDING_MAX)
        return NULL;
    struct dns_query *q = memory_zeroed(sizeof(*q));
    if (!q)
        return NULL;
    q->dns = d;
    q->request = *rq;
    q->waiter.fn = on_answer;
    q->waiter.arg = q;
    if (!dns_forward_ask(d->forward, key, &q->waiter)) {
        free(q);
        return NULL;
    }
    list_push_back(&d->queries, &q->link);
    d->query_count++;
    return q;
}

/* --- in and out ------------------------------------------------------------------------------ */

struct dns *dns_new(struct loop *loop, struct proxy *proxy, const struct dns_config *config)
{
    struct dns *d = memory_zeroed(sizeof(*d));
    if (!d)
        return NULL;
    d->loop = loop;
    d->mode = config->mode;
    list_init(&d->queries);
    if (d->mode == DNS_RELAY)
        return d;
    if (d->mode == DNS_FAKE) {
        d->own_fake = config->fake ? NULL
                                   : fakedns_new(config->fake_ranges, config->fake_range_count,
                                                 config->own_addresses, config->own_address_count);
        d->fake = config->fake ? config->fake : d->own_fake;
        if (!d->fake)
            goto fail;
    }
    d->cache = dns_cache_new(CACHE_ANSWERS, CACHE_BYTES);
    d->forward = dns_forward_new(loop, proxy, &config->server, keep_answer, d);
    if (d->cache && d->forward)
        return d;
fail:
    dns_free(d);
    return NULL;
}

void dns_free(struct dns *d)
{
    if (!d)
        return;
    dns_forward_free(d->forward);
    LIST_EACH (it, &d->queries)
        free_query(CONTAINER_OF(it, struct dns_query, link));
    dns_cache_free(d->cache);
    fakedns_free(d->own_fake);
    free(d);
}

enum dns_mode dns_mode(const struct dns *d)
{
    return d->mode;
}

struct dns_query *dns_ask(struct dns *d, const uint8_t *query, size_t len, bool udp,
                          dns_answer_fn *fn, void *arg)
{
    struct dns_request rq;
    enum dns_rcode rcode;
    if (d->mode == DNS_RELAY || !dns_request_parse(&rq, query, len, &rcode))
        return NULL;

    size_t used;
    struct dns_key key;
    if (rcode != DNS_NOERROR) {
        used = dns_reply_empty(&rq, rcode, d->answer);
    } else {
        used = answer_locally(d, &rq);
        if (used == 0) {
            dns_key_make(&key, &rq);
            used = answer_from_cache(d, &rq, udp, &key);
        }
    }
    if (used == 0) {
        struct dns_query *q = ask_server(d, &rq, &key);
        if (q) {
            q->udp = udp;
            q->fn = fn;
            q->arg = arg;
            return q;
        }
        used = dns_reply_empty(&rq, DNS_SERVFAIL, d->answer);
    }
    fn(arg, d->answer, used);
    return NULL;
}

void dns_cancel(struct dns_query *query)
{
    dns_forward_cancel(&query->waiter);
    free_query(query);
}

enum dns_fake dns_fake_lookup(struct dns *d, const struct addr *a, char name[256])
{
    if (!d->fake || !fakedns_in_range(d->fake, a) || fakedns_is_own(d->fake, a))
        return DNS_FAKE_NOT;
    return fakedns_name(d->fake, a, name) ? DNS_FAKE_KNOWN : DNS_FAKE_UNKNOWN;
}

void dns_fake_hold(struct dns *d, const struct addr *a)
{
    if (d->fake)
        fakedns_hold(d->fake, a);
}

void dns_fake_release(struct dns *d, const struct addr *a)
{
    if (d->fake)
        fakedns_release(d->fake, a);
}
