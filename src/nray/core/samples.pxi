# Samples: packets to ports that have answered before, sent again to learn how many get lost.
#
# A target's silence says nothing about the path; that of a port that has answered does. A few such
# ports are remembered, and now and then one is probed again, from a source port that no other probe
# leaves from: by it the answer is known to be the sample's, not a late one to the scan's probe, nor
# told twice. What was asked, answered and lost goes to the counters that all workers of a node
# share (bucket.pxi), under the number of the stretch of time in which it was asked. Nothing of it
# touches the slices' accounts.
#
# No target is bothered by it: a port gets a sample each KNOWN_EVERY_NS at most, and none after
# SILENT_IN_A_ROW that it did not answer (it is gone, or it has had enough of us). Of all packets one
# in SAMPLE_EVERY is a sample at most, and of a second's SAMPLES_A_SECOND for the whole node.

cdef enum:
    SAMPLES_MAX = 1024      # waiting for answers at once
    KNOWN_MAX = 256
    # Once so many are known, one in so many answers takes the place of an older one.
    KNOWN_FRESH = 16
    SILENT_IN_A_ROW = 3
    SAMPLE_EVERY = 8
    SAMPLES_A_SECOND = 500
    KNOWN_LOOKED_AT = 16

cdef int64_t KNOWN_EVERY_NS = 100_000_000
# How long a sample is waited for: four times the slowest answer of late, within these. The lower
# one is what queues add to a path that was empty.
cdef int64_t SAMPLE_LEAST_NS = 250_000_000
cdef int64_t SAMPLE_MOST_NS = 1_000_000_000

cdef enum:
    SAMPLE_FREE = 0
    SAMPLE_MADE = 1
    SAMPLE_OUT = 2
    SAMPLE_DONE = 3         # answered, or never sent; freed when its turn in the row comes

cdef struct sample_t:
    probe_t probe
    int64_t sent_at         # ns
    int64_t stretch
    uint16_t known
    uint8_t state

cdef struct known_t:
    probe_t probe
    int64_t asked_at        # ns
    uint8_t silent

cdef struct samples_t:
    sample_t *slots         # a row: from `oldest` on, `out` of them, index modulo `width`
    known_t *known
    int64_t next_at         # ns
    int64_t every_ns
    int64_t slowest_ns
    int32_t width, oldest, out
    int32_t known_used, known_next, known_oldest
    uint32_t since          # packets that left since the last one
    uint32_t heard
    uint16_t first          # source port of slot 0


cdef int samples_open(samples_t *s, uint16_t first, uint32_t width, int shards) noexcept:
    """Samples from these source ports; -1 if there is no memory."""
    memset(s, 0, sizeof(samples_t))
    s.first = first
    s.width = <int32_t>min(width, <uint32_t>SAMPLES_MAX)
    s.every_ns = 1_000_000_000 // SAMPLES_A_SECOND * shards
    s.slots = <sample_t *>calloc(s.width, sizeof(sample_t))
    s.known = <known_t *>calloc(KNOWN_MAX, sizeof(known_t))
    return 0 if s.slots != NULL and s.known != NULL else -1


cdef void samples_close(samples_t *s) noexcept:
    free(s.slots)
    free(s.known)


cdef inline bint same_probe(const probe_t *one, const probe_t *other) noexcept nogil:
    return (one.family == other.family and one.protocol == other.protocol
            and one.port == other.port and memcmp(one.addr, other.addr, 16) == 0)


cdef void samples_learn(samples_t *s, const probe_t *probe, int64_t took_ns) noexcept nogil:
    """A probe of the scan has been answered, for the first time."""
    cdef int32_t k
    if took_ns > s.slowest_ns:
        s.slowest_ns = took_ns
    s.heard += 1
    if s.known_used < KNOWN_MAX:
        k = s.known_used
        s.known_used += 1
    elif s.heard % KNOWN_FRESH == 0:
        k = s.known_oldest
        s.known_oldest = (k + 1) % KNOWN_MAX
    else:
        return
    memset(&s.known[k], 0, sizeof(known_t))
    s.known[k].probe = probe[0]


cdef inline bint samples_due(const samples_t *s, int64_t now) noexcept nogil:
    return (s.since >= SAMPLE_EVERY and now >= s.next_at and s.known_used > 0
            and s.out < s.width)


cdef int32_t samples_make(samples_t *s, int64_t now, int64_t stretch) noexcept nogil:
    """The index of the next sample; -1 if none of the ports that were looked at may be asked."""
    cdef int32_t k, i, slot
    s.next_at = now + s.every_ns
    s.since = 0
    for i in range(KNOWN_LOOKED_AT):
        if s.known_next >= s.known_used:
            s.known_next = 0
        k = s.known_next
        s.known_next += 1
        if s.known[k].silent >= SILENT_IN_A_ROW:
            # The last takes its place; its samples that are out are told apart by `same_probe`.
            s.known_used -= 1
            s.known[k] = s.known[s.known_used]
            if s.known_used == 0:
                return -1
            if s.known_oldest >= s.known_used:
                s.known_oldest = 0
            continue
        if now - s.known[k].asked_at >= KNOWN_EVERY_NS:
            s.known[k].asked_at = now
            slot = (s.oldest + s.out) % s.width
            s.out += 1
            s.slots[slot].probe = s.known[k].probe
            s.slots[slot].known = <uint16_t>k
            s.slots[slot].stretch = stretch
            s.slots[slot].state = SAMPLE_MADE
            return slot
    return -1


cdef inline void samples_sent(samples_t *s, int32_t slot, int64_t now, Bucket shared) noexcept nogil:
    s.slots[slot].state = SAMPLE_OUT
    s.slots[slot].sent_at = now
    shared.tell(TOLD_ASKED, s.slots[slot].stretch)


cdef void samples_hear(samples_t *s, uint16_t sport, const probe_t *probe, int64_t at,
                       Bucket shared) noexcept nogil:
    """Something has come back to a source port of samples."""
    cdef int32_t slot = sport - s.first
    cdef sample_t *one
    if slot >= s.width:
        return
    one = &s.slots[slot]
    if one.state != SAMPLE_OUT or not same_probe(&one.probe, probe):
        return
    one.state = SAMPLE_DONE
    shared.tell(TOLD_ANSWERED, one.stretch)
    # What was slow once is forgotten in time.
    s.slowest_ns = max(at - one.sent_at, s.slowest_ns - (s.slowest_ns >> 8))
    if one.known < s.known_used and same_probe(&s.known[one.known].probe, probe):
        s.known[one.known].silent = 0


cdef int64_t samples_expire(samples_t *s, int64_t now, Bucket shared) noexcept nogil:
    """Count what was not answered in time; when there may be more, ns."""
    cdef int64_t limit = min(max(4 * s.slowest_ns, SAMPLE_LEAST_NS), SAMPLE_MOST_NS) + RING_SLACK_NS
    cdef sample_t *one
    while s.out > 0:
        one = &s.slots[s.oldest]
        if one.state == SAMPLE_MADE:
            break
        if one.state == SAMPLE_OUT:
            if one.sent_at + limit > now:
                return one.sent_at + limit
            shared.tell(TOLD_LOST, one.stretch)
            if one.known < s.known_used and same_probe(&s.known[one.known].probe, &one.probe):
                s.known[one.known].silent += 1
        one.state = SAMPLE_FREE
        s.oldest = (s.oldest + 1) % s.width
        s.out -= 1
    return 0x7FFFFFFFFFFFFFFF
