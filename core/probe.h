/*
 * A look at the proxy as culvert starts: does its name resolve, does it accept connections? It
 * only ever warns, since the proxy may come later.
 */
#ifndef CULVERT_PROBE_H
#define CULVERT_PROBE_H

#include "core/resolver.h"
#include "socks/url.h"

struct probe;

/*
 * Connect to the proxy over TCP, every address in turn, and close again: nothing is sent. The
 * arguments outlive the probe. NULL when out of memory, or with direct://, where there is nothing
 * to look at. Free it with probe_free(), also after it has ended.
 */
struct probe *probe_start(struct loop *loop, struct resolver *resolver, const struct proxy_url *url,
                          const struct outbound_options *outbound);
void probe_free(struct probe *p); /* NULL is fine */

#endif
