#include "core/command/options.h"

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "core/command/options_table.h"
#include "core/command/proxy_variables.h"

/* Values are stored through the table's offsets as these sizes. */
static_assert(sizeof(unsigned) == sizeof(uint32_t) && sizeof(int) == sizeof(uint32_t), "numbers");
static_assert(sizeof(enum dns_mode) == sizeof(unsigned) &&
                  sizeof(enum udp_mode) == sizeof(unsigned) &&
                  sizeof(enum icmp_mode) == sizeof(unsigned) &&
                  sizeof(enum log_level) == sizeof(unsigned),
              "choices");

enum { LINK_NAME_SIZE = 16 };

/* One command line being read. */
struct parse {
    int argc;
    char **argv;
    int at;         /* the next argument */
    char **secrets; /* what argv[i] was before it was overwritten, NULL where it was left alone */
    const char *env_proxy; /* ALL_PROXY's value in `out`, or NULL */
    const struct command_spec *command;
    const char *proxy_text;
    struct options *out;
    char *error;
};

/* Say what is wrong; false, so that a parser may end with it. */
__attribute__((format(printf, 2, 3))) static bool fail(struct parse *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(p->error, OPTIONS_ERROR_MAX, format, args);
    va_end(args);
    return false;
}

/* --- secrets ---------------------------------------------------------------------------------- */

/*
 * The password in an argument that may hold a URL with userinfo: from the first ':' behind the
 * scheme to the last '@'. Generous on purpose: what is mistyped must not show either. NULL if
 * there is none.
 */
static char *find_url_password(char *text, size_t *len)
{
    char *end = strrchr(text, '@');
    if (!end)
        return NULL;
    char *scheme = strstr(text, "://");
    char *userinfo = scheme && scheme < end ? scheme + 3 : text;
    char *colon = memchr(userinfo, ':', (size_t)(end - userinfo));
    if (!colon)
        return NULL;
    *len = (size_t)(end - colon) - 1;
    return colon + 1;
}

/* The password in USER:PASSWORD. A value without a colon could be a password alone: all of it. */
static char *find_auth_password(char *text, size_t *len)
{
    char *colon = strchr(text, ':');
    char *password = colon ? colon + 1 : text;
    *len = strlen(password);
    return password;
}

/* Where does argument `i` hold a password? A file name may look like userinfo, and is none. */
static char *find_password(char **argv, int i, size_t *len)
{
    static const char auth[] = "--auth";
    size_t auth_len = sizeof(auth) - 1;
    if (i > 1 && strcmp(argv[i - 1], auth) == 0)
        return find_auth_password(argv[i], len);
    if (strncmp(argv[i], auth, auth_len) == 0 && argv[i][auth_len] == '=')
        return find_auth_password(argv[i] + auth_len + 1, len);
    bool is_path = argv[i][0] == '/' || argv[i][0] == '.' || strstr(argv[i], "=/");
    return is_path ? NULL : find_url_password(argv[i], len);
}

/* How many arguments are culvert's own: behind run's "--" stands another program's command line. */
static int own_arguments(const struct parse *p)
{
    int i = 1;
    if (p->argc < 2 || strcmp(p->argv[1], "run") != 0)
        return p->argc;
    while (i < p->argc && strcmp(p->argv[i], "--") != 0)
        i++;
    return i;
}

/* Copy every argument with a password in it, then overwrite the password. */
static bool hide_arguments(struct parse *p)
{
    p->secrets = calloc((size_t)p->argc + 1, sizeof(*p->secrets));
    bool copied = p->secrets != NULL;
    int count = own_arguments(p);
    for (int i = 1; i < count; i++) {
        size_t len = 0;
        char *password = find_password(p->argv, i, &len);
        if (!password || len == 0)
            continue;
        if (copied && !(p->secrets[i] = strdup(p->argv[i])))
            copied = false;
        memset(password, '*', len);
    }
    return copied ? true : fail(p, "out of memory");
}

const char *const options_environment[2] = {"ALL_PROXY", "all_proxy"};

