/*
 * A TUN device's link as the rest of the system sees it, over rtnetlink (libmnl): MTU, addresses,
 * up and down. No ip binary, no shell.
 */
#ifndef CULVERT_STACK_LINK_H
#define CULVERT_STACK_LINK_H

#include "core/base/addr.h"

/* Each returns 0 or the kernel's -errno (-EPERM, -ENODEV, -EADDRNOTAVAIL, ...). */
int link_index(const char *name); /* > 0, or -errno */
int link_set_mtu(const char *name, unsigned mtu);
int link_get_mtu(const char *name); /* bytes, or -errno */
/* Does this kernel know IPv4 super-packets of more than 64 KiB (Linux 6.3; IPv6: 5.19)? */
bool link_kernel_has_big_tcp(void);
/*
 * IFF_UP, and no IPv6 router solicitations or MLD chatter of the kernel's own (addrgenmode none).
 */
int link_set_up(const char *name, bool up);
/*
 * How the link makes its IPv6 link-local addresses (addr_gen_mode), for putting back what
 * link_set_up() changed: written over rtnetlink, it makes none at once. Get: or -errno.
 */
int link_get_addr_gen_mode(const char *name);
int link_set_addr_gen_mode(const char *name, uint8_t mode);
int link_set_txqueuelen(const char *name, unsigned packets);
/* 0 also when the address is there already. IPv6: without duplicate address detection. */
int link_add_address(const char *name, const struct cidr *address);
int link_delete_address(const char *name, const struct cidr *address);
/*
 * Route `destination` into the link, in table main; `metric` 0: the family's own default. 0, or
 * -EEXIST when there is a route to it of that metric already, into whatever link.
 */
int link_add_route(const char *name, const struct cidr *destination, uint32_t metric);
/* Only one that link_add_route() made is deleted; -ESRCH when there is none. */
int link_delete_route(const char *name, const struct cidr *destination, uint32_t metric);
/* Is `a` an address of another link than `name`? Writes that link's name. */
bool link_address_in_use(const struct addr *a, const char *name, char other[16]);

#endif
