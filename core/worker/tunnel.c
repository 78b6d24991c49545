#include "core/worker/tunnel.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/dns/fakedns.h"
#include "core/worker/low_latency.h"
#include "core/worker/worker.h"

static_assert((int)WORKERS_MAX <= (int)FAKEDNS_USERS_MAX, "each may hold fake addresses");

static int *queue_fd(struct tunnel *t, size_t index)
{
    return &t->fds[TUNNEL_FDS * index];
}

static int *latency_fd(struct tunnel *t, size_t index)
{
    return &t->fds[TUNNEL_FDS * index + 1];
}

static int relay(void *arg, unsigned index, const struct options *o, worker_ready_fn *on_ready,
                 void *ready_arg)
{
    struct tunnel *t = arg;
    if (t->fake)
        fakedns_join(t->fake, index);
    const struct worker_seat seat = {
        .device = t->queues[index],
        .fake = t->fake,
        .counters = &t->counters[index].stack,
        .looks_at_proxy = index == 0,
        .latency_fd = *latency_fd(t, index),
    };
    return worker_run(&seat, o, on_ready, ready_arg);
}

static void on_death(void *arg, unsigned index)
{
    struct tunnel *t = arg;
    low_latency_withdraw(*latency_fd(t, index));
    if (t->fake)
        fakedns_user_died(t->fake, index);
}

/* What all workers have counted, dead ones included. */
static void log_counters(void *arg)
{
    const struct tunnel *t = arg;
    struct stack_counters sum = {0};
    for (size_t i = 0; i < t->work.count; i++) {
        const struct stack_counters *c = &t->counters[i].stack;
        sum.conns += c->conns;
        sum.conns_opened += c->conns_opened;
        sum.packets_in += c->packets_in;
        sum.packets_out += c->packets_out;
        sum.bytes_in += c->bytes_in;
        sum.bytes_out += c->bytes_out;
    }
    log_info("%llu connections open, %llu so far; from applications %llu packets, %llu bytes; to "
             "applications %llu packets, %llu bytes",
             (unsigned long long)sum.conns, (unsigned long long)sum.conns_opened,
             (unsigned long long)sum.packets_in, (unsigned long long)sum.bytes_in,
             (unsigned long long)sum.packets_out, (unsigned long long)sum.bytes_out);
}

static int share_counters(struct tunnel *t)
{
    void *at = mmap(NULL, t->work.count * sizeof(*t->counters), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return -ENOMEM;
    t->counters = at;
    return 0;
}

static int share_fake_addresses(struct tunnel *t, const struct options *o)
{
    struct addr own[OPTIONS_LIST_MAX];
    if (o->dns != DNS_FAKE)
        return 0;
    for (size_t i = 0; i < o->addresses.count; i++)
        own[i] = o->addresses.items[i].addr;
    t->fake = fakedns_new_shared(o->fake_ranges.items, o->fake_ranges.count, own,
                                 o->addresses.count, (unsigned)t->work.count);
    return t->fake ? 0 : -ENOMEM;
}

static int open_latency(struct tunnel *t, bool wanted)
{
    for (size_t i = 0; wanted && i < t->work.count; i++) {
        int fd = low_latency_open();
        if (fd < 0) {
            log_error("cannot open %s: %s", LOW_LATENCY_DEVICE, strerror(-fd));
            return fd;
        }
        *latency_fd(t, i) = fd;
    }
    return 0;
}

int tunnel_init(struct tunnel *t, struct device *const *queues, size_t count,
                const struct options *options)
{
    *t = (struct tunnel){.fake = NULL};
    for (size_t i = 0; i < count; i++) {
        t->queues[i] = queues[i];
        *queue_fd(t, i) = queues[i]->fd;
        *latency_fd(t, i) = -1;
    }
    t->work = (struct work){
        .name = "culvert-worker",
        .options = options,
        .count = count,
        .fds = t->fds,
        .fds_each = TUNNEL_FDS,
        .role = CONFINE_WORKER,
        .run = relay,
        .on_death = on_death,
        .on_usr1 = log_counters,
        .arg = t,
    };
    int error = share_counters(t);
    if (error == 0)
        error = share_fake_addresses(t, options);
    return error < 0 ? error : open_latency(t, options->low_latency);
}

void tunnel_free(struct tunnel *t)
{
    fakedns_free(t->fake);
    t->fake = NULL;
    if (t->counters)
        munmap(t->counters, t->work.count * sizeof(*t->counters));
    t->counters = NULL;
    for (size_t i = 0; i < t->work.count; i++) {
        if (*latency_fd(t, i) >= 0)
            close(*latency_fd(t, i));
        *latency_fd(t, i) = -1;
    }
}

int tunnel_run(struct device *const *queues, size_t count, const struct options *options,
               worker_ready_fn *on_ready, void *arg)
{
    struct tunnel t;
    int error = tunnel_init(&t, queues, count, options);
    if (error == 0)
        error = workers_run(&t.work, on_ready, arg);
    tunnel_free(&t);
    return error;
}
