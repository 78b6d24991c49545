#include "core/proxy/probe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/memory.h"

struct probe {
    struct loop *loop;
    const struct proxy_url *url;
    const struct outbound_options *outbound;
    struct resolver_request *request; /* while the name is being resolved */
    struct resolver_answer answer;
    size_t next; /* the address to be tried */
    int fd;      /* -1: none */
    struct loop_io io;
    struct loop_timer timer;
};

static void close_socket(struct probe *p)
{
    loop_ignore(&p->io);
    loop_timer_stop(&p->timer);
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}

static void try_next_address(struct probe *p, int last_error);

static void on_connected(void *arg, unsigned ready)
{
    (void)ready;
    struct probe *p = arg;
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        error = errno;
    close_socket(p);
    if (error)
        try_next_address(p, error);
}

static void on_timeout(void *arg)
{
    struct probe *p = arg;
    close_socket(p);
    try_next_address(p, ETIMEDOUT);
}

/* 0 when the attempt is under way or has already succeeded, else an errno. */
static int try_address(struct probe *p, const struct addr *a)
{
    struct endpoint to = {.addr = *a, .port = p->url->port};
    struct sockaddr_storage sa;
    socklen_t sa_len = endpoint_to_sockaddr(&to, &sa);
    int fd = outbound_open(p->outbound, sa.ss_family, SOCK_STREAM);
    if (fd < 0)
        return -fd;
    p->fd = fd;
    if (connect(p->fd, (struct sockaddr *)&sa, sa_len) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return errno;
    int error = loop_watch(p->loop, &p->io, p->fd, LOOP_WRITE, on_connected, p);
    if (error < 0)
        return -error;
    loop_timer_start(p->loop, &p->timer, p->outbound->connect_timeout_ms, on_timeout, p);
    return 0;
}

static void try_next_address(struct probe *p, int last_error)
{
    while (p->next < p->answer.count) {
        last_error = try_address(p, &p->answer.addrs[p->next++]);
        if (last_error == 0) {
            if (!p->io.watching)
                close_socket(p);
            return;
        }
        close_socket(p);
    }
    log_warn("the proxy %s port %u cannot be reached now (%s); connections will fail until it can",
             p->url->host, p->url->port, strerror(last_error));
}

static void on_resolved(void *arg, const struct resolver_answer *answer)
{
    struct probe *p = arg;
    p->request = NULL;
    p->answer = *answer;
    if (answer->count == 0)
        log_warn("the proxy's name %s does not resolve now (%s); connections will fail until it "
                 "does",
                 p->url->host, answer->error);
    else
        try_next_address(p, 0);
}

struct probe *probe_start(struct loop *loop, struct resolver *resolver, const struct proxy_url *url,
                          const struct outbound_options *outbound)
{
    if (url->scheme == PROXY_SCHEME_DIRECT)
        return NULL;
    struct probe *p = memory_zeroed(sizeof(*p));
    if (!p)
        return NULL;
    p->loop = loop;
    p->url = url;
    p->outbound = outbound;
    p->fd = -1;
    if (url->host_is_addr) {
        p->answer.addrs[0] = url->addr;
        p->answer.count = 1;
        try_next_address(p, 0);
        return p;
    }
    p->request = resolver_lookup(resolver, url->host, on_resolved, p);
    if (p->request)
        return p;
    free(p);
    return NULL;
}

void probe_free(struct probe *p)
{
    if (!p)
        return;
    if (p->request)
        resolver_cancel(p->request);
    close_socket(p);
    free(p);
}

/* --- before anything is set up ---------------------------------------------------------------- */

struct resolution {
    bool answered;
    const char *error;
};

static void on_first_answer(void *arg, const struct resolver_answer *answer)
{
    struct resolution *r = arg;
    r->answered = true;
    r->error = answer->count > 0 ? NULL : answer->error;
}

const char *probe_resolve(const struct proxy_url *url, const struct outbound_options *outbound,
                          bool (*before_asking)(void))
{
    if (url->scheme == PROXY_SCHEME_DIRECT || url->host_is_addr)
        return NULL;
    struct resolution r = {.error = strerror(ENOMEM)};
    struct loop *loop = loop_new();
    struct resolver *resolver = loop ? resolver_new(loop, outbound) : NULL;
    bool ready = resolver && (!before_asking || before_asking());
    if (ready && resolver_lookup(resolver, url->host, on_first_answer, &r)) {
        while (!r.answered) /* the resolver's own time-outs bound it */
            loop_turn(loop, true);
    }
    resolver_free(resolver);
    loop_free(loop);
    return r.error;
}
