#include "core/up/nft.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "core/up/routing.h"

static const char cgroup_root[] = "/sys/fs/cgroup";

/* --- cgroups ---------------------------------------------------------------------------------- */

bool nft_wants_cgroups(const struct options *o)
{
    return o->up.include_cgroups.count > 0 || o->up.exclude_cgroups.count > 0;
}

bool nft_cgroup_mount(char *out, size_t size)
{
    FILE *mounts = fopen("/proc/self/mounts", "re");
    char line[1024];
    bool found = false;
    while (mounts && !found && fgets(line, sizeof(line), mounts)) {
        char *rest = NULL;
        (void)strtok_r(line, " ", &rest);
        const char *where = strtok_r(NULL, " ", &rest);
        const char *type = strtok_r(NULL, " ", &rest);
        found = where && type && strcmp(type, "cgroup2") == 0 && strlen(where) < size;
        if (found)
            (void)snprintf(out, size, "%s", where);
    }
    if (mounts)
        fclose(mounts);
    return found;
}

/* Could this break out of a quoted string in the script, or out of the hierarchy? */
static bool is_plain_path(const char *path)
{
    for (const char *p = path; *p; p++) {
        if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ')
            return false;
    }
    return strstr(path, "/../") == NULL && strncmp(path, "../", 3) != 0;
}

bool nft_find_cgroup(const char *mount, const char *name, struct nft_cgroup *out)
{
    size_t root_len = sizeof(cgroup_root) - 1;
    size_t mount_len = strlen(mount);
    if (strncmp(mount, cgroup_root, root_len) != 0 || !is_plain_path(name))
        return false;
    if (strncmp(name, mount, mount_len) == 0 && name[mount_len] == '/')
        name += mount_len;
    name += strspn(name, "/");
    const char *prefix = mount + root_len;
    prefix += strspn(prefix, "/");
    int n = snprintf(out->path, sizeof(out->path), "%s%s%s", prefix, *prefix ? "/" : "", name);
    if (*name == '\0' || n <= 0 || (size_t)n >= sizeof(out->path))
        return false;
    while (out->path[n - 1] == '/')
        out->path[--n] = '\0';
    out->level = 0;
    for (const char *p = name; *p; p += strspn(p, "/")) {
        out->level++;
        p += strcspn(p, "/");
    }
    return true;
}

/* --- the script ------------------------------------------------------------------------------- */

static const unsigned ANSWER = ROUTING_MARK_ANSWER;

struct script {
    char *text;
    size_t size, used;
    bool bad; /* it does not fit */
};

__attribute__((format(printf, 2, 3))) static void put(struct script *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(s->text + s->used, s->size - s->used, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= s->size - s->used)
        s->bad = true;
    else
        s->used += (size_t)n;
}

/* A line that says what becomes of these users' packets; none where nobody is named. */
static void put_users(struct script *s, const struct uid_list *users, const char *verdict)
{
    if (users->count == 0)
        return;
    put(s, "    meta skuid { ");
    for (size_t i = 0; i < users->count; i++)
        put(s, "%s%u-%u", i ? ", " : "", users->items[i].first, users->items[i].last);
    put(s, " } %s\n", verdict);
}

static void put_range(struct script *s, const struct cidr *range)
{
    char text[CIDR_TEXT_MAX];
    put(s, "    %s daddr %s accept\n", addr_is_v4(&range->addr) ? "ip" : "ip6",
        cidr_format(range, text));
}

/* What is not ours to stop: the same sources as in the policy rules (core/up/routing.h). */
static void put_sources(struct script *s, const struct options *o, const char *device)
{
    const struct up_options *up = &o->up;
    put(s, "    oifname { \"lo\", \"%s\" } accept\n", device);
    put(s, "    meta mark 0x%x accept\n", o->outbound.mark);
    put(s, "    meta mark 0x%x tcp flags & (syn | ack) == syn reject with tcp reset\n", ANSWER);
    put(s, "    meta mark 0x%x meta l4proto { tcp, udp } th dport 53 drop\n", ANSWER);
    put(s, "    meta mark 0x%x accept\n", ANSWER);
    if (up->exclude_cgroups.count > 0)
        put(s, "    meta mark 0x%x accept\n", (unsigned)ROUTING_MARK_EXCLUDED);
    put_users(s, &up->exclude_uids, "accept");
    if (up->include_uids.count == 0 && up->include_cgroups.count == 0)
        return;
    put_users(s, &up->include_uids, "goto captured");
    if (up->include_cgroups.count > 0)
        put(s, "    meta mark 0x%x goto captured\n", (unsigned)ROUTING_MARK_INCLUDED);
    put(s, "    accept\n");
}

