#include "core/worker/id_map.h"

#include <errno.h>
#include <stdio.h>
#include <sys/prctl.h>

#include "core/base/kernel_file.h"

static int write_map(const char *path, unsigned id)
{
    char line[48];
    (void)snprintf(line, sizeof(line), "%u %u 1\n", id, id);
    return kernel_file_write(path, line);
}

/* Groups may not be dropped in there, else a group that is denied access could be. */
int id_map_self(uid_t uid, gid_t gid)
{
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* else /proc/self is root's */
    int error = kernel_file_write("/proc/self/setgroups", "deny");
    if (error == 0 || error == -ENOENT)
        error = write_map("/proc/self/gid_map", gid);
    if (error == 0)
        error = write_map("/proc/self/uid_map", uid);
    return error;
}
