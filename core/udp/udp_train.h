/*
 * Datagrams on their way to an application, joined to super-packets where the device takes them:
 * neighbours with the same remote and size (the last may be shorter) lie side by side in the
 * buffer that they were read into, and go to the device with one write.
 */
#ifndef CULVERT_UDP_TRAIN_H
#define CULVERT_UDP_TRAIN_H

#include "stack/stack.h"

struct udp_train {
    struct stack *stack;
    size_t joinable_max; /* bytes; larger datagrams travel alone. 0: the device takes no trains */
    struct endpoint from, to;
    uint8_t *start; /* in a receive buffer */
    uint8_t *end;   /* of that buffer */
    size_t len;
    size_t size;    /* of the datagrams */
    unsigned count; /* 0: empty */
    bool complete;  /* a shorter datagram was the last */
};

void udp_train_init(struct udp_train *t, struct stack *stack, const struct device *device);
/*
 * Append a datagram. `payload` lies in a buffer that ends at `end`; the bytes before it in that
 * buffer may be overwritten. It must stay valid until udp_train_flush().
 */
void udp_train_add(struct udp_train *t, const struct endpoint *from, const struct endpoint *to,
                   uint8_t *payload, size_t len, uint8_t *end);
void udp_train_flush(struct udp_train *t);

#endif
