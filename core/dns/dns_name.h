/*
 * Domain names in wire form (RFC 1035, 3.1): a row of labels, each behind its length, ended by
 * the root's empty label. At most 255 bytes, which is 253 as text without the trailing dot.
 */
#ifndef CULVERT_DNS_NAME_H
#define CULVERT_DNS_NAME_H

#include "core/base/addr.h"
#include "core/base/cursor.h"

enum {
    DNS_NAME_MAX = 255,  /* bytes on the wire, root label included (RFC 1035, 2.3.4) */
    DNS_LABEL_MAX = 63,  /* bytes */
    DNS_TEXT_MAX = 253,  /* bytes as text, without the trailing dot */
    DNS_TEXT_SIZE = 256, /* a buffer for text with its NUL */
};

/* A name without compression. `len` counts the root label: 1 for the root itself. */
struct dns_name {
    uint8_t bytes[DNS_NAME_MAX];
    uint8_t len;
};

/*
 * Read the name at the cursor, which spans the message from its first byte, so that compression
 * pointers (RFC 1035, 4.1.4) can be followed. What a pointer leads to must lie behind the header
 * and end before the name, or the part of it that holds the pointer, begins: that rules out loops.
 * Returns false, and the cursor is bad, for a name that is none; else the cursor stands behind it.
 */
bool dns_name_read(struct reader *message, struct dns_name *out);
/* A to Z become a to z in place. Other bytes, whatever they are, stay (RFC 4343). */
void dns_name_lower(struct dns_name *name);
/* The same but for case? */
bool dns_name_equal(const struct dns_name *a, const struct dns_name *b);
/*
 * As text without trailing dot, "" for the root. False where a label holds bytes that no host
 * name can: dots, blanks and control characters. Bytes above 127 pass (UTF-8, as some ask).
 */
bool dns_name_text(const struct dns_name *name, char text[DNS_TEXT_SIZE]);
/* From text, one trailing dot allowed. False for empty or overlong labels and overlong names. */
bool dns_name_parse(const char *text, struct dns_name *out);
/* Is it `domain` (text, lower case, no trailing dot) or below it? Any case. */
bool dns_name_within(const struct dns_name *name, const char *domain);
/*
 * The address that a reverse name stands for: four labels before in-addr.arpa, or 32 before
 * ip6.arpa (RFC 1035, 3.5; RFC 3596, 2.5). False for any other name.
 */
bool dns_name_reverse(const struct dns_name *name, struct addr *out);

#endif
