/*
 * Bounds-checked cursors over byte strings: the only way that wire bytes are parsed or written
 * in culvert's own code.
 *
 * A cursor that was asked for more than there is turns bad and stays bad: it returns zeros and
 * moves no further, so that a parser may read a whole structure and ask once, at the end,
 * whether all of it was there. All multi-byte numbers are in network byte order on the wire and
 * in host byte order in the interface.
 */
#ifndef CULVERT_BASE_CURSOR_H
#define CULVERT_BASE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct reader {
    const uint8_t *start;
    const uint8_t *at;
    const uint8_t *end;
    bool bad;
};

static inline struct reader reader_over(const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    return (struct reader){.start = p, .at = p, .end = p + len, .bad = false};
}

static inline size_t reader_left(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

/* Bytes consumed so far. */
static inline size_t reader_used(const struct reader *r)
{
    return (size_t)(r->at - r->start);
}

/* The next `n` bytes, which stay the caller's; NULL (and the cursor bad) when there are fewer. */
static inline const uint8_t *reader_bytes(struct reader *r, size_t n)
{
    if (r->bad || reader_left(r) < n) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->at;
    r->at += n;
    return p;
}

static inline void reader_skip(struct reader *r, size_t n)
{
    (void)reader_bytes(r, n);
}

static inline uint8_t reader_u8(struct reader *r)
{
    const uint8_t *p = reader_bytes(r, 1);
    return p ? p[0] : 0;
}

static inline uint16_t reader_u16(struct reader *r)
{
    const uint8_t *p = reader_bytes(r, 2);
    if (!p)
        return 0;
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t reader_u32(struct reader *r)
{
    const uint8_t *p = reader_bytes(r, 4);
    return p ? (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3] : 0;
}

struct writer {
    uint8_t *start;
    uint8_t *at;
    uint8_t *end;
    bool bad; /* something did not fit; what was written before it stands */
};

static inline struct writer writer_over(void *bytes, size_t cap)
{
    uint8_t *p = bytes;
    return (struct writer){.start = p, .at = p, .end = p + cap, .bad = false};
}

static inline size_t writer_used(const struct writer *w)
{
    return (size_t)(w->at - w->start);
}

static inline size_t writer_left(const struct writer *w)
{
    return (size_t)(w->end - w->at);
}

/* Is there room for `n` more bytes? If not, the cursor turns bad. */
static inline bool writer_fits(struct writer *w, size_t n)
{
    if (w->bad || writer_left(w) < n)
        w->bad = true;
    return !w->bad;
}

/* Reserve `n` bytes to be filled by the caller; NULL (and the cursor bad) when they do not fit. */
static inline uint8_t *writer_reserve(struct writer *w, size_t n)
{
    if (!writer_fits(w, n))
        return NULL;
    w->at += n;
    return w->at - n;
}

static inline void writer_bytes(struct writer *w, const void *bytes, size_t n)
{
    if (!writer_fits(w, n) || n == 0)
        return;
    memcpy(w->at, bytes, n);
    w->at += n;
}

static inline void writer_u8(struct writer *w, uint8_t v)
{
    if (writer_fits(w, 1))
        *w->at++ = v;
}

static inline void writer_u16(struct writer *w, uint16_t v)
{
    const uint8_t wire[2] = {(uint8_t)(v >> 8), (uint8_t)v};
    writer_bytes(w, wire, sizeof(wire));
}

static inline void writer_u32(struct writer *w, uint32_t v)
{
    const uint8_t wire[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    writer_bytes(w, wire, sizeof(wire));
}

#endif
