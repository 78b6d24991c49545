/*
 * Addresses and endpoints, one form for both families.
 *
 * An address is 16 bytes in network byte order; an IPv4 address is kept as its
 * IPv4-mapped form ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). The mapped form never
 * travels on a wire (packets that carry it are dropped on the way in), so the
 * two families cannot be mistaken for one another and an address compares and
 * hashes as plain bytes.
 */
#ifndef CULVERT_BASE_ADDR_H
#define CULVERT_BASE_ADDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct addr {
    uint8_t bytes[16]; /* network byte order; IPv4 as ::ffff:a.b.c.d */
};

/* An address and a port. `port` is in host byte order. No padding: it hashes as bytes. */
struct endpoint {
    struct addr addr;
    uint16_t port;
};

/* An address range, as in 198.18.0.0/15. `prefix` counts within the address's own family. */
struct cidr {
    struct addr addr;
    uint8_t prefix; /* 0..32 for IPv4, 0..128 for IPv6 */
};

/* Room for any of the texts below, with its terminating NUL. */
enum { ADDR_TEXT_MAX = 48, ENDPOINT_TEXT_MAX = 56, CIDR_TEXT_MAX = 52 };

/* From wire bytes: 4 or 16 of them, network byte order. */
struct addr addr_from_v4(const uint8_t bytes[4]);
struct addr addr_from_v6(const uint8_t bytes[16]);

bool addr_is_v4(const struct addr *a);
/* The four wire bytes of an IPv4 address. */
const uint8_t *addr_v4_bytes(const struct addr *a);
bool addr_equal(const struct addr *a, const struct addr *b);

bool addr_is_unspecified(const struct addr *a); /* 0.0.0.0, :: */
bool addr_is_loopback(const struct addr *a);    /* 127/8, ::1 */
bool addr_is_multicast(const struct addr *a);   /* 224/4, ff00::/8 */
bool addr_is_link_local(const struct addr *a);  /* 169.254/16, fe80::/10 */
bool addr_is_broadcast(const struct addr *a);   /* 255.255.255.255 only */

/*
 * Can a flow lead there through a proxy? False for unspecified (the whole of 0/8), multicast,
 * broadcast, link-local and class E. IPv4-mapped addresses that came as IPv6 cannot be told from
 * IPv4 here: whoever reads the packet drops them.
 */
bool addr_is_routable(const struct addr *a);

/* Parse a numeric address ("192.0.2.1", "2001:db8::1", no brackets, no zone). False if it is none.
 */
bool addr_parse(const char *text, struct addr *out);
/* Write it as text; returns `buf`. `buf` has room for ADDR_TEXT_MAX bytes. */
char *addr_format(const struct addr *a, char buf[ADDR_TEXT_MAX]);

bool endpoint_equal(const struct endpoint *a, const struct endpoint *b);
/* Parse "ADDR:PORT", "[V6]:PORT", or a bare address, which takes `default_port`. */
bool endpoint_parse(const char *text, uint16_t default_port, struct endpoint *out);
/* As "192.0.2.1:80" or "[2001:db8::1]:80"; returns `buf`. */
char *endpoint_format(const struct endpoint *e, char buf[ENDPOINT_TEXT_MAX]);

/* Fill a socket address; returns its length in bytes. */
socklen_t endpoint_to_sockaddr(const struct endpoint *e, struct sockaddr_storage *out);
/* False for families other than AF_INET and AF_INET6. IPv4-mapped IPv6 becomes IPv4. */
bool endpoint_from_sockaddr(const struct sockaddr *sa, struct endpoint *out);

/* Parse "ADDR/PREFIX" (or a bare address: one host). Host bits may be set, they are kept. */
bool cidr_parse(const char *text, struct cidr *out);
bool cidr_contains(const struct cidr *range, const struct addr *a); /* false across families */
char *cidr_format(const struct cidr *range, char buf[CIDR_TEXT_MAX]);

#endif
