/*
 * Queries to the DNS server over TCP through the proxy (RFC 7766): over one connection as a
 * rule, pipelined, answers in any order; see dns_forward.c.
 */
#ifndef CULVERT_DNS_FORWARD_H
#define CULVERT_DNS_FORWARD_H

#include "core/base/list.h"
#include "core/dns/dns_message.h"
#include "core/loop.h"
#include "core/proxy/proxy.h"

enum { DNS_PENDING_MAX = 4096 };

struct dns_forward;

/* Whoever waits for an answer, embedded. In normal form; NULL: there is none to be had. */
typedef void dns_waiter_fn(void *arg, const uint8_t *answer, size_t len);
struct dns_waiter {
    struct link link;
    dns_waiter_fn *fn;
    void *arg;
};

/* Called once for each answer, before those who wait for it: to cache it. */
typedef void dns_answered_fn(void *arg, const struct dns_key *key, const uint8_t *message,
                             const struct dns_answer *answer);

/* NULL when out of memory. */
struct dns_forward *dns_forward_new(struct loop *loop, struct proxy *proxy,
                                    const struct endpoint *server, dns_answered_fn *answered,
                                    void *arg);
/* Who still waits is not called; its waiter must not be cancelled afterwards. */
void dns_forward_free(struct dns_forward *f);
/*
 * Ask the server. `waiter->fn` is called once, later; it may ask and cancel. False, without a
 * call: DNS_PENDING_MAX questions are open, or out of memory. Who asks what is being asked
 * already shares the answer.
 */
bool dns_forward_ask(struct dns_forward *f, const struct dns_key *key, struct dns_waiter *waiter);
/* Wait no more. Not after `fn` was called. */
void dns_forward_cancel(struct dns_waiter *waiter);

#endif
