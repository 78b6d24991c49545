/*
 * Policy rules and routes over rtnetlink (libmnl), as `ip rule` and `ip route` would make them.
 *
 * Everything made here carries ROUTE_PROTOCOL, so that it can be told from what others made, and
 * taken away again, without a list of it: what is deleted is what a dump shows as ours.
 */
#ifndef CULVERT_STACK_ROUTE_H
#define CULVERT_STACK_ROUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/addr.h"

enum {
    ROUTE_PROTOCOL = 0xcf, /* rtm_protocol and FRA_PROTOCOL: none that iproute2 knows */
    ROUTE_METRIC_LAST = 4000000,
    ROUTE_TABLE_MAIN = 254,
};

/* What a rule that matches does (linux/fib_rules.h). */
enum rule_action {
    RULE_LOOKUP,      /* look into `table`; nothing there: the next rule */
    RULE_GOTO,        /* continue with the rule of priority `target` */
    RULE_NOP,         /* continue with the next rule: something to go to */
    RULE_UNREACHABLE, /* ENETUNREACH */
};

/* A rule of one family. Selectors that are zero match everything. */
struct rule {
    int family; /* AF_INET, AF_INET6 */
    uint32_t priority;
    enum rule_action action;
    uint32_t table;
    uint32_t target;
    bool suppress_default; /* RULE_LOOKUP: default routes of the table do not count */

    bool forwarded; /* packets of others alone, none of this machine's own (not iif lo) */
    uint32_t mark;
    bool has_uids;
    uint32_t first_uid, last_uid;
    uint8_t protocol; /* IPPROTO_TCP, IPPROTO_UDP */
    uint16_t port;    /* destination, host byte order */
    bool has_from, has_to;
    struct cidr from, to; /* of the rule's family */
};

struct route_session; /* a netlink socket */

/* NULL with `*error` set to -errno. */
struct route_session *route_open(int *error);
void route_close(struct route_session *s); /* NULL is fine */

/* 0 or -errno; 0 also when the very same rule is there. -EAFNOSUPPORT: a kernel without IPv6. */
int rule_add(struct route_session *s, const struct rule *rule);
/* Delete our rules of both families with a priority from `first` to `last`. 0 or -errno. */
int rule_delete_ours(struct route_session *s, uint32_t first, uint32_t last);
/* How many rules, ours or not, of both families lie there; `ours` alone where that is set. */
int rule_count(struct route_session *s, uint32_t first, uint32_t last, bool ours);

/*
 * Add a default route to `table`: into the device `ifindex`, or with 0 an unreachable one of the
 * last metric, which counts as soon as the other is gone. 0 or -errno, 0 when it is there.
 */
int route_add_default(struct route_session *s, int family, uint32_t table, int ifindex);
/* Delete our routes of both families in `table`. */
int route_delete_ours(struct route_session *s, uint32_t table);
/* How many routes of both families are in `table`, or -errno; `ours` alone where that is set. */
int route_count(struct route_session *s, uint32_t table, bool ours);

/*
 * Call `fn` for each destination in `table` that is not the default route: connected networks
 * and more specific routes. Unreachable and blackhole routes are left out. 0 or -errno.
 */
int route_each_network(struct route_session *s, uint32_t table,
                       void (*fn)(void *arg, const struct cidr *network), void *arg);

/* --- events ---------------------------------------------------------------------------------- */

enum {
    ROUTE_EVENT_OURS_LOST = 1, /* a rule or route with our protocol was deleted, by whomever */
    ROUTE_EVENT_ROUTES = 2,    /* others' routes have changed */
    ROUTE_EVENT_LINKS = 4,     /* a link has come, gone or changed */
};

/* A non-blocking netlink socket that hears of changes; close() it. -errno on failure. */
int route_events_open(void);
/*
 * The same for nftables: hears of tables that are deleted (`nft flush ruleset`, as when a firewall
 * is loaded anew). -errno on failure: a kernel without it.
 */
int nft_events_open(void);
/* Has a table of that name been deleted since the last call, and not been made again? */
bool nft_events_read(int fd, const char *table);

/* What has happened since the last call, as ROUTE_EVENT_ bits. All of them after an overrun. */
unsigned route_events_read(int fd);

#endif
