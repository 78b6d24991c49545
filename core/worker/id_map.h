/* The user and group ids of a user namespace (user_namespaces(7)). */
#ifndef CULVERT_ID_MAP_H
#define CULVERT_ID_MAP_H

#include <sys/types.h>

/*
 * In a user namespace that this process was just moved into: map `uid` and `gid`, its own in the
 * namespace before, onto themselves, which is all that an ordinary user may map. 0 or -errno.
 * The process can be dumped and traced by its user afterwards (PR_SET_DUMPABLE).
 */
int id_map_self(uid_t uid, gid_t gid);

#endif
