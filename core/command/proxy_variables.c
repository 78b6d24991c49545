#include "core/command/proxy_variables.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool same_proxy(const char *text, const struct proxy_url *used)
{
    struct proxy_url other;
    if (proxy_url_parse(text, &other) != NULL)
        return false;
    bool same = other.port == used->port && other.scheme == used->scheme &&
                strcasecmp(other.host, used->host) == 0;
    proxy_url_wipe(&other);
    return same;
}

static void forget(char **kept)
{
    if (*kept)
        explicit_bzero(*kept, strlen(*kept));
    free(*kept);
    *kept = NULL;
}

void proxy_variables_hide(struct options *o)
{
    static const char *const others[] = {"http_proxy",  "HTTP_PROXY",  "https_proxy", "HTTPS_PROXY",
                                         "socks_proxy", "SOCKS_PROXY", "ftp_proxy",   "FTP_PROXY"};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        char *value = getenv(others[i]);
        if (!value || !same_proxy(value, &o->proxy))
            continue;
        explicit_bzero(value, strlen(value));
        (void)unsetenv(others[i]);
    }
    for (size_t i = 0; i < 2; i++) {
        if (o->run.environment[i] && same_proxy(o->run.environment[i], &o->proxy))
            forget(&o->run.environment[i]);
    }
}

void proxy_variables_restore(const struct options *o)
{
    for (size_t i = 0; i < 2; i++) {
        if (o->run.environment[i])
            (void)setenv(options_environment[i], o->run.environment[i], 1);
    }
}

void proxy_variables_forget(struct options *o)
{
    for (size_t i = 0; i < 2; i++)
        forget(&o->run.environment[i]);
}
