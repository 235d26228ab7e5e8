# Hosts that need no more probes, since an open port of theirs was found (see hostset.h).
#
# What must never happen: a host left out because of a finding that is then lost. So what an engine
# has found itself counts within the same slice alone: the finding and the end of the slice are
# believed together, or the slice is run again from its beginning. All else has to be told by the set
# that a node shares with its workers, into which goes only what is safe.

from posix.mman cimport MAP_ANONYMOUS, MAP_PRIVATE

cdef extern from "hostset.h" nogil:
    enum:
        NRAY_HOSTS_MAX
    ctypedef struct nray_known_t:
        uint8_t addr[16]
        uint32_t mark
    ctypedef struct nray_hosts_t:
        nray_key_t key
        uint32_t epoch
        uint32_t used
        uint32_t *index
        nray_known_t entries[1]
    uint32_t nray_hosts_epoch(const nray_hosts_t *h)
    uint32_t nray_hosts_used(const nray_hosts_t *h)
    int nray_hosts_has(const nray_hosts_t *h, uint32_t epoch, uint32_t family, const uint8_t *addr)
    int nray_hosts_add(nray_hosts_t *h, uint32_t epoch, uint32_t family, const uint8_t *addr)

cdef extern from *:
    """
    #include <stddef.h>
    #include <sys/mman.h>
    /* Begin anew. The memory of all but the head is given back, and reads as zeros then. */
    static inline void nray_hosts_renew(nray_hosts_t *h, uint32_t epoch, int shared)
    {
        size_t from = (offsetof(nray_hosts_t, index) + 4095) / 4096 * 4096;
        uint8_t *start = (uint8_t *)h + from;
        size_t size = sizeof(nray_hosts_t) / 4096 * 4096 - from;
        __atomic_store_n(&h->epoch, epoch, __ATOMIC_RELEASE);
        __atomic_store_n(&h->used, 0, __ATOMIC_RELEASE);
        if (madvise(start, size, shared ? MADV_REMOVE : MADV_DONTNEED) != 0)
            memset(start, 0, size);
        memset(h->index, 0, from - offsetof(nray_hosts_t, index));
        memset(start + size, 0, (uint8_t *)(h + 1) - (start + size));
    }
    """
    void nray_hosts_renew(nray_hosts_t *h, uint32_t epoch, int shared) noexcept nogil

# A host as it travels: family, address, and zeros behind one of IPv4.
HOST_BYTES = 17


cdef class HostSet:
    """A set of hosts that only grows; see `_core.pyi`."""

    BYTES = sizeof(nray_hosts_t)
    HOSTS_MAX = NRAY_HOSTS_MAX
    #: Where it begins in the memory that a node shares with its workers: behind the rate.
    OFFSET = 4096

    cdef nray_hosts_t *h
    cdef uint32_t epoch
    cdef bint shared

    def __cinit__(self, int fd=-1):
        cdef void *memory = mmap(NULL, sizeof(nray_hosts_t), PROT_READ | PROT_WRITE,
                                 MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS, fd,
                                 4096 if fd >= 0 else 0)
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot map the set of hosts")
        self.h = <nray_hosts_t *>memory
        self.shared = fd >= 0
        if self.h.epoch == 0:
            self.h.key = raw_key(_os.urandom(16))
            self.h.epoch = 1
        self.epoch = nray_hosts_epoch(self.h)

    def __dealloc__(self):
        if self.h != NULL:
            munmap(self.h, sizeof(nray_hosts_t))

    def __len__(self):
        return nray_hosts_used(self.h)

    def renew(self):
        self.epoch = nray_hosts_epoch(self.h) % 0xFFFFFF + 1
        nray_hosts_renew(self.h, self.epoch, self.shared)

    def add(self, bytes packed not None):
        cdef const uint8_t *at = <const uint8_t *><const char *>packed
        cdef Py_ssize_t k
        if len(packed) % HOST_BYTES:
            raise ValueError(f"hosts are of {HOST_BYTES} bytes each")
        if not set(packed[::HOST_BYTES]) <= {4, 6}:
            raise ValueError("a host is of family 4 or 6")
        for k in range(0, len(packed), 17):
            nray_hosts_add(self.h, self.epoch, at[k], at + k + 1)

    def has(self, bytes packed not None):
        cdef const uint8_t *at = <const uint8_t *><const char *>packed
        if len(packed) != HOST_BYTES:
            raise ValueError(f"a host is {HOST_BYTES} bytes")
        return bool(nray_hosts_has(self.h, self.epoch, at[0], at + 1))

    def fresh(self, bytes hits not None):
        cdef const hit_t *at = <const hit_t *><const char *>hits
        cdef Py_ssize_t k, first = 0
        cdef bint known
        if len(hits) % HIT_BYTES:
            raise ValueError(f"hits are of {HIT_BYTES} bytes each")
        parts = []
        for k in range(len(hits) // HIT_BYTES):
            known = at[k].state == STATE_OPEN and nray_hosts_add(
                self.h, self.epoch, at[k].family, at[k].addr) == 0
            if known:
                parts.append(hits[first * HIT_BYTES:k * HIT_BYTES])
                first = k + 1
        if first == 0:
            return hits
        parts.append(hits[first * HIT_BYTES:])
        return b"".join(parts)

    def packed(self, uint32_t start, uint32_t end):
        cdef nray_known_t *one
        cdef uint32_t k
        parts = []
        for k in range(start, min(end, nray_hosts_used(self.h))):
            one = &self.h.entries[k]
            if one.mark:
                parts.append(bytes([one.mark & 0xFF]) + one.addr[:16])
        return b"".join(parts)
