#include "core/proxy/local_proxy.h"

#include <stdio.h>
#include <string.h>

#include "core/base/proc_net.h"

struct search {
    const struct addr *host;
    uint16_t port;
    bool found;
    uint32_t uid;
};

static bool look_at(void *arg, const struct proc_socket *socket)
{
    struct search *s = arg;
    const struct addr *at = &socket->local.addr;
    s->found = socket->state == PROC_NET_LISTEN && socket->local.port == s->port &&
               (addr_equal(at, s->host) || addr_is_unspecified(at));
    s->uid = socket->uid;
    return !s->found;
}

bool local_proxy_listener(const char *path, const struct addr *host, uint16_t port, uint32_t *uid)
{
    struct search s = {.host = host, .port = port};
    proc_net_each(path, look_at, &s);
    if (s.found)
        *uid = s.uid;
    return s.found;
}

static bool is_captured(const struct up_options *up, uint32_t uid)
{
    bool included = up->include_uids.count == 0 && up->include_cgroups.count == 0;
    for (size_t i = 0; i < up->include_uids.count; i++)
        included = included || (uid >= up->include_uids.items[i].first &&
                                uid <= up->include_uids.items[i].last);
    for (size_t i = 0; i < up->exclude_uids.count; i++)
        included = included &&
                   (uid < up->exclude_uids.items[i].first || uid > up->exclude_uids.items[i].last);
    return included;
}

bool local_proxy_would_loop(const struct options *o, uint32_t *uid)
{
    const struct proxy_url *url = &o->proxy;
    bool local =
        url->scheme == PROXY_SCHEME_SOCKS5 && url->host_is_addr && addr_is_loopback(&url->addr);
    bool may_be_kept_out =
        o->up.exclude_cgroups.count > 0 || o->up.bypass.count > 0 || options_given(o, "mark");
    if (!local || may_be_kept_out)
        return false;
    bool found = local_proxy_listener("/proc/net/tcp", &url->addr, url->port, uid) ||
                 local_proxy_listener("/proc/net/tcp6", &url->addr, url->port, uid);
    return found && is_captured(&o->up, *uid);
}

/* The first name server of a resolv.conf(5), which is asked before the others. */
static bool first_server(const char *path, struct addr *out)
{
    char line[512];
    bool found = false;
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof(line), file)) {
        char *rest = NULL;
        const char *word = strtok_r(line, " \t\n", &rest);
        const char *value = strtok_r(NULL, " \t\n", &rest);
        found = word && value && strcmp(word, "nameserver") == 0 && addr_parse(value, out);
    }
    if (file)
        fclose(file);
    return found;
}

bool local_resolver_would_loop(const struct options *o, const char *resolv_conf)
{
    enum { DNS_PORT = 53 };
    uint32_t uid = 0;
    struct addr server;
    bool by_name = o->proxy.scheme == PROXY_SCHEME_SOCKS5 && !o->proxy.host_is_addr;
    bool may_be_kept_out =
        o->up.exclude_cgroups.count > 0 || o->up.exclude_uids.count > 0 || options_given(o, "mark");
    if (!by_name || may_be_kept_out || !first_server(resolv_conf, &server) ||
        !addr_is_loopback(&server))
        return false;
    bool found = local_proxy_listener("/proc/net/tcp", &server, DNS_PORT, &uid) ||
                 local_proxy_listener("/proc/net/tcp6", &server, DNS_PORT, &uid);
    return found && is_captured(&o->up, uid);
}
