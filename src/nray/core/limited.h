/* Hosts that send only so many ICMP errors a second, so that most of their closed UDP ports seem
 * silent at a fast rate: which they are, how fast they may be asked, and what waits to be asked
 * again. No socket, no clock: the engine says what time it is and does what is due.
 *
 * A host of which an ICMP error came back about one port, and nothing about others, is asked about
 * that one port again: NRAY_TRIAL times, ten milliseconds apart. If all but one are answered (one
 * may be lost), its silent ports are asked once more, half as fast as that was: so a burst of half a trial, that
 * the host has saved up, makes no difference. Else the trial is made again, four times slower, until
 * the pace is that of the slowest hosts there are in number: Linux tells each peer of one error a
 * second, after a burst of six. What is silent then, is silent. Nothing waits for longer than
 * NRAY_LIMIT_MOST_NS, or finds no room without being told so.
 *
 * What may not be sent when it is due (for a cap on its host) is put off: it waits on here, for only
 * what was asked may be taken for silent. A trial goes on as slowly as it is let, and where that is
 * slower than any trial, there is none.
 *
 * What is known of a host is forgotten when another one needs its place and nothing waits for it:
 * all of memory is NRAY_LIMIT_HOSTS places and NRAY_LIMIT_WAITING probes. */
#ifndef NRAY_LIMITED_H
#define NRAY_LIMITED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    NRAY_LIMIT_BITS = 12,
    NRAY_LIMIT_HOSTS = 1 << NRAY_LIMIT_BITS,
    NRAY_LIMIT_WAITING = 1 << 16,
    NRAY_TRIAL = 20,
    /* Answers that may be missing from a trial. */
    NRAY_TRIAL_LOST = 1,
    NRAY_LIMIT_NOTHING = 0,
    NRAY_LIMIT_TRY = 1, /* a port that is known to be answered */
    NRAY_LIMIT_ASK = 2, /* one that was silent */
    NRAY_HOST_FREE = 0,
    NRAY_HOST_KNOWN = 1,
    NRAY_HOST_TRYING = 2,
    NRAY_HOST_ASKING = 3,
};

#define NRAY_LIMIT_FIRST_NS 10000000LL
#define NRAY_LIMIT_SLOWER 4
/* The slowest trial: slower ones would take longer than they save. */
#define NRAY_LIMIT_TRIED_NS 160000000LL
#define NRAY_LIMIT_SLOWEST_NS 1100000000LL
/* What a slice is held up at most, after its last pass: over fifty ports of a host that tells one a
 * second; more of them stay open|filtered. */
#define NRAY_LIMIT_MOST_NS 60000000000LL
/* An answer to a trial is waited for so long at most; a host that is further away than this is
 * asked slowly. */
#define NRAY_LIMIT_WAIT_NS 1000000000LL
#define NRAY_NEVER INT64_MAX

typedef struct {
    uint8_t addr[16];
    uint8_t family, stage;
    uint8_t sent, answered; /* of the trial */
    uint16_t port;          /* about which an error came back */
    int32_t first, last;    /* of those that wait */
    int64_t interval, next_at, began;
} nray_host_t;

typedef struct {
    uint64_t token;
    int64_t until;
    int32_t next;
} nray_waiting_t;

typedef struct {
    nray_host_t hosts[NRAY_LIMIT_HOSTS];
    nray_waiting_t waiting[NRAY_LIMIT_WAITING];
    int32_t active[NRAY_LIMIT_HOSTS]; /* hosts that something waits for */
    int32_t active_used, round;
    int32_t free, made;
    int32_t sent_first, sent_last; /* asked, and perhaps answered yet */
    int known;                     /* any host was ever noted */
    int off;
    int64_t wait, slowest, wake;
} nray_limits_t;

typedef struct {
    int what;
    uint64_t token;
    uint8_t family;
    uint8_t addr[16];
    uint16_t port;
    int32_t at; /* of its host among those that something waits for */
} nray_due_t;

