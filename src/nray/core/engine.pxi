# The connect engine: TCP connects and UDP datagrams of one worker process over one epoll.
#
# How a probe runs. A free socket connects to the target. On a short path (loopback, veth, a LAN
# behind the same core) the answer is often there before connect() has returned, so a second
# connect() asks at once; it yields the result and puts a refused socket back to unconnected. If
# there is none yet, the socket is watched (edge-triggered, registered once in its life) and
# stands in a list by its start: all probes of a list wait equally long, so the lists are the
# deadline wheel, and a head is always the next to expire. Sockets are used again: a refused one
# as it is, a silent or an open one after connect() to AF_UNSPEC.
#
# How long silence is waited for. The timeout is the most. With `adaptive`, a TCP probe is looked
# at after IMPATIENT_NS already: if the same network (/24, or /56 of IPv6) has given enough
# answers, the slowest of them eight times faster than that, the probe is given up, for whoever
# is going to answer there would have. A network that has not answered, or slowly, is given the
# whole timeout. nmap does the like for single hosts. Where the timeout is so long that the
# kernel would have sent a second SYN (after 1 s, RFC 6298), one is sent before giving up early:
# being fast must not cost an answer that one lost packet hides.
#
# What must never happen: a probe that ends twice or never (every probe is in exactly one place:
# a waiting slot, the retry ring, or counted in its slice); a failure of this machine counted as
# an answer (see `own_failure`); an answer that is our own doing (a socket that connected to
# itself is probed again); a packet to an excluded address (asked before every packet).
#
# Two sockets of this machine that scans itself can also meet, each probing the very port that the
# other one comes from: a simultaneous open of TCP (seen between two workers in five of 100,000
# probes of 100 local ports), or the other's payload over UDP. An answer that may be such a
# meeting does not count; the probe goes out again from another port (see `met_ourselves`).

from posix.unistd cimport close

