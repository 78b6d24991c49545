/*
 * The surroundings of the command that `run` runs: a network of its own with the TUN device as the
 * only way out, and a file system on which the resolver's doors lead nowhere else.
 */
#ifndef CULVERT_SANDBOX_H
#define CULVERT_SANDBOX_H

#include "core/command/tun_setup.h"

/*
 * Can this user have a TUN device at all? False: the user has been told why not, and the remedy.
 * Nothing is changed.
 */
bool sandbox_check(void);

/*
 * Move the calling process, which has one thread, into a mount and a network namespace of its own,
 * by way of a user namespace where it is not privileged. 0 or -errno.
 */
int sandbox_unshare(void);
/* What to do where that is refused with the errno `error`. */
const char *sandbox_remedy(int error);

/*
 * Move the calling process, which has one thread, into new namespaces and open the device there:
 * `setup->options` say how, `setup->device` is open afterwards. The process has all capabilities
 * over these namespaces until it executes another program; user and group ids, the working
 * directory and descriptors stay. False: the user has been told; the process must end then.
 */
bool sandbox_enter(struct tun_setup *setup);

/*
 * Lead what has no more specific route into the device `name`, both families. With `others` there
 * may be default routes of others, which must not count any more. False: the user has been told.
 */
bool sandbox_route(const char *name, bool others);
/* Take these routes away from a device that stays. */
void sandbox_unroute(const char *name);

#endif
