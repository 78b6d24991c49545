/*
 * Passwords, and who has them.
 *
 * Parsing the command line leaves them in `struct options`. Before anything else is done they are
 * moved into a sealed file in memory (memfd_create(2)) that nobody maps but the processes that need
 * them, each after it has given up its privileges: so neither the supervisor's memory nor a
 * broker's, nor a core file of theirs, ever holds one, and a worker that dies can be replaced.
 *
 * Who needs them sees them in one page, the file's own, read-only, shared by all and left out of
 * core files (MADV_DONTDUMP). What is made of them to be sent is wiped by who made it.
 */
#ifndef CULVERT_SECRETS_H
#define CULVERT_SECRETS_H

#include "core/command/options.h"

struct secrets {
    struct proxy_url proxy;
    struct auth_option auth;
};

/*
 * Move the passwords out of `o`: o->secrets_fd has them then, which stays -1 where there are none.
 * 0 or -errno. From then on `o` may be copied as one likes.
 */
int secrets_seal(struct options *o);
/*
 * Here they are needed: set o->secrets, which stays mapped for the process' life, and close
 * o->secrets_fd. Without any, nothing happens. 0 or -errno.
 */
int secrets_open(struct options *o);
/* This process does not need them, and none that it will start does: close the descriptor. */
void secrets_drop(struct options *o);

/* The proxy and --auth, with their passwords where secrets_open() was called. */
const struct proxy_url *secrets_proxy(const struct options *o);
const struct auth_option *secrets_auth(const struct options *o);

#endif
