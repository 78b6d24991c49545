/*
 * The link over rtnetlink (rtnetlink(7), through libmnl). Each call opens a socket, says one
 * thing, waits for the kernel's acknowledgement, which is there when sendto(2) returns, and
 * closes it: this runs at start and stop only. What the kernel adds in words to an error
 * (NETLINK_EXT_ACK) goes to the debug log.
 *
 * A device that nobody uses must not wake its process. The kernel would send router
 * solicitations from a link-local address, so none is generated (addrgenmode none, set before the
 * link goes up); NODAD spares the neighbour solicitations of duplicate address detection.
 *
 * Linux makes an IPv6 address its own from a work queue, some time after it was added or after the
 * link went up. Until then it may be bound to, but what is sent to it is dropped: the first SYN
 * would go out and its answer be lost. So both calls wait until the address is reached.
 */
#include "stack/link.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <time.h>

#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/version.h>

#include "core/base/log.h"
#include "stack/route.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
#define IFLA_GSO_IPV4_MAX_SIZE 63 /* Debian 12's headers are older */
#endif

enum {
    REQUEST_SIZE = 512,
    REPLY_SIZE = 16384,
    SETTLE_TRIES = 1000,   /* one a millisecond: mostly it takes less than one */
    SETTLE_ADDRESSES = 16, /* of one link, that are waited for */
};

/* A request under construction; libmnl aligns within it. */
struct request {
    _Alignas(NLMSG_ALIGNTO) char bytes[REQUEST_SIZE];
    struct nlmsghdr *header;
};

static void request_begin(struct request *r, uint16_t type, uint16_t flags)
{
    memset(r->bytes, 0, sizeof(r->bytes));
    r->header = mnl_nlmsg_put_header(r->bytes);
    r->header->nlmsg_type = type;
    r->header->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    r->header->nlmsg_seq = 1;
}

static int on_attribute(const struct nlattr *attribute, void *arg)
{
    const char **text = arg;
    if (mnl_attr_get_type(attribute) == NLMSGERR_ATTR_MSG &&
        mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) >= 0)
        *text = mnl_attr_get_str(attribute);
    return MNL_CB_OK;
}

/* An acknowledgement (error 0) or an error, with the kernel's words where it has some. */
static int on_error(const struct nlmsghdr *header, void *arg)
{
    (void)arg;
    const struct nlmsgerr *error = mnl_nlmsg_get_payload(header);
    if (mnl_nlmsg_get_payload_len(header) < sizeof(*error)) {
        errno = EBADMSG;
        return MNL_CB_ERROR;
    }
    if (error->error == 0)
        return MNL_CB_STOP;
    const char *text = NULL;
    if (header->nlmsg_flags & NLM_F_ACK_TLVS)
        (void)mnl_attr_parse(header, sizeof(*error), on_attribute, &text);
    int code = error->error < 0 ? -error->error : error->error;
    log_debug("rtnetlink: %s%s%s", strerror(code), text ? ": " : "", text ? text : "");
    errno = code;
    return MNL_CB_ERROR;
}

/* Send the request and feed the answer's messages to `on_message`, up to its end. 0 or -errno. */
static int exchange(struct mnl_socket *socket, const struct request *r, mnl_cb_t on_message,
                    void *arg)
{
    /* No longer than that: libmnl's own handlers stay in place for the types beyond. */
    mnl_cb_t control[NLMSG_ERROR + 1] = {[NLMSG_ERROR] = on_error};
    _Alignas(NLMSG_ALIGNTO) char reply[REPLY_SIZE];
    int on = 1;
    (void)mnl_socket_setsockopt(socket, NETLINK_EXT_ACK, &on, sizeof(on));
    (void)mnl_socket_setsockopt(socket, NETLINK_CAP_ACK, &on, sizeof(on));
    if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0 ||
        mnl_socket_sendto(socket, r->header, r->header->nlmsg_len) < 0)
        return -errno;
    int result = MNL_CB_OK;
    while (result > MNL_CB_STOP) {
        ssize_t n = mnl_socket_recvfrom(socket, reply, sizeof(reply));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        result = mnl_cb_run2(reply, (size_t)n, 1, mnl_socket_get_portid(socket), on_message, arg,
                             control, NLMSG_ERROR + 1);
    }
    return result == MNL_CB_ERROR ? -errno : 0;
}

