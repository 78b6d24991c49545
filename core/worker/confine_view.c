/* What a confined process sees of the file system: see core/worker/confine.c. */
#include "core/worker/confine_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/landlock.h>

#include "core/base/log.h"
#include "core/base/sanitized.h"

/* Covered while the new root is built there: nothing that is bound lies below it. */
static const char new_root[] = "/proc";
static const char default_conf[] = "/etc/resolv.conf";
static const char random_device[] = "/dev/urandom"; /* c-ares draws query numbers from it */

enum { VISIBLE_MAX = 4 };

struct visible {
    char paths[VISIBLE_MAX][PATH_MAX]; /* directories */
    size_t count;
};

static bool lies_below(const char *path, const char *directory)
{
    size_t len = strlen(directory);
    return strncmp(path, directory, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

static void add_directory(struct visible *v, const char *path)
{
    for (size_t i = 0; i < v->count; i++) {
        if (lies_below(path, v->paths[i]))
            return;
    }
    if (v->count < VISIBLE_MAX && path[0] == '/' && path[1] != '\0')
        (void)snprintf(v->paths[v->count++], PATH_MAX, "%s", path);
}

static void add_directory_of(struct visible *v, const char *file)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s", file);
    char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return;
    *slash = '\0';
    add_directory(v, path);
}

/* /etc, where the file is that is asked for, and where that leads to as a symbolic link. */
static void find_visible(struct visible *v, const char *resolver_conf)
{
    const char *conf = resolver_conf ? resolver_conf : default_conf;
    char target[PATH_MAX];
    v->count = 0;
    add_directory(v, "/etc");
    add_directory_of(v, conf);
    if (realpath(conf, target))
        add_directory_of(v, target);
    if (CULVERT_SANITIZED)
        add_directory(v, "/proc");
}

/* --- mounts ----------------------------------------------------------------------------------- */

/* `path` and the directories above it, below the new root. */
static bool make_directories(const char *path)
{
    for (char *at = strchr(path + sizeof(new_root), '/');; at = strchr(at + 1, '/')) {
        if (at)
            *at = '\0';
        bool made = mkdir(path, 0755) == 0 || errno == EEXIST;
        if (at)
            *at = '/';
        if (!made || !at)
            return made;
    }
}

static bool bind_read_only(const char *from, const char *to, unsigned long flags)
{
    if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0)
        return false;
    (void)mount(NULL, to, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC | flags,
                NULL);
    return true;
}

static bool show_directory(const char *path)
{
    char inside[2 * PATH_MAX];
    (void)snprintf(inside, sizeof(inside), "%s%s", new_root, path);
    return make_directories(inside) && bind_read_only(path, inside, MS_NODEV);
}

static bool show_random_device(void)
{
    char inside[PATH_MAX];
    (void)snprintf(inside, sizeof(inside), "%s/dev", new_root);
    if (mkdir(inside, 0755) < 0)
        return false;
    (void)snprintf(inside, sizeof(inside), "%s%s", new_root, random_device);
    int fd = open(inside, O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
    if (fd < 0)
        return false;
    close(fd);
    return bind_read_only(random_device, inside, 0);
}

/* "." twice: the old root ends up on top of the new one, from where it is taken away. */
static bool enter_new_root(void)
{
    return chdir(new_root) == 0 && syscall(SYS_pivot_root, ".", ".") == 0 &&
           umount2(".", MNT_DETACH) == 0 && chdir("/") == 0 &&
           mount(NULL, "/", NULL,
                 MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
}

/* What others mount on top of what we show is seen (MS_SLAVE), what we mount is not. */
static bool build_root(const struct visible *v)
{
    if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0 ||
        mount("none", new_root, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "mode=0755,size=64k,nr_inodes=64") < 0)
        return false;
    for (size_t i = 0; i < v->count; i++) {
        if (!show_directory(v->paths[i]))
            return false;
    }
    return show_random_device() && enter_new_root();
}

void confine_view(const char *resolver_conf)
{
    struct visible *v = calloc(1, sizeof(*v));
    if (!v)
        return;
    find_visible(v, resolver_conf);
    if (unshare(CLONE_NEWIPC) < 0)
        log_debug("no IPC namespace of its own: %s", strerror(errno));
    if (!CULVERT_SANITIZED && (unshare(CLONE_NEWNS) < 0 || !build_root(v)))
        log_debug("no root directory of its own: %s", strerror(errno));
    free(v);
}

/* --- Landlock --------------------------------------------------------------------------------- */

/* What the running kernel knows to forbid; what it does not know it would refuse. */
static uint64_t forbidden_by(long abi)
{
    uint64_t all = (UINT64_C(1) << 13) - 1; /* ABI 1: LANDLOCK_ACCESS_FS_EXECUTE .. MAKE_SYM */
    if (abi >= 2)
        all |= UINT64_C(1) << 13; /* REFER */
    if (abi >= 3)
        all |= UINT64_C(1) << 14; /* TRUNCATE */
    if (abi >= 5)
        all |= UINT64_C(1) << 15; /* IOCTL_DEV */
    return all;
}

/* As the newest kernels have it; Debian 12's header is older. */
struct ruleset_attr {
    uint64_t access_fs, access_net, scoped;
};

static int create_ruleset(void)
{
    enum { SCOPE_SIGNALS_AND_ABSTRACT_SOCKETS = 3 }; /* ABI 6 */
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 1)
        return -1;
    const struct ruleset_attr attr = {
        .access_fs = forbidden_by(abi),
        .scoped = SCOPE_SIGNALS_AND_ABSTRACT_SOCKETS,
    };
    size_t size = abi >= 6 ? sizeof(attr) : sizeof(attr.access_fs);
    return (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
}

static void allow_reading(int ruleset, const char *path, uint64_t access)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    struct landlock_path_beneath_attr rule = {.allowed_access = access, .parent_fd = fd};
    if (fd < 0)
        return;
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        log_debug("Landlock: %s: %s", path, strerror(errno));
    close(fd);
}

void confine_files(const char *resolver_conf)
{
    struct visible *v = calloc(1, sizeof(*v));
    int ruleset = v ? create_ruleset() : -1;
    if (ruleset < 0) {
        log_debug("no Landlock: %s", strerror(errno));
        free(v);
        return;
    }
    find_visible(v, resolver_conf);
    for (size_t i = 0; i < v->count; i++)
        allow_reading(ruleset, v->paths[i],
                      LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR);
    allow_reading(ruleset, random_device, LANDLOCK_ACCESS_FS_READ_FILE);
    if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        log_debug("no Landlock: %s", strerror(errno));
    close(ruleset);
    free(v);
}
