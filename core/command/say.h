/*
 * What a user at a terminal, or a service manager, is told about the program as a whole: lines
 * on stderr, whatever the log's level and file, and systemd's notifications.
 */
#ifndef CULVERT_SAY_H
#define CULVERT_SAY_H

/* Exit statuses (CLI contract). */
enum { EXIT_STOPPED = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2 };

/* "culvert: " and one line, without its newline, in a single write, escaped as the log's are. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Send `state` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET, a path or "@" for an abstract name
 * (sd_notify(3)); nothing happens where there is none.
 */
void notify_service_manager(const char *state);

#endif