/* Take both spellings out of the environment; the first that is set counts. */
static bool hide_environment(struct parse *p)
{
    bool copied = true;
    for (size_t i = 0; i < 2; i++) {
        char *value = getenv(options_environment[i]);
        if (!value)
            continue;
        char *copy = p->out->run.environment[i] = strdup(value);
        if (!copy)
            copied = false;
        else if (!p->env_proxy && *copy)
            p->env_proxy = copy;
        explicit_bzero(value, strlen(value));
        (void)unsetenv(options_environment[i]);
    }
    return copied ? true : fail(p, "out of memory");
}

static void free_secret(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

/* Only `run` hands an environment on. */
static void forget_secrets(struct parse *p)
{
    for (int i = 0; p->secrets && i < p->argc; i++)
        free_secret(p->secrets[i]);
    free(p->secrets);
    if (p->out->command != COMMAND_RUN)
        proxy_variables_forget(p->out);
}

/*
 * `text` points into argv[i]: the same as the user wrote it. Only what becomes a secret field is
 * read through this; all else, messages above all, sees what was overwritten.
 */
static const char *unhidden(const struct parse *p, int i, const char *text)
{
    return p->secrets[i] ? p->secrets[i] + (text - p->argv[i]) : text;
}

/* --- values ----------------------------------------------------------------------------------- */

static void *field_of(struct parse *p, const struct option_spec *spec)
{
    return (char *)p->out + spec->offset;
}

static bool parse_number(struct parse *p, const struct option_spec *spec, const char *value)
{
    bool hex = strncasecmp(value, "0x", 2) == 0;
    const char *digits = hex ? value + 2 : value;
    size_t digit_count = strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789");
    errno = 0;
    unsigned long long n = strtoull(digits, NULL, hex ? 16 : 10);
    bool is_number = digit_count > 0 && digits[digit_count] == '\0' && errno == 0;
    if (!is_number || n < spec->min || n > spec->max)
        return fail(p, "--%s %s: must be a number from %llu to %llu", spec->name, value,
                    (unsigned long long)spec->min, (unsigned long long)spec->max);
    uint32_t stored = (uint32_t)n * (spec->scale ? spec->scale : 1);
    memcpy(field_of(p, spec), &stored, sizeof(stored));
    return true;
}

static bool parse_workers(struct parse *p, const struct option_spec *spec, const char *value)
{
    if (strcmp(value, "auto") != 0)
        return parse_number(p, spec, value);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = cores < 1 ? 1 : (unsigned)cores;
    if (count > spec->max)
        count = (unsigned)spec->max;
    memcpy(field_of(p, spec), &count, sizeof(count));
    return true;
}

static bool parse_switch(struct parse *p, const struct option_spec *spec, const char *value)
{
    bool on = strcmp(value, "on") == 0;
    if (!on && strcmp(value, "off") != 0)
        return fail(p, "--%s %s: must be on or off", spec->name, value);
    memcpy(field_of(p, spec), &on, sizeof(on));
    return true;
}

static bool parse_choice(struct parse *p, const struct option_spec *spec, const char *value)
{
    for (unsigned i = 0; spec->choices[i]; i++) {
        if (strcmp(spec->choices[i], value) != 0)
            continue;
        memcpy(field_of(p, spec), &i, sizeof(i));
        return true;
    }
    return fail(p, "--%s %s: must be one of %s", spec->name, value, spec->argument);
}

/* What the kernel takes as an interface name (net/core/dev.c, dev_valid_name()). */
static bool parse_link(struct parse *p, const struct option_spec *spec, const char *value)
{
    size_t len = strlen(value);
    bool valid = len > 0 && len < LINK_NAME_SIZE && strcmp(value, ".") != 0 &&
                 strcmp(value, "..") != 0 && !strpbrk(value, "/:% \t\n\v\f\r");
    if (!valid)
        return fail(p,
                    "--%s %s: an interface name has 1 to %d characters, none of them a space, "
                    "'/', ':' or '%%'",
                    spec->name, value, LINK_NAME_SIZE - 1);
    memcpy(field_of(p, spec), value, len + 1);
    return true;
}

static bool parse_path(struct parse *p, const struct option_spec *spec, const char *value)
{
    if (*value == '\0')
        return fail(p, "--%s: the file name is empty", spec->name);
    memcpy(field_of(p, spec), &value, sizeof(value));
    return true;
}

static bool parse_cidr(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct cidr_list *list = field_of(p, spec);
    struct cidr range;
    if (!strchr(value, '/') || !cidr_parse(value, &range))
        return fail(p, "--%s %s: must be an address with a prefix length, such as 198.18.0.1/15",
                    spec->name, value);
    if (list->count == OPTIONS_LIST_MAX)
        return fail(p, "--%s: at most %d may be given", spec->name, OPTIONS_LIST_MAX);
    list->items[list->count++] = range;
    return true;
}

static bool parse_endpoint(struct parse *p, const struct option_spec *spec, const char *value,
                           struct endpoint *out)
{
    if (endpoint_parse(value, spec->port, out))
        return true;
    return fail(p, "--%s %s: must be a numeric address, with or without a port, such as %s",
                spec->name, value, spec->fallback);
}

static bool parse_endpoints(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct endpoint_list *list = field_of(p, spec);
    struct endpoint endpoint;
    if (!parse_endpoint(p, spec, value, &endpoint))
        return false;
    if (list->count == OPTIONS_LIST_MAX)
        return fail(p, "--%s: at most %d may be given", spec->name, OPTIONS_LIST_MAX);
    list->items[list->count++] = endpoint;
    return true;
}

static bool parse_host(struct parse *p, const struct option_spec *spec, const char *value,
                       struct host_port *out)
{
    if (host_port_parse(value, spec->port, out))
        return true;
    return fail(p, "--%s %.60s: must be a host, with or without a port, such as %.*s", spec->name,
                value, (int)strcspn(spec->fallback, " "), spec->fallback);
}

static bool parse_hosts(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct host_port_list *list = field_of(p, spec);
    if (list->count == OPTIONS_LIST_MAX)
        return fail(p, "--%s: at most %d may be given", spec->name, OPTIONS_LIST_MAX);
    return parse_host(p, spec, value, &list->items[list->count]) && ++list->count > 0;
}

static bool parse_uid(const char *text, uint32_t *out)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 10 || text[digits] != '\0')
        return false;
    unsigned long long n = strtoull(text, NULL, 10);
    *out = (uint32_t)n;
    return n < UINT32_MAX; /* the last one means "none" */
}

