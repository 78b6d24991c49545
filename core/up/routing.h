/*
 * Which packets go into the tunnel: the policy rules for given options, as plain data.
 *
 * Theory. The rules of a family are read in the order of their priorities, from `base` on. Each
 * packet ends in one of two places:
 *
 *   DIRECT   behind all others, from where the machine's own rules go on as if culvert were not
 *            there. Never an own look-up into the main table: other programs' rules and
 *            tables keep their say.
 *   table    culvert's own table, of number `base`, whose one default route leads into the device
 *
 *   base+0    our mark, the excluded cgroups', answers'    -> DIRECT  core/up/answers.h
 *   base+2    from the device's own address                -> table   for reverse path checks
 *   base+3    forwarded packets                            -> DIRECT  (--gateway: CAPTURE)
 *   base+4    excluded users                               -> DIRECT
 *   base+5    included users, included cgroups' mark       -> CAPTURE
 *   base+7    where some are included: everyone else       -> DIRECT
 *   base+20   CAPTURE
 *   base+21   to port 53, UDP and TCP                      -> table   on-link resolvers too
 *   base+22   --bypass; multicast, limited broadcast       -> DIRECT
 *   base+23   main, default routes suppressed                         LANs, more specific routes
 *   base+24   everything                                   -> table
 *   base+90   DIRECT
 *   base+91   to the fake ranges                           -> unreachable
 *
 * The mark decides, not the proxy's address: so the proxy may have any, and many, and loops are
 * impossible. Addresses of this machine match the kernel's local table before all of this.
 *
 * A fake address means nothing outside of the tunnel. What is not captured must not reach one,
 * neither by the device's connected network in the main table (a local proxy that resolved a name
 * to one would be its own client) nor by the default route. It hears at once that the resolver in
 * the fake range is unreachable and asks the next one that resolv.conf names.
 *
 * Where that rule would hit the wrong ones, nftables does it (core/up/nft.c): with included
 * cgroups, as a packet is marked only after its first look-up; and with users when forwarding,
 * since the kernel checks the reverse path of what it forwards as if it were user 0 who sent it.
 *
 * When culvert is killed its device takes its routes along. The rules stay, find nothing in the
 * table, and the machine's own rules go on: direct, or with a kill switch unreachable.
 */
#ifndef CULVERT_ROUTING_H
#define CULVERT_ROUTING_H

#include "core/command/options.h"
#include "stack/route.h"

enum {
    ROUTING_BASE_FIRST = 8500, /* bases are tried from here on, in steps of ROUTING_SPAN */
    ROUTING_BASE_LAST = 9900,
    ROUTING_SPAN = 100,
    ROUTING_RULES_MAX = 256,
    ROUTING_MARK = 0x63756c76, /* our sockets' mark where --mark gives none */
};

/* The marks that nftables gives, next to our own: to cgroups' sockets, and core/up/answers.h. */
enum {
    ROUTING_MARK_EXCLUDED = 0x63756c78,
    ROUTING_MARK_INCLUDED = 0x63756c69,
    ROUTING_MARK_ANSWER = 0x63756c61,
};

/*
 * Write the rules of `family` for `options` into `out`; returns how many. No input makes more
 * than ROUTING_RULES_MAX.
 */
size_t routing_plan(const struct options *options, int family, uint32_t base,
                    struct rule out[ROUTING_RULES_MAX]);

/* Is it nftables that keeps fake addresses inside? */
bool routing_fake_by_nftables(const struct options *o);

/* A base whose priorities and table nobody uses, or -errno; -EBUSY: there is none. */
int routing_find_base(struct route_session *s);

/*
 * Put rules and table in place, in that order: the table's route captures all at once. What is
 * there already stays. Also after a part of it was lost. Returns 0, or -errno having said what
 * could not be done.
 */
int routing_apply(struct route_session *s, const struct options *options, uint32_t base,
                  int ifindex);
/*
 * Take them away again, the routes first: were the rules that exempt gone before those that
 * capture, our own packets, and answers, would go into the tunnel. 0 or -errno.
 */
int routing_remove(struct route_session *s, uint32_t base);
/* Take away what other culverts, dead ones, have in place at whatever other base. 0 or -errno. */
int routing_remove_others(struct route_session *s, uint32_t base);

#endif
