/*
 * The client's half of SOCKS5 (RFC 1928, RFC 1929) as a machine without sockets and clocks:
 * bytes in, bytes out, one verdict.
 *
 *   GREETING --method 0--> REQUEST --reply 0--> DONE
 *      |                      ^   `--reply N / nonsense--> FAILED
 *      `--method 2--> AUTH --ok'
 *
 * Pipelined, greeting, credentials and request go out in one piece and the answers are matched
 * afterwards. That presumes which method the proxy picks: with credentials only method 2 is
 * offered, without only method 0.
 */
#ifndef CULVERT_SOCKS_CLIENT_H
#define CULVERT_SOCKS_CLIENT_H

#include "socks/target.h"

enum socks5_command { SOCKS5_CONNECT = 1, SOCKS5_UDP_ASSOCIATE = 3 };

/* RFC 1928, 6: the REP field. */
enum socks5_reply {
    SOCKS5_REPLY_SUCCEEDED = 0,
    SOCKS5_REPLY_GENERAL_FAILURE = 1,
    SOCKS5_REPLY_NOT_ALLOWED = 2,
    SOCKS5_REPLY_NETWORK_UNREACHABLE = 3,
    SOCKS5_REPLY_HOST_UNREACHABLE = 4,
    SOCKS5_REPLY_REFUSED = 5,
    SOCKS5_REPLY_TTL_EXPIRED = 6,
    SOCKS5_REPLY_COMMAND_NOT_SUPPORTED = 7,
    SOCKS5_REPLY_ADDRESS_NOT_SUPPORTED = 8,
};
/* "refused" and so on; "unknown reply" for codes that RFC 1928 does not assign. */
const char *socks5_reply_name(uint8_t reply);

enum socks5_client_state {
    SOCKS5_CLIENT_GREETING, /* sent: methods; awaited: the choice */
    SOCKS5_CLIENT_AUTH,     /* sent: credentials; awaited: their verdict */
    SOCKS5_CLIENT_REQUEST,  /* sent: the request; awaited: the reply */
    SOCKS5_CLIENT_DONE,
    SOCKS5_CLIENT_FAILED,
};

enum socks5_failure {
    SOCKS5_FAILURE_NONE,
    SOCKS5_FAILURE_METHOD, /* 0xff, or a method that was not offered */
    SOCKS5_FAILURE_AUTH,   /* credentials rejected */
    SOCKS5_FAILURE_REPLY,  /* a reply other than 0; see `reply` */
    SOCKS5_FAILURE_BAD,    /* not SOCKS5: wrong version, unknown address type, ... */
};

/* user: 1..255 bytes, password: 0..255, NUL-terminated, owned by the caller for the machine's life.
 */
struct socks5_credentials {
    const char *user;
    const char *password;
};

enum { SOCKS5_CLIENT_OUT_MAX = 4 + 513 + 262, SOCKS5_REPLY_MAX = 262 };

struct socks5_client {
    enum socks5_client_state state;
    enum socks5_failure failure;
    uint8_t reply;      /* REP, once a reply was read */
    bool bound_is_name; /* BND.ADDR was a domain name (allowed, useless): `bound` has the port only
                         */
    struct endpoint bound; /* BND.ADDR and BND.PORT, valid in DONE */
    bool pipelined;
    bool with_credentials;
    bool method_seen; /* the proxy answered the greeting, whatever it said later */
    struct socks5_credentials credentials;
    uint8_t in[SOCKS5_REPLY_MAX]; /* the message being awaited, as far as it has come */
    uint16_t in_len;
    /* All that may have to be said is laid out at once: | greeting | credentials | request |. */
    uint16_t auth_at, request_at, request_end; /* offsets in `out` */
    uint16_t out_len, out_sent; /* what may be sent ends here; what was sent or skipped ends here */
    uint8_t out[SOCKS5_CLIENT_OUT_MAX];
};

/*
 * `credentials` NULL: only "no authentication" is offered; else, not pipelined, both methods
 * are. The target's name is copied. A UDP ASSOCIATE passes the target 0.0.0.0:0 (or [::]:0).
 */
void socks5_client_init(struct socks5_client *c, const struct socks5_credentials *credentials,
                        enum socks5_command command, const struct target *target, bool pipelined);
/* The bytes to be sent now: sets `*out` and returns how many (0: nothing until more input). */
size_t socks5_client_output(const struct socks5_client *c, const uint8_t **out);
/* `n` bytes of them were sent. */
void socks5_client_sent(struct socks5_client *c, size_t n);
/* Nothing more is to be said: overwrite the credentials. What was heard stays. */
void socks5_client_wipe(struct socks5_client *c);
/*
 * How many bytes may be read from the proxy without reading past the reply's end; 0 once DONE or
 * FAILED. Payload that follows the reply stays in the socket.
 */
size_t socks5_client_wants(const struct socks5_client *c);
/* Feed bytes; returns how many were consumed: all, unless the machine came to its end before. */
size_t socks5_client_input(struct socks5_client *c, const uint8_t *bytes, size_t len);

#endif