/* `timeout` of a probe, ns, and how many engines ask the same hosts. */
static inline nray_limits_t *nray_limits_new(int64_t timeout, int sharers)
{
    nray_limits_t *t = (nray_limits_t *)calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->free = t->sent_first = t->sent_last = -1;
    t->wait = timeout < NRAY_LIMIT_WAIT_NS ? timeout : NRAY_LIMIT_WAIT_NS;
    t->slowest = NRAY_LIMIT_SLOWEST_NS * sharers;
    t->wake = NRAY_NEVER;
    return t;
}

/* Packets to one host leave so far apart, ns: where that is as slow as any host needs, what was silent
 * was asked slowly enough, and is not asked again. */
static inline void nray_limit_spaced(nray_limits_t *t, int64_t every)
{
    t->off = every >= t->slowest;
}

static inline nray_host_t *nray_limit_place(nray_limits_t *t, int family, const uint8_t *addr)
{
    uint64_t low = 0, high = 0;
    if (family == 4) {
        memcpy(&low, addr, 4);
    } else {
        memcpy(&high, addr, 8);
        memcpy(&low, addr + 8, 8);
    }
    low = (low ^ high * 0xff51afd7ed558ccdULL) * 0x9E3779B97F4A7C15ULL;
    return &t->hosts[low >> (64 - NRAY_LIMIT_BITS)];
}

static inline int nray_limit_is(const nray_host_t *h, int family, const uint8_t *addr)
{
    return h->stage != NRAY_HOST_FREE && h->family == family &&
           memcmp(h->addr, addr, family == 4 ? 4 : 16) == 0;
}

/* An ICMP error came back about a port of a host. Whether it may answer a trial. */
static inline int nray_limit_note(nray_limits_t *t, int family, const uint8_t *addr, uint16_t port)
{
    nray_host_t *h = nray_limit_place(t, family, addr);
    if (t->off)
        return 0;
    t->known = 1;
    if (nray_limit_is(h, family, addr)) {
        if (h->stage != NRAY_HOST_TRYING || h->port != port)
            return 0;
        if (h->answered < h->sent)
            h->answered++;
        return 1;
    }
    if (h->stage != NRAY_HOST_FREE && h->first >= 0)
        return 0; /* something waits for the one that is there */
    memset(h, 0, sizeof *h);
    h->family = (uint8_t)family;
    memcpy(h->addr, addr, family == 4 ? 4 : 16);
    h->stage = NRAY_HOST_KNOWN;
    h->port = port;
    h->first = h->last = -1;
    return 0;
}

/* Take a silent probe of a host to be asked again; 0 if the host never said anything, or there is
 * no room. */
static inline int nray_limit_push(nray_limits_t *t, int family, const uint8_t *addr,
                                  uint64_t token, int64_t now)
{
    nray_host_t *h = nray_limit_place(t, family, addr);
    int32_t k;
    if (!nray_limit_is(h, family, addr))
        return 0;
    if (t->free >= 0) {
        k = t->free;
        t->free = t->waiting[k].next;
    } else if (t->made < NRAY_LIMIT_WAITING) {
        k = t->made++;
    } else {
        return 0;
    }
    t->waiting[k].token = token;
    t->waiting[k].until = now + NRAY_LIMIT_MOST_NS;
    t->waiting[k].next = -1;
    if (h->first < 0) {
        t->active[t->active_used++] = (int32_t)(h - t->hosts);
        h->first = k;
        if (h->stage == NRAY_HOST_KNOWN) {
            h->stage = NRAY_HOST_TRYING;
            h->interval = NRAY_LIMIT_FIRST_NS;
            h->sent = h->answered = 0;
            h->next_at = now;
        }
    } else {
        t->waiting[h->last].next = k;
    }
    h->last = k;
    t->wake = now;
    return 1;
}

static inline void nray_limit_free(nray_limits_t *t, int32_t k)
{
    t->waiting[k].next = t->free;
    t->free = k;
}

