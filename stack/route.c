#include "stack/route.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libmnl/libmnl.h>
#include <linux/fib_rules.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

enum {
    BUFFER_SIZE = 32768,  /* the kernel fills dumps up to 32 KiB */
    REQUEST_SIZE = 1024,  /* no request of ours comes near */
    DELETE_ROUNDS = 4096, /* one message each: far more than we ever make */
};

struct route_session {
    struct mnl_socket *socket;
    unsigned portid;
    unsigned seq;
};

static const int families[] = {AF_INET, AF_INET6};

struct route_session *route_open(int *error)
{
    struct route_session *s = calloc(1, sizeof(*s));
    if (!s) {
        *error = -ENOMEM;
        return NULL;
    }
    s->socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (!s->socket || mnl_socket_bind(s->socket, 0, MNL_SOCKET_AUTOPID) < 0) {
        *error = -errno;
        route_close(s);
        return NULL;
    }
    s->portid = mnl_socket_get_portid(s->socket);
    s->seq = (unsigned)time(NULL);
    return s;
}

void route_close(struct route_session *s)
{
    if (!s)
        return;
    if (s->socket)
        mnl_socket_close(s->socket);
    free(s);
}

/* --- talking --------------------------------------------------------------------------------- */

/*
 * Send a request and read until the kernel has said all; `fn` sees each message of a dump.
 * A dump that changes underneath (EINTR) is complete enough: callers look again or do not care.
 */
static int talk(struct route_session *s, struct nlmsghdr *request, mnl_cb_t fn, void *arg)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[BUFFER_SIZE];
    request->nlmsg_seq = ++s->seq;
    if (mnl_socket_sendto(s->socket, request, request->nlmsg_len) < 0)
        return -errno;
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(s->socket, buffer, sizeof(buffer));
        if (n < 0)
            return -errno;
        int verdict = mnl_cb_run(buffer, (size_t)n, s->seq, s->portid, fn, arg);
        if (verdict == MNL_CB_ERROR && errno == EINTR)
            continue;
        if (verdict == MNL_CB_ERROR)
            return errno == EPROTO || errno == ESRCH ? -EIO : -errno;
        if (verdict == MNL_CB_STOP)
            return 0;
    }
}

/* For deletions, where "no such rule or route" must not look like a protocol error. */
static int command(struct route_session *s, struct nlmsghdr *request)
{
    request->nlmsg_flags = (uint16_t)(request->nlmsg_flags | NLM_F_REQUEST | NLM_F_ACK);
    request->nlmsg_seq = ++s->seq;
    request->nlmsg_pid = 0;
    if (mnl_socket_sendto(s->socket, request, request->nlmsg_len) < 0)
        return -errno;
    _Alignas(NLMSG_ALIGNTO) char buffer[BUFFER_SIZE];
    ssize_t n = mnl_socket_recvfrom(s->socket, buffer, sizeof(buffer));
    if (n < 0)
        return -errno;
    const struct nlmsghdr *reply = (const struct nlmsghdr *)(const void *)buffer;
    if (!mnl_nlmsg_ok(reply, (int)n) || reply->nlmsg_type != NLMSG_ERROR ||
        reply->nlmsg_seq != s->seq)
        return -EIO;
    const struct nlmsgerr *error = mnl_nlmsg_get_payload(reply);
    return error->error;
}

/* `buffer`: REQUEST_SIZE bytes. Zeroed: libmnl leaves the padding between attributes as it is. */
static struct nlmsghdr *begin(char *buffer, uint16_t type, uint16_t flags)
{
    memset(buffer, 0, REQUEST_SIZE);
    struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
    h->nlmsg_type = type;
    h->nlmsg_flags = flags;
    return h;
}

/* --- attributes ------------------------------------------------------------------------------ */

static size_t wire_size(int family)
{
    return family == AF_INET ? 4 : 16;
}

static void put_address(struct nlmsghdr *h, uint16_t type, int family, const struct addr *a)
{
    mnl_attr_put(h, type, wire_size(family), family == AF_INET ? addr_v4_bytes(a) : a->bytes);
}

/* The attribute `type` of at least `size` bytes behind a header of `offset` bytes; NULL: none. */
static const struct nlattr *find_attr(const struct nlmsghdr *h, size_t offset, uint16_t type,
                                      size_t size)
{
    const char *tail = mnl_nlmsg_get_payload_tail(h);
    const struct nlattr *attr = mnl_nlmsg_get_payload_offset(h, offset);
    while (mnl_attr_ok(attr, (int)(tail - (const char *)attr))) {
        if (mnl_attr_get_type(attr) == type && mnl_attr_get_payload_len(attr) >= size)
            return attr;
        attr = mnl_attr_next(attr);
    }
    return NULL;
}

