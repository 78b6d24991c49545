/*
 * Any command line, an argument a line; with the first byte odd, the last line is ALL_PROXY
 * instead. What is accepted keeps the contract of core/command/options.h; what is refused says why
 * in one line and leaves no secret.
 */
#include "core/command/options.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

enum { ARGUMENTS_MAX = 64 };

struct line {
    char *text;
    char *argv[ARGUMENTS_MAX + 2];
    int argc;
    const char *environment;
};

/* In a block of its own, as the fuzzer's bytes are. */
static struct line read_line(const uint8_t *data, size_t size)
{
    static char name[] = "culvert";
    struct line l = {.text = malloc(size + 1), .argv = {name}, .argc = 1};
    FUZZ_CHECK(l.text);
    if (size > 1)
        memcpy(l.text, data + 1, size - 1);
    l.text[size > 0 ? size - 1 : 0] = '\0';
    char *rest = NULL;
    for (char *at = strtok_r(l.text, "\n", &rest); at && l.argc <= ARGUMENTS_MAX;
         at = strtok_r(NULL, "\n", &rest))
        l.argv[l.argc++] = at;
    if (size > 0 && (data[0] & 1) && l.argc > 1) {
        l.environment = l.argv[--l.argc];
        l.argv[l.argc] = NULL;
    }
    return l;
}

static void check_lists(const struct options *o)
{
    FUZZ_CHECK(o->addresses.count <= OPTIONS_LIST_MAX && o->listens.count <= OPTIONS_LIST_MAX);
    FUZZ_CHECK(o->fake_ranges.count <= OPTIONS_LIST_MAX && o->up.bypass.count <= OPTIONS_LIST_MAX);
    FUZZ_CHECK(o->check.stun.count <= OPTIONS_LIST_MAX);
    const struct uid_list *users[] = {&o->up.include_uids, &o->up.exclude_uids};
    for (size_t i = 0; i < 2; i++) {
        FUZZ_CHECK(users[i]->count <= OPTIONS_LIST_MAX);
        for (size_t j = 0; j < users[i]->count; j++)
            FUZZ_CHECK(users[i]->items[j].first <= users[i]->items[j].last);
    }
}

static void check_run(const struct options *o)
{
    FUZZ_CHECK(o->command != COMMAND_NONE && o->log_level <= LOG_LEVEL_TRACE);
    FUZZ_CHECK(memchr(o->tun_name, 0, sizeof o->tun_name));
    FUZZ_CHECK(memchr(o->outbound.bind_interface, 0, sizeof o->outbound.bind_interface));
    check_lists(o);
    if (o->command == COMMAND_SERVE) {
        FUZZ_CHECK(o->listens.count > 0);
        FUZZ_CHECK(!o->auth.present || o->auth.user[0] != '\0');
    }
    if (o->command == COMMAND_TUN || o->command == COMMAND_UP) {
        FUZZ_CHECK(o->mtu >= 1280 && o->mtu <= 65535);
        FUZZ_CHECK(o->workers >= 1 && o->workers <= WORKERS_MAX);
        FUZZ_CHECK(o->limits.max_flows > 0 && o->addresses.count > 0 && o->fake_ranges.count > 0);
        FUZZ_CHECK(o->proxy.scheme == PROXY_SCHEME_DIRECT || o->proxy.host[0] != '\0');
    }
}

static bool is_wiped(const void *at, size_t size)
{
    const uint8_t *bytes = at;
    while (size > 0 && bytes[size - 1] == 0)
        size--;
    return size == 0;
}

static enum options_verdict parse(const uint8_t *data, size_t size, char error[OPTIONS_ERROR_MAX])
{
    static struct options options;
    struct line l = read_line(data, size);
    if (l.environment)
        setenv("ALL_PROXY", l.environment, 1);
    enum options_verdict verdict = options_parse(l.argc, l.argv, &options, error);
    FUZZ_CHECK(!getenv("ALL_PROXY"));
    FUZZ_CHECK((verdict == OPTIONS_BAD) == (error[0] != '\0'));
    FUZZ_CHECK(strnlen(error, OPTIONS_ERROR_MAX) < OPTIONS_ERROR_MAX && !strchr(error, '\n'));
    if (verdict == OPTIONS_RUN)
        check_run(&options);
    options_wipe(&options);
    FUZZ_CHECK(is_wiped(options.proxy.password, sizeof options.proxy.password));
    FUZZ_CHECK(is_wiped(&options.auth, sizeof options.auth));
    free(l.text);
    return verdict;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char once[OPTIONS_ERROR_MAX], again[OPTIONS_ERROR_MAX];
    enum options_verdict verdict = parse(data, size, once);
    FUZZ_CHECK(parse(data, size, again) == verdict);
    FUZZ_CHECK(strcmp(once, again) == 0);
    return 0;
}
