/*
 * The pool of receive buffers. Last in, first out, so that a lightly loaded stack works in the
 * same few cache-warm pages; what a burst has left over is given back when all is quiet.
 */
#include <stdlib.h>

#include "stack/internal.h"

enum { POOLED_MAX = 2 * STACK_BATCH_MAX };

struct rx_buffer *rx_buffer_get(struct stack *s)
{
    struct rx_buffer *b = s->free_buffers;
    if (b) {
        s->free_buffers = b->next_free;
        s->free_count--;
        return b;
    }
    b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
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
