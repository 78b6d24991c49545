#include "core/udp/udp_queue.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/memory.h"
#include "socks/datagram.h"

void udp_queue_init(struct udp_queue *q, size_t *shared_bytes)
{
    list_init(&q->items);
    q->count = q->bytes = 0;
    q->shared_bytes = shared_bytes;
}

static bool has_room(const struct udp_queue *q, size_t len)
{
    return q->count < UDP_QUEUE_COUNT_MAX && q->bytes + len <= UDP_QUEUE_BYTES_MAX &&
           *q->shared_bytes + len <= UDP_QUEUES_BYTES_MAX;
}

static void push_one(struct udp_queue *q, const struct udp_datagram *d)
{
    struct udp_queued *item = NULL;
    if (has_room(q, d->len))
        item = memory_get(sizeof(*item) + SOCKS5_DATAGRAM_HEADER_MAX + d->len);
    if (!item)
        return;
    item->datagram = *d;
    item->datagram.payload = item->bytes + SOCKS5_DATAGRAM_HEADER_MAX;
    if (d->len > 0)
        memcpy(item->datagram.payload, d->payload, d->len);
    list_push_back(&q->items, &item->link);
    q->count++;
    q->bytes += (uint32_t)d->len;
    *q->shared_bytes += d->len;
}

void udp_queue_push(struct udp_queue *q, const struct udp_datagram *d)
{
    struct udp_datagram one = *d;
    size_t size = d->gso_size ? d->gso_size : d->len;
    size_t left = d->len;
    one.gso_size = 0;
    do {
        one.len = left < size ? left : size;
        push_one(q, &one);
        one.payload += one.len;
        left -= one.len;
    } while (left > 0);
}

void udp_queue_take(struct udp_queue *q, struct udp_queued *item)
{
    list_remove(&item->link);
    q->count--;
    q->bytes -= (uint32_t)item->datagram.len;
    *q->shared_bytes -= item->datagram.len;
}

void udp_queue_clear(struct udp_queue *q)
{
    LIST_EACH (it, &q->items) {
        struct udp_queued *item = CONTAINER_OF(it, struct udp_queued, link);
        udp_queue_take(q, item);
        free(item);
    }
}
