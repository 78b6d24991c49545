#include "core/up/resolvconf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"

const char resolvconf_marker[] =
    "# Written by culvert. The file that was here comes back when culvert stops.\n";

enum { NAME_SERVERS_MAX = 3 }; /* MAXNS, resolv.conf(5) */

/* --- files ----------------------------------------------------------------------------------- */

/* The whole of a small file, NUL-terminated, to be freed. NULL with `*error` set. */
static char *read_file(const char *path, size_t *size, int *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    char *text = malloc(RESOLVCONF_MAX + 1);
    size_t used = 0;
    *error = text ? 0 : -ENOMEM;
    while (*error == 0 && used < RESOLVCONF_MAX) {
        ssize_t n = read(fd, text + used, RESOLVCONF_MAX - used);
        if (n < 0)
            *error = -errno;
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    close(fd);
    if (*error < 0) {
        free(text);
        return NULL;
    }
    text[used] = '\0';
    *size = used;
    return text;
}

static int write_all(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, text, size);
        if (n < 0)
            return -errno;
        text += n;
        size -= (size_t)n;
    }
    return 0;
}

/* A new file of that name, complete and on the disk, or none. */
static int write_new(const char *path, const char *text, size_t size)
{
    (void)unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    int error = write_all(fd, text, size);
    if (error == 0 && (fchmod(fd, 0644) < 0 || fsync(fd) < 0))
        error = -errno;
    close(fd);
    if (error < 0)
        (void)unlink(path);
    return error;
}

/*
 * Overwrite a file that must keep its inode. At each moment of a kill (a small write is whole or
 * not at all) its first bytes must tell whose it is: our text is written before the file is cut to
 * its length, but what is restored after that, when the rest of ours is gone.
 */
static int write_in_place(const char *path, const char *text, size_t size, bool restoring)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = 0;
    if (restoring && fstat(fd, &st) == 0 && st.st_size > (off_t)size &&
        ftruncate(fd, (off_t)size) < 0)
        error = -errno;
    if (error == 0)
        error = write_all(fd, text, size);
    if (error == 0 && ((!restoring && ftruncate(fd, (off_t)size) < 0) || fsync(fd) < 0))
        error = -errno;
    close(fd);
    return error;
}

/* The name that the other file has while they are exchanged: in the same folder, hidden. */
static bool other_name(const char *path, char out[RESOLVCONF_PATH_MAX])
{
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    const char *name = path + folder;
    int n = snprintf(out, RESOLVCONF_PATH_MAX, "%.*s.%s.culvert", folder, path, name);
    return n > 0 && n < RESOLVCONF_PATH_MAX;
}

/*
 * A file that is mounted there (containers, ip netns exec) can trade its name with none. The folder
 * beneath is others' too: what has the other name in it may be of a culvert in another namespace.
 */
static bool is_mount_point(const char *path)
{
    struct statx st;
    return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0, &st) == 0 &&
           (st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

/* Also when it was cut within the first line (write_in_place()). */
static bool begins_as_ours(const char *text)
{
    size_t len = strnlen(text, strlen(resolvconf_marker));
    return len > 0 && strncmp(text, resolvconf_marker, len) == 0;
}

bool resolvconf_is_ours(const char *path)
{
    size_t size = 0;
    int error = 0;
    char *text = read_file(path, &size, &error);
    bool ours = text && begins_as_ours(text);
    free(text);
    return ours;
}

/* --- the text -------------------------------------------------------------------------------- */

static bool is_name_server(const char *line)
{
    static const char word[] = "nameserver";
    size_t len = sizeof(word) - 1;
    return strncmp(line, word, len) == 0 && (line[len] == ' ' || line[len] == '\t');
}

/* Append a line with its newline; false when it does not fit. */
static bool append(char *out, size_t size, size_t *used, const char *line, size_t len)
{
    if (*used + len + 2 > size)
        return false;
    memcpy(out + *used, line, len);
    *used += len;
    out[(*used)++] = '\n';
    out[*used] = '\0';
    return true;
}

size_t resolvconf_compose(const char *old, const struct addr *server, char *out, size_t size)
{
    char text[ADDR_TEXT_MAX];
    int n = snprintf(out, size, "%snameserver %s\n", resolvconf_marker, addr_format(server, text));
    size_t used = n > 0 && (size_t)n < size ? (size_t)n : 0;
    unsigned servers = 1;
    while (*old) {
        size_t len = strcspn(old, "\n");
        bool comment = old[0] == '#' || old[0] == ';' || len == 0;
        bool counts = is_name_server(old);
        if (!comment && !(counts && servers == NAME_SERVERS_MAX) &&
            !append(out, size, &used, old, len))
            break;
        servers += counts && servers < NAME_SERVERS_MAX;
        old += len + (old[len] == '\n');
    }
    return used;
}

/* --- over and back --------------------------------------------------------------------------- */

static bool fresh_name(const char *copy, char out[RESOLVCONF_PATH_MAX])
{
    int n = snprintf(out, RESOLVCONF_PATH_MAX, "%s.new", copy);
    return n > 0 && n < RESOLVCONF_PATH_MAX;
}

void resolvconf_forget(const char *copy)
{
    char fresh[RESOLVCONF_PATH_MAX];
    (void)unlink(copy);
    if (fresh_name(copy, fresh))
        (void)unlink(fresh);
}

/* Give `to` the time of modification that `from` has: what is restored in place keeps it so. */
static void keep_time(const char *from, const char *to)
{
    struct stat st;
    if (stat(from, &st) < 0)
        return;
    const struct timespec times[] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim};
    (void)utimensat(AT_FDCWD, to, times, 0);
}

