#include "core/worker/errand.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"

struct errand_work {
    errand_fn *work;
    void *arg;
};

static int perform(const struct duty *duty, const struct options *o, int report_fd)
{
    const struct errand_work *w = duty->arg;
    w->work(o, report_fd, w->arg);
    return 0;
}

int errand_start(struct errand *e, const struct options *o, errand_fn *work, void *arg)
{
    struct errand_work w = {.work = work, .arg = arg};
    struct duty duty = {.name = "culvert-errand", .options = o, .perform = perform, .arg = &w};
    *e = (struct errand){.child = {.report_fd = -1}, .broker = {.report_fd = -1}};
    if (duty_prepare(&duty))
        return -EINVAL;
    bool plain = o->outbound.mark == 0 && o->outbound.bind_interface[0] == '\0';
    duty.with_broker = duty.with_broker && !plain; /* its other gift is large buffers */
    return child_start(&duty, &e->child, &e->broker);
}

bool errand_hear(struct errand *e, void *out, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = read(e->child.report_fd, (char *)out + at, size - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

void errand_end(struct errand *e)
{
    (void)child_collect(&e->child);
    (void)child_collect(&e->broker);
}

bool errand_lock(void)
{
    int error = confine_calls(CONFINE_WORKER);
    if (error < 0)
        log_error("cannot give up system calls: %s", strerror(-error));
    return error == 0;
}

void errand_say(int say, const void *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(say, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            _exit(1);
        bytes = (const char *)bytes + n;
        size -= (size_t)n;
    }
}
