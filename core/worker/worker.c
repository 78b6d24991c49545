/*
 * One device queue, one stack, one event loop, and what joins them.
 *
 * How much is read from the device at a time follows the load: one packet while single exchanges
 * go to and fro, where a second read would only hear that there is no more; up to a full
 * batch while packets keep coming turn after turn. The device is watched level-triggered, so
 * that what is left over makes the next turn.
 */
#include "core/worker/worker.h"

#include <errno.h>
#include <poll.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/command/secrets.h"
#include "core/flows.h"
#include "core/proxy/probe.h"
#include "core/worker/low_latency.h"

enum {
    OWN_ADDRESSES_MAX = OPTIONS_LIST_MAX,
    TRIM_AFTER_MS =
        1000, /* from the last thing to be timed; what is given back costs page faults */
    TRIM_QUIET_TURNS = 50,
    TRIM_PUT_OFF_MAX = 10,
};

enum { LINGER_LOOK_MS = 10 };

struct run {
    struct worker worker;
    struct loop_signal term;
    bool stopped;
    uint64_t turn;       /* counts turns of the loop */
    uint64_t full_turn;  /* the last turn in which the device filled the batch */
    unsigned batch;      /* packets to read next time */
    uint64_t tick_at_ms; /* what worker.tick is armed for */
    struct loop_timer trim;
    uint64_t trim_turn; /* in which `trim` was started */
    unsigned trim_put_off;
    unsigned linger_s; /* from the options */
    struct loop_timer linger;
    uint64_t linger_end_ms; /* 0: not asked to stop */
    struct probe *probe;    /* warns where the proxy is not there */
    struct low_latency latency;
};

static void stop(struct run *r, int error)
{
    r->worker.error = error;
    r->stopped = true;
}

/* --- what the stack calls --------------------------------------------------------------------- */

static struct conn *open_conn(void *ctx, const struct endpoint *src, const struct endpoint *dst)
{
    struct worker *w = ctx;
    w->relayed = true;
    if (dns_front_takes(w->dns_front, dst)) {
        struct conn *c = dns_front_open(w->dns_front, src, dst);
        if (c)
            c->owner = CONN_OWNER_DNS;
        return c;
    }
    if (w->flow_count >= w->limits->max_flows && !tcp_flows_evict(w->tcp) &&
        !udp_flows_evict(w->udp))
        return NULL;
    return tcp_flows_open(w->tcp, src, dst);
}

static void conn_ready(void *ctx, struct conn *c, unsigned events)
{
    struct worker *w = ctx;
    switch ((enum conn_owner)c->owner) {
    case CONN_OWNER_TCP_FLOW:
        tcp_flows_ready(w->tcp, c, events);
        break;
    case CONN_OWNER_DNS:
        w->relayed = true;
        dns_front_ready(w->dns_front, c, events);
        break;
    }
}

static void datagram(void *ctx, const struct endpoint *src, const struct endpoint *dst,
                     uint8_t *payload, size_t len, uint16_t gso_size, size_t headroom)
{
    struct worker *w = ctx;
    if (!dns_front_takes(w->dns_front, dst)) {
        udp_flows_datagram(w->udp, src, dst, payload, len, gso_size, headroom);
        return;
    }
    w->relayed = true;
    size_t step = gso_size ? gso_size : len;
    do {
        size_t piece = len < step ? len : step;
        dns_front_datagram(w->dns_front, src, dst, payload, piece);
        payload += piece;
        len -= piece;
    } while (len > 0);
}

static void batch_end(void *ctx)
{
    struct worker *w = ctx;
    udp_flows_batch_end(w->udp);
}

static const struct stack_ops stack_ops = {
    .conn_open = open_conn,
    .conn_ready = conn_ready,
    .datagram = datagram,
    .batch_end = batch_end,
};

/* --- the device and time ---------------------------------------------------------------------- */

static void adapt_batch(struct run *r, unsigned got)
{
    if (got < r->batch) {
        r->batch = got > 0 ? got : 1;
        return;
    }
    if (r->full_turn + 1 == r->turn)
        r->batch = 2 * r->batch < STACK_BATCH_MAX ? 2 * r->batch : STACK_BATCH_MAX;
    r->full_turn = r->turn;
}

