/*
 * systemd-resolved, where it runs: over D-Bus it is told that our link's resolver is the one for
 * all names, and forgets it with the link. libsystemd is opened in a child, as core/up/nft.h does
 * it with libnftables.
 *
 * A machine's resolved is asked only when it is in our network namespace: an interface's number
 * means nothing elsewhere.
 */
#ifndef CULVERT_RESOLVED_H
#define CULVERT_RESOLVED_H

#include <stdbool.h>

#include "core/base/addr.h"

/* The file that names the resolvers which resolved itself asks. */
#define RESOLVED_UPSTREAM "/run/systemd/resolve/resolv.conf"

/* Does the resolv.conf at `path` name resolved's own address, and no other? */
bool resolved_is_resolver(const char *path);

/*
 * Make `server` the resolver for all names, by way of the link `ifindex`; without DNSSEC and TLS,
 * which what answers there does not have. 0; -ENOENT where no resolved runs here, or no libsystemd
 * is installed; -EIO when it refuses (logged).
 */
int resolved_take(int ifindex, const struct addr *server);
/* Undo it, also where the link is gone; and forget cached answers. 0 or as above. */
int resolved_revert(int ifindex);

#endif
