/*
 * Environment variables that name the proxy which culvert uses, perhaps with its password: who is
 * behind culvert has no way to it, needs none, and is not to learn it.
 */
#ifndef CULVERT_PROXY_VARIABLES_H
#define CULVERT_PROXY_VARIABLES_H

#include "core/command/options.h"

/*
 * Take those of them out that name this very proxy, each overwritten in place. ALL_PROXY and
 * all_proxy are out already; where they name another proxy, o->run.environment keeps them for the
 * command of `run`.
 */
void proxy_variables_hide(struct options *o);
/* In the command's own process: put these back. */
void proxy_variables_restore(const struct options *o);
/* In all other processes: overwrite what was kept. */
void proxy_variables_forget(struct options *o);

#endif
