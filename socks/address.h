/*
 * The address of SOCKS5 messages (RFC 1928, 5), shared by requests, replies and datagrams:
 *
 *   ATYP 1: | 1 | 4 bytes      | port |
 *   ATYP 3: | 3 | n | n bytes  | port |    a domain name without terminating NUL
 *   ATYP 4: | 4 | 16 bytes     | port |
 */
#ifndef CULVERT_SOCKS_ADDRESS_H
#define CULVERT_SOCKS_ADDRESS_H

#include "core/base/cursor.h"
#include "socks/target.h"

enum socks5_address_type {
    SOCKS5_ADDRESS_V4 = 1,
    SOCKS5_ADDRESS_NAME = 3,
    SOCKS5_ADDRESS_V6 = 4,
};

struct socks5_address {
    bool is_name;
    struct endpoint endpoint; /* port always valid; addr when !is_name */
    char name[TARGET_NAME_MAX + 1];
};

/*
 * How many bytes the address takes, told from its first `have` bytes. While they do not say yet
 * it is the least that it can be, so that who reads that many never reads past the address.
 * 0 for an unknown type.
 */
size_t socks5_address_size(const uint8_t *bytes, size_t have);

/*
 * Read a whole address. False where bytes are missing, the type is unknown, or a name is empty
 * or contains a NUL (it would be a different name once it is a C string).
 */
bool socks5_address_read(struct reader *r, struct socks5_address *out);

/* Write the address of `t`; the writer turns bad where it does not fit. */
void socks5_address_write(struct writer *w, const struct target *t);

#endif
