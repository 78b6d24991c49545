#include "core/worker/id_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Write a short file at once, as /proc wants it. 0 or -errno. */
static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = write(fd, text, strlen(text));
    int error = n < 0 ? -errno : 0;
    close(fd);
    return error;
}

static int write_map(const char *path, unsigned id)
{
    char line[48];
    (void)snprintf(line, sizeof(line), "%u %u 1\n", id, id);
    return write_file(path, line);
}

/* Groups may not be dropped in there, else a group that is denied access could be. */
int id_map_self(uid_t uid, gid_t gid)
{
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* else /proc/self is root's */
    int error = write_file("/proc/self/setgroups", "deny");
    if (error == 0 || error == -ENOENT)
        error = write_map("/proc/self/gid_map", gid);
    if (error == 0)
        error = write_map("/proc/self/uid_map", uid);
    return error;
}
