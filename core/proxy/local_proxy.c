#include "core/proxy/local_proxy.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE_LISTEN = 0x0a }; /* TCP_LISTEN, as /proc shows it */

static bool hex_byte(const char *text, uint8_t *out)
{
    char digits[3] = {text[0], text[0] ? text[1] : '\0', '\0'};
    char *end = NULL;
    *out = (uint8_t)strtoul(digits, &end, 16);
    return end == digits + 2;
}

/* The kernel prints an address as words of 32 bits, each in the machine's own byte order. */
static bool parse_address(const char *hex, struct addr *out)
{
    uint8_t bytes[16];
    size_t size = strlen(hex) / 2;
    if (size != 4 && size != 16)
        return false;
    for (size_t word = 0; word < size; word += 4) {
        uint8_t read[4];
        for (size_t i = 0; i < 4; i++) {
            if (!hex_byte(hex + 2 * (word + i), &read[i]))
                return false;
        }
        uint32_t value =
            (uint32_t)read[0] << 24 | (uint32_t)read[1] << 16 | (uint32_t)read[2] << 8 | read[3];
        memcpy(bytes + word, &value, sizeof(value));
    }
    *out = size == 4 ? addr_from_v4(bytes) : addr_from_v6(bytes);
    return true;
}

bool local_proxy_listener(const char *path, const struct addr *host, uint16_t port, uint32_t *uid)
{
    char line[512];
    bool found = false;
    FILE *table = fopen(path, "re");
    while (table && !found && fgets(line, sizeof(line), table)) {
        char address[33];
        unsigned local_port;
        unsigned state;
        struct addr a;
        /* The kernel's own table: no number in it is out of range. NOLINTNEXTLINE(cert-err34-c) */
        int fields = sscanf(line, " %*d: %32[0-9A-Fa-f]:%x %*s %x %*s %*s %*s %" SCNu32, address,
                            &local_port, &state, uid);
        found = fields == 4 && state == STATE_LISTEN && local_port == port &&
                parse_address(address, &a) && (addr_equal(&a, host) || addr_is_unspecified(&a));
    }
    if (table)
        fclose(table);
    return found;
}

static bool is_captured(const struct up_options *up, uint32_t uid)
{
    bool included = up->include_uids.count == 0 && up->include_cgroups.count == 0;
    for (size_t i = 0; i < up->include_uids.count; i++)
        included = included || (uid >= up->include_uids.items[i].first &&
                                uid <= up->include_uids.items[i].last);
    for (size_t i = 0; i < up->exclude_uids.count; i++)
        included = included &&
                   (uid < up->exclude_uids.items[i].first || uid > up->exclude_uids.items[i].last);
    return included;
}

bool local_proxy_would_loop(const struct options *o, uint32_t *uid)
{
    const struct proxy_url *url = &o->proxy;
    bool local =
        url->scheme == PROXY_SCHEME_SOCKS5 && url->host_is_addr && addr_is_loopback(&url->addr);
    bool may_be_kept_out =
        o->up.exclude_cgroups.count > 0 || o->up.bypass.count > 0 || options_given(o, "mark");
    if (!local || may_be_kept_out)
        return false;
    bool found = local_proxy_listener("/proc/net/tcp", &url->addr, url->port, uid) ||
                 local_proxy_listener("/proc/net/tcp6", &url->addr, url->port, uid);
    return found && is_captured(&o->up, *uid);
}
