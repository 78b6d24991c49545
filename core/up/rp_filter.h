/*
 * Strict reverse path filtering (rp_filter 1, RFC 3704) drops a packet that arrives elsewhere than
 * where an answer would leave. An answer without our mark would leave through the tunnel, so the
 * proxy's answers to our marked sockets look wrong on the uplink. Loose filtering (2) lets them
 * pass, and is what most desktops have.
 */
#ifndef CULVERT_RP_FILTER_H
#define CULVERT_RP_FILTER_H

#include "core/up/journal.h"

/*
 * Where any interface but `device` filters strictly, or one to come would, set
 * net.ipv4.conf.all.rp_filter to 2: the kernel takes the larger of that and the interface's own.
 * Journalled. 0 or -errno.
 */
int rp_filter_relax(struct journal *j, const char *device);

#endif