static int talk(const struct request *r, mnl_cb_t on_message, void *arg)
{
    struct mnl_socket *socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (!socket)
        return -errno;
    int result = exchange(socket, r, on_message, arg);
    mnl_socket_close(socket);
    return result;
}

/* --- the link ------------------------------------------------------------------------------- */

int link_index(const char *name)
{
    unsigned index = if_nametoindex(name);
    return index > 0 ? (int)index : -errno;
}

/* An RTM_NEWLINK or RTM_GETLINK request about that link. 0 or -errno. */
static int begin_link(struct request *r, uint16_t type, const char *name, struct ifinfomsg **out)
{
    int index = link_index(name);
    if (index < 0)
        return index;
    request_begin(r, type, NLM_F_ACK);
    *out = mnl_nlmsg_put_extra_header(r->header, sizeof(**out));
    (*out)->ifi_family = AF_UNSPEC;
    (*out)->ifi_index = index;
    return 0;
}

static int set_link_u32(const char *name, uint16_t attribute, uint32_t value)
{
    struct request r;
    struct ifinfomsg *info;
    int error = begin_link(&r, RTM_NEWLINK, name, &info);
    if (error < 0)
        return error;
    mnl_attr_put_u32(r.header, attribute, value);
    return talk(&r, NULL, NULL);
}

int link_set_mtu(const char *name, unsigned mtu)
{
    return set_link_u32(name, IFLA_MTU, mtu);
}

int link_set_txqueuelen(const char *name, unsigned packets)
{
    return set_link_u32(name, IFLA_TXQLEN, packets);
}

/* What RTM_GETLINK tells. */
struct link_state {
    uint32_t mtu;
    bool up;
    bool big_tcp; /* there is a limit for super-packets above 64 KiB, of IPv4 too */
};

static int on_link_attribute(const struct nlattr *attribute, void *arg)
{
    struct link_state *state = arg;
    uint16_t type = mnl_attr_get_type(attribute);
    if (type == IFLA_MTU && mnl_attr_validate(attribute, MNL_TYPE_U32) >= 0)
        state->mtu = mnl_attr_get_u32(attribute);
    if (type == IFLA_GSO_IPV4_MAX_SIZE)
        state->big_tcp = true;
    return MNL_CB_OK;
}

static int on_link(const struct nlmsghdr *header, void *arg)
{
    struct link_state *state = arg;
    const struct ifinfomsg *info = mnl_nlmsg_get_payload(header);
    state->up = (info->ifi_flags & IFF_UP) != 0;
    return mnl_attr_parse(header, sizeof(*info), on_link_attribute, state);
}

static int get_link(const char *name, struct link_state *out)
{
    struct request r;
    struct ifinfomsg *info;
    *out = (struct link_state){0};
    int error = begin_link(&r, RTM_GETLINK, name, &info);
    return error < 0 ? error : talk(&r, on_link, out);
}

bool link_kernel_has_big_tcp(void)
{
    struct link_state loopback;
    return get_link("lo", &loopback) == 0 && loopback.big_tcp;
}

int link_get_mtu(const char *name)
{
    struct link_state state;
    int error = get_link(name, &state);
    if (error < 0)
        return error;
    return state.mtu > 0 && state.mtu <= INT32_MAX ? (int)state.mtu : -ENODATA;
}

int link_set_addr_gen_mode(const char *name, uint8_t mode)
{
    struct request r;
    struct ifinfomsg *info;
    int error = begin_link(&r, RTM_NEWLINK, name, &info);
    if (error < 0)
        return error;
    struct nlattr *families = mnl_attr_nest_start(r.header, IFLA_AF_SPEC);
    struct nlattr *inet6 = mnl_attr_nest_start(r.header, AF_INET6);
    mnl_attr_put_u8(r.header, IFLA_INET6_ADDR_GEN_MODE, mode);
    mnl_attr_nest_end(r.header, inet6);
    mnl_attr_nest_end(r.header, families);
    return talk(&r, NULL, NULL);
}

