/*
 * As much of STUN as telling what a NAT does takes: Binding requests and their answers
 * (RFC 8489, 5 and 14), with the attributes of NAT behaviour discovery (RFC 5780, 7).
 */
#ifndef CULVERT_STUN_H
#define CULVERT_STUN_H

#include "core/base/addr.h"

enum {
    STUN_ID_SIZE = 12,     /* bytes of a transaction id */
    STUN_REQUEST_MAX = 28, /* bytes of the longest request made here */
};

/*
 * Write a Binding request; returns its length in bytes. `from_elsewhere`: with CHANGE-REQUEST, so
 * that the answer comes from the server's other address and port.
 */
size_t stun_write_request(uint8_t buf[STUN_REQUEST_MAX], const uint8_t id[STUN_ID_SIZE],
                          bool from_elsewhere);

struct stun_answer {
    struct endpoint mapped; /* who we are to the server */
    bool has_other;
    struct endpoint other; /* the server's other address and port */
};
/* False for all but a well-formed success response to `id` that holds a mapped address. */
bool stun_parse_answer(const uint8_t *bytes, size_t len, const uint8_t id[STUN_ID_SIZE],
                       struct stun_answer *out);

#endif
