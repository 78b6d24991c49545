/*
 * The server's half of SOCKS5 (RFC 1928, RFC 1929), sans-I/O, for `culvert serve` and for tests.
 *
 *   GREETING --method--> [AUTH] --> REQUEST --> READY (the caller acts on it)
 *                                                 `--reply--> REPLIED
 *
 * A peer that breaks the protocol brings it to FAILED; what is still in the output (a refusal)
 * is to be sent before closing.
 */
#ifndef CULVERT_SOCKS_SERVER_H
#define CULVERT_SOCKS_SERVER_H

#include "socks/client.h"

enum socks5_server_state {
    SOCKS5_SERVER_GREETING,
    SOCKS5_SERVER_AUTH,
    SOCKS5_SERVER_REQUEST,
    SOCKS5_SERVER_READY,
    SOCKS5_SERVER_REPLIED,
    SOCKS5_SERVER_FAILED,
};

struct socks5_server {
    enum socks5_server_state state;
    const struct socks5_credentials *credentials; /* NULL: none asked for; not owned */
    uint8_t command; /* valid in READY: SOCKS5_CONNECT or SOCKS5_UDP_ASSOCIATE */
    bool target_is_name;
    struct endpoint target; /* port always valid; addr when !target_is_name */
    char name[TARGET_NAME_MAX + 1];
    uint8_t in[520];
    uint16_t in_len;
    uint16_t out_len, out_sent;
    uint8_t out[320];
};

void socks5_server_init(struct socks5_server *s, const struct socks5_credentials *credentials);
/* Feed bytes; returns how many were consumed. Bytes after the request stay with the caller. */
size_t socks5_server_input(struct socks5_server *s, const uint8_t *bytes, size_t len);
size_t socks5_server_output(const struct socks5_server *s, const uint8_t **out);
void socks5_server_sent(struct socks5_server *s, size_t n);
/* In READY: queue the reply. `bound` may be NULL: 0.0.0.0:0. */
void socks5_server_reply(struct socks5_server *s, enum socks5_reply reply,
                         const struct endpoint *bound);

#endif