/* From /proc, where it is one digit: over rtnetlink it lies three nests deep. */
int link_get_addr_gen_mode(const char *name)
{
    char path[96];
    char digit = '\0';
    (void)snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/addr_gen_mode", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, &digit, 1);
    close(fd);
    return n == 1 && digit >= '0' && digit <= '9' ? digit - '0' : -EIO;
}

/* Refused where the machine has no IPv6: then there is nothing to be silenced either. */
static void silence_ipv6(const char *name)
{
    (void)link_set_addr_gen_mode(name, IN6_ADDR_GEN_MODE_NONE);
}

/* --- its addresses -------------------------------------------------------------------------- */

static int change_address(const char *name, const struct cidr *address, uint16_t type,
                          uint16_t flags)
{
    int index = link_index(name);
    if (index < 0)
        return index;
    bool v4 = addr_is_v4(&address->addr);
    const uint8_t *bytes = v4 ? addr_v4_bytes(&address->addr) : address->addr.bytes;
    struct request r;
    request_begin(&r, type, (uint16_t)(NLM_F_ACK | flags));
    struct ifaddrmsg *message = mnl_nlmsg_put_extra_header(r.header, sizeof(*message));
    message->ifa_family = v4 ? AF_INET : AF_INET6;
    message->ifa_prefixlen = address->prefix;
    message->ifa_flags = v4 ? IFA_F_PERMANENT : IFA_F_PERMANENT | IFA_F_NODAD;
    message->ifa_index = (uint32_t)index;
    mnl_attr_put(r.header, IFA_LOCAL, v4 ? 4 : 16, bytes);
    mnl_attr_put(r.header, IFA_ADDRESS, v4 ? 4 : 16, bytes);
    return talk(&r, NULL, NULL);
}

/* --- waiting for IPv6 ----------------------------------------------------------------------- */

static int on_route(const struct nlmsghdr *header, void *arg)
{
    const struct rtmsg *route = mnl_nlmsg_get_payload(header);
    bool *local = arg;
    *local = route->rtm_type == RTN_LOCAL;
    return MNL_CB_OK;
}

/* Would the kernel take a packet to that IPv6 address as its own? */
static bool is_reached(const struct addr *a)
{
    struct request r;
    request_begin(&r, RTM_GETROUTE, NLM_F_ACK);
    struct rtmsg *route = mnl_nlmsg_put_extra_header(r.header, sizeof(*route));
    route->rtm_family = AF_INET6;
    route->rtm_dst_len = 128;
    mnl_attr_put(r.header, RTA_DST, sizeof(a->bytes), a->bytes);
    bool local = false;
    return talk(&r, on_route, &local) == 0 && local;
}

static void settle(const struct addr *a)
{
    const struct timespec pause = {.tv_nsec = 1000 * 1000};
    for (int i = 0; i < SETTLE_TRIES && !is_reached(a); i++)
        nanosleep(&pause, NULL);
}

/* The IPv6 addresses of one link. */
struct address_list {
    unsigned index;
    size_t count;
    struct addr items[SETTLE_ADDRESSES];
};

static int on_address_attribute(const struct nlattr *attribute, void *arg)
{
    const struct nlattr **local = arg;
    uint16_t type = mnl_attr_get_type(attribute);
    if (type == IFA_LOCAL || (type == IFA_ADDRESS && !*local))
        *local = attribute; /* IFA_ADDRESS is the peer's where there is IFA_LOCAL too */
    return MNL_CB_OK;
}

/* The address that an RTM_NEWADDR message is about. */
static bool read_address(const struct nlmsghdr *header, struct addr *out)
{
    const struct ifaddrmsg *message = mnl_nlmsg_get_payload(header);
    const struct nlattr *local = NULL;
    if (mnl_attr_parse(header, sizeof(*message), on_address_attribute, &local) < 0 || !local)
        return false;
    bool v4 = message->ifa_family == AF_INET;
    if (mnl_attr_get_payload_len(local) != (v4 ? 4 : 16))
        return false;
    *out =
        v4 ? addr_from_v4(mnl_attr_get_payload(local)) : addr_from_v6(mnl_attr_get_payload(local));
    return true;
}

