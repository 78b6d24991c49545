/*
 * What `up` is about to change, written down first, so that whoever comes after a kill -9 can undo
 * it: `culvert down`, or the next `up`.
 *
 * A journal is a file of one record a line, appended and synced before each change. Undoing reads
 * it backwards. A record tells how to undo one change, and undoing is harmless where the change
 * was never made or is undone already; so a journal may be replayed as often as one likes, from
 * whatever moment it was left at. Each line begins with a checksum of the rest: one that was cut
 * short counts as not written, and its change has not been made.
 */
#ifndef CULVERT_JOURNAL_H
#define CULVERT_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>

enum { JOURNAL_RECORD_MAX = 4096 };

struct journal;

/* Open for appending, created where it is not there. NULL with `*error` set to -errno. */
struct journal *journal_open(const char *path, int *error);
/* Leaves the file as it is. NULL is fine. */
void journal_close(struct journal *j);

/*
 * Write one record, words separated by spaces, and sync it. Words must hold neither spaces nor
 * newlines (journal_escape()). 0 or -errno; when it is not 0 the change must not be made.
 */
int journal_note(struct journal *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A word for a record: whatever is no plain character becomes %XX. False: does not fit. */
bool journal_escape(const char *text, char *out, size_t size);
/* The reverse, in place. */
void journal_unescape(char *word);

/*
 * Call `fn` for each record of the file at `path`, the newest first. `record` is a copy and may
 * be cut into words. Returns how many there were, or -errno; -ENOENT without a file.
 */
int journal_replay(const char *path, void (*fn)(void *arg, char *record), void *arg);

#endif
