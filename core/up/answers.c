#include "core/up/answers.h"

#include <errno.h>

#include "core/base/proc_net.h"
#include "core/up/sysctl.h"

const char *const answers_tables[] = {"/proc/net/tcp", "/proc/net/tcp6", NULL};

/* --- connections of before -------------------------------------------------------------------- */

enum { PORTS = 65536 };

struct search {
    bool listens[PORTS];
    struct connection_list *out;
};

static bool note_listener(void *arg, const struct proc_socket *socket)
{
    struct search *s = arg;
    if (socket->state == PROC_NET_LISTEN)
        s->listens[socket->local.port] = true;
    return true;
}

static bool note_connection(void *arg, const struct proc_socket *socket)
{
    struct search *s = arg;
    struct connection_list *out = s->out;
    bool is_connection = socket->state != PROC_NET_LISTEN && socket->state != PROC_NET_SYN_SENT &&
                         socket->state != PROC_NET_TIME_WAIT;
    if (!is_connection || !s->listens[socket->local.port] || addr_is_loopback(&socket->local.addr))
        return true;
    out->items[out->count++] = (struct connection){socket->local, socket->remote};
    return out->count < CONNECTION_LIST_MAX;
}

void answers_find(const char *const *paths, struct connection_list *out)
{
    struct search s = {.out = out};
    out->count = 0;
    for (size_t i = 0; paths[i]; i++)
        proc_net_each(paths[i], note_listener, &s);
    for (size_t i = 0; paths[i] && out->count < CONNECTION_LIST_MAX; i++)
        proc_net_each(paths[i], note_connection, &s);
}

/* --- from now on ------------------------------------------------------------------------------ */

int answers_hand_down_marks(struct journal *j)
{
    static const char *const settings[] = {
        "net/ipv4/tcp_fwmark_accept", /* IPv6's too */
        "net/ipv4/fwmark_reflect",
        "net/ipv6/fwmark_reflect",
    };
    int error = 0;
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]) && error == 0; i++) {
        error = sysctl_change(j, settings[i], "1");
        if (error == -ENOENT) /* a kernel without IPv6 */
            error = 0;
    }
    return error;
}
