/*
 * Forwarding is a setting of the interface that a packet comes in by. The global switches
 * (ip_forward, conf/all/forwarding) rewrite every interface's setting as they are flipped, which
 * could not be put back exactly; so with IPv4 each interface is switched by itself. IPv6 has
 * nothing but the global switch: the interfaces' values are journalled before it, and put back
 * after it.
 *
 * A router ignores router advertisements, and forgets the default route that it had from them, but
 * for interfaces where accept_ra is 2.
 */
#include "core/up/gateway.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/command/say.h"
#include "core/up/sysctl.h"

struct walk {
    struct journal *journal;
    int error; /* the first */
};

static bool is_left_alone(const char *interface)
{
    return strcmp(interface, "all") == 0 || strcmp(interface, "lo") == 0;
}

static void keep(struct walk *w, int error)
{
    if (error < 0 && error != -ENOENT && w->error == 0)
        w->error = error;
}

static void forward_v4(void *arg, const char *interface)
{
    struct walk *w = arg;
    char path[SYSCTL_PATH_MAX];
    (void)snprintf(path, sizeof(path), "net/ipv4/conf/%s/forwarding", interface);
    if (!is_left_alone(interface))
        keep(w, sysctl_change(w->journal, path, "1"));
}

static void prepare_v6(void *arg, const char *interface)
{
    struct walk *w = arg;
    char path[SYSCTL_PATH_MAX];
    if (strcmp(interface, "all") == 0)
        return;
    (void)snprintf(path, sizeof(path), "net/ipv6/conf/%s/accept_ra", interface);
    if (sysctl_number(path, 0) == 1)
        keep(w, sysctl_change(w->journal, path, "2"));
    (void)snprintf(path, sizeof(path), "net/ipv6/conf/%s/forwarding", interface);
    keep(w, sysctl_note(w->journal, path));
}

bool gateway_open(struct journal *j)
{
    static const char all_v6[] = "net/ipv6/conf/all/forwarding";
    struct walk w = {.journal = j};
    keep(&w, sysctl_each_interface("net/ipv4/conf", forward_v4, &w));
    if (sysctl_number(all_v6, 1) == 0) {
        keep(&w, sysctl_each_interface("net/ipv6/conf", prepare_v6, &w));
        keep(&w, sysctl_change(j, all_v6, "1"));
    }
    if (w.error == 0)
        return true;
    say("cannot switch forwarding on (net.ipv4.conf.*.forwarding, net.ipv6.conf.all.forwarding): "
        "%s",
        strerror(-w.error));
    return false;
}
