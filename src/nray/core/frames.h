/* Probes as bytes, and answers read from bytes: no socket, no clock, no memory of its own.
 *
 * A probe proves itself by its cookie, a keyed hash over both addresses, both ports and the
 * protocol: the sequence number of a SYN is its low half. An answer (or an ICMP error that quotes
 * the probe) must show the same number, so that nothing need be kept of a probe, and nobody off
 * the path can forge an answer. The rest of the cookie serves as IP identification and as flow
 * label; a UDP probe, which has no number, is known by these where an ICMP error quotes it.
 *
 * Checksums (RFC 1071) are sums of the template's constant part, taken once, and of what a probe
 * puts in. All sums are over words as they lie in memory, which gives the same on any byte order. */
#ifndef NRAY_FRAMES_H
#define NRAY_FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "siphash.h"

enum {
    NRAY_ETHERNET = 14,
    /* A SYN carries one option, the largest segment, as nmap's does and as nearly every answering
     * stack wants; with it an Ethernet frame stays at its shortest. */
    NRAY_TCP = 24,
    NRAY_UDP = 8,
    NRAY_ECHO = 16, /* an echo request, with its cookie as data */
    NRAY_PAYLOAD_MAX = 1400,
    /* 25 cache lines, an odd number: frames side by side do not fall upon the same cache sets. */
    NRAY_FRAME_MAX = 1600,
    /* Extension headers of IPv6: numbers of IANA's, and how many are followed. */
    NRAY_HOP_BY_HOP = 0,
    NRAY_ROUTING = 43,
    NRAY_FRAGMENT = 44,
    NRAY_DESTINATION = 60,
    NRAY_EXTENSIONS_MAX = 8,
    NRAY_TTL = 64,       /* what Linux and macOS send */
    NRAY_WINDOW = 64240, /* what Linux offers first: 44 segments of 1,460 bytes */
};

/* ── sums ────────────────────────────────────────────────────────────────────────────────── */

static inline uint64_t nray_sum(const uint8_t *data, size_t size)
{
    uint64_t sum = 0;
    uint32_t word;
    size_t i = 0;
    for (; i + 4 <= size; i += 4) {
        memcpy(&word, data + i, 4);
        sum += word;
    }
    if (i < size) {
        word = 0;
        memcpy(&word, data + i, size - i);
        sum += word;
    }
    return sum;
}

static inline uint64_t nray_sum_port(uint16_t port)
{
    return __builtin_bswap16(port);
}

static inline uint16_t nray_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static inline void nray_put16(uint8_t *at, uint16_t value)
{
    value = __builtin_bswap16(value);
    memcpy(at, &value, 2);
}

static inline void nray_put32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, 4);
}

static inline uint16_t nray_get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t nray_get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* ── cookie ──────────────────────────────────────────────────────────────────────────────── */

static inline uint64_t nray_cookie(const nray_key_t *key, int family, const uint8_t *target,
                                   const uint8_t *source, uint16_t sport, uint16_t dport,
                                   uint8_t protocol)
{
    /* The message: target, source, ports as two little-endian words, protocol: 13 or 37 bytes.
     * As words at once: written to memory in small pieces it could not be read back in large ones
     * without a stall. */
    uint64_t words[4];
    uint64_t last = (uint64_t)sport | (uint64_t)dport << 16 | (uint64_t)protocol << 32;
    if (family == 4) {
        uint32_t to, from;
        memcpy(&to, target, 4);
        memcpy(&from, source, 4);
        words[0] = to | (uint64_t)from << 32;
        return nray_siphash_words(key, words, 1, last | 13ULL << 56);
    }
    memcpy(words, target, 16);
    memcpy(words + 2, source, 16);
    return nray_siphash_words(key, words, 4, last | 37ULL << 56);
}

/* The port (or the identifier of an echo request) that a probe leaves from, out of `width` from `first` on: always the same for one
 * target and port, spread evenly over them (paths that share load choose by it). */
static inline uint16_t nray_source_port(const nray_key_t *key, int family, const uint8_t *target,
                                        uint16_t dport, uint16_t first, uint32_t width)
{
    uint64_t low = 0, high = 0;
    if (family == 4) {
        memcpy(&low, target, 4);
    } else {
        memcpy(&high, target, 8);
        memcpy(&low, target + 8, 8);
    }
    low = (low ^ (uint64_t)dport << 40 ^ key->k0) * 0xff51afd7ed558ccdULL;
    low = (low ^ low >> 32 ^ high ^ key->k1) * 0xc4ceb9fe1a85ec53ULL;
    return (uint16_t)(first + ((low >> 32) * width >> 32));
}

