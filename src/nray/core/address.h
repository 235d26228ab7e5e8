/* Addresses as numbers, as bytes in network order, and as text. */
#ifndef NRAY_ADDRESS_H
#define NRAY_ADDRESS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The longest IPv6 text, eight groups of four digits: 39 characters. */
#define NRAY_ADDRESS_TEXT_MAX 40

/* An address as a number of 128 bits; IPv4 has hi = 0. */
typedef struct {
    uint64_t hi, lo;
} nray_number_t;

static inline uint32_t nray_load4(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, 4);
    return __builtin_bswap32(value);
}

static inline void nray_store4(uint8_t *bytes, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(bytes, &value, 4);
}

static inline nray_number_t nray_load6(const uint8_t *bytes)
{
    uint64_t half[2];
    memcpy(half, bytes, 16);
    return (nray_number_t){__builtin_bswap64(half[0]), __builtin_bswap64(half[1])};
}

static inline void nray_store6(uint8_t *bytes, nray_number_t value)
{
    uint64_t half[2] = {__builtin_bswap64(value.hi), __builtin_bswap64(value.lo)};
    memcpy(bytes, half, 16);
}

static inline nray_number_t nray_add(nray_number_t base, uint64_t offset)
{
    uint64_t lo = base.lo + offset;
    return (nray_number_t){base.hi + (lo < offset), lo};
}

static inline int nray_at_most(nray_number_t x, nray_number_t y)
{
    return x.hi < y.hi || (x.hi == y.hi && x.lo <= y.lo);
}

/* ::ffff:a.b.c.d reaches the IPv4 host a.b.c.d, so it is treated as that (RFC 4291, 2.5.5.2). */
static inline int nray_is_mapped(nray_number_t x)
{
    return x.hi == 0 && x.lo >> 32 == 0xffff;
}

/* How many of the sorted numbers are at most x. Written so that gcc makes it a conditional move:
 * the way through is different each time, and no branch predictor learns it. */
static inline size_t nray_rank4(const uint32_t *sorted, size_t count, uint32_t x)
{
    const uint32_t *at = sorted;
    if (count == 0)
        return 0;
    while (count > 1) {
        size_t half = count / 2;
        at += at[half - 1] <= x ? half : 0;
        count -= half;
    }
    return (size_t)(at - sorted) + (*at <= x);
}

static inline size_t nray_rank6(const nray_number_t *sorted, size_t count, nray_number_t x)
{
    size_t low = 0;
    while (low < count) {
        size_t middle = low + (count - low) / 2;
        if (nray_at_most(sorted[middle], x))
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

/* Decimal digits of a value below 65,536; returns the end. */
static inline char *nray_decimal(char *out, unsigned value)
{
    char digits[5];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        *out++ = digits[--count];
    return out;
}

static inline char *nray_text4(char *out, const uint8_t *address)
{
    for (int i = 0; i < 4; i++) {
        if (i)
            *out++ = '.';
        out = nray_decimal(out, address[i]);
    }
    return out;
}

/* RFC 5952: lower case, no leading zeros, the longest run of two or more zero groups (the first
 * of equals) as "::". Never dotted, as in Python's ipaddress. Returns the end. */
static inline char *nray_text6(char *out, const uint8_t *address)
{
    unsigned group[8];
    int best = -1, best_length = 1, length = 0;
    for (int i = 0; i < 8; i++) {
        group[i] = (unsigned)address[2 * i] << 8 | address[2 * i + 1];
        length = group[i] ? 0 : length + 1;
        if (length > best_length) {
            best_length = length;
            best = i - length + 1;
        }
    }
    for (int i = 0; i < 8; i++) {
        if (i == best) {
            *out++ = ':';
            *out++ = ':';
            i += best_length - 1;
            continue;
        }
        if (i && !(best >= 0 && i == best + best_length))
            *out++ = ':';
        for (int shift = 12, seen = 0; shift >= 0; shift -= 4) {
            unsigned digit = group[i] >> shift & 15;
            seen |= digit != 0 || shift == 0;
            if (seen)
                *out++ = "0123456789abcdef"[digit];
        }
    }
    return out;
}

#endif
