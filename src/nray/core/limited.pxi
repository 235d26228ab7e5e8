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
    void nray_limit_spaced(nray_limits_t *t, int64_t every)
    void nray_limit_next(nray_limits_t *t, int64_t now, nray_due_t *due)
    void nray_limit_take(nray_limits_t *t, int64_t now, int keep, const nray_due_t *due)
    void nray_limit_pass(nray_limits_t *t, const nray_due_t *due)
    void nray_limit_put_off(nray_limits_t *t, const nray_due_t *due, int64_t now, int64_t until)
    int nray_limit_due(const nray_limits_t *t, int64_t now)
    int64_t nray_limit_wake(const nray_limits_t *t)
    int32_t nray_limit_drop(nray_limits_t *t, uint32_t upper)


cdef inline void probe_of_due(const nray_due_t *due, probe_t *probe) noexcept nogil:
    """The probe of what is to be asked."""
    memset(probe, 0, sizeof(probe_t))
    probe.family = due.family
    probe.protocol = PROTO_UDP
    probe.port = due.port
    memcpy(probe.addr, due.addr, 16)


cdef inline int64_t caps_due_of(const caps_t *c, const nray_due_t *limited,
                                int64_t now) noexcept nogil:
    """`caps_due` of what a host that sends few ICMP errors is asked; it waits where it is."""
    cdef probe_t probe
    if c.table == NULL:
        return 0
    probe_of_due(limited, &probe)
    return caps_due(c, &probe, now, False)


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

    def take(self, int64_t now, bint keep, int64_t until=0):
        """("try", address, port), ("ask", address, token), taken; or None. What is due is put off, and
        None, if it may not go out before ``until``."""
        cdef nray_due_t due
        nray_limit_next(self.t, now, &due)
        if due.what == NRAY_LIMIT_NOTHING:
            return None
        if until > now:
            nray_limit_put_off(self.t, &due, now, until)
            return None
        nray_limit_take(self.t, now, keep, &due)
        if due.what == NRAY_LIMIT_TRY:
            return "try", due.addr[:4 if due.family == 4 else 16], due.port
        return "ask", due.addr[:4 if due.family == 4 else 16], due.token

    def spaced(self, int64_t every):
        nray_limit_spaced(self.t, every)

    def drop(self, uint32_t upper):
        return nray_limit_drop(self.t, upper)

    @property
    def wake(self):
        return nray_limit_wake(self.t)

    @property
    def hosts_waiting(self):
        return self.t.active_used
