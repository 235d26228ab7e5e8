# Hosts that limit their ICMP errors, and their silent UDP ports: see limited.h.

cdef extern from "limited.h" nogil:
    enum:
        NRAY_LIMIT_NOTHING, NRAY_LIMIT_TRY, NRAY_LIMIT_ASK, NRAY_LIMIT_WAITING
    ctypedef struct nray_limits_t:
        int known
        int32_t active_used
    ctypedef struct nray_due_t:
        int what
        uint64_t token
        uint8_t family
        uint8_t addr[16]
        uint16_t port
    nray_limits_t *nray_limits_new(int64_t timeout, int sharers)
    int nray_limit_note(nray_limits_t *t, int family, const uint8_t *addr, uint16_t port)
    int nray_limit_push(nray_limits_t *t, int family, const uint8_t *addr, uint64_t token,
                        int64_t now)
    int nray_limit_settle(nray_limits_t *t, int64_t now, uint64_t *token)
    void nray_limit_take(nray_limits_t *t, int64_t now, int keep, nray_due_t *due)
    void nray_limit_spared(nray_limits_t *t, int family, const uint8_t *addr, int64_t now)
    int nray_limit_due(const nray_limits_t *t, int64_t now)
    int64_t nray_limit_wake(const nray_limits_t *t)
    int32_t nray_limit_drop(nray_limits_t *t, uint32_t upper)


cdef class _Limits:
    """The same for tests, with a clock of theirs; addresses as 4 or 16 bytes, times in ns."""

    cdef nray_limits_t *t

    def __cinit__(self, int64_t timeout, int sharers=1):
        self.t = nray_limits_new(timeout, sharers)
        if self.t == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.t)

    cdef int family(self, bytes addr) except -1:
        if len(addr) not in (4, 16):
            raise ValueError("an address is 4 or 16 bytes")
        return 4 if len(addr) == 4 else 6

    def note(self, bytes addr not None, int port):
        return bool(nray_limit_note(self.t, self.family(addr), <const uint8_t *><const char *>addr,
                                    port))

    def push(self, bytes addr not None, uint64_t token, int64_t now):
        return bool(nray_limit_push(self.t, self.family(addr), <const uint8_t *><const char *>addr,
                                    token, now))

    def settle(self, int64_t now):
        cdef uint64_t token
        return token if nray_limit_settle(self.t, now, &token) else None

    def take(self, int64_t now, bint keep):
        """("try", address, port), ("ask", address, token) or None."""
        cdef nray_due_t due
        nray_limit_take(self.t, now, keep, &due)
        if due.what == NRAY_LIMIT_NOTHING:
            return None
        if due.what == NRAY_LIMIT_TRY:
            return "try", due.addr[:4 if due.family == 4 else 16], due.port
        return "ask", due.addr[:4 if due.family == 4 else 16], due.token

    def drop(self, uint32_t upper):
        return nray_limit_drop(self.t, upper)

    @property
    def wake(self):
        return nray_limit_wake(self.t)

    @property
    def hosts_waiting(self):
        return self.t.active_used
