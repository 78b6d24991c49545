#include "core/command/precheck.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/command/say.h"
#include "core/proxy/probe.h"
#include "core/worker/errand.h"
#include "core/worker/low_latency.h"

bool precheck_user(const struct options *o)
{
    struct confine_user user;
    const char *problem = confine_find_user(o->user, &user);
    if (problem)
        say("cannot run as user %s: %s; choose another with --user", o->user, problem);
    return problem == NULL;
}

struct name_answer {
    char problem[160]; /* empty: it resolves */
};

/* In the child. */
static void ask(const struct options *o, int say_fd, void *arg)
{
    struct name_answer answer = {.problem = ""};
    (void)arg;
    const char *problem = probe_resolve(&o->proxy, &o->outbound, errand_lock);
    if (problem)
        (void)snprintf(answer.problem, sizeof(answer.problem), "%s", problem);
    errand_say(say_fd, &answer, sizeof(answer));
}

bool precheck_proxy_name(const struct options *o)
{
    struct errand errand;
    struct name_answer answer;
    if (o->proxy.scheme == PROXY_SCHEME_DIRECT || o->proxy.host_is_addr)
        return true;
    struct options asked = *o;
    asked.resolver_conf = NULL; /* `up` has not made its own yet */
    asked.secrets_fd = -1;
    int error = errand_start(&errand, &asked, ask, NULL);
    if (error < 0)
        (void)snprintf(answer.problem, sizeof(answer.problem), "%s", strerror(-error));
    else if (!errand_hear(&errand, &answer, sizeof(answer)))
        (void)snprintf(answer.problem, sizeof(answer.problem), "who asked for it has died");
    errand_end(&errand);
    answer.problem[sizeof(answer.problem) - 1] = '\0';
    if (answer.problem[0] == '\0')
        return true;
    say("the proxy's name %s does not resolve: %s; check the name and this machine's resolver, or "
        "give its address",
        o->proxy.host, answer.problem);
    return false;
}

static void explain_low_latency(int error)
{
    switch (-error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
        say("--low-latency needs " LOW_LATENCY_DEVICE ", which is missing: give the container that "
            "device, run a kernel that has it (CONFIG_CPU_IDLE), or leave the option out");
        return;
    case EACCES:
    case EPERM:
        say("--low-latency: no permission to write " LOW_LATENCY_DEVICE ": run culvert as root, "
            "open the device to this user (as root, setfacl -m u:USER:w " LOW_LATENCY_DEVICE "), "
            "or leave the option out");
        return;
    default:
        say("--low-latency: cannot open " LOW_LATENCY_DEVICE ": %s", strerror(-error));
    }
}

bool precheck_low_latency(const struct options *o)
{
    if (!o->low_latency)
        return true;
    int fd = low_latency_open();
    if (fd < 0)
        explain_low_latency(fd);
    else
        close(fd);
    return fd >= 0;
}
