#include "core/dns/dns_name.h"

enum { POINTER_BITS = 0xc0, HEADER_SIZE = 12 };

bool dns_name_read(struct reader *message, struct dns_name *out)
{
    struct reader at = *message; /* jumps; `message` stays behind the first pointer */
    bool jumped = false;
    const uint8_t *limit = message->at; /* what pointers lead to ends before this */
    size_t used = 0;

    for (;;) {
        uint8_t length = reader_u8(&at);
        if (at.bad)
            break;
        if ((length & POINTER_BITS) == POINTER_BITS) {
            size_t target = (size_t)(length & ~POINTER_BITS) << 8 | reader_u8(&at);
            if (at.bad || target < HEADER_SIZE || target >= (size_t)(limit - at.start))
                break;
            if (!jumped)
                message->at = at.at;
            jumped = true;
            at.end = limit;
            at.at = limit = at.start + target;
            continue;
        }
        if (length > DNS_LABEL_MAX || used + 1 + length >= DNS_NAME_MAX + (length == 0))
            break;
        const uint8_t *label = reader_bytes(&at, length);
        if (!label)
            break;
        out->bytes[used] = length;
        memcpy(out->bytes + used + 1, label, length);
        used += 1u + length;
        if (length == 0) {
            if (!jumped)
                message->at = at.at;
            out->len = (uint8_t)used;
            return true;
        }
    }
    message->bad = true;
    return false;
}

static uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + ('a' - 'A')) : c;
}

void dns_name_lower(struct dns_name *name)
{
    /* Length octets are below 64 and so no letters: they need no special care. */
    for (size_t i = 0; i < name->len; i++)
        name->bytes[i] = lower(name->bytes[i]);
}

bool dns_name_equal(const struct dns_name *a, const struct dns_name *b)
{
    if (a->len != b->len)
        return false;
    for (size_t i = 0; i < a->len; i++)
        if (lower(a->bytes[i]) != lower(b->bytes[i]))
            return false;
    return true;
}

bool dns_name_text(const struct dns_name *name, char text[DNS_TEXT_SIZE])
{
    struct reader r = reader_over(name->bytes, name->len);
    struct writer w = writer_over(text, DNS_TEXT_SIZE);
    for (uint8_t length = reader_u8(&r); length > 0; length = reader_u8(&r)) {
        if (writer_used(&w) > 0)
            writer_u8(&w, '.');
        for (; length > 0; length--) {
            uint8_t c = reader_u8(&r);
            if (c <= ' ' || c == '.' || c == 0x7f)
                return false;
            writer_u8(&w, c);
        }
    }
    writer_u8(&w, 0);
    return !r.bad && !w.bad;
}

bool dns_name_parse(const char *text, struct dns_name *out)
{
    struct writer w = writer_over(out->bytes, sizeof(out->bytes));
    while (*text) {
        size_t length = strcspn(text, ".");
        if (length == 0 || length > DNS_LABEL_MAX)
            return false;
        writer_u8(&w, (uint8_t)length);
        writer_bytes(&w, text, length);
        text += length;
        if (*text == '.')
            text++;
    }
    writer_u8(&w, 0);
    out->len = (uint8_t)writer_used(&w);
    return !w.bad;
}

bool dns_name_within(const struct dns_name *name, const char *domain)
{
    struct dns_name suffix;
    if (!dns_name_parse(domain, &suffix) || suffix.len > name->len)
        return false;
    /* The suffix must begin at a label of the name, not in the middle of one. */
    size_t at = 0;
    while (name->len - at > suffix.len)
        at += 1u + name->bytes[at];
    if (name->len - at != suffix.len)
        return false;
    struct dns_name tail = {.len = suffix.len};
    memcpy(tail.bytes, name->bytes + at, suffix.len);
    return dns_name_equal(&tail, &suffix);
}

/* --- reverse names ------------------------------------------------------------------------- */

/* "1" to "255" without leading zeros, from a label; -1 for anything else. */
static int read_octet(struct reader *r)
{
    uint8_t length = reader_u8(r);
    int value = 0;
    if (length < 1 || length > 3)
        return -1;
    for (uint8_t i = 0; i < length; i++) {
        uint8_t c = reader_u8(r);
        if (c < '0' || c > '9' || (i == 0 && c == '0' && length > 1))
            return -1;
        value = value * 10 + (c - '0');
    }
    return value > 255 ? -1 : value;
}

static int read_nibble(struct reader *r)
{
    if (reader_u8(r) != 1)
        return -1;
    uint8_t c = lower(reader_u8(r));
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool dns_name_reverse(const struct dns_name *name, struct addr *out)
{
    struct reader r = reader_over(name->bytes, name->len);
    uint8_t bytes[16];

    if (dns_name_within(name, "in-addr.arpa")) {
        for (int i = 3; i >= 0; i--) {
            int octet = read_octet(&r);
            if (octet < 0)
                return false;
            bytes[i] = (uint8_t)octet;
        }
        *out = addr_from_v4(bytes);
        return reader_left(&r) == sizeof("\7in-addr\4arpa");
    }
    if (!dns_name_within(name, "ip6.arpa"))
        return false;
    for (int i = 15; i >= 0; i--) {
        int low = read_nibble(&r);
        int high = read_nibble(&r);
        if (low < 0 || high < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    *out = addr_from_v6(bytes);
    return reader_left(&r) == sizeof("\3ip6\4arpa");
}