static inline int32_t nray_limit_pop(nray_limits_t *t, nray_host_t *h, int32_t at)
{
    int32_t k = h->first;
    h->first = t->waiting[k].next;
    if (h->first < 0)
        t->active[at] = t->active[--t->active_used];
    return k;
}

/* A probe that is to be told as silent now: its time is over, or it was asked and has not answered.
 * 0 if there is none. */
static inline int nray_limit_settle(nray_limits_t *t, int64_t now, uint64_t *token)
{
    int32_t k = t->sent_first;
    if (k >= 0 && t->waiting[k].until <= now) {
        t->sent_first = t->waiting[k].next;
        *token = t->waiting[k].token;
        nray_limit_free(t, k);
        return 1;
    }
    if (now < t->wake)
        return 0;
    for (int32_t at = 0; at < t->active_used; at++) {
        nray_host_t *h = &t->hosts[t->active[at]];
        if (t->waiting[h->first].until > now)
            continue;
        k = nray_limit_pop(t, h, at);
        if (h->first < 0 && h->stage == NRAY_HOST_TRYING)
            h->stage = NRAY_HOST_KNOWN;
        *token = t->waiting[k].token;
        nray_limit_free(t, k);
        return 1;
    }
    return 0;
}

/* Ask a host as slowly as any, from now on: what it was asked last may have taken its turn. */
static inline void nray_limit_slowest(const nray_limits_t *t, nray_host_t *h, int64_t now)
{
    h->interval = t->slowest;
    h->stage = NRAY_HOST_ASKING;
    h->next_at = now + h->interval;
}

/* How a trial stands: 1 it is passed, -1 it is not, 0 it goes on. */
static inline int nray_limit_judge(const nray_limits_t *t, const nray_host_t *h, int64_t now)
{
    int64_t old = now < h->began + t->wait ? 0 : (now - t->wait - h->began) / h->interval + 1;
    int sent = h->sent;
    if (h->answered >= NRAY_TRIAL - NRAY_TRIAL_LOST)
        return 1;
    if (sent == 0)
        return 0;
    if (old < sent)
        sent = (int)old;
    return sent - h->answered > NRAY_TRIAL_LOST ? -1 : 0;
}

/* What is due now, at most one thing; else NRAY_LIMIT_NOTHING, and t->wake says when to look again.
 * Nothing is taken: of nray_limit_take, nray_limit_pass and nray_limit_put_off, one has to follow. */
static inline void nray_limit_next(nray_limits_t *t, int64_t now, nray_due_t *due)
{
    due->what = NRAY_LIMIT_NOTHING;
    if (now < t->wake)
        return;
    t->wake = NRAY_NEVER;
    for (int32_t n = 0; n < t->active_used; n++) {
        int32_t at = (t->round + n) % t->active_used;
        nray_host_t *h = &t->hosts[t->active[at]];
        int64_t next;
        if (h->stage == NRAY_HOST_TRYING) {
            int passed = nray_limit_judge(t, h, now);
            if (passed > 0) {
                /* A busy machine may have tried it more slowly than it meant to. */
                int64_t apart = (h->next_at - h->interval - h->began) / (h->sent - 1);
                if (apart > h->interval)
                    h->interval = apart;
                h->stage = NRAY_HOST_ASKING;
                h->interval *= 2;
                if (h->interval > t->slowest)
                    h->interval = t->slowest;
                h->next_at = now + h->interval;
            } else if (passed < 0) {
                h->interval *= NRAY_LIMIT_SLOWER;
                h->sent = h->answered = 0;
                h->next_at = now + h->interval;
                if (h->interval > NRAY_LIMIT_TRIED_NS)
                    nray_limit_slowest(t, h, now);
            }
        }
        next = h->next_at;
        if (h->stage == NRAY_HOST_TRYING && h->sent == NRAY_TRIAL)
            next = now + NRAY_LIMIT_FIRST_NS; /* nothing more to send: it is judged soon */
        else if (next <= now) {
            due->family = h->family;
            memcpy(due->addr, h->addr, 16);
            due->at = at;
            if (h->stage == NRAY_HOST_TRYING) {
                due->what = NRAY_LIMIT_TRY;
                due->port = h->port;
                due->token = 0;
            } else {
                due->what = NRAY_LIMIT_ASK;
                due->token = t->waiting[h->first].token;
            }
            t->wake = now;
            return;
        }
        if (t->waiting[h->first].until < next)
            next = t->waiting[h->first].until;
        if (next < t->wake)
            t->wake = next;
    }
}