static uint32_t get_u32(const struct nlmsghdr *h, size_t offset, uint16_t type, uint32_t fallback)
{
    const struct nlattr *attr = find_attr(h, offset, type, sizeof(uint32_t));
    return attr ? mnl_attr_get_u32(attr) : fallback;
}

/* --- searching ------------------------------------------------------------------------------- */

static int dump(struct route_session *s, uint16_t type, int family, mnl_cb_t fn, void *arg)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[REQUEST_SIZE];
    struct nlmsghdr *h = begin(buffer, type, NLM_F_REQUEST | NLM_F_DUMP);
    size_t header = type == RTM_GETRULE ? sizeof(struct fib_rule_hdr) : sizeof(struct rtmsg);
    uint8_t *extra = mnl_nlmsg_put_extra_header(h, header);
    extra[0] = (uint8_t)family; /* the first byte of both headers */
    int error = talk(s, h, fn, arg);
    return error == -EAFNOSUPPORT || error == -EOPNOTSUPP ? 0 : error;
}

/* What is looked for among all rules or all routes, and what was found. */
struct search {
    uint16_t get, delete; /* message types: RTM_GETRULE and RTM_DELRULE, or those of routes */
    bool (*matches)(const struct search *search, const struct nlmsghdr *h);
    uint32_t first, last; /* rules: the priorities */
    uint32_t table;       /* routes */
    bool ours;            /* only what we made */
    int count;
    _Alignas(NLMSG_ALIGNTO) char message[REQUEST_SIZE]; /* the first that was found, as it came */
    bool found;
};

static int on_message(const struct nlmsghdr *h, void *arg)
{
    struct search *search = arg;
    if (!search->matches(search, h))
        return MNL_CB_OK;
    search->count++;
    if (!search->found && h->nlmsg_len <= sizeof(search->message)) {
        memcpy(search->message, h, h->nlmsg_len);
        search->found = true;
    }
    return MNL_CB_OK;
}

/* How many there are, of both families, or -errno. */
static int count_matches(struct route_session *s, struct search *search)
{
    for (size_t i = 0; i < 2; i++) {
        int error = dump(s, search->get, families[i], on_message, search);
        if (error < 0)
            return error;
    }
    return search->count;
}

/* Send a message of a dump back as a deletion: that names a rule or route in all its detail. */
static int delete_message(struct route_session *s, char *message, uint16_t type)
{
    struct nlmsghdr *h = (struct nlmsghdr *)(void *)message;
    h->nlmsg_type = type;
    h->nlmsg_flags = 0;
    int error = command(s, h);
    return error == -ENOENT || error == -ESRCH ? 0 : error;
}

/* Of both families, one by one: a dump is over before the next command. */
static int delete_matches(struct route_session *s, struct search *search)
{
    for (size_t i = 0; i < 2; i++) {
        for (int round = 0; round < DELETE_ROUNDS; round++) {
            search->found = false;
            int error = dump(s, search->get, families[i], on_message, search);
            if (error == 0 && search->found)
                error = delete_message(s, search->message, search->delete);
            if (error < 0)
                return error;
            if (!search->found)
                break;
        }
    }
    return 0;
}

/* --- rules ----------------------------------------------------------------------------------- */

static uint8_t wire_action(enum rule_action action)
{
    switch (action) {
    case RULE_LOOKUP:
        return FR_ACT_TO_TBL;
    case RULE_GOTO:
        return FR_ACT_GOTO;
    case RULE_NOP:
        return FR_ACT_NOP;
    case RULE_UNREACHABLE:
        return FR_ACT_UNREACHABLE;
    }
    return FR_ACT_UNSPEC;
}

static void put_selectors(struct nlmsghdr *h, struct fib_rule_hdr *f, const struct rule *rule)
{
    if (rule->forwarded) {
        f->flags |= FIB_RULE_INVERT;
        mnl_attr_put_strz(h, FRA_IIFNAME, "lo");
    }
    if (rule->mark) {
        mnl_attr_put_u32(h, FRA_FWMARK, rule->mark);
        mnl_attr_put_u32(h, FRA_FWMASK, UINT32_MAX);
    }
    if (rule->has_uids) {
        struct fib_rule_uid_range range = {.start = rule->first_uid, .end = rule->last_uid};
        mnl_attr_put(h, FRA_UID_RANGE, sizeof(range), &range);
    }
    if (rule->protocol)
        mnl_attr_put_u8(h, FRA_IP_PROTO, rule->protocol);
    if (rule->port) {
        struct fib_rule_port_range range = {.start = rule->port, .end = rule->port};
        mnl_attr_put(h, FRA_DPORT_RANGE, sizeof(range), &range);
    }
    if (rule->has_from) {
        f->src_len = rule->from.prefix;
        put_address(h, FRA_SRC, rule->family, &rule->from.addr);
    }
    if (rule->has_to) {
        f->dst_len = rule->to.prefix;
        put_address(h, FRA_DST, rule->family, &rule->to.addr);
    }
}

