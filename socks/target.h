/*
 * Where a flow wants to go: a domain name or an address, and a port. Not an owner: `name`
 * belongs to the caller and need only live for the call it is passed to, unless that says else.
 */
#ifndef CULVERT_SOCKS_TARGET_H
#define CULVERT_SOCKS_TARGET_H

#include "core/base/addr.h"

enum { TARGET_NAME_MAX = 255 }; /* RFC 1928, 5: one length octet */

struct target {
    const char *name; /* NUL-terminated, at most TARGET_NAME_MAX bytes; NULL: `addr` counts */
    struct addr addr;
    uint16_t port; /* host byte order */
};

#endif