/* A user's name may hold a dash; a range of numbers is no name. */
static bool parse_uid_range(const char *value, struct uid_range *out)
{
    char first[16];
    size_t len = strcspn(value, "-");
    if (parse_uid(value, &out->first)) {
        out->last = out->first;
        return true;
    }
    if (len < sizeof(first) && value[len] == '-') {
        memcpy(first, value, len);
        first[len] = '\0';
        if (parse_uid(first, &out->first) && parse_uid(value + len + 1, &out->last))
            return out->first <= out->last;
    }
    const struct passwd *user = getpwnam(value);
    if (!user)
        return false;
    out->first = out->last = user->pw_uid;
    return true;
}

static bool parse_uids(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct uid_list *list = field_of(p, spec);
    struct uid_range range;
    if (!parse_uid_range(value, &range))
        return fail(p,
                    "--%s %.60s: must be a user of this machine, a user id or a range of them, "
                    "such as 1000-1999",
                    spec->name, value);
    if (list->count == OPTIONS_LIST_MAX)
        return fail(p, "--%s: at most %d may be given", spec->name, OPTIONS_LIST_MAX);
    list->items[list->count++] = range;
    return true;
}

static bool parse_paths(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct path_list *list = field_of(p, spec);
    if (*value == '\0')
        return fail(p, "--%s: the path is empty", spec->name);
    if (list->count == OPTIONS_LIST_MAX)
        return fail(p, "--%s: at most %d may be given", spec->name, OPTIONS_LIST_MAX);
    list->items[list->count++] = value;
    return true;
}

