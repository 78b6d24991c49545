/*
 * What is left to a confined process, tried from inside: each case in a child of its own, whose
 * exit status or signal is the answer. As root, what matters most is tried too; else the calls.
 */
#include "core/worker/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/capability.h>
#include <linux/landlock.h>

#include "core/base/sanitized.h"
#include "core/worker/confine_parts.h"

enum { REFUSED_ERRNO = 0, WENT_WELL = 1, CANNOT_CONFINE = 2, OTHER_ERRNO = 3 };

static int confine_here(const struct confine_user *user, enum confine_role role)
{
    const struct confine_plan plan = {.user = *user};
    return confine_process(&plan) < 0 || confine_calls(role) < 0 ? -1 : 0;
}

/* The wait status of a confined child that does `attempt` (its result is a system call's). */
static int try_in(enum confine_role role, long (*attempt)(void))
{
    struct confine_user user;
    assert_null(confine_find_user(NULL, &user));
    pid_t child = confine_fork(&user, false);
    assert_true(child >= 0);
    if (child == 0) {
        if (confine_here(&user, role) < 0)
            _exit(CANNOT_CONFINE);
        long result = attempt();
        if (result >= 0)
            _exit(WENT_WELL);
        _exit(errno == EPERM || errno == EACCES || errno == ENOENT ? REFUSED_ERRNO : OTHER_ERRNO);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static const enum confine_role roles[] = {CONFINE_WORKER, CONFINE_SERVER, CONFINE_BROKER};
enum { ROLES = sizeof(roles) / sizeof(roles[0]) };

static void assert_refused_to(enum confine_role role, long (*attempt)(void))
{
    int status = try_in(role, attempt);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), REFUSED_ERRNO);
}

static void assert_refused(long (*attempt)(void))
{
    for (size_t i = 0; i < ROLES; i++)
        assert_refused_to(roles[i], attempt);
}

/* What an intruder would try ends the process; sanitizers need some of it. */
static void assert_fatal(long (*attempt)(void))
{
    for (size_t i = 0; i < ROLES; i++) {
        int status = try_in(roles[i], attempt);
        if (CULVERT_SANITIZED)
            continue;
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGSYS);
    }
}

/* --- attempts --------------------------------------------------------------------------------- */

static long run_a_shell(void)
{
    return execl("/bin/sh", "sh", "-c", "true", (char *)NULL);
}

static long fork_a_process(void)
{
    return syscall(SYS_fork);
}

static long trace_the_parent(void)
{
    return ptrace(PTRACE_ATTACH, getppid(), 0, 0);
}

static long load_bpf(void)
{
    return syscall(SYS_bpf, 0, NULL, 0);
}

static long mount_something(void)
{
    return syscall(SYS_mount, "none", "/etc", "tmpfs", 0, NULL);
}

static long make_a_packet_socket(void)
{
    return socket(AF_PACKET, SOCK_RAW, 0);
}

static long make_a_netlink_socket(void)
{
    return socket(AF_NETLINK, SOCK_RAW, 0);
}

static long make_a_unix_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0);
}

static long make_a_raw_socket(void)
{
    return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
}

static long become_root(void)
{
    return setuid(0);
}

static long kill_the_parent(void)
{
    return kill(getppid(), 0);
}

