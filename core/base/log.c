#include "core/base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_MAX = 1024, LINE_MAX_BYTES = 4 * MESSAGE_MAX + 128, REFILL_MS = 1000 };

enum log_level log_threshold = LOG_LEVEL_INFO;

static int log_fd = STDERR_FILENO;
static uint64_t suppressed_before; /* to be told with the next line */

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARN] = "warn",   [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug", [LOG_LEVEL_TRACE] = "trace",
};
static_assert(sizeof(level_names) / sizeof(level_names[0]) == LOG_LEVEL_TRACE + 1,
              "every log level has a name");

void log_set_level(enum log_level level)
{
    log_threshold = level;
}

int log_open_file(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
    if (fd < 0)
        return -errno;
    if (log_fd != STDERR_FILENO)
        close(log_fd);
    log_fd = fd;
    return 0;
}

int log_descriptor(void)
{
    return log_fd;
}

/* A line being put together; what does not fit is cut off. */
struct line {
    char bytes[LINE_MAX_BYTES];
    size_t len;
};

static void __attribute__((format(printf, 2, 3))) line_add(struct line *l, const char *format, ...)
{
    size_t room = sizeof(l->bytes) - l->len;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->bytes + l->len, room, format, args);
    va_end(args);
    if (n > 0)
        l->len += (size_t)n < room ? (size_t)n : room - 1;
}

/* A log file has no journal around it that knows the time. */
static void line_add_time(struct line *l)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!gmtime_r(&now.tv_sec, &utc))
        return;
    line_add(l, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ ", utc.tm_year + 1900, utc.tm_mon + 1,
             utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, (int)(now.tv_nsec / 1000000));
}

size_t log_escape(char *out, size_t size, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    size_t len = 0;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        bool plain = c >= 0x20 && c < 0x7f && c != '\\';
        if (len + (plain ? 1 : 4) >= size)
            break;
        if (plain) {
            out[len++] = (char)c;
            continue;
        }
        out[len++] = '\\';
        out[len++] = 'x';
        out[len++] = digits[c >> 4];
        out[len++] = digits[c & 15];
    }
    out[len] = '\0';
    return len;
}

/*
 * Write it without ever being killed: a pipe whose reader has gone raises SIGPIPE, which is
 * held back here, and taken back if it was not pending before.
 */
static void write_line(const struct line *l)
{
    sigset_t pipe_only;
    sigset_t before;
    sigset_t pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    bool blocked = sigprocmask(SIG_BLOCK, &pipe_only, &before) == 0;
    ssize_t n;
    do
        n = write(log_fd, l->bytes, l->len);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EPIPE && !sigismember(&pending, SIGPIPE)) {
        const struct timespec no_wait = {0};
        sigtimedwait(&pipe_only, NULL, &no_wait);
    }
    if (blocked)
        sigprocmask(SIG_SETMASK, &before, NULL);
}

void log_write(enum log_level level, const char *format, ...)
{
    int saved_errno = errno;
    char message[MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    if (vsnprintf(message, sizeof(message), format, args) < 0)
        message[0] = '\0';
    va_end(args);

    struct line line = {.len = 0};
    if (log_fd != STDERR_FILENO)
        line_add_time(&line);
    line_add(&line, "culvert: ");
    if (level != LOG_LEVEL_INFO)
        line_add(&line, "%s: ", level_names[level]);
    line.len += log_escape(line.bytes + line.len, sizeof(line.bytes) - line.len, message);
    if (suppressed_before > 0)
        line_add(&line, " (%" PRIu64 " such lines before it were left out)", suppressed_before);
    suppressed_before = 0;
    line.bytes[line.len++] = '\n';
    write_line(&line);
    errno = saved_errno;
}

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

bool log_allowed(struct log_limit *limit)
{
    uint64_t now = monotonic_ms();
    uint64_t refill = (now - limit->refilled_ms) / REFILL_MS;
    if (refill >= limit->tokens_used) {
        limit->tokens_used = 0;
        limit->refilled_ms = now;
    } else {
        limit->tokens_used -= (uint32_t)refill;
        limit->refilled_ms += refill * REFILL_MS;
    }
    if (limit->tokens_used >= limit->burst) {
        limit->suppressed++;
        return false;
    }
    limit->tokens_used++;
    suppressed_before = limit->suppressed;
    limit->suppressed = 0;
    return true;
}