/* The text of the file `from`, or what of it counts, becomes the copy. */
static int copy_text(const struct resolvconf *r, const char *from, const char *text, size_t size)
{
    char fresh[RESOLVCONF_PATH_MAX];
    if (!fresh_name(r->copy, fresh))
        return -ENAMETOOLONG;
    int error = write_new(fresh, text, size);
    keep_time(from, fresh);
    if (error == 0 && rename(fresh, r->copy) < 0)
        error = -errno;
    return error;
}

int resolvconf_save(const struct resolvconf *r)
{
    size_t size = 0;
    int error = 0;
    char *text = read_file(r->path, &size, &error);
    if (!text && error != -ENOENT)
        return error;
    error = copy_text(r, r->path, text ? text : "", size);
    free(text);
    return error;
}

int resolvconf_copy_others(const char *from, const struct resolvconf *r)
{
    char ours[ADDR_TEXT_MAX + 16];
    char address[ADDR_TEXT_MAX];
    size_t size = 0;
    int error = 0;
    char *text = read_file(from, &size, &error);
    if (!text)
        return error;
    if (begins_as_ours(text)) { /* written in place, through a link: the copy is what was there */
        free(text);
        return 0;
    }
    (void)snprintf(ours, sizeof(ours), "nameserver %s", addr_format(&r->server, address));
    size_t kept = 0;
    for (const char *line = text; *line;) {
        size_t len = strcspn(line, "\n");
        size_t whole = len + (line[len] == '\n');
        if (len != strlen(ours) || memcmp(line, ours, len) != 0) {
            memmove(text + kept, line, whole);
            kept += whole;
        }
        line += whole;
    }
    error = copy_text(r, from, text, kept);
    free(text);
    return error;
}

bool resolvconf_target(const char *path, char out[RESOLVCONF_PATH_MAX])
{
    struct stat st;
    char *target = lstat(path, &st) == 0 && S_ISLNK(st.st_mode) ? realpath(path, NULL) : NULL;
    bool fits = target && strlen(target) < RESOLVCONF_PATH_MAX;
    if (fits)
        (void)strcpy(out, target);
    free(target);
    return fits;
}

/* The new file and the old one trade names. -errno where the file system cannot, or must not. */
static int exchange(const char *path, const char *other, const char *text, size_t size)
{
    int error = write_new(other, text, size);
    if (error < 0)
        return error;
    if (renameat2(AT_FDCWD, other, AT_FDCWD, path, RENAME_EXCHANGE) == 0)
        return 0;
    error = -errno;
    if (error == -ENOENT && rename(other, path) == 0)
        return 0; /* there was none: restoring removes ours */
    (void)unlink(other);
    return error;
}