/* The value is a secret: no message quotes it. */
static bool parse_credentials(struct parse *p, const struct option_spec *spec, const char *value)
{
    struct auth_option *auth = field_of(p, spec);
    const char *colon = strchr(value, ':');
    if (!colon)
        return fail(p, "--%s: must be USER:PASSWORD", spec->name);
    size_t user_len = (size_t)(colon - value);
    size_t password_len = strlen(colon + 1);
    if (user_len == 0 || user_len >= sizeof(auth->user) || password_len >= sizeof(auth->password))
        return fail(p,
                    "--%s: the user must have 1 to 255 bytes, the password at most 255 (RFC 1929)",
                    spec->name);
    memcpy(auth->user, value, user_len);
    auth->user[user_len] = '\0';
    memcpy(auth->password, colon + 1, password_len + 1);
    auth->present = true;
    return true;
}

static bool parse_value(struct parse *p, const struct option_spec *spec, const char *value)
{
    switch (spec->kind) {
    case OPTION_NUMBER:
        return parse_number(p, spec, value);
    case OPTION_WORKERS:
        return parse_workers(p, spec, value);
    case OPTION_SWITCH:
    case OPTION_FLAG:
        return parse_switch(p, spec, value);
    case OPTION_CHOICE:
        return parse_choice(p, spec, value);
    case OPTION_LINK:
        return parse_link(p, spec, value);
    case OPTION_PATH:
        return parse_path(p, spec, value);
    case OPTION_CIDR:
        return parse_cidr(p, spec, value);
    case OPTION_ENDPOINT:
        return parse_endpoint(p, spec, value, field_of(p, spec));
    case OPTION_ENDPOINTS:
        return parse_endpoints(p, spec, value);
    case OPTION_HOST:
        return parse_host(p, spec, value, field_of(p, spec));
    case OPTION_HOSTS:
        return parse_hosts(p, spec, value);
    case OPTION_UIDS:
        return parse_uids(p, spec, value);
    case OPTION_PATHS:
        return parse_paths(p, spec, value);
    case OPTION_CREDENTIALS:
        return parse_credentials(p, spec, value);
    }
    return fail(p, "--%s cannot be read", spec->name); /* no such kind */
}

/* --- options ---------------------------------------------------------------------------------- */

static const struct option_spec *find_option(const char *name, size_t len)
{
    for (size_t i = 0; i < option_count; i++) {
        if (strlen(option_table[i].name) == len && memcmp(option_table[i].name, name, len) == 0)
            return &option_table[i];
    }
    return NULL;
}

static uint64_t given_bit(const struct option_spec *spec)
{
    return UINT64_C(1) << (spec - option_table);
}

bool options_given(const struct options *o, const char *name)
{
    const struct option_spec *spec = find_option(name, strlen(name));
    assert(spec);
    return (o->given & given_bit(spec)) != 0;
}

static unsigned command_bit(const struct parse *p)
{
    return 1u << p->command->command;
}

/* An option that exists, but not for this command or not at all. */
static bool fail_unknown(struct parse *p, const char *name, size_t len)
{
    return fail(p, "%s has no option --%.*s; see culvert %s --help", p->command->name,
                (int)(len > 60 ? 60 : len), name, p->command->name);
}

/* May `text` be what follows a bare switch, rather than the switch's value? */
static bool follows_bare_switch(const char *text)
{
    return text[0] == '-' || strstr(text, "://");
}

/* The value of an option: behind '=', or the next argument where the kind demands one. */
static const char *option_value(struct parse *p, const struct option_spec *spec, const char *equals)
{
    if (equals)
        return equals + 1;
    const char *next = p->at < p->argc ? p->argv[p->at] : NULL;
    if (spec->kind == OPTION_SWITCH && (!next || follows_bare_switch(next)))
        return "on";
    if (next)
        p->at++;
    return next;
}