static long write_a_file(void)
{
    return open("/tmp/culvert-confine-test", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

static long read_secrets(void)
{
    return open("/etc/shadow", O_RDONLY | O_CLOEXEC);
}

static long read_a_home(void)
{
    return open("/root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static long read_a_binary(void)
{
    return open("/bin/sh", O_RDONLY | O_CLOEXEC);
}

static long map_executable_memory(void)
{
    void *p =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? -1 : 0;
}

/* Marks go with CAP_NET_ADMIN, which a worker must not have. */
static long mark_a_socket(void)
{
    const int mark = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static long leave_for_other_namespaces(void)
{
    return unshare(CLONE_NEWUSER);
}

static long make_io_uring(void)
{
    return syscall(SYS_io_uring_setup, 1, NULL);
}

static long accept_a_connection(void)
{
    return accept4(STDERR_FILENO, NULL, NULL, 0);
}

static long make_a_pipe(void)
{
    int ends[2];
    return pipe(ends);
}

/* --- what must go on working ------------------------------------------------------------------ */

static long read_resolv_conf(void)
{
    return open("/etc/nsswitch.conf", O_RDONLY | O_CLOEXEC);
}

static long make_a_tcp_socket(void)
{
    return socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static long take_memory(void)
{
    char *p = malloc(8 << 20);
    if (p)
        memset(p, 1, 8 << 20);
    free(p);
    return p ? 0 : -1;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_intruders_calls_end_the_process(void **state)
{
    (void)state;
    assert_fatal(run_a_shell);
    assert_fatal(fork_a_process);
    assert_fatal(trace_the_parent);
    assert_fatal(load_bpf);
    assert_fatal(mount_something);
    assert_fatal(leave_for_other_namespaces);
    assert_fatal(make_io_uring);
}

static void test_only_the_server_accepts(void **state)
{
    (void)state;
    int status = try_in(CONFINE_SERVER, accept_a_connection);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), OTHER_ERRNO); /* ENOTSOCK: it may, there is none */
    assert_refused_to(CONFINE_WORKER, accept_a_connection);
    assert_refused_to(CONFINE_BROKER, accept_a_connection);
    if (!CULVERT_SANITIZED)
        assert_refused_to(CONFINE_WORKER, make_a_pipe);
}

static void test_calls_without_need_are_refused(void **state)
{
    (void)state;
    assert_refused(make_a_packet_socket);
    assert_refused(make_a_netlink_socket);
    assert_refused(make_a_unix_socket);
    assert_refused(make_a_raw_socket);
    assert_refused(become_root);
    if (!CULVERT_SANITIZED) {
        assert_refused(kill_the_parent);
        assert_refused(map_executable_memory);
    }
}

static void test_files_are_out_of_reach(void **state)
{
    (void)state;
    assert_refused(write_a_file);
    assert_refused(read_a_home);
    assert_refused(read_a_binary);
    assert_refused(read_secrets);
}

static bool kernel_has_landlock(void)
{
    return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

/* As it is where namespaces are forbidden: every directory is still in sight. */
static void test_landlock_alone_keeps_files_out_of_reach(void **state)
{
    (void)state;
    if (!kernel_has_landlock())
        skip();
    pid_t child = fork();
    if (child == 0) {
        (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        confine_files(NULL);
        bool refused =
            read_a_binary() < 0 && errno == EACCES && write_a_file() < 0 && errno == EACCES;
        _exit(refused && read_resolv_conf() >= 0 ? REFUSED_ERRNO : OTHER_ERRNO);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, REFUSED_ERRNO);
}

static long list_the_root(void)
{
    return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static long feed_the_random_device(void)
{
    return open("/dev/urandom", O_WRONLY | O_CLOEXEC);
}

static long read_the_random_device(void)
{
    return open("/dev/urandom", O_RDONLY | O_CLOEXEC);
}

/* Of two things that everybody may open, a bit for each that could be. */
static int in_reach(void)
{
    return (list_the_root() >= 0 ? 1 : 0) | (feed_the_random_device() >= 0 ? 2 : 0);
}

/*
 * Behind namespaces, too: what is in sight there and open to every user is refused, which can only
 * be Landlock; the first child is without it. The calls' filter is left out: it refuses as well.
 */
static void test_landlock_is_put_on_behind_the_view(void **state)
{
    (void)state;
    if (!kernel_has_landlock())
        skip();
    struct confine_plan plan = {.descriptors = NULL};
    assert_null(confine_find_user(NULL, &plan.user));
    for (int whole = 0; whole < 2; whole++) {
        pid_t child = fork();
        if (child == 0 && !whole) {
            confine_view(NULL);
            bool changed =
                !plan.user.change || setresuid(plan.user.uid, plan.user.uid, plan.user.uid) == 0;
            _exit(changed && in_reach() == 3 ? REFUSED_ERRNO : CANNOT_CONFINE);
        }
        if (child == 0) {
            if (confine_process(&plan) < 0)
                _exit(CANNOT_CONFINE);
            bool refused = in_reach() == 0 && errno == EACCES;
            bool enough = read_the_random_device() >= 0 && read_resolv_conf() >= 0;
            _exit(refused && enough ? REFUSED_ERRNO : OTHER_ERRNO);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, REFUSED_ERRNO);
    }
}

static void test_what_relaying_needs_works(void **state)
{
    (void)state;
    long (*const needs[])(void) = {read_resolv_conf, make_a_tcp_socket, take_memory};
    for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++) {
        for (size_t role = 0; role < 2; role++) {
            int status = try_in(roles[role], needs[i]);
            assert_true(WIFEXITED(status));
            assert_int_equal(WEXITSTATUS(status), WENT_WELL);
        }
    }
}

static void test_marks_are_the_brokers(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    assert_refused(mark_a_socket);
}

static long is_undumpable(void)
{
    return prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == CULVERT_SANITIZED ? 0 : -1;
}

/* PR_GET_DUMPABLE is no call of a worker's: asked before the filter is there. */
static void test_a_crash_leaves_no_core_file(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        struct confine_plan plan = {.descriptors = NULL};
        const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
        (void)setrlimit(RLIMIT_CORE, &all);
        if (confine_find_user(NULL, &plan.user) || confine_process(&plan) < 0 ||
            is_undumpable() < 0)
            _exit(CANNOT_CONFINE);
        (void)signal(SIGABRT, SIG_DFL);
        abort();
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_false(WCOREDUMP(status));
}

/*
 * Nobody else is there to be signalled, and yet it can be waited for and killed as any child. Who
 * may not have a PID namespace (a container, perhaps) has a child all the same.
 */
static void test_a_child_is_alone(void **state)
{
    (void)state;
    struct confine_user user;
    int told[2];
    pid_t self = 0;
    assert_null(confine_find_user(NULL, &user));
    assert_int_equal(pipe(told), 0);
    pid_t child = confine_fork(&user, false);
    assert_true(child >= 0);
    if (child == 0) {
        self = getpid();
        (void)!write(told[1], &self, sizeof(self));
        for (;;)
            pause();
    }
    assert_int_equal(read(told[0], &self, sizeof(self)), sizeof(self));
    assert_true(self == 1 || self == child);
    if (geteuid() == 0 && confine_has_capability(CAP_SYS_ADMIN))
        assert_int_equal(self, 1);
    assert_int_equal(kill(child, SIGKILL), 0);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(told[0]);
    close(told[1]);
}

/* As it is where the log is a terminal's and the terminal goes: its supervisor's death is its own.
 */
static void test_a_child_dies_with_its_parent(void **state)
{
    (void)state;
    struct confine_user user;
    int life[2];
    char byte;
    assert_null(confine_find_user(NULL, &user));
    assert_int_equal(pipe(life), 0);
    pid_t parent = fork();
    if (parent == 0) {
        const struct confine_plan plan = {
            .user = user, .descriptors = &life[1], .descriptor_count = 1};
        if (confine_fork(&user, false) == 0) {
            if (confine_process(&plan) < 0)
                _exit(CANNOT_CONFINE);
            (void)!write(life[1], "x", 1);
            for (;;)
                pause();
        }
        for (;;)
            pause();
    }
    close(life[1]);
    assert_int_equal(read(life[0], &byte, 1), 1);
    assert_int_equal(kill(parent, SIGKILL), 0);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    assert_int_equal(read(life[0], &byte, 1), 0); /* the last who held it has gone */
    close(life[0]);
}

static void test_other_descriptors_are_closed(void **state)
{
    (void)state;
    int kept = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int far = fcntl(other, F_DUPFD_CLOEXEC, 200);
    pid_t child = fork();
    if (child == 0) {
        struct confine_plan plan = {.descriptors = &kept, .descriptor_count = 1};
        if (confine_find_user(NULL, &plan.user) || confine_process(&plan) < 0)
            _exit(CANNOT_CONFINE);
        bool good = fcntl(kept, F_GETFD) >= 0 && fcntl(other, F_GETFD) < 0 &&
                    fcntl(far, F_GETFD) < 0 && fcntl(STDERR_FILENO, F_GETFD) >= 0;
        _exit(good ? WENT_WELL : OTHER_ERRNO);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, WENT_WELL << 8);
    close(kept);
    close(other);
    close(far);
}

static void test_users(void **state)
{
    (void)state;
    struct confine_user user;
    if (geteuid() != 0) {
        assert_null(confine_find_user(NULL, &user));
        assert_false(user.change);
        assert_non_null(confine_find_user("nobody", &user));
        return;
    }
    assert_null(confine_find_user(NULL, &user));
    assert_true(user.change && user.uid != 0 && user.gid != 0);
    assert_non_null(confine_find_user("no-such-user", &user));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_a_child_is_alone),
        cmocka_unit_test(test_a_child_dies_with_its_parent),
        cmocka_unit_test(test_other_descriptors_are_closed),
        cmocka_unit_test(test_only_the_server_accepts),
        cmocka_unit_test(test_intruders_calls_end_the_process),
        cmocka_unit_test(test_calls_without_need_are_refused),
        cmocka_unit_test(test_files_are_out_of_reach),
        cmocka_unit_test(test_landlock_alone_keeps_files_out_of_reach),
        cmocka_unit_test(test_landlock_is_put_on_behind_the_view),
        cmocka_unit_test(test_what_relaying_needs_works),
        cmocka_unit_test(test_marks_are_the_brokers),
        cmocka_unit_test(test_a_crash_leaves_no_core_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
