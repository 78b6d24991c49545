/*
 * `run --netns`, `run --pid`: an existing network namespace gets its way out.
 *
 * A child enters the namespace, and stays there: it opens the device, routes into it, passes the
 * descriptor out, and puts back what was there before when this process, the relay, closes the
 * socket between them or dies. The device goes with its last descriptor, and its addresses and
 * routes with it.
 *
 * The namespace of a user's own container belongs to a user namespace: the child joins that first
 * where the network namespace alone is refused.
 */
#include "core/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/command/say.h"
#include "core/run/sandbox.h"
#include "core/worker/process.h"
#include "core/worker/tunnel.h"

enum { NAMESPACE_TEXT_MAX = 320 };

struct attach {
    const struct options *options;
    char what[NAMESPACE_TEXT_MAX]; /* for the user: "netns NAME", "pid PID" */
    int net, user;                 /* namespaces; -1: none */
    int sock[2];                   /* [0] the relay, [1] the child within */
    struct run_device device;
};

/* --- which namespace -------------------------------------------------------------------------- */

static int open_namespace(const char *path)
{
    return open(path, O_RDONLY | O_CLOEXEC);
}

static bool open_by_name(struct attach *a)
{
    const char *name = a->options->run.netns;
    char path[NAMESPACE_TEXT_MAX];
    bool is_path = strchr(name, '/') != NULL;
    (void)snprintf(path, sizeof(path), "%s%s", is_path ? "" : "/run/netns/", name);
    (void)snprintf(a->what, sizeof(a->what), "netns %.250s", name);
    a->net = open_namespace(path);
    if (a->net >= 0)
        return true;
    say("no network namespace %.250s: %s: %s (ip netns list shows the names)", name, path,
        strerror(errno));
    return false;
}

static bool open_by_pid(struct attach *a)
{
    int pid = a->options->run.pid;
    char path[48];
    (void)snprintf(a->what, sizeof(a->what), "pid %d", pid);
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
    a->net = open_namespace(path);
    if (a->net < 0) {
        bool gone = errno == ENOENT || errno == ESRCH;
        say("cannot enter the network namespace of process %d: %s", pid,
            gone ? "there is no such process" : strerror(errno));
        return false;
    }
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
    a->user = open_namespace(path);
    return true;
}

/* The machine's own network is not what is meant, and would be cut off from the proxy. */
static bool is_another(const struct attach *a)
{
    struct stat theirs, ours;
    bool known = fstat(a->net, &theirs) == 0 && stat("/proc/self/ns/net", &ours) == 0;
    if (known && (theirs.st_ino != ours.st_ino || theirs.st_dev != ours.st_dev))
        return true;
    say("%s is the network namespace that culvert itself is in: use culvert up, or culvert tun",
        a->what);
    return false;
}

static bool open_target(struct attach *a)
{
    bool opened = a->options->run.netns ? open_by_name(a) : open_by_pid(a);
    return opened && is_another(a);
}

/* --- the child within ------------------------------------------------------------------------- */

static bool enter(const struct attach *a)
{
    if (setns(a->net, CLONE_NEWNET) == 0)
        return true;
    bool joined = errno == EPERM && a->user >= 0 && setns(a->user, CLONE_NEWUSER) == 0;
    if (joined && setns(a->net, CLONE_NEWNET) == 0)
        return true;
    if (errno == EPERM)
        say("no permission to enter %s: run culvert as root", a->what);
    else
        say("cannot enter %s: %s", a->what,
            errno == EINVAL ? "it is no network namespace" : strerror(errno));
    return false;
}

static _Noreturn void stay_within(struct attach *a)
{
    struct tun_setup setup = {.options = a->options};
    char byte;
    if (a->options->secrets_fd >= 0)
        close(a->options->secrets_fd);
    run_close(&a->sock[0]);
    bool made = enter(a) && tun_setup_open(&setup) && sandbox_route(setup.device->name, true) &&
                run_send_device(a->sock[1], &setup) == 0;
    while (made && recv(a->sock[1], &byte, 1, 0) < 0 && errno == EINTR)
        ;
    if (setup.device && setup.existed)
        sandbox_unroute(setup.device->name);
    tun_setup_undo(&setup);
    _exit(made ? EXIT_STOPPED : EXIT_REFUSED);
}

/* --- the relay -------------------------------------------------------------------------------- */

static int announce(void *arg)
{
    const struct attach *a = arg;
    const struct device *d = a->device.queues[0];
    char proxy[600];
    say("ready run %s tun %s mtu %u offload %s proxy %s", a->what, d->name, d->mtu,
        tun_setup_offload(&d->caps), proxy_url_format(&a->options->proxy, proxy, sizeof(proxy)));
    notify_service_manager("READY=1");
    return 0;
}

static int relay(struct attach *a)
{
    int error = run_take_device(a->sock[0], a->options->offload, &a->device);
    if (error == -ECONNRESET)
        return EXIT_REFUSED; /* the child has said why */
    if (error == 0)
        error = tunnel_run(a->device.queues, a->device.count, a->options, announce, a);
    notify_service_manager("STOPPING=1");
    run_close_device(&a->device);
    if (error == 0)
        return EXIT_STOPPED;
    say("cannot relay: %s", strerror(-error));
    return EXIT_REFUSED;
}

/* With the child: it blocks the signals for good, and is ended by closing the socket. */
static int relay_with_child(struct attach *a)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, a->sock) != 0) {
        say("cannot make a socket: %s", strerror(errno));
        return EXIT_REFUSED;
    }
    process_block_stop_signals();
    pid_t child = fork();
    if (child == 0)
        stay_within(a);
    run_close(&a->sock[1]);
    if (child < 0)
        say("cannot start a process: %s", strerror(errno));
    int status = child < 0 ? EXIT_REFUSED : relay(a);
    process_block_stop_signals();
    run_close(&a->sock[0]);
    if (child > 0)
        (void)waitpid(child, NULL, 0);
    return status;
}

int run_attach(const struct options *options)
{
    struct attach a = {.options = options, .net = -1, .user = -1, .sock = {-1, -1}};
    process_prepare_relay();
    int status = open_target(&a) ? relay_with_child(&a) : EXIT_REFUSED;
    run_close(&a.net);
    run_close(&a.user);
    return status;
}
