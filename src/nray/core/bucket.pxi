# The rate that the worker processes of one node share.
#
# What must never happen: two workers spend the same token; a machine that slept spends at once
# what it missed; a dead worker takes the rate with it. So the bucket is one number in shared
# memory, the time at which the next probe may start, and a worker takes a turn by moving it on by one
# interval with a compare-and-swap: the generic cell rate algorithm in its virtual-scheduling
# form (ITU-T I.371, annex A), with turns handed out ahead of time. A worker that dies between
# taking its turn and sending loses that turn and nothing else.
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
    static inline int nray_swap(int64_t *p, int64_t *old, int64_t v) {
        return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int64_t nray_load(int64_t *p) noexcept nogil
    void nray_store(int64_t *p, int64_t value) noexcept nogil
    int nray_swap(int64_t *p, int64_t *old, int64_t value) noexcept nogil

# How far behind its schedule the bucket may run and still catch up. A process that the kernel
# woke late makes up for it, so that the whole stays within one per cent; 4 ms is under half of the
# finest bucket that a rate is judged in (10 ms), so no bucket holds 1.5 times its share.
cdef int64_t CATCH_UP_NS = 4_000_000

cdef enum:
    NS_SHIFT = 4            # ns to the unit of bucket_t, 1/16 ns

cdef struct bucket_t:
    int64_t next_at         # 1/16 ns
    int64_t interval        # 1/16 ns between two probes; 0: no limit
    int64_t changes         # of the rate: turns taken before the last one are void


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
        """Let ``per_second`` probes start each second from now on; 0 takes the limit away.

        Setting the rate that is in force changes nothing: turns that were given out stay. A change
        is no present: turns taken at the old rate are void, and the next is due after at most one
        interval of the new.
        """
        if per_second < 0 or per_second != per_second:
            raise ValueError("a rate is a number of probes a second, 0 for no limit")
        cdef int64_t interval = 0
        cdef int64_t old, latest
        if per_second > 0:
            # The slowest rate that there is: one probe in a year.
            interval = <int64_t>ceil(min(1e9 / per_second, 3.15e16) * (1 << NS_SHIFT))
            interval = max(interval, 1)
        if interval == nray_load(&self.shared.interval):
            return
        nray_store(&self.shared.interval, interval)
        latest = (monotonic_ns() << NS_SHIFT) + interval
        old = nray_load(&self.shared.next_at)
        while old > latest and not nray_swap(&self.shared.next_at, &old, latest):
            pass
        nray_store(&self.shared.changes, nray_load(&self.shared.changes) + 1)

    @property
    def rate(self):
        """Probes a second, 0.0 for no limit."""
        cdef int64_t interval = nray_load(&self.shared.interval)
        return (1e9 * (1 << NS_SHIFT)) / interval if interval else 0.0

    def take(self, now_ns=None):
        """Take the next turn; returns when it is, ns of the monotonic clock (for tests)."""
        cdef int64_t now = monotonic_ns() if now_ns is None else <int64_t>now_ns
        return self.turn(now)

    cdef int64_t change(self) noexcept nogil:
        """Goes up with each change of the rate."""
        return nray_load(&self.shared.changes)

    cdef bint is_void(self, int64_t at, int64_t change, int64_t now) noexcept nogil:
        """Whether a turn is no longer good: older than the rate, or left unused for too long."""
        return (change != nray_load(&self.shared.changes)
                or now - at > CATCH_UP_NS + (nray_load(&self.shared.interval) >> NS_SHIFT))

    cdef int64_t turn(self, int64_t now) noexcept nogil:
        """Take the next turn: the time, in ns, from which one probe may start."""
        cdef int64_t interval = nray_load(&self.shared.interval)
        cdef int64_t old, begin, floor
        if interval == 0:
            return now
        floor = (now - CATCH_UP_NS) << NS_SHIFT
        # At slow rates nothing is made up: being late by a part of one interval is no debt.
        if interval > (CATCH_UP_NS << NS_SHIFT):
            floor = now << NS_SHIFT
        old = nray_load(&self.shared.next_at)
        while True:
            begin = old if old > floor else floor
            if nray_swap(&self.shared.next_at, &old, begin + interval):
                return begin >> NS_SHIFT