/* `text` is an argument that begins with "--"; what follows belongs to it where it takes a value.
 */
static bool read_option(struct parse *p, const char *text)
{
    const char *name = text + 2;
    const char *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const struct option_spec *spec = find_option(name, len);
    bool negated = false;
    if (!spec && len > 3 && memcmp(name, "no-", 3) == 0) {
        spec = find_option(name + 3, len - 3);
        negated = spec && spec->kind == OPTION_SWITCH;
        spec = negated ? spec : NULL;
    }
    if (!spec || !(spec->commands & command_bit(p)))
        return fail_unknown(p, name, len);
    if ((negated || spec->kind == OPTION_FLAG) && equals)
        return fail(p, "--%.*s takes no value", (int)len, name);

    p->out->given |= given_bit(spec);
    if (negated)
        return parse_value(p, spec, "off");
    if (spec->kind == OPTION_FLAG)
        return parse_value(p, spec, "on");
    const char *value = option_value(p, spec, equals);
    if (!value)
        return fail(p, "--%s wants a value: %s", spec->name, spec->argument);
    if (spec->kind == OPTION_CREDENTIALS)
        value = unhidden(p, p->at - 1, value);
    return parse_value(p, spec, value);
}

/* Defaults are words that go through the options' own parsers: they cannot fail. */
static bool apply_default(struct parse *p, const struct option_spec *spec)
{
    char words[128];
    (void)snprintf(words, sizeof(words), "%s", spec->fallback);
    char *rest = NULL;
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        if (!parse_value(p, spec, word))
            return false;
    }
    return true;
}

static bool apply_defaults(struct parse *p)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option_spec *spec = &option_table[i];
        if (spec->fallback && !(p->out->given & given_bit(spec)) && !apply_default(p, spec))
            return false;
    }
    if (p->out->fake_ranges.count == 0)
        p->out->fake_ranges = p->out->addresses;
    return true;
}

/* --- the command line ------------------------------------------------------------------------- */

static const struct command_spec *find_command(const char *name)
{
    for (size_t i = 0; i < command_count; i++) {
        if (strcmp(command_table[i].name, name) == 0)
            return &command_table[i];
    }
    return NULL;
}

static bool is_help(const char *text)
{
    return strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0;
}

/* The first argument: a command, or what stands before any. */
static enum options_verdict read_command(struct parse *p)
{
    if (p->argc < 2) {
        (void)fail(p, "no command given; see culvert --help");
        return OPTIONS_BAD;
    }
    const char *first = p->argv[p->at++];
    if (is_help(first))
        return OPTIONS_HELP;
    if (strcmp(first, "--version") == 0)
        return OPTIONS_VERSION;
    p->command = find_command(first);
    if (p->command) {
        p->out->command = p->command->command;
        return OPTIONS_RUN;
    }
    if (strstr(first, "://") && first[0] != '-') { /* culvert PROXY_URL is culvert up PROXY_URL */
        p->at--;
        p->command = find_command("up");
        p->out->command = p->command->command;
        return OPTIONS_RUN;
    }
    if (first[0] == '-')
        (void)fail(p, "a command must come before %.60s; see culvert --help", first);
    else
        (void)fail(p, "unknown command %.60s; see culvert --help", first);
    return OPTIONS_BAD;
}

/* An argument that is no option. It may be anything, also a secret: it is not quoted. */
static bool read_positional(struct parse *p, const char *text)
{
    if (p->command->command == COMMAND_RUN && p->proxy_text)
        return fail(p, "run wants -- between PROXY_URL and the command; argument %d is neither",
                    p->at - 1);
    if (!p->command->wants_proxy)
        return fail(p, "%s takes options only, argument %d is none; see culvert %s --help",
                    p->command->name, p->at - 1, p->command->name);
    if (p->proxy_text)
        return fail(p, "%s takes one PROXY_URL, argument %d is one too many", p->command->name,
                    p->at - 1);
    p->proxy_text = unhidden(p, p->at - 1, text);
    return true;
}

