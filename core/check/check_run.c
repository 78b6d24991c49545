/*
 * The order of things. What the proxy and others answer is for a child without privileges
 * (core/worker/errand.h); it says its results one after the other, and in the end the proxy's
 * addresses, which the steps about this machine look at.
 *
 * The proxy's sockets carry the mark that `up` would give them, where this process may set one,
 * so that a culvert which is up does not carry the check. The resolver's do not: the name is
 * looked up as any program would.
 */
#include <string.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/check/check_parts.h"
#include "core/command/commands.h"
#include "core/command/precheck.h"
#include "core/command/say.h"
#include "core/command/secrets.h"
#include "core/up/routing.h"
#include "core/worker/errand.h"

const struct check_step check_steps[] = {
    {"name", "proxy's name", check_name},
    {"reach", "TCP to the proxy", check_reach},
    {"rtt", "round trip", check_round_trip},
    {"login", "method, credentials", check_login},
    {"connect-name", "CONNECT by name", check_connect_name},
    {"connect-v6", "CONNECT to IPv6", check_connect_v6},
    {"connect-v4", "CONNECT to IPv4", check_connect_v4},
    {"dns-tcp", "DNS over TCP", check_dns_over_tcp},
    {"pipelining", "pipelined handshake", check_pipelining},
    {"udp-associate", "UDP ASSOCIATE", check_associate},
    {"udp-answer", "UDP answers", check_udp_answer},
    {"udp-filtering", "UDP from strangers", check_udp_filtering},
    {"udp-mapping", "UDP port mapping", check_udp_mapping},
    /* NETWORK_STEPS of them; from here on this machine alone */
    {"route-loop", "route loop", check_route_loop},
    {"tun", "/dev/net/tun", check_tun},
    {"privileges", "privileges", check_privileges},
    {"rules", "rules, nftables", check_rules},
    {"offloads", "offloads", check_offloads},
    {"rp-filter", "rp_filter", check_rp_filter},
    {"namespaces", "namespaces for run", check_namespaces},
};
const size_t check_step_count = sizeof(check_steps) / sizeof(check_steps[0]);
enum { NETWORK_STEPS = 13 };

/* --- in the child ----------------------------------------------------------------------------- */

static struct outbound_options resolver_outbound(const struct options *given,
                                                 const struct options *o)
{
    struct outbound_options out = given->outbound;
    if (out.mark != 0 || out.bind_interface[0] != '\0')
        out.broker = o->outbound.broker;
    return out;
}

static bool open_network(struct check *c, const struct options *o)
{
    c->outbound = o->outbound;
    c->control_fd = c->udp_fd = -1;
    c->accepted = check_is_direct(c);
    c->loop = loop_new();
    c->resolver = c->loop ? resolver_new(c->loop, &c->resolver_outbound) : NULL;
    if (c->resolver)
        c->proxy = proxy_new(c->loop, c->resolver, secrets_proxy(o), &c->outbound, false);
    if (!c->proxy)
        say("cannot check: %s", strerror(ENOMEM));
    return c->proxy != NULL;
}

static void close_network(struct check *c)
{
    if (c->udp_fd >= 0)
        close(c->udp_fd);
    if (c->control_fd >= 0)
        close(c->control_fd);
    if (c->proxy)
        proxy_free(c->proxy);
    resolver_free(c->resolver);
    loop_free(c->loop);
}

static const struct check_result *run_step(struct check *c, const struct check_step *step)
{
    static struct check_result result;
    result = (struct check_result){.verdict = CHECK_SKIPPED, .ms = -1};
    double began = check_now();
    step->run(c, &result);
    if (result.ms < 0)
        result.ms = check_now() - began;
    return &result;
}

static void try_network(const struct options *o, int say_fd, void *arg)
{
    static struct check c;
    const struct options *given = arg;
    c.options = o;
    c.timeout_ms = o->outbound.connect_timeout_ms;
    c.resolver_outbound = resolver_outbound(given, o);
    if (open_network(&c, o) && errand_lock()) {
        for (size_t i = 0; i < NETWORK_STEPS; i++)
            errand_say(say_fd, run_step(&c, &check_steps[i]), sizeof(struct check_result));
        errand_say(say_fd, &c.addrs, sizeof(c.addrs));
    }
    close_network(&c);
}

/* --- here ------------------------------------------------------------------------------------- */

static struct options as_up_would(const struct options *o)
{
    struct options out = *o;
    if (out.outbound.mark == 0 && check_has_capability(CAP_NET_ADMIN))
        out.outbound.mark = ROUTING_MARK;
    return out;
}

/* What the child said may be anything. */
static bool hear_result(struct errand *errand, struct check_result *result)
{
    if (!errand_hear(errand, result, sizeof(*result)) || (unsigned)result->verdict > CHECK_SKIPPED)
        return false;
    result->detail[sizeof(result->detail) - 1] = '\0';
    result->remedy[sizeof(result->remedy) - 1] = '\0';
    return true;
}

static bool hear_addresses(struct errand *errand, struct resolver_answer *addrs)
{
    bool heard = errand_hear(errand, addrs, sizeof(*addrs)) && addrs->count <= RESOLVER_ADDRS_MAX;
    if (!heard)
        *addrs = (struct resolver_answer){.count = 0};
    addrs->error = NULL; /* a pointer of the child's */
    return heard;
}

/* False: the child did not come to the end. */
static bool report_network(struct check *c, struct errand *errand, struct check_report *report)
{
    static struct check_result result;
    size_t done = 0;
    while (done < NETWORK_STEPS && hear_result(errand, &result))
        check_report_step(report, &check_steps[done++], &result);
    bool whole = done == NETWORK_STEPS && hear_addresses(errand, &c->addrs);
    for (bool first = true; done < NETWORK_STEPS; done++, first = false) {
        result = (struct check_result){.ms = 0};
        check_say(&result, first ? CHECK_FAIL : CHECK_SKIPPED,
                  "the process that tries it has died");
        check_report_step(report, &check_steps[done], &result);
    }
    return whole;
}

static void report_machine(struct check *c, struct check_report *report)
{
    for (size_t i = NETWORK_STEPS; i < check_step_count; i++)
        check_report_step(report, &check_steps[i], run_step(c, &check_steps[i]));
}

static bool check_all(const struct options *o, struct check_report *report)
{
    static struct check c;
    struct options tried = as_up_would(o);
    struct errand errand;
    c.options = o;
    c.timeout_ms = o->outbound.connect_timeout_ms;
    int error = errand_start(&errand, &tried, try_network, (void *)(uintptr_t)o);
    bool whole = error == 0 && report_network(&c, &errand, report);
    errand_end(&errand);
    if (error == 0)
        report_machine(&c, report);
    else
        say("cannot check: %s", strerror(-error));
    return whole;
}

int command_check(const struct options *o)
{
    struct check_report report = {.out = stdout, .json = o->check.json};
    char url[600];
    if (!options_given(o, "log-level"))
        log_set_level(LOG_LEVEL_ERROR); /* the steps say what there is to say */
    if (!precheck_user(o))
        return EXIT_REFUSED;
    check_report_begin(&report, proxy_url_format(&o->proxy, url, sizeof(url)));
    (void)fflush(stdout); /* not twice, by the child too */
    bool whole = check_all(o, &report);
    check_report_end(&report);
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    return written && whole && report.counts[CHECK_FAIL] == 0 ? EXIT_STOPPED : EXIT_REFUSED;
}
