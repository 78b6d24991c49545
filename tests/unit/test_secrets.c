/* Where passwords are after the command line has been read, and where they are no more. */
#include "core/command/secrets.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/command/proxy_variables.h"

static void fill(struct options *o)
{
    memset(o, 0, sizeof(*o));
    o->secrets_fd = -1;
    assert_null(proxy_url_parse("socks5://alice:hunter2@192.0.2.1:1080", &o->proxy));
    o->auth = (struct auth_option){.present = true, .user = "bob", .password = "hunter3"};
}

static bool holds(const void *bytes, size_t len, const char *text)
{
    return memmem(bytes, len, text, strlen(text)) != NULL;
}

static void test_options_keep_no_password(void **state)
{
    static struct options o;
    (void)state;
    fill(&o);
    assert_int_equal(secrets_seal(&o), 0);
    assert_true(o.secrets_fd >= 0);
    assert_false(holds(&o, sizeof(o), "hunter"));
    /* What messages are made of stays. */
    assert_true(o.proxy.has_credentials && o.auth.present);
    assert_string_equal(o.proxy.user, "alice");
    assert_null(o.secrets);
    assert_ptr_equal(secrets_proxy(&o), &o.proxy);
    secrets_drop(&o);
    assert_int_equal(o.secrets_fd, -1);
}

static void test_without_a_password_nothing_is_made(void **state)
{
    static struct options o;
    (void)state;
    fill(&o);
    proxy_url_wipe(&o.proxy);
    o.auth.present = false;
    assert_int_equal(secrets_seal(&o), 0);
    assert_int_equal(o.secrets_fd, -1);
    assert_int_equal(secrets_open(&o), 0);
    assert_ptr_equal(secrets_auth(&o), &o.auth);
}

/* Nobody who has the descriptor can change what others will log in with. */
static void test_the_file_is_sealed(void **state)
{
    static struct options o;
    (void)state;
    fill(&o);
    assert_int_equal(secrets_seal(&o), 0);
    assert_int_equal(pwrite(o.secrets_fd, "x", 1, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(o.secrets_fd, 0), -1);
    assert_ptr_equal(mmap(NULL, 1, PROT_WRITE, MAP_SHARED, o.secrets_fd, 0), MAP_FAILED);
    assert_true(fcntl(o.secrets_fd, F_GETFD) & FD_CLOEXEC);
    secrets_drop(&o);
}

/* "dd" among the flags of the mapping at `at` (proc(5), smaps). */
static bool is_left_out_of_dumps(const void *at)
{
    char line[512], start[32];
    bool here = false, left_out = false;
    FILE *maps = fopen("/proc/self/smaps", "re");
    assert_non_null(maps);
    (void)snprintf(start, sizeof(start), "%lx-", (unsigned long)at);
    while (fgets(line, sizeof(line), maps)) {
        if (strchr("0123456789abcdef", line[0]) && strchr(line, '-'))
            here = strncmp(line, start, strlen(start)) == 0;
        else if (here && strncmp(line, "VmFlags:", 8) == 0)
            left_out = strstr(line, " dd") != NULL;
    }
    fclose(maps);
    return left_out;
}

static int child_sees_them(const struct options *given)
{
    struct options o = *given;
    int fd = o.secrets_fd;
    if (secrets_open(&o) < 0 || o.secrets_fd != -1 || fcntl(fd, F_GETFD) >= 0)
        return 1;
    if (strcmp(secrets_proxy(&o)->password, "hunter2") != 0 ||
        strcmp(secrets_proxy(&o)->user, "alice") != 0 ||
        strcmp(secrets_auth(&o)->password, "hunter3") != 0)
        return 2;
    return is_left_out_of_dumps(o.secrets) ? 0 : 3;
}

/* One child after the other, as workers are replaced. */
static void test_children_see_them_in_a_page_without_dumps(void **state)
{
    static struct options o;
    (void)state;
    fill(&o);
    assert_int_equal(secrets_seal(&o), 0);
    for (int i = 0; i < 3; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(child_sees_them(&o));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
    secrets_drop(&o);
}

/* --- the environment -------------------------------------------------------------------------- */

static void test_variables_that_name_the_proxy_go(void **state)
{
    static struct options o;
    (void)state;
    fill(&o);
    setenv("http_proxy", "socks5://alice:hunter2@192.0.2.1", 1);
    setenv("HTTPS_PROXY", "socks5h://192.0.2.1:1080/", 1);
    setenv("ftp_proxy", "socks5://alice:hunter2@192.0.2.2", 1);
    setenv("socks_proxy", "nonsense", 1);
    o.run.environment[0] = strdup("socks5://alice:hunter2@192.0.2.1");
    o.run.environment[1] = strdup("socks5://eve:hunter4@192.0.2.3");
    const char *overwritten = getenv("http_proxy");
    proxy_variables_hide(&o);
    assert_null(getenv("http_proxy"));
    assert_null(getenv("HTTPS_PROXY"));
    assert_string_equal(overwritten, "");
    assert_non_null(getenv("ftp_proxy"));
    assert_non_null(getenv("socks_proxy"));
    assert_null(o.run.environment[0]);

    proxy_variables_restore(&o);
    assert_null(getenv("ALL_PROXY"));
    assert_string_equal(getenv("all_proxy"), "socks5://eve:hunter4@192.0.2.3");
    proxy_variables_forget(&o);
    assert_null(o.run.environment[1]);
    proxy_variables_forget(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_keep_no_password),
        cmocka_unit_test(test_without_a_password_nothing_is_made),
        cmocka_unit_test(test_the_file_is_sealed),
        cmocka_unit_test(test_children_see_them_in_a_page_without_dumps),
        cmocka_unit_test(test_variables_that_name_the_proxy_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
