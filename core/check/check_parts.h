/*
 * What the steps of `check` share: what they find out for one another, and waiting with an end.
 */
#ifndef CULVERT_CHECK_PARTS_H
#define CULVERT_CHECK_PARTS_H

#include "core/check/check.h"
#include "core/check/stun.h"
#include "core/proxy/attempt.h"
#include "core/proxy/proxy.h"

/* A STUN server and what it said. */
struct check_stun {
    struct target to; /* `name` belongs to the options */
    bool answered;
    struct stun_answer answer;
};

struct check {
    const struct options *options;
    struct outbound_options outbound; /* towards the proxy, as `up` would have it */
    struct outbound_options resolver_outbound;
    unsigned timeout_ms; /* of one step */
    struct loop *loop;
    struct resolver *resolver;
    struct proxy *proxy; /* speaks step by step: pipelining is a step of its own */

    struct resolver_answer addrs; /* the proxy's */
    bool reached;
    struct endpoint peer;    /* reached: the first address that accepted */
    bool accepted;           /* it lets us in; direct:// does always */
    bool v6_works;           /* CONNECT by address */
    struct target answering; /* a target that CONNECT has reached; `name` may be the options' */
    bool has_answering;
    double connect_ms; /* how long that took */

    int control_fd;                               /* of the association; -1: none */
    int udp_fd;                                   /* connected to its relay; -1: none */
    struct endpoint relay;                        /* valid with udp_fd */
    bool udp_works;                               /* an answer has come */
    struct check_stun stun[OPTIONS_LIST_MAX + 1]; /* the last one: a server's other address */
    size_t stun_count;
};

/* --- check.c ---------------------------------------------------------------------------------- */

/* CLOCK_MONOTONIC in milliseconds, with fractions. */
double check_now(void);
/* Milliseconds left of a step of `timeout_ms` that began at `began`: 0 when time is up. */
unsigned check_left(double began, unsigned timeout_ms);
/* Turn the loop until `done(arg)`, for `ms` at most. Is it done? */
bool check_wait_until(struct check *c, bool (*done)(const void *arg), const void *arg, unsigned ms);
/* The same for a flag. */
bool check_wait(struct check *c, const bool *done, unsigned ms);
/* poll(2) one descriptor; false when time is up. */
bool check_poll(int fd, short events, unsigned ms);
/* Look a name up, within `ms`. False: `out->error` says why not. */
bool check_resolve(struct check *c, const char *name, unsigned ms, struct resolver_answer *out);
/* Through the proxy, within the step's time. Returns the status; out->fd is the caller's. */
enum dial_status check_dial(struct check *c, enum socks5_command command,
                            const struct target *target, struct dial_result *out);
/* How a dial failed, in words: "refused by the proxy (connection refused)". */
enum { CHECK_DIAL_TEXT_MAX = 160 };
char *check_describe_dial(const struct dial_result *result, char text[CHECK_DIAL_TEXT_MAX]);
/* Is it one of the addresses that a culvert which is up answers names with? */
bool check_is_fake(const struct check *c, const struct addr *a);
bool check_is_direct(const struct check *c);

void check_random(void *out, size_t len);
enum { CHECK_QUERY_MAX = 300 };
/* A DNS query for the A records of `name`; returns its length in bytes. */
size_t check_write_query(uint8_t buf[CHECK_QUERY_MAX], const char *name, uint16_t id);
/* Is it an answer to the query `id`, whatever it says? */
bool check_is_dns_answer(const uint8_t *bytes, size_t len, uint16_t id);

/* --- the steps -------------------------------------------------------------------------------- */

/* check_proxy.c */
void check_name(struct check *c, struct check_result *r);
void check_reach(struct check *c, struct check_result *r);
void check_round_trip(struct check *c, struct check_result *r);
void check_login(struct check *c, struct check_result *r);
void check_pipelining(struct check *c, struct check_result *r);
/* check_connect.c */
void check_connect_name(struct check *c, struct check_result *r);
void check_connect_v4(struct check *c, struct check_result *r);
void check_connect_v6(struct check *c, struct check_result *r);
void check_dns_over_tcp(struct check *c, struct check_result *r);
/* check_udp.c */
void check_associate(struct check *c, struct check_result *r);
void check_udp_answer(struct check *c, struct check_result *r);
void check_udp_filtering(struct check *c, struct check_result *r);
void check_udp_mapping(struct check *c, struct check_result *r);
/* check_route.c */
void check_route_loop(struct check *c, struct check_result *r);
/* check_rules.c */
void check_rules(struct check *c, struct check_result *r);
/* check_machine.c */
void check_tun(struct check *c, struct check_result *r);
void check_privileges(struct check *c, struct check_result *r);
void check_offloads(struct check *c, struct check_result *r);
void check_namespaces(struct check *c, struct check_result *r);
void check_rp_filter(struct check *c, struct check_result *r);
/*
 * Run `look` in a child, which may change what is its own alone, and take what it writes to `out`.
 * False: it did not tell in time.
 */
bool check_in_child(const struct check *c, void (*look)(const struct check *c, void *out),
                    void *out, size_t size);
/* Does this process have the capability (linux/capability.h)? */
bool check_has_capability(unsigned capability);

#endif
