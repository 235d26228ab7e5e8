/* Keyed permutation of the numbers 0 … size-1, for any size from 1 to 2^63.
 *
 * Source: J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: a
 * generalised Feistel network (their method 3) over the a*b numbers l + a*r with l < a, r < b and
 * a*b >= size, walked along its cycle (their method 2) until the result is below size. Both are
 * bijections, so every number comes up exactly once, and any one of them costs the same: nothing
 * is enumerated and nothing is stored.
 *
 * The split: a is the power of two with a*a <= size < 4*a*a (a mask instead of a division), and
 * b = ceil(size / a). So a*b < size + a, and of a*b numbers fewer than a <= sqrt(size) lie
 * outside: a walk takes 1 + 1/sqrt(size) steps at most on average, where a network cut at whole
 * bits takes up to 2.
 *
 * The rounds alternate: r moves by a function of l modulo b, l by a function of r modulo a.
 * Luby and Rackoff (1988) show that three such rounds with random functions cannot be told from a
 * random permutation, four not even with its inverse at hand. Our round function is a hash of
 * two multiplications and not random, hence two rounds more: six, three for each half. That is
 * enough for what is asked here (consecutive positions far apart, and an order that nobody without
 * the key foretells by looking), and no cipher for secrets.
 *
 * Worked example: size 11, so a = 2, b = 6, domain 12. With the round keys of sixteen zero bytes
 * (see `Space`) the positions 0 … 10 become
 *     4 9 6 10 8 1 7 3 0 5 2
 * and one of them passes through the number 11, outside, on its way (tests/test_space.py).
 *
 * Limits: with size < 4 there is no l (a = 1), and the permutation is a rotation. */
#ifndef NRAY_FEISTEL_H
#define NRAY_FEISTEL_H

#include <stdint.h>

#define NRAY_FEISTEL_ROUNDS 6

typedef struct {
    uint64_t size; /* 1 … 2^63 */
    uint64_t b;    /* numbers in the right half, at most 2^32 */
    uint32_t mask; /* a - 1, at most 2^31 - 1 */
    uint32_t bits; /* log2(a) */
    uint64_t key[NRAY_FEISTEL_ROUNDS];
} nray_feistel_t;

/* High 64 bits of a product: x * y / 2^64, rounded down. */
static inline uint64_t nray_mulhi(uint64_t x, uint64_t y)
{
    return (uint64_t)(((unsigned __int128)x * y) >> 64);
}

/* Sets size and split; the caller fills in the keys. */
static inline void nray_feistel_init(nray_feistel_t *f, uint64_t size)
{
    f->size = size;
    f->bits = (63 - (uint32_t)__builtin_clzll(size)) / 2;
    f->mask = (uint32_t)((1ULL << f->bits) - 1);
    f->b = (size + f->mask) >> f->bits;
}

/* Round function: the multipliers are those of MurmurHash3's 64-bit finaliser (public domain). */
static inline uint64_t nray_feistel_hash(uint64_t half, uint64_t key)
{
    uint64_t h = (half ^ key) * 0xff51afd7ed558ccdULL;
    h ^= h >> 32;
    return h * 0xc4ceb9fe1a85ec53ULL;
}

/* How far r moves: 0 … b-1, from the hash's high bits (Lemire 2019), in place of a division. */
static inline uint64_t nray_feistel_right(const nray_feistel_t *f, uint64_t l, int round)
{
    return nray_mulhi(nray_feistel_hash(l, f->key[round]), f->b);
}

static inline uint64_t nray_feistel_left(const nray_feistel_t *f, uint64_t r, int round)
{
    return nray_feistel_hash(r, f->key[round]) >> 32;
}

/* Position to index; x < size. */
static inline uint64_t nray_feistel_forward(const nray_feistel_t *f, uint64_t x)
{
    do {
        uint64_t l = x & f->mask, r = x >> f->bits;
        for (int round = 0; round < NRAY_FEISTEL_ROUNDS; round += 2) {
            r += nray_feistel_right(f, l, round);
            r -= r >= f->b ? f->b : 0;
            l = (l + nray_feistel_left(f, r, round + 1)) & f->mask;
        }
        x = r << f->bits | l;
    } while (x >= f->size); /* ends: x began below size, and so does every cycle through it */
    return x;
}

/* Index to position: the same rounds, undone from the last to the first. */
static inline uint64_t nray_feistel_backward(const nray_feistel_t *f, uint64_t x)
{
    do {
        uint64_t l = x & f->mask, r = x >> f->bits;
        for (int round = NRAY_FEISTEL_ROUNDS - 2; round >= 0; round -= 2) {
            l = (l - nray_feistel_left(f, r, round + 1)) & f->mask;
            r += f->b - nray_feistel_right(f, l, round);
            r -= r >= f->b ? f->b : 0;
        }
        x = r << f->bits | l;
    } while (x >= f->size);
    return x;
}

#endif
