#include "core/up/rp_filter.h"

#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "core/up/sysctl.h"

static const char folder[] = "net/ipv4/conf";

struct search {
    const char *device;
    bool strict;
};

static long rp_filter_of(const char *interface)
{
    char path[SYSCTL_PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s/rp_filter", folder, interface);
    return sysctl_number(path, 0);
}

static void look_at(void *arg, const char *interface)
{
    struct search *s = arg;
    if (strcmp(interface, "lo") != 0 && strcmp(interface, s->device) != 0)
        s->strict = s->strict || rp_filter_of(interface) == 1;
}

int rp_filter_relax(struct journal *j, const char *device)
{
    struct search s = {.device = device};
    int error = sysctl_each_interface(folder, look_at, &s);
    if (error < 0 || !s.strict || rp_filter_of("all") == 2)
        return error;
    log_info("net.ipv4.conf.all.rp_filter is 2 (loose) as long as culvert runs");
    return sysctl_change(j, "net/ipv4/conf/all/rp_filter", "2");
}
