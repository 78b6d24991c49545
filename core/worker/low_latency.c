/*
 * Theory: a byte that goes through the tunnel wakes us, and then whom we pass it on to. A core that
 * has gone to sleep meanwhile answers such a wake-up late: a virtual one has left the processor to
 * its host and must be brought back, a real one has its caches and clocks to start. Where two
 * programs talk in turns, that is most of what a round trip takes, and no work of ours can
 * make it less.
 *
 * The kernel has a promise for that (PM QoS, Documentation/power/pm_qos_interface.rst): who holds
 * the device open may write the time in microseconds, a binary s32, that a core may take to wake
 * up. The least of all requests counts, for all cores; 0 leaves none but to poll for work. It is
 * dear: all idle cores run at full power, for as long as it is asked for. Hence an option; and so
 * we ask only while something is relayed:
 *
 *   RELEASED  --something is relayed-->              HELD      writes 0
 *   HELD      --LOW_LATENCY_QUIET_MS without-->      RELEASED  writes the kernel's own default
 *
 * "Something" are bytes, datagrams and the beginnings of connections, be it from applications or
 * from the proxy. Keep-alives and what our own timers do are not: with many idle flows there is
 * always one of these.
 *
 * That something was relayed is noted in the turn, without a system call; one timer looks
 * at the note, and starts anew until it finds it old. So a busy worker is woken once more in
 * LOW_LATENCY_QUIET_MS, and an idle one not at all.
 *
 * The request belongs to the open file, not to the process: it ends when the last descriptor is
 * closed, and so outlives no kill -9 of all of us. But the supervisor has a copy of each
 * worker's, to give it to the next one: where a worker has died it withdraws the request at once,
 * so that each worker begins released. What this cannot see to is a worker that is stopped
 * (SIGSTOP) while it relays: it holds until it goes on.
 */
#include "core/worker/low_latency.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"

/* Microseconds. The second is PM_QOS_CPU_LATENCY_DEFAULT_VALUE of the kernel's pm_qos.h. */
enum { ANSWER_AT_ONCE = 0, NO_REQUEST = 2000000000 };

int low_latency_open(void)
{
    int fd = open(LOW_LATENCY_DEVICE, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* False: it was not taken, which has been said. */
static bool request(int fd, int32_t us)
{
    static struct log_limit limit = LOG_LIMIT(3);
    if (write(fd, &us, sizeof(us)) == (ssize_t)sizeof(us))
        return true;
    log_limited(LOG_LEVEL_WARN, &limit, "cannot write %ld to " LOW_LATENCY_DEVICE ": %s", (long)us,
                strerror(errno));
    return false;
}

void low_latency_withdraw(int fd)
{
    if (fd >= 0)
        (void)request(fd, NO_REQUEST);
}

void low_latency_init(struct low_latency *l, struct loop *loop, int fd)
{
    *l = (struct low_latency){.loop = loop, .fd = fd};
}

static void release(struct low_latency *l)
{
    l->held = false;
    (void)request(l->fd, NO_REQUEST);
}

static void on_quiet(void *arg)
{
    struct low_latency *l = arg;
    uint64_t quiet_ms = loop_now(l->loop) - l->relayed_ms;
    if (quiet_ms < LOW_LATENCY_QUIET_MS)
        loop_timer_start(l->loop, &l->quiet, LOW_LATENCY_QUIET_MS - quiet_ms, on_quiet, l);
    else
        release(l);
}

static void hold(struct low_latency *l)
{
    l->held = request(l->fd, ANSWER_AT_ONCE);
    if (l->held)
        loop_timer_start(l->loop, &l->quiet, LOW_LATENCY_QUIET_MS, on_quiet, l);
    else
        l->fd = -1; /* it would fail in each turn */
}

void low_latency_relayed(struct low_latency *l)
{
    l->relayed_ms = loop_now(l->loop);
    if (!l->held)
        hold(l);
}

void low_latency_end(struct low_latency *l)
{
    loop_timer_stop(&l->quiet);
    if (l->held)
        release(l);
}