static int on_own_address(const struct nlmsghdr *header, void *arg)
{
    struct address_list *list = arg;
    const struct ifaddrmsg *message = mnl_nlmsg_get_payload(header);
    struct addr a;
    if (message->ifa_index == list->index && list->count < SETTLE_ADDRESSES &&
        read_address(header, &a) && !addr_is_v4(&a))
        list->items[list->count++] = a;
    return MNL_CB_OK;
}

static void begin_address_dump(struct request *r)
{
    request_begin(r, RTM_GETADDR, NLM_F_DUMP);
    struct ifaddrmsg *message = mnl_nlmsg_put_extra_header(r->header, sizeof(*message));
    message->ifa_family = AF_UNSPEC;
}

static void settle_all(const char *name)
{
    struct request r;
    struct address_list list = {.index = if_nametoindex(name)};
    begin_address_dump(&r);
    if (talk(&r, on_own_address, &list) < 0)
        return;
    for (size_t i = 0; i < list.count; i++)
        settle(&list.items[i]);
}

int link_set_up(const char *name, bool up)
{
    struct request r;
    struct ifinfomsg *info;
    if (up)
        silence_ipv6(name);
    int error = begin_link(&r, RTM_NEWLINK, name, &info);
    if (error < 0)
        return error;
    info->ifi_change = IFF_UP;
    info->ifi_flags = up ? IFF_UP : 0;
    error = talk(&r, NULL, NULL);
    if (error == 0 && up)
        settle_all(name);
    return error;
}

int link_add_address(const char *name, const struct cidr *address)
{
    int error = change_address(name, address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
    struct link_state state;
    if (error == 0 && !addr_is_v4(&address->addr) && get_link(name, &state) == 0 && state.up)
        settle(&address->addr);
    return error == -EEXIST ? 0 : error;
}

int link_delete_address(const char *name, const struct cidr *address)
{
    return change_address(name, address, RTM_DELADDR, 0);
}

static int change_route(const char *name, const struct cidr *destination, uint32_t metric,
                        uint16_t type, uint16_t flags)
{
    int index = link_index(name);
    if (index < 0)
        return index;
    bool v4 = addr_is_v4(&destination->addr);
    struct request r;
    request_begin(&r, type, (uint16_t)(NLM_F_ACK | flags));
    struct rtmsg *message = mnl_nlmsg_put_extra_header(r.header, sizeof(*message));
    message->rtm_family = v4 ? AF_INET : AF_INET6;
    message->rtm_dst_len = destination->prefix;
    message->rtm_table = RT_TABLE_MAIN;
    message->rtm_protocol = ROUTE_PROTOCOL;
    message->rtm_scope = v4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
    message->rtm_type = RTN_UNICAST;
    if (destination->prefix > 0)
        mnl_attr_put(r.header, RTA_DST, v4 ? 4 : 16,
                     v4 ? addr_v4_bytes(&destination->addr) : destination->addr.bytes);
    mnl_attr_put_u32(r.header, RTA_OIF, (uint32_t)index);
    if (metric > 0)
        mnl_attr_put_u32(r.header, RTA_PRIORITY, metric);
    return talk(&r, NULL, NULL);
}

int link_add_route(const char *name, const struct cidr *destination, uint32_t metric)
{
    return change_route(name, destination, metric, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
}

int link_delete_route(const char *name, const struct cidr *destination, uint32_t metric)
{
    return change_route(name, destination, metric, RTM_DELROUTE, 0);
}

/* Who has `wanted`, other than the link `own`? */
struct holder {
    const struct addr *wanted;
    unsigned own;
    unsigned found; /* 0: nobody */
};

static int on_address(const struct nlmsghdr *header, void *arg)
{
    struct holder *h = arg;
    const struct ifaddrmsg *message = mnl_nlmsg_get_payload(header);
    struct addr a;
    if (message->ifa_index != h->own && read_address(header, &a) && addr_equal(&a, h->wanted))
        h->found = message->ifa_index;
    return MNL_CB_OK;
}

bool link_address_in_use(const struct addr *a, const char *name, char other[16])
{
    struct request r;
    struct holder h = {.wanted = a, .own = if_nametoindex(name)};
    begin_address_dump(&r);
    if (talk(&r, on_address, &h) < 0 || h.found == 0)
        return false;
    return if_indextoname(h.found, other) != NULL;
}
