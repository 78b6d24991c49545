/*
 * A look at the proxy as culvert starts: does its name resolve, does it accept connections?
 * What is found out decides whether to begin at all, or to warn: a proxy may come later, a name
 * that does not resolve is most likely mistyped.
 */
#ifndef CULVERT_PROBE_H
#define CULVERT_PROBE_H

#include "core/proxy/resolver.h"
#include "socks/url.h"

/*
 * Resolve the proxy's name, waiting for the answer with a loop of its own. `before_asking` is
 * called when that is set up, and may say no; NULL: nobody wants to know. NULL when there is an
 * address, else why there is none (static text).
 */
const char *probe_resolve(const struct proxy_url *url, const struct outbound_options *outbound,
                          bool (*before_asking)(void));

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
