/*
 * Fake addresses: which name stands behind which address of the fake ranges, and back.
 *
 * A name gets one address of each family that it is asked for, keeps it as long as it is among
 * the names used last, and surely as long as a flow holds the address. Both directions cost a
 * hash chain at most, whatever the number of names.
 */
#ifndef CULVERT_FAKEDNS_H
#define CULVERT_FAKEDNS_H

#include "core/dns/dns_name.h"

enum {
    FAKEDNS_NAMES_MAX = 65536, /* of each family, however large the ranges are */
    FAKEDNS_USERS_MAX = 64,
};

enum fakedns_family { FAKEDNS_V4, FAKEDNS_V6, FAKEDNS_FAMILIES };

struct fakedns;

/*
 * `ranges` may overlap and have host bits set. Network, broadcast (IPv4) and subnet-router
 * anycast addresses (IPv6, RFC 4291, 2.6.1) and the `own` ones are never handed out. Both lists
 * are copied. NULL when out of memory.
 */
struct fakedns *fakedns_new(const struct cidr *ranges, size_t range_count, const struct addr *own,
                            size_t own_count);
void fakedns_free(struct fakedns *f);

/*
 * The same for `users` processes (1 to FAKEDNS_USERS_MAX) that will be forked. Each of them calls
 * fakedns_join() with its number, 0 to users - 1, before all else: what its predecessor of that
 * number held is released. Frees the memory that is its own only.
 */
struct fakedns *fakedns_new_shared(const struct cidr *ranges, size_t range_count,
                                   const struct addr *own, size_t own_count, unsigned users);
void fakedns_join(struct fakedns *f, unsigned user);
/* User number `user` has died, perhaps in the middle of a change. Trusts nothing that is shared. */
void fakedns_user_died(struct fakedns *f, unsigned user);

/* Is there any range of this family? */
bool fakedns_has(const struct fakedns *f, enum fakedns_family family);
/* Is `a` in a fake range? Handed out or not, and be it one of our own addresses. */
bool fakedns_in_range(const struct fakedns *f, const struct addr *a);
bool fakedns_is_own(const struct fakedns *f, const struct addr *a);

/*
 * The address of `name` (text in lower case, 1 to DNS_TEXT_MAX bytes), handed out where it has
 * none yet: a fresh one, or that of the name used longest ago. False when flows hold them all.
 */
bool fakedns_assign(struct fakedns *f, const char *name, enum fakedns_family family,
                    struct addr *out);
/* The name behind `a`, which counts as use. False when nobody's. */
bool fakedns_name(struct fakedns *f, const struct addr *a, char name[DNS_TEXT_SIZE]);

/* As long as it is held an address keeps its name. Harmless for addresses that have no name. */
void fakedns_hold(struct fakedns *f, const struct addr *a);
void fakedns_release(struct fakedns *f, const struct addr *a);

#endif
