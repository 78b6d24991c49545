/*
 * The UDP request header (RFC 1928, 7):
 *
 *   +----+------+------+----------+----------+----------+
 *   |RSV | FRAG | ATYP | DST.ADDR | DST.PORT |   DATA   |
 *   +----+------+------+----------+----------+----------+
 *   | 2  |  1   |  1   | 4/16/1+n |    2     | Variable |
 */
#ifndef CULVERT_SOCKS_DATAGRAM_H
#define CULVERT_SOCKS_DATAGRAM_H

#include "socks/target.h"

enum { SOCKS5_DATAGRAM_HEADER_MAX = 4 + 256 + 2, SOCKS5_DATAGRAM_V4 = 10, SOCKS5_DATAGRAM_V6 = 22 };

/* Bytes that the header towards `t` takes. */
size_t socks5_datagram_header_size(const struct target *t);
/* Write it so that it ends right before `payload`, in the caller's headroom; returns its size. */
size_t socks5_datagram_prepend(uint8_t *payload, const struct target *t);

struct socks5_datagram {
    bool is_name;
    struct endpoint from; /* port always valid; addr when !is_name */
    char name[TARGET_NAME_MAX + 1];
    const uint8_t *payload; /* inside the bytes that were parsed */
    size_t payload_len;     /* bytes; may be 0 */
};
/* False for short, FRAG != 0, RSV != 0 being tolerated, or unknown address type. */
bool socks5_datagram_parse(const uint8_t *bytes, size_t len, struct socks5_datagram *out);

#endif
