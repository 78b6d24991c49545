/*
 * UDP associations with everything around them replaced at link time: the stack records what it
 * is given, the dialer does what the test says, names come from a small table. The event loop
 * and the sockets towards the relay are real.
 */
#ifndef CULVERT_TESTS_UDP_LAB_H
#define CULVERT_TESTS_UDP_LAB_H

#include "core/flows.h"
#include "socks/datagram.h"

enum { RECORDS_MAX = 512, DIALS_MAX = 16, PAYLOAD_MAX = 1 << 16, HEADROOM = 512 };

/* What the stack was given. */
struct record {
    struct endpoint src, dst;
    size_t len;
    uint16_t gso_size;
    uint8_t *bytes;
};
extern struct record sent[RECORDS_MAX]; /* to the application */
extern unsigned sent_count;
extern struct record unreachables[RECORDS_MAX];
extern unsigned unreachable_count;

struct dial {
    dial_fn *fn;
    void *arg;
    bool cancelled;
};
extern struct dial dials[DIALS_MAX];
extern unsigned dial_count;
extern bool dial_out_of_memory;
extern bool direct;      /* direct://? */
extern bool udp_refused; /* does the proxy remember that it does not do UDP? */
extern unsigned refused_notes;
extern struct outbound_options out;

/* Fake addresses: 198.18.1.N is "nN.example" for N below 200, and nobody's from there on. */
extern int holds; /* names held, less those released */

struct resolver_request {
    resolver_fn *fn;
    void *arg;
    char name[256];
    bool cancelled;
};
extern struct resolver_request lookups[RECORDS_MAX];
extern unsigned lookup_count;

struct lab {
    struct worker worker;
    struct flow_limits limits;
    struct device device;
    int relay;      /* the relay's UDP socket */
    int control[2]; /* a control connection's ends; [0] goes to the association */
    struct endpoint relay_address;
    struct sockaddr_storage relay_client; /* who sent the last datagram to the relay */
    socklen_t relay_client_len;
    uint8_t buffer[HEADROOM + PAYLOAD_MAX];
};
int lab_set_up(void **state);
int lab_set_up_uso(void **state); /* the device takes super-packets of UDP */
int lab_tear_down(void **state);
#define LAB_TEST(name) cmocka_unit_test_setup_teardown(name, lab_set_up, lab_tear_down)
#define USO_TEST(name) cmocka_unit_test_setup_teardown(name, lab_set_up_uso, lab_tear_down)

struct endpoint at(const char *text);
/* A non-blocking socket on 127.0.0.1 and its address. */
int udp_bound_to_loopback(struct endpoint *address);
/* Turn the loop `count` times, a millisecond apart. */
void turns(struct lab *l, int count);
uint8_t *payload_of(struct lab *l);
void fill(uint8_t *bytes, size_t len, unsigned seed);

/* The application sends `len` bytes that lie at payload_of(), or `text`. */
void app_sends_bytes(struct lab *l, const char *src, const char *dst, size_t len,
                     uint16_t gso_size);
void app_sends(struct lab *l, const char *src, const char *dst, const char *text);
void expect_sent(unsigned i, const char *src, const char *dst, const char *text);
void expect_unreachable(unsigned i, const char *src, const char *dst);

/* The proxy answers dial `i`; its control connection's other end is l->control[1]. */
void proxy_accepts_at(struct lab *l, unsigned i, const struct endpoint *relay);
void proxy_accepts(struct lab *l, unsigned i);
void proxy_fails(unsigned i, enum dial_status status, uint8_t reply, int error);

/* What the relay got next; false when there is nothing. */
bool relay_gets(struct lab *l, struct socks5_datagram *d);
void expect_relayed(struct lab *l, const char *target, const char *text);
/* The relay sends what came from `from`, to whom it heard last. */
void relay_sends(struct lab *l, const struct target *from, const void *bytes, size_t len);
void relay_sends_from(struct lab *l, const char *from, const char *text);

/* An open association of 10.0.0.1:5000, the relay knowing its address. */
void open_association(struct lab *l);

#endif
