/*
 * The command line: what the user asked for, checked, with defaults in place.
 *
 * Options and commands are tables (options_table.c); parsing, the defaults and --help come from
 * them, and so do the texts that a user reads. An option's default is written as the text that a
 * user would write and goes through the same parser.
 *
 * Secrets: options_parse() begins by overwriting every password in argv, and the whole of
 * ALL_PROXY, in place, so that ps and /proc/PID/environ do not show them. From then on they exist
 * in `struct options` only, and in no message; core/command/secrets.h takes them from there.
 */
#ifndef CULVERT_OPTIONS_H
#define CULVERT_OPTIONS_H

#include "core/base/log.h"
#include "core/dns/dns.h"
#include "core/flows.h"
#include "core/command/host_port.h"
#include "core/proxy/resolver.h"
#include "socks/url.h"

enum { WORKERS_MAX = 64 };
enum { OPTIONS_LIST_MAX = 16, OPTIONS_ERROR_MAX = 320 };

enum command {
    COMMAND_NONE,
    COMMAND_TUN,
    COMMAND_SERVE,
    COMMAND_UP,
    COMMAND_DOWN,
    COMMAND_RUN,
    COMMAND_CHECK,
};
enum icmp_mode { ICMP_DROP, ICMP_REPLY };

struct cidr_list {
    struct cidr items[OPTIONS_LIST_MAX];
    size_t count;
};

struct endpoint_list {
    struct endpoint items[OPTIONS_LIST_MAX];
    size_t count;
};

struct uid_range {
    uint32_t first, last;
};

struct uid_list {
    struct uid_range items[OPTIONS_LIST_MAX];
    size_t count;
};

struct path_list {
    const char *items[OPTIONS_LIST_MAX]; /* belong to argv */
    size_t count;
};

struct host_port_list {
    struct host_port items[OPTIONS_LIST_MAX];
    size_t count;
};

/* What `check` tries to reach through the proxy. */
struct check_options {
    bool json;
    struct host_port host;
    struct endpoint v4, v6;
    struct host_port_list stun;
};

/* Who and what `up` captures, and how the machine is set up for it. */
struct up_options {
    struct cidr_list bypass;
    bool lan; /* networks with routes of their own stay direct */
    struct uid_list include_uids, exclude_uids;
    struct path_list include_cgroups, exclude_cgroups;
    bool kill_switch;
    bool dns_setup;
    bool gateway;
};

/* What `run` runs, or what it attaches to. */
struct run_options {
    char **argv;       /* NULL-terminated, a part of argv; NULL: none was given */
    const char *netns; /* a name or a path; NULL: none */
    int pid;           /* 0: none */
    /* ALL_PROXY and all_proxy as they were found; NULL: not set. Owned, see options_wipe(). */
    char *environment[2];
};

/* --auth; user 1..255 bytes, password 0..255 (RFC 1929, 2), NUL-terminated. */
struct auth_option {
    bool present;
    char user[256];
    char password[256];
};

struct options {
    enum command command;
    uint64_t given; /* a bit an option that the user gave; see options_given() */
    struct proxy_url proxy;
    /* core/command/secrets.h: where the passwords are. -1: there are none */
    int secrets_fd;
    const struct secrets *secrets; /* NULL: this process does not see them */

    /* the device */
    char tun_name[16];
    int tun_fd;   /* -1: by name */
    unsigned mtu; /* bytes */
    struct cidr_list addresses;
    bool offload;

    /* what happens to traffic */
    enum dns_mode dns;
    struct endpoint dns_server;
    struct cidr_list fake_ranges; /* never empty: the addresses' ranges where not given */
    enum icmp_mode icmp;
    struct flow_limits limits;
    bool pipeline;
    /*
     * After SIGTERM, how many seconds what applications have sent may take to be passed on; 0: they
     * live on, and are cut off at once. No option: `run` sets it, whose applications are gone then.
     */
    unsigned linger_s;

    /* every socket towards the world */
    struct outbound_options outbound;
    unsigned workers;          /* 1..WORKERS_MAX */
    bool low_latency;          /* no core sleeps while something is relayed */
    const char *user;          /* whom workers run as; NULL: nobody, where we are root */
    const char *resolver_conf; /* where the proxy's name is resolved; NULL: /etc/resolv.conf */
    struct up_options up;
    struct run_options run;
    struct check_options check;

    /* serve */
    struct endpoint_list listens;
    struct auth_option auth;

    enum log_level log_level;
    const char *log_file; /* NULL: stderr; belongs to argv */
};

enum options_verdict {
    OPTIONS_RUN,     /* `out` is complete */
    OPTIONS_HELP,    /* print options_print_help() */
    OPTIONS_VERSION, /* print options_version() */
    OPTIONS_BAD,     /* `error` holds one line without newline and without "culvert: " */
};

/*
 * Parse a command line. Takes the proxy from ALL_PROXY or all_proxy where the command needs one
 * and none is given. `argv` must outlive `out`; passwords in it are overwritten with '*'. With
 * OPTIONS_BAD and OPTIONS_HELP `out` holds no secret. Behind run's "--" nothing is touched: that
 * is another program's command line.
 */
enum options_verdict options_parse(int argc, char **argv, struct options *out,
                                   char error[OPTIONS_ERROR_MAX]);
/* Did the user give the option of that name (without dashes), rather than take its default? */
bool options_given(const struct options *o, const char *name);
/* The names of run.environment[]. */
extern const char *const options_environment[2];
/* Overwrite every secret, and free what is owned. */
void options_wipe(struct options *o);

/* To stdout: the whole program (COMMAND_NONE), or one command. */
void options_print_help(enum command command);
const char *options_version(void);

#endif
