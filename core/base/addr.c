#include "core/base/addr.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

enum { MAPPED_PREFIX_BITS = 96 };
static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

struct addr addr_from_v4(const uint8_t bytes[4])
{
    struct addr a;
    memcpy(a.bytes, mapped_prefix, sizeof(mapped_prefix));
    memcpy(a.bytes + sizeof(mapped_prefix), bytes, 4);
    return a;
}

struct addr addr_from_v6(const uint8_t bytes[16])
{
    struct addr a;
    memcpy(a.bytes, bytes, sizeof(a.bytes));
    return a;
}

bool addr_is_v4(const struct addr *a)
{
    return memcmp(a->bytes, mapped_prefix, sizeof(mapped_prefix)) == 0;
}

const uint8_t *addr_v4_bytes(const struct addr *a)
{
    return a->bytes + sizeof(mapped_prefix);
}

bool addr_equal(const struct addr *a, const struct addr *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

/* Are all bytes of an IPv6 address but the last one zero? */
static bool v6_is_small(const struct addr *a, uint8_t last)
{
    static const uint8_t zeros[15];
    return memcmp(a->bytes, zeros, sizeof(zeros)) == 0 && a->bytes[15] == last;
}

bool addr_is_unspecified(const struct addr *a)
{
    static const uint8_t any4[4];
    if (addr_is_v4(a))
        return memcmp(addr_v4_bytes(a), any4, sizeof(any4)) == 0;
    return v6_is_small(a, 0);
}

bool addr_is_loopback(const struct addr *a)
{
    if (addr_is_v4(a))
        return addr_v4_bytes(a)[0] == 127;
    return v6_is_small(a, 1);
}

bool addr_is_multicast(const struct addr *a)
{
    if (addr_is_v4(a))
        return (addr_v4_bytes(a)[0] & 0xf0) == 0xe0;
    return a->bytes[0] == 0xff;
}

bool addr_is_link_local(const struct addr *a)
{
    if (addr_is_v4(a))
        return addr_v4_bytes(a)[0] == 169 && addr_v4_bytes(a)[1] == 254;
    return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

bool addr_is_broadcast(const struct addr *a)
{
    static const uint8_t all_ones[4] = {255, 255, 255, 255};
    return addr_is_v4(a) && memcmp(addr_v4_bytes(a), all_ones, sizeof(all_ones)) == 0;
}

bool addr_is_routable(const struct addr *a)
{
    if (addr_is_multicast(a) || addr_is_link_local(a))
        return false;
    if (!addr_is_v4(a))
        return !addr_is_unspecified(a);
    uint8_t first = addr_v4_bytes(a)[0];
    /* 0/8 is "this network" (RFC 1122, 3.2.1.3), 240/4 class E with the broadcast address. */
    return first != 0 && first < 240;
}

bool addr_parse(const char *text, struct addr *out)
{
    uint8_t v4[4];
    uint8_t v6[16];
    if (inet_pton(AF_INET, text, v4) == 1) {
        *out = addr_from_v4(v4);
        return true;
    }
    if (inet_pton(AF_INET6, text, v6) == 1) {
        *out = addr_from_v6(v6);
        return true;
    }
    return false;
}

char *addr_format(const struct addr *a, char buf[ADDR_TEXT_MAX])
{
    bool v4 = addr_is_v4(a);
    const char *text =
        inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? addr_v4_bytes(a) : a->bytes, buf, ADDR_TEXT_MAX);
    if (!text)
        buf[0] = '\0';
    return buf;
}

bool endpoint_equal(const struct endpoint *a, const struct endpoint *b)
{
    return a->port == b->port && addr_equal(&a->addr, &b->addr);
}

/* A decimal number of digits alone, at most `max`; false for anything else. */
static bool parse_number(const char *text, unsigned max, unsigned *out)
{
    unsigned value = 0;
    if (*text == '\0')
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (unsigned)(*text - '0');
        if (value > max)
            return false;
    }
    *out = value;
    return true;
}

