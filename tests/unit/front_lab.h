/*
 * What core/dns/dns_front.c stands on, replaced at link time: the policy of core/dns/dns.h, which
 * answers a query "now..." at once and others when the test says so, and the stack with its
 * clients.
 */
#ifndef CULVERT_TESTS_FRONT_LAB_H
#define CULVERT_TESTS_FRONT_LAB_H

#include "core/flows.h"

enum { PEERS_MAX = 1100, ROOM = 1 << 20 };

/* A client, as the stack sees it. */
struct peer {
    struct conn *conn;
    bool accepted, shut, aborted;
    uint8_t rx[20000];
    size_t rx_len;
    uint8_t *tx; /* what the client got */
    size_t tx_len, room, unread;
    struct chunk *chunks[256];
    size_t chunk_count;
    size_t piece; /* conn_peek() hands out pieces of so many bytes */
    bool send_fails;
};

/* A datagram that was sent to a client. */
struct sent_datagram {
    struct endpoint src, dst;
    unsigned count; /* of all that were */
    char text[100];
};

struct front_lab {
    struct link open_queries;
    size_t open_count;  /* queries that wait */
    size_t answer_size; /* answers are padded to so many bytes */
    bool last_was_udp;
    enum dns_mode mode;
    struct peer peers[PEERS_MAX];
    size_t peer_count;
    struct sent_datagram sent;
};
extern struct front_lab front_lab;

void front_lab_reset(void);
/* Answer the open query with this text; it must be there. */
void front_lab_answer(const char *text);
/* The client has acknowledged all that it got. */
void front_lab_release_chunks(struct peer *p);

#endif