/* Where the policy rules cannot keep fake addresses inside: who is not captured is refused. */
static void put_fake_gate(struct script *s, const struct options *o)
{
    const struct up_options *up = &o->up;
    put(s, "  chain fake {\n    meta mark 0x%x reject\n", o->outbound.mark);
    put_users(s, &up->exclude_uids, "reject");
    if (up->include_cgroups.count > 0)
        put(s, "    meta mark 0x%x accept\n", (unsigned)ROUTING_MARK_INCLUDED);
    put_users(s, &up->include_uids, "accept");
    if (up->include_cgroups.count > 0 || up->include_uids.count > 0)
        put(s, "    reject\n");
    put(s, "  }\n");
}

static void put_to_fake_gate(struct script *s, const struct options *o)
{
    put(s, "    oifname \"lo\" accept\n"); /* the device's own address, where refusals go too */
    for (size_t i = 0; i < o->fake_ranges.count; i++) {
        char text[CIDR_TEXT_MAX];
        const struct cidr *range = &o->fake_ranges.items[i];
        put(s, "    %s daddr %s jump fake\n", addr_is_v4(&range->addr) ? "ip" : "ip6",
            cidr_format(range, text));
    }
}

/* What comes here should have gone into the tunnel, or to a network that stays direct. */
static void put_captured(struct script *s, const struct options *o,
                         const struct network_list *networks)
{
    put(s, "  chain captured {\n    meta l4proto { tcp, udp } th dport 53 drop\n");
    if (o->up.kill_switch) {
        put(s, "    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit,"
               " mld-listener-report, mld2-listener-report } accept\n"
               "    ip6 daddr { fe80::/10, ff00::/8 } accept\n");
        if (o->up.lan)
            put(s, "    ip daddr { 224.0.0.0/4, 255.255.255.255 } accept\n");
        for (size_t i = 0; i < o->up.bypass.count; i++)
            put_range(s, &o->up.bypass.items[i]);
        for (size_t i = 0; o->up.lan && i < networks->count; i++)
            put_range(s, &networks->items[i]);
        put(s, "    drop\n");
    }
    put(s, "  }\n");
}

static bool put_cgroup_marks(struct script *s, const struct path_list *names, const char *mount,
                             uint32_t mark, const char **problem)
{
    for (size_t i = 0; i < names->count; i++) {
        struct nft_cgroup cgroup;
        if (!nft_find_cgroup(mount, names->items[i], &cgroup)) {
            *problem = names->items[i];
            return false;
        }
        put(s, "    socket cgroupv2 level %u \"%s\" meta mark set 0x%x accept\n", cgroup.level,
            cgroup.path, mark);
    }
    return true;
}

/*
 * A packet that is marked here is routed anew; its socket has chosen a source address before,
 * which may be the tunnel's: what leaves elsewhere with it could not be answered.
 */
static bool put_cgroups(struct script *s, const struct options *o, const char *device,
                        const char *mount, const char **problem)
{
    const struct up_options *up = &o->up;
    if (!nft_wants_cgroups(o))
        return true;
    put(s, "  chain cgroups {\n    type route hook output priority mangle; policy accept;\n");
    put(s, "    meta mark { 0x%x, 0x%x } accept\n", o->outbound.mark, ANSWER);
    if (!put_cgroup_marks(s, &up->exclude_cgroups, mount, ROUTING_MARK_EXCLUDED, problem) ||
        !put_cgroup_marks(s, &up->include_cgroups, mount, ROUTING_MARK_INCLUDED, problem))
        return false;
    put(s, "  }\n  chain sources {\n    type nat hook postrouting priority srcnat;\n");
    for (size_t i = 0; i < o->addresses.count; i++) {
        char text[ADDR_TEXT_MAX];
        const struct addr *a = &o->addresses.items[i].addr;
        put(s, "    meta mark 0x%x oifname != \"%s\" %s saddr %s masquerade\n",
            (unsigned)ROUTING_MARK_EXCLUDED, device, addr_is_v4(a) ? "ip" : "ip6",
            addr_format(a, text));
    }
    put(s, "  }\n");
    return true;
}

