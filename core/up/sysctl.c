#include "core/up/sysctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/kernel_file.h"

enum { FULL_PATH_MAX = SYSCTL_PATH_MAX + 16 };

static int full_path(const char *path, char full[FULL_PATH_MAX])
{
    int n = snprintf(full, FULL_PATH_MAX, "/proc/sys/%s", path);
    return n < 0 || n >= FULL_PATH_MAX ? -ENAMETOOLONG : 0;
}

int sysctl_read(const char *path, char value[SYSCTL_VALUE_MAX])
{
    char full[FULL_PATH_MAX];
    int error = full_path(path, full);
    if (error < 0)
        return error;
    int fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, value, SYSCTL_VALUE_MAX - 1);
    error = n < 0 ? -errno : 0;
    close(fd);
    if (error < 0)
        return error;
    value[n] = '\0';
    value[strcspn(value, "\n")] = '\0';
    return 0;
}

int sysctl_write(const char *path, const char *value)
{
    char full[FULL_PATH_MAX];
    int error = full_path(path, full);
    return error < 0 ? error : kernel_file_write(full, value);
}

long sysctl_number(const char *path, long fallback)
{
    char value[SYSCTL_VALUE_MAX];
    return sysctl_read(path, value) == 0 ? strtol(value, NULL, 10) : fallback;
}

int sysctl_note(struct journal *j, const char *path)
{
    char before[SYSCTL_VALUE_MAX];
    char path_word[3 * SYSCTL_PATH_MAX];
    char value_word[3 * SYSCTL_VALUE_MAX];
    int error = sysctl_read(path, before);
    if (error < 0)
        return error;
    if (!journal_escape(path, path_word, sizeof(path_word)) ||
        !journal_escape(before, value_word, sizeof(value_word)))
        return -ENAMETOOLONG;
    return journal_note(j, "sysctl %s %s", path_word, value_word);
}

int sysctl_change(struct journal *j, const char *path, const char *value)
{
    char before[SYSCTL_VALUE_MAX];
    int error = sysctl_read(path, before);
    if (error < 0 || strcmp(before, value) == 0)
        return error;
    error = sysctl_note(j, path);
    return error < 0 ? error : sysctl_write(path, value);
}

int sysctl_restore(const char *path, const char *value)
{
    char now[SYSCTL_VALUE_MAX];
    int error = sysctl_read(path, now);
    if (error == -ENOENT) /* the interface has gone, its settings with it */
        return 0;
    if (error < 0 || strcmp(now, value) == 0)
        return error;
    return sysctl_write(path, value);
}

int sysctl_each_interface(const char *folder, void (*fn)(void *arg, const char *interface),
                          void *arg)
{
    char full[SYSCTL_PATH_MAX];
    (void)snprintf(full, sizeof(full), "/proc/sys/%s", folder);
    DIR *dir = opendir(full);
    if (!dir)
        return -errno;
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fn(arg, entry->d_name);
    }
    closedir(dir);
    return 0;
}
