/*
 * Kernel settings under /proc/sys, by path ("net/ipv4/conf/all/rp_filter": a dot may be part of
 * an interface's name), and changing them so that the journal can change them back.
 */
#ifndef CULVERT_SYSCTL_H
#define CULVERT_SYSCTL_H

#include <stdbool.h>
#include <stddef.h>

#include "core/up/journal.h"

enum { SYSCTL_VALUE_MAX = 64, SYSCTL_PATH_MAX = 192 };

/* The value without its newline. 0 or -errno (-ENOENT: there is no such setting). */
int sysctl_read(const char *path, char value[SYSCTL_VALUE_MAX]);
int sysctl_write(const char *path, const char *value);
/* As a number; `fallback` where it cannot be read. */
long sysctl_number(const char *path, long fallback);

/* Journal what the value is, for a change that comes by another setting. 0 or -errno. */
int sysctl_note(struct journal *j, const char *path);
/* Journal what the value is and write the new one; nothing where it has that value. 0 or -errno. */
int sysctl_change(struct journal *j, const char *path, const char *value);
/* Write `value` where the setting (still) exists and has another. 0 or -errno. */
int sysctl_restore(const char *path, const char *value);

/* Call `fn` for each interface that has settings below `folder`, "all" and "default" among them. */
int sysctl_each_interface(const char *folder, void (*fn)(void *arg, const char *interface),
                          void *arg);

#endif