/* Parse the first `len` bytes of `text` as an address. */
static bool parse_addr_part(const char *text, size_t len, struct addr *out)
{
    char part[ADDR_TEXT_MAX];
    if (len >= sizeof(part))
        return false;
    memcpy(part, text, len);
    part[len] = '\0';
    return addr_parse(part, out);
}

/* `text` is what follows the address: nothing, or ":PORT". */
static bool parse_port_part(const char *text, uint16_t default_port, uint16_t *out)
{
    unsigned port = default_port;
    if (*text != '\0' && (*text != ':' || !parse_number(text + 1, UINT16_MAX, &port)))
        return false;
    *out = (uint16_t)port;
    return true;
}

bool endpoint_parse(const char *text, uint16_t default_port, struct endpoint *out)
{
    if (addr_parse(text, &out->addr)) {
        out->port = default_port;
        return true;
    }
    if (*text == '[') {
        const char *close = strchr(text, ']');
        /* Brackets are for IPv6 alone (RFC 3986, 3.2.2). */
        return close && memchr(text, ':', (size_t)(close - text)) &&
               parse_addr_part(text + 1, (size_t)(close - text - 1), &out->addr) &&
               parse_port_part(close + 1, default_port, &out->port);
    }
    const char *colon = strchr(text, ':');
    return colon && parse_addr_part(text, (size_t)(colon - text), &out->addr) &&
           parse_port_part(colon, default_port, &out->port);
}

char *endpoint_format(const struct endpoint *e, char buf[ENDPOINT_TEXT_MAX])
{
    char text[ADDR_TEXT_MAX];
    addr_format(&e->addr, text);
    snprintf(buf, ENDPOINT_TEXT_MAX, addr_is_v4(&e->addr) ? "%s:%u" : "[%s]:%u", text, e->port);
    return buf;
}

socklen_t endpoint_to_sockaddr(const struct endpoint *e, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (addr_is_v4(&e->addr)) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;
        in->sin_family = AF_INET;
        in->sin_port = htons(e->port);
        memcpy(&in->sin_addr, addr_v4_bytes(&e->addr), 4);
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(e->port);
    memcpy(&in6->sin6_addr, e->addr.bytes, 16);
    return sizeof(*in6);
}

bool endpoint_from_sockaddr(const struct sockaddr *sa, struct endpoint *out)
{
    if (sa->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, sa, sizeof(in));
        uint8_t bytes[4];
        memcpy(bytes, &in.sin_addr, sizeof(bytes));
        *out = (struct endpoint){.addr = addr_from_v4(bytes), .port = ntohs(in.sin_port)};
        return true;
    }
    if (sa->sa_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, sa, sizeof(in6));
        *out = (struct endpoint){.addr = addr_from_v6(in6.sin6_addr.s6_addr),
                                 .port = ntohs(in6.sin6_port)};
        return true;
    }
    return false;
}

bool cidr_parse(const char *text, struct cidr *out)
{
    const char *slash = strchr(text, '/');
    size_t len = slash ? (size_t)(slash - text) : strlen(text);
    if (!parse_addr_part(text, len, &out->addr))
        return false;
    unsigned max = addr_is_v4(&out->addr) ? 32 : 128;
    unsigned prefix = max;
    if (slash && !parse_number(slash + 1, max, &prefix))
        return false;
    out->prefix = (uint8_t)prefix;
    return true;
}

bool cidr_contains(const struct cidr *range, const struct addr *a)
{
    bool v4 = addr_is_v4(&range->addr);
    if (v4 != addr_is_v4(a))
        return false;
    unsigned bits = range->prefix + (v4 ? (unsigned)MAPPED_PREFIX_BITS : 0);
    size_t whole = bits / 8;
    if (memcmp(range->addr.bytes, a->bytes, whole) != 0)
        return false;
    unsigned rest = bits % 8;
    if (rest == 0)
        return true;
    return (range->addr.bytes[whole] ^ a->bytes[whole]) >> (8 - rest) == 0;
}

char *cidr_format(const struct cidr *range, char buf[CIDR_TEXT_MAX])
{
    char text[ADDR_TEXT_MAX];
    snprintf(buf, CIDR_TEXT_MAX, "%s/%u", addr_format(&range->addr, text), range->prefix);
    return buf;
}
