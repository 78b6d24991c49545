#include "core/udp/udp_train.h"

#include <string.h>

enum {
    TRAIN_COUNT_MAX = 64,    /* UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.10 */
    TRAIN_BYTES_MAX = 65000, /* an IPv4 packet with its headers */
};

void udp_train_init(struct udp_train *t, struct stack *stack, const struct device *device)
{
    memset(t, 0, sizeof(*t));
    t->stack = stack;
    /* A datagram in a train must not need fragments. */
    if (device->caps.uso && device->mtu > PACKET_IP_UDP_HEADER_MAX)
        t->joinable_max = device->mtu - PACKET_IP_UDP_HEADER_MAX;
}

void udp_train_flush(struct udp_train *t)
{
    if (t->count == 0)
        return;
    uint16_t gso_size = t->count > 1 ? (uint16_t)t->size : 0;
    (void)stack_send_datagram(t->stack, &t->from, &t->to, t->start, t->len, gso_size);
    t->count = 0;
}

static bool fits(const struct udp_train *t, const struct endpoint *from, const struct endpoint *to,
                 size_t len)
{
    return t->count > 0 && t->count < TRAIN_COUNT_MAX && !t->complete && len > 0 &&
           len <= t->size && t->len + len <= TRAIN_BYTES_MAX &&
           len <= (size_t)(t->end - t->start) - t->len && endpoint_equal(from, &t->from) &&
           endpoint_equal(to, &t->to);
}

void udp_train_add(struct udp_train *t, const struct endpoint *from, const struct endpoint *to,
                   uint8_t *payload, size_t len, uint8_t *end)
{
    if (fits(t, from, to, len)) {
        memmove(t->start + t->len, payload, len);
        t->len += len;
        t->count++;
        t->complete = len < t->size;
        return;
    }
    udp_train_flush(t);
    t->from = *from;
    t->to = *to;
    t->start = payload;
    t->end = end;
    t->len = t->size = len;
    t->count = 1;
    t->complete = len == 0 || len > t->joinable_max;
}
