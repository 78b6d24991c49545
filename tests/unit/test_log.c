#include "core/base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* stderr's place taken by a pipe, so that a test can read what was logged. */
struct captured {
    int read_end;
    int saved_stderr;
};

static struct captured capture_start(void)
{
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    struct captured c = {.read_end = ends[0], .saved_stderr = dup(STDERR_FILENO)};
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    close(ends[1]);
    return c;
}

static void capture_end(struct captured *c, char *text, size_t cap)
{
    dup2(c->saved_stderr, STDERR_FILENO);
    close(c->saved_stderr);
    ssize_t n = read(c->read_end, text, cap - 1);
    text[n > 0 ? n : 0] = '\0';
    close(c->read_end);
}

static void test_lines_and_levels(void **state)
{
    (void)state;
    char text[1024];
    struct captured c = capture_start();
    log_info("ready %d", 7);
    log_error("no");
    log_debug("not shown");
    log_set_level(LOG_LEVEL_TRACE);
    log_trace("shown");
    log_set_level(LOG_LEVEL_INFO);
    capture_end(&c, text, sizeof(text));
    assert_string_equal(text, "culvert: ready 7\nculvert: error: no\nculvert: trace: shown\n");
}

static void test_escapes_are_cut_whole(void **state)
{
    (void)state;
    char out[8];
    assert_int_equal(log_escape(out, sizeof(out), "abc\x1b"), 7);
    assert_string_equal(out, "abc\\x1b");
    assert_int_equal(log_escape(out, sizeof(out), "abcd\x1b"), 4);
    assert_string_equal(out, "abcd");
    assert_int_equal(log_escape(out, sizeof(out), "abcdefghi"), 7);
    assert_int_equal(log_escape(out, 1, "a"), 0);
    assert_string_equal(out, "");
}

static void test_remote_text_is_escaped(void **state)
{
    (void)state;
    char text[1024];
    struct captured c = capture_start();
    log_info("name %s", "a\x1b[31mb\nculvert: forged\\x\xc2\x9b\x7f");
    capture_end(&c, text, sizeof(text));
    assert_string_equal(text,
                        "culvert: name a\\x1b[31mb\\x0aculvert: forged\\x5cx\\xc2\\x9b\\x7f\n");
}

static void test_long_lines_are_cut(void **state)
{
    (void)state;
    static char text[16384];
    char wild[3000];
    memset(wild, '\n', sizeof(wild) - 1);
    wild[sizeof(wild) - 1] = '\0';
    struct captured c = capture_start();
    log_info("%s", wild);
    capture_end(&c, text, sizeof(text));
    size_t len = strlen(text);
    assert_in_range(len, 4000, 4300);
    assert_ptr_equal(strchr(text, '\n'), text + len - 1);
}

static void test_closed_stderr_loses_the_line_only(void **state)
{
    (void)state;
    int saved = dup(STDERR_FILENO);
    close(STDERR_FILENO);
    errno = 42;
    log_error("into the void");
    assert_int_equal(errno, 42);
    int ends[2];
    assert_int_equal(pipe(ends), 0); /* one end takes descriptor 2 */
    close(ends[0] == STDERR_FILENO ? ends[1] : ends[0]);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    log_error("into a pipe without a reader"); /* SIGPIPE would kill this test */
    dup2(saved, STDERR_FILENO);
    close(saved);
}

static void test_limit(void **state)
{
    (void)state;
    static struct log_limit limit = LOG_LIMIT(3);
    char text[1024];
    struct captured c = capture_start();
    for (int i = 0; i < 10; i++)
        log_limited(LOG_LEVEL_INFO, &limit, "line %d", i);
    limit.refilled_ms -= 1000; /* a second later */
    log_limited(LOG_LEVEL_INFO, &limit, "later");
    log_limited(LOG_LEVEL_INFO, &limit, "too many");
    log_info("plain");
    capture_end(&c, text, sizeof(text));
    assert_string_equal(text, "culvert: line 0\nculvert: line 1\nculvert: line 2\n"
                              "culvert: later (7 such lines before it were left out)\n"
                              "culvert: plain\n");
}

/* Last: there is no way back to stderr. */
static void test_file(void **state)
{
    (void)state;
    char path[] = "/tmp/culvert-test-log-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(log_open_file("/nonexistent/log"), -ENOENT);
    assert_int_equal(log_open_file(path), 0);
    log_warn("to the file");
    char text[256];
    ssize_t n = read(fd, text, sizeof(text) - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_non_null(strstr(text, "Z culvert: warn: to the file\n"));
    close(fd);
    assert_int_equal(log_open_file("/dev/full"), 0);
    log_warn("lost");
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_and_levels),
        cmocka_unit_test(test_remote_text_is_escaped),
        cmocka_unit_test(test_escapes_are_cut_whole),
        cmocka_unit_test(test_long_lines_are_cut),
        cmocka_unit_test(test_closed_stderr_loses_the_line_only),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