/* ── probes ──────────────────────────────────────────────────────────────────────────────── */

/* What all probes of one protocol over one route have in common. */
typedef struct {
    uint8_t head[NRAY_ETHERNET + 40 + NRAY_TCP];
    uint8_t family, protocol;
    uint64_t ip_sum;  /* IPv4: the header without identification, length, target and checksum */
    uint64_t sum;     /* of source, protocol and the constant part of the transport header */
} nray_template_t;

static inline void nray_prepare(nray_template_t *t, int family, int protocol,
                                const uint8_t *source, const uint8_t *own_mac,
                                const uint8_t *next_mac, uint32_t mtu)
{
    uint8_t *ip = t->head + NRAY_ETHERNET;
    uint8_t *body = ip + (family == 4 ? 20 : 40);
    uint32_t segment = mtu - (family == 4 ? 40 : 60);
    memset(t, 0, sizeof *t);
    t->family = (uint8_t)family;
    t->protocol = (uint8_t)protocol;
    memcpy(t->head, next_mac, 6);
    memcpy(t->head + 6, own_mac, 6);
    nray_put16(t->head + 12, family == 4 ? 0x0800 : 0x86dd);
    if (family == 4) {
        ip[0] = 0x45;
        ip[6] = 0x40; /* don't fragment: then the identification is free to be anything (RFC 6864) */
        ip[8] = NRAY_TTL;
        ip[9] = (uint8_t)protocol;
        memcpy(ip + 12, source, 4);
        t->ip_sum = nray_sum(ip, 20);
        t->sum = nray_sum(source, 4);
    } else {
        ip[0] = 0x60;
        ip[6] = (uint8_t)(protocol == 1 ? 58 : protocol);
        ip[7] = NRAY_TTL;
        memcpy(ip + 8, source, 16);
        t->sum = nray_sum(source, 16);
    }
    if (protocol == 1) {
        if (family == 4)
            t->sum = 0; /* ICMP sums no pseudo-header (RFC 792), ICMPv6 does (RFC 4443, 2.3) */
        else
            t->sum += nray_sum_port(58) + nray_sum_port(NRAY_ECHO);
        body[0] = family == 4 ? 8 : 128;
        t->sum += nray_sum(body, 2);
        return;
    }
    t->sum += nray_sum_port((uint16_t)protocol);
    if (protocol == 6) {
        body[12] = NRAY_TCP / 4 << 4;
        body[13] = 2; /* SYN */
        nray_put16(body + 14, NRAY_WINDOW);
        body[20] = 2; /* option: largest segment (RFC 9293, 3.7.1) */
        body[21] = 4;
        nray_put16(body + 22, (uint16_t)(segment > 65535 ? 65535 : segment));
        t->sum += nray_sum(body, NRAY_TCP) + nray_sum_port(NRAY_TCP);
    }
}

/* Writes a probe behind NRAY_ETHERNET bytes for a header, which is filled in, too; `next_mac`
 * overrides the template's. `payload_sum` is nray_sum of the payload of a UDP probe. Returns the
 * size without the Ethernet header. */
