/* Any text as a PROXY_URL: what is accepted keeps the contract, and means the same once formatted.
 */
#include "socks/url.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

static void check_accepted(const struct proxy_url *url)
{
    char text[2048];
    struct proxy_url again;

    proxy_url_format(url, text, sizeof text);
    if (url->scheme == PROXY_SCHEME_DIRECT) {
        FUZZ_CHECK(url->host[0] == '\0' && !url->has_credentials);
        return;
    }
    FUZZ_CHECK(url->host[0] != '\0' && url->port > 0);
    FUZZ_CHECK(url->has_credentials == (url->user[0] != '\0'));
    FUZZ_CHECK(proxy_url_parse(text, &again) == NULL);
    FUZZ_CHECK(strcmp(again.host, url->host) == 0 && again.port == url->port);
    FUZZ_CHECK(strcmp(again.user, url->user) == 0 && again.password[0] == '\0');
    FUZZ_CHECK(again.host_is_addr == url->host_is_addr);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct proxy_url wiped;
    struct proxy_url url;
    char *text = malloc(size + 1);

    if (!text)
        return 0;
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    const char *error = proxy_url_parse(text, &url);
    if (error)
        /* All of it, padding included. */
        // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison,cert-exp42-c,cert-flp37-c)
        FUZZ_CHECK(error[0] != '\0' && memcmp(&url, &wiped, sizeof url) == 0);
    else
        check_accepted(&url);
    proxy_url_wipe(&url);
    free(text);
    return 0;
}
