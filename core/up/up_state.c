#include "core/up/up_state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/command/say.h"
#include "core/up/journal.h"
#include "core/up/leak_guard.h"
#include "core/up/resolvconf.h"
#include "core/up/resolved.h"
#include "core/up/routing.h"
#include "core/up/sysctl.h"
#include "stack/link.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14, asm-generic/socket.h */
#endif

static const char run_folder[] = "/run/culvert";

enum {
    WORDS_MAX = 8,
    VANISH_STEPS = 100,  /* how often a dying device is looked for, */
    VANISH_STEP_MS = 20, /* at what distance: 2 s in all */
    FOLDER_TRIES = 10
};

/* --- files ----------------------------------------------------------------------------------- */

static uint64_t netns_cookie(void)
{
    uint64_t cookie = 0;
    socklen_t size = sizeof(cookie);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) < 0)
        cookie = 0;
    close(fd);
    return cookie;
}

static int make_folder(void)
{
    return mkdir(run_folder, 0755) == 0 || errno == EEXIST ? 0 : -errno;
}

int up_state_init(struct up_state *s)
{
    uint64_t cookie = netns_cookie();
    s->lock_fd = -1;
    (void)snprintf(s->journal, sizeof(s->journal), "%s/up-%" PRIu64 ".journal", run_folder, cookie);
    (void)snprintf(s->lock, sizeof(s->lock), "%s/up-%" PRIu64 ".lock", run_folder, cookie);
    (void)snprintf(s->resolver, sizeof(s->resolver), "%s/up-%" PRIu64 ".resolv.conf", run_folder,
                   cookie);
    return make_folder();
}

/* Has the file been removed by the one who held the lock, just as we opened it? */
static bool is_stale(int fd, const char *path)
{
    struct stat open_one, named;
    return fstat(fd, &open_one) < 0 || stat(path, &named) < 0 || open_one.st_ino != named.st_ino;
}

/* Another culvert that ends takes the empty folder away: then it is made again. */
static int open_lock(const char *path)
{
    int fd = -1;
    for (int i = 0; i < FOLDER_TRIES && fd < 0 && make_folder() == 0; i++) {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (fd < 0 && errno != ENOENT)
            break;
    }
    return fd < 0 ? -errno : fd;
}

/* A record lock: children do not inherit it, so it ends with this process whoever outlives it. */
int up_state_lock(struct up_state *s, pid_t *holder)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    *holder = 0;
    int fd = open_lock(s->lock);
    if (fd < 0)
        return fd;
    if (fcntl(fd, F_SETLK, &whole) < 0 || is_stale(fd, s->lock)) {
        if (fcntl(fd, F_GETLK, &whole) == 0 && whole.l_type != F_UNLCK)
            *holder = whole.l_pid;
        close(fd);
        return -EWOULDBLOCK;
    }
    s->lock_fd = fd;
    return 0;
}

void up_state_unlock(struct up_state *s)
{
    if (s->lock_fd < 0)
        return;
    (void)unlink(s->lock);
    (void)rmdir(run_folder); /* unless it holds anything */
    close(s->lock_fd);
    s->lock_fd = -1;
}

void up_state_forget(const struct up_state *s)
{
    (void)unlink(s->journal);
    resolvconf_forget(s->resolver);
}

/* --- undoing --------------------------------------------------------------------------------- */

struct undo {
    bool after_death;
    int error; /* the first */
};

static int split(char *record, char *words[WORDS_MAX])
{
    int count = 0;
    char *rest = NULL;
    for (char *word = strtok_r(record, " ", &rest); word && count < WORDS_MAX;
         word = strtok_r(NULL, " ", &rest)) {
        journal_unescape(word);
        words[count++] = word;
    }
    return count;
}

static int undo_routing(char *const *words)
{
    int error = 0;
    struct route_session *s = route_open(&error);
    if (!s)
        return error;
    error = routing_remove(s, (uint32_t)strtoul(words[1], NULL, 10));
    route_close(s);
    return error;
}

