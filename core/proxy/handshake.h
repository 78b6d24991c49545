/*
 * What is known of one proxy and what its dials share: core/proxy/proxy.c keeps it,
 * core/proxy/dial.c asks and tells.
 *
 * Whether a proxy takes a pipelined handshake (greeting, credentials and request in one write,
 * one round trip less) can only be tried. Some read the greeting with one recv(), throw away
 * what came behind it and wait for a request for ever; others close.
 *
 *   UNPROVEN --a trial gets a reply--> PROVEN --silence or a close before a reply--> UNPROVEN
 *      `--a trial gets none, the same dial without pipelining does--> CHOKED, for good
 *
 *   UNPROVEN   one dial at a time is the trial, the others are plain
 *   PROVEN     every dial is pipelined
 *   CHOKED     every dial is plain; also where pipelining is switched off
 */
#ifndef CULVERT_HANDSHAKE_H
#define CULVERT_HANDSHAKE_H

#include "core/proxy/proxy.h"

enum pipelining { PIPELINING_UNPROVEN, PIPELINING_PROVEN, PIPELINING_CHOKED };

struct proxy {
    struct loop *loop;
    struct resolver *resolver;
    const struct proxy_url *url;
    const struct outbound_options *outbound;
    struct socks5_credentials credentials; /* point into `url` */
    enum pipelining pipelining;
    bool on_trial;           /* a dial is trying */
    uint64_t next_trial_ms;  /* of the loop's clock: none before */
    unsigned trial_pause_ms; /* after the next trial without a verdict */
    bool has_preferred;
    struct addr preferred; /* the address that accepted last */
    bool unreachable;      /* and it was said */
    bool said_udp_refused;
    uint64_t resources_quiet_until; /* ms */
    uint64_t udp_refused_until;     /* ms */
};

enum handshake { HANDSHAKE_PLAIN, HANDSHAKE_PIPELINED, HANDSHAKE_TRIAL };

/*
 * How is a new dial to speak? After TRIAL, proxy_trial_over() must follow. Only a CONNECT is a
 * trial: proxies that relay no UDP close, some of them, which says nothing about pipelining.
 */
enum handshake proxy_choose_handshake(struct proxy *p, enum socks5_command command);

enum trial_verdict {
    TRIAL_PASSED,
    TRIAL_CHOKED,
    TRIAL_OPEN,      /* the proxy did not answer a plain handshake either: try later */
    TRIAL_ABANDONED, /* ended before the proxy said anything: the next dial may try */
};
void proxy_trial_over(struct proxy *p, enum trial_verdict verdict);
/* A pipelined handshake with a proxy believed to take it got no reply. */
void proxy_doubt_pipelining(struct proxy *p, enum socks5_command command);
/* Credentials do not get along with pipelining: the proxy wants to choose the method. */
void proxy_stop_pipelining(struct proxy *p);

/* NULL where the URL has none. */
const struct socks5_credentials *proxy_credentials(const struct proxy *p);
void proxy_note_connected(struct proxy *p, const struct addr *at);
/* No address of it could be reached; `why` is for the log. */
void proxy_note_unreachable(struct proxy *p, const char *why);
/* A socket, port or memory could not be had: `error` is the errno. One line now and then. */
void proxy_note_no_resources(struct proxy *p, int error);
/* "host:port", for the log. */
enum { PROXY_TEXT_MAX = 300 };
char *proxy_describe(const struct proxy *p, char buf[PROXY_TEXT_MAX]);

#endif