/* The arguments behind the command. OPTIONS_RUN: all were read. */
static enum options_verdict read_arguments(struct parse *p)
{
    bool options_end = false;
    while (p->at < p->argc) {
        const char *text = p->argv[p->at++];
        bool read;
        if (!options_end && is_help(text))
            return OPTIONS_HELP;
        if (!options_end && strcmp(text, "--") == 0) {
            if (p->command->command == COMMAND_RUN)
                break;
            options_end = true;
            continue;
        }
        if (!options_end && strncmp(text, "--", 2) == 0)
            read = read_option(p, text);
        else if (!options_end && text[0] == '-')
            read = fail_unknown(p, text + 1, strlen(text) - 1);
        else
            read = read_positional(p, text);
        if (!read)
            return OPTIONS_BAD;
    }
    return OPTIONS_RUN;
}

/* What `run` is to run: everything behind "--". */
static bool read_run(struct parse *p)
{
    struct run_options *run = &p->out->run;
    if (p->at < p->argc)
        run->argv = p->argv + p->at;
    int what = (run->argv != NULL) + (run->netns != NULL) + (run->pid != 0);
    if (what > 1)
        return fail(p, "run takes one of a command, --netns and --pid");
    if (what == 0)
        return fail(p, "run wants a command behind --, as in culvert run PROXY_URL -- curl URL");
    return true;
}

static bool check_targets(struct parse *p)
{
    const struct check_options *c = &p->out->check;
    if (!addr_is_v4(&c->v4.addr) || c->v4.port == 0)
        return fail(p, "--target-v4: must be an IPv4 address, with a port where it is not 80");
    if (addr_is_v4(&c->v6.addr) || c->v6.port == 0)
        return fail(p, "--target-v6: must be an IPv6 address, with a port where it is not 80");
    return true;
}

static bool read_proxy(struct parse *p)
{
    const char *where = p->proxy_text ? "PROXY_URL" : "ALL_PROXY";
    const char *text = p->proxy_text ? p->proxy_text : p->env_proxy;
    if (!text)
        return fail(p,
                    "%s wants a PROXY_URL, such as socks5://127.0.0.1:1080, or ALL_PROXY in the "
                    "environment",
                    p->command->name);
    const char *wrong = proxy_url_parse(text, &p->out->proxy);
    return wrong ? fail(p, "%s: %s", where, wrong) : true;
}

static enum options_verdict read_everything(struct parse *p)
{
    bool hidden = hide_arguments(p);
    if (!hide_environment(p) || !hidden)
        return OPTIONS_BAD;
    enum options_verdict verdict = read_command(p);
    if (verdict != OPTIONS_RUN)
        return verdict;
    verdict = read_arguments(p);
    if (verdict != OPTIONS_RUN)
        return verdict;
    if (!apply_defaults(p))
        return OPTIONS_BAD;
    if (p->command->command == COMMAND_RUN && !read_run(p))
        return OPTIONS_BAD;
    if (p->command->command == COMMAND_CHECK && !check_targets(p))
        return OPTIONS_BAD;
    if (p->command->wants_proxy && !read_proxy(p))
        return OPTIONS_BAD;
    return OPTIONS_RUN;
}

enum options_verdict options_parse(int argc, char **argv, struct options *out,
                                   char error[OPTIONS_ERROR_MAX])
{
    memset(out, 0, sizeof(*out));
    out->tun_fd = -1;
    out->secrets_fd = -1;
    error[0] = '\0';
    struct parse p = {.argc = argc, .argv = argv, .at = 1, .out = out, .error = error};
    enum options_verdict verdict = read_everything(&p);
    forget_secrets(&p);
    if (verdict != OPTIONS_RUN)
        options_wipe(out);
    return verdict;
}

void options_wipe(struct options *o)
{
    proxy_url_wipe(&o->proxy);
    explicit_bzero(&o->auth, sizeof(o->auth));
    proxy_variables_forget(o);
}