static void on_device(void *arg, unsigned ready)
{
    struct run *r = arg;
    struct worker *w = &r->worker;
    (void)ready;
    int n = stack_receive(w->stack, r->batch, loop_now(w->loop));
    if (n < 0) {
        log_error("the TUN device is gone: %s", strerror(-n));
        stop(r, n);
        return;
    }
    adapt_batch(r, (unsigned)n);
}

static void plan_trim(struct run *r);

/*
 * A burst of flows is over: what it took is given back. Not between two of many small exchanges,
 * which would ask for it again at once.
 */
static void on_trim(void *arg)
{
    struct run *r = arg;
    if (r->turn - r->trim_turn > TRIM_QUIET_TURNS && r->trim_put_off < TRIM_PUT_OFF_MAX) {
        r->trim_put_off++;
        plan_trim(r);
        return;
    }
    r->trim_put_off = 0;
    tcp_flows_trim(r->worker.tcp);
    stack_trim(r->worker.stack);
    malloc_trim(0);
}

static void plan_trim(struct run *r)
{
    if (r->trim.pending)
        return;
    r->trim_turn = r->turn;
    loop_timer_start(r->worker.loop, &r->trim, TRIM_AFTER_MS, on_trim, r);
}

/* lwIP's last timer ends only where there was TCP. */
static void on_quiet(struct worker *w)
{
    plan_trim(CONTAINER_OF(w, struct run, worker));
}

static void on_tick(void *arg)
{
    struct run *r = arg;
    struct worker *w = &r->worker;
    r->tick_at_ms = UINT64_MAX;
    stack_tick(w->stack, loop_now(w->loop));
    if (stack_next_tick(w->stack) == UINT64_MAX)
        plan_trim(r);
}

/* At each turn's end: a timer that fires early costs less than one that is always moved. */
static void arm_tick(struct run *r)
{
    struct worker *w = &r->worker;
    uint64_t next = stack_next_tick(w->stack);
    if (next >= r->tick_at_ms)
        return;
    r->tick_at_ms = next;
    uint64_t now = loop_now(w->loop);
    loop_timer_start(w->loop, &w->tick, next > now ? next - now : 1, on_tick, r);
}

/* At each turn's end. The flag is a flow's to set: the worker's own timers are no reason. */
static void keep_awake(struct run *r)
{
    if (r->latency.fd < 0 || !r->worker.relayed)
        return;
    r->worker.relayed = false;
    low_latency_relayed(&r->latency);
}

/* --- stopping --------------------------------------------------------------------------------- */

static bool device_is_readable(const struct device *d)
{
    struct pollfd polled = {.fd = d->fd, .events = POLLIN};
    return poll(&polled, 1, 0) > 0;
}

/* The applications are gone, and what they sent is on its way, from the device on. */
static void on_linger(void *arg)
{
    struct run *r = arg;
    struct worker *w = &r->worker;
    bool busy =
        device_is_readable(w->device) || tcp_flows_sending(w->tcp) || udp_flows_sending(w->udp);
    if (busy && loop_now(w->loop) < r->linger_end_ms)
        loop_timer_start(w->loop, &r->linger, LINGER_LOOK_MS, on_linger, r);
    else
        stop(r, 0);
}

/* A second signal does not wait. */
static void on_signal(void *arg, int signo)
{
    struct run *r = arg;
    (void)signo;
    if (r->linger_s == 0 || r->linger_end_ms > 0) {
        stop(r, 0);
        return;
    }
    r->linger_end_ms = loop_now(r->worker.loop) + r->linger_s * UINT64_C(1000);
    loop_timer_start(r->worker.loop, &r->linger, 1, on_linger, r);
}

/* --- life ------------------------------------------------------------------------------------- */

static void fill_own_addresses(struct addr own[OWN_ADDRESSES_MAX], const struct options *o)
{
    for (size_t i = 0; i < o->addresses.count; i++)
        own[i] = o->addresses.items[i].addr;
}

