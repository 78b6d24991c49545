/*
 * PROXY_URL: socks5://[USER[:PASSWORD]@]HOST[:PORT], socks5h:// (the same) or direct://.
 */
#ifndef CULVERT_SOCKS_URL_H
#define CULVERT_SOCKS_URL_H

#include "core/base/addr.h"

enum proxy_scheme { PROXY_SCHEME_SOCKS5, PROXY_SCHEME_DIRECT };

struct proxy_url {
    enum proxy_scheme scheme;
    char host[256];   /* as given, without brackets; empty for direct:// */
    struct addr addr; /* valid when host_is_addr */
    bool host_is_addr;
    uint16_t port; /* host byte order; 1080 where left out */
    bool has_credentials;
    char user[256]; /* percent-decoded, 1..255 bytes (RFC 1929), NUL-terminated; no NUL inside */
    char password[256]; /* 0..255 bytes */
};

/*
 * Parse `text`. Returns NULL, or a sentence for the user (static storage, never quoting the
 * password) saying what is wrong, in which case `out` is wiped.
 */
const char *proxy_url_parse(const char *text, struct proxy_url *out);
/* "socks5://user@host:port", never the password. Returns `buf`, truncated to `cap` bytes. */
char *proxy_url_format(const struct proxy_url *url, char *buf, size_t cap);
/* Overwrite the credentials so that no copy of them is left: the structure has none then. */
void proxy_url_wipe(struct proxy_url *url);

#endif