cdef extern from "sockets.h" nogil:
    cdef struct epoll_data_t "epoll_data":
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    cdef enum:
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLET, EPOLL_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL
    int epoll_create1(int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int nray_socket(int family, int udp)
    int nray_connect(int fd, int family, const uint8_t *addr, uint16_t port)
    int nray_disconnect(int fd)
    int nray_met(int fd, int udp, int family, const uint8_t *addr, uint16_t port)
    int nray_own_port(int fd)
    int nray_is_own_unheard(int family, const uint8_t *addr, uint16_t port)
    int nray_lacks_source(int family, const uint8_t *addr)
    int nray_take_error(int fd)
    int nray_queued_error(int fd, int family, const uint8_t *addr, uint16_t port, int *origin,
                          uint8_t *kind, uint8_t *code)
    int nray_watch(int epoll, int fd, uint32_t events, uint64_t tag, int add)
    int nray_wait(int epoll, epoll_event *events, int most, int64_t limit_ns)
    int64_t nray_descriptors()

cdef enum:
    # Probes started between two looks at epoll: answers are seen within some 0.5 ms.
    START_BURST = 64
    # Events fetched at once: 12 bytes each, a few pages of stack.
    EVENTS_MAX = 512
    EXPIRE_MAX = 1024
    # Probes that wait to be tried again. Half of it full stops new probes.
    RETRY_MAX = 8192
    # Tries of a probe that this machine failed to send, with pauses of 5 ms doubled up to
    # 500 ms between them: about a second in all.
    TRIES_MAX = 9
    # Answers in a row that may be meetings of our own sockets, before one is believed: one in
    # forty is, where two workers hammer a range of four local ports.
    MEETINGS_MAX = 7
    # In flight at the start of an `auto` window; it doubles every GROW_NS while it is the
    # window that holds the scan back.
    WINDOW_FIRST = 512
    # The most that `auto` grows to, if descriptors allow: a TCP socket costs the kernel some
    # 2.5 kB, and one process's share of local ports to one target is not much larger.
    WINDOW_MAX = 20000
    # Descriptors left for everything else in the process.
    DESCRIPTORS_SPARE = 12
    UDP_ANSWER_MAX = 2048
    KINDS = 4
    # Probes of a slice that are passed over in a row, before answers are looked at again: some
    # 0.1 ms of work.
    PASSED_OVER_MAX = 1024
    # How often a direct second connect() must have failed of late to be left out, and how often
    # it is tried all the same.
    DIRECT_MAX = 64
    DIRECT_EVERY = 64
    # Networks whose answers are remembered at once; a newer one takes the place of an older.
    NETWORKS_MAX = 16384
    # Answers of a network, before its speed is trusted.
    ANSWERS_ENOUGH = 16
    LINES = 3
    LINE_FRESH = 0          # TCP, adaptive: until IMPATIENT_NS
    LINE_TCP = 1            # TCP: until the timeout
    LINE_UDP = 2

# What nmap waits for a first answer under its most hurried template (-T5), and longer than light
# takes around the earth. It is only for networks whose slowest answer took an eighth of it.
cdef int64_t IMPATIENT_NS = 250_000_000
cdef int64_t KERNEL_RETRIES_NS = 1_000_000_000
cdef int64_t GROW_NS = 20_000_000
# A window that had to shrink grows by a sixteenth each 50 ms.
cdef int64_t REGROW_NS = 50_000_000
cdef int64_t RETRY_FIRST_NS = 5_000_000
cdef int64_t RETRY_LAST_NS = 500_000_000
cdef uint64_t TAG_CONTROL = 0xFFFFFFFFFFFFFFFF

cdef struct slot_t:
    probe_t probe
    uint64_t position
    int64_t started         # ns
    int32_t fd
    int32_t slice
    int32_t after           # next in the waiting or free list, -1 at its end
    int32_t before          # previous in the waiting list
    uint8_t kind            # index of family and protocol, see kind_of
    uint8_t waiting
    uint8_t watched
    uint8_t tries
    uint8_t line            # the list it waits in
    uint8_t second          # it is sent for the second time, the first being unanswered
    uint8_t met             # how often the answer may have been our own doing
    uint8_t asked           # which of its port's questions it is sent, of UDP
    uint8_t limited         # it waited for a host that sends few ICMP errors

cdef struct network_t:
    uint64_t prefix         # see network_of; 0: none
    uint32_t slowest_us
    uint32_t answers

cdef struct item_t:         # a probe on its way to a socket
    probe_t probe
    uint64_t position
    int64_t due             # ns
    int32_t slice
    uint8_t tries
    uint8_t second
    uint8_t met
    uint8_t asked
    uint8_t limited

cdef inline uint8_t kind_of(const probe_t *probe) noexcept nogil:
    return (1 if probe.family == 6 else 0) | (2 if probe.protocol == PROTO_UDP else 0)


cdef inline uint64_t network_of(const probe_t *probe) noexcept nogil:
    """A number for the /24 or /56 that an address is in; never 0."""
    cdef uint64_t prefix = 0
    if probe.family == 4:
        memcpy(&prefix, probe.addr, 3)
        return prefix | (<uint64_t>4 << 56)
    memcpy(&prefix, probe.addr, 7)
    return prefix | (<uint64_t>6 << 56)


cdef inline uint8_t icmp_state(uint8_t reason) noexcept nogil:
    return STATE_CLOSED if reason == REASON_PORT_UNREACH else STATE_FILTERED


cdef class Engine(TarpitBook):
    """Runs slices of probes; one for each worker process, used by one thread.

    Args:
        bucket: the node's shared rate.
        control_fd: `pump` returns when it is readable; -1 for none.
        window: probes in flight at most; 0 grows to what descriptors allow.
        tcp_timeout_s, udp_timeout_s: how long an unanswered probe is waited for, seconds.
        states: names out of `STATES` that become hits; ``open`` always does.
        payload: what a UDP probe carries to a port without an own payload.
        payloads: UDP port to payload.
        checks: UDP port to what an answer to its payload shows (see questions.h).
        further: UDP port to (payload, check) each, asked in turn while it is silent.
        udp_fast: leave UDP ports without an own payload out (counted as skipped).
        adaptive: give silent TCP probes up earlier where their network answers fast.
        policy: what it refuses is not sent, and counted as refused.
        sharers: how many engines ask the same hosts at once.
        tarpits: tell of hosts on which every port answers once, not of each port.
        shown: hosts with an open port, which are probed no further; None: all are.

    Raises:
        OSError: no epoll descriptor can be had.
        ValueError: a state is unknown, a timeout is not positive, a payload is too long.
    """

    cdef int epoll
    cdef int32_t slots_max, slots_made, sockets, limit, window, inflight
    cdef bint auto_window, shrunk, turn_taken
    cdef int direct, direct_round
    cdef slot_t *slots
    cdef int32_t idle[KINDS]
    cdef int32_t blank
    cdef list_t waiting[LINES]
    cdef network_t *networks
    cdef item_t *aside          # what waits in `limits`; free ones are chained by their `slice`
    cdef int32_t aside_free, aside_made
    cdef item_t *retry
    cdef caps_t caps
    cdef item_t *later          # those that wait for their host's or network's cap
    cdef int32_t *later_free
    cdef int32_t later_free_used
    cdef uint32_t retry_head, retry_used
    cdef int64_t grown_at, turn_at, turn_change
    cdef int64_t timeout_ns[LINES]
    cdef bint adaptive_, second_try
    cdef int32_t current
    cdef list queue
    cdef Space space
    cdef const ranges_t *excluded   # of the space's exclusions, which `kept` holds; NULL: none

    def __cinit__(self, Bucket bucket not None, *, int control_fd=-1, int window=0,
                  double tcp_timeout_s=1.0, double udp_timeout_s=1.0, states=(),
                  bytes payload=b"nray", payloads=None, checks=None, further=None,
                  bint udp_fast=False, bint adaptive=False, Policy policy=None,
                  int sharers=1, bint tarpits=False, double host_rate=0,
                  double network_rate=0, HostSet shown=None):
        cdef int kind
        if not tcp_timeout_s > 0 or not udp_timeout_s > 0:
            raise ValueError("timeouts are positive numbers of seconds")
        if window < 0:
            raise ValueError("a window is a number of probes, 0 for auto")
        self.settle(bucket, states, payload, payloads, checks, further, udp_fast, policy,
                    udp_timeout_s, sharers, shown)
        self.settle_tarpits(tarpits, raw_key(_os.urandom(16)))
        self.timeout_ns[LINE_FRESH] = IMPATIENT_NS
        self.timeout_ns[LINE_TCP] = <int64_t>(tcp_timeout_s * 1e9)
        self.timeout_ns[LINE_UDP] = <int64_t>(udp_timeout_s * 1e9)
        self.adaptive_ = adaptive and self.timeout_ns[LINE_TCP] > IMPATIENT_NS
        self.second_try = self.timeout_ns[LINE_TCP] > KERNEL_RETRIES_NS
        self.limit = <int32_t>max(1, min(nray_descriptors() - DESCRIPTORS_SPARE - 4, WINDOW_MAX))
        self.auto_window = window == 0
        self.slots_max = self.limit if window == 0 else max(1, min(window, self.limit))
        self.limit = self.slots_max
        self.window = min(WINDOW_FIRST, self.limit) if window == 0 else self.limit
        self.direct = DIRECT_MAX // 2
        self.current = -1
        self.queue = []
        self.blank = -1
        for kind in range(KINDS):
            self.idle[kind] = -1
        for kind in range(LINES):
            self.waiting[kind].first = -1
            self.waiting[kind].last = -1
        if caps_open(&self.caps, host_rate, network_rate) != 0:
            raise MemoryError
        nray_limit_spaced(self.limits, max(self.caps.every[0], self.caps.every[1]))
        if self.caps.table != NULL:
            self.later = <item_t *>malloc(LATER_MAX * sizeof(item_t))
            self.later_free = <int32_t *>malloc(LATER_MAX * sizeof(int32_t))
            if self.later == NULL or self.later_free == NULL:
                raise MemoryError
            for kind in range(LATER_MAX):
                self.later_free[kind] = kind
            self.later_free_used = LATER_MAX
        self.slots = <slot_t *>calloc(self.slots_max, sizeof(slot_t))
        self.retry = <item_t *>malloc(RETRY_MAX * sizeof(item_t))
        self.networks = <network_t *>calloc(NETWORKS_MAX, sizeof(network_t))
        self.aside = <item_t *>calloc(NRAY_LIMIT_WAITING, sizeof(item_t))
        self.aside_free = -1
        if (self.slots == NULL or self.retry == NULL or self.networks == NULL
                or self.aside == NULL):
            raise MemoryError
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "no epoll descriptor")
        if control_fd >= 0 and nray_watch(self.epoll, control_fd, EPOLLIN, TAG_CONTROL, 1) != 0:
            raise OSError(errno, "the control descriptor cannot be watched")

    def __dealloc__(self):
        cdef int32_t i
        if self.slots != NULL:
            for i in range(self.slots_made):
                if self.slots[i].fd >= 0:
                    close(self.slots[i].fd)
        if self.epoll > 0:
            close(self.epoll)
        free(self.slots)
        free(self.retry)
        free(self.networks)
        free(self.aside)
        free(self.later)
        free(self.later_free)
        caps_close(&self.caps)

    # ── what Python sees ────────────────────────────────────────────────────────────────────

    def add_slice(self, uint64_t lease, uint64_t start, uint64_t count, Space space not None,
                  Exclusions exclusions):
        """Queue the ``count`` probes of ``space`` from position ``start`` on.

        Raises:
            ValueError: the slice is empty or ends outside the space.
            RuntimeError: more than `SLICES_MAX` slices are open.
        """
        self.check_slice(start, count, space, False)
        cdef int32_t i = self.new_slice(lease, start, count)
        self.slices[i].search = space.s.search
        self.keep(i, space, exclusions)
        self.queue.append(i)

    def add_names(self, uint64_t lease, uint64_t start, uint64_t count, Space space not None,
                  Exclusions exclusions, addresses):
        """Queue a slice of a space of names.

        Args:
            addresses: index of a name to its addresses (4 or 16 bytes each); a name without
                any ends as an error, ``name-not-resolved``. With a policy an address may be
                empty: the name was not looked up, and is refused.

        Raises:
            ValueError, RuntimeError: as `add_slice`; also where a name's index is missing.
        """
        self.queue.append(self.list_names(lease, start, count, space, exclusions, addresses))

    @property
    def pending(self):
        """Slices with probes that were not started yet."""
        return len(self.queue) + (1 if self.current >= 0 else 0)

    @property
    def in_flight(self):
        """Probes that wait for an answer now."""
        return self.inflight

    @property
    def window_now(self):
        """Probes that may be in flight now."""
        return self.window

    @property
    def sockets_open(self):
        """Sockets kept, idle ones included."""
        return self.sockets

    def pump(self, double seconds):
        """Run for at most ``seconds``; returns earlier when there is something to be told or done.

        That is: hits to be taken, a slice that ended, a slice more wanted, the control
        descriptor readable. Returns whether the control descriptor is readable.
        """
        cdef int64_t until = monotonic_ns() + <int64_t>(seconds * 1e9)
        self.control_ready = False
        if self.current < 0 and self.queue:
            self.begin_next()
        # Without room for what a round may find there is no round: `take` comes first.
        if self.hits_used < HITS_FULL:
            with nogil:
                self.run(until)
        return bool(self.control_ready)

    cdef begin_next(self):
        self.current = self.queue.pop(0)
        space, exclusions = self.kept[self.current]
        self.space = space
        self.excluded = NULL if exclusions is None else &(<Exclusions>exclusions).r
        if self.slices[self.current].count == 0:
            self.leave_current()

    # ── the loop ────────────────────────────────────────────────────────────────────────────

    cdef void run(self, int64_t until) noexcept nogil:
        """The loop itself, until there is something to tell, to fetch or the time is up."""
        cdef epoll_event events[EVENTS_MAX]
        cdef int64_t now = monotonic_ns()
        cdef int64_t wake, asked
        cdef int count, i
        while True:
            wake = self.start_some(now, until)
            now = asked = monotonic_ns()
            count = nray_wait(self.epoll, events, EVENTS_MAX, wake - now if wake > now else 0)
            if wake > now:
                now = monotonic_ns()
            for i in range(count):
                if events[i].data.u64 == TAG_CONTROL:
                    self.control_ready = True
                else:
                    self.on_event(<int32_t>events[i].data.u64, events[i].events, now)
            # What has come in goes before what has run out: a process that was stopped for a
            # while finds its answers, not its deadlines. So only that has run out which had
            # when epoll was asked, and nothing if it did not tell (-1: a stopped process's
            # waiting is interrupted, signal(7)).
            if 0 <= count < EVENTS_MAX:
                self.expire(asked)
            self.release_some()
            if self.control_ready or self.ended or self.hits_used >= HITS_FULL:
                return
            if self.hits_used and now - self.first_hit >= FLUSH_NS:
                return
            if self.current < 0 and not self.paused_:
                # The caller has the next slice, or can ask for one, or has none: then this
                # returns at once only the first time, and waits the next.
                if not self.idle_told:
                    self.idle_told = True
                    return
            if now >= until:
                return

    cdef int64_t start_some(self, int64_t now, int64_t until) noexcept nogil:
        """Start what may start now; returns until when epoll may wait, ns."""
        cdef int64_t wake = until
        cdef int64_t at
        cdef int i, which
        cdef item_t item
        cdef bint again, late, limited, held = False
        now = monotonic_ns()
        self.tell_limited(now)
        if self.caps.used and self.is_time_to_spare(now, &wake):
            self.spare_waiting()
        for i in range(START_BURST):
            if self.paused_:
                held = True
                break
            limited = nray_limit_due(self.limits, now)
            late = not limited and caps_ready(&self.caps, now)
            again = (not limited and self.retry_used > 0
                     and self.retry[self.retry_head].due <= now and not caps_full(&self.caps))
            if not late and not limited and not again and (
                    self.current < 0 or self.retry_used >= RETRY_MAX // 2
                    or caps_full(&self.caps)):
                break
            if self.inflight >= self.window:
                at = self.grow(now)
                if at > 0:
                    wake = min(wake, at)
                if self.inflight >= self.window:
                    held = True
                    break
            if not self.turn_taken or not self.bucket.holds(&self.turn_at, self.turn_change, now,
                                                            1):
                self.turn_change = self.bucket.change()
                self.turn_at = self.bucket.turn(now)
                self.turn_taken = True
            if self.turn_at > now:
                wake = min(wake, self.turn_at)
                held = True
                break
            if late:
                self.take_later(&item)
                if not self.is_still_to_send(&item):
                    continue
            elif limited:
                if not self.next_limited(&item, now):
                    continue
            elif again:
                item = self.retry[self.retry_head]
                self.retry_head = (self.retry_head + 1) % RETRY_MAX
                self.retry_used -= 1
                if not self.is_still_to_send(&item):
                    continue
            elif not self.next_probe(&item):
                now = monotonic_ns()
                continue
            if self.caps.table != NULL and not limited and self.must_wait(&item, now):
                continue
            self.turn_taken = False
            self.launch(&item, now)
            now = monotonic_ns()
            self.bucket.charge(self.turn_at, now, 1)
            if self.hits_used >= HITS_FULL:
                return now
        else:
            return now
        for which in range(LINES):
            if self.waiting[which].first >= 0:
                wake = min(wake, self.slots[self.waiting[which].first].started
                           + self.timeout_ns[which])
        if self.retry_used and not held and not caps_full(&self.caps):
            wake = min(wake, self.retry[self.retry_head].due)
        if not held:
            wake = min(wake, nray_limit_wake(self.limits))
        if self.caps.used and not held:
            wake = min(wake, self.caps.heap[0].due)
        if self.hits_used:
            wake = min(wake, self.first_hit + FLUSH_NS)
        if self.ended or self.trial_lists[TRIALS_JUDGED].first >= 0 or (
                self.current < 0 and not self.idle_told and not self.paused_):
            wake = now
        return wake

    cdef bint is_still_to_send(self, const item_t *item) noexcept nogil:
        """Whether a probe that has waited is still of use; one that is not is accounted for."""
        cdef bint udp = item.probe.protocol == PROTO_UDP
        if item.slice == ASK_OF_HOST:
            return self.is_to_ask(item)
        if item.slice < 0 or not self.is_spared(item.slice, &item.probe):
            return True
        if item.second or item.asked or item.limited:   # it has been sent, and was silent
            self.record(&item.probe, item.position, item.slice,
                        STATE_OPEN_FILTERED if udp else STATE_FILTERED, REASON_NO_RESPONSE, 0)
        else:
            self.spare(item.slice)
        return False

    cdef void spare_waiting(self) noexcept nogil:
        """Let go of what waits for the cap of a host that needs no more probes."""
        cdef int32_t k, place, kept = 0
        for k in range(self.caps.used):
            place = <int32_t>self.caps.heap[k].entry
            if (self.hits_used < HITS_FULL and self.later[place].slice >= 0
                    and not self.is_still_to_send(&self.later[place])):
                self.later_free[self.later_free_used] = place
                self.later_free_used += 1
                continue
            self.caps.heap[kept] = self.caps.heap[k]
            kept += 1
        caps_keep(&self.caps, kept)

    cdef void spare(self, int32_t which) noexcept nogil:
        self.slices[which].spared += 1
        self.uncount(which, SKIPPED)

    cdef bint must_wait(self, const item_t *item, int64_t now) noexcept nogil:
        """Whether a probe's host or network has had enough for now; then it waits."""
        cdef int64_t due = caps_due(&self.caps, &item.probe, now, True)
        cdef int32_t place
        if due == 0:
            return False
        self.later_free_used -= 1
        place = self.later_free[self.later_free_used]
        self.later[place] = item[0]
        caps_wait(&self.caps, due, 0, <uint32_t>place)
        return True

    cdef void take_later(self, item_t *item) noexcept nogil:
        cdef int32_t place = <int32_t>caps_next(&self.caps).entry
        item[0] = self.later[place]
        self.later_free[self.later_free_used] = place
        self.later_free_used += 1

    cdef bint next_probe(self, item_t *item) noexcept nogil:
        """The next probe of the current slice; false if those passed over were all for now."""
        cdef int32_t which = self.current
        cdef slice_t *slice = &self.slices[which]
        cdef int k, count
        for k in range(PASSED_OVER_MAX):
            memset(item, 0, sizeof(item_t))
            item.slice = which
            if slice.listed != NULL:
                item.probe = slice.listed[slice.begun].probe
                item.position = slice.listed[slice.begun].position
            else:
                item.position = slice.start + slice.begun
                self.space.locate(item.position, &item.probe)
            slice.begun += 1
            slice.outstanding += 1
            if slice.begun == slice.count:
                self.current = -1
                self.idle_told = False
            count = self.left_out(self.excluded, &item.probe)
            if count >= 0:
                self.uncount(which, count)
            elif self.is_spared(which, &item.probe):
                self.spare(which)
            else:
                return True
            if self.current < 0:
                break
        return False

    cdef void uncount(self, int32_t which, int kind) noexcept nogil:
        self.slices[which].counts[kind] += 1
        self.finish_one(which)

    cdef void leave_current(self) noexcept nogil:
        cdef int32_t which = self.current
        self.current = -1
        self.idle_told = False
        self.slices[which].ended = 1
        self.ended += 1

    cdef void finish_one(self, int32_t which) noexcept nogil:
        cdef slice_t *slice = &self.slices[which]
        slice.outstanding -= 1
        if slice.outstanding == 0 and slice.begun == slice.count:
            slice.ended = 1
            self.ended += 1

    # ── window ──────────────────────────────────────────────────────────────────────────────

    cdef int64_t grow(self, int64_t now) noexcept nogil:
        """Widen a full window if it is time; returns when to look again, 0 for never."""
        cdef int64_t pause = REGROW_NS if self.shrunk else GROW_NS
        if self.window >= self.slots_max or (not self.auto_window and not self.shrunk):
            return 0
        if self.grown_at == 0:
            self.grown_at = now
        if now - self.grown_at < pause:
            return self.grown_at + pause
        self.grown_at = now
        if self.shrunk:
            self.window += max(1, self.window // 16)
            self.limit = min(self.slots_max, max(self.limit, self.window))
        else:
            self.window *= 2
        self.window = min(self.window, self.limit)
        return now + pause

    cdef void shrink(self, int64_t now) noexcept nogil:
        # Once in a while: many probes that fail together are one sign, not many.
        if self.shrunk and now - self.grown_at < REGROW_NS // 5:
            return
        self.shrunk = True
        self.grown_at = now
        self.window = max(1, min(self.window, self.inflight) // 2)

    # ── slots ───────────────────────────────────────────────────────────────────────────────

    cdef int32_t acquire(self, uint8_t kind, int *code) noexcept nogil:
        """A slot with an unconnected socket of this kind; -1 and an errno if there is none."""
        cdef int32_t i = self.idle[kind]
        cdef int fd
        cdef int other
        if i >= 0:
            self.idle[kind] = self.slots[i].after
            return i
        if self.sockets >= self.limit:
            for other in range(KINDS):
                if self.idle[other] >= 0:
                    i = self.idle[other]
                    self.idle[other] = self.slots[i].after
                    self.discard(i)
                    break
        if self.sockets >= self.slots_max:
            code[0] = EMFILE
            return -1
        fd = nray_socket(6 if kind & 1 else 4, kind >> 1)
        if fd < 0:
            code[0] = errno
            return -1
        if self.blank >= 0:
            i = self.blank
            self.blank = self.slots[i].after
        else:
            i = self.slots_made
            self.slots_made += 1
        self.sockets += 1
        self.slots[i].fd = fd
        self.slots[i].kind = kind
        self.slots[i].watched = 0
        self.slots[i].waiting = 0
        return i

    cdef void release(self, int32_t i) noexcept nogil:
        """Back to the idle sockets of its kind."""
        cdef slot_t *slot = &self.slots[i]
        if slot.kind & 2:
            # Or it would keep its port, and the own address that this target asked for: from
            # 127.0.0.1 to anywhere else.
            nray_disconnect(slot.fd)
        if self.sockets > self.limit:
            self.discard(i)
            return
        slot.after = self.idle[slot.kind]
        self.idle[slot.kind] = i

    cdef void discard(self, int32_t i) noexcept nogil:
        close(self.slots[i].fd)
        self.slots[i].fd = -1
        self.sockets -= 1
        self.slots[i].after = self.blank
        self.blank = i

    cdef void unlink(self, slot_t *slot) noexcept nogil:
        cdef list_t *line = &self.waiting[slot.line]
        if slot.before >= 0:
            self.slots[slot.before].after = slot.after
        else:
            line.first = slot.after
        if slot.after >= 0:
            self.slots[slot.after].before = slot.before
        else:
            line.last = slot.before
        slot.waiting = 0
        self.inflight -= 1

    cdef void await_answer(self, int32_t i, uint8_t which) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef list_t *line = &self.waiting[which]
        slot.line = which
        slot.before = line.last
        slot.after = -1
        if line.last >= 0:
            self.slots[line.last].after = i
        else:
            line.first = i
        line.last = i
        slot.waiting = 1
        self.inflight += 1

    # ── one probe ───────────────────────────────────────────────────────────────────────────

    cdef void launch(self, item_t *item, int64_t now) noexcept nogil:
        cdef int code = 0
        cdef int32_t i
        cdef slot_t *slot
        cdef uint8_t kind = kind_of(&item.probe)
        i = self.acquire(kind, &code)
        if i < 0 and not is_ours(code):
            # No such sockets here (no IPv6, a filter of system calls), and so it will stay.
            self.record(&item.probe, item.position, item.slice, STATE_ERROR, own_reason(code), 0)
            return
        if i < 0:
            # Out of descriptors is no overload: the window fits itself to the sockets there
            # are, and with any there one comes free in time, so no try is lost.
            self.limit = max(1, self.sockets)
            self.window = min(self.window, self.limit)
            self.shrunk = True
            self.grown_at = now
            if self.sockets > 0:
                item.tries = 0
            self.own_failure(item, own_reason(code), now)
            return
        slot = &self.slots[i]
        slot.probe = item.probe
        slot.position = item.position
        slot.slice = item.slice
        slot.tries = item.tries
        slot.second = item.second
        slot.met = item.met
        slot.asked = item.asked
        slot.limited = item.limited
        slot.started = now
        self.sent_ += 1
        if kind & 2:
            self.launch_udp(i, now)
        else:
            self.launch_tcp(i, now)

    cdef void launch_tcp(self, int32_t i, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef int code = nray_connect(slot.fd, slot.probe.family, slot.probe.addr, slot.probe.port)
        if code != EINPROGRESS:
            self.tcp_result(i, code, now, True)
            return
        self.direct_round += 1
        if self.direct > 0 or self.direct_round % DIRECT_EVERY == 0:
            code = nray_connect(slot.fd, slot.probe.family, slot.probe.addr, slot.probe.port)
            if code != EALREADY:
                if self.direct < DIRECT_MAX:
                    self.direct += 1
                self.tcp_result(i, code, now, False)
                return
            if self.direct > 0:
                self.direct -= 1
        self.watch(i, now)

    cdef void launch_udp(self, int32_t i, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef uint8_t stale[8]
        cdef const nray_question_t *asked = self.question(slot.probe.port, slot.asked)
        cdef ssize_t done
        cdef int code = nray_connect(slot.fd, slot.probe.family, slot.probe.addr, slot.probe.port)
        if code == 0 and self.whom(slot) == 1:
            self.met_ourselves(i, 1, now)
            return
        if code == 0:
            # What an earlier target of this socket still sent is none of this probe's.
            if slot.watched:
                self.icmp_reason_of(slot)
                nray_take_error(slot.fd)
            while recv(slot.fd, stale, sizeof(stale), MSG_DONTWAIT) >= 0:
                pass
            done = send(slot.fd, asked.payload, asked.size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if done < 0 and errno == ECONNREFUSED:
                done = send(slot.fd, asked.payload, asked.size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if done < 0:
                code = errno
        if code == 0 or code == ECONNREFUSED:
            self.watch(i, now)
            return
        self.local_result(i, code, now)

    cdef void watch(self, int32_t i, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        if not slot.watched:
            if nray_watch(self.epoll, slot.fd, EPOLLIN | EPOLLOUT | EPOLLET, <uint64_t>i, 1) != 0:
                nray_disconnect(slot.fd)
                self.shrink(now)
                self.fail_slot(i, REASON_BUFFERS, now)
                return
            slot.watched = 1
        if slot.kind & 2:
            self.await_answer(i, LINE_UDP)
        else:
            self.await_answer(i, LINE_FRESH if self.adaptive_ else LINE_TCP)

    cdef void on_event(self, int32_t i, uint32_t events, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef int code
        if not slot.waiting:
            return
        if slot.kind & 2:
            self.on_udp(i, events, now)
            return
        code = nray_connect(slot.fd, slot.probe.family, slot.probe.addr, slot.probe.port)
        if code != EALREADY:
            self.unlink(slot)
            self.tcp_result(i, code, now, False)
        elif events & EPOLLERR:
            code = self.icmp_reason_of(slot)
            if code != REASON_NONE:
                self.unlink(slot)
                nray_disconnect(slot.fd)
                self.answer(i, icmp_state(<uint8_t>code), <uint8_t>code, now)
                self.release(i)

    cdef uint8_t icmp_reason_of(self, slot_t *slot) noexcept nogil:
        """Empties the error queue; the reason of the last ICMP error about this probe."""
        cdef int origin = 0, what, k
        cdef uint8_t kind = 0, code = 0, reason = REASON_NONE, found
        # A socket's queue holds at most what its receive buffer holds; anything beyond this
        # many is left for the next event.
        for k in range(64):
            what = nray_queued_error(slot.fd, slot.probe.family, slot.probe.addr,
                                     slot.probe.port, &origin, &kind, &code)
            if what == 0:
                break
            if what == 1:
                found = icmp4_reason(kind, code) if origin == 4 else icmp6_reason(kind, code)
                if found != REASON_NONE:
                    reason = found
        return reason

    cdef void tcp_result(self, int32_t i, int code, int64_t now, bint first) noexcept nogil:
        """A connect() has come to an end with `code`; `first` if it was the first call."""
        cdef slot_t *slot = &self.slots[i]
        cdef uint8_t reason
        cdef int what = -1
        if code == 0 or code == EISCONN:
            what = self.whom(slot)
        elif code == ECONNRESET or code == EPIPE:
            # A RST to the SYN is ECONNREFUSED: this one came after the SYN-ACK (EPIPE: and after
            # a FIN), from a service that takes a connection only to drop it. It is open.
            what = 2 if nray_is_own_unheard(slot.probe.family, slot.probe.addr,
                                            slot.probe.port) else 0
        if what >= 0:
            if self.met_ourselves(i, what, now):
                return
            self.answer(i, STATE_OPEN, REASON_SYN_ACK, now)
            nray_disconnect(slot.fd)
            if slot.watched:
                self.icmp_reason_of(slot)
            self.release(i)
            return
        if code == ECONNREFUSED:
            # Without a look at the error queue an ICMP error would pass for the target's RST: also
            # where it came at once, from another processor between two calls of connect().
            reason = self.icmp_reason_of(slot)
            if reason != REASON_NONE:
                # DESIGN.md, contract 2: a port unreachable is closed; all others are filtered.
                self.answer(i, icmp_state(reason), reason, now)
            else:
                self.answer(i, STATE_CLOSED, REASON_CONN_REFUSED, now)
            self.release(i)
            return
        if first or is_ours(code):
            self.local_result(i, code, now)
            return
        reason = self.icmp_reason_of(slot)
        nray_disconnect(slot.fd)
        if reason == REASON_NONE:
            if code == ECONNABORTED:
                self.answer(i, STATE_CLOSED, REASON_RESET, now)
                self.release(i)
                return
            if code == ETIMEDOUT:
                reason = REASON_NO_RESPONSE
            elif code == EHOSTUNREACH:
                reason = REASON_HOST_UNREACH
            elif code == ENETUNREACH:
                reason = REASON_NET_UNREACH
            elif code == EACCES or code == EPERM:
                reason = REASON_ADMIN_PROHIBITED
            else:
                reason = REASON_DEST_UNREACH
        self.answer(i, STATE_FILTERED, reason, now)
        self.release(i)

    cdef void local_result(self, int32_t i, int code, int64_t now) noexcept nogil:
        """This machine refused to send: try later if that can help, else an error."""
        cdef slot_t *slot = &self.slots[i]
        nray_disconnect(slot.fd)
        if code == EADDRNOTAVAIL and nray_lacks_source(slot.probe.family, slot.probe.addr):
            code = ENETUNREACH      # It is no port that is lacking, but an own address.
        if is_ours(code):
            # A port comes free in time where probes of our own have some: no try is lost.
            if own_reason(code) == REASON_PORTS and self.inflight > 0:
                slot.tries = 0
            self.shrink(now)
            self.fail_slot(i, own_reason(code), now)
            return
        self.record(&slot.probe, slot.position, slot.slice, STATE_ERROR, own_reason(code), 0)
        self.release(i)

    cdef int whom(self, slot_t *slot) noexcept nogil:
        return nray_met(slot.fd, slot.kind >> 1, slot.probe.family, slot.probe.addr,
                        slot.probe.port)

    cdef bint met_ourselves(self, int32_t i, int what, int64_t now) noexcept nogil:
        """Whether what a probe met (see nray_met) may be ourselves; then it goes out again."""
        cdef slot_t *slot = &self.slots[i]
        if what == 0 or (what == 2 and slot.met >= MEETINGS_MAX):
            return False
        if what == 2:
            slot.met += 1
        nray_disconnect(slot.fd)
        self.fail_slot(i, REASON_SELF, now)
        return True

    cdef bint is_own_payload(self, slot_t *slot, const uint8_t *got, ssize_t size) noexcept nogil:
        """Whether these bytes are what a probe of ours would send to where this one came from."""
        cdef const nray_question_t *asked = self.question(nray_own_port(slot.fd), 0)
        while asked != NULL:
            if size == asked.size and memcmp(got, asked.payload, size) == 0:
                return True
            asked = asked.next
        return False

    cdef void on_udp(self, int32_t i, uint32_t events, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef uint8_t data[UDP_ANSWER_MAX]
        cdef uint8_t reason = REASON_NONE
        cdef ssize_t size = recv(slot.fd, data, sizeof(data), MSG_DONTWAIT)
        if size >= 0:
            self.unlink(slot)
            if (self.is_own_payload(slot, data, size)
                    and self.met_ourselves(i, self.whom(slot), now)):
                return
            # The kernel let nothing through but from the right address and port to a port that was
            # drawn for this probe: somebody is there, whatever he speaks.
            self.answer(i, STATE_OPEN, REASON_UDP_RESPONSE
                        if nray_answers(self.question(slot.probe.port, 0), 0, 0, data, size)
                        else REASON_UNEXPECTED, now)
            self.release(i)
            return
        if errno == ECONNREFUSED or events & EPOLLERR:
            reason = self.icmp_reason_of(slot)
            nray_take_error(slot.fd)
        if reason == REASON_NONE:
            return
        self.unlink(slot)
        nray_limit_note(self.limits, slot.probe.family, slot.probe.addr, slot.probe.port)
        self.answer(i, icmp_state(reason), reason, now)
        self.release(i)

    cdef void expire(self, int64_t now) noexcept nogil:
        cdef int which, k
        cdef int32_t i
        cdef slot_t *slot
        for which in range(LINES):
            for k in range(EXPIRE_MAX // LINES):
                i = self.waiting[which].first
                if i < 0:
                    break
                slot = &self.slots[i]
                if slot.started + self.timeout_ns[which] > now:
                    break
                if self.retry_used >= RETRY_MAX // 2 and self.has_further(slot):
                    break           # until there is room to ask again
                self.unlink(slot)
                if which == LINE_FRESH and not self.may_give_up(slot):
                    self.await_answer(i, LINE_TCP)
                    continue
                if not slot.kind & 2:
                    nray_disconnect(slot.fd)
                    self.icmp_reason_of(slot)
                if which == LINE_FRESH and self.try_again(i, now):
                    continue
                if slot.kind & 2 and (self.ask_further(i, now) or self.set_aside(i, now)):
                    continue
                self.answer(i, STATE_OPEN_FILTERED if slot.kind & 2 else STATE_FILTERED,
                            REASON_NO_RESPONSE, now)
                self.release(i)

    cdef bint hopeless(self, slot_t *slot) noexcept nogil:
        """Whether this probe's network has shown that it would have answered by now."""
        cdef uint64_t prefix = network_of(&slot.probe)
        cdef network_t *network = self.network_at(prefix)
        return (network.prefix == prefix and network.answers >= ANSWERS_ENOUGH
                and 8 * <int64_t>network.slowest_us * 1000 <= IMPATIENT_NS)

    cdef bint may_give_up(self, slot_t *slot) noexcept nogil:
        # The upper half of the ring is for probes that could not be sent. Where there is no room
        # for a second try, the kernel's own is waited for.
        if self.second_try and not slot.second and self.retry_used >= RETRY_MAX // 2:
            return False
        return self.hopeless(slot)

    cdef network_t *network_at(self, uint64_t prefix) noexcept nogil:
        # Fibonacci hashing (Knuth, TAOCP 3, 6.4): the top bits of a multiplication.
        return &self.networks[(prefix * <uint64_t>0x9E3779B97F4A7C15) >> 50]

    cdef void note_speed(self, const probe_t *probe, int64_t took_us) noexcept nogil:
        cdef uint64_t prefix = network_of(probe)
        cdef network_t *network = self.network_at(prefix)
        if network.prefix != prefix:
            network.prefix = prefix
            network.answers = 0
            network.slowest_us = 0
        network.answers += 1
        if took_us > <int64_t>network.slowest_us:
            network.slowest_us = <uint32_t>min(took_us, <int64_t>0xFFFFFFFF)

    cdef bint try_again(self, int32_t i, int64_t now) noexcept nogil:
        """Send a silent probe a second time, where the kernel would have; its socket is free."""
        cdef slot_t *slot = &self.slots[i]
        cdef item_t item
        if not self.second_try or slot.second or self.retry_used >= RETRY_MAX:
            return False
        item = self.item_of(slot)
        item.second = 1
        self.again_at_once(i, &item, now)
        return True

    cdef bint set_aside(self, int32_t i, int64_t now) noexcept nogil:
        """Let a silent UDP probe wait for its host, if that sends few ICMP errors."""
        cdef slot_t *slot = &self.slots[i]
        cdef int32_t k = self.aside_free
        if slot.limited or slot.slice < 0:
            return False
        if k < 0 and self.aside_made >= NRAY_LIMIT_WAITING:
            return False
        if k < 0:
            k = self.aside_made
        if not nray_limit_push(self.limits, slot.probe.family, slot.probe.addr, <uint64_t>k, now):
            return False
        if k == self.aside_made:
            self.aside_made += 1
        else:
            self.aside_free = self.aside[k].slice
        self.aside[k] = self.item_of(slot)
        self.aside[k].limited = 1
        self.release(i)
        return True

    cdef inline item_t back_from_aside(self, uint64_t token) noexcept nogil:
        cdef int32_t k = <int32_t>token
        cdef item_t item = self.aside[k]
        self.aside[k].slice = self.aside_free
        self.aside_free = k
        return item

    cdef bint next_limited(self, item_t *item, int64_t now) noexcept nogil:
        """What a host that sends few ICMP errors may be asked now; false if nothing."""
        cdef nray_due_t due
        cdef item_t *waits
        cdef int64_t until
        nray_limit_next(self.limits, now, &due)
        if due.what == NRAY_LIMIT_NOTHING:
            return False
        if due.what == NRAY_LIMIT_ASK:
            waits = &self.aside[<int32_t>due.token]
            if self.is_spared(waits.slice, &waits.probe):
                nray_limit_pass(self.limits, &due)
                item[0] = self.back_from_aside(due.token)
                self.is_still_to_send(item)
                return False
        until = caps_due_of(&self.caps, &due, now)
        if until:
            nray_limit_put_off(self.limits, &due, now, until)
            return False
        nray_limit_take(self.limits, now, 0, &due)
        if due.what == NRAY_LIMIT_ASK:
            item[0] = self.back_from_aside(due.token)
            return True
        memset(item, 0, sizeof(item_t))
        item.slice = -1         # it is no probe of any
        item.limited = 1
        probe_of_due(&due, &item.probe)
        return self.shown is None or not self.has_shown(&item.probe)

    cdef void tell_limited(self, int64_t now) noexcept nogil:
        cdef uint64_t token = 0
        cdef item_t item
        while self.hits_used < HITS_FULL and nray_limit_settle(self.limits, now, &token):
            item = self.back_from_aside(token)
            self.record(&item.probe, item.position, item.slice, STATE_OPEN_FILTERED,
                        REASON_NO_RESPONSE, 0)

    cdef bint has_further(self, slot_t *slot) noexcept nogil:
        """Whether a silent UDP port has questions that were not asked."""
        cdef const nray_question_t *asked
        if not slot.kind & 2 or slot.limited or self.question_at[slot.probe.port] == NULL:
            return False
        asked = self.question(slot.probe.port, slot.asked)
        return asked.next != NULL

    cdef bint ask_further(self, int32_t i, int64_t now) noexcept nogil:
        """Ask the next question of a silent UDP port, if there is one."""
        cdef item_t item
        if not self.has_further(&self.slots[i]):
            return False
        item = self.item_of(&self.slots[i])
        item.asked += 1
        self.again_at_once(i, &item, now)
        return True

    cdef inline item_t item_of(self, const slot_t *slot) noexcept nogil:
        """The probe in a slot, to be sent again."""
        cdef item_t item
        memset(&item, 0, sizeof(item_t))
        item.probe = slot.probe
        item.position = slot.position
        item.slice = slot.slice
        item.tries = slot.tries
        item.second = slot.second
        item.met = slot.met
        item.asked = slot.asked
        item.limited = slot.limited
        return item

    cdef void again_at_once(self, int32_t i, item_t *item, int64_t now) noexcept nogil:
        item.due = now
        self.retry[(self.retry_head + self.retry_used) % RETRY_MAX] = item[0]
        self.retry_used += 1
        self.release(i)

    # ── how it ended ────────────────────────────────────────────────────────────────────────

    cdef void answer(self, int32_t i, uint8_t state, uint8_t reason, int64_t now) noexcept nogil:
        cdef slot_t *slot = &self.slots[i]
        cdef int64_t took = 0
        cdef bint told = (self.mask & (1 << state)) != 0
        if reason != REASON_NO_RESPONSE and (told or self.adaptive_):
            if now <= slot.started and told:
                now = monotonic_ns()
            took = max(1, (now - slot.started) // 1000)
            if self.adaptive_ and not slot.kind & 2:
                self.note_speed(&slot.probe, took)
        self.record(&slot.probe, slot.position, slot.slice, state, reason, took)

    cdef void record(self, const probe_t *probe, uint64_t position, int32_t slice, uint8_t state,
                     uint8_t reason, int64_t rtt_us) noexcept nogil:
        if slice < 0:
            if slice == ASK_OF_HOST:
                self.asked_at(position, state)
        elif self.settled(probe, position, slice, state, reason, rtt_us, 0):
            self.finish_one(slice)

    cdef void fail_slot(self, int32_t i, uint8_t reason, int64_t now) noexcept nogil:
        """The probe in this slot was not sent; its socket is free again."""
        cdef item_t item = self.item_of(&self.slots[i])
        self.release(i)
        self.own_failure(&item, reason, now)

    cdef void own_failure(self, item_t *item, uint8_t reason, int64_t now) noexcept nogil:
        """A probe that this machine could not send: again later, with fewer in flight."""
        cdef int64_t pause
        item.tries += 1
        if item.tries >= TRIES_MAX or self.retry_used >= RETRY_MAX:
            self.record(&item.probe, item.position, item.slice, STATE_ERROR, reason, 0)
            return
        pause = 0 if reason == REASON_SELF else RETRY_FIRST_NS << (item.tries - 1)
        item.due = now + min(pause, RETRY_LAST_NS)
        self.retry[(self.retry_head + self.retry_used) % RETRY_MAX] = item[0]
        self.retry_used += 1

    # ── hosts on which every port answers ───────────────────────────────────────────────────
    #
    # A trial's ports go out as probes of no slice. Their position is what finds the trial again:
    # its number, its place and the port's.

    cdef bint begin_asking(self, int32_t t) noexcept nogil:
        cdef item_t item
        cdef int k
        if self.retry_used + ASKS > RETRY_MAX:
            return False
        for k in range(ASKS):
            memset(&item, 0, sizeof(item_t))
            self.fill_ask(&self.trials[t], k, &item.probe)
            item.position = <uint64_t>self.trials[t].number << 32 | <uint64_t>t << 2 | <uint64_t>k
            item.slice = ASK_OF_HOST
            self.retry[(self.retry_head + self.retry_used) % RETRY_MAX] = item
            self.retry_used += 1
        return True

    cdef void let_go(self, int32_t slice) noexcept nogil:
        self.finish_one(slice)

    cdef bint is_to_ask(self, const item_t *item) noexcept nogil:
        """Whether an asked port's probe is still of use, and may be sent."""
        cdef trial_t *trial = &self.trials[<uint32_t>item.position >> 2]
        if trial.stage != TRIAL_ASKING or trial.number != item.position >> 32:
            return False
        if self.left_out(self.slices[trial.slice].excluded, &item.probe) < 0:
            return True
        self.asked_at(item.position, STATE_NONE)
        return False

    cdef void asked_at(self, uint64_t position, uint8_t state) noexcept nogil:
        cdef int32_t t = <int32_t>(<uint32_t>position >> 2)
        if self.trials[t].number == position >> 32:
            self.asked(t, position & 3, state == STATE_OPEN, state == STATE_CLOSED)
