/*
 * DNS policy (--dns): what happens to a query that an application sends to port 53 of anywhere.
 *
 *   fake    A and AAAA are answered from the fake ranges (core/dns/fakedns.h), HTTPS/SVCB with
 *           NODATA, PTR in the range from the map; other types go the way of `tcp`
 *   tcp     over few pipelined TCP connections through the proxy to --dns-server, cached by TTL
 *   relay   not taken at all: UDP like any other
 */
#ifndef CULVERT_DNS_H
#define CULVERT_DNS_H

#include "core/loop.h"
#include "core/proxy/proxy.h"

enum dns_mode { DNS_FAKE, DNS_TCP, DNS_RELAY };

struct dns;
struct dns_config {
    enum dns_mode mode;
    struct endpoint server;         /* --dns-server */
    const struct cidr *fake_ranges; /* v4 and v6 */
    size_t fake_range_count;
    const struct addr *own_addresses; /* never handed out */
    size_t own_address_count;
    struct fakedns *fake; /* shared, stays the caller's, and takes the ranges' place; NULL: none */
};
/* NULL when out of memory. */
struct dns *dns_new(struct loop *loop, struct proxy *proxy, const struct dns_config *config);
void dns_free(struct dns *d); /* pending queries are dropped without a call */
enum dns_mode dns_mode(const struct dns *d);

struct dns_query;
typedef void dns_answer_fn(void *arg, const uint8_t *answer, size_t len);
/*
 * Ask. `query` is a DNS message (RFC 1035, 4), copied. `udp`: the answer is cut to the size that
 * the client allows (512, or EDNS), with TC set; else up to 65,535 bytes. Answers that need no
 * network come before this returns, which then returns NULL, as it does for garbage (dropped
 * without a call) and out of memory. Otherwise `fn` is called once, later, with the answer or a
 * SERVFAIL.
 */
struct dns_query *dns_ask(struct dns *d, const uint8_t *query, size_t len, bool udp,
                          dns_answer_fn *fn, void *arg);
/* `fn` will not be called. Not after it was. */
void dns_cancel(struct dns_query *query);

/* --- names behind fake addresses ------------------------------------------------------------- */

enum dns_fake { DNS_FAKE_NOT, DNS_FAKE_KNOWN, DNS_FAKE_UNKNOWN };
/*
 * Is `a` in a fake range, and whose is it? KNOWN: writes the name (without trailing dot).
 * Our own addresses in the range are NOT fake, and UNKNOWN is to be refused. NOT when mode is not
 * fake.
 */
enum dns_fake dns_fake_lookup(struct dns *d, const struct addr *a, char name[256]);
/* A flow uses the address: it is not recycled until as many releases. */
void dns_fake_hold(struct dns *d, const struct addr *a);
void dns_fake_release(struct dns *d, const struct addr *a);

#endif