/* It goes out: what is to be asked is taken out; `keep`: and told by nray_limit_settle if it stays
 * silent. */
static inline void nray_limit_take(nray_limits_t *t, int64_t now, int keep, const nray_due_t *due)
{
    nray_host_t *h = &t->hosts[t->active[due->at]];
    h->next_at = now + h->interval;
    t->round = due->at + 1;
    if (due->what == NRAY_LIMIT_TRY) {
        if (h->sent++ == 0)
            h->began = now;
        return;
    }
    int32_t k = nray_limit_pop(t, h, due->at);
    if (!keep) {
        nray_limit_free(t, k);
        return;
    }
    t->waiting[k].until = now + t->wait;
    t->waiting[k].next = -1;
    if (t->sent_first < 0)
        t->sent_first = k;
    else
        t->waiting[t->sent_last].next = k;
    t->sent_last = k;
}

/* It need not go out, for it was answered meanwhile: its host may be asked the next at once. */
static inline void nray_limit_pass(nray_limits_t *t, const nray_due_t *due)
{
    nray_limit_free(t, nray_limit_pop(t, &t->hosts[t->active[due->at]], due->at));
}

/* It may not go out before then. */
static inline void nray_limit_put_off(nray_limits_t *t, const nray_due_t *due, int64_t now,
                                      int64_t until)
{
    nray_host_t *h = &t->hosts[t->active[due->at]];
    if (due->what == NRAY_LIMIT_TRY && h->sent) {
        int64_t apart = until - (h->next_at - h->interval);
        if (apart > NRAY_LIMIT_TRIED_NS)
            nray_limit_slowest(t, h, now);
        else if (apart > h->interval)
            h->interval = apart;
    }
    if (h->next_at < until)
        h->next_at = until;
    t->round = due->at + 1;
}

/* Whether nray_limit_next may have something. */
static inline int nray_limit_due(const nray_limits_t *t, int64_t now)
{
    return t->active_used && now >= t->wake;
}

/* When something may be due, ns. */
static inline int64_t nray_limit_wake(const nray_limits_t *t)
{
    int64_t wake = t->active_used ? t->wake : NRAY_NEVER;
    if (t->sent_first >= 0 && t->waiting[t->sent_first].until < wake)
        wake = t->waiting[t->sent_first].until;
    return wake;
}

/* Drop all tokens whose upper half is this; how many there were. */
static inline int32_t nray_limit_drop(nray_limits_t *t, uint32_t upper)
{
    int32_t dropped = 0;
    for (int32_t at = t->active_used - 1; at >= -1; at--) {
        nray_host_t *h = at < 0 ? NULL : &t->hosts[t->active[at]];
        int32_t k = h ? h->first : t->sent_first, first = -1, last = -1;
        while (k >= 0) {
            int32_t next = t->waiting[k].next;
            if (t->waiting[k].token >> 32 == upper) {
                nray_limit_free(t, k);
                dropped++;
            } else {
                if (first < 0)
                    first = k;
                else
                    t->waiting[last].next = k;
                last = k;
                t->waiting[k].next = -1;
            }
            k = next;
        }
        if (!h) {
            t->sent_first = first;
            t->sent_last = last;
            continue;
        }
        h->first = first;
        h->last = last;
        if (first < 0) {
            t->active[at] = t->active[--t->active_used];
            if (h->stage == NRAY_HOST_TRYING)
                h->stage = NRAY_HOST_KNOWN;
        }
    }
    return dropped;
}

#endif
