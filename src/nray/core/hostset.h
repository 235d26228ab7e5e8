/* A set of hosts that only grows, in memory which several processes may map.
 *
 * What must never happen: a host found in it that nobody put there. So nothing is ever changed once
 * it can be seen: a writer takes the next place in `entries`, writes it whole, and only then makes
 * it known in `index` by one compare-and-swap. A writer that dies in between loses a place and
 * nothing else. Entries bear the epoch that their writer has begun in: when the set is begun anew for
 * another scan, what a process of the one before still writes is nobody's.
 *
 * Hosts are found by a keyed hash and linear probing (Knuth, TAOCP 3, 6.4): who is scanned cannot
 * choose where it comes to lie. Memory is touched as hosts come: 4 bytes each all over the index, 20
 * bytes each in a row, which makes some 60 MB when it is full. */
#ifndef NRAY_HOSTSET_H
#define NRAY_HOSTSET_H

#include <stdint.h>
#include <string.h>

#include "siphash.h"

enum {
    NRAY_HOSTS_BITS = 22,
    NRAY_HOSTS_MAX = 1 << (NRAY_HOSTS_BITS - 1),
};

typedef struct {
    uint8_t addr[16];       /* IPv4: the first four, zeros behind them */
    uint32_t mark;          /* family, and above it the epoch */
} nray_known_t;

typedef struct {
    nray_key_t key;         /* written once, before anybody else maps it */
    uint32_t epoch;         /* from 1 */
    uint32_t used;          /* places taken */
    uint8_t apart[40];      /* the rest is written elsewhere: a cache line of its own */
    uint32_t index[1 << NRAY_HOSTS_BITS];   /* place, counted from 1; 0: free */
    nray_known_t entries[NRAY_HOSTS_MAX];
} nray_hosts_t;

static inline uint32_t nray_hosts_epoch(const nray_hosts_t *h)
{
    return __atomic_load_n(&h->epoch, __ATOMIC_ACQUIRE) & 0xFFFFFF;
}

static inline uint32_t nray_hosts_used(const nray_hosts_t *h)
{
    uint32_t used = __atomic_load_n(&h->used, __ATOMIC_ACQUIRE);
    return used < NRAY_HOSTS_MAX ? used : NRAY_HOSTS_MAX;
}

static inline nray_known_t nray_hosts_entry(uint32_t epoch, uint32_t family, const uint8_t *addr)
{
    nray_known_t made = {.mark = family | epoch << 8};
    memcpy(made.addr, addr, family == 4 ? 4 : 16);
    return made;
}

static inline uint32_t nray_hosts_slot(const nray_hosts_t *h, const nray_known_t *one)
{
    uint64_t words[2];
    memcpy(words, one->addr, 16);
    return (uint32_t)(nray_siphash_words(&h->key, words, 2, one->mark & 0xFF)
                      & ((1 << NRAY_HOSTS_BITS) - 1));
}

/* Whether a host is in it. */
static inline int nray_hosts_has(const nray_hosts_t *h, uint32_t epoch, uint32_t family,
                                 const uint8_t *addr)
{
    uint32_t slot, place;
    nray_known_t wanted;
    if (__atomic_load_n(&h->used, __ATOMIC_RELAXED) == 0)
        return 0;
    wanted = nray_hosts_entry(epoch, family, addr);
    slot = nray_hosts_slot(h, &wanted);
    while ((place = __atomic_load_n(&h->index[slot], __ATOMIC_ACQUIRE))) {
        if (memcmp(&h->entries[place - 1], &wanted, sizeof(wanted)) == 0)
            return 1;
        slot = (slot + 1) & ((1 << NRAY_HOSTS_BITS) - 1);
    }
    return 0;
}

/* Put a host in: 1 it is new, 0 it was there, -1 there is no room. Of two writers that put the same
 * one in at the same time, one is told that it is new. */
static inline int nray_hosts_add(nray_hosts_t *h, uint32_t epoch, uint32_t family,
                                 const uint8_t *addr)
{
    uint32_t slot, place, found;
    nray_known_t *one;
    if (nray_hosts_has(h, epoch, family, addr))
        return 0;
    if (__atomic_load_n(&h->used, __ATOMIC_RELAXED) >= NRAY_HOSTS_MAX)
        return -1;
    place = __atomic_fetch_add(&h->used, 1, __ATOMIC_ACQ_REL);
    if (place >= NRAY_HOSTS_MAX) {
        __atomic_store_n(&h->used, NRAY_HOSTS_MAX, __ATOMIC_RELAXED);
        return -1;
    }
    one = &h->entries[place];
    *one = nray_hosts_entry(epoch, family, addr);
    slot = nray_hosts_slot(h, one);
    for (;;) {
        found = 0;
        if (__atomic_compare_exchange_n(&h->index[slot], &found, place + 1, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            return 1;
        if (memcmp(&h->entries[found - 1], one, sizeof(*one)) == 0) {
            one->mark = 0;  /* another was faster */
            return 0;
        }
        slot = (slot + 1) & ((1 << NRAY_HOSTS_BITS) - 1);
    }
}

#endif
