/* SipHash-2-4 with 64 bits of output: Aumasson, Bernstein, "SipHash: a fast short-input PRF",
 * 2012; test vectors in its appendix A. Whoever does not know the key cannot foretell it, which is
 * what makes a sequence number a proof that its probe was seen. */
#ifndef NRAY_SIPHASH_H
#define NRAY_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t k0, k1;
} nray_key_t;

static inline uint64_t nray_rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

#define NRAY_SIPROUND                                                                              \
    do {                                                                                           \
        v0 += v1, v2 += v3;                                                                        \
        v1 = nray_rotate(v1, 13) ^ v0, v3 = nray_rotate(v3, 16) ^ v2;                              \
        v0 = nray_rotate(v0, 32);                                                                  \
        v2 += v1, v0 += v3;                                                                        \
        v1 = nray_rotate(v1, 17) ^ v2, v3 = nray_rotate(v3, 21) ^ v0;                              \
        v2 = nray_rotate(v2, 32);                                                                  \
    } while (0)

/* Inlined, so that a constant size leaves neither loop nor branch of the tail. */
static inline __attribute__((always_inline)) uint64_t
nray_siphash(const nray_key_t *key, const uint8_t *data, size_t size)
{
    uint64_t v0 = key->k0 ^ 0x736f6d6570736575ULL, v1 = key->k1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = key->k0 ^ 0x6c7967656e657261ULL, v3 = key->k1 ^ 0x7465646279746573ULL;
    uint64_t word = 0;
    size_t whole = size & ~(size_t)7;
    for (size_t i = 0; i < whole; i += 8) {
        memcpy(&word, data + i, 8);
        v3 ^= word;
        NRAY_SIPROUND;
        NRAY_SIPROUND;
        v0 ^= word;
    }
    word = 0;
    memcpy(&word, data + whole, size - whole);
    word |= (uint64_t)size << 56;
    v3 ^= word;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    v0 ^= word;
    v2 ^= 0xff;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

#endif
