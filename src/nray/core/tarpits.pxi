# Hosts on which every port answers: tarpits, and firewalls that answer each SYN in the name of
# what is behind them (SYN proxies). What such a host says of a port means nothing, so it is told
# once, and its open ports are counted but make no hits.
#
# How a host is judged. Its first open port is held back, and ASKS ports are asked that hardly a
# machine on earth has open: drawn by a keyed hash of the address out of a range without services,
# outside of the scan's own ports as far as there are others. All of them open: a tarpit. One
# refused: an ordinary host, and what was held back goes out as it is. When time is up and AGREED
# of them were open: a tarpit, too, for packets are lost, and some tarpits answer only some of the
# time; an ordinary host does not have two of three such ports open. What an ordinary host shows
# counts on: when it has shown AGAIN_FIRST open ports, and each time that these have become four
# times as many, it is asked again.
#
# Each engine judges for itself. A slice that withholds anything of a host holds a hit that says
# so (reason `tarpit`, at the position of the first port withheld), so whatever becomes of other
# slices, the two stand or fall together; whoever gathers the hits tells each host once.
#
# What must never happen: an open port of an ordinary host lost (a slice does not end while one is
# held back; what there is no room to hold goes out at once); a packet to an excluded address or
# against the policy (asked before these packets as before all; where the policy's ports leave
# too few to draw from, nobody is judged).

import os as _os

cdef extern from *:
    """
    static inline int nray_trailing_zeros(uint64_t x) { return __builtin_ctzll(x); }
    static inline int nray_count_bits(uint64_t x) { return __builtin_popcountll(x); }
    """
    int trailing_zeros "nray_trailing_zeros"(uint64_t bits) noexcept nogil
    int count_bits "nray_count_bits"(uint64_t bits) noexcept nogil

cdef enum:
    ASKS = 3
    ASKED_ALL = (1 << ASKS) - 1
    AGREED = 2
    # A scan of fewer TCP ports says little that could be wrong, and asking costs a share of it.
    TARPIT_PORTS_LEAST = 16
    # Below what systems give to their own sockets (Linux from 32,768, others from 49,152) and to
    # nodes of Kubernetes (from 30,000), above nearly all that is registered with IANA and used.
    IMPROBABLE_FIRST = 20480
    IMPROBABLE_PORTS = 8192
    # With fewer of them allowed by a policy it would be the same ones everywhere.
    IMPROBABLE_LEAST = 64
    # Ports of the scan's own that are passed over, before one of them is taken.
    OWN_PASSED_OVER = 64
    # Hosts remembered: those with an open port only. When there are as many, all that are not
    # being asked are forgotten, and asked again when they show the next open port.
    HOSTS_BITS = 17
    HOSTS_MAX = 65536
    # Hosts asked at once, and findings held back: three seconds' worth at a million probes a
    # second of which one in a hundred finds something. What is beyond goes out unjudged.
    TRIALS_MAX = 8192
    HELD_BACK_MAX = 32768
    AGAIN_FIRST = 32
    # Slices remembered to have told of a host: as many as can be under way with one probe each.
    # A fifth tells of it once more, which costs a hit.
    TELLERS = 4
    # Findings let go between two looks at what comes in.
    RELEASE_MAX = 512

cdef enum:
    HOST_NEW = 0            # not asked yet, for lack of room
    HOST_ASKED = 1
    HOST_ORDINARY = 2
    HOST_TARPIT = 3

cdef enum:                  # where a trial stands
    TRIAL_FREE = 0
    TRIAL_ASKING = 1
    TRIAL_JUDGED = 2        # what was held back is being let go

cdef enum:                  # lists of trials
    TRIALS_TO_SEND = 0
    TRIALS_FIRST = 1        # asked once
    TRIALS_LAST = 2         # asked for the last time
    TRIALS_JUDGED = 3
    TRIAL_LISTS = 4
    TRIALS_NOWHERE = 5

cdef enum:                  # in place of a slice: a probe that asks about a host
    ASK_OF_HOST = -3

# What a slice calls the open ports that it counted and did not tell, among its errors.
WITHHELD = "withheld"

cdef struct list_t:
    int32_t first
    int32_t last

cdef struct host_t:
    uint8_t addr[16]
    uint8_t family          # 0: nobody
    uint8_t what
    uint16_t tellers        # how many slices have told, modulo 2^16
    int32_t trial
    uint32_t shown          # open ports
    uint32_t again          # open ports with which it is asked again
    uint32_t teller[TELLERS]

