#include "core/up/journal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    CHECKSUM_DIGITS = 8,
    FILE_MAX = 1 << 20, /* a journal has some dozens of lines */
};

struct journal {
    int fd;
};

/* A last line that was cut must not take the next record along. */
static bool end_cut_line(int fd)
{
    char last = '\n';
    off_t size = lseek(fd, 0, SEEK_END);
    if (size > 0 && pread(fd, &last, 1, size - 1) != 1)
        return false;
    return last == '\n' || write(fd, "\n", 1) == 1;
}

struct journal *journal_open(const char *path, int *error)
{
    struct journal *j = calloc(1, sizeof(*j));
    if (!j) {
        *error = -ENOMEM;
        return NULL;
    }
    j->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j->fd >= 0 && end_cut_line(j->fd))
        return j;
    *error = -errno;
    journal_close(j);
    return NULL;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    free(j);
}

/* --- words ----------------------------------------------------------------------------------- */

bool journal_escape(const char *text, char *out, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    size_t used = 0;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        bool plain = isgraph(c) && c != '%';
        if (used + (plain ? 1 : 3) >= size)
            return false;
        if (plain) {
            out[used++] = (char)c;
            continue;
        }
        out[used++] = '%';
        out[used++] = hex[c >> 4];
        out[used++] = hex[c & 15];
    }
    out[used] = '\0';
    return true;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

void journal_unescape(char *word)
{
    char *out = word;
    while (*word) {
        int high = word[0] == '%' ? hex_value(word[1]) : -1;
        int low = high >= 0 ? hex_value(word[2]) : -1;
        if (low < 0) {
            *out++ = *word++;
            continue;
        }
        *out++ = (char)(high << 4 | low);
        word += 3;
    }
    *out = '\0';
}

/* --- lines ----------------------------------------------------------------------------------- */

/* FNV-1a: enough to tell a whole line from one that was cut. */
static uint32_t checksum(const char *text, size_t len)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ (unsigned char)text[i]) * 16777619u;
    return sum;
}

int journal_note(struct journal *j, const char *format, ...)
{
    char record[JOURNAL_RECORD_MAX];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(record, sizeof(record), format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= sizeof(record) || strchr(record, '\n'))
        return -EINVAL;
    char line[JOURNAL_RECORD_MAX + 16];
    int total = snprintf(line, sizeof(line), "%08x %s\n", checksum(record, (size_t)len), record);
    ssize_t written = write(j->fd, line, (size_t)total);
    if (written != total)
        return written < 0 ? -errno : -ENOSPC;
    return fdatasync(j->fd) == 0 ? 0 : -errno;
}

/* The record in a line of `len` bytes without its newline; NULL: damaged. Ends it with NUL. */
static char *check_line(char *line, size_t len)
{
    line[len] = '\0';
    char *rest = NULL;
    unsigned long told = strtoul(line, &rest, 16);
    if (rest != line + CHECKSUM_DIGITS || *rest != ' ')
        return NULL;
    char *record = rest + 1;
    return checksum(record, strlen(record)) == told ? record : NULL;
}

static char *read_all(const char *path, size_t *size, int *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        *error = -errno;
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    size_t room = st.st_size < FILE_MAX ? (size_t)st.st_size : FILE_MAX;
    char *text = malloc(room + 1);
    ssize_t n = text ? pread(fd, text, room, 0) : -1;
    *error = text ? -errno : -ENOMEM;
    close(fd);
    if (n < 0) {
        free(text);
        return NULL;
    }
    *size = (size_t)n;
    return text;
}

int journal_replay(const char *path, void (*fn)(void *arg, char *record), void *arg)
{
    size_t size = 0;
    int error = 0;
    char *text = read_all(path, &size, &error);
    if (!text)
        return error;
    int count = 0;
    size_t end = size; /* behind the newline of the line to come */
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && text[start - 1] != '\n')
            start--;
        bool whole = text[end - 1] == '\n'; /* the last line may have been cut */
        char *record = whole ? check_line(text + start, end - 1 - start) : NULL;
        if (record) {
            fn(arg, record);
            count++;
        }
        end = start;
    }
    free(text);
    return count;
}
