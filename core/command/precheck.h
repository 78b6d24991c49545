/* What commands look at before they change anything; where it is wrong the user has been told. */
#ifndef CULVERT_PRECHECK_H
#define CULVERT_PRECHECK_H

#include "core/command/options.h"

/* Is there the user that the workers are to run as? */
bool precheck_user(const struct options *o);
/*
 * Does the proxy's name resolve? A confined child asks, since what the answer holds comes from the
 * network. Waits for it; the resolver's own time-outs bound that.
 */
bool precheck_proxy_name(const struct options *o);
/* Can the kernel be asked for what --low-latency promises, if that is given? */
bool precheck_low_latency(const struct options *o);

#endif