cdef struct trial_t:
    uint8_t addr[16]
    uint8_t family
    uint8_t stage
    uint8_t where           # the list that it is in
    uint8_t unsent          # a bit for each port
    uint8_t answered
    uint8_t ended           # without an answer
    uint8_t tarpit
    uint8_t second          # it is being asked, or was, once more
    uint16_t port[ASKS]
    int32_t slice           # of the first finding that is held back
    int32_t before
    int32_t after
    int32_t held_first
    int32_t held_last
    uint32_t number         # of all trials: what comes late for an earlier one is known by it
    int64_t since           # ns: all ports were asked

cdef struct held_t:         # an open port, held back
    uint64_t position
    uint32_t rtt_us
    int32_t slice
    int32_t after
    uint8_t ttl


cdef host_t *host_place(host_t *table, const nray_key_t *key, uint8_t family,
                        const uint8_t *addr) noexcept nogil:
    """Where a host is, or would be, in a table that is half full at most."""
    cdef uint64_t low, high
    cdef uint32_t k
    memcpy(&low, addr, 8)
    memcpy(&high, addr + 8, 8)
    low = (low ^ key.k0) * <uint64_t>0xff51afd7ed558ccd
    low ^= low >> 32
    low = (low ^ high ^ key.k1 ^ family) * <uint64_t>0x9E3779B97F4A7C15
    k = <uint32_t>(low >> (64 - HOSTS_BITS))
    while table[k].family and (table[k].family != family or memcmp(table[k].addr, addr, 16) != 0):
        k = (k + 1) & ((1 << HOSTS_BITS) - 1)
    return &table[k]


