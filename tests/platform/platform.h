/*
 * What the programs here share: a network namespace of their own, and a TUN device in it that has
 * 198.18.0.1/15 and fd00::1/64. Everything else in those ranges is routed into the device, and
 * what is read from it is the test's to answer.
 */
#ifndef CULVERT_TESTS_PLATFORM_H
#define CULVERT_TESTS_PLATFORM_H

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "stack/device.h"
#include "stack/link.h"

enum { PLATFORM_SKIPPED = 77, PLATFORM_WAIT_MS = 3000 };

/* From here on the process sees no network but its own. Exits where that is not permitted. */
static inline void platform_enter_namespace(void)
{
    if (unshare(CLONE_NEWNET) == 0)
        return;
    fprintf(stderr, "skipped: no network namespace: %s\n", strerror(errno));
    exit(PLATFORM_SKIPPED);
}

static inline struct cidr platform_cidr(const char *text)
{
    struct cidr c;
    assert_true(cidr_parse(text, &c));
    return c;
}

static inline struct endpoint platform_endpoint(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

static inline void platform_configure(struct device *d, unsigned mtu)
{
    struct cidr v4 = platform_cidr("198.18.0.1/15"), v6 = platform_cidr("fd00::1/64");
    d->mtu = mtu;
    assert_int_equal(link_set_mtu(d->name, mtu), 0);
    assert_int_equal(link_set_up(d->name, true), 0);
    assert_int_equal(link_add_address(d->name, &v4), 0);
    assert_int_equal(link_add_address(d->name, &v6), 0);
}

/* A device of that name, configured, with offloads as asked. */
static inline struct device *platform_device(const char *name, bool offload, unsigned mtu)
{
    int error = 0;
    const struct device_tun_options options = {.name = name, .offload = offload};
    struct device *d = device_tun_open(&options, &error);
    if (!d)
        fail_msg("device_tun_open: %s", strerror(-error));
    platform_configure(d, mtu);
    return d;
}

/* Wait until `fd` is readable; false when nothing comes. */
static inline bool platform_readable(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) == 1;
}

/* The next packet, into `p->buffer`; false when none comes. */
static inline bool platform_read(struct device *d, struct packet *p, int ms)
{
    if (!platform_readable(d->fd, ms))
        return false;
    return device_read(d, p, 1) == 1;
}

#endif
