/*
 * What `up` leaves on the machine beside what it changes: its folder under /run, the lock that
 * tells who runs, the journal, and undoing by it.
 *
 * /run is shared between network namespaces, and each has routes of its own, so the files carry
 * the namespace's cookie (SO_NETNS_COOKIE, unique until reboot).
 */
#ifndef CULVERT_UP_STATE_H
#define CULVERT_UP_STATE_H

#include <stdbool.h>
#include <sys/types.h>

enum { UP_PATH_MAX = 128 };

struct up_state {
    char journal[UP_PATH_MAX];
    char lock[UP_PATH_MAX];
    char resolver[UP_PATH_MAX]; /* resolv.conf as it was */
    int lock_fd;                /* -1: not held */
};

/* Make the folder and name the files. 0 or -errno. */
int up_state_init(struct up_state *s);
/*
 * Take the lock, which ends with the process. 0; -EWOULDBLOCK with `*holder` set to the pid that
 * holds it (0: not known); another -errno.
 */
int up_state_lock(struct up_state *s, pid_t *holder);
/* Also removes the folder, if it is empty. */
void up_state_unlock(struct up_state *s);

/*
 * Undo all that the journal tells, newest first. `after_death`: the device of the culvert that
 * wrote it is vanishing; wait for that. Returns how many records there were, -ENOENT without a
 * journal, or the first error: what could be undone has been, and the user has been told.
 */
int up_state_undo(const struct up_state *s, bool after_death);
/*
 * Did a culvert with the kill switch leave this journal, whose block stands? Waits for the end of
 * its device then.
 */
bool up_state_is_blocking(const struct up_state *s);
/* Remove journal and resolv.conf's copy: all is undone. */
void up_state_forget(const struct up_state *s);

#endif