static int start_dns(struct worker *w, const struct options *o, struct fakedns *shared)
{
    struct addr own[OWN_ADDRESSES_MAX];
    fill_own_addresses(own, o);
    const struct dns_config config = {
        .mode = o->dns,
        .server = o->dns_server,
        .fake_ranges = o->fake_ranges.items,
        .fake_range_count = o->fake_ranges.count,
        .own_addresses = own,
        .own_address_count = o->addresses.count,
        .fake = shared,
    };
    w->dns = dns_new(w->loop, w->proxy, &config);
    return w->dns ? 0 : -ENOMEM;
}

static int start_flows(struct worker *w, const struct options *o, struct stack_counters *counters)
{
    const struct stack_config config = {
        .icmp_reply = o->icmp == ICMP_REPLY,
        .now_ms = loop_now(w->loop),
        .counters = counters,
    };
    w->stack = stack_new(w->device, &config, &stack_ops, w); /* first: the others keep it */
    w->tcp = tcp_flows_new(w);
    w->udp = udp_flows_new(w);
    w->dns_front = dns_front_new(w);
    return w->tcp && w->udp && w->dns_front && w->stack ? 0 : -ENOMEM;
}

/* Control-C goes to all of a terminal's processes, and it is the supervisor that stops. */
static int watch_signals(struct run *r)
{
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, NULL);
    return loop_signal_watch(r->worker.loop, &r->term, SIGTERM, on_signal, r);
}

static int start(struct run *r, const struct options *o, const struct worker_seat *seat)
{
    struct worker *w = &r->worker;
    w->loop = loop_new();
    if (w->loop == NULL)
        return -errno;
    low_latency_init(&r->latency, w->loop, seat->latency_fd);
    w->resolver = resolver_new(w->loop, &o->outbound);
    if (w->resolver && o->resolver_conf)
        resolver_set_servers(w->resolver, o->resolver_conf, 0);
    if (w->resolver)
        w->proxy = proxy_new(w->loop, w->resolver, secrets_proxy(o), &o->outbound, o->pipeline);
    if (w->proxy == NULL)
        return -ENOMEM;
    int error = start_dns(w, o, seat->fake);
    if (error == 0)
        error = start_flows(w, o, seat->counters);
    if (error == 0)
        error = watch_signals(r);
    if (error == 0)
        error = loop_watch(w->loop, &w->device_io, w->device->fd, LOOP_READ, on_device, r);
    return error;
}

static void finish(struct run *r)
{
    struct worker *w = &r->worker;
    probe_free(r->probe);
    loop_ignore(&w->device_io);
    loop_timer_stop(&w->tick);
    loop_timer_stop(&r->trim);
    loop_timer_stop(&r->linger);
    low_latency_end(&r->latency);
    loop_signal_ignore(&r->term);
    dns_front_free(w->dns_front);
    tcp_flows_free(w->tcp);
    udp_flows_free(w->udp);
    if (w->stack)
        stack_free(w->stack);
    if (w->dns)
        dns_free(w->dns);
    if (w->proxy)
        proxy_free(w->proxy);
    if (w->resolver)
        resolver_free(w->resolver);
    loop_free(w->loop);
}

int worker_run(const struct worker_seat *seat, const struct options *options,
               worker_ready_fn *on_ready, void *arg)
{
    struct run r = {
        .worker = {.device = seat->device, .limits = &options->limits, .on_quiet = on_quiet},
        .batch = 1,
        .tick_at_ms = UINT64_MAX,
        .linger_s = options->linger_s,
    };
    int error = start(&r, options, seat);
    if (error != 0)
        log_error("cannot start relaying: %s", strerror(-error));
    if (error == 0 && on_ready)
        error = on_ready(arg);
    if (error == 0 && seat->looks_at_proxy)
        r.probe =
            probe_start(r.worker.loop, r.worker.resolver, &options->proxy, &options->outbound);
    while (error == 0 && !r.stopped) {
        loop_turn(r.worker.loop, true);
        r.turn++;
        arm_tick(&r);
        keep_awake(&r);
    }
    finish(&r);
    return error != 0 ? error : r.worker.error;
}
