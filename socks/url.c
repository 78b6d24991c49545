/*
 * Theory of operation
 *
 *   socks5://USER:PASSWORD@HOST:PORT/
 *   `scheme' `- userinfo -'`- host -' port
 *
 * RFC 3986, 3 with what a command line needs: the scheme's case is ignored, the last `@` ends
 * the userinfo (so that a password with a bare `@` works), and a lone `/` may follow. What comes
 * before that `@` never reaches an error text. A host that looks like a number but is none is
 * refused here rather than asked of a name server.
 */
#include "socks/url.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { DEFAULT_PORT = 1080, NAME_MAX_BYTES = 253, LABEL_MAX_BYTES = 63 };

/* A piece of the text that is being parsed; not terminated. */
struct span {
    const char *at;
    size_t len;
};

static const char *parse_scheme(struct span *text, struct proxy_url *out)
{
    static const struct {
        const char *prefix;
        enum proxy_scheme scheme;
    } schemes[] = {
        {"socks5://", PROXY_SCHEME_SOCKS5},
        {"socks5h://", PROXY_SCHEME_SOCKS5},
        {"direct://", PROXY_SCHEME_DIRECT},
    };

    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        size_t len = strlen(schemes[i].prefix);
        if (strncasecmp(text->at, schemes[i].prefix, len) != 0)
            continue;
        out->scheme = schemes[i].scheme;
        *text = (struct span){text->at + len, text->len - len};
        return NULL;
    }
    return "a proxy URL starts with socks5://, socks5h:// or direct://";
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decode into `out`, 256 bytes. `too_long` is the sentence for more than 255. */
static const char *decode(struct span from, char out[256], const char *too_long)
{
    size_t len = 0;

    for (size_t i = 0; i < from.len; i++) {
        char c = from.at[i];
        if (c == '%') {
            bool cut = from.len - i <= 2;
            int high = cut ? -1 : hex_digit(from.at[i + 1]);
            int low = cut ? -1 : hex_digit(from.at[i + 2]);
            if (high < 0 || low < 0)
                return "% in the user or password is followed by two hexadecimal digits (%25 is % "
                       "itself)";
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0')
            return "the user and password cannot contain %00";
        if (len == 255)
            return too_long;
        out[len++] = c;
    }
    out[len] = '\0';
    return NULL;
}

/* Takes "USER[:PASSWORD]@" off the front of `text`. */
static const char *parse_userinfo(struct span *text, struct proxy_url *out)
{
    const char *at_sign = memrchr(text->at, '@', text->len);
    if (!at_sign)
        return NULL;
    struct span user = {text->at, (size_t)(at_sign - text->at)};
    *text = (struct span){at_sign + 1, text->len - user.len - 1};
    for (size_t i = 0; i < user.len; i++)
        if (strchr("/?#", user.at[i]))
            return "a / ? or # in the user or password is written %2F, %3F or %23";

    struct span password = {user.at + user.len, 0};
    const char *colon = memchr(user.at, ':', user.len);
    if (colon) {
        password = (struct span){colon + 1, (size_t)(at_sign - colon - 1)};
        user.len = (size_t)(colon - user.at);
    }
    if (user.len == 0)
        return "the user name before @ is empty";
    out->has_credentials = true;
    const char *error = decode(user, out->user, "the user name is longer than 255 bytes");
    return error ? error : decode(password, out->password, "the password is longer than 255 bytes");
}

static const char *parse_port(struct span text, struct proxy_url *out)
{
    unsigned port = 0;

    if (text.len == 0)
        return "the port after : is empty";
    for (size_t i = 0; i < text.len; i++) {
        if (text.at[i] < '0' || text.at[i] > '9')
            return "the port is a number from 1 to 65535";
        port = port * 10 + (unsigned)(text.at[i] - '0');
        if (port > 65535)
            return "the port is a number from 1 to 65535";
    }
    if (port == 0)
        return "the port is a number from 1 to 65535";
    out->port = (uint16_t)port;
    return NULL;
}

/* RFC 1123, 2.1, and the underscore that is found in the wild. */
static bool is_host_name(const char *name)
{
    size_t label = 0, len = strlen(name);

    if (len > 0 && name[len - 1] == '.')
        len--;
    if (len == 0 || len > NAME_MAX_BYTES)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c == '.') {
            if (label == 0)
                return false;
            label = 0;
        } else if (c >= 0x80 || !(isalnum(c) || c == '-' || c == '_') ||
                   ++label > LABEL_MAX_BYTES) {
            return false;
        }
    }
    return label > 0;
}

