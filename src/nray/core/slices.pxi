# What every engine keeps: the slices that it was given, what became of their probes, and what UDP
# ports are asked.
#
# What must never happen: a slice reported as ended before its last hit was (hits and the end leave
# by one `take`); a hit kept of a slice that is gone.

from libc.errno cimport (
    EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EALREADY, ECONNABORTED,
    ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EINPROGRESS, EISCONN, EMFILE, ENETUNREACH, ENFILE,
    ENOBUFS, ENOMEM, EPERM, EPIPE, ETIMEDOUT,
)

cdef enum:
    # Records that wait to be taken. A quarter is head-room: one round of an engine's loop makes
    # fewer hits than that.
    HITS_MAX = 8192
    HITS_FULL = 6144
    # Slices known at once: two that are being started and those that wait for their last
    # answers.
    SLICES_MAX = 1024
    ERRORS_MAX = 16
    SKIPPED = 6             # the place of this count
    COUNTS = 9              # of a slice that has ended, as in `nray.wire.messages.Counts`

# Between two looks through what waits for a cap: some 0.2 ms of work.
cdef int64_t SPARE_EVERY_NS = 20_000_000

# What a slice calls the probes that it left out because of an open port of their host, among its
# errors.
SPARED = "spared"

# A hit waits this long for others to travel with.
cdef int64_t FLUSH_NS = 5_000_000

cdef struct listed_t:       # a probe given one by one, where names were resolved
    probe_t probe
    uint64_t position

cdef struct slice_t:
    uint64_t start
    uint64_t count
    uint64_t begun          # how many of `count` were started
    uint64_t lease
    int64_t outstanding
    # open, closed, filtered, open|filtered, error, excluded, skipped, addresses, refused
    int64_t counts[COUNTS]
    uint32_t errors[ERRORS_MAX]
    listed_t *listed
    int64_t withheld        # of those counted open: made no hits, see tarpits.pxi
    int64_t spared          # of those skipped: their hosts had shown an open port
    const space_t *space
    const ranges_t *excluded    # NULL: none
    uint32_t serial         # of all slices, from 1
    uint8_t judged          # its hosts are, see tarpits.pxi
    uint8_t stops           # probing a host at its first open port
    uint8_t used
    uint8_t ended
    uint8_t search          # of its space


cdef inline bint is_ours(int code) noexcept nogil:
    """Whether an errno says that this machine lacked something, so that trying later helps."""
    return (code == EMFILE or code == ENFILE or code == ENOBUFS or code == ENOMEM
            or code == EADDRNOTAVAIL or code == EADDRINUSE or code == EAGAIN)


cdef inline uint8_t own_reason(int code) noexcept nogil:
    if code == EMFILE or code == ENFILE:
        return REASON_DESCRIPTORS
    if code == ENOBUFS or code == ENOMEM:
        return REASON_BUFFERS
    if code == EADDRNOTAVAIL or code == EADDRINUSE or code == EAGAIN:
        return REASON_PORTS
    if code == ENETUNREACH or code == EHOSTUNREACH or code == EAFNOSUPPORT:
        return REASON_UNREACHABLE_HERE
    if code == EACCES or code == EPERM:
        return REASON_FORBIDDEN_HERE
    return REASON_LOCAL


