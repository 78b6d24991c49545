#include "core/proxy/handshake.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/memory.h"

enum {
    UDP_REFUSED_MS = 60 * 1000,
    RESOURCES_QUIET_MS = 10 * 1000,
    TRIAL_PAUSE_MIN_MS = 2000,
    TRIAL_PAUSE_MAX_MS = 300 * 1000,
};

struct proxy *proxy_new(struct loop *loop, struct resolver *resolver, const struct proxy_url *url,
                        const struct outbound_options *outbound, bool pipeline)
{
    struct proxy *p = memory_zeroed(sizeof(*p));
    if (!p)
        return NULL;
    p->loop = loop;
    p->resolver = resolver;
    p->url = url;
    p->outbound = outbound;
    p->credentials = (struct socks5_credentials){.user = url->user, .password = url->password};
    p->pipelining = pipeline ? PIPELINING_UNPROVEN : PIPELINING_CHOKED;
    p->trial_pause_ms = TRIAL_PAUSE_MIN_MS;
    return p;
}

void proxy_free(struct proxy *p)
{
    free(p);
}

bool proxy_is_direct(const struct proxy *p)
{
    return p->url->scheme == PROXY_SCHEME_DIRECT;
}

const struct outbound_options *proxy_outbound(const struct proxy *p)
{
    return p->outbound;
}

const struct socks5_credentials *proxy_credentials(const struct proxy *p)
{
    return p->url->has_credentials ? &p->credentials : NULL;
}

char *proxy_describe(const struct proxy *p, char buf[PROXY_TEXT_MAX])
{
    bool v6 = p->url->host_is_addr && !addr_is_v4(&p->url->addr);
    snprintf(buf, PROXY_TEXT_MAX, v6 ? "[%s]:%u" : "%s:%u", p->url->host, p->url->port);
    return buf;
}

/* --- UDP ------------------------------------------------------------------------------------- */

bool proxy_udp_refused(const struct proxy *p)
{
    return loop_now(p->loop) < p->udp_refused_until;
}

void proxy_note_udp_refused(struct proxy *p, const char *why)
{
    char text[PROXY_TEXT_MAX];
    p->udp_refused_until = loop_now(p->loop) + UDP_REFUSED_MS;
    if (!p->said_udp_refused)
        log_warn("proxy %s relays no UDP (%s): applications are told so, and may use TCP",
                 proxy_describe(p, text), why);
    p->said_udp_refused = true;
}

/* --- pipelining ------------------------------------------------------------------------------ */

enum handshake proxy_choose_handshake(struct proxy *p, enum socks5_command command)
{
    switch (p->pipelining) {
    case PIPELINING_PROVEN:
        return HANDSHAKE_PIPELINED;
    case PIPELINING_CHOKED:
        return HANDSHAKE_PLAIN;
    case PIPELINING_UNPROVEN:
        break;
    }
    if (command != SOCKS5_CONNECT || p->on_trial || loop_now(p->loop) < p->next_trial_ms)
        return HANDSHAKE_PLAIN;
    p->on_trial = true;
    return HANDSHAKE_TRIAL;
}

void proxy_stop_pipelining(struct proxy *p)
{
    char text[PROXY_TEXT_MAX];
    if (p->pipelining != PIPELINING_CHOKED)
        log_info("proxy %s takes no pipelined handshake: speaking step by step",
                 proxy_describe(p, text));
    p->pipelining = PIPELINING_CHOKED;
}

static void pause_trials(struct proxy *p)
{
    p->next_trial_ms = loop_now(p->loop) + p->trial_pause_ms;
    p->trial_pause_ms *= 2;
    if (p->trial_pause_ms > TRIAL_PAUSE_MAX_MS)
        p->trial_pause_ms = TRIAL_PAUSE_MAX_MS;
}

void proxy_trial_over(struct proxy *p, enum trial_verdict verdict)
{
    p->on_trial = false;
    if (p->pipelining != PIPELINING_UNPROVEN)
        return;
    switch (verdict) {
    case TRIAL_PASSED:
        log_debug("the proxy takes pipelined handshakes");
        p->pipelining = PIPELINING_PROVEN;
        p->trial_pause_ms = TRIAL_PAUSE_MIN_MS;
        break;
    case TRIAL_CHOKED:
        proxy_stop_pipelining(p);
        break;
    case TRIAL_OPEN:
        pause_trials(p);
        break;
    case TRIAL_ABANDONED:
        break;
    }
}

void proxy_doubt_pipelining(struct proxy *p, enum socks5_command command)
{
    if (command == SOCKS5_CONNECT && p->pipelining == PIPELINING_PROVEN)
        p->pipelining = PIPELINING_UNPROVEN;
}

/* --- where it is ----------------------------------------------------------------------------- */

void proxy_note_connected(struct proxy *p, const struct addr *at)
{
    char text[PROXY_TEXT_MAX];
    p->has_preferred = true;
    p->preferred = *at;
    if (p->unreachable)
        log_info("proxy %s is reachable again", proxy_describe(p, text));
    p->unreachable = false;
}

void proxy_note_unreachable(struct proxy *p, const char *why)
{
    static struct log_limit limit = LOG_LIMIT(3);
    char text[PROXY_TEXT_MAX];
    if (p->unreachable)
        return;
    p->unreachable = true;
    log_limited(LOG_LEVEL_WARN, &limit, "proxy %s is unreachable: %s", proxy_describe(p, text),
                why);
}

void proxy_note_no_resources(struct proxy *p, int error)
{
    char text[PROXY_TEXT_MAX];
    if (loop_now(p->loop) < p->resources_quiet_until)
        return;
    p->resources_quiet_until = loop_now(p->loop) + RESOURCES_QUIET_MS;
    switch (error) {
    case EMFILE:
        log_error("no descriptor is left for a new connection: raise the limit (ulimit -n, "
                  "LimitNOFILE=) or lower --max-flows");
        break;
    case ENFILE:
        log_error("the system has no descriptor left for a new connection: raise fs.file-max");
        break;
    case EADDRNOTAVAIL:
        log_error("every local port towards %s is in use: widen net.ipv4.ip_local_port_range, or "
                  "give the proxy several addresses",
                  proxy_is_direct(p) ? "the destination" : proxy_describe(p, text));
        break;
    default:
        log_error("no new connection can be made: %s", strerror(error));
        break;
    }
}
