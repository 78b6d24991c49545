/* The journal: order, escaping, and what is left of it after a kill at any byte. */
#include "core/up/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char path[64];

static int set_up(void **state)
{
    (void)state;
    (void)snprintf(path, sizeof(path), "/tmp/test_journal.%d", (int)getpid());
    (void)unlink(path);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    (void)unlink(path);
    return 0;
}

static void write_records(const char *const *records, size_t count)
{
    int error = 0;
    struct journal *j = journal_open(path, &error);
    assert_non_null(j);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(journal_note(j, "%s", records[i]), 0);
    journal_close(j);
}

struct seen {
    char text[512];
};

static void on_record(void *arg, char *record)
{
    struct seen *seen = arg;
    strcat(seen->text, record);
    strcat(seen->text, "|");
}

static void replays_the_newest_first(void **state)
{
    (void)state;
    const char *records[] = {"sysctl net.a 0", "rules 8500 8599", "resolv x"};
    write_records(records, 3);
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), 3);
    assert_string_equal(seen.text, "resolv x|rules 8500 8599|sysctl net.a 0|");
}

static void appends_to_what_is_there(void **state)
{
    (void)state;
    const char *first[] = {"one"};
    const char *second[] = {"two"};
    write_records(first, 1);
    write_records(second, 1);
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), 2);
    assert_string_equal(seen.text, "two|one|");
}

/* What was cut stays cut, and takes nothing along that is written behind it. */
static void appends_to_a_cut_line(void **state)
{
    (void)state;
    const char *first[] = {"alpha 1", "beta 22"};
    const char *second[] = {"gamma 333"};
    write_records(first, 2);
    assert_int_equal(truncate(path, 17 + 12), 0);
    write_records(second, 1);
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), 2);
    assert_string_equal(seen.text, "gamma 333|alpha 1|");
}

static void tells_that_there_is_none(void **state)
{
    (void)state;
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), -ENOENT);
}

/* Cut at every byte: what was whole counts, the cut line does not, and nothing is made up. */
static void survives_being_cut_anywhere(void **state)
{
    (void)state;
    const char *records[] = {"alpha 1", "beta 22", "gamma 333"};
    write_records(records, 3);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t size = st.st_size; size >= 0; size--) {
        assert_int_equal(truncate(path, size), 0);
        struct seen seen = {.text = ""};
        int count = journal_replay(path, on_record, &seen);
        assert_in_range(count, 0, 3);
        const char *expected[] = {"", "alpha 1|", "beta 22|alpha 1|", "gamma 333|beta 22|alpha 1|"};
        assert_string_equal(seen.text, expected[count]);
        /* each line: 8 digits, a space, the record and a newline */
        off_t ends[] = {0, 17, 34, 53};
        assert_true(size >= ends[count] && (count == 3 || size < ends[count + 1]));
    }
}

static void skips_damaged_lines(void **state)
{
    (void)state;
    const char *records[] = {"alpha 1", "beta 22", "gamma 333"};
    write_records(records, 3);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "X", 1, 17 + 10), 1); /* within "beta" */
    close(fd);
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), 2);
    assert_string_equal(seen.text, "gamma 333|alpha 1|");
}

static void reads_garbage_without_harm(void **state)
{
    (void)state;
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    unsigned seed = 1;
    char bytes[4096];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)((seed = seed * 1103515245u + 12345u) >> 16);
    assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
    close(fd);
    struct seen seen = {.text = ""};
    assert_int_equal(journal_replay(path, on_record, &seen), 0);
}

static void refuses_records_of_two_lines(void **state)
{
    (void)state;
    int error = 0;
    struct journal *j = journal_open(path, &error);
    assert_int_equal(journal_note(j, "one\ntwo"), -EINVAL);
    journal_close(j);
}

static void escapes_and_back(void **state)
{
    (void)state;
    char word[64];
    assert_true(journal_escape("/etc/my resolv%\n.conf\xc3", word, sizeof(word)));
    assert_string_equal(word, "/etc/my%20resolv%25%0a.conf%c3");
    journal_unescape(word);
    assert_string_equal(word, "/etc/my resolv%\n.conf\xc3");
    char broken[] = "%%2%zz%4";
    journal_unescape(broken);
    assert_string_equal(broken, "%%2%zz%4");
    assert_false(journal_escape("    ", word, 12));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(replays_the_newest_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(appends_to_what_is_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(appends_to_a_cut_line, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tells_that_there_is_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(survives_being_cut_anywhere, set_up, tear_down),
        cmocka_unit_test_setup_teardown(skips_damaged_lines, set_up, tear_down),
        cmocka_unit_test_setup_teardown(reads_garbage_without_harm, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_records_of_two_lines, set_up, tear_down),
        cmocka_unit_test_setup_teardown(escapes_and_back, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
