/*
 * The commands. Each returns the program's exit status and has told the user why, where it is
 * not 0.
 */
#ifndef CULVERT_COMMANDS_H
#define CULVERT_COMMANDS_H

#include "core/command/options.h"

int command_tun(const struct options *options);   /* cmd_tun.c */
int command_run(struct options *options);         /* cmd_run.c */
int command_serve(const struct options *options); /* cmd_serve.c */
int command_up(const struct options *options);    /* cmd_up.c */
int command_check(const struct options *options); /* check.c */
int command_down(const struct options *options);  /* cmd_down.c */

#endif