int rule_add(struct route_session *s, const struct rule *rule)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[REQUEST_SIZE];
    struct nlmsghdr *h = begin(buffer, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
    struct fib_rule_hdr *f = mnl_nlmsg_put_extra_header(h, sizeof(*f));
    f->family = (uint8_t)rule->family;
    f->action = wire_action(rule->action);
    mnl_attr_put_u32(h, FRA_PRIORITY, rule->priority);
    mnl_attr_put_u8(h, FRA_PROTOCOL, ROUTE_PROTOCOL);
    if (rule->action == RULE_LOOKUP)
        mnl_attr_put_u32(h, FRA_TABLE, rule->table);
    if (rule->action == RULE_GOTO)
        mnl_attr_put_u32(h, FRA_GOTO, rule->target);
    if (rule->suppress_default)
        mnl_attr_put_u32(h, FRA_SUPPRESS_PREFIXLEN, 0);
    put_selectors(h, f, rule);
    int error = command(s, h);
    return error == -EEXIST ? 0 : error;
}

static uint8_t rule_protocol(const struct nlmsghdr *h)
{
    const struct nlattr *attr = find_attr(h, sizeof(struct fib_rule_hdr), FRA_PROTOCOL, 1);
    return attr ? mnl_attr_get_u8(attr) : 0;
}

static bool is_rule(const struct search *search, const struct nlmsghdr *h)
{
    if (h->nlmsg_type != RTM_NEWRULE || mnl_nlmsg_get_payload_len(h) < sizeof(struct fib_rule_hdr))
        return false;
    uint32_t priority = get_u32(h, sizeof(struct fib_rule_hdr), FRA_PRIORITY, 0);
    return priority >= search->first && priority <= search->last &&
           (!search->ours || rule_protocol(h) == ROUTE_PROTOCOL);
}

static struct search search_rules(uint32_t first, uint32_t last, bool ours)
{
    return (struct search){.get = RTM_GETRULE,
                           .delete = RTM_DELRULE,
                           .matches = is_rule,
                           .first = first,
                           .last = last,
                           .ours = ours};
}

int rule_count(struct route_session *s, uint32_t first, uint32_t last, bool ours)
{
    struct search search = search_rules(first, last, ours);
    return count_matches(s, &search);
}

int rule_delete_ours(struct route_session *s, uint32_t first, uint32_t last)
{
    struct search search = search_rules(first, last, true);
    return delete_matches(s, &search);
}

/* --- routes ---------------------------------------------------------------------------------- */

int route_add_default(struct route_session *s, int family, uint32_t table, int ifindex)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[REQUEST_SIZE];
    struct nlmsghdr *h = begin(buffer, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
    struct rtmsg *r = mnl_nlmsg_put_extra_header(h, sizeof(*r));
    r->rtm_family = (uint8_t)family;
    r->rtm_table = RT_TABLE_UNSPEC;
    r->rtm_protocol = ROUTE_PROTOCOL;
    r->rtm_type = ifindex ? RTN_UNICAST : RTN_UNREACHABLE;
    r->rtm_scope = ifindex && family == AF_INET ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
    mnl_attr_put_u32(h, RTA_TABLE, table);
    if (ifindex)
        mnl_attr_put_u32(h, RTA_OIF, (uint32_t)ifindex);
    else
        mnl_attr_put_u32(h, RTA_PRIORITY, ROUTE_METRIC_LAST);
    int error = command(s, h);
    return error == -EEXIST ? 0 : error;
}

/* Is it a route of that table, rather than another table's or a cached one? */
static const struct rtmsg *route_of_table(const struct nlmsghdr *h, uint32_t table)
{
    if (h->nlmsg_type != RTM_NEWROUTE || mnl_nlmsg_get_payload_len(h) < sizeof(struct rtmsg))
        return NULL;
    const struct rtmsg *r = mnl_nlmsg_get_payload(h);
    if (get_u32(h, sizeof(*r), RTA_TABLE, r->rtm_table) != table || (r->rtm_flags & RTM_F_CLONED))
        return NULL;
    return r;
}

static bool is_route(const struct search *search, const struct nlmsghdr *h)
{
    const struct rtmsg *r = route_of_table(h, search->table);
    return r && (!search->ours || r->rtm_protocol == ROUTE_PROTOCOL);
}

static struct search search_routes(uint32_t table, bool ours)
{
    return (struct search){.get = RTM_GETROUTE,
                           .delete = RTM_DELROUTE,
                           .matches = is_route,
                           .table = table,
                           .ours = ours};
}

