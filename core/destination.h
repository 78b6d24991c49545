/*
 * Where an application wants to go, as the proxy is told, and what it hears when that fails.
 */
#ifndef CULVERT_DESTINATION_H
#define CULVERT_DESTINATION_H

#include "core/dns/dns.h"
#include "core/proxy/proxy.h"
#include "stack/stack.h"

/*
 * `out` becomes the address `dst`, or the name behind it if it is a fake one; the name is written
 * to `name`, which `out` then points to. False: a fake address that is no longer known.
 */
bool destination_find(struct dns *dns, const struct endpoint *dst, struct target *out,
                      char name[TARGET_NAME_MAX + 1]);
/*
 * What the application is told when the proxy says no (RFC 1928, 6): ICMP where the reply says what
 * kind of unreachable it is, else, and whenever there was no reply, RST.
 */
enum refusal destination_refusal(const struct dial_result *r);

#endif
