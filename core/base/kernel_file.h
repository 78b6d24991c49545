/* Files of the kernel's (proc(5), sysfs(5)), each write of which is a command. */
#ifndef CULVERT_BASE_KERNEL_FILE_H
#define CULVERT_BASE_KERNEL_FILE_H

/* Write `text` at once. 0 or -errno: what open(2) or write(2) said. */
int kernel_file_write(const char *path, const char *text);

#endif