/* --- answers (core/up/answers.h) -------------------------------------------------------------- */

static void put_connection(struct script *s, const struct connection *c, const char *separator)
{
    char local[ADDR_TEXT_MAX];
    char remote[ADDR_TEXT_MAX];
    put(s, "%s%s . %u . %s . %u", separator, addr_format(&c->local.addr, local), c->local.port,
        addr_format(&c->remote.addr, remote), c->remote.port);
}

static void put_connections(struct script *s, const struct connection_list *list, bool v4)
{
    bool any = false;
    put(s, "  set before%s {\n    type %s . inet_service . %s . inet_service\n", v4 ? "4" : "6",
        v4 ? "ipv4_addr" : "ipv6_addr", v4 ? "ipv4_addr" : "ipv6_addr");
    for (size_t i = 0; i < list->count; i++) {
        if (addr_is_v4(&list->items[i].local.addr) != v4)
            continue;
        put_connection(s, &list->items[i], any ? ",\n      " : "    elements = {\n      ");
        any = true;
    }
    put(s, "%s  }\n", any ? " }\n" : "");
}

/* Of forwarded connections: the label is conntrack's, a number that nobody else is known to use. */
static void put_forwarded_answers(struct script *s, const char *device)
{
    enum { FROM_OUTSIDE = 99 };
    put(s,
        "  chain passing {\n    type filter hook forward priority mangle; policy accept;\n"
        "    iifname \"%s\" accept\n    oifname \"%s\" accept\n"
        "    ct state new ct status dnat ct label set %d accept\n"
        "    ct state new tcp flags & (fin | syn | rst | ack) == syn ct label set %d\n  }\n",
        device, device, FROM_OUTSIDE, FROM_OUTSIDE);
    put(s,
        "  chain returning {\n    type filter hook prerouting priority mangle; policy accept;\n"
        "    iifname { \"lo\", \"%s\" } accept\n"
        "    tcp flags & (syn | ack) == syn accept\n"
        "    meta mark 0 ct direction reply ct label %d meta mark set 0x%x\n  }\n",
        device, FROM_OUTSIDE, ANSWER);
}

/*
 * Incoming packets are marked before filters of the reverse path look at them (firewalld's of IPv6
 * is one, right behind this priority): with the mark they find the way that the packet came.
 *
 * What the kernel answers by itself, for an included cgroup's socket that has gone or waits for its
 * last FIN, has no socket whose cgroup could be asked: it takes the mark of what it answers.
 */
static void put_answers(struct script *s, const struct nft_table *t)
{
    if (!t->before)
        return;
    put(s, "  chain arriving {\n    type filter hook prerouting priority mangle; policy accept;\n");
    if (t->options->up.include_cgroups.count > 0)
        put(s, "    iifname \"%s\" meta mark 0 fib daddr type local meta mark set 0x%x\n",
            t->device, (unsigned)ROUTING_MARK_INCLUDED);
    put(s,
        "    iifname { \"lo\", \"%s\" } accept\n"
        "    meta mark 0 fib daddr type local meta mark set 0x%x\n  }\n",
        t->device, ANSWER);
    if (t->options->up.gateway)
        put_forwarded_answers(s, t->device);
    put_connections(s, t->before, true);
    put_connections(s, t->before, false);
    put(s, "  chain answers {\n    type route hook output priority mangle + 1; policy accept;\n");
    for (unsigned family = 4; family <= 6; family += 2)
        put(s,
            "    meta mark { 0, 0x%x } %s saddr . tcp sport . %s daddr . tcp dport @before%u "
            "meta mark set 0x%x\n",
            (unsigned)ROUTING_MARK_INCLUDED, family == 4 ? "ip" : "ip6", family == 4 ? "ip" : "ip6",
            family, ANSWER);
    put(s, "  }\n");
}

