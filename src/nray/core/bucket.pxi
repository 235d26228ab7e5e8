# The rate that the worker processes of one node share.
#
# What must never happen: two workers spend the same token; a machine that slept spends at once
# what it missed; a dead worker takes the rate with it. So the bucket is one number in shared
# memory, the time at which the next probe may start, and a worker takes a turn by moving it on by one
# interval with a compare-and-swap: the generic cell rate algorithm in its virtual-scheduling
# form (ITU-T I.371, annex A), with turns handed out ahead of time. A worker that dies between
# taking its turn and sending loses that turn and nothing else.
#
# A fixed rate is a ceiling: no second, wherever it begins, holds more probes than the rate. Turns
# are therefore PACE_MORE (a 200th) further apart than the rate says, so that `rate` of them take
# 5 ms more than a second, and a probe may leave so much later than its turn, LATE_NS, without any
# second holding one too many: of `rate` + 1 probes the last leaves no earlier than its turn, the
# first no later than 5 ms after its own. What leaves later still is charged for: `keep` before it
# leaves, `settle` when it has, move the next turn on by as much as it was late (or by the turns
# that it used, if that is less), which is what keeps the law whichever worker it was. There is one
# gap: a process that is held for almost a second *within* the system call that sends.
#
# Times are CLOCK_MONOTONIC, which all processes of a machine share, in 1/16 ns: an interval is
# exact to a part in 1,600 at ten million probes a second, rounded to the slower side, and 63 bits
# last for 18 years of uptime (1/256 ns would not have lasted for 14 months).

