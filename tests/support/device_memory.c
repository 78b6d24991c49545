#include "tests/support/device_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/list.h"

enum { QUEUE_MAX = 4096 };

struct queued {
    struct link link;
    struct offload offload;
    size_t len;
    uint8_t bytes[];
};

struct queue {
    struct link packets;
    size_t count;
};

struct memory {
    struct device base;
    struct queue to_read;
    struct queue written;
    unsigned drop_every;
    unsigned writes; /* since the last one that was lost */
};

static struct memory *memory_of(struct device *d)
{
    return CONTAINER_OF(d, struct memory, base);
}

/* A packet of `len` bytes at the queue's end, content left to the caller. NULL: no room. */
static struct queued *queue_append(struct queue *q, size_t len, const struct offload *offload)
{
    if (q->count >= QUEUE_MAX || len > PACKET_SIZE_MAX)
        return NULL;
    struct queued *packet = malloc(sizeof(*packet) + len);
    if (!packet)
        return NULL;
    packet->offload = offload ? *offload : (struct offload){0};
    packet->len = len;
    list_push_back(&q->packets, &packet->link);
    q->count++;
    return packet;
}

/* Move the oldest packet into `out->buffer`; false when there is none. */
static bool queue_take(struct queue *q, struct packet *out)
{
    struct link *first = list_first(&q->packets);
    if (!first)
        return false;
    struct queued *packet = CONTAINER_OF(first, struct queued, link);
    list_remove(first);
    q->count--;
    out->data = out->buffer + PACKET_HEADROOM;
    out->len = packet->len;
    out->offload = packet->offload;
    memcpy(out->data, packet->bytes, packet->len);
    free(packet);
    return true;
}

static void queue_clear(struct queue *q)
{
    LIST_EACH (it, &q->packets)
        free(CONTAINER_OF(it, struct queued, link));
    list_init(&q->packets);
    q->count = 0;
}

static int memory_read(struct device *d, struct packet *batch, size_t count)
{
    struct memory *m = memory_of(d);
    size_t n = 0;
    while (n < count && queue_take(&m->to_read, &batch[n]))
        n++;
    return (int)n;
}

static bool capable(const struct device_caps *caps, const struct offload *offload)
{
    if (!offload)
        return true;
    if (offload->csum == PACKET_CSUM_PARTIAL && !caps->csum)
        return false;
    switch ((enum packet_gso)offload->gso) {
    case PACKET_GSO_NONE:
        return true;
    case PACKET_GSO_TCP4:
    case PACKET_GSO_TCP6:
        return caps->tso;
    case PACKET_GSO_UDP:
        return caps->uso;
    }
    return false;
}

static bool is_lost(struct memory *m)
{
    if (m->drop_every == 0 || ++m->writes < m->drop_every)
        return false;
    m->writes = 0;
    return true;
}

static int memory_write(struct device *d, struct iovec *iov, int iov_count,
                        const struct offload *offload)
{
    struct memory *m = memory_of(d);
    size_t len = 0;
    for (int i = 1; i < iov_count; i++)
        len += iov[i].iov_len;
    if (len == 0 || !capable(&d->caps, offload))
        return -EINVAL;
    if (is_lost(m))
        return 0;
    struct queued *packet = queue_append(&m->written, len, offload);
    if (!packet) {
        d->write_drops++;
        return -EAGAIN;
    }
    uint8_t *at = packet->bytes;
    for (int i = 1; i < iov_count; i++) {
        if (iov[i].iov_len > 0)
            memcpy(at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    return 0;
}

static void memory_close(struct device *d)
{
    struct memory *m = memory_of(d);
    queue_clear(&m->to_read);
    queue_clear(&m->written);
    free(m);
}

static const struct device_ops memory_ops = {
    .read = memory_read,
    .write = memory_write,
    .close = memory_close,
};

struct device *device_memory_new(unsigned mtu, struct device_caps caps)
{
    struct memory *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    list_init(&m->to_read.packets);
    list_init(&m->written.packets);
    m->base.ops = &memory_ops;
    m->base.fd = -1;
    m->base.mtu = mtu;
    m->base.caps = caps;
    return &m->base;
}

bool device_memory_push(struct device *d, const void *bytes, size_t len,
                        const struct offload *offload)
{
    struct queued *packet = queue_append(&memory_of(d)->to_read, len, offload);
    if (!packet)
        return false;
    if (len > 0)
        memcpy(packet->bytes, bytes, len);
    return true;
}

bool device_memory_pop(struct device *d, struct packet *out)
{
    return queue_take(&memory_of(d)->written, out);
}

void device_memory_drop_every(struct device *d, unsigned nth)
{
    struct memory *m = memory_of(d);
    m->drop_every = nth;
    m->writes = 0;
}
