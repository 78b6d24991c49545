/* resolv.conf handed over and back, in a folder of the test's own, from each moment of a kill. */
#include "core/up/resolvconf.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char old_text[] = "# by DHCP\nsearch lan\nnameserver 192.168.1.1\nnameserver 9.9.9.9\n"
                               "nameserver 8.8.8.8\noptions edns0"; /* no newline at the end */

struct place {
    char folder[64];
    struct resolvconf r;
    char other[RESOLVCONF_PATH_MAX];
    struct journal *journal;
};

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

static void assert_text(const char *path, const char *expected)
{
    char text[4096] = "";
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    text[n] = '\0';
    fclose(f);
    assert_string_equal(text, expected);
}

static int set_up(void **state)
{
    static struct place p;
    memset(&p, 0, sizeof(p));
    strcpy(p.folder, "/tmp/test_resolvconf.XXXXXX");
    assert_non_null(mkdtemp(p.folder));
    (void)snprintf(p.r.path, sizeof(p.r.path), "%s/resolv.conf", p.folder);
    (void)snprintf(p.r.copy, sizeof(p.r.copy), "%s/copy", p.folder);
    (void)snprintf(p.other, sizeof(p.other), "%s/.resolv.conf.culvert", p.folder);
    char journal[128];
    (void)snprintf(journal, sizeof(journal), "%s/journal", p.folder);
    int error = 0;
    p.journal = journal_open(journal, &error);
    assert_true(addr_parse("198.18.0.2", &p.r.server));
    *state = &p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    static const char *const names[] = {"resolv.conf", "copy", ".resolv.conf.culvert", "journal",
                                        "target"};
    journal_close(p->journal);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[128];
        (void)snprintf(path, sizeof(path), "%s/%s", p->folder, names[i]);
        (void)unlink(path);
    }
    return rmdir(p->folder); /* nothing else was left there */
}

static void composes(void **state)
{
    (void)state;
    struct addr server;
    char text[4096];
    assert_true(addr_parse("198.18.0.2", &server));
    size_t len = resolvconf_compose(old_text, &server, text, sizeof(text));
    char expected[4096];
    (void)snprintf(expected, sizeof(expected),
                   "%snameserver 198.18.0.2\nsearch lan\nnameserver 192.168.1.1\n"
                   "nameserver 9.9.9.9\noptions edns0\n",
                   resolvconf_marker);
    assert_string_equal(text, expected);
    assert_int_equal(len, strlen(expected));
}

static void comes_back_as_the_same_file(void **state)
{
    struct place *p = *state;
    write_text(p->r.path, old_text);
    struct stat before, after;
    assert_int_equal(stat(p->r.path, &before), 0);
    assert_int_equal(resolvconf_install(&p->r, p->journal), 0);
    assert_true(resolvconf_is_ours(p->r.path));
    assert_text(p->r.copy, old_text);
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_text(p->r.path, old_text);
    assert_int_equal(stat(p->r.path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0); /* again: nothing to do */
    assert_text(p->r.path, old_text);
}

static void a_link_stays_a_link(void **state)
{
    struct place *p = *state;
    char target[128];
    char link_text[64] = "";
    (void)snprintf(target, sizeof(target), "%s/target", p->folder);
    write_text(target, old_text);
    assert_int_equal(symlink("target", p->r.path), 0);
    assert_int_equal(resolvconf_install(&p->r, p->journal), 0);
    assert_text(target, old_text);
    assert_true(resolvconf_is_ours(p->r.path));
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_int_equal(readlink(p->r.path, link_text, sizeof(link_text)), 6);
    assert_string_equal(link_text, "target");
}

static void none_stays_none(void **state)
{
    struct place *p = *state;
    assert_int_equal(resolvconf_install(&p->r, p->journal), 0);
    assert_true(resolvconf_is_ours(p->r.path));
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_int_not_equal(access(p->r.path, F_OK), 0);
}

static void killed_before_the_exchange(void **state)
{
    struct place *p = *state;
    write_text(p->r.path, old_text);
    write_text(p->r.copy, old_text);
    write_text(p->other, resolvconf_marker);
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_text(p->r.path, old_text);
    assert_int_not_equal(access(p->other, F_OK), 0);
}

/* In place (a mount point): written, and perhaps not yet cut to its length. */
static void killed_while_writing_in_place(void **state)
{
    struct place *p = *state;
    char text[512];
    (void)snprintf(text, sizeof(text), "%snameserver 198.18.0.2\nrver 8.8.8.8\noptions edns0",
                   resolvconf_marker);
    write_text(p->r.path, text);
    write_text(p->r.copy, old_text);
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_text(p->r.path, old_text);
}

static void what_others_wrote_is_theirs(void **state)
{
    struct place *p = *state;
    write_text(p->r.path, old_text);
    assert_int_equal(resolvconf_install(&p->r, p->journal), 0);
    char fresh[128];
    (void)snprintf(fresh, sizeof(fresh), "%s/target", p->folder);
    write_text(fresh, "nameserver 10.0.0.1\n");
    assert_int_equal(rename(fresh, p->r.path), 0);
    assert_int_equal(resolvconf_install(&p->r, p->journal), 0); /* noticed: taken over again */
    assert_true(resolvconf_is_ours(p->r.path));
    assert_text(p->r.copy, "nameserver 10.0.0.1\n");
    write_text(p->r.path, "nameserver 10.0.0.2\n"); /* not noticed any more */
    assert_int_equal(resolvconf_restore(p->r.path, p->r.copy), 0);
    assert_text(p->r.path, "nameserver 10.0.0.2\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(composes),
        cmocka_unit_test_setup_teardown(comes_back_as_the_same_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_link_stays_a_link, set_up, tear_down),
        cmocka_unit_test_setup_teardown(none_stays_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(killed_before_the_exchange, set_up, tear_down),
        cmocka_unit_test_setup_teardown(killed_while_writing_in_place, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_others_wrote_is_theirs, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
