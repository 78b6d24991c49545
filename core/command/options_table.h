/*
 * The tables behind core/command/options.h: what options and commands there are. Only the parser,
 * the help and later the configuration file and the man page include this.
 */
#ifndef CULVERT_OPTIONS_TABLE_H
#define CULVERT_OPTIONS_TABLE_H

#include "core/command/options.h"

/* What a value is, which decides how it is parsed and where it is stored. */
enum option_kind {
    OPTION_NUMBER,      /* uint32_t: min..max, decimal or 0x hex, stored times `scale` */
    OPTION_WORKERS,     /* unsigned: a number from 1 on, or `auto` for one a core */
    OPTION_SWITCH,      /* bool: on, off; bare --name is on, --no-name is off */
    OPTION_FLAG,        /* bool: --name without a value sets it */
    OPTION_CHOICE,      /* an enum: the value's index in `choices` */
    OPTION_LINK,        /* char[16]: a network interface's name */
    OPTION_PATH,        /* const char *: not empty */
    OPTION_CIDR,        /* struct cidr_list: repeatable */
    OPTION_ENDPOINT,    /* struct endpoint: ADDR[:PORT], port `port` where left out */
    OPTION_ENDPOINTS,   /* struct endpoint_list: the same, repeatable */
    OPTION_HOST,        /* struct host_port: HOST[:PORT], a name or an address */
    OPTION_HOSTS,       /* struct host_port_list: the same, repeatable */
    OPTION_UIDS,        /* struct uid_list: UID, FIRST-LAST or a user's name, repeatable */
    OPTION_PATHS,       /* struct path_list: not empty, repeatable */
    OPTION_CREDENTIALS, /* struct auth_option: USER:PASSWORD */
};

struct option_spec {
    const char *name; /* without dashes */
    enum option_kind kind;
    const char *argument;       /* what --help calls the value; NULL: takes none */
    const char *fallback;       /* the default, as a user would write it, words separated by spaces;
                                   NULL: none */
    const char *const *choices; /* NULL-terminated, in the order of the enum */
    unsigned commands;          /* bits 1 << enum command */
    size_t offset;              /* into struct options */
    uint64_t min, max;          /* OPTION_NUMBER */
    uint32_t scale;             /* OPTION_NUMBER; 0 is 1 */
    uint16_t port;              /* OPTION_ENDPOINT(S), OPTION_HOST(S) */
    const char *help;           /* full sentences */
};

struct command_spec {
    const char *name;
    enum command command;
    bool wants_proxy;    /* takes one PROXY_URL */
    const char *usage;   /* what follows the name */
    const char *summary; /* one line */
    const char *help;    /* paragraphs, separated by newlines */
};

extern const struct option_spec option_table[];
extern const size_t option_count; /* at most 64: options.given has a bit for each */
extern const struct command_spec command_table[];
extern const size_t command_count;

#endif
