#include "core/up/resolved.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/log.h"

static const char service[] = "org.freedesktop.resolve1";
static const char object[] = "/org/freedesktop/resolve1";
static const char manager[] = "org.freedesktop.resolve1.Manager";

/* --- libsystemd, as much as is used (sd-bus.h) ------------------------------------------------ */

struct sd_bus;
struct sd_bus_creds;
struct sd_bus_message;
enum { CREDS_PID = 1 };

struct library {
    int (*open_system)(struct sd_bus **bus);
    int (*get_name_creds)(struct sd_bus *bus, const char *name, uint64_t mask,
                          struct sd_bus_creds **creds);
    int (*creds_get_pid)(struct sd_bus_creds *creds, pid_t *pid);
    int (*new_method_call)(struct sd_bus *bus, struct sd_bus_message **m, const char *destination,
                           const char *path, const char *interface, const char *member);
    int (*append)(struct sd_bus_message *m, const char *types, ...);
    int (*open_container)(struct sd_bus_message *m, char type, const char *contents);
    int (*close_container)(struct sd_bus_message *m);
    int (*append_array)(struct sd_bus_message *m, char type, const void *bytes, size_t size);
    int (*call)(struct sd_bus *bus, struct sd_bus_message *m, uint64_t timeout_us, void *error,
                struct sd_bus_message **reply);
    /* each takes NULL, too */
    struct sd_bus_message *(*message_unref)(struct sd_bus_message *m);
    struct sd_bus_creds *(*creds_unref)(struct sd_bus_creds *creds);
    struct sd_bus *(*close)(struct sd_bus *bus);
};

