/*
 * The log: one line an event, written at once to stderr or a file. Control characters in what
 * remotes sent are escaped. Nothing that is logged may contain a password.
 */
#ifndef CULVERT_BASE_LOG_H
#define CULVERT_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_TRACE
};

extern enum log_level log_threshold; /* LOG_LEVEL_INFO at first; log_set_level() sets it */

void log_set_level(enum log_level level);
/* Append to `path` instead of stderr. 0 or -errno. */
int log_open_file(const char *path);
/* Where lines go: stderr, or the file's descriptor. */
int log_descriptor(void);

/*
 * `text` with everything but printable ASCII escaped as \xHH, and the backslash, so that neither a
 * terminal's escapes nor a forged line can come out of what a remote sent. What does not fit
 * into `size` bytes is cut off, not in the middle of an escape. Returns the length; NUL-terminated.
 */
size_t log_escape(char *out, size_t size, const char *text);

/* One line without its newline. A full disk or a closed stderr loses it, never the process. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_trace(...) log_at(LOG_LEVEL_TRACE, __VA_ARGS__)

/* The arguments are not evaluated where the level is off: tracing costs the packet path a compare.
 */
#define log_at(level, ...)                                                                         \
    do {                                                                                           \
        if ((level) <= log_threshold)                                                              \
            log_write((level), __VA_ARGS__);                                                       \
    } while (0)

/*
 * A budget for lines that a remote can cause: at most `burst` lines, refilled one a second. What
 * was suppressed is said with the next line that passes. Define one static per place.
 */
struct log_limit {
    uint32_t burst;
    uint32_t tokens_used;
    uint64_t refilled_ms;
    uint64_t suppressed;
};
#define LOG_LIMIT(n)                                                                               \
    {                                                                                              \
        .burst = (n)                                                                               \
    }

/* May a line be written now? Reads the monotonic clock itself. */
bool log_allowed(struct log_limit *limit);

#define log_limited(level, limit, ...)                                                             \
    do {                                                                                           \
        if ((level) <= log_threshold && log_allowed(limit))                                        \
            log_write((level), __VA_ARGS__);                                                       \
    } while (0)

#endif
