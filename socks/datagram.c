#include "socks/datagram.h"

#include <assert.h>

#include "core/base/cursor.h"
#include "socks/address.h"

size_t socks5_datagram_header_size(const struct target *t)
{
    if (t->name)
        return 4 + 1 + strnlen(t->name, TARGET_NAME_MAX) + 2;
    return addr_is_v4(&t->addr) ? SOCKS5_DATAGRAM_V4 : SOCKS5_DATAGRAM_V6;
}

size_t socks5_datagram_prepend(uint8_t *payload, const struct target *t)
{
    size_t size = socks5_datagram_header_size(t);
    struct writer w = writer_over(payload - size, size);

    writer_u16(&w, 0); /* RSV */
    writer_u8(&w, 0);  /* FRAG: a datagram of its own */
    socks5_address_write(&w, t);
    assert(!w.bad && writer_left(&w) == 0);
    return size;
}

bool socks5_datagram_parse(const uint8_t *bytes, size_t len, struct socks5_datagram *out)
{
    struct reader r = reader_over(bytes, len);
    struct socks5_address from;

    reader_skip(&r, 2); /* RSV: some servers leave rubbish in it */
    uint8_t fragment = reader_u8(&r);
    if (fragment != 0) /* "MUST drop any datagram arriving where FRAG is other than X'00'" */
        return false;
    if (!socks5_address_read(&r, &from))
        return false;
    out->is_name = from.is_name;
    out->from = from.endpoint;
    memcpy(out->name, from.name, sizeof out->name);
    out->payload = r.at;
    out->payload_len = reader_left(&r);
    return true;
}
