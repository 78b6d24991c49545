#include "core/command/host_port.h"

#include <stdlib.h>
#include <string.h>

bool host_port_parse(const char *text, uint16_t default_port, struct host_port *out)
{
    struct endpoint e;
    const char *colon = strchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : strlen(text);
    memset(out, 0, sizeof(*out));
    if (endpoint_parse(text, default_port, &e)) {
        out->is_addr = true;
        out->addr = e.addr;
        out->port = e.port;
        (void)addr_format(&e.addr, out->name);
        return e.port != 0;
    }
    bool valid = len > 0 && len < sizeof(out->name) - 2 && !memchr(text, '[', len) &&
                 !memchr(text, '/', len) && !memchr(text, '@', len);
    for (size_t i = 0; i < len; i++)
        valid = valid && (unsigned char)text[i] > ' ' && text[i] != 0x7f;
    if (!valid)
        return false;
    memcpy(out->name, text, len);
    out->port = default_port;
    if (!colon)
        return true;
    size_t digits = strspn(colon + 1, "0123456789");
    unsigned long port = strtoul(colon + 1, NULL, 10);
    out->port = (uint16_t)port;
    return digits > 0 && digits <= 5 && colon[1 + digits] == '\0' && port > 0 && port <= 65535;
}
