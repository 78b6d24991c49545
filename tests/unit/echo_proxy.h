/*
 * A SOCKS5 proxy for unit tests that has the world in itself: what is behind it depends on the port
 * that is asked for. It runs no loop; each turn does whatever can be done now.
 */
#ifndef CULVERT_TESTS_ECHO_PROXY_H
#define CULVERT_TESTS_ECHO_PROXY_H

#include "core/base/addr.h"
#include "socks/server.h"

enum {
    ECHO_PORT = 7,    /* says again what it is told, to its end; UDP too, on any port */
    FLOOD_PORT = 9,   /* sends ECHO_FLOOD bytes, byte i being i, then ends */
    BREAK_PORT = 13,  /* is reset as soon as it is connected */
    REFUSE_PORT = 1,  /* refused */
    DOMAIN_PORT = 53, /* DNS over TCP that knows no name */
    ECHO_FLOOD = 100000,
    ECHO_SESSIONS_MAX = 32,
};

struct echo_session;

struct echo_proxy {
    int fd;
    uint16_t port; /* on 127.0.0.1 */
    const struct socks5_credentials *credentials;
    struct echo_session *sessions[ECHO_SESSIONS_MAX];
};

void echo_proxy_start(struct echo_proxy *p, const struct socks5_credentials *credentials);
/* Do what can be done without waiting. Was there anything? */
bool echo_proxy_turn(struct echo_proxy *p);
/* Connections that are open. */
unsigned echo_proxy_count(const struct echo_proxy *p);
/* Close all connections, as a proxy's end does. */
void echo_proxy_drop(struct echo_proxy *p);
void echo_proxy_stop(struct echo_proxy *p);

#endif