static inline size_t nray_build(const nray_template_t *t, uint8_t *out, const uint8_t *next_mac,
                                const uint8_t *target, uint16_t sport, uint16_t dport,
                                uint64_t cookie, const uint8_t *payload, size_t payload_size,
                                uint64_t payload_sum)
{
    uint8_t *ip = out + NRAY_ETHERNET;
    uint8_t *body;
    uint64_t sum = t->sum + nray_sum_port(sport) + nray_sum_port(dport);
    size_t size = t->protocol == 6    ? NRAY_TCP
                  : t->protocol == 17 ? NRAY_UDP + payload_size
                                      : NRAY_ECHO;
    uint16_t folded;
    if (t->family == 4) {
        uint64_t ip_sum;
        uint16_t id = (uint16_t)(cookie >> 32), length = __builtin_bswap16((uint16_t)(20 + size));
        uint32_t to;
        memcpy(out, t->head, NRAY_ETHERNET + 20 + NRAY_TCP);
        body = ip + 20;
        memcpy(&to, target, 4);
        memcpy(ip + 2, &length, 2);
        memcpy(ip + 4, &id, 2);
        memcpy(ip + 16, &to, 4);
        ip_sum = t->ip_sum + length + id + to;
        sum += t->protocol == 1 ? 0 : to;
        folded = nray_fold(ip_sum);
        memcpy(ip + 10, &folded, 2);
    } else {
        memcpy(out, t->head, sizeof t->head);
        body = ip + 40;
        ip[1] = (uint8_t)(cookie >> 48) & 15; /* flow label (RFC 6437) */
        ip[2] = (uint8_t)(cookie >> 40);
        ip[3] = (uint8_t)(cookie >> 32);
        nray_put16(ip + 4, (uint16_t)size);
        memcpy(ip + 24, target, 16);
        sum += nray_sum(target, 16);
    }
    if (next_mac)
        memcpy(out, next_mac, 6);
    if (t->protocol == 1) {
        nray_put16(body + 4, sport);
        nray_put16(body + 6, (uint16_t)cookie);
        memcpy(body + 8, &cookie, 8);
        sum += nray_sum_port((uint16_t)cookie) + (uint32_t)cookie + (cookie >> 32);
        folded = nray_fold(sum);
        memcpy(body + 2, &folded, 2);
        return (size_t)(body - ip) + size;
    }
    nray_put16(body, sport);
    nray_put16(body + 2, dport);
    if (t->protocol == 6) {
        nray_put32(body + 4, (uint32_t)cookie);
        sum += __builtin_bswap32((uint32_t)cookie);
        folded = nray_fold(sum);
        memcpy(body + 16, &folded, 2);
    } else {
        nray_put16(body + 4, (uint16_t)size);
        memcpy(body + NRAY_UDP, payload, payload_size);
        sum += 2 * nray_sum_port((uint16_t)size) + payload_sum; /* the length counts twice */
        folded = nray_fold(sum);
        if (folded == 0)
            folded = 0xffff; /* zero would mean that there is no sum (RFC 768) */
        memcpy(body + 6, &folded, 2);
    }
    return (size_t)(body - ip) + size;
}

/* ── answers ─────────────────────────────────────────────────────────────────────────────── */

enum {
    NRAY_NOTHING = 0,
    NRAY_SYN_ACK = 1,
    NRAY_RST = 2,
    NRAY_UDP_ANSWER = 3,
    NRAY_ICMP = 4, /* an error that quotes a probe */
    NRAY_ECHO_REPLY = 5,
};

typedef struct {
    uint8_t what, family, protocol, ttl; /* protocol and what follows: of the probe it is about */
    uint8_t type, code;
    uint16_t sport, dport; /* ours, the target's; host byte order */
    uint32_t number;       /* acknowledgement, or the (quoted) sequence number */
    uint16_t id;           /* quoted: as in nray_build */
    uint32_t label;
    const uint8_t *own, *target;
    const uint8_t *payload;
    size_t payload_size;
} nray_answer_t;

static inline int nray_read_quoted(const uint8_t *ip, size_t size, int family, nray_answer_t *out)
{
    size_t head;
    if (family == 4) {
        head = size >= 20 ? (size_t)(ip[0] & 15) * 4 : 0;
        if (head < 20 || ip[0] >> 4 != 4 || size < head + 8 || (nray_get16(ip + 6) & 0x1fff))
            return 0;
        out->protocol = ip[9];
        out->own = ip + 12;
        out->target = ip + 16;
        memcpy(&out->id, ip + 4, 2);
    } else {
        head = 40;
        if (size < head + 8 || ip[0] >> 4 != 6)
            return 0;
        out->protocol = ip[6];
        out->own = ip + 8;
        out->target = ip + 24;
        out->label = nray_get32(ip) & 0xfffff;
    }
    if (out->protocol == (family == 4 ? 1 : 58)) {
        if (ip[head] != (family == 4 ? 8 : 128))
            return 0;
        out->protocol = 1;
        out->sport = nray_get16(ip + head + 4);
        out->number = nray_get16(ip + head + 6);
        out->what = NRAY_ICMP;
        return 1;
    }
    if (out->protocol != 6 && out->protocol != 17)
        return 0;
    out->sport = nray_get16(ip + head);
    out->dport = nray_get16(ip + head + 2);
    if (out->protocol == 6)
        out->number = nray_get32(ip + head + 4);
    out->what = NRAY_ICMP;
    return 1;
}

/* Where an IPv6 packet goes on behind its extension headers (RFC 8200, section 4), and by which
 * protocol; 0 if it is cut off before, a later fragment, or has more of them than there are kinds,
 * each twice. */
