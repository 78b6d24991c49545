#include "core/check/stun.h"

#include "core/base/cursor.h"

/*
 *    0                   1                   2                   3
 *    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 *   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
 *   |0 0|     message type          |         message length        |
 *   |                         magic cookie                          |
 *   |                  transaction id (96 bits)                     |
 *   |  attributes: type, length, value padded to 4 bytes            |
 */
enum { BINDING_REQUEST = 0x0001, BINDING_SUCCESS = 0x0101 };
enum { FAMILY_V4 = 1, FAMILY_V6 = 2 };
static const uint32_t magic_cookie = 0x2112a442;

enum attribute {
    MAPPED_ADDRESS = 0x0001,
    CHANGE_REQUEST = 0x0003,
    CHANGED_ADDRESS = 0x0005, /* RFC 3489's OTHER-ADDRESS, which some servers still send */
    XOR_MAPPED_ADDRESS = 0x0020,
    OTHER_ADDRESS = 0x802c,
};
enum { CHANGE_IP_AND_PORT = 0x06 };

size_t stun_write_request(uint8_t buf[STUN_REQUEST_MAX], const uint8_t id[STUN_ID_SIZE],
                          bool from_elsewhere)
{
    struct writer w = writer_over(buf, STUN_REQUEST_MAX);
    writer_u16(&w, BINDING_REQUEST);
    writer_u16(&w, from_elsewhere ? 8 : 0);
    writer_u32(&w, magic_cookie);
    writer_bytes(&w, id, STUN_ID_SIZE);
    if (from_elsewhere) {
        writer_u16(&w, CHANGE_REQUEST);
        writer_u16(&w, 4);
        writer_u32(&w, CHANGE_IP_AND_PORT);
    }
    return writer_used(&w);
}

/*
 * An address (RFC 8489, 14.1): a zero, the family, the port, 4 or 16 bytes. XOR-MAPPED-ADDRESS
 * (14.2) is the same under `mask`, the cookie and the id, which hides it from NATs that rewrite
 * what looks like an address.
 */
static bool read_address(struct reader r, const uint8_t mask[16], struct endpoint *out)
{
    uint8_t bytes[16];
    reader_skip(&r, 1);
    uint8_t family = reader_u8(&r);
    uint16_t port = reader_u16(&r);
    size_t size = family == FAMILY_V4 ? 4 : 16;
    const uint8_t *address = reader_bytes(&r, size);
    if (!address || reader_left(&r) > 0 || (family != FAMILY_V4 && family != FAMILY_V6))
        return false;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(address[i] ^ mask[i]);
    out->addr = family == FAMILY_V4 ? addr_from_v4(bytes) : addr_from_v6(bytes);
    out->port = (uint16_t)(port ^ (mask[0] << 8 | mask[1]));
    return true;
}

struct parse {
    struct stun_answer *out;
    uint8_t mask[16];
    bool mapped, mapped_by_xor;
};

/* An attribute that is not known is passed over; one that is known and wrong spoils the message. */
static bool take_attribute(struct parse *p, unsigned type, struct reader value)
{
    static const uint8_t plain[16] = {0};
    struct endpoint e;
    switch (type) {
    case XOR_MAPPED_ADDRESS:
        if (!read_address(value, p->mask, &e))
            return false;
        p->out->mapped = e;
        p->mapped = p->mapped_by_xor = true;
        return true;
    case MAPPED_ADDRESS:
        if (!read_address(value, plain, &e))
            return false;
        if (!p->mapped_by_xor)
            p->out->mapped = e;
        p->mapped = true;
        return true;
    case OTHER_ADDRESS:
    case CHANGED_ADDRESS:
        p->out->has_other = read_address(value, plain, &p->out->other);
        return p->out->has_other;
    default:
        return true;
    }
}

bool stun_parse_answer(const uint8_t *bytes, size_t len, const uint8_t id[STUN_ID_SIZE],
                       struct stun_answer *out)
{
    struct reader r = reader_over(bytes, len);
    struct parse p = {.out = out};
    *out = (struct stun_answer){0};
    uint16_t type = reader_u16(&r);
    uint16_t length = reader_u16(&r);
    const uint8_t *mask = reader_bytes(&r, sizeof(p.mask));
    if (!mask || type != BINDING_SUCCESS || length != reader_left(&r))
        return false;
    memcpy(p.mask, mask, sizeof(p.mask));
    struct reader cookie = reader_over(mask, 4);
    if (reader_u32(&cookie) != magic_cookie || memcmp(mask + 4, id, STUN_ID_SIZE) != 0)
        return false;
    while (reader_left(&r) > 0) {
        uint16_t attribute = reader_u16(&r);
        uint16_t size = reader_u16(&r);
        const uint8_t *value = reader_bytes(&r, size);
        if (!value || !take_attribute(&p, attribute, reader_over(value, size)))
            return false;
        reader_skip(&r, (size_t)(-size & 3));
    }
    return !r.bad && p.mapped;
}
