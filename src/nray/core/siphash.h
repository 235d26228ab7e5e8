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

/* Of `count` whole words and a last one, which holds what bytes remain and, in its top byte, the
 * size of all. Inlined, so that a constant count leaves no loop; for a message that is put together
 * in registers. */
static inline __attribute__((always_inline)) uint64_t
nray_siphash_words(const nray_key_t *key, const uint64_t *words, size_t count, uint64_t last)
{
    uint64_t v0 = key->k0 ^ 0x736f6d6570736575ULL, v1 = key->k1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = key->k0 ^ 0x6c7967656e657261ULL, v3 = key->k1 ^ 0x7465646279746573ULL;
    for (size_t i = 0; i < count; i++) {
        v3 ^= words[i];
        NRAY_SIPROUND;
        NRAY_SIPROUND;
        v0 ^= words[i];
    }
    v3 ^= last;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    v0 ^= last;
    v2 ^= 0xff;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    NRAY_SIPROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

#endif
