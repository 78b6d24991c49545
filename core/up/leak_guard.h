/*
 * The nftables side of `up` (core/up/nft.h), put in place and kept up to date.
 */
#ifndef CULVERT_LEAK_GUARD_H
#define CULVERT_LEAK_GUARD_H

#include "core/command/options.h"
#include "core/up/journal.h"
#include "stack/route.h"

/*
 * Put the table in place, journalled. Without nftables that is no more than a warning, unless
 * cgroups were asked for. False: the user has been told why it cannot be done.
 */
bool leak_guard_apply(struct route_session *s, struct journal *j, const struct options *o,
                      const char *device);
/* Write the table anew where networks that it names have changed, or it was `lost`. */
void leak_guard_refresh(struct route_session *s, const struct options *o, const char *device,
                        bool lost);

/* For undoing. 0 or -errno. */
int leak_guard_remove(void);

#endif