static bool open_library(struct library *lib)
{
    void *handle = dlopen("libsystemd.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return false;
    *(void **)&lib->open_system = dlsym(handle, "sd_bus_open_system");
    *(void **)&lib->get_name_creds = dlsym(handle, "sd_bus_get_name_creds");
    *(void **)&lib->creds_get_pid = dlsym(handle, "sd_bus_creds_get_pid");
    *(void **)&lib->new_method_call = dlsym(handle, "sd_bus_message_new_method_call");
    *(void **)&lib->append = dlsym(handle, "sd_bus_message_append");
    *(void **)&lib->open_container = dlsym(handle, "sd_bus_message_open_container");
    *(void **)&lib->close_container = dlsym(handle, "sd_bus_message_close_container");
    *(void **)&lib->append_array = dlsym(handle, "sd_bus_message_append_array");
    *(void **)&lib->call = dlsym(handle, "sd_bus_call");
    *(void **)&lib->message_unref = dlsym(handle, "sd_bus_message_unref");
    *(void **)&lib->creds_unref = dlsym(handle, "sd_bus_creds_unref");
    *(void **)&lib->close = dlsym(handle, "sd_bus_flush_close_unref");
    return lib->open_system && lib->get_name_creds && lib->creds_get_pid && lib->new_method_call &&
           lib->append && lib->open_container && lib->close_container && lib->append_array &&
           lib->call && lib->message_unref && lib->creds_unref && lib->close;
}

struct client {
    struct library lib;
    struct sd_bus *bus;
    int error; /* the first; later calls are not made */
};

static struct sd_bus_message *begin(struct client *c, const char *member)
{
    struct sd_bus_message *m = NULL;
    if (c->error >= 0)
        c->error = c->lib.new_method_call(c->bus, &m, service, object, manager, member);
    return m;
}

static void finish(struct client *c, struct sd_bus_message *m)
{
    enum { CALL_TIMEOUT_US = 5000000 };
    if (c->error >= 0)
        c->error = c->lib.call(c->bus, m, CALL_TIMEOUT_US, NULL, NULL);
    c->lib.message_unref(m);
}

/* --- the calls (org.freedesktop.resolve1(5)) -------------------------------------------------- */

static void set_link_dns(struct client *c, int ifindex, const struct addr *server)
{
    bool v4 = addr_is_v4(server);
    struct sd_bus_message *m = begin(c, "SetLinkDNS");
    if (c->error >= 0)
        c->error = c->lib.append(m, "i", ifindex);
    if (c->error >= 0)
        c->error = c->lib.open_container(m, 'a', "(iay)");
    if (c->error >= 0)
        c->error = c->lib.open_container(m, 'r', "iay");
    if (c->error >= 0)
        c->error = c->lib.append(m, "i", v4 ? AF_INET : AF_INET6);
    if (c->error >= 0)
        c->error =
            c->lib.append_array(m, 'y', v4 ? addr_v4_bytes(server) : server->bytes, v4 ? 4 : 16);
    if (c->error >= 0)
        c->error = c->lib.close_container(m);
    if (c->error >= 0)
        c->error = c->lib.close_container(m);
    finish(c, m);
}

/* The routing domain "~.": all names, before any other link. */
static void set_link_domains(struct client *c, int ifindex)
{
    struct sd_bus_message *m = begin(c, "SetLinkDomains");
    if (c->error >= 0)
        c->error = c->lib.append(m, "ia(sb)", ifindex, 1, ".", 1);
    finish(c, m);
}

static void set_link_default_route(struct client *c, int ifindex)
{
    struct sd_bus_message *m = begin(c, "SetLinkDefaultRoute");
    if (c->error >= 0)
        c->error = c->lib.append(m, "ib", ifindex, 1);
    finish(c, m);
}

/* A mode of the link: none of these is of use where the proxy resolves. */
static void set_link_mode(struct client *c, const char *member, int ifindex)
{
    struct sd_bus_message *m = begin(c, member);
    if (c->error >= 0)
        c->error = c->lib.append(m, "is", ifindex, "no");
    finish(c, m);
}

static void call_plain(struct client *c, const char *member)
{
    struct sd_bus_message *m = begin(c, member);
    finish(c, m);
}

static void revert_link(struct client *c, int ifindex)
{
    struct sd_bus_message *m = begin(c, "RevertLink");
    if (c->error >= 0)
        c->error = c->lib.append(m, "i", ifindex);
    finish(c, m);
    c->error = 0; /* no such link: gone, and its settings with it */
}

/* --- in the child ----------------------------------------------------------------------------- */

static bool in_our_network(pid_t pid)
{
    char path[64];
    struct stat theirs, ours;
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
    return stat(path, &theirs) == 0 && stat("/proc/self/ns/net", &ours) == 0 &&
           theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev;
}

/* Is it running, here? It is not started for our sake. */
static bool find_service(struct client *c)
{
    struct sd_bus_creds *creds = NULL;
    pid_t pid = 0;
    bool found = c->lib.open_system(&c->bus) >= 0 &&
                 c->lib.get_name_creds(c->bus, service, CREDS_PID, &creds) >= 0 &&
                 c->lib.creds_get_pid(creds, &pid) >= 0 && in_our_network(pid);
    c->lib.creds_unref(creds);
    return found;
}

static void set_link(struct client *c, int ifindex, const struct addr *server)
{
    set_link_mode(c, "SetLinkDNSSEC", ifindex);
    set_link_mode(c, "SetLinkDNSOverTLS", ifindex);
    set_link_mode(c, "SetLinkLLMNR", ifindex);
    set_link_mode(c, "SetLinkMulticastDNS", ifindex);
    set_link_dns(c, ifindex, server);
    set_link_default_route(c, ifindex);
    set_link_domains(c, ifindex);
}

/* `server` NULL: revert. Returns an errno as the child's exit status. */
static int talk(int ifindex, const struct addr *server)
{
    struct client c = {.bus = NULL};
    if (!open_library(&c.lib))
        return ENOENT;
    bool found = find_service(&c);
    if (found && server)
        set_link(&c, ifindex, server);
    else if (found)
        revert_link(&c, ifindex);
    if (found)
        call_plain(&c, "FlushCaches");
    c.lib.close(c.bus);
    if (!found)
        return ENOENT;
    return c.error < 0 ? EIO : 0;
}

static int talk_in_child(int ifindex, const struct addr *server)
{
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0)
        _exit(talk(ifindex, server));
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

int resolved_take(int ifindex, const struct addr *server)
{
    int error = talk_in_child(ifindex, server);
    if (error == -EIO)
        log_warn("systemd-resolved refuses our link's resolver");
    return error;
}

int resolved_revert(int ifindex)
{
    return talk_in_child(ifindex, NULL);
}

/* --- its resolv.conf -------------------------------------------------------------------------- */

bool resolved_is_resolver(const char *path)
{
    char line[512];
    bool stub = false;
    bool other = false;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        char *rest = NULL;
        const char *word = strtok_r(line, " \t\n", &rest);
        const char *value = strtok_r(NULL, " \t\n", &rest);
        if (!word || !value || strcmp(word, "nameserver") != 0)
            continue;
        bool is_stub = strcmp(value, "127.0.0.53") == 0 || strcmp(value, "127.0.0.54") == 0;
        stub = stub || is_stub;
        other = other || !is_stub;
    }
    if (file)
        fclose(file);
    return stub && !other;
}