cdef class TarpitBook(SliceBook):
    """What both engines know of hosts on which every port answers; no engine by itself."""

    cdef bint judging
    cdef nray_key_t tarpit_key
    cdef uint16_t *improbable
    cdef int32_t improbable_used
    cdef host_t *hosts
    cdef host_t *hosts_spare
    cdef int32_t hosts_used
    cdef trial_t *trials
    cdef int32_t trials_free, trials_asking
    cdef uint32_t trials_begun
    cdef list_t trial_lists[TRIAL_LISTS]
    cdef held_t *held_back
    cdef int32_t held_free

    def __cinit__(self, *_, **__):
        cdef int k
        for k in range(TRIAL_LISTS):
            self.trial_lists[k].first = -1
            self.trial_lists[k].last = -1

    def __dealloc__(self):
        free(self.improbable)
        free(self.hosts)
        free(self.hosts_spare)
        free(self.trials)
        free(self.held_back)

    cdef settle_tarpits(self, bint wanted, nray_key_t key):
        """Whether hosts are judged; after `settle`. The key hides which ports are asked."""
        cdef int32_t k
        if not wanted:
            return
        self.tarpit_key = key
        self.improbable = <uint16_t *>malloc(IMPROBABLE_PORTS * sizeof(uint16_t))
        if self.improbable == NULL:
            raise MemoryError
        for k in range(IMPROBABLE_FIRST, IMPROBABLE_FIRST + IMPROBABLE_PORTS):
            if self.policy is None or self.policy.allows_port(PROTO_TCP, k):
                self.improbable[self.improbable_used] = <uint16_t>k
                self.improbable_used += 1
        if self.improbable_used < IMPROBABLE_LEAST:
            return
        self.hosts = <host_t *>calloc(1 << HOSTS_BITS, sizeof(host_t))
        self.hosts_spare = <host_t *>calloc(1 << HOSTS_BITS, sizeof(host_t))
        self.trials = <trial_t *>calloc(TRIALS_MAX, sizeof(trial_t))
        self.held_back = <held_t *>calloc(HELD_BACK_MAX, sizeof(held_t))
        if (self.hosts == NULL or self.hosts_spare == NULL or self.trials == NULL
                or self.held_back == NULL):
            raise MemoryError
        for k in range(TRIALS_MAX):
            self.trials[k].after = k + 1 if k + 1 < TRIALS_MAX else -1
        for k in range(HELD_BACK_MAX):
            self.held_back[k].after = k + 1 if k + 1 < HELD_BACK_MAX else -1
        self.judging = True

    cdef keep(self, int32_t i, Space space, Exclusions exclusions):
        SliceBook.keep(self, i, space, exclusions)
        if self.judging and not space.s.search and space.tcp_ports() >= TARPIT_PORTS_LEAST:
            space.make_findable()
            self.slices[i].judged = 1

    # ── what an engine does in its own way ──────────────────────────────────────────────────

    cdef bint begin_asking(self, int32_t t) noexcept nogil:
        """Ask a trial's ports; false where there is no room for that."""
        return False

    cdef void let_go(self, int32_t slice) noexcept nogil:
        """A finding of the slice is no longer held back."""

    # ── findings ────────────────────────────────────────────────────────────────────────────

    cdef bint settled(self, const probe_t *probe, uint64_t position, int32_t slice, uint8_t state,
                      uint8_t reason, int64_t rtt_us, uint8_t ttl) noexcept nogil:
        """As `put_down`; false if it is held back, and will be settled by `let_go`."""
        cdef host_t *host
        if state == STATE_OPEN and self.slices[slice].stops:
            self.remember_open(slice, probe)
        if (state != STATE_OPEN or not self.slices[slice].judged
                or probe.protocol != PROTO_TCP):
            self.put_down(probe, position, slice, state, reason, rtt_us, ttl)
            return True
        host = self.host_of(probe)
        if host.what == HOST_TARPIT:
            self.withhold(host, position, slice, rtt_us, ttl)
            return True
        host.shown += 1
        if (host.what == HOST_NEW or host.what == HOST_ORDINARY and host.shown >= host.again):
            if self.held_free >= 0:
                self.ask(host, slice)
        if host.what == HOST_ASKED and self.hold(host.trial, position, slice, rtt_us, ttl):
            return False
        self.put_down(probe, position, slice, state, reason, rtt_us, ttl)
        return True

    cdef host_t *host_of(self, const probe_t *probe) noexcept nogil:
        """What is known of a host, good until the next call."""
        cdef host_t *host = host_place(self.hosts, &self.tarpit_key, probe.family, probe.addr)
        if host.family:
            return host
        if self.hosts_used >= HOSTS_MAX:
            self.forget_hosts()
            host = host_place(self.hosts, &self.tarpit_key, probe.family, probe.addr)
        host.family = probe.family
        memcpy(host.addr, probe.addr, 16)
        host.again = AGAIN_FIRST
        self.hosts_used += 1
        return host

    cdef void forget_hosts(self) noexcept nogil:
        """Forget all that are not being asked; TRIALS_MAX at most stay."""
        cdef host_t *before = self.hosts
        cdef uint32_t k
        self.hosts = self.hosts_spare
        self.hosts_spare = before
        self.hosts_used = 0
        for k in range(1 << HOSTS_BITS):
            if before[k].family and before[k].what == HOST_ASKED:
                host_place(self.hosts, &self.tarpit_key, before[k].family,
                           before[k].addr)[0] = before[k]
                self.hosts_used += 1
        memset(before, 0, (1 << HOSTS_BITS) * sizeof(host_t))

    cdef void withhold(self, host_t *host, uint64_t position, int32_t slice, int64_t rtt_us,
                       uint8_t ttl) noexcept nogil:
        """Count an open port of a tarpit; its slice's first one tells of the host."""
        cdef slice_t *one = &self.slices[slice]
        cdef int k
        one.counts[STATE_OPEN - 1] += 1
        one.withheld += 1
        for k in range(TELLERS):
            if host.teller[k] == one.serial:
                return
        host.teller[host.tellers % TELLERS] = one.serial
        host.tellers += 1
        self.tell(host.family, host.addr, position, slice, STATE_OPEN, REASON_TARPIT, rtt_us, ttl)

    cdef bint hold(self, int32_t t, uint64_t position, int32_t slice, int64_t rtt_us,
                   uint8_t ttl) noexcept nogil:
        cdef trial_t *trial = &self.trials[t]
        cdef int32_t k = self.held_free
        cdef held_t *held
        if k < 0:
            return False
        held = &self.held_back[k]
        self.held_free = held.after
        held.position = position
        held.slice = slice
        held.rtt_us = <uint32_t>min(rtt_us, <int64_t>0xFFFFFFFF)
        held.ttl = ttl
        held.after = -1
        if trial.held_first < 0:
            trial.held_first = k
        else:
            self.held_back[trial.held_last].after = k
        trial.held_last = k
        return True

    # ── trials ──────────────────────────────────────────────────────────────────────────────

    cdef void ask(self, host_t *host, int32_t slice) noexcept nogil:
        """Begin a trial, if there is room for one."""
        cdef int32_t t = self.trials_free
        cdef trial_t *trial
        if t < 0:
            return
        trial = &self.trials[t]
        self.trials_free = trial.after
        memset(trial, 0, sizeof(trial_t))
        memcpy(trial.addr, host.addr, 16)
        trial.family = host.family
        trial.stage = TRIAL_ASKING
        trial.where = TRIALS_NOWHERE
        trial.slice = slice
        trial.held_first = -1
        self.trials_begun += 1
        trial.number = self.trials_begun
        self.draw_ports(trial)
        if not self.begin_asking(t):
            self.free_trial(t)
            return
        self.trials_asking += 1
        if host.what == HOST_ORDINARY:
            host.again = host.again * 4 if host.again < 1 << 20 else 0xFFFFFFFF
        host.what = HOST_ASKED
        host.trial = t

    cdef void free_trial(self, int32_t t) noexcept nogil:
        self.trials[t].stage = TRIAL_FREE
        self.trials[t].after = self.trials_free
        self.trials_free = t

    cdef void draw_ports(self, trial_t *trial) noexcept nogil:
        cdef const uint32_t *own = self.slices[trial.slice].space.service_of[0]
        cdef uint64_t words[2]
        cdef uint64_t drawn
        cdef uint32_t at, step
        cdef uint16_t port = 0
        cdef int k
        memcpy(words, trial.addr, 16)
        drawn = nray_siphash_words(&self.tarpit_key, words, 2,
                                   <uint64_t>trial.family | <uint64_t>17 << 56)
        for k in range(ASKS):
            at = <uint32_t>(drawn >> (20 * k)) & 0xFFFFF
            for step in range(<uint32_t>self.improbable_used):
                port = self.improbable[(at + step) % <uint32_t>self.improbable_used]
                if (k > 0 and port == trial.port[0] or k > 1 and port == trial.port[1]
                        or step < OWN_PASSED_OVER and own[port]):
                    continue
                break
            trial.port[k] = port

    cdef void fill_ask(self, const trial_t *trial, int k, probe_t *probe) noexcept nogil:
        """The probe of a trial's port."""
        memset(probe, 0, sizeof(probe_t))
        memcpy(probe.addr, trial.addr, 16)
        probe.family = trial.family
        probe.protocol = PROTO_TCP
        probe.port = trial.port[k]

    cdef void asked(self, int32_t t, int k, bint answered, bint refused) noexcept nogil:
        """One of a trial's ports has answered, or neither answered nor refused until its end."""
        cdef trial_t *trial = &self.trials[t]
        if trial.stage != TRIAL_ASKING:
            return
        if refused:
            self.judge(t, False)
            return
        if answered:
            trial.answered |= 1 << k
        else:
            trial.ended |= 1 << k
        if trial.answered == ASKED_ALL or trial.answered | trial.ended == ASKED_ALL:
            self.judge(t, self.agree(trial))

    cdef bint agree(self, const trial_t *trial) noexcept nogil:
        return count_bits(trial.answered) >= AGREED

    cdef void judge(self, int32_t t, bint tarpit) noexcept nogil:
        """Its findings are let go by `release_some`."""
        cdef trial_t *trial = &self.trials[t]
        cdef host_t *host = host_place(self.hosts, &self.tarpit_key, trial.family, trial.addr)
        host.what = HOST_TARPIT if tarpit else HOST_ORDINARY
        trial.tarpit = tarpit
        trial.stage = TRIAL_JUDGED
        self.trials_asking -= 1
        self.enlist(t, TRIALS_JUDGED)

    cdef bint release_some(self) noexcept nogil:
        """Let go what was held back of hosts that have been judged; whether there is more."""
        cdef int32_t t, k
        cdef int count = 0
        cdef trial_t *trial
        cdef held_t *held
        cdef probe_t probe
        while self.trial_lists[TRIALS_JUDGED].first >= 0:
            t = self.trial_lists[TRIALS_JUDGED].first
            trial = &self.trials[t]
            self.fill_ask(trial, 0, &probe)
            while trial.held_first >= 0:
                if count >= RELEASE_MAX or self.hits_used >= HITS_FULL:
                    return True
                count += 1
                k = trial.held_first
                held = &self.held_back[k]
                trial.held_first = held.after
                if trial.tarpit:
                    self.withhold(self.host_of(&probe), held.position, held.slice, held.rtt_us,
                                  held.ttl)
                else:
                    self.put_down(&probe, held.position, held.slice, STATE_OPEN, REASON_SYN_ACK,
                                  held.rtt_us, held.ttl)
                self.let_go(held.slice)
                held.after = self.held_free
                self.held_free = k
            self.enlist(t, TRIALS_NOWHERE)
            self.free_trial(t)
        return False

    cdef void enlist(self, int32_t t, uint8_t where) noexcept nogil:
        """Take a trial out of its list and put it at the end of another."""
        cdef trial_t *trial = &self.trials[t]
        cdef list_t *line
        if trial.where != TRIALS_NOWHERE:
            line = &self.trial_lists[trial.where]
            if trial.before >= 0:
                self.trials[trial.before].after = trial.after
            else:
                line.first = trial.after
            if trial.after >= 0:
                self.trials[trial.after].before = trial.before
            else:
                line.last = trial.before
        trial.where = where
        if where == TRIALS_NOWHERE:
            return
        line = &self.trial_lists[where]
        trial.before = line.last
        trial.after = -1
        if line.last >= 0:
            self.trials[line.last].after = t
        else:
            line.first = t
        line.last = t
