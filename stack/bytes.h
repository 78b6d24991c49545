/*
 * Numbers in headers that are known to be there: network byte order, any alignment. What still has
 * to be checked is read and written by core/base/cursor.h.
 */
#ifndef CULVERT_STACK_BYTES_H
#define CULVERT_STACK_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* The lower 16 bits of `value`. */
static inline void put_u16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void put_u32(uint8_t *at, uint32_t value)
{
    put_u16(at, value >> 16);
    put_u16(at + 2, value & 0xffff);
}

static inline uint16_t get_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)get_u16(at) << 16 | get_u16(at + 2);
}

#endif