/* A device that died with its culvert takes a moment to vanish, and its routes with it. */
static int await_device_end(char *const *words)
{
    const struct timespec step = {.tv_nsec = VANISH_STEP_MS * 1000000};
    for (int i = 0; i < VANISH_STEPS && link_index(words[1]) > 0; i++)
        (void)nanosleep(&step, NULL);
    return 0;
}

/* link NAME MTU UP ADDR_GEN_MODE: a device that was there before. Negative: no IPv6 there. */
static int undo_link(char *const *words)
{
    const char *name = words[1];
    unsigned mtu = (unsigned)strtoul(words[2], NULL, 10);
    if (link_index(name) < 0)
        return 0;
    int error = words[3][0] == '0' ? link_set_up(name, false) : 0;
    if (error == 0 && mtu > 0)
        error = link_set_mtu(name, mtu);
    if (error == 0 && words[4][0] != '-')
        error = link_set_addr_gen_mode(name, (uint8_t)strtoul(words[4], NULL, 10));
    return error;
}

static int undo_address(char *const *words)
{
    struct cidr address;
    if (!cidr_parse(words[2], &address) || link_index(words[1]) < 0)
        return 0;
    int error = link_delete_address(words[1], &address);
    return error == -EADDRNOTAVAIL ? 0 : error;
}

/* Where it has gone meanwhile its settings have too. */
static int undo_resolved(char *const *words)
{
    int error = resolved_revert((int)strtol(words[1], NULL, 10));
    return error == -ENOENT ? 0 : error;
}

static int undo_record(const struct undo *u, char *const *words, int count)
{
    if (count == 2 && strcmp(words[0], "routing") == 0)
        return undo_routing(words);
    if (count == 3 && strcmp(words[0], "sysctl") == 0)
        return sysctl_restore(words[1], words[2]);
    if (count == 3 && strcmp(words[0], "resolvconf") == 0)
        return resolvconf_restore(words[1], words[2]);
    if (count == 2 && strcmp(words[0], "resolved") == 0)
        return undo_resolved(words);
    if (count == 1 && strcmp(words[0], "nft") == 0)
        return leak_guard_remove();
    if (count == 2 && strcmp(words[0], "device") == 0)
        return u->after_death ? await_device_end(words) : 0;
    if (count == 5 && strcmp(words[0], "link") == 0)
        return u->after_death ? undo_link(words) : 0;
    if (count == 3 && strcmp(words[0], "address") == 0)
        return u->after_death ? undo_address(words) : 0;
    if (count == 1 && strcmp(words[0], "blocking") == 0)
        return 0;
    return -ENOSYS; /* of a newer culvert */
}

static void on_record(void *arg, char *record)
{
    struct undo *u = arg;
    char *words[WORDS_MAX] = {NULL};
    char whole[JOURNAL_RECORD_MAX];
    (void)snprintf(whole, sizeof(whole), "%s", record);
    int error = undo_record(u, words, split(record, words));
    if (error >= 0)
        return;
    say("cannot undo \"%s\": %s", whole, strerror(-error));
    if (u->error == 0)
        u->error = error;
}

int up_state_undo(const struct up_state *s, bool after_death)
{
    struct undo u = {.after_death = after_death};
    int count = journal_replay(s->journal, on_record, &u);
    if (count < 0 && count != -ENOENT)
        say("cannot read %s: %s", s->journal, strerror(-count));
    return count >= 0 && u.error < 0 ? u.error : count;
}

static void look_for_block(void *arg, char *record)
{
    bool *blocking = arg;
    char *words[WORDS_MAX];
    int count = split(record, words);
    if (count == 1 && strcmp(words[0], "blocking") == 0)
        *blocking = true;
    if (count == 2 && strcmp(words[0], "device") == 0)
        (void)await_device_end(words);
}

bool up_state_is_blocking(const struct up_state *s)
{
    bool blocking = false;
    return journal_replay(s->journal, look_for_block, &blocking) > 0 && blocking;
}