/* --- the whole -------------------------------------------------------------------------------- */

size_t nft_compose(const struct nft_table *t, char *out, size_t size, const char **problem)
{
    const struct options *o = t->options;
    struct script s = {.text = out, .size = size};
    *problem = NULL;
    put(&s, "add table inet culvert\ndelete table inet culvert\ntable inet culvert {\n");
    if (t->owned)
        put(&s, "  flags owner\n");
    put_captured(&s, o, t->networks);
    if (!put_cgroups(&s, o, t->device, t->cgroup_mount, problem))
        return 0;
    put_answers(&s, t);
    bool gate = routing_fake_by_nftables(o);
    if (gate)
        put_fake_gate(&s, o);
    put(&s, "  chain leaving {\n    type filter hook output priority 300; policy accept;\n");
    if (gate)
        put_to_fake_gate(&s, o);
    put_sources(&s, o, t->device);
    put(&s, "    goto captured\n  }\n}\n");
    return s.bad ? 0 : s.used;
}

/* --- running it ------------------------------------------------------------------------------- */

/* libnftables.h, as much as is used. */
struct nft_ctx;
struct library {
    struct nft_ctx *(*ctx_new)(uint32_t flags);
    int (*buffer_error)(struct nft_ctx *ctx);
    int (*run)(struct nft_ctx *ctx, const char *script);
    const char *(*error)(struct nft_ctx *ctx);
};

static bool open_library(struct library *lib)
{
    void *handle = dlopen("libnftables.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return false;
    *(void **)&lib->ctx_new = dlsym(handle, "nft_ctx_new");
    *(void **)&lib->buffer_error = dlsym(handle, "nft_ctx_buffer_error");
    *(void **)&lib->run = dlsym(handle, "nft_run_cmd_from_buffer");
    *(void **)&lib->error = dlsym(handle, "nft_ctx_get_error_buffer");
    return lib->ctx_new && lib->buffer_error && lib->run && lib->error;
}

/* The socket that the library has opened: it does not tell, but there is no other of its kind. */
static int find_netlink_socket(void)
{
    enum { LOOK_UP_TO = 256 };
    for (int fd = 0; fd < LOOK_UP_TO; fd++) {
        int protocol = -1;
        int domain = -1;
        socklen_t size = sizeof(int);
        if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_NETLINK &&
            getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 &&
            protocol == NETLINK_NETFILTER)
            return fd;
    }
    return -1;
}

static void send_descriptor(int over, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = "", .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    (void)sendmsg(over, &m, MSG_NOSIGNAL);
}

/* In the child. Its exit status is 0, or the errno that the parent returns. */
static int run_here(const char *script, int report_fd)
{
    struct library lib = {.ctx_new = NULL};
    for (int fd; (fd = find_netlink_socket()) >= 0;)
        close(fd); /* the parent's */
    if (!open_library(&lib))
        return ENOSYS;
    struct nft_ctx *ctx = lib.ctx_new(0);
    if (!ctx || lib.buffer_error(ctx) != 0)
        return ENOMEM;
    if (lib.run(ctx, script) == 0) {
        send_descriptor(report_fd, find_netlink_socket());
        return 0;
    }
    const char *text = lib.error(ctx);
    if (text)
        (void)!write(report_fd, text, strcspn(text, "\n"));
    return EIO;
}

/* What the child has to say: the reason of a failure, or a socket. */
static int receive_report(int fd, char *why, size_t size)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = why, .iov_len = size - 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
    why[n > 0 ? n : 0] = '\0';
    const struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    int received = -1;
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(&received, CMSG_DATA(c), sizeof(received));
    return received;
}

int nft_run(const char *script, int *socket, char *why, size_t size)
{
    int ends[2];
    why[0] = '\0';
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return -EAGAIN;
    }
    if (pid == 0)
        _exit(run_here(script, ends[1]));
    close(ends[1]);
    int received = receive_report(ends[0], why, size);
    close(ends[0]);
    if (socket)
        *socket = received;
    else if (received >= 0)
        close(received);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

int nft_remove(char *why, size_t size)
{
    return nft_run("add table inet culvert\ndelete table inet culvert\n", NULL, why, size);
}