int route_count(struct route_session *s, uint32_t table, bool ours)
{
    struct search search = search_routes(table, ours);
    return count_matches(s, &search);
}

int route_delete_ours(struct route_session *s, uint32_t table)
{
    struct search search = search_routes(table, true);
    return delete_matches(s, &search);
}

struct network_walk {
    uint32_t table;
    void (*fn)(void *arg, const struct cidr *network);
    void *arg;
};

static int on_network(const struct nlmsghdr *h, void *arg)
{
    const struct network_walk *walk = arg;
    const struct rtmsg *r = route_of_table(h, walk->table);
    if (!r || r->rtm_dst_len == 0 || r->rtm_type != RTN_UNICAST)
        return MNL_CB_OK;
    const struct nlattr *attr = find_attr(h, sizeof(*r), RTA_DST, wire_size(r->rtm_family));
    if (!attr)
        return MNL_CB_OK;
    const uint8_t *bytes = mnl_attr_get_payload(attr);
    struct cidr network = {.prefix = r->rtm_dst_len};
    network.addr = r->rtm_family == AF_INET ? addr_from_v4(bytes) : addr_from_v6(bytes);
    walk->fn(walk->arg, &network);
    return MNL_CB_OK;
}

int route_each_network(struct route_session *s, uint32_t table,
                       void (*fn)(void *arg, const struct cidr *network), void *arg)
{
    struct network_walk walk = {.table = table, .fn = fn, .arg = arg};
    int error = 0;
    for (size_t i = 0; i < 2 && error == 0; i++)
        error = dump(s, RTM_GETROUTE, families[i], on_network, &walk);
    return error;
}

/* --- events ---------------------------------------------------------------------------------- */

static int open_groups(int protocol, uint32_t groups)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
    if (fd < 0)
        return -errno;
    struct sockaddr_nl sa = {.nl_family = AF_NETLINK, .nl_groups = groups};
    if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
        return fd;
    int error = -errno;
    close(fd);
    return error;
}

int route_events_open(void)
{
    return open_groups(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE |
                                          RTMGRP_IPV4_RULE | 1u << (RTNLGRP_IPV6_RULE - 1));
}

int nft_events_open(void)
{
    return open_groups(NETLINK_NETFILTER, 1u << (NFNLGRP_NFTABLES - 1));
}

static unsigned event_of(const struct nlmsghdr *h)
{
    const struct rtmsg *r = mnl_nlmsg_get_payload(h);
    switch (h->nlmsg_type) {
    case RTM_DELRULE:
        return rule_protocol(h) == ROUTE_PROTOCOL ? ROUTE_EVENT_OURS_LOST : 0;
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
        if (mnl_nlmsg_get_payload_len(h) < sizeof(*r) || (r->rtm_flags & RTM_F_CLONED))
            return 0;
        if (r->rtm_protocol != ROUTE_PROTOCOL)
            return ROUTE_EVENT_ROUTES;
        return h->nlmsg_type == RTM_DELROUTE ? ROUTE_EVENT_OURS_LOST : 0;
    case RTM_NEWLINK:
    case RTM_DELLINK:
        return ROUTE_EVENT_LINKS;
    default:
        return 0;
    }
}

unsigned route_events_read(int fd)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[BUFFER_SIZE];
    unsigned events = 0;
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
        if (n < 0 && errno == ENOBUFS) {
            events |= ROUTE_EVENT_OURS_LOST | ROUTE_EVENT_ROUTES | ROUTE_EVENT_LINKS;
            continue;
        }
        if (n <= 0)
            return events;
        int left = (int)n;
        const struct nlmsghdr *h = (const struct nlmsghdr *)(const void *)buffer;
        for (; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left))
            events |= event_of(h);
    }
}

/* Is it about a table of that name? */
static bool is_about(const struct nlmsghdr *h, const char *table)
{
    if (mnl_nlmsg_get_payload_len(h) < sizeof(struct nfgenmsg))
        return false;
    const struct nlattr *attr =
        find_attr(h, sizeof(struct nfgenmsg), NFTA_TABLE_NAME, strlen(table) + 1);
    return attr && mnl_attr_validate(attr, MNL_TYPE_NUL_STRING) >= 0 &&
           strcmp(mnl_attr_get_str(attr), table) == 0;
}

bool nft_events_read(int fd, const char *table)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[BUFFER_SIZE];
    bool deleted = false;
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
        if (n < 0 && errno == ENOBUFS) {
            deleted = true; /* perhaps */
            continue;
        }
        if (n <= 0)
            return deleted;
        int left = (int)n;
        const struct nlmsghdr *h = (const struct nlmsghdr *)(const void *)buffer;
        for (; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
            bool made = h->nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE);
            bool gone = h->nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE);
            if ((made || gone) && is_about(h, table))
                deleted = gone;
        }
    }
}
