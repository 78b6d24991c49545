/*
 * A DNS server for unit tests: one UDP socket on 127.0.0.1, served by the test's own loop, that
 * answers from a table. Names that are not in the table get no answer at all.
 */
#ifndef CULVERT_TESTS_DNS_SERVER_H
#define CULVERT_TESTS_DNS_SERVER_H

#include "core/base/addr.h"
#include "core/loop.h"

enum { DNS_SERVER_ADDRS_MAX = 32 };

struct dns_record {
    const char *name;
    int rcode;    /* 0, or 3: no such name */
    uint32_t ttl; /* seconds */
    const char *addrs[DNS_SERVER_ADDRS_MAX];
};

struct dns_server {
    int fd;
    uint16_t port;
    struct loop_io io;
    const struct dns_record *records; /* ends with one whose name is NULL */
    unsigned queries;                 /* seen so far, A and AAAA each */
    char conf_path[64];               /* a resolv.conf that names it; the port is given apart */
};

void dns_server_start(struct dns_server *s, struct loop *loop, const struct dns_record *records);
void dns_server_stop(struct dns_server *s);
/* Write its resolv.conf anew. */
void dns_server_write_conf(const struct dns_server *s, const char *nameserver);

#endif
