/* Which connections of before somebody else began, by tables of the form of /proc/net/tcp. */
#include "core/up/answers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define REST   " 00000000:00000000 00:00000000 00000000  1000        0 1\n"
#define MAPPED "0000000000000000FFFF0000"

static char path[] = "/tmp/test_answers.XXXXXX";

static void fill(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    (void)fclose(file);
}

static void find(struct connection_list *out)
{
    const char *const paths[] = {"/no/such/file", path, NULL};
    answers_find(paths, out);
}

static void lists_what_was_accepted(void **state)
{
    (void)state;
    static struct connection_list list;
    fill("  sl  local_address rem_address   st ...\n"
         "   0: 0232A8C0:0016 0200580A:C350 01" REST /* 22, established */
         "   1: 0232A8C0:C351 0200580A:0016 01" REST /* our own doing */
         "   2: 0232A8C0:0016 0300580A:C352 06" REST /* 22, but over: TIME_WAIT */
         "   3: 0100007F:0016 0100007F:C353 01" REST /* loopback */
         "   4: 0232A8C0:0016 0200580A:C354 08" REST /* 22, CLOSE_WAIT */
         "   5: 00000000:0016 00000000:0000 0A" REST /* 22 is listened on */
         "   6: " MAPPED "0232A8C0:01BB " MAPPED "0200580A:C355 01" REST
         "   7: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A" REST
         "   8: nonsense\n");
    find(&list);
    const char *expected[][2] = {{"192.168.50.2:22", "10.88.0.2:50000"},
                                 {"192.168.50.2:22", "10.88.0.2:50004"},
                                 {"192.168.50.2:443", "10.88.0.2:50005"}};
    assert_int_equal(list.count, 3);
    for (size_t i = 0; i < 3; i++) {
        char text[ENDPOINT_TEXT_MAX];
        assert_string_equal(endpoint_format(&list.items[i].local, text), expected[i][0]);
        assert_string_equal(endpoint_format(&list.items[i].remote, text), expected[i][1]);
    }
}

static void lists_no_more_than_fit(void **state)
{
    (void)state;
    static struct connection_list list;
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fputs("   0: 00000000:0016 00000000:0000 0A" REST, file);
    for (unsigned port = 1; port <= 2000; port++)
        (void)fprintf(file, "   1: 0232A8C0:0016 0200580A:%04X 01" REST, port);
    (void)fclose(file);
    find(&list);
    assert_int_equal(list.count, CONNECTION_LIST_MAX);
    fill("");
    find(&list);
    assert_int_equal(list.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_what_was_accepted),
        cmocka_unit_test(lists_no_more_than_fit),
    };
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return failures;
}
