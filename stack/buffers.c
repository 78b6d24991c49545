/*
 * The pool of receive buffers. Last in, first out, so that a lightly loaded stack works in the
 * same few cache-warm pages; what a burst has left over is given back when all is quiet.
 *
 * A segment that is received stays in its buffer where that is large, and else is copied out, so
 * that it does not pin 64 KiB. Either way the memory that it takes, overhead included, is counted
 * in rx_held for as long as lwIP or the conn keeps it: a flood of one-byte segments costs much more
 * than its bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "core/base/memory.h"
#include "lwip/tcp.h"
#include "stack/internal.h"

enum {
    POOLED_MAX = 2 * STACK_BATCH_MAX,
    COPY_MAX = 16384,     /* smaller segments are copied out */
    MALLOC_OVERHEAD = 16, /* about */
};

struct rx_copy {
    struct pbuf_custom pbuf;
    struct stack *stack;
    size_t size; /* as counted */
    uint8_t bytes[];
};

struct rx_buffer *rx_buffer_get(struct stack *s)
{
    struct rx_buffer *b = s->free_buffers;
    if (b) {
        s->free_buffers = b->next_free;
        s->free_count--;
        return b;
    }
    b = memory_aligned(64, (sizeof *b + 63) / 64 * 64);
    if (b)
        b->stack = s;
    return b;
}

void rx_buffer_put(struct rx_buffer *b)
{
    struct stack *s = b->stack;
    if (s->free_count >= POOLED_MAX) {
        free(b);
        return;
    }
    b->next_free = s->free_buffers;
    s->free_buffers = b;
    s->free_count++;
}

void rx_buffers_trim(struct stack *s)
{
    for (unsigned i = 0; i < STACK_BATCH_MAX; i++) {
        free(s->batch_buffers[i]);
        s->batch_buffers[i] = NULL;
    }
    while (s->free_buffers) {
        struct rx_buffer *b = s->free_buffers;
        s->free_buffers = b->next_free;
        free(b);
    }
    s->free_count = 0;
}

static void free_buffer(struct pbuf *p)
{
    struct rx_buffer *b = (struct rx_buffer *)(void *)p;
    b->stack->rx_held -= sizeof *b;
    rx_buffer_put(b);
}
_Static_assert(offsetof(struct rx_buffer, pbuf) == 0, "a pbuf leads to its buffer");

static void free_copy(struct pbuf *p)
{
    struct rx_copy *copy = (struct rx_copy *)(void *)p;
    copy->stack->rx_held -= copy->size;
    free(copy);
}
_Static_assert(offsetof(struct rx_copy, pbuf) == 0, "a pbuf leads to its copy");

static void keep_nothing(struct pbuf *p)
{
    (void)p;
}

static struct pbuf *copy_segment(struct stack *s, const uint8_t *tcp, u16_t len)
{
    size_t size = sizeof(struct rx_copy) + len;
    struct rx_copy *copy = memory_get(size);
    if (copy == NULL)
        return NULL;
    copy->pbuf.custom_free_function = free_copy;
    copy->stack = s;
    copy->size = size + MALLOC_OVERHEAD;
    s->rx_held += copy->size;
    memcpy(copy->bytes, tcp, len);
    return pbuf_alloced_custom(PBUF_RAW, len, PBUF_REF, &copy->pbuf, copy->bytes, len);
}

struct pbuf *rx_segment_to_pbuf(struct stack *s, const struct packet *p,
                                const struct packet_info *info, struct rx_buffer **buffer)
{
    static struct pbuf_custom transient = {.custom_free_function = keep_nothing};
    uint8_t *tcp = p->data + info->ip_header_len;
    u16_t len = (u16_t)(info->len - info->ip_header_len);
    bool bare = len == info->transport_header_len && (info->tcp_flags & (TCP_SYN | TCP_FIN)) == 0;
    if (bare)
        return pbuf_alloced_custom(PBUF_RAW, len, PBUF_REF, &transient, tcp, len);
    if (buffer == NULL || len <= COPY_MAX)
        return copy_segment(s, tcp, len);
    struct rx_buffer *b = *buffer;
    *buffer = NULL;
    b->pbuf.custom_free_function = free_buffer;
    s->rx_held += sizeof *b;
    return pbuf_alloced_custom(PBUF_RAW, len, PBUF_REF, &b->pbuf, tcp, len);
}
