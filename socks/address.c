#include "socks/address.h"

#include <assert.h>

size_t socks5_address_size(const uint8_t *bytes, size_t have)
{
    struct reader r = reader_over(bytes, have);
    size_t shortest = 1 + 1 + 2; /* a name of no bytes */

    uint8_t type = reader_u8(&r);
    if (r.bad)
        return shortest;
    switch (type) {
    case SOCKS5_ADDRESS_V4:
        return 1 + 4 + 2;
    case SOCKS5_ADDRESS_V6:
        return 1 + 16 + 2;
    case SOCKS5_ADDRESS_NAME:
        return shortest + reader_u8(&r);
    default:
        return 0;
    }
}

static bool read_name(struct reader *r, struct socks5_address *out)
{
    size_t len = reader_u8(r);
    const uint8_t *name = reader_bytes(r, len);
    if (!name || len == 0 || memchr(name, '\0', len))
        return false;
    memcpy(out->name, name, len);
    out->name[len] = '\0';
    out->is_name = true;
    return true;
}

bool socks5_address_read(struct reader *r, struct socks5_address *out)
{
    const uint8_t *bytes;

    memset(out, 0, sizeof *out);
    switch (reader_u8(r)) {
    case SOCKS5_ADDRESS_V4:
        bytes = reader_bytes(r, 4);
        if (bytes)
            out->endpoint.addr = addr_from_v4(bytes);
        break;
    case SOCKS5_ADDRESS_V6:
        bytes = reader_bytes(r, 16);
        if (bytes)
            out->endpoint.addr = addr_from_v6(bytes);
        break;
    case SOCKS5_ADDRESS_NAME:
        if (!read_name(r, out))
            return false;
        break;
    default:
        return false;
    }
    out->endpoint.port = reader_u16(r);
    return !r->bad;
}

void socks5_address_write(struct writer *w, const struct target *t)
{
    if (t->name) {
        size_t len = strnlen(t->name, TARGET_NAME_MAX);
        assert(len > 0 && t->name[len] == '\0');
        writer_u8(w, SOCKS5_ADDRESS_NAME);
        writer_u8(w, (uint8_t)len);
        writer_bytes(w, t->name, len);
    } else if (addr_is_v4(&t->addr)) {
        writer_u8(w, SOCKS5_ADDRESS_V4);
        writer_bytes(w, addr_v4_bytes(&t->addr), 4);
    } else {
        writer_u8(w, SOCKS5_ADDRESS_V6);
        writer_bytes(w, t->addr.bytes, 16);
    }
    writer_u16(w, t->port);
}