static inline size_t nray_past_extensions(const uint8_t *ip, size_t size, uint8_t *protocol)
{
    size_t at = 40;
    *protocol = ip[6];
    for (int k = 0; k <= NRAY_EXTENSIONS_MAX; k++) {
        uint8_t kind = *protocol;
        if (kind != NRAY_HOP_BY_HOP && kind != NRAY_ROUTING && kind != NRAY_FRAGMENT &&
            kind != NRAY_DESTINATION)
            return at;
        if (at + 8 > size)
            return 0;
        if (kind == NRAY_FRAGMENT && (nray_get16(ip + at + 2) & 0xfff8))
            return 0;
        *protocol = ip[at];
        at += kind == NRAY_FRAGMENT ? 8 : ((size_t)ip[at + 1] + 1) * 8;
        if (at > size)
            return 0;
    }
    return 0;
}

/* Reads an IP packet of `size` bytes (cut off, perhaps); 0 if it is no answer to any probe. What
 * it claims is not yet believed: the caller compares the cookie. */
static inline int nray_read_answer(const uint8_t *ip, size_t size, nray_answer_t *out)
{
    const uint8_t *body;
    size_t head, left;
    uint8_t protocol, flags;
    memset(out, 0, sizeof *out);
    if (size < 20)
        return 0;
    if (ip[0] >> 4 == 4) {
        head = (size_t)(ip[0] & 15) * 4;
        if (head < 20 || size < head || (nray_get16(ip + 6) & 0x1fff)) /* a later fragment */
            return 0;
        out->family = 4;
        protocol = ip[9];
        out->ttl = ip[8];
        out->own = ip + 16;
        out->target = ip + 12;
    } else if (ip[0] >> 4 == 6 && size >= 40) {
        head = nray_past_extensions(ip, size, &protocol);
        if (head == 0)
            return 0;
        out->family = 6;
        out->ttl = ip[7];
        out->own = ip + 24;
        out->target = ip + 8;
    } else {
        return 0;
    }
    body = ip + head;
    left = size - head;
    if (protocol == 6) {
        if (left < 20)
            return 0;
        flags = body[13];
        out->what = flags & 4 ? NRAY_RST : (flags & 0x12) == 0x12 ? NRAY_SYN_ACK : NRAY_NOTHING;
        out->number = nray_get32(body + 8);
    } else if (protocol == 17) {
        if (left < 8)
            return 0;
        out->what = NRAY_UDP_ANSWER;
        out->payload = body + 8;
        out->payload_size = left - 8;
        if (nray_get16(body + 4) < left) /* behind it stands what pads a short Ethernet frame */
            out->payload_size = nray_get16(body + 4) < 8 ? 0 : (size_t)nray_get16(body + 4) - 8;
    } else if (protocol == (out->family == 4 ? 1 : 58)) {
        if (left < 8)
            return 0;
        out->type = body[0];
        out->code = body[1];
        if (out->type == (out->family == 4 ? 0 : 129)) {
            if (left < NRAY_ECHO)
                return 0;
            out->what = NRAY_ECHO_REPLY;
            out->protocol = 1;
            out->sport = nray_get16(body + 4);
            out->number = nray_get16(body + 6);
            out->payload = body + 8;
            out->payload_size = left - 8;
            return 1;
        }
        if (out->family == 4 ? out->type != 3 && out->type != 11 && out->type != 12
                             : out->type != 1 && out->type != 3 && out->type != 4)
            return 0;
        return nray_read_quoted(body + 8, left - 8, out->family, out);
    } else {
        return 0;
    }
    out->protocol = protocol;
    out->sport = nray_get16(body + 2);
    out->dport = nray_get16(body);
    return out->what != NRAY_NOTHING;
}

/* Whether an answer shows the cookie of the probe that it claims to be about. */
static inline int nray_shows_cookie(const nray_key_t *key, const nray_answer_t *a)
{
    uint64_t cookie =
        nray_cookie(key, a->family, a->target, a->own, a->sport, a->dport, a->protocol);
    uint32_t number = (uint32_t)cookie;
    switch (a->what) {
    case NRAY_SYN_ACK:
        return a->number == number + 1;
    case NRAY_RST: /* some stacks acknowledge the number itself */
        return a->number == number + 1 || a->number == number;
    case NRAY_ICMP:
        if (a->protocol == 6)
            return a->number == number;
        if (a->protocol == 1)
            return a->number == (uint16_t)cookie;
        return a->family == 4 ? a->id == (uint16_t)(cookie >> 32)
                              : a->label == (uint32_t)(cookie >> 32 & 0xfffff);
    case NRAY_ECHO_REPLY:
        return a->number == (uint16_t)cookie && memcmp(a->payload, &cookie, 8) == 0;
    default:
        return 1; /* a datagram shows none: its ports must do */
    }
}

#endif