from libc.errno cimport errno
from libc.math cimport ceil
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    """
    #include <stdint.h>
    static inline int64_t nray_load(int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void nray_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void nray_count_up(int64_t *p, int64_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    static inline int nray_swap(int64_t *p, int64_t *old, int64_t v) {
        return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int64_t nray_load(int64_t *p) noexcept nogil
    void nray_store(int64_t *p, int64_t value) noexcept nogil
    void nray_count_up(int64_t *p, int64_t value) noexcept nogil
    int nray_swap(int64_t *p, int64_t *old, int64_t value) noexcept nogil

# How far behind its schedule the bucket may run and still catch up. A process that the kernel
# woke late makes up for it, so that the whole stays within one per cent; 4 ms is under half of the
# finest bucket that a rate is judged in (10 ms), so no bucket holds 1.5 times its share.
cdef int64_t CATCH_UP_NS = 4_000_000
# How long after its turn a probe may leave for nothing: that, and a millisecond for the way from
# the look at the clock to the wire. No more than the share of a second that PACE_MORE adds.
cdef int64_t LATE_NS = 5_000_000
# A probe later than its turn is charged for in the second that it falls in; where the charge would
# come to lie beyond (many turns are taken ahead), the turn is void. A tenth is for the clock.
cdef int64_t CHARGED_WITHIN_NS = 900_000_000

cdef enum:
    NS_SHIFT = 4            # ns to the unit of bucket_t, 1/16 ns
    PACE_MORE = 200
    LATE_PART = 8
    # Stretches kept: of a quarter of a second at least, they are past the last answer by then.
    STRETCHES = 16

cdef struct bucket_t:
    int64_t next_at         # 1/16 ns
    int64_t interval        # 1/16 ns between two probes, as the rate says; 0: no limit
    int64_t pace            # 1/16 ns between two turns, somewhat more
    int64_t changes         # of the rate: turns taken before the last one are void
    # What workers tell of the path, where the rate is to be found (samples.pxi); on cache lines of
    # their own.
    int64_t apart[12]
    int64_t stretches       # begun so far
    int64_t stretch         # the number of the one that goes on, 0 for none
    int64_t told[2]         # TOLD_SENT, TOLD_DROPS: of all stretches
    int64_t samples[3][STRETCHES]   # by stretch, modulo STRETCHES

cdef enum:
    TOLD_ASKED = 0
    TOLD_ANSWERED = 1
    TOLD_LOST = 2
    TOLD_SENT = 0
    TOLD_DROPS = 1


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef class Bucket:
    """A rate shared by the processes that map the same file descriptor.

    Args:
        fd: of at least `Bucket.BYTES` of shared memory (a memfd), zeroed by its maker. It may be
            closed afterwards.

    Raises:
        OSError: the memory cannot be mapped.
    """

    BYTES = 4096

    cdef bucket_t *shared

    def __cinit__(self, int fd):
        cdef void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot map the shared rate")
        self.shared = <bucket_t *>memory

    def __dealloc__(self):
        if self.shared != NULL:
            munmap(self.shared, 4096)

    def set_rate(self, double per_second):
        """Let at most ``per_second`` probes start in any second from now on; 0: no limit.

        Setting the rate that is in force changes nothing: turns that were given out stay. A change
        is no present: turns taken at the old rate are void, and the next is due after at most one
        interval of the new.
        """
        if per_second < 0 or per_second != per_second:
            raise ValueError("a rate is a number of probes a second, 0 for no limit")
        cdef int64_t interval = 0
        cdef int64_t old, latest, pace
        if per_second > 0:
            # The slowest rate that there is: one probe in a year.
            interval = <int64_t>ceil(min(1e9 / per_second, 3.15e16) * (1 << NS_SHIFT))
            interval = max(interval, 1)
        if interval == nray_load(&self.shared.interval):
            return
        pace = interval + (interval + PACE_MORE - 1) // PACE_MORE
        nray_store(&self.shared.interval, interval)
        nray_store(&self.shared.pace, pace)
        latest = (monotonic_ns() << NS_SHIFT) + pace
        old = nray_load(&self.shared.next_at)
        while old > latest and not nray_swap(&self.shared.next_at, &old, latest):
            pass
        nray_store(&self.shared.changes, nray_load(&self.shared.changes) + 1)

    @property
    def rate(self):
        """Probes a second, 0.0 for no limit."""
        cdef int64_t interval = nray_load(&self.shared.interval)
        return (1e9 * (1 << NS_SHIFT)) / interval if interval else 0.0

    def take(self, now_ns=None, int64_t count=1):
        """Take turns; returns when the first is, ns of the monotonic clock (for tests)."""
        cdef int64_t now = monotonic_ns() if now_ns is None else <int64_t>now_ns
        return self.turns(now, count)

    def keep(self, int64_t at_ns, int64_t now_ns, int64_t count=1):
        """What a turn counts as that is used now; None if it is void (for tests)."""
        cdef int64_t at = at_ns
        return at if self.holds(&at, self.change(), now_ns, count) else None

    def settle(self, int64_t at_ns, int64_t now_ns, int64_t count=1):
        """Charge for probes that have left by now, the first turn being at `at_ns` (for tests)."""
        self.charge(at_ns, now_ns, count)

    def begin_stretch(self):
        """Begin a stretch of time, whose samples are counted apart; its number."""
        cdef int64_t number = nray_load(&self.shared.stretches) + 1
        cdef int k
        for k in range(3):
            nray_store(&self.shared.samples[k][number % STRETCHES], 0)
        nray_store(&self.shared.stretches, number)
        nray_store(&self.shared.stretch, number)
        return number

    def end_stretch(self):
        """No more samples until the next one begins."""
        nray_store(&self.shared.stretch, 0)

    def samples(self, int64_t stretch):
        """Samples that were asked, answered, lost in one of the last stretches."""
        cdef int k
        return tuple(nray_load(&self.shared.samples[k][stretch % STRETCHES]) for k in range(3))

    @property
    def sent(self):
        """Packets that raw engines have sent, where the rate is to be found."""
        return nray_load(&self.shared.told[TOLD_SENT])

    @property
    def drops(self):
        """Answers that their rings had no room for."""
        return nray_load(&self.shared.told[TOLD_DROPS])

    cdef inline int64_t sampling(self) noexcept nogil:
        """The number of the stretch that goes on, 0 for none."""
        return nray_load(&self.shared.stretch)

    cdef inline void tell(self, int what, int64_t stretch) noexcept nogil:
        nray_count_up(&self.shared.samples[what][stretch % STRETCHES], 1)

    cdef inline void tell_of_all(self, int what, int64_t count) noexcept nogil:
        nray_count_up(&self.shared.told[what], count)

    cdef int64_t change(self) noexcept nogil:
        """Goes up with each change of the rate."""
        return nray_load(&self.shared.changes)

    cdef inline int64_t floor(self, int64_t now, int64_t pace) noexcept nogil:
        """The earliest that a turn taken now may be, in 1/16 ns."""
        # At slow rates nothing is made up: being late by a part of one interval is no debt.
        return now << NS_SHIFT if pace > (CATCH_UP_NS << NS_SHIFT) else (
            (now - CATCH_UP_NS) << NS_SHIFT)

    cdef inline int64_t turn(self, int64_t now) noexcept nogil:
        """Take the next turn: the time, in ns, from which one probe may start."""
        return self.turns(now, 1)

    cdef int64_t turns(self, int64_t now, int64_t count) noexcept nogil:
        """Take the next turns, `span` apart from first to last: the time of the first, in ns."""
        cdef int64_t pace = nray_load(&self.shared.pace)
        cdef int64_t old, begin, floor
        if pace == 0:
            return now
        floor = self.floor(now, pace)
        old = nray_load(&self.shared.next_at)
        while True:
            begin = old if old > floor else floor
            if nray_swap(&self.shared.next_at, &old, begin + pace * count):
                return begin >> NS_SHIFT

    cdef int64_t span(self, int64_t count) noexcept nogil:
        """From the first to the last of so many turns, in ns."""
        return (nray_load(&self.shared.pace) * (count - 1)) >> NS_SHIFT

    cdef bint holds(self, int64_t *at, int64_t change, int64_t now, int64_t count) noexcept nogil:
        """Whether turns taken (the first is at `at`) are good if they are used now.

        They are not if the rate has changed, or they were left unused for too long. One that is
        late is charged for, and then counts as one that is as late as may be.
        """
        cdef int64_t pace = nray_load(&self.shared.pace)
        cdef int64_t late = now - at[0]
        cdef int64_t old, begin, floor, more
        if change != nray_load(&self.shared.changes):
            return False
        if late <= CATCH_UP_NS:
            return True
        if late > CHARGED_WITHIN_NS:
            return False
        floor = self.floor(now, pace)
        more = min((late - CATCH_UP_NS) << NS_SHIFT, pace * count)
        old = nray_load(&self.shared.next_at)
        while True:
            begin = old if old > floor else floor
            # Good if there was no turn after these; else if they are late by a small part of an
            # interval, which leaves the gaps even, and the charge comes in time.
            if (old > ((at[0] + 1) << NS_SHIFT) + pace * count
                    and (late << NS_SHIFT > pace // LATE_PART
                         or ((begin + more) >> NS_SHIFT) - now + late > CHARGED_WITHIN_NS)):
                return False
            if nray_swap(&self.shared.next_at, &old, begin + more):
                at[0] = now - CATCH_UP_NS
                return True

    cdef void charge(self, int64_t at, int64_t now, int64_t count) noexcept nogil:
        """Say that so many probes have left by now, on turns of which the first was at `at`."""
        cdef int64_t late = now - at - LATE_NS
        cdef int64_t pace, old, begin, floor
        if late <= 0:
            return
        pace = nray_load(&self.shared.pace)
        floor = self.floor(now, pace)
        late = min(late << NS_SHIFT, pace * count)
        old = nray_load(&self.shared.next_at)
        while True:
            begin = old if old > floor else floor
            if nray_swap(&self.shared.next_at, &old, begin + late):
                return
