/*
 * Namespaces (namespaces(7), user_namespaces(7)) and mounts, in this order:
 *
 *   user namespace, unless privileged -> mount and network namespace -> loopback, device, routes
 *   -> masks over local resolvers' sockets -> resolv.conf
 *
 * The user namespace maps the one user and group id onto themselves, which is all that an ordinary
 * user may map. So ids look as outside, files of others seem to be nobody's, and programs with a
 * set-user-ID bit of another user (sudo) run without it.
 *
 * The network is cut off by what it lacks: it has loopback and the TUN device, and an ordinary
 * user cannot move another device into it. What is left are ways that are no network: sockets in
 * the file system. A name looked up by nscd, systemd-resolved or avahi is looked up outside, past
 * the proxy; so their directories are covered, and libc's modules for them, which find no socket,
 * leave the question to the next one, DNS.
 *
 * A mask lies on the directory, since a mount on a file goes as soon as somebody outside replaces
 * the file (rename(2)). For resolv.conf that cannot be helped where it is no symbolic link into
 * such a directory. What then shows through names a resolver that is either beyond the device,
 * where port 53 is answered whatever the address, or on a loopback where nobody listens.
 */
#include "core/run/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

#include "core/command/say.h"
#include "core/command/tun_setup.h"
#include "core/up/sysctl.h"
#include "core/worker/id_map.h"
#include "stack/link.h"

static const char resolv_conf[] = "/etc/resolv.conf";

bool sandbox_check(void)
{
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return true;
    }
    if (errno == EACCES)
        say("/dev/net/tun is not open to this user: as root, chmod 666 /dev/net/tun (as most "
            "distributions have it), or run culvert as root");
    else
        say("/dev/net/tun is not to be had (%s): as root, modprobe tun, or give the container that "
            "device",
            strerror(errno));
    return false;
}

/* --- namespaces ------------------------------------------------------------------------------- */

/* May this process make namespaces and configure them as it is (capabilities(7))? */
static bool is_privileged(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    uint32_t needed = 1u << CAP_SYS_ADMIN | 1u << CAP_NET_ADMIN;
    return (data[0].effective & needed) == needed;
}

const char *sandbox_remedy(int error)
{
    if (error == ENOSPC || error == EUSERS)
        return "as root, raise the limits sysctl user.max_user_namespaces, max_net_namespaces "
               "and max_mnt_namespaces";
    if (error == EINVAL || error == ENOSYS)
        return "use a kernel that has them (CONFIG_USER_NS, CONFIG_NET_NS)";
    if (sysctl_number("kernel/unprivileged_userns_clone", -1) == 0)
        return "as root, sysctl kernel.unprivileged_userns_clone=1";
    if (sysctl_number("kernel/apparmor_restrict_unprivileged_userns", -1) == 1)
        return "as root, give culvert an AppArmor profile with \"userns,\", or sysctl "
               "kernel.apparmor_restrict_unprivileged_userns=0";
    return "allow them where this runs (a chroot, or a container's seccomp policy)";
}

/* 0 or -errno. */
static int enter_user_namespace(void)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    return unshare(CLONE_NEWUSER) != 0 ? -errno : id_map_self(uid, gid);
}

int sandbox_unshare(void)
{
    int error = is_privileged() ? 0 : enter_user_namespace();
    if (error == 0 && unshare(CLONE_NEWNS | CLONE_NEWNET) != 0)
        error = -errno;
    return error;
}

static bool enter_namespaces(void)
{
    int error = sandbox_unshare();
    if (error < 0)
        say("user namespaces are refused here (%s): %s, or run culvert as root", strerror(-error),
            sandbox_remedy(-error));
    return error == 0;
}

/* --- the network ------------------------------------------------------------------------------ */

enum { METRIC_FIRST = 1 };

/* All of a family, and its halves, which outdo a default route that others have. */
static const char *const ranges[][3] = {
    {"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"},
    {"::/0", "::/1", "8000::/1"},
};

typedef int route_fn(const char *name, const struct cidr *destination, uint32_t metric);

static int change_route(route_fn *change, const char *name, const char *destination)
{
    struct cidr range;
    if (!cidr_parse(destination, &range))
        return -EINVAL;
    /* IPv4's own default is 0, before all others; IPv6's is 1024. */
    return change(name, &range, addr_is_v4(&range.addr) ? 0 : METRIC_FIRST);
}

static int route_family(const char *name, const char *const family[3])
{
    int error = change_route(link_add_route, name, family[0]);
    if (error != -EEXIST)
        return error;
    error = change_route(link_add_route, name, family[1]);
    return error == 0 ? change_route(link_add_route, name, family[2]) : error;
}

