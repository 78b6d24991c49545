/* A host that may be a name, and a port: what an option takes that is resolved later. */
#ifndef CULVERT_HOST_PORT_H
#define CULVERT_HOST_PORT_H

#include "core/base/addr.h"

struct host_port {
    char name[256];   /* as given, without brackets, for an address too */
    struct addr addr; /* valid when is_addr */
    bool is_addr;
    uint16_t port; /* host byte order, never 0 */
};

/*
 * Parse "HOST:PORT", "[V6]:PORT", or a bare host, which takes `default_port`; a bare IPv6 address
 * keeps its colons to itself. False where it is no host: `out` is undefined then.
 */
bool host_port_parse(const char *text, uint16_t default_port, struct host_port *out);

#endif