/* `whole`: the copy is all of it, and may be what the file is restored from. */
static int replace(const struct resolvconf *r, struct journal *j, const char *old, bool whole)
{
    char other[RESOLVCONF_PATH_MAX];
    char path_word[3 * RESOLVCONF_PATH_MAX];
    char copy_word[3 * RESOLVCONF_PATH_MAX];
    if (!other_name(r->path, other) || !journal_escape(r->path, path_word, sizeof(path_word)) ||
        !journal_escape(r->copy, copy_word, sizeof(copy_word)))
        return -ENAMETOOLONG;
    char *text = malloc(RESOLVCONF_MAX);
    if (!text)
        return -ENOMEM;
    size_t size = resolvconf_compose(old, &r->server, text, RESOLVCONF_MAX);
    int error = journal_note(j, "resolvconf %s %s", path_word, copy_word);
    if (error == 0) {
        error = is_mount_point(r->path) ? -EBUSY : exchange(r->path, other, text, size);
        if (error == -EBUSY || error == -EXDEV || error == -EROFS || error == -EINVAL ||
            error == -EACCES || error == -EPERM || error == -ENOSYS)
            error = whole ? write_in_place(r->path, text, size, false) : -EFBIG;
    }
    free(text);
    return error;
}

int resolvconf_install(const struct resolvconf *r, struct journal *j)
{
    size_t size = 0;
    int error = 0;
    char *old = read_file(r->path, &size, &error);
    if (!old && error != -ENOENT)
        return error;
    if (old && begins_as_ours(old)) {
        free(old);
        return 0;
    }
    error = copy_text(r, r->path, old ? old : "", size);
    if (error == 0)
        error = replace(r, j, old ? old : "", size < RESOLVCONF_MAX);
    free(old);
    return error;
}

static bool same_text(const char *one, const char *other)
{
    size_t sizes[2] = {0, 0};
    int error = 0;
    char *texts[2] = {read_file(one, &sizes[0], &error), read_file(other, &sizes[1], &error)};
    bool same =
        texts[0] && texts[1] && sizes[0] == sizes[1] && memcmp(texts[0], texts[1], sizes[0]) == 0;
    free(texts[0]);
    free(texts[1]);
    return same;
}

static int restore_in_place(const char *path, const char *copy)
{
    size_t size = 0;
    int error = 0;
    char *text = read_file(copy, &size, &error);
    if (!text)
        return error;
    error = write_in_place(path, text, size, true);
    keep_time(copy, path);
    free(text);
    return error;
}

/*
 * What there is          what it means                         what is done
 * path ours, other       exchanged                             exchanged back, ours removed
 * path ours, no other    in place, or there was no file        rewritten, or removed
 * path a mount point     in place; the other is not ours       rewritten, the other left alone
 * path as the copy       rewritten already, perhaps killed     given its time
 *                        before that was done
 * path not ours, other   killed before the exchange, or        other removed
 *                        somebody has written it since
 */
int resolvconf_restore(const char *path, const char *copy)
{
    char other[RESOLVCONF_PATH_MAX];
    struct stat st;
    if (!other_name(path, other))
        return -ENAMETOOLONG;
    bool ours = resolvconf_is_ours(path);
    bool has_other = !is_mount_point(path) && lstat(other, &st) == 0;
    if (ours && has_other && renameat2(AT_FDCWD, other, AT_FDCWD, path, RENAME_EXCHANGE) < 0)
        return -errno;
    if (has_other)
        return unlink(other) == 0 ? 0 : -errno;
    if (!ours && same_text(path, copy))
        keep_time(copy, path);
    if (!ours)
        return 0;
    if (stat(copy, &st) == 0 && st.st_size == 0 && unlink(path) == 0)
        return 0;
    return restore_in_place(path, copy);
}

/* --- watching -------------------------------------------------------------------------------- */

enum { FILE_EVENTS = IN_CLOSE_WRITE, FOLDER_EVENTS = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE };

int resolvconf_watch(const char *path)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd < 0)
        return -errno;
    resolvconf_watch_again(fd, path);
    return fd;
}

void resolvconf_watch_again(int fd, const char *path)
{
    char folder[RESOLVCONF_PATH_MAX];
    (void)snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash && slash > folder)
        *slash = '\0';
    /* The folder hears of renames, the file itself of writes where it is a mount point. */
    (void)inotify_add_watch(fd, folder, FOLDER_EVENTS | IN_ONLYDIR);
    (void)inotify_add_watch(fd, path, FILE_EVENTS);
}

void resolvconf_watch_drain(int fd)
{
    _Alignas(struct inotify_event) char buffer[4096];
    while (read(fd, buffer, sizeof(buffer)) > 0) {
    }
}