cdef class SliceBook:
    """The part that `Engine` and `RawEngine` share; no engine by itself."""

    cdef slice_t *slices
    cdef int32_t slices_used, ended
    cdef uint32_t serials
    cdef hit_t *hits
    cdef int32_t *hit_slices
    cdef int32_t hits_used
    cdef uint32_t mask
    cdef int64_t first_hit, sent_
    cdef bint paused_, control_ready, fast, idle_told
    cdef bint pings             # it can send echo requests
    cdef Bucket bucket
    cdef Policy policy
    cdef dict kept
    cdef dict questions
    cdef const nray_question_t **question_at    # by port; NULL: `plain`
    cdef const nray_question_t *plain
    cdef nray_limits_t *limits
    cdef HostSet shown          # hosts with an open port, of the whole node; None: all are probed
    cdef HostSet own            # those that this engine has found, with the slice in place of the epoch
    cdef uint32_t spared_at     # how many were known when what waits was last looked through
    cdef int64_t spared_since   # ns: when that was

    def __cinit__(self, *_, **__):
        self.kept = {}
        self.slices = <slice_t *>calloc(SLICES_MAX, sizeof(slice_t))
        self.hits = <hit_t *>malloc(HITS_MAX * sizeof(hit_t))
        self.hit_slices = <int32_t *>malloc(HITS_MAX * sizeof(int32_t))
        self.question_at = <const nray_question_t **>calloc(65536, sizeof(void *))
        if (self.slices == NULL or self.hits == NULL or self.hit_slices == NULL
                or self.question_at == NULL):
            raise MemoryError

    def __dealloc__(self):
        cdef int32_t i
        if self.slices != NULL:
            for i in range(SLICES_MAX):
                free(self.slices[i].listed)
        free(self.slices)
        free(self.hits)
        free(self.hit_slices)
        free(<void *>self.question_at)
        free(self.limits)

    cdef settle(self, Bucket bucket, states, bytes payload, payloads, checks, further, bint fast,
                Policy policy, double udp_timeout_s, int sharers, HostSet shown):
        """Keep what an engine is told at its making. ValueError: a state, a payload, a port, a check."""
        if not 0 < sharers < 65536:
            raise ValueError("at least this engine asks the hosts")
        self.limits = nray_limits_new(<int64_t>(udp_timeout_s * 1e9), sharers)
        if self.limits == NULL:
            raise MemoryError
        self.bucket = bucket
        self.mask = 1 << STATE_OPEN
        for state in states:
            self.mask |= 1 << STATES.index(state)
        self.mask &= ~<uint32_t>1
        self.fast = fast
        self.policy = policy
        self.shown = shown
        self.own = None if shown is None else HostSet()
        self.keep_questions(payload, payloads or {}, checks or {}, further or {})

    cdef keep_questions(self, bytes payload, payloads, checks, further):
        # The questions are kept, so that pointers into them stay good.
        cdef Question one, last
        self.questions = {0: [Question(payload, ())]}
        for port, data in payloads.items():
            if not 0 < port < 65536:
                raise ValueError(f"{port} is no UDP port")
            self.questions[port] = [Question(data, checks.get(port, ()))]
        for port, more in further.items():
            if port not in payloads or len(more) >= QUESTIONS_MAX:
                raise ValueError(f"port {port} has no first payload, or more than {QUESTIONS_MAX}")
            self.questions[port] += [Question(data, steps) for data, steps in more]
        for port, asked in self.questions.items():
            last = None
            for one in asked:
                one.q.sum = nray_sum(one.q.payload, one.q.size)
                if last is not None:
                    last.q.next = &one.q
                last = one
            one = asked[0]
            if port:
                self.question_at[<int>port] = &one.q
            else:
                self.plain = &one.q

    cdef inline const nray_question_t *question(self, int port, int number) noexcept nogil:
        """What a port is asked the ``number``-th time, counted from 0, in turn."""
        cdef const nray_question_t *first = self.question_at[port]
        cdef const nray_question_t *found
        if first == NULL:
            return self.plain
        found = first
        while number > 0:
            number -= 1
            found = first if found.next == NULL else found.next
        return found

    cdef check_slice(self, uint64_t start, uint64_t count, Space space, bint names):
        cdef uint32_t k
        if count == 0 or start + count > <uint64_t>space.total or start + count < start:
            raise ValueError(f"slice {start}+{count} is not within {space.total} probes")
        if not self.pings and any([
                space.s.services[k].protocol == PROTO_ICMP for k in range(space.s.ports)]):
            raise ValueError("echo requests are for the raw engine")
        if not names and space.s.hosts > space.s.addresses:
            raise ValueError("a slice of names needs their addresses: add_names")

    cdef int32_t list_names(self, uint64_t lease, uint64_t start, uint64_t count, Space space,
                            Exclusions exclusions, addresses) except -1:
        """A new slice with its probes listed."""
        cdef uint64_t position
        cdef probe_t probe
        cdef listed_t *one
        cdef slice_t *slice
        cdef list found = []
        cdef int64_t more = 0, unresolved = 0
        cdef int32_t i
        self.check_slice(start, count, space, True)
        for position in range(start, start + count):
            if space.locate(position, &probe) != 0:
                raise ValueError(f"no probe at position {position}")
            if probe.family != 0:
                found.append((position, None, probe.port, probe.protocol))
                continue
            where = addresses.get(probe.name)
            if where is None:
                raise ValueError(f"name {probe.name} is not among the addresses")
            if not where:
                unresolved += 1
            for address in where:
                if len(address) not in (4, 16) and (address or self.policy is None):
                    raise ValueError(f"name {probe.name}: an address is 4 or 16 bytes")
                found.append((position, address, probe.port, probe.protocol))
            more += max(0, len(where) - 1)
        i = self.new_slice(lease, start, max(1, len(found)))
        slice = &self.slices[i]
        slice.search = space.s.search
        slice.count = len(found)
        slice.counts[7] = more
        slice.counts[4] = unresolved
        slice.errors[REASON_UNRESOLVED - REASON_DESCRIPTORS] = <uint32_t>unresolved
        slice.listed = <listed_t *>calloc(max(1, len(found)), sizeof(listed_t))
        if slice.listed == NULL:
            slice.used = 0
            self.slices_used -= 1
            raise MemoryError
        one = slice.listed
        for position, address, port, protocol in found:
            one.position = position
            if address is None:
                space.locate(position, &one.probe)
            else:
                data = <bytes>address
                one.probe.family = 4 if len(data) == 4 else 6 if data else 0
                memcpy(one.probe.addr, <const char *>data, len(data))
                one.probe.port = port
                one.probe.protocol = protocol
            one += 1
        self.keep(i, space, exclusions)
        return i

    cdef keep(self, int32_t i, Space space, Exclusions exclusions):
        """What a slice is of stays with it until it is forgotten."""
        self.kept[i] = (space, exclusions)
        self.slices[i].space = &space.s
        self.slices[i].stops = self.shown is not None and not space.s.search
        self.slices[i].excluded = NULL if exclusions is None else &exclusions.r

    cdef int32_t new_slice(self, uint64_t lease, uint64_t start, uint64_t count) except -1:
        cdef int32_t i
        for i in range(SLICES_MAX):
            if not self.slices[i].used:
                break
        else:
            raise RuntimeError("too many slices are open")
        memset(&self.slices[i], 0, sizeof(slice_t))
        self.slices[i].lease = lease
        self.slices[i].start = start
        self.slices[i].count = count
        self.slices[i].used = 1
        self.slices_used += 1
        self.serials += 1
        if self.own is not None and self.serials & 0xFFFFFF == 0:
            nray_hosts_renew(self.own.h, 1, 0)  # before a number comes again
        self.slices[i].serial = self.serials
        return i

    cdef void forget(self, int32_t i) noexcept:
        """The slice is gone, and what was kept for it."""
        free(self.slices[i].listed)
        memset(&self.slices[i], 0, sizeof(slice_t))
        self.slices_used -= 1
        self.kept.pop(i, None)

    @property
    def slices_open(self):
        """Slices added and not yet ended by `take`."""
        return self.slices_used

    @property
    def sent(self):
        """Probes started, tries again included."""
        return self.sent_

    @property
    def paused(self):
        """Whether new probes are held back; those in flight go on."""
        return self.paused_

    @paused.setter
    def paused(self, bint value):
        self.paused_ = value

    def take(self):
        """Take what there is to report, slice by slice.

        Returns:
            a list of ``(lease, hits, done, counts, errors)``: packed hits; whether the slice has
            ended; then only, nine counts in the order of `nray.wire.messages.Counts` and how
            often each reason made an error.
        """
        cdef int32_t i, first, slice
        cdef dict parts = {}
        cdef const uint8_t *base = <const uint8_t *>self.hits
        i = 0
        while i < self.hits_used:
            first = i
            slice = self.hit_slices[i]
            while i < self.hits_used and self.hit_slices[i] == slice:
                i += 1
            parts.setdefault(slice, []).append(base[first * 32:i * 32])
        self.hits_used = 0
        reports = []
        for slice, chunks in parts.items():
            if not self.slices[slice].ended:
                reports.append((self.slices[slice].lease, b"".join(chunks), False, (), {}))
        if self.ended:
            for i in range(SLICES_MAX):
                if self.slices[i].ended:
                    reports.append(self.close_slice(i, b"".join(parts.get(i, ()))))
            self.ended = 0
        return reports

    cdef tuple close_slice(self, int32_t i, bytes hits):
        cdef slice_t *slice = &self.slices[i]
        cdef int k
        counts = tuple(slice.counts[k] for k in range(COUNTS))
        errors = {
            REASONS[REASON_DESCRIPTORS + k]: slice.errors[k]
            for k in range(ERRORS_MAX) if slice.errors[k]
        }
        if slice.withheld:
            errors[WITHHELD] = slice.withheld
        if slice.spared:
            errors[SPARED] = slice.spared
        lease = slice.lease
        self.forget(i)
        return lease, hits, True, counts, errors

    cdef int left_out(self, const ranges_t *excluded, const probe_t *probe) noexcept nogil:
        """As what a probe that must not be sent is counted; -1 for one that may be."""
        if excluded != NULL and ranges_cover(excluded, probe):
            return 5
        if self.policy is not None and self.policy.refuses_probe(probe):
            return 8
        if self.fast and probe.protocol == PROTO_UDP and self.question_at[probe.port] == NULL:
            return SKIPPED
        return -1

    cdef bint is_time_to_spare(self, int64_t now, int64_t *wake) noexcept nogil:
        """Whether what waits is to be looked through for hosts that need no more probes; sets when
        to ask again."""
        cdef uint32_t known
        if self.shown is None:
            return False
        known = nray_hosts_used(self.own.h) + nray_hosts_used(self.shown.h)
        if known == self.spared_at:
            return False
        if now - self.spared_since < SPARE_EVERY_NS:
            wake[0] = min(wake[0], self.spared_since + SPARE_EVERY_NS)
            return False
        self.spared_at = known
        self.spared_since = now
        return True

    cdef inline bint is_spared(self, int32_t slice, const probe_t *probe) noexcept nogil:
        """Whether a slice has no more to ask of this host: an open port of it is known."""
        return self.slices[slice].stops and (
            nray_hosts_has(self.own.h, self.slices[slice].serial & 0xFFFFFF, probe.family,
                           probe.addr)
            or self.has_shown(probe))

    cdef inline bint has_shown(self, const probe_t *probe) noexcept nogil:
        return nray_hosts_has(self.shown.h, self.shown.epoch, probe.family, probe.addr)

    cdef void remember_open(self, int32_t slice, const probe_t *probe) noexcept nogil:
        """A host of the slice has shown an open port."""
        cdef uint32_t number = self.slices[slice].serial & 0xFFFFFF
        if nray_hosts_add(self.own.h, number, probe.family, probe.addr) < 0:
            nray_hosts_renew(self.own.h, 1, 0)
            nray_hosts_add(self.own.h, number, probe.family, probe.addr)

    cdef void put_down(self, const probe_t *probe, uint64_t position, int32_t slice, uint8_t state,
                       uint8_t reason, int64_t rtt_us, uint8_t ttl) noexcept nogil:
        """Count how a probe ended; make a hit of it if such are asked for."""
        if self.slices[slice].search and state == STATE_CLOSED:
            state = STATE_OPEN      # who refuses is there
        self.slices[slice].counts[state - 1] += 1
        if state == STATE_ERROR:
            self.slices[slice].errors[reason - REASON_DESCRIPTORS] += 1
        if self.mask & (1 << state) and (state == STATE_OPEN or not self.slices[slice].search):
            self.tell(probe.family, probe.addr, position, slice, state, reason, rtt_us, ttl)

    cdef void tell(self, uint8_t family, const uint8_t *addr, uint64_t position, int32_t slice,
                   uint8_t state, uint8_t reason, int64_t rtt_us, uint8_t ttl) noexcept nogil:
        cdef hit_t *hit
        if self.hits_used == 0:
            self.first_hit = monotonic_ns()
        hit = &self.hits[self.hits_used]
        memset(hit, 0, sizeof(hit_t))
        hit.position = position
        memcpy(hit.addr, addr, 4 if family == 4 else 16)
        hit.rtt_us = <uint32_t>min(rtt_us, <int64_t>0xFFFFFFFF)
        hit.ttl = ttl
        hit.state = state
        hit.reason = reason
        hit.family = family
        self.hit_slices[self.hits_used] = slice
        self.hits_used += 1
