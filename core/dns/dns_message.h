/*
 * DNS messages (RFC 1035, 4; EDNS: RFC 6891) as bytes: queries of applications are taken apart,
 * answers made, answers of a server checked and fitted to each client. Pure functions, no clock.
 *
 * An answer that came from a server is kept in a normal form: checked from end to end, without
 * OPT record. dns_answer_finish() turns it into what one client gets: its id, its spelling of
 * the name, its size limit, TTLs that have aged, and an OPT record where it sent one.
 */
#ifndef CULVERT_DNS_MESSAGE_H
#define CULVERT_DNS_MESSAGE_H

#include "core/dns/dns_name.h"

enum {
    DNS_HEADER_SIZE = 12,
    DNS_MESSAGE_MAX = 65535,
    DNS_UDP_MIN = 512,          /* what a client without EDNS takes over UDP */
    DNS_UDP_SIZE = 1232,        /* what our OPT record says that we take */
    DNS_LOCAL_ANSWER_MAX = 512, /* no answer made by dns_reply_*() is longer */
};

enum dns_type {
    DNS_TYPE_A = 1,
    DNS_TYPE_CNAME = 5,
    DNS_TYPE_SOA = 6,
    DNS_TYPE_PTR = 12,
    DNS_TYPE_AAAA = 28,
    DNS_TYPE_OPT = 41,
    DNS_TYPE_SVCB = 64,
    DNS_TYPE_HTTPS = 65,
    DNS_TYPE_META_FIRST = 128, /* from here to ANY: no data of their own (RFC 6895, 3.1) */
    DNS_TYPE_ANY = 255,
};

enum { DNS_CLASS_IN = 1 };

enum dns_rcode {
    DNS_NOERROR = 0,
    DNS_FORMERR = 1,
    DNS_SERVFAIL = 2,
    DNS_NXDOMAIN = 3,
    DNS_NOTIMP = 4,
    DNS_REFUSED = 5,
    DNS_BADVERS = 16, /* in the OPT record only (RFC 6891, 6.1.3) */
};

enum dns_flag {
    DNS_FLAG_QR = 0x8000,
    DNS_FLAG_OPCODE = 0x7800,
    DNS_FLAG_AA = 0x0400,
    DNS_FLAG_TC = 0x0200,
    DNS_FLAG_RD = 0x0100,
    DNS_FLAG_RA = 0x0080,
    DNS_FLAG_AD = 0x0020,
    DNS_FLAG_CD = 0x0010,
    DNS_FLAG_RCODE = 0x000f,
};

struct dns_question {
    struct dns_name name;
    uint16_t type;   /* enum dns_type, or any other */
    uint16_t class_; /* 1: IN */
};

/* --- what an application asks -------------------------------------------------------------- */

/* A query, taken apart. Host byte order. */
struct dns_request {
    uint16_t id;
    uint16_t flags;
    bool has_question; /* false only beside an rcode: the question could not be read */
    bool edns;
    bool dnssec_ok;
    uint16_t udp_size; /* bytes that the client takes over UDP, at least DNS_UDP_MIN */
    struct dns_question question;
};

/*
 * Take a query apart. False: no query at all (shorter than a header, or a response), to be
 * dropped. Else `*rcode` is DNS_NOERROR, or what to answer it with: FORMERR, NOTIMP, BADVERS.
 */
bool dns_request_parse(struct dns_request *out, const uint8_t *message, size_t len,
                       enum dns_rcode *rcode);

/* An answer of our own in the making. */
struct dns_reply {
    struct writer w;
    const struct dns_request *request;
    uint16_t answers, authorities;
};

/* `buf` holds DNS_LOCAL_ANSWER_MAX bytes. The question is echoed as it was asked, case and all. */
void dns_reply_begin(struct dns_reply *r, const struct dns_request *request, uint8_t *buf);
/* Records about the name in the question. `ttl` in seconds. At most one of each. */
void dns_reply_address(struct dns_reply *r, const struct addr *a, uint32_t ttl); /* A or AAAA */
void dns_reply_ptr(struct dns_reply *r, const char *name, uint32_t ttl);
/* The SOA record that lets a negative answer be cached for `ttl` seconds (RFC 2308, 3). */
void dns_reply_soa(struct dns_reply *r, uint32_t ttl);
/* Returns the answer's length in bytes. */
size_t dns_reply_end(struct dns_reply *r, enum dns_rcode rcode);
/* All of it, for an answer without records. */
size_t dns_reply_empty(const struct dns_request *request, enum dns_rcode rcode, uint8_t *buf);

/* --- what is asked of a server -------------------------------------------------------------- */

enum { DNS_KEY_MAX = DNS_NAME_MAX + 5, DNS_QUERY_MAX = DNS_HEADER_SIZE + DNS_NAME_MAX + 4 + 11 };

/*
 * All that an answer depends on, as bytes to be hashed and compared: name in lower case, type,
 * class, and the flags RD, CD and DO. Clients whose keys are equal share an answer.
 */
struct dns_key {
    uint16_t len;
    uint8_t bytes[DNS_KEY_MAX];
};
void dns_key_make(struct dns_key *key, const struct dns_request *request);
bool dns_key_equal(const struct dns_key *a, const struct dns_key *b);
/* The query that asks for it; returns its length in bytes. */
size_t dns_key_query(const struct dns_key *key, uint16_t id, uint8_t buf[DNS_QUERY_MAX]);

/* --- what a server answers ------------------------------------------------------------------ */

struct dns_answer {
    size_t len;   /* bytes of the normal form, at most what came */
    uint32_t ttl; /* seconds for which it may be kept; 0: not at all (RFC 2308 for negative ones) */
};

enum { DNS_TTL_MAX = 86400, DNS_NEGATIVE_TTL_MAX = 10800 }; /* seconds; RFC 2308, 5 */

/*
 * Check a server's answer to `key` from end to end and bring it to its normal form, in place.
 * False: not an answer (nonsense, or to another question).
 */
bool dns_answer_check(struct dns_answer *out, uint8_t *message, size_t len,
                      const struct dns_key *key);
/*
 * Write to `out` (DNS_MESSAGE_MAX bytes) what the client of `request` gets for the answer in
 * normal form `message`, which is `age` seconds old. Over `limit` bytes the additional records
 * are left out, or else all records, with TC set (RFC 2181, 9). Returns the length in bytes.
 */
size_t dns_answer_finish(const struct dns_request *request, const uint8_t *message, size_t len,
                         uint32_t age, size_t limit, uint8_t *out);

#endif
