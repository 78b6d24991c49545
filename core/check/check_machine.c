/*
 * This machine: what `up` and `run` need of it. What can only be tried is tried by a child in
 * namespaces of its own, which end with it, so that nothing is changed here.
 */
#include "core/check/check_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/command/tun_setup.h"
#include "core/run/sandbox.h"
#include "core/up/sysctl.h"

static const char tun_path[] = "/dev/net/tun";

/* --- device and privileges -------------------------------------------------------------------- */

void check_tun(struct check *c, struct check_result *r)
{
    (void)c;
    int fd = open(tun_path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        check_say(r, CHECK_OK, "%s is there and may be opened", tun_path);
        return;
    }
    bool forbidden = errno == EACCES || errno == EPERM;
    check_say(r, CHECK_FAIL, "%s: %s", tun_path, strerror(errno));
    check_remedy(r, "%s",
                 forbidden ? "as root, chmod 666 /dev/net/tun (as most distributions have it), or "
                             "allow the device to the container"
                           : "as root, modprobe tun, or give the container that device (--device "
                             "/dev/net/tun)");
}

bool check_has_capability(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    return data[capability / 32].effective >> (capability % 32) & 1;
}

void check_privileges(struct check *c, struct check_result *r)
{
    (void)c;
    if (check_has_capability(CAP_NET_ADMIN)) {
        check_say(r, CHECK_OK, "CAP_NET_ADMIN%s", geteuid() == 0 ? ", as root" : "");
        return;
    }
    check_say(r, CHECK_FAIL, "no CAP_NET_ADMIN: uid %u may not set up devices and routes",
              (unsigned)geteuid());
    check_remedy(r, "%s",
                 geteuid() == 0 ? "root without it: give the container --cap-add NET_ADMIN"
                                : "run culvert up as root (sudo); culvert run needs no privileges");
}

/* --- children in namespaces of their own ------------------------------------------------------ */

enum { CHILD_MS = 5000 };

/* Whole, or not at all: a pipe takes this much at once (PIPE_BUF). */
static bool take_finding(int fd, unsigned ms, void *out, size_t size)
{
    return check_poll(fd, POLLIN, ms) && read(fd, out, size) == (ssize_t)size;
}

bool check_in_child(const struct check *c, void (*look)(const struct check *c, void *out),
                    void *out, size_t size)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return false;
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        look(c, out);
        _exit(write(fds[1], out, size) == (ssize_t)size ? 0 : 1);
    }
    close(fds[1]);
    bool told = pid > 0 && take_finding(fds[0], c->timeout_ms < CHILD_MS ? c->timeout_ms : CHILD_MS,
                                        out, size);
    close(fds[0]);
    if (pid > 0) {
        (void)kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    return told;
}

struct finding {
    int error;   /* errno of the namespaces, or of what was tried in them */
    bool inside; /* it was tried */
    struct device_caps caps;
};

static void look_at_offloads(const struct check *c, void *arg)
{
    struct finding *out = arg;
    (void)c;
    const struct device_tun_options options = {.offload = true};
    out->error = -sandbox_unshare();
    if (out->error)
        return;
    out->inside = true;
    struct device *d = device_tun_open(&options, &out->error);
    if (!d) {
        out->error = -out->error;
        return;
    }
    out->caps = d->caps;
    device_close(d);
}

void check_offloads(struct check *c, struct check_result *r)
{
    struct finding f = {.error = 0};
    if (!check_in_child(c, look_at_offloads, &f, sizeof(f)) || f.error) {
        check_say(r, CHECK_SKIPPED, "%s: %s",
                  f.inside ? "no device can be made to try them"
                           : "no network namespace can be made to try them",
                  f.error ? strerror(f.error) : "no answer");
        return;
    }
    bool good = f.caps.csum && f.caps.tso;
    check_say(r, good ? CHECK_OK : CHECK_WARN, "the kernel offers %s%s", tun_setup_offload(&f.caps),
              good && !f.caps.uso ? "; uso (UDP in large pieces) wants Linux 6.2" : "");
    if (!good)
        check_remedy(r, "TCP is much slower so: use a kernel with TUNSETOFFLOAD for TSO");
}

enum { NOBODY = 65534 };

/* As an ordinary user, who this process is or becomes. */
static void look_at_user_namespaces(const struct check *c, void *arg)
{
    struct finding *out = arg;
    (void)c;
    if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
                           setresuid(NOBODY, NOBODY, NOBODY) != 0)) {
        out->error = errno;
        return;
    }
    out->inside = true;
    out->error = -sandbox_unshare();
}

/* Whether any user may open the device, if this one is root. */
static bool device_is_for_all(void)
{
    struct stat st;
    return geteuid() != 0 ||
           (stat(tun_path, &st) == 0 && (st.st_mode & (S_IROTH | S_IWOTH)) == (S_IROTH | S_IWOTH));
}

void check_namespaces(struct check *c, struct check_result *r)
{
    struct finding f = {.error = 0};
    bool told = check_in_child(c, look_at_user_namespaces, &f, sizeof(f));
    if (!told || (f.error && !f.inside)) {
        check_say(r, CHECK_SKIPPED, "cannot be tried: %s",
                  f.error ? strerror(f.error) : "the child did not answer");
    } else if (f.error) {
        check_say(r, CHECK_WARN, "user namespaces are refused to ordinary users: %s",
                  strerror(f.error));
        check_remedy(r, "%s; culvert run works as root only", sandbox_remedy(f.error));
    } else if (!device_is_for_all()) {
        check_say(r, CHECK_WARN, "ordinary users may make them, but not open %s", tun_path);
        check_remedy(r, "as root, chmod 666 %s (as most distributions have it)", tun_path);
    } else {
        check_say(r, CHECK_OK, "culvert run works for ordinary users");
    }
}

/* --- rp_filter -------------------------------------------------------------------------------- */

struct strict {
    const char *device;
    char first[64];
    unsigned count;
};

static long rp_filter_of(const char *interface)
{
    char path[SYSCTL_PATH_MAX];
    (void)snprintf(path, sizeof(path), "net/ipv4/conf/%s/rp_filter", interface);
    return sysctl_number(path, 0);
}

static void look_at_interface(void *arg, const char *interface)
{
    struct strict *s = arg;
    if (strcmp(interface, "lo") == 0 || strcmp(interface, s->device) == 0 ||
        rp_filter_of(interface) != 1)
        return;
    if (s->count++ == 0)
        (void)snprintf(s->first, sizeof(s->first), "%.60s", interface);
}

/* Strict filtering is what core/up/rp_filter.h relaxes, if it may. */
void check_rp_filter(struct check *c, struct check_result *r)
{
    static const char all[] = "/proc/sys/net/ipv4/conf/all/rp_filter";
    struct strict s = {.device = c->options->tun_name};
    (void)sysctl_each_interface("net/ipv4/conf", look_at_interface, &s);
    if (s.count == 0 || rp_filter_of("all") == 2) {
        check_say(r, CHECK_OK, "not strict");
        return;
    }
    bool privileged = check_has_capability(CAP_NET_ADMIN);
    bool writable = access(all, W_OK) == 0;
    if (writable || (!privileged && errno == EACCES)) {
        check_say(r, CHECK_OK, "strict on %s%s: up sets all to 2 (loose) as long as it runs",
                  s.first, s.count > 1 ? " and others" : "");
        return;
    }
    check_say(r, CHECK_FAIL, "strict on %s, and it cannot be changed here: %s", s.first,
              strerror(errno));
    check_remedy(r, "outside of the container, sysctl net.ipv4.conf.all.rp_filter=2");
}