void sandbox_unroute(const char *name)
{
    for (size_t family = 0; family < 2; family++) {
        for (size_t i = 0; i < 3; i++)
            (void)change_route(link_delete_route, name, ranges[family][i]);
    }
}

bool sandbox_route(const char *name, bool others)
{
    int error = route_family(name, ranges[0]);
    if (error < 0) {
        say("cannot route IPv4 into %s: %s", name, strerror(-error));
        return false;
    }
    error = route_family(name, ranges[1]);
    if (error == 0 || error == -EAFNOSUPPORT || error == -EOPNOTSUPP)
        return true;
    if (others) {
        say("cannot route IPv6 into %s: %s; it would go past the proxy", name, strerror(-error));
        return false;
    }
    log_info("no IPv6 inside: %s", strerror(-error));
    return true;
}

/* ping without privileges (icmp(7)), for --icmp reply: a matter of the namespace's own. */
static void allow_ping(void)
{
    char range[48];
    (void)snprintf(range, sizeof(range), "%u %u", (unsigned)getegid(), (unsigned)getegid());
    (void)sysctl_write("net/ipv4/ping_group_range", range);
}

static bool make_network(struct tun_setup *setup)
{
    int error = link_set_up("lo", true);
    if (error < 0) {
        say("cannot bring loopback up: %s", strerror(-error));
        return false;
    }
    allow_ping();
    return tun_setup_open(setup) && sandbox_route(setup->device->name, false);
}

/* --- the file system -------------------------------------------------------------------------- */

/* Sockets behind which names are looked up outside, and where resolv.conf often lies. */
static const char *const masked[] = {
    "/run/nscd",
    "/var/run/nscd",
    "/run/systemd/resolve", /* io.systemd.Resolve; nss-resolve */
    "/run/systemd/machine", /* io.systemd.Machine; nss-mymachines */
    "/run/avahi-daemon",    /* nss-mdns */
    "/run/mdnsd",
};

static bool cannot_mount(const char *path)
{
    say("cannot mount over %s: %s; namespaces are restricted here (AppArmor, SELinux, a "
        "container): allow mounts, or run culvert as root outside of it",
        path, strerror(errno));
    return false;
}

static bool mask(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return true;
    if (!S_ISDIR(st.st_mode))
        return mount("/dev/null", path, NULL, MS_BIND, NULL) == 0 || cannot_mount(path);
    return mount("culvert", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k") ==
               0 ||
           cannot_mount(path);
}

static bool write_resolv_conf(const char *path, const struct options *o)
{
    char text[ADDR_TEXT_MAX];
    struct addr a = tun_setup_resolver(o);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    bool written = fd >= 0 && dprintf(fd, "nameserver %s\n", addr_format(&a, text)) > 0;
    if (fd >= 0)
        close(fd);
    return written && chmod(path, 0644) == 0; /* whatever the umask */
}

/*
 * Cover `target` by a file of ours. A bind mount wants a file of a mount: one is made in a tmpfs
 * over a directory that is surely there, and that is uncovered again.
 */
static bool cover_resolv_conf(const char *target, const struct options *o)
{
    static const char place[] = "/dev/net";
    static const char file[] = "/dev/net/resolv.conf";
    if (mount("culvert", place, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k") !=
        0)
        return cannot_mount(place);
    bool done = write_resolv_conf(file, o) && mount(file, target, NULL, MS_BIND, NULL) == 0;
    if (!done)
        (void)cannot_mount(target);
    (void)umount2(place, MNT_DETACH);
    return done;
}

static bool set_resolver(const char *target, const struct options *o)
{
    if (access(target, F_OK) == 0)
        return cover_resolv_conf(target, o);
    /* It lay in a directory that is masked now. */
    if (write_resolv_conf(target, o))
        return true;
    say("cannot write %s: %s", target, strerror(errno));
    return false;
}

static bool make_file_system(const struct options *o)
{
    char target[PATH_MAX];
    bool has_resolver = realpath(resolv_conf, target) != NULL;
    if (!has_resolver)
        log_warn("%s is not there to be covered: %s; names will not resolve inside until it is "
                 "made",
                 resolv_conf, strerror(errno));
    /* Nothing of this shows outside; what is mounted outside later shows inside. */
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
        return cannot_mount("/");
    for (size_t i = 0; i < sizeof(masked) / sizeof(masked[0]); i++) {
        if (!mask(masked[i]))
            return false;
    }
    return !has_resolver || set_resolver(target, o);
}

bool sandbox_enter(struct tun_setup *setup)
{
    return enter_namespaces() && make_network(setup) && make_file_system(setup->options);
}
