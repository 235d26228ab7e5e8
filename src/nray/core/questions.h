/* Questions that a UDP port is asked, and what an answer must show to be one: a few steps of
 * comparison, handed over as data, so that the core need know no protocol.
 *
 * What must never happen: a byte read outside of answer or payload, whatever the steps say
 * (nray_step_fault refuses what does not fit the payload; the answer's end is asked at each step). */
#ifndef NRAY_QUESTIONS_H
#define NRAY_QUESTIONS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    NRAY_STEP_LEAST = 0, /* the answer has at least a bytes */
    NRAY_STEP_BYTE = 1,  /* its byte a, of which the bits b count, is c */
    NRAY_STEP_SAME = 2,  /* c bytes of it from b on are the payload's from a on */
    NRAY_STEP_BITS = 3,  /* its byte b is the payload's byte a, in the bits c */
    NRAY_STEP_FIND = 4,  /* the payload's b bytes from a on stand anywhere in it */
    NRAY_STEP_WHOLE = 5, /* it is the payload itself (which else is no answer) */
    NRAY_STEP_ELSE = 6,  /* what stands behind this does as well */
    NRAY_STEP_OWN = 7,   /* nothing to compare: b bytes from a on are free for an identifier */
    NRAY_STEP_KINDS = 8,
    NRAY_OWN_MAX = 8, /* what a cookie has */
};

typedef struct {
    uint16_t kind, a, b, c;
} nray_step_t;

typedef struct nray_question {
    const uint8_t *payload;
    uint16_t size, steps_used;
    uint16_t own_at, own_size;
    uint8_t checked; /* there is something to compare */
    const nray_step_t *steps;
    const struct nray_question *next; /* of the same port */
    uint64_t sum;                     /* nray_sum of the payload */
} nray_question_t;

/* What is wrong with a step for a payload of this size; NULL if nothing. */
static inline const char *nray_step_fault(const nray_step_t *s, size_t size)
{
    switch (s->kind) {
    case NRAY_STEP_LEAST:
    case NRAY_STEP_WHOLE:
    case NRAY_STEP_ELSE:
        return NULL;
    case NRAY_STEP_BYTE:
        return s->b > 255 || s->c > 255 ? "a byte is at most 255" : NULL;
    case NRAY_STEP_SAME:
        return (size_t)s->a + s->c > size ? "it compares what the payload does not have" : NULL;
    case NRAY_STEP_BITS:
        return s->a >= size  ? "it compares what the payload does not have"
               : s->c > 255 ? "a byte is at most 255"
                            : NULL;
    case NRAY_STEP_FIND:
        return !s->b || (size_t)s->a + s->b > size ? "it looks for what the payload does not have"
                                                   : NULL;
    case NRAY_STEP_OWN:
        return !s->b || s->b > NRAY_OWN_MAX      ? "an own identifier has 1 to 8 bytes"
               : (size_t)s->a + s->b > size ? "its identifier is not within the payload"
                                                 : NULL;
    default:
        return "there is no such kind";
    }
}

static inline int nray_step_holds(const nray_step_t *s, const uint8_t *sent, const uint8_t *got,
                                  size_t size)
{
    switch (s->kind) {
    case NRAY_STEP_LEAST:
        return size >= s->a;
    case NRAY_STEP_BYTE:
        return s->a < size && (got[s->a] & s->b) == s->c;
    case NRAY_STEP_SAME:
        return (size_t)s->b + s->c <= size && memcmp(got + s->b, sent + s->a, s->c) == 0;
    case NRAY_STEP_BITS:
        return s->b < size && ((got[s->b] ^ sent[s->a]) & s->c) == 0;
    case NRAY_STEP_FIND:
        return memmem(got, size, sent + s->a, s->b) != NULL;
    default:
        return 1;
    }
}

/* Whether `got` is an answer to `sent`, the question's payload as it was sent. */
static inline int nray_shows(const nray_question_t *q, const uint8_t *sent, const uint8_t *got,
                             size_t size)
{
    int same = size == q->size && memcmp(sent, got, size) == 0;
    int holds = 1, whole = 0;
    for (int i = 0; i < q->steps_used; i++) {
        const nray_step_t *s = &q->steps[i];
        if (s->kind == NRAY_STEP_ELSE) {
            if (holds && whole == same)
                return 1;
            holds = 1;
            whole = 0;
        } else if (s->kind == NRAY_STEP_WHOLE) {
            whole = 1;
        } else {
            holds = holds && nray_step_holds(s, sent, got, size);
        }
    }
    return holds && whole == same;
}

/* The payload with an identifier of this one target's, in `out` (of at least its size). */
static inline void nray_ask(const nray_question_t *q, uint64_t cookie, uint8_t *out)
{
    memcpy(out, q->payload, q->size);
    memcpy(out + q->own_at, &cookie, q->own_size);
}

/* What a datagram from a port tells: 1 that it answers one of the port's questions, or that none
 * has anything to tell answers by; 0 that it answers none. With `own`, questions were asked by
 * nray_ask with the cookie. */
static inline int nray_answers(const nray_question_t *q, int own, uint64_t cookie,
                               const uint8_t *got, size_t size)
{
    uint8_t asked[1400];
    for (; q; q = q->next) {
        const uint8_t *sent = q->payload;
        if (!q->checked)
            return 1;
        if (own && q->own_size) {
            nray_ask(q, cookie, asked);
            sent = asked;
        }
        if (nray_shows(q, sent, got, size))
            return 1;
    }
    return 0;
}

#endif
