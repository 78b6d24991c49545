/*
 * /etc/resolv.conf handed over to culvert and back, byte for byte.
 *
 * Theory. A complete new file is prepared beside the old one and the two trade names in one step
 * (RENAME_EXCHANGE): programs see the one or the other, and the old one, be it a file or a
 * symbolic link, waits untouched under the other name to be exchanged back. Where the file is a
 * mount point, as in containers, or its folder cannot be written, it is written in place and
 * restored from a copy.
 *
 * Whether the file at the path is ours is told by its first line, so that restoring does the right
 * thing from any moment that culvert was killed at, and leaves alone what others have written.
 *
 * The file as it was is also copied to `copy`, for culvert's own resolver, which asks the servers
 * named there for the proxy's name; and `copy` is what an in-place file is restored from.
 */
#ifndef CULVERT_RESOLVCONF_H
#define CULVERT_RESOLVCONF_H

#include "core/base/addr.h"
#include "core/up/journal.h"

#define RESOLVCONF_DEFAULT "/etc/resolv.conf"

enum { RESOLVCONF_MAX = 65536, RESOLVCONF_PATH_MAX = 256 };

/* The first line of a file that we wrote. */
extern const char resolvconf_marker[];

struct resolvconf {
    char path[RESOLVCONF_PATH_MAX]; /* /etc/resolv.conf */
    char copy[RESOLVCONF_PATH_MAX];
    struct addr server; /* what programs are to ask */
};

/*
 * The new file's text into `out`: `server` first, then what the old one said, with as many of its
 * name servers as a resolver looks at (three in all, resolv.conf(5)). They are for what is not
 * captured, which hears at once that `server` is unreachable. Returns the length.
 */
size_t resolvconf_compose(const char *old, const struct addr *server, char *out, size_t size);

/* Copy the file as it is to `copy` (made anew in one step). 0 or -errno; no file: an empty copy. */
int resolvconf_save(const struct resolvconf *r);
/*
 * Copy the file `from` to `copy` without the line that names `server`. 0 or -errno. One that is
 * ours is not copied.
 */
int resolvconf_copy_others(const char *from, const struct resolvconf *r);
/* The file that a symbolic link at `path` leads to, into `out`; false where it is no link. */
bool resolvconf_target(const char *path, char out[RESOLVCONF_PATH_MAX]);
/*
 * Copy and replace the file, journalled. 0 or -errno. Harmless when the file is ours; one that
 * was written by others since is taken for the old one from now on.
 */
int resolvconf_install(const struct resolvconf *r, struct journal *j);
bool resolvconf_is_ours(const char *path);

/* Put the old file back, from its other name or, where it was written in place, from `copy`. */
int resolvconf_restore(const char *path, const char *copy);

/* Remove the copy, and a half-written one. */
void resolvconf_forget(const char *copy);

/*
 * A descriptor (inotify) that becomes readable when the file may have changed; read it empty with
 * resolvconf_watch_drain(), and after resolvconf_install() call resolvconf_watch_again().
 */
int resolvconf_watch(const char *path);
void resolvconf_watch_drain(int fd);
void resolvconf_watch_again(int fd, const char *path);

#endif
