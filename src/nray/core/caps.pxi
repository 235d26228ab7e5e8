# Caps on what one host, or one network (/24, or /64 of IPv6), gets, so that no target is flooded.
#
# Each has a place in a table by its hash, with the time from which its next packet is due (the
# generic cell rate algorithm, as in bucket.pxi). A probe before its time is not dropped: it waits in
# a heap, by the time that it was promised, and is asked about again when that has come, for the rate
# of the whole may have kept it longer. Two that share a place share its time: they get less than the
# cap, never more. When the heap is full, new probes wait until there is room.
#
# A cap is a ceiling: packets are a hundredth further apart than it says, and may be early by
# CAP_EARLY_NS, so that a few that meet by chance need not wait; the other half of that hundredth of
# a second is for the way from here to the wire.

cdef enum:
    CAPS_BITS = 14
    LATER_MAX = 4096        # probes that wait; 64 kB
    CAP_MORE = 100

cdef int64_t CAP_EARLY_NS = 5_000_000

cdef struct cap_t:
    int64_t due             # ns: of the next packet, as far as they have left
    int64_t promised        # ns: of the next one, those that wait counted

cdef struct later_t:
    int64_t due
    int32_t slice
    uint32_t entry

cdef struct caps_t:
    cap_t *table            # hosts, then networks; NULL: no caps
    later_t *heap
    int64_t every[2]        # ns between two packets to a host, to a network; 0: no cap
    int32_t used


cdef int caps_open(caps_t *c, double host_rate, double network_rate) noexcept:
    """Packets a second; 0 for no cap. -1 if there is no memory."""
    cdef double rates[2]
    cdef int k
    rates[0] = host_rate
    rates[1] = network_rate
    memset(c, 0, sizeof(caps_t))
    for k in range(2):
        if rates[k] > 0:
            c.every[k] = <int64_t>ceil(min(1e9 / rates[k], 1e15) * (1 + 1.0 / CAP_MORE))
    if not c.every[0] and not c.every[1]:
        return 0
    c.table = <cap_t *>calloc(2 << CAPS_BITS, sizeof(cap_t))
    c.heap = <later_t *>calloc(LATER_MAX, sizeof(later_t))
    return 0 if c.table != NULL and c.heap != NULL else -1


cdef void caps_close(caps_t *c) noexcept:
    free(c.table)
    free(c.heap)


cdef inline cap_t *caps_place(const caps_t *c, int which, const probe_t *probe) noexcept nogil:
    cdef uint64_t low = 0, high = 0
    if probe.family == 4:
        memcpy(&low, probe.addr, 3 if which else 4)
        low |= <uint64_t>1 << 40
    else:
        memcpy(&high, probe.addr, 8)
        if not which:
            memcpy(&low, probe.addr + 8, 8)
    # Fibonacci hashing (Knuth, TAOCP 3, 6.4).
    low ^= high * <uint64_t>0xff51afd7ed558ccd
    low ^= low >> 32
    return &c.table[(<uint64_t>which << CAPS_BITS)
                    + ((low * <uint64_t>0x9E3779B97F4A7C15) >> (64 - CAPS_BITS))]


cdef inline int64_t caps_due(const caps_t *c, const probe_t *probe, int64_t now,
                             bint waits) noexcept nogil:
    """Book a packet: 0 if it may leave now, else when it may; then nothing is booked but, for one
    that will wait, its promise."""
    cdef cap_t *places[2]
    cdef int64_t due = now, promised = now
    cdef int k
    for k in range(2):
        if c.every[k]:
            places[k] = caps_place(c, k, probe)
            due = max(due, places[k].due - CAP_EARLY_NS)
            promised = max(promised, places[k].promised - CAP_EARLY_NS)
    if due > now:
        promised = max(promised, due)
        if waits:
            for k in range(2):
                if c.every[k]:
                    places[k].promised = max(places[k].promised, promised) + c.every[k]
        return promised if waits else due
    for k in range(2):
        if c.every[k]:
            places[k].due = max(places[k].due, now) + c.every[k]
            places[k].promised = max(places[k].promised, places[k].due)
    return 0


cdef inline void caps_charge(const caps_t *c, const probe_t *probe, int64_t now) noexcept nogil:
    """Book a packet that leaves now in any case: others wait the longer for it."""
    cdef cap_t *place
    cdef int k
    for k in range(2):
        if c.every[k]:
            place = caps_place(c, k, probe)
            place.due = max(place.due, now) + c.every[k]
            place.promised = max(place.promised + c.every[k], place.due)


cdef inline bint caps_full(const caps_t *c) noexcept nogil:
    return c.used >= LATER_MAX


cdef inline bint caps_ready(const caps_t *c, int64_t now) noexcept nogil:
    return c.used > 0 and c.heap[0].due <= now


cdef void caps_wait(caps_t *c, int64_t due, int32_t slice, uint32_t entry) noexcept nogil:
    """Let one wait; there is room. A binary heap (Williams 1964)."""
    cdef int32_t at = c.used, up
    c.used += 1
    while at > 0:
        up = (at - 1) // 2
        if c.heap[up].due <= due:
            break
        c.heap[at] = c.heap[up]
        at = up
    c.heap[at].due = due
    c.heap[at].slice = slice
    c.heap[at].entry = entry


cdef later_t caps_next(caps_t *c) noexcept nogil:
    """Take the one out that was promised the earliest time."""
    cdef later_t first = c.heap[0]
    cdef later_t last
    cdef int32_t at = 0, down
    c.used -= 1
    last = c.heap[c.used]
    while True:
        down = 2 * at + 1
        if down >= c.used:
            break
        if down + 1 < c.used and c.heap[down + 1].due < c.heap[down].due:
            down += 1
        if c.heap[down].due >= last.due:
            break
        c.heap[at] = c.heap[down]
        at = down
    c.heap[at] = last
    return first


cdef void caps_keep(caps_t *c, int32_t kept) noexcept nogil:
    """Let the first so many of the heap's memory wait on, in whatever order they lie there."""
    cdef later_t one
    cdef int32_t k
    c.used = 0
    for k in range(kept):
        one = c.heap[k]
        caps_wait(c, one.due, one.slice, one.entry)


cdef class Caps:
    """Caps by themselves, for tests on a clock of their own."""

    cdef caps_t c

    def __cinit__(self, double host_rate, double network_rate):
        if caps_open(&self.c, host_rate, network_rate) != 0:
            raise MemoryError

    def __dealloc__(self):
        caps_close(&self.c)

    def send(self, int family, bytes address not None, int64_t now, uint32_t number):
        """Whether a packet leaves now; else it waits, under its number."""
        cdef probe_t probe
        cdef int64_t due
        memset(&probe, 0, sizeof(probe))
        probe.family = family
        memcpy(probe.addr, <const char *>address, min(len(address), 16))
        due = caps_due(&self.c, &probe, now, True)
        if due:
            if caps_full(&self.c):
                raise OverflowError("no more can wait")
            caps_wait(&self.c, due, 0, number)
        return due == 0

    def ready(self, int64_t now):
        """The number of one whose time has come, None if there is none."""
        return caps_next(&self.c).entry if caps_ready(&self.c, now) else None

    @property
    def next_due(self):
        """When the first of those that wait is due, None if none does."""
        return self.c.heap[0].due if self.c.used else None