/* No top-level domain is a number (RFC 1123, 2.1): such a text was meant to be an address. */
static bool ends_in_number(const char *name)
{
    const char *last = strrchr(name, '.');
    last = last ? last + 1 : name;
    return *last != '\0' && strspn(last, "0123456789") == strlen(last);
}

static const char *parse_host(struct span text, bool bracketed, struct proxy_url *out)
{
    if (text.len == 0)
        return "the proxy's host is missing";
    if (text.len >= sizeof out->host)
        return "the proxy's host name is too long";
    memcpy(out->host, text.at, text.len);
    out->host[text.len] = '\0';
    if (strlen(out->host) != text.len)
        return "the proxy's host contains a NUL";

    out->host_is_addr = addr_parse(out->host, &out->addr);
    bool has_colon = strchr(out->host, ':') != NULL;
    if (bracketed)
        return out->host_is_addr && has_colon ? NULL
                                              : "what stands in [ ] is not an IPv6 address "
                                                "(zones such as %eth0 are not taken)";
    if (has_colon)
        return "an IPv6 address is written in brackets, as in [2001:db8::1]:1080";
    if (out->host_is_addr)
        return NULL;
    if (ends_in_number(out->host))
        return "the proxy's host is not an IPv4 address of four numbers from 0 to 255";
    if (!is_host_name(out->host))
        return "the proxy's host is not a host name (letters, digits, - and dots; others as xn--)";
    return NULL;
}

/* HOST[:PORT], with nothing but a / behind it. */
static const char *parse_authority(struct span text, struct proxy_url *out)
{
    if (text.len > 0 && text.at[text.len - 1] == '/')
        text.len--;
    for (size_t i = 0; i < text.len; i++)
        if (strchr("/?#", text.at[i]))
            return "a proxy URL ends with the port";

    struct span host = text;
    bool bracketed = text.len > 0 && text.at[0] == '[';
    const char *behind; /* the colon of the port, or the end */
    if (bracketed) {
        const char *close = memchr(text.at, ']', text.len);
        if (!close)
            return "the ] after the IPv6 address is missing";
        host = (struct span){text.at + 1, (size_t)(close - text.at - 1)};
        behind = close + 1;
    } else {
        behind = memrchr(text.at, ':', text.len);
        if (!behind)
            behind = text.at + text.len;
        host.len = (size_t)(behind - text.at);
    }

    struct span port = {behind, text.len - (size_t)(behind - text.at)};
    const char *error = parse_host(host, bracketed, out);
    if (error)
        return error;
    if (port.len == 0)
        return NULL;
    if (port.at[0] != ':')
        return "only :PORT may follow the ] of an IPv6 address";
    return parse_port((struct span){port.at + 1, port.len - 1}, out);
}

static const char *parse(const char *text, struct proxy_url *out)
{
    struct span rest = {text, strlen(text)};

    const char *error = parse_scheme(&rest, out);
    if (error)
        return error;
    if (out->scheme == PROXY_SCHEME_DIRECT) {
        bool bare = rest.len == 0 || (rest.len == 1 && rest.at[0] == '/');
        return bare ? NULL : "direct:// takes neither host nor credentials";
    }
    out->port = DEFAULT_PORT;
    error = parse_userinfo(&rest, out);
    return error ? error : parse_authority(rest, out);
}

const char *proxy_url_parse(const char *text, struct proxy_url *out)
{
    memset(out, 0, sizeof *out);
    const char *error = parse(text, out);
    if (error)
        explicit_bzero(out, sizeof *out);
    return error;
}

/* The user as it was written, for a terminal: what a URL does not carry bare is %XX again. */
static void encode_user(const char *user, char out[3 * 255 + 1])
{
    for (; *user; user++) {
        unsigned char c = (unsigned char)*user;
        if (c < 0x80 && (isalnum(c) || strchr("-._~", c)))
            *out++ = (char)c;
        else
            out += sprintf(out, "%%%02X", c);
    }
    *out = '\0';
}

char *proxy_url_format(const struct proxy_url *url, char *buf, size_t cap)
{
    char user[3 * 255 + 1];
    bool v6 = strchr(url->host, ':') != NULL;

    if (url->scheme == PROXY_SCHEME_DIRECT) {
        snprintf(buf, cap, "direct://");
        return buf;
    }
    encode_user(url->user, user);
    snprintf(buf, cap, "socks5://%s%s%s%s%s:%u", user, url->has_credentials ? "@" : "",
             v6 ? "[" : "", url->host, v6 ? "]" : "", url->port);
    return buf;
}

void proxy_url_wipe(struct proxy_url *url)
{
    explicit_bzero(url->user, sizeof url->user);
    explicit_bzero(url->password, sizeof url->password);
    url->has_credentials = false;
}
