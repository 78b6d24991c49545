/*
 * Answers of the DNS server, kept for as long as their TTLs allow (RFC 1035, 7.4; RFC 2308 for
 * negative ones), in normal form (core/dns/dns_message.h). Bounded in number and in bytes: the
 * answer used longest ago gives way.
 */
#ifndef CULVERT_DNS_CACHE_H
#define CULVERT_DNS_CACHE_H

#include "core/dns/dns_message.h"

struct dns_cache;

/* At most `max_answers`, and `max_bytes` of memory for them. NULL when out of memory. */
struct dns_cache *dns_cache_new(size_t max_answers, size_t max_bytes);
void dns_cache_free(struct dns_cache *c);
/*
 * Keep a copy of `message`, from `now_ms` for `ttl` seconds, in place of an older one. 0 is not
 * kept, nor is anything when memory is short.
 */
void dns_cache_put(struct dns_cache *c, const struct dns_key *key, const uint8_t *message,
                   size_t len, uint32_t ttl, uint64_t now_ms);
/*
 * What was kept, and how many seconds ago; NULL: nothing. The bytes are the cache's, valid until
 * it is called again.
 */
const uint8_t *dns_cache_get(struct dns_cache *c, const struct dns_key *key, uint64_t now_ms,
                             size_t *len, uint32_t *age);

#endif
