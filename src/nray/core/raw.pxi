# The raw engine: probes (SYN, UDP, echo request) as packets of its own making, answers out of a
# ring, nothing kept of a probe but a bit.
#
# How a slice runs. Its probes go out in scan order (pass one). An answer proves itself by its
# cookie (frames.h); its address and port give the index, the inverse permutation the position,
# and a bitmap of the slice says whether it is the first. When all have been sent, the slice rests;
# then the silent ones are sent again, in the same order, and so for each retry. After the last
# pass it waits for the timeout, and what is silent then is counted as such. Slices rest while
# others are sent, so a pause costs no speed.
#
# How long a rest is: long enough that an answer on its way makes its second probe needless, and
# that one burst of loss does not take both: REST_LEAST_NS at the least; eight times the slowest
# answer of this slice, once there are enough of them; before that REST_UNKNOWN_NS; never more
# than the timeout, unless that is below the least.
#
# What must never happen: a packet to an excluded address or against the policy (asked before every
# packet, in every pass); a failure of this machine taken for silence (a frame that the kernel
# does not take is sent again for up to SEND_GIVE_UP_NS, then its probe is an error); a position
# counted twice (each ends by `finish`, which sets its bit) or never (a slice ends when all bits
# are set). An answer counts whoever asked: a worker that took over a dead one's slice may find
# the other's answers, for they carry the same cookies.
#
# Answers are taken out of the rings before deadlines are looked at, and a ring hands a block over
# only when it is full or NRAY_RETIRE_MS old: RING_SLACK_NS is added to each deadline for that.

cdef extern from "frames.h" nogil:
    enum:
        NRAY_ETHERNET, NRAY_TCP, NRAY_FRAME_MAX
        NRAY_HOP_BY_HOP, NRAY_ROUTING, NRAY_FRAGMENT, NRAY_DESTINATION
        NRAY_NOTHING, NRAY_SYN_ACK, NRAY_RST, NRAY_UDP_ANSWER, NRAY_ICMP, NRAY_ECHO_REPLY
    ctypedef struct nray_template_t:
        uint8_t family
        uint8_t protocol
    ctypedef struct nray_answer_t:
        uint8_t what, family, protocol, ttl, type, code
        uint16_t sport, dport
        uint32_t number
        const uint8_t *own
        const uint8_t *target
        const uint8_t *payload
        size_t payload_size
    uint64_t nray_cookie(const nray_key_t *key, int family, const uint8_t *target,
                         const uint8_t *source, uint16_t sport, uint16_t dport, uint8_t protocol)
    uint16_t nray_source_port(const nray_key_t *key, int family, const uint8_t *target,
                              uint16_t dport, uint16_t first, uint32_t width)
    void nray_prepare(nray_template_t *t, int family, int protocol, const uint8_t *source,
                      const uint8_t *own_mac, const uint8_t *next_mac, uint32_t mtu)
    size_t nray_build(const nray_template_t *t, uint8_t *out, const uint8_t *next_mac,
                      const uint8_t *target, uint16_t sport, uint16_t dport, uint64_t cookie,
                      const uint8_t *payload, size_t payload_size, uint64_t payload_sum)
    int nray_read_answer(const uint8_t *ip, size_t size, nray_answer_t *out)
    int nray_shows_cookie(const nray_key_t *key, const nray_answer_t *a)

cdef extern from "packets.h" nogil:
    enum:
        NRAY_BATCH, NRAY_VIA_PACKET, NRAY_VIA_IP4, NRAY_VIA_IP6, NRAY_VIAS, NRAY_SNAP
        ENETDOWN, ENODEV, ENXIO, EINTR
    cdef struct sock_filter:
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k
    ctypedef struct nray_batch_t:
        int fd[3]
        int bound
        int xdps_used
        uint8_t frames[64][1600]
    ctypedef struct nray_ring_t:
        int fd
        uint8_t *map
    void nray_batch_init(nray_batch_t *b)
    int nray_open_way(nray_batch_t *b, int via, int ifindex)
    void nray_address_frame(nray_batch_t *b, int i, int via, int ifindex, const uint8_t *target,
                            size_t size)
    int nray_send_batch(nray_batch_t *b, int first, int used)
    int nray_open_xdp(nray_batch_t *b, int ifindex, uint32_t queue)
    int nray_push_kept(nray_batch_t *b)
    void nray_batch_close(nray_batch_t *b)
    int nray_ring_open(nray_ring_t *r, int family, const sock_filter *filter, int length)
    void nray_ring_close(nray_ring_t *r)
    const uint8_t *nray_ring_next(nray_ring_t *r, size_t *size, int64_t *at_ns)
    uint64_t nray_ring_drops(nray_ring_t *r)
    int64_t nray_clock_offset()

cdef enum:
    # Source ports of all workers of a node: above those that Linux gives to its own sockets (up
    # to 60,999), so that none of them is taken for ours. A power of two, shared out evenly.
    RAW_PORT_FIRST = 61440
    RAW_PORTS = 4096
    SHARDS_MAX = 512
    # Of a slice, for its bitmap's sake (32 MiB).
    RAW_SLICE_MAX = 1 << 28
    # Send times kept of one slice; larger ones share a time among several probes, which such
    # a slice sends within less than a millisecond.
    SENT_TIMES_MAX = 1 << 20
    # Answers read between two looks at what is due.
    RECEIVE_MAX = 1024
    # Silent probes told of between two looks at the rings.
    SILENT_MAX = 1024
    # Answers, before their slowest says how long to rest.
    ANSWERS_TRUSTED = 16
    # Probes that wait for the link-layer address of their target; beyond that sending waits.
    HELD_MAX = 4096
    # Neighbours known at once: four times what Linux keeps by default, with room.
    NEIGHBOURS_BITS = 14
    NEIGHBOURS_MAX = 8192
    RETRIES_MAX = 100

cdef int64_t REST_LEAST_NS = 300_000_000
cdef int64_t REST_UNKNOWN_NS = 1_000_000_000
cdef int64_t RING_SLACK_NS = 10_000_000
# A second: more than any queue takes to drain that drains at all.
cdef int64_t SEND_GIVE_UP_NS = 1_000_000_000
# A batch that was held up for so long, between its making and its sending, takes turns anew.
cdef int64_t OVERDUE_NS = 100_000_000
cdef int64_t STALL_FIRST_NS = 100_000
cdef int64_t STALL_LAST_NS = 5_000_000
# How long the kernel asks a neighbour: three times, a second apart.
cdef int64_t NEIGHBOUR_NS = 3_000_000_000
# A neighbour that did not answer is asked again after so long.
cdef int64_t NEIGHBOUR_AGAIN_NS = 60_000_000_000
# How often the control descriptor is looked at while sending at full speed.
cdef int64_t LOOK_NS = 1_000_000
# At high rates turns are closer than sleeping is worth: those of a tenth of a millisecond go out
# together, a hundredth of the finest bucket that a rate is judged in.
cdef int64_t SLEEP_LEAST_NS = 100_000
cdef int64_t CLOCK_EVERY_NS = 1_000_000_000
# How often answers that the rings had no room for are told of, where the rate is to be found.
cdef int64_t DROPS_EVERY_NS = 100_000_000

cdef enum:
    STAGE_QUEUED = 0
    STAGE_SENDING = 1       # its pass has begun; `current` is the one that goes on
    STAGE_SENT = 2          # all of the pass that can go out has; some may wait in batch or held
    STAGE_RESTING = 3
    STAGE_DUE = 4           # the next pass may begin
    STAGE_TELLING = 5       # the silent ones are told
    STAGE_LIMITED = 6       # some wait for their hosts, which send few errors (limited.h)
    STAGE_HELD = 7          # all are known; open ports are held back, see tarpits.pxi

cdef struct work_t:         # of a slice, beside its slice_t
    const space_t *space
    const ranges_t *excluded
    uint64_t *finished      # a bit for each entry
    uint64_t *odd           # those that something answered that nobody asked for; NULL: none
    uint32_t *sent_us       # since `zero`, and one; 0: not known
    uint32_t *sorted        # listed entries by address, protocol and port
    uint64_t cursor         # the entry that this pass comes to next
    uint64_t left           # entries not finished
    uint64_t held           # of those finished: not told yet, see tarpits.pxi
    int64_t zero            # ns
    int64_t rest_until      # ns
    uint32_t outside        # entries in the batch or held
    uint32_t limited        # that wait in `limits`
    uint32_t slowest_us
    uint32_t answers
    uint8_t stage
    uint8_t passed          # passes behind it
    uint8_t shift           # entries that share a send time, as a power of two
    uint8_t protocols       # 1: TCP or echo requests, 2: UDP

cdef struct link_t:
    int ifindex
    uint8_t loopback
    uint8_t ethernet
    uint8_t mac[6]
    uint32_t mtu

cdef struct route_t:
    nray_number_t first
    nray_number_t last
    uint8_t source[16]
    uint8_t family
    uint8_t direct          # its targets are neighbours, to be asked for one by one
    uint8_t via
    int32_t link
    nray_template_t tcp
    nray_template_t udp
    nray_template_t echo

cdef struct neighbour_t:
    uint8_t addr[16]
    uint8_t mac[6]
    uint8_t state           # 0: nothing known
    uint8_t told            # `neighbours_wanted` has named it
    uint8_t used
    int32_t link
    int64_t since           # ns: asked, or known not to answer

cdef enum:
    NEIGHBOUR_NONE = 0
    NEIGHBOUR_WANTED = 1
    NEIGHBOUR_KNOWN = 2
    NEIGHBOUR_SILENT = 3

cdef struct entry_t:
    int32_t slice
    uint32_t entry

cdef enum:                  # what is no probe of a slice: a sample, a trial of a host
    NO_SLICE = -1
    TRIAL = -2              # (-3 is ASK_OF_HOST, see tarpits.pxi)


cdef inline bint is_finished(const work_t *work, uint32_t entry) noexcept nogil:
    return work.finished[entry >> 6] >> (entry & 63) & 1


cdef inline bint is_odd(const work_t *work, uint32_t entry) noexcept nogil:
    return work.odd != NULL and work.odd[entry >> 6] >> (entry & 63) & 1


cdef inline void listed_text(const probe_t *probe, uint8_t *out) noexcept nogil:
    """What tells probes of a list apart, in 20 bytes that can be compared."""
    out[0] = probe.family
    out[1] = probe.protocol
    memcpy(out + 2, &probe.port, 2)
    memcpy(out + 4, probe.addr, 16)


cdef neighbour_t *neighbour_place(neighbour_t *table, int32_t link,
                                  const uint8_t *addr) noexcept nogil:
    """Where a neighbour is, or would be, in a table that is half full at most."""
    cdef uint64_t low, high
    cdef uint32_t k
    memcpy(&low, addr, 8)
    memcpy(&high, addr + 8, 8)
    # Fibonacci hashing and linear probing (Knuth, TAOCP 3, 6.4).
    low ^= high * <uint64_t>0xff51afd7ed558ccd ^ <uint64_t>link << 48
    k = <uint32_t>((low * <uint64_t>0x9E3779B97F4A7C15) >> (64 - NEIGHBOURS_BITS))
    while table[k].used and (table[k].link != link or memcmp(table[k].addr, addr, 16) != 0):
        k = (k + 1) & ((1 << NEIGHBOURS_BITS) - 1)
    return &table[k]


cdef tuple raw_filter(int family, int first, int last):
    """The kernel's filter: a classic BPF program, as (code, jt, jf, k) each.

    Offsets count from the IP header, as a cooked packet socket sees it. It passes TCP with RST, or
    with SYN and ACK, and UDP to our ports, echo replies to them as identifiers, and ICMP errors
    that quote a packet from them (or an echo request with such an identifier). What has extension
    headers (IPv6) passes whatever it holds, for a filter has no loops: it is rare, and is read as
    any other.
    """
    cdef int byte = 0x30, half = 0x28, byte_x = 0x50, half_x = 0x48, header_x = 0xB1
    cdef int equal = 0x15, bits = 0x45, at_least = 0x35, above = 0x25, always = 0x05
    cdef int conjunct = 0x54, shift = 0x64, add_x = 0x0C, to_x = 0x07, end = 0x06
    if family == 4:
        program = [
            (half, "", "", 6), (bits, "reject", "", 0x1FFF),        # a later fragment
            (header_x, "", "", 0), (byte, "", "", 9),
            (equal, "icmp", "", 1), (equal, "port", "", 17), (equal, "", "reject", 6),
            (byte_x, "", "", 13),
            (bits, "port", "", 4), (conjunct, "", "", 0x12), (equal, "port", "reject", 0x12),
            "icmp",
            (byte_x, "", "", 0),
            (equal, "echo", "", 0), (equal, "quoted", "", 3), (equal, "quoted", "", 11),
            (equal, "quoted", "reject", 12),
            "echo",
            (half_x, "", "", 4), (always, "range", "", 0),
            "quoted",
            (byte_x, "", "", 8 + 9), (equal, "request", "", 1),
            # X moves on by the length of the quoted header
            (byte_x, "", "", 8), (conjunct, "", "", 15), (shift, "", "", 2), (add_x, "", "", 0),
            (to_x, "", "", 0), (half_x, "", "", 8), (always, "range", "", 0),
            "request",
            (byte_x, "", "", 8), (conjunct, "", "", 15), (shift, "", "", 2), (add_x, "", "", 0),
            (to_x, "", "", 0), (half_x, "", "", 8 + 4), (always, "range", "", 0),
            "port",
            (half_x, "", "", 2),
        ]
    else:
        program = [
            (byte, "", "", 6),
            (equal, "icmp", "", 58), (equal, "port", "", 17), (equal, "tcp", "", 6),
            (equal, "pass", "", NRAY_HOP_BY_HOP), (equal, "pass", "", NRAY_ROUTING),
            (equal, "pass", "", NRAY_FRAGMENT), (equal, "pass", "reject", NRAY_DESTINATION),
            "tcp",
            (byte, "", "", 40 + 13),
            (bits, "port", "", 4), (conjunct, "", "", 0x12), (equal, "port", "reject", 0x12),
            "icmp",
            (byte, "", "", 40),
            (equal, "echo", "", 129), (equal, "quoted", "", 1), (equal, "quoted", "", 3),
            (equal, "quoted", "reject", 4),
            "echo",
            (half, "", "", 40 + 4), (always, "range", "", 0),
            "quoted",
            (byte, "", "", 40 + 8 + 6), (equal, "request", "", 58),
            (half, "", "", 40 + 8 + 40), (always, "range", "", 0),
            "request",
            (half, "", "", 40 + 8 + 40 + 4), (always, "range", "", 0),
            "port",
            (half, "", "", 40 + 2),
        ]
    program += [
        "range", (at_least, "", "reject", first), (above, "reject", "", last),
        "pass", (end, "", "", NRAY_SNAP),
        "reject", (end, "", "", 0),
    ]
    labels = {}
    lines = []
    for line in program:
        if isinstance(line, str):
            labels[line] = len(lines)
        else:
            lines.append(line)
    made = []
    for at, (code, yes, no, k) in enumerate(lines):
        if code == always:
            made.append((code, 0, 0, labels[yes] - at - 1))
        else:
            made.append((code, labels[yes] - at - 1 if yes else 0,
                         labels[no] - at - 1 if no else 0, k))
    return tuple(made)


cdef nray_key_t raw_key(bytes key):
    cdef nray_key_t made
    if len(key) != 16:
        raise ValueError("the key of the cookies is 16 bytes")
    made.k0 = int.from_bytes(key[:8], "little")
    made.k1 = int.from_bytes(key[8:], "little")
    return made


cdef inline bint is_passing(int code) noexcept nogil:
    """Whether an errno of sending may go away by itself."""
    return (code == EAGAIN or code == ENOBUFS or code == ENOMEM or code == ENETDOWN
            or code == ENODEV or code == ENXIO)


cdef class RawEngine(TarpitBook):
    """Runs slices by packets of its own; one for each worker process (see `_core.pyi`)."""

    cdef nray_key_t key
    cdef int epoll
    cdef uint16_t port_first
    cdef uint32_t port_width
    cdef uint32_t probe_width   # of these ports, those that the scan's probes leave from
    cdef samples_t samples      # from the others; of no width where none are sent
    cdef caps_t caps
    cdef uint64_t drops_told
    cdef int64_t drops_at
    cdef link_t *links
    cdef int32_t links_used
    cdef route_t *routes        # IPv4 first, each family sorted
    cdef int32_t routes_used, routes4, route_last
    cdef nray_ring_t rings[2]   # IPv4, IPv6
    cdef nray_batch_t *batch
    cdef entry_t batch_of[64]
    cdef int32_t batch_used, batch_from
    cdef int64_t stalled_since, stall_until, stall_ns
    cdef int64_t batch_turn, batch_change   # the first turn that its frames left are to use
    cdef bint batch_overdue     # it missed that
    cdef work_t *works
    cdef int32_t *opened        # the slices that are open, in no order
    cdef int32_t opened_used
    cdef int32_t *queue         # rings of SLICES_MAX: those never begun, those due for a pass
    cdef int32_t queue_at, queue_used
    cdef int32_t *due
    cdef int32_t due_at, due_used
    cdef int32_t current
    cdef bint current_first     # it is in its first pass
    cdef bint has_next          # `next_item` waits for its turn
    cdef entry_t next_item
    cdef int passes
    cdef bint turn_taken
    cdef int64_t turn_at, turn_change
    cdef int64_t timeout_ns[2]  # TCP, UDP
    cdef int64_t clock_offset, clock_at, looked_at
    cdef int64_t failed_again, doubles, held_looked
    cdef neighbour_t *neighbours
    cdef neighbour_t *neighbours_spare
    cdef int32_t neighbours_used, neighbours_untold
    cdef entry_t *held
    cdef entry_t *ready
    cdef int32_t held_used, ready_used
    cdef bint news, wanted_told, carries, asks_anew
    cdef nray_answer_t carried
    cdef int64_t carried_at
    cdef readonly dict no_xdp

    def __cinit__(self, Bucket bucket not None, *, int control_fd=-1, bytes key not None,
                  int shard=0, int shards=1, links, routes, double tcp_timeout_s=1.0,
                  double udp_timeout_s=1.0, int retries=1, states=(), bytes payload=b"nray",
                  payloads=None, checks=None, further=None, bint udp_fast=False,
                  Policy policy=None, bint xdp=False, bint samples=False, bint tarpits=False,
                  double host_rate=0, double network_rate=0, HostSet shown=None):
        cdef int i
        self.epoll = -1
        for i in range(2):
            self.rings[i].fd = -1
            self.rings[i].map = NULL
        if not tcp_timeout_s > 0 or not udp_timeout_s > 0:
            raise ValueError("timeouts are positive numbers of seconds")
        if not 0 <= retries <= RETRIES_MAX:
            raise ValueError(f"retries are 0 to {RETRIES_MAX}")
        if not 0 <= shard < shards <= SHARDS_MAX:
            raise ValueError(f"a shard is below the number of shards, that is {SHARDS_MAX} at most")
        self.key = raw_key(key)
        self.port_width = RAW_PORTS // shards
        self.port_first = <uint16_t>(RAW_PORT_FIRST + shard * self.port_width)
        self.probe_width = self.port_width // 2 if samples else self.port_width
        if caps_open(&self.caps, host_rate, network_rate) != 0:
            raise MemoryError
        if samples and samples_open(&self.samples, <uint16_t>(self.port_first + self.probe_width),
                                    self.port_width - self.probe_width, shards) != 0:
            raise MemoryError
        self.timeout_ns[0] = <int64_t>(tcp_timeout_s * 1e9)
        self.timeout_ns[1] = <int64_t>(udp_timeout_s * 1e9)
        self.passes = 1 + retries
        self.pings = True
        self.current = -1
        self.settle(bucket, states, payload, payloads, checks, further, udp_fast, policy,
                    udp_timeout_s, shards, shown)
        nray_limit_spaced(self.limits, max(self.caps.every[0], self.caps.every[1]))
        self.settle_tarpits(tarpits, self.key)
        self.batch = <nray_batch_t *>malloc(sizeof(nray_batch_t))
        self.works = <work_t *>calloc(SLICES_MAX, sizeof(work_t))
        self.opened = <int32_t *>calloc(SLICES_MAX, sizeof(int32_t))
        self.queue = <int32_t *>calloc(SLICES_MAX, sizeof(int32_t))
        self.due = <int32_t *>calloc(SLICES_MAX, sizeof(int32_t))
        self.held = <entry_t *>calloc(HELD_MAX, sizeof(entry_t))
        self.ready = <entry_t *>calloc(HELD_MAX, sizeof(entry_t))
        self.neighbours = <neighbour_t *>calloc(1 << NEIGHBOURS_BITS, sizeof(neighbour_t))
        self.neighbours_spare = <neighbour_t *>calloc(1 << NEIGHBOURS_BITS,
                                                      sizeof(neighbour_t))
        self.links = <link_t *>calloc(len(links) + 1, sizeof(link_t))
        self.routes = <route_t *>calloc(len(routes) + 1, sizeof(route_t))
        if (self.batch == NULL or self.works == NULL or self.opened == NULL or self.queue == NULL
                or self.due == NULL or self.held == NULL or self.ready == NULL
                or self.neighbours == NULL or self.neighbours_spare == NULL
                or self.links == NULL or self.routes == NULL):
            raise MemoryError
        nray_batch_init(self.batch)
        self.set_links(links)
        self.set_routes(routes)
        self.open_all(control_fd)
        self.no_xdp = self.open_xdps(shard) if xdp else {}

    def __dealloc__(self):
        cdef int i
        if self.works != NULL:
            for i in range(SLICES_MAX):
                self.free_work(i)
        if self.batch != NULL:
            nray_batch_close(self.batch)
            free(self.batch)
        for i in range(2):
            nray_ring_close(&self.rings[i])
        if self.epoll >= 0:
            close(self.epoll)
        free(self.works)
        free(self.opened)
        free(self.queue)
        free(self.due)
        free(self.held)
        free(self.ready)
        free(self.neighbours)
        free(self.neighbours_spare)
        free(self.links)
        free(self.routes)
        samples_close(&self.samples)
        caps_close(&self.caps)

    cdef set_links(self, links):
        cdef link_t *link
        for ifindex, name, ethernet, mac, mtu in links:
            link = &self.links[self.links_used]
            if ifindex <= 0 or len(mac) != (6 if ethernet else 0) or mtu < 100:
                raise ValueError(f"interface {name}: index, link-layer address or MTU is wrong")
            link.ifindex = ifindex
            link.loopback = name == "lo"
            link.ethernet = bool(ethernet)
            memcpy(link.mac, <const char *><bytes>mac, len(mac))
            link.mtu = mtu
            self.links_used += 1

    cdef set_routes(self, routes):
        cdef route_t *route
        cdef const link_t *link
        cdef const uint8_t *next_mac
        cdef uint8_t none[6]
        memset(none, 0, sizeof(none))
        for wanted in (4, 6):
            before = -1
            for family, first, last, at, source, mac in routes:
                if family not in (4, 6) or not 0 <= at < self.links_used:
                    raise ValueError("a route is of family 4 or 6, over one of the links")
                if family != wanted:
                    continue
                if not before < first <= last or last >> (32 if family == 4 else 128):
                    raise ValueError("routes are sorted, disjoint, inclusive ranges")
                link = &self.links[<int>at]
                if len(source) != (4 if family == 4 else 16):
                    raise ValueError("a route's source is an address of its family")
                if len(mac) and (len(mac) != 6 or not link.ethernet):
                    raise ValueError("a link-layer address is 6 bytes, and for Ethernet alone")
                before = last
                route = &self.routes[self.routes_used]
                route.family = family
                route.first = space_number(first)
                route.last = space_number(last)
                route.link = at
                route.direct = link.ethernet and not mac
                route.via = (NRAY_VIA_PACKET if link.ethernet
                             else NRAY_VIA_IP4 if family == 4 else NRAY_VIA_IP6)
                memcpy(route.source, <const char *><bytes>source, len(source))
                next_mac = <const uint8_t *><const char *><bytes>mac if mac else none
                nray_prepare(&route.tcp, family, PROTO_TCP, route.source, link.mac, next_mac,
                             link.mtu)
                nray_prepare(&route.udp, family, PROTO_UDP, route.source, link.mac, next_mac,
                             link.mtu)
                nray_prepare(&route.echo, family, PROTO_ICMP, route.source, link.mac, next_mac,
                             link.mtu)
                self.routes_used += 1
            if wanted == 4:
                self.routes4 = self.routes_used

    cdef open_all(self, int control_fd):
        cdef sock_filter program[48]
        cdef int via, code, ifindex, i
        ifindexes = {self.links[i].ifindex for i in range(self.links_used) if self.links[i].ethernet}
        for via in {self.routes[i].via for i in range(self.routes_used)}:
            ifindex = ifindexes.copy().pop() if len(ifindexes) == 1 else 0
            code = nray_open_way(self.batch, via, ifindex)
            if code:
                raise OSError(code, f"no raw socket: {_os.strerror(code)}")
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "no epoll descriptor")
        for family in {self.routes[i].family for i in range(self.routes_used)}:
            lines = raw_filter(family, self.port_first, self.port_first + self.port_width - 1)
            for i in range(len(lines)):
                program[i].code, program[i].jt, program[i].jf, program[i].k = lines[i]
            via = family == 6
            code = nray_ring_open(&self.rings[via], family, program, len(lines))
            if code:
                raise OSError(code, f"no ring for answers: {_os.strerror(code)}")
            if nray_watch(self.epoll, self.rings[via].fd, EPOLLIN, via, 1) != 0:
                raise OSError(errno, "the ring cannot be watched")
        if control_fd >= 0 and nray_watch(self.epoll, control_fd, EPOLLIN, TAG_CONTROL, 1) != 0:
            raise OSError(errno, "the control descriptor cannot be watched")

    cdef dict open_xdps(self, uint32_t queue):
        cdef int i, code
        wrong = {}
        for i in sorted({self.routes[i].link for i in range(self.routes_used)}):
            if self.links[i].ethernet:
                code = nray_open_xdp(self.batch, self.links[i].ifindex, queue)
                if code:
                    wrong[i] = code
        return wrong

    # ── what Python sees ────────────────────────────────────────────────────────────────────

    def add_slice(self, uint64_t lease, uint64_t start, uint64_t count, Space space not None,
                  Exclusions exclusions):
        self.check_slice(start, count, space, False)
        if count > RAW_SLICE_MAX:
            raise ValueError(f"a slice of the raw engine has at most {RAW_SLICE_MAX} probes")
        cdef int32_t i = self.new_slice(lease, start, count)
        self.slices[i].search = space.s.search
        self.keep(i, space, exclusions)
        self.enqueue(i, space, exclusions)

    def add_names(self, uint64_t lease, uint64_t start, uint64_t count, Space space not None,
                  Exclusions exclusions, addresses):
        cdef int32_t i = self.list_names(lease, start, count, space, exclusions, addresses)
        self.enqueue(i, space, exclusions)

    cdef enqueue(self, int32_t i, Space space, Exclusions exclusions):
        cdef work_t *work = &self.works[i]
        cdef slice_t *slice = &self.slices[i]
        cdef uint64_t k, times
        memset(work, 0, sizeof(work_t))
        work.space = &space.s
        work.excluded = NULL if exclusions is None else &exclusions.r
        work.left = slice.count
        for k in range(space.s.ports):
            work.protocols |= 2 if space.s.services[k].protocol == PROTO_UDP else 1
        while (slice.count >> work.shift) > SENT_TIMES_MAX:
            work.shift += 1
        times = (slice.count >> work.shift) + 1
        work.finished = <uint64_t *>calloc((slice.count >> 6) + 1, sizeof(uint64_t))
        work.sent_us = <uint32_t *>calloc(times, sizeof(uint32_t))
        if work.finished == NULL or work.sent_us == NULL:
            self.free_work(i)
            self.forget(i)
            raise MemoryError
        if slice.listed == NULL:
            space.make_findable()
        else:
            order = sorted(range(slice.count), key=lambda k: self.listed_key(i, k))
            work.sorted = <uint32_t *>calloc(slice.count + 1, sizeof(uint32_t))
            if work.sorted == NULL:
                self.free_work(i)
                self.forget(i)
                raise MemoryError
            for k in range(slice.count):
                work.sorted[k] = order[k]
        self.opened[self.opened_used] = i
        self.opened_used += 1
        if slice.count == 0:
            self.end(i)
            return
        self.queue[(self.queue_at + self.queue_used) % SLICES_MAX] = i
        self.queue_used += 1

    cdef bytes listed_key(self, int32_t i, uint64_t k):
        cdef uint8_t text[20]
        listed_text(&self.slices[i].listed[k].probe, text)
        return text[:20]

    cdef void free_work(self, int32_t i) noexcept:
        free(self.works[i].finished)
        free(self.works[i].odd)
        free(self.works[i].sent_us)
        free(self.works[i].sorted)
        memset(&self.works[i], 0, sizeof(work_t))

    cdef void forget(self, int32_t i) noexcept:
        self.free_work(i)
        SliceBook.forget(self, i)

    @property
    def pending(self):
        """Slices with probes that were not started yet."""
        return self.queue_used + (1 if self.current >= 0 and self.current_first else 0)

    @property
    def in_flight(self):
        """Probes that were sent, or tried, and have no answer yet."""
        cdef int32_t k
        cdef uint64_t begun, total = 0
        for k in range(self.opened_used):
            begun = self.slices[self.opened[k]].begun
            total += min(begun, self.works[self.opened[k]].left)
        return total

    @property
    def drops(self):
        """Packets that found no room in the rings."""
        return nray_ring_drops(&self.rings[0]) + nray_ring_drops(&self.rings[1])

    @property
    def duplicates(self):
        """Answers to probes that had been answered."""
        return self.doubles

    @property
    def send_failures(self):
        """Packets of later passes that this machine failed to send."""
        return self.failed_again

    @property
    def source_ports(self):
        """The first and the last port that probes of this engine leave from."""
        return self.port_first, self.port_first + self.port_width - 1

    def neighbours_wanted(self):
        cdef int32_t k
        cdef neighbour_t *one
        found = []
        if not self.neighbours_untold:
            return found
        for k in range(1 << NEIGHBOURS_BITS):
            one = &self.neighbours[k]
            if one.state == NEIGHBOUR_WANTED and not one.told:
                one.told = 1
                found.append((one.link >> 1, one.addr[:16 if one.link & 1 else 4]))
        self.neighbours_untold = 0
        return found

    def set_neighbour(self, int link_index, bytes address not None, mac):
        cdef uint8_t addr[16]
        cdef neighbour_t *one
        if not 0 <= link_index < self.links_used or len(address) not in (4, 16):
            raise ValueError("a neighbour is an address on one of the links")
        if mac is not None and len(mac) != 6:
            raise ValueError("a link-layer address is 6 bytes")
        memset(addr, 0, 16)
        memcpy(addr, <const char *>address, len(address))
        one = self.neighbour_at(link_index << 1 | (len(address) == 16), addr)
        if mac is None:
            one.state = NEIGHBOUR_SILENT
            one.since = monotonic_ns()
        else:
            one.state = NEIGHBOUR_KNOWN
            memcpy(one.mac, <const char *><bytes>mac, 6)
        self.news = True

    def pump(self, double seconds):
        cdef int64_t until = monotonic_ns() + <int64_t>(seconds * 1e9)
        self.control_ready = False
        # Without room for what a round may find there is no round: `take` comes first.
        if self.hits_used < HITS_FULL:
            with nogil:
                self.run(until)
        return bool(self.control_ready)

    # ── the loop ────────────────────────────────────────────────────────────────────────────

    cdef void run(self, int64_t until) noexcept nogil:
        cdef epoll_event events[4]
        cdef int64_t now, wake, asked
        cdef bint busy, drained
        cdef int count, i
        while True:
            now = monotonic_ns()
            if now - self.clock_at >= CLOCK_EVERY_NS:
                self.clock_at = now
                self.clock_offset = nray_clock_offset()
            if self.samples.width and now - self.drops_at >= DROPS_EVERY_NS:
                self.tell_drops(now)
            wake = until
            busy = False
            if self.news or self.held_used and now - self.held_looked >= STALL_LAST_NS:
                self.look_at_held(now)
            if self.caps.used and self.is_time_to_spare(now, &wake):
                self.spare_waiting(now)
            if self.batch_used == 0:
                busy = self.fill(now, &wake)
            if self.batch_used and now >= self.stall_until:
                self.flush(monotonic_ns())
            if self.batch_used:
                wake = min(wake, self.stall_until)
                busy = False
            if self.batch.xdps_used and nray_push_kept(self.batch):
                wake = min(wake, now + STALL_FIRST_NS)
            asked = monotonic_ns()
            drained = self.receive(0) and self.receive(1)
            if drained:
                wake = min(wake, self.look_at_rests(asked))
                wake = min(wake, self.look_at_trials(asked))
                if self.samples.out:
                    wake = min(wake, samples_expire(&self.samples, asked, self.bucket))
            else:
                busy = True
            if drained and self.hits_used < HITS_FULL:
                self.tell_limited(asked)
            if self.release_some() or self.asks_anew:
                self.asks_anew = False
                busy = True
            if self.hits_used < HITS_FULL:
                self.tell_silent(&busy)
            # Of what is silent now, some may be due to be asked.
            if not self.paused_:
                wake = min(wake, nray_limit_wake(self.limits))
            if self.hits_used:
                wake = min(wake, self.first_hit + FLUSH_NS)
            if self.held_used:
                wake = min(wake, asked + STALL_LAST_NS)
            # One that was due already when the batch was filled has to wait for something else.
            if self.caps.used and self.caps.heap[0].due > now and not self.paused_:
                wake = min(wake, max(self.caps.heap[0].due, asked + SLEEP_LEAST_NS))
            if (self.ended or self.hits_used >= HITS_FULL or busy or not self.idle_told
                    or self.neighbours_untold and not self.wanted_told):
                wake = asked
            if wake > asked or asked - self.looked_at >= LOOK_NS:
                self.looked_at = asked
                count = nray_wait(self.epoll, events, 4, wake - asked if wake > asked else 0)
                for i in range(count):
                    if events[i].data.u64 == TAG_CONTROL:
                        self.control_ready = True
                asked = monotonic_ns()
            if self.control_ready or self.ended or self.hits_used >= HITS_FULL:
                return
            if self.hits_used and asked - self.first_hit >= FLUSH_NS:
                return
            if self.neighbours_untold and not self.wanted_told:
                self.wanted_told = True
                return
            if not self.idle_told:
                # A slice more may be wanted: this returns once, and waits the next time.
                self.idle_told = True
                return
            if asked >= until:
                return

    cdef void tell_drops(self, int64_t now) noexcept nogil:
        cdef uint64_t drops = nray_ring_drops(&self.rings[0]) + nray_ring_drops(&self.rings[1])
        self.drops_at = now
        if drops != self.drops_told:
            self.bucket.tell_of_all(TOLD_DROPS, <int64_t>(drops - self.drops_told))
            self.drops_told = drops

    cdef bint fill(self, int64_t now, int64_t *wake) noexcept nogil:
        """Put what may go out now into the batch; whether there is more. Sets when there will be."""
        cdef entry_t item
        cdef bint again, sample, late, limited, asks
        cdef int k
        cdef later_t waited
        if self.paused_:
            return False
        for k in range(PASSED_OVER_MAX):
            asks = self.trial_lists[TRIALS_TO_SEND].first >= 0
            sample = samples_due(&self.samples, now) and self.bucket.sampling() != 0
            # Each kind has to have room where it may go back to: the heap, or those held.
            late = (caps_ready(&self.caps, now)
                    and self.ready_used + self.held_used < HELD_MAX)
            limited = nray_limit_due(self.limits, now)
            again = self.ready_used > 0 and not caps_full(&self.caps)
            if not again and not sample and not late and not limited and not asks:
                if self.held_used >= HELD_MAX or self.ready_used or caps_full(&self.caps):
                    return False
                if self.has_next and is_finished(&self.works[self.next_item.slice],
                                                 self.next_item.entry):
                    self.has_next = False   # it was answered while its turn was waited for
                if not self.has_next:
                    if self.current < 0 and not self.choose():
                        return False
                    if not self.next_entry(&self.next_item):
                        continue
                    self.has_next = True
            if not self.turn_taken or not self.bucket.holds(&self.turn_at, self.turn_change, now,
                                                            1):
                self.turn_change = self.bucket.change()
                self.turn_at = self.bucket.turn(now)
                self.turn_taken = True
            if self.turn_at > now:
                wake[0] = min(wake[0], max(self.turn_at, now + SLEEP_LEAST_NS))
                return False
            if asks:
                self.put_ask(now)
            elif sample:
                self.put_sample(now)
            elif limited:
                self.put_limited(now)
            elif late or again:
                if late:
                    waited = caps_next(&self.caps)
                    item.slice = waited.slice
                    item.entry = waited.entry
                else:
                    self.ready_used -= 1
                    item = self.ready[self.ready_used]
                self.works[item.slice].outside -= 1
                if not is_finished(&self.works[item.slice], item.entry):
                    self.put(&item, now, False)
                self.settle_pass(item.slice, now)
            else:
                self.has_next = False
                self.put(&self.next_item, now, False)
            if self.batch_used == NRAY_BATCH or self.hits_used >= HITS_FULL:
                return True
        return True

    cdef bint choose(self) noexcept nogil:
        """Make a slice the current one: one that is due again, else the next new one."""
        cdef work_t *work
        if self.due_used:
            self.current = self.due[self.due_at]
            self.due_at = (self.due_at + 1) % SLICES_MAX
            self.due_used -= 1
            self.current_first = False
        elif self.queue_used:
            self.current = self.queue[self.queue_at]
            self.queue_at = (self.queue_at + 1) % SLICES_MAX
            self.queue_used -= 1
            self.current_first = True
        else:
            return False
        work = &self.works[self.current]
        work.stage = STAGE_SENDING
        work.cursor = 0
        if self.current_first:
            work.zero = monotonic_ns()
        return True

    cdef bint next_entry(self, entry_t *item) noexcept nogil:
        """The next entry of the current slice that has not ended; false if there is none left."""
        cdef work_t *work = &self.works[self.current]
        cdef uint64_t count = self.slices[self.current].count
        cdef uint64_t bits
        while work.cursor < count:
            bits = ~work.finished[work.cursor >> 6] >> (work.cursor & 63)
            if bits == 0:
                work.cursor = (work.cursor | 63) + 1
                continue
            work.cursor += trailing_zeros(bits)
            if work.cursor >= count:
                break
            item.slice = self.current
            item.entry = <uint32_t>work.cursor
            work.cursor += 1
            if self.current_first:
                self.slices[self.current].begun = work.cursor
            return True
        work.cursor = count
        if self.current_first:
            self.slices[self.current].begun = count
            self.idle_told = False
        item.slice = self.current
        work.stage = STAGE_SENT
        self.current = -1
        self.settle_pass(item.slice, monotonic_ns())
        return False

    cdef inline void locate(self, const entry_t *item, probe_t *probe,
                            uint64_t *position) noexcept nogil:
        cdef slice_t *slice = &self.slices[item.slice]
        if slice.listed != NULL:
            probe[0] = slice.listed[item.entry].probe
            position[0] = slice.listed[item.entry].position
        else:
            position[0] = slice.start + item.entry
            space_locate(self.works[item.slice].space, position[0], probe)

    cdef void put(self, entry_t *item, int64_t now, bint booked) noexcept nogil:
        """Make a frame of it in the batch, or account for it otherwise; ``booked``: its host's cap
        lets it out now."""
        cdef probe_t probe
        cdef uint64_t position
        cdef const route_t *route
        cdef neighbour_t *neighbour
        cdef const uint8_t *next_mac = NULL
        cdef int why
        cdef int64_t due
        cdef uint8_t search = self.slices[item.slice].search
        self.locate(item, &probe, &position)
        why = self.left_out(self.works[item.slice].excluded, &probe)
        if why >= 0:
            self.slices[item.slice].counts[why] += 1
            self.finish(item)
            return
        if self.is_spared(item.slice, &probe):
            if self.works[item.slice].passed == 0:
                self.slices[item.slice].counts[SKIPPED] += 1
                self.slices[item.slice].spared += 1
                self.finish(item)
            return      # in later passes it is silent, as it was in the first
        route = self.route_to(&probe)
        if route == NULL:
            self.record(item, &probe, position, STATE_ERROR, REASON_UNREACHABLE_HERE, 0, 0)
            return
        if search == SEARCH_LINK and not route.direct:
            if self.links[route.link].loopback:
                self.record(item, &probe, position, STATE_OPEN, REASON_LOCALHOST, 0, 0)
            else:
                self.record(item, &probe, position, STATE_ERROR, REASON_OFF_LINK, 0, 0)
            return
        if route.direct:
            neighbour = self.neighbour_at(route.link << 1 | (route.family == 6), probe.addr)
            if neighbour.state == NEIGHBOUR_SILENT:
                if now - neighbour.since < NEIGHBOUR_AGAIN_NS:
                    self.record(item, &probe, position, STATE_FILTERED, REASON_HOST_UNREACH, 0, 0)
                    return
                neighbour.state = NEIGHBOUR_NONE
            if neighbour.state != NEIGHBOUR_KNOWN:
                if neighbour.state == NEIGHBOUR_NONE:
                    neighbour.state = NEIGHBOUR_WANTED
                    neighbour.told = 0
                    neighbour.since = now
                    self.neighbours_untold += 1
                    self.wanted_told = False
                    if search >= SEARCH_NEAR:
                        self.turn_taken = False     # to ask is all that is sent
                self.works[item.slice].outside += 1
                self.held[self.held_used] = item[0]
                self.held_used += 1
                return
            if search >= SEARCH_NEAR:
                self.record(item, &probe, position, STATE_OPEN,
                            REASON_ARP_RESPONSE if probe.family == 4 else REASON_ND_RESPONSE, 0, 0)
                return
            next_mac = neighbour.mac
        if self.caps.table != NULL and not booked:
            due = caps_due(&self.caps, &probe, now, True)
            if due:
                self.works[item.slice].outside += 1
                caps_wait(&self.caps, due, item.slice, item.entry)
                return
        self.put_frame(item, &probe, route, next_mac, self.works[item.slice].passed)
        self.works[item.slice].outside += 1

    cdef void spare_waiting(self, int64_t now) noexcept nogil:
        """Let go of what waits for the cap of a host that needs no more probes."""
        cdef int32_t k, kept = 0
        cdef entry_t item
        cdef probe_t probe
        cdef uint64_t position
        for k in range(self.caps.used):
            item.slice = self.caps.heap[k].slice
            item.entry = self.caps.heap[k].entry
            self.locate(&item, &probe, &position)
            if not self.is_spared(item.slice, &probe):
                self.caps.heap[kept] = self.caps.heap[k]
                kept += 1
                continue
            self.works[item.slice].outside -= 1
            if not is_finished(&self.works[item.slice], item.entry):
                self.put(&item, now, False)
            self.settle_pass(item.slice, now)
        caps_keep(&self.caps, kept)

    cdef void put_frame(self, const entry_t *item, const probe_t *probe, const route_t *route,
                        const uint8_t *next_mac, int number) noexcept nogil:
        """A frame in the batch; ``number``: which of its port's questions a datagram asks."""
        cdef const nray_question_t *asked
        cdef const uint8_t *payload = NULL
        cdef uint8_t own[1400]
        cdef size_t size = 0
        cdef uint64_t sum = 0, cookie
        cdef uint16_t sport
        sport = nray_source_port(&self.key, probe.family, probe.addr, probe.port, self.port_first,
                                 self.probe_width)
        cookie = nray_cookie(&self.key, probe.family, probe.addr, route.source, sport, probe.port,
                             probe.protocol)
        if probe.protocol == PROTO_UDP:
            asked = self.question(probe.port, number)
            payload = asked.payload
            size = asked.size
            sum = asked.sum
            if asked.own_size:
                nray_ask(asked, cookie, own)
                payload = own
                sum = nray_sum(own, size)
        self.frame(item, probe, route, next_mac, sport, cookie, payload, size, sum)

    cdef void put_sample(self, int64_t now) noexcept nogil:
        """Make a frame of a sample, if there is one that may go out; its item has no slice."""
        cdef entry_t item
        cdef const uint8_t *next_mac = NULL
        cdef const probe_t *probe
        cdef const route_t *route
        cdef uint16_t sport
        cdef int32_t slot = samples_make(&self.samples, now, self.bucket.sampling())
        if slot < 0:
            return
        probe = &self.samples.slots[slot].probe
        route = self.way_known(probe, &next_mac)
        if route == NULL or (self.caps.table != NULL
                             and caps_due(&self.caps, probe, now, False)):
            self.samples.slots[slot].state = SAMPLE_DONE
            return
        item.slice = NO_SLICE
        item.entry = <uint32_t>slot
        sport = <uint16_t>(self.samples.first + slot)
        self.frame(&item, probe, route, next_mac, sport,
                   nray_cookie(&self.key, probe.family, probe.addr, route.source, sport,
                               probe.port, probe.protocol), NULL, 0, 0)

    cdef inline void frame(self, const entry_t *item, const probe_t *probe, const route_t *route,
                           const uint8_t *next_mac, uint16_t sport, uint64_t cookie,
                           const uint8_t *payload, size_t size, uint64_t sum) noexcept nogil:
        """Build it into the batch, with the turn that was taken."""
        cdef int k = self.batch_used
        size = nray_build(&route.tcp if probe.protocol == PROTO_TCP
                          else &route.udp if probe.protocol == PROTO_UDP else &route.echo,
                          self.batch.frames[k], next_mac, probe.addr, sport, probe.port, cookie,
                          payload, size, sum)
        nray_address_frame(self.batch, k, route.via, self.links[route.link].ifindex, probe.addr,
                           size)
        self.batch_of[k] = item[0]
        if k == 0:
            self.batch_turn = self.turn_at
            self.batch_change = self.turn_change
        self.batch_turn = min(self.batch_turn, self.turn_at)
        self.batch_used += 1
        self.turn_taken = False

    cdef void put_limited(self, int64_t now) noexcept nogil:
        """Ask a host that sends few ICMP errors what is due, unless its cap is in the way."""
        cdef nray_due_t due
        cdef entry_t item
        cdef probe_t probe
        cdef uint64_t position
        cdef int64_t until
        cdef bint finished
        # A trial has no token, and is no entry of a slice.
        nray_limit_next(self.limits, now, &due)
        if due.what == NRAY_LIMIT_NOTHING:
            return
        item.slice = <int32_t>(due.token >> 32)
        item.entry = <uint32_t>due.token
        if due.what == NRAY_LIMIT_ASK:
            finished = is_finished(&self.works[item.slice], item.entry)
            self.locate(&item, &probe, &position)
            if finished or self.is_spared(item.slice, &probe):
                self.works[item.slice].limited -= 1
                nray_limit_pass(self.limits, &due)
                if not finished:
                    self.record_silent(&item, &probe, position)
                return
        until = caps_due_of(&self.caps, &due, now)
        if until:
            nray_limit_put_off(self.limits, &due, now, until)
            return
        nray_limit_take(self.limits, now, 1, &due)
        if due.what == NRAY_LIMIT_ASK:
            self.put(&item, now, True)
        else:
            self.put_trial(&due)

    cdef void put_trial(self, const nray_due_t *due) noexcept nogil:
        """Ask a host about the port that it has told of before: no probe of any slice."""
        cdef entry_t item
        cdef probe_t probe
        cdef const route_t *route
        cdef const uint8_t *next_mac = NULL
        probe_of_due(due, &probe)
        if self.shown is not None and self.has_shown(&probe):
            return
        route = self.way_known(&probe, &next_mac)
        if route == NULL:
            return
        item.slice = TRIAL
        item.entry = 0
        self.put_frame(&item, &probe, route, next_mac, 0)

    cdef const route_t *way_known(self, const probe_t *probe,
                                  const uint8_t **next_mac) noexcept nogil:
        """The route of what was probed before; NULL if its neighbour is forgotten."""
        cdef const route_t *route = self.route_to(probe)
        cdef neighbour_t *neighbour
        if route != NULL and route.direct:
            neighbour = self.neighbour_at(route.link << 1 | (route.family == 6), probe.addr)
            if neighbour.state != NEIGHBOUR_KNOWN:
                return NULL
            next_mac[0] = neighbour.mac
        return route

    cdef inline const route_t *route_to(self, const probe_t *probe) noexcept nogil:
        cdef nray_number_t address
        cdef const route_t *route = &self.routes[self.route_last]
        cdef int32_t low, high, middle
        if probe.family == 4:
            address.hi = 0
            address.lo = nray_load4(probe.addr)
        else:
            address = nray_load6(probe.addr)
        if (self.routes_used and route.family == probe.family
                and nray_at_most(route.first, address) and nray_at_most(address, route.last)):
            return route
        low = 0 if probe.family == 4 else self.routes4
        high = self.routes4 if probe.family == 4 else self.routes_used
        while low < high:
            middle = (low + high) // 2
            if nray_at_most(address, self.routes[middle].last):
                high = middle
            else:
                low = middle + 1
        if low >= (self.routes4 if probe.family == 4 else self.routes_used):
            return NULL
        if not nray_at_most(self.routes[low].first, address):
            return NULL
        self.route_last = low
        return &self.routes[low]

    cdef void flush(self, int64_t now) noexcept nogil:
        """Hand the batch to the kernel; what it does not take stays, for a while."""
        cdef int sent, code, k
        cdef int64_t due
        cdef work_t *work
        cdef entry_t *item
        cdef uint64_t at
        if self.batch_overdue or now - self.batch_turn > OVERDUE_NS:
            self.batch_overdue = False
            k = self.batch_used - self.batch_from
            if not self.bucket.holds(&self.batch_turn, self.batch_change, now, k):
                self.batch_change = self.bucket.change()
                self.batch_turn = self.bucket.turns(now, k)
            # All leave at once, none before its turn.
            due = self.batch_turn + self.bucket.span(k)
            if due > now:
                self.stall_until = due
                return
        while self.batch_from < self.batch_used:
            sent = nray_send_batch(self.batch, self.batch_from, self.batch_used)
            if sent > 0:
                self.bucket.charge(self.batch_turn, monotonic_ns(), sent)
                self.sent_ += sent
                if self.samples.width:
                    self.samples.since += sent
                    self.bucket.tell_of_all(TOLD_SENT, sent)
                self.stalled_since = 0
                self.stall_ns = STALL_FIRST_NS
                for k in range(self.batch_from, self.batch_from + sent):
                    item = &self.batch_of[k]
                    if item.slice < 0:
                        if item.slice == NO_SLICE:
                            samples_sent(&self.samples, <int32_t>item.entry, now, self.bucket)
                        continue
                    work = &self.works[item.slice]
                    if work.passed == 0:
                        at = <uint64_t>(now - work.zero) // 1000 + 1
                        if work.sent_us[item.entry >> work.shift] == 0 and at >> 32 == 0:
                            work.sent_us[item.entry >> work.shift] = <uint32_t>at
                    work.outside -= 1
                    if work.outside == 0:
                        self.settle_pass(item.slice, now)
                self.batch_from += sent
                continue
            code = errno
            if code == EINTR:
                continue
            if is_passing(code):
                if self.stalled_since == 0:
                    self.stalled_since = now
                    self.stall_ns = STALL_FIRST_NS
                if now - self.stalled_since < SEND_GIVE_UP_NS:
                    self.stall_until = now + self.stall_ns
                    self.stall_ns = min(2 * self.stall_ns, STALL_LAST_NS)
                    self.batch_overdue = True
                    return
            item = &self.batch_of[self.batch_from]
            self.batch_from += 1
            if item.slice < 0:
                if item.slice == NO_SLICE:
                    self.samples.slots[item.entry].state = SAMPLE_DONE
                else:
                    self.failed_again += 1
                continue
            self.works[item.slice].outside -= 1
            self.not_sent(item, code)
            self.settle_pass(item.slice, now)
            if self.hits_used >= HITS_FULL:
                return
        self.batch_used = 0
        self.batch_from = 0

    cdef void not_sent(self, entry_t *item, int code) noexcept nogil:
        cdef probe_t probe
        cdef uint64_t position
        cdef uint8_t reason
        if self.works[item.slice].passed > 0 or is_finished(&self.works[item.slice], item.entry):
            self.failed_again += 1
            return
        self.locate(item, &probe, &position)
        if code == EAGAIN:
            reason = REASON_BUFFERS
        elif code == ENETDOWN or code == ENODEV or code == ENXIO:
            reason = REASON_UNREACHABLE_HERE
        else:
            reason = own_reason(code)
        self.record(item, &probe, position, STATE_ERROR, reason, 0, 0)

    # ── answers ─────────────────────────────────────────────────────────────────────────────

    cdef bint receive(self, int which) noexcept nogil:
        """Take answers out of a ring; whether it is empty now."""
        cdef nray_ring_t *ring = &self.rings[which]
        cdef nray_answer_t answer
        cdef const uint8_t *packet
        cdef size_t size = 0
        cdef int64_t at = 0
        cdef int k
        if ring.map == NULL:
            return True
        if self.carries:
            self.on_answer(&self.carried, self.carried_at)
        for k in range(RECEIVE_MAX):
            if self.hits_used >= HITS_FULL or self.carries:
                return False
            packet = nray_ring_next(ring, &size, &at)
            if packet == NULL:
                return True
            if nray_read_answer(packet, size, &answer):
                self.on_answer(&answer, at - self.clock_offset)
        return False

    cdef void on_answer(self, const nray_answer_t *answer, int64_t at) noexcept nogil:
        cdef probe_t probe
        cdef uint8_t state, reason
        cdef const space_t *looked = NULL
        cdef int64_t position = -1
        cdef int32_t k, i
        cdef slice_t *slice
        self.carries = False
        if (answer.sport < self.port_first
                or answer.sport >= self.port_first + self.port_width
                or answer.dport == 0 and answer.protocol != PROTO_ICMP
                or not nray_shows_cookie(&self.key, answer)):
            return
        memset(&probe, 0, sizeof(probe))
        probe.family = answer.family
        probe.protocol = answer.protocol
        probe.port = answer.dport
        memcpy(probe.addr, answer.target, 4 if answer.family == 4 else 16)
        if answer.sport >= self.port_first + self.probe_width:
            if answer.what != NRAY_UDP_ANSWER:
                samples_hear(&self.samples, answer.sport, &probe, at, self.bucket)
            return
        if (answer.what == NRAY_UDP_ANSWER
                and answer.sport != nray_source_port(&self.key, probe.family, probe.addr,
                                                     probe.port, self.port_first,
                                                     self.probe_width)):
            return
        if answer.what == NRAY_SYN_ACK:
            state = STATE_OPEN
            reason = REASON_SYN_ACK
        elif answer.what == NRAY_RST:
            state = STATE_CLOSED
            reason = REASON_RESET
        elif answer.what == NRAY_UDP_ANSWER:
            state = STATE_OPEN
            reason = REASON_UDP_RESPONSE
            if not self.is_asked_for(answer):
                # Our ports are few enough to be guessed, so this proves nothing.
                state = STATE_NONE
        elif answer.what == NRAY_ECHO_REPLY:
            state = STATE_OPEN
            reason = REASON_ECHO_REPLY
        else:
            if answer.family == 4:
                reason = icmp4_reason(answer.type, answer.code)
            else:
                reason = icmp6_reason(answer.type, answer.code)
            state = STATE_FILTERED
            if probe.protocol == PROTO_UDP and reason == REASON_PORT_UNREACH:
                state = STATE_CLOSED
            if probe.protocol == PROTO_UDP and nray_limit_note(
                    self.limits, probe.family, probe.addr, probe.port):
                return
        if self.trials_asking and probe.protocol == PROTO_TCP:
            self.match_ask(&probe, state)
        for k in range(self.opened_used - 1, -1, -1):
            i = self.opened[k]
            slice = &self.slices[i]
            if slice.listed != NULL:
                if not self.on_listed(i, &probe, state, reason, answer.ttl, at):
                    # More names share this address than there is room for hits: again later.
                    # (The packet stays where it is, in the ring's block that is being read.)
                    self.carries = True
                    self.carried = answer[0]
                    self.carried_at = at
                continue
            if self.works[i].space != looked:
                looked = self.works[i].space
                position = space_find(looked, &probe)
            if position >= 0 and <uint64_t>position - slice.start < slice.count:
                self.answered(i, <uint32_t>(<uint64_t>position - slice.start), &probe,
                              <uint64_t>position, state, reason, answer.ttl, at)

    cdef bint is_asked_for(self, const nray_answer_t *answer) noexcept nogil:
        """Whether a datagram answers a question of its port, as far as that can be told."""
        cdef const nray_question_t *asked = self.question_at[answer.dport]
        cdef uint64_t cookie
        if asked == NULL or not asked.checked:
            return True
        cookie = nray_cookie(&self.key, answer.family, answer.target, answer.own, answer.sport,
                             answer.dport, answer.protocol)
        return nray_answers(asked, 1, cookie, answer.payload, answer.payload_size)

    cdef void remember_odd(self, work_t *work, int32_t i, uint32_t entry) noexcept nogil:
        if work.odd == NULL:
            work.odd = <uint64_t *>calloc((self.slices[i].count >> 6) + 1, sizeof(uint64_t))
        if work.odd != NULL:
            work.odd[entry >> 6] |= <uint64_t>1 << (entry & 63)

    cdef bint on_listed(self, int32_t i, const probe_t *probe, uint8_t state, uint8_t reason,
                        uint8_t ttl, int64_t at) noexcept nogil:
        """An answer that may be about entries of a slice of names, several perhaps; false if some
        are left over."""
        cdef work_t *work = &self.works[i]
        cdef listed_t *listed = self.slices[i].listed
        cdef uint64_t low = 0, high = self.slices[i].count, middle
        cdef uint8_t wanted[20]
        cdef uint8_t seen[20]
        listed_text(probe, wanted)
        while low < high:
            middle = (low + high) // 2
            listed_text(&listed[work.sorted[middle]].probe, seen)
            if memcmp(seen, wanted, 20) < 0:
                low = middle + 1
            else:
                high = middle
        while low < self.slices[i].count:
            listed_text(&listed[work.sorted[low]].probe, seen)
            if memcmp(seen, wanted, 20) != 0:
                break
            if self.hits_used >= HITS_MAX:
                return False
            self.answered(i, work.sorted[low], probe, listed[work.sorted[low]].position, state,
                          reason, ttl, at)
            low += 1
        return True

    cdef void answered(self, int32_t i, uint32_t entry, const probe_t *probe, uint64_t position,
                       uint8_t state, uint8_t reason, uint8_t ttl, int64_t at) noexcept nogil:
        cdef work_t *work = &self.works[i]
        cdef entry_t item
        cdef int64_t took = 0
        cdef uint32_t sent
        if is_finished(work, entry):
            self.doubles += 1
            return
        if state == STATE_NONE:
            self.remember_odd(work, i, entry)
            return
        # Once it was sent a second time, nobody can tell which one was answered (Karn's rule).
        if work.passed == 0 or work.passed == 1 and (
                work.stage == STAGE_RESTING or work.stage == STAGE_DUE
                or work.stage == STAGE_SENDING and entry >= work.cursor):
            sent = work.sent_us[entry >> work.shift]
            if sent:
                took = max(1, (at - work.zero) // 1000 - sent + 1)
                work.answers += 1
                work.slowest_us = <uint32_t>max(<int64_t>work.slowest_us,
                                                min(took, <int64_t>0xFFFFFFFF))
        if self.samples.width and (reason == REASON_SYN_ACK or reason == REASON_RESET
                                   or reason == REASON_ECHO_REPLY):
            samples_learn(&self.samples, probe, 1000 * took)
        item.slice = i
        item.entry = entry
        self.record(&item, probe, position, state, reason, took, ttl)

    # ── how it ends ─────────────────────────────────────────────────────────────────────────

    cdef void record(self, const entry_t *item, const probe_t *probe, uint64_t position,
                     uint8_t state, uint8_t reason, int64_t rtt_us, uint8_t ttl) noexcept nogil:
        if not self.settled(probe, position, item.slice, state, reason, rtt_us, ttl):
            self.works[item.slice].held += 1
        self.finish(item)

    cdef void finish(self, const entry_t *item) noexcept nogil:
        cdef work_t *work = &self.works[item.slice]
        work.finished[item.entry >> 6] |= <uint64_t>1 << (item.entry & 63)
        work.left -= 1
        if work.left == 0:
            if work.stage == STAGE_RESTING and work.held == 0:
                self.end(item.slice)
            elif work.stage == STAGE_LIMITED:
                self.end_limited(item.slice)

    cdef void settle_pass(self, int32_t i, int64_t now) noexcept nogil:
        """Let a slice rest once all of its pass is out of our hands."""
        cdef work_t *work = &self.works[i]
        cdef int64_t rest, timeout
        if work.stage == STAGE_LIMITED:
            self.end_limited(i)
            return
        if work.stage != STAGE_SENT or work.outside:
            return
        work.passed += 1
        timeout = self.timeout_ns[0] if work.protocols & 1 else 0
        if work.protocols & 2:
            timeout = max(timeout, self.timeout_ns[1])
        rest = timeout
        if work.passed < self.passes:
            rest = REST_UNKNOWN_NS
            if work.answers >= ANSWERS_TRUSTED:
                rest = 8 * <int64_t>work.slowest_us * 1000
            rest = max(min(rest, timeout), REST_LEAST_NS)
        work.rest_until = now + rest + RING_SLACK_NS
        work.stage = STAGE_RESTING
        if work.left == 0 and work.held == 0:
            self.end(i)

    cdef int64_t look_at_rests(self, int64_t now) noexcept nogil:
        """End the rests that are over; when the next one is."""
        cdef int64_t soonest = 0x7FFFFFFFFFFFFFFF
        cdef int32_t k, i
        cdef work_t *work
        for k in range(self.opened_used):
            i = self.opened[k]
            work = &self.works[i]
            if work.stage != STAGE_RESTING:
                continue
            if work.rest_until > now:
                soonest = min(soonest, work.rest_until)
                continue
            if work.passed < self.passes:
                work.stage = STAGE_DUE
                self.due[(self.due_at + self.due_used) % SLICES_MAX] = i
                self.due_used += 1
                if not self.paused_:
                    soonest = now
            else:
                work.stage = STAGE_TELLING
                work.cursor = 0
        return soonest

    cdef void tell_silent(self, bint *more) noexcept nogil:
        """Count, and tell if asked, what nobody has answered for."""
        cdef int32_t k, i
        cdef work_t *work
        k = 0
        while k < self.opened_used:
            i = self.opened[k]
            work = &self.works[i]
            if work.stage == STAGE_TELLING:
                if not self.tell_some(i, work):
                    more[0] = True
                    return
                continue        # another has taken its place, or it waits for its hosts
            k += 1

    cdef bint tell_some(self, int32_t i, work_t *work) noexcept nogil:
        cdef slice_t *slice = &self.slices[i]
        cdef uint8_t state = STATE_FILTERED if work.protocols == 1 else STATE_OPEN_FILTERED
        cdef uint64_t bits
        cdef entry_t item
        cdef probe_t probe
        cdef uint64_t position
        cdef int64_t now = monotonic_ns()
        cdef int told = 0
        if work.protocols != 3 and (slice.search or not self.mask & (1 << state) and (
                work.protocols == 1 or not self.limits.known)):
            slice.counts[state - 1] += work.left
            work.left = 0
        while work.left and work.cursor < slice.count:
            if told >= SILENT_MAX or self.hits_used >= HITS_FULL:
                return False
            bits = ~work.finished[work.cursor >> 6] >> (work.cursor & 63)
            if bits == 0:
                work.cursor = (work.cursor | 63) + 1
                continue
            work.cursor += trailing_zeros(bits)
            if work.cursor >= slice.count:
                break
            item.slice = i
            item.entry = <uint32_t>work.cursor
            work.cursor += 1
            told += 1
            self.locate(&item, &probe, &position)
            if (probe.protocol == PROTO_UDP and not slice.search
                    and not self.is_spared(i, &probe) and nray_limit_push(
                        self.limits, probe.family, probe.addr, <uint64_t>i << 32 | item.entry,
                        now)):
                work.limited += 1
                continue
            self.record_silent(&item, &probe, position)
        work.stage = STAGE_LIMITED if work.limited or work.outside else STAGE_HELD
        if work.stage == STAGE_LIMITED:
            self.end_limited(i)
        elif work.held == 0:
            self.end(i)
        return True

    cdef void record_silent(self, const entry_t *item, const probe_t *probe,
                            uint64_t position) noexcept nogil:
        self.record(item, probe, position,
                    STATE_OPEN_FILTERED if probe.protocol == PROTO_UDP else STATE_FILTERED,
                    REASON_UNEXPECTED if is_odd(&self.works[item.slice], item.entry)
                    else REASON_NO_RESPONSE, 0, 0)

    cdef void tell_limited(self, int64_t now) noexcept nogil:
        """Tell those that their hosts said nothing about when they were asked slowly."""
        cdef entry_t item
        cdef probe_t probe
        cdef uint64_t position, token = 0
        while self.hits_used < HITS_FULL and nray_limit_settle(self.limits, now, &token):
            item.slice = <int32_t>(token >> 32)
            item.entry = <uint32_t>token
            self.works[item.slice].limited -= 1
            if is_finished(&self.works[item.slice], item.entry):
                continue
            self.locate(&item, &probe, &position)
            self.record_silent(&item, &probe, position)

    cdef void end_limited(self, int32_t i) noexcept nogil:
        """End a slice that has waited for its hosts, if all of it is finished and out of our hands."""
        cdef work_t *work = &self.works[i]
        if work.left or work.held or work.outside or work.stage != STAGE_LIMITED:
            return
        if work.limited:
            nray_limit_drop(self.limits, <uint32_t>i)
            work.limited = 0
        self.end(i)

    cdef void end(self, int32_t i) noexcept nogil:
        cdef int32_t k
        self.slices[i].ended = 1
        self.ended += 1
        for k in range(self.opened_used):
            if self.opened[k] == i:
                self.opened_used -= 1
                self.opened[k] = self.opened[self.opened_used]
                break

    # ── hosts on which every port answers ───────────────────────────────────────────────────

    cdef bint begin_asking(self, int32_t t) noexcept nogil:
        self.trials[t].unsent = ASKED_ALL
        self.enlist(t, TRIALS_TO_SEND)
        self.asks_anew = True
        return True

    cdef void let_go(self, int32_t slice) noexcept nogil:
        cdef work_t *work = &self.works[slice]
        work.held -= 1
        if work.held or work.left:
            return
        if work.stage == STAGE_RESTING or work.stage == STAGE_HELD:
            self.end(slice)
        else:
            self.end_limited(slice)

    cdef void put_ask(self, int64_t now) noexcept nogil:
        """Make a frame of what is asked next. Where it cannot be sent it is as if it were lost."""
        cdef int32_t t = self.trial_lists[TRIALS_TO_SEND].first
        cdef trial_t *trial = &self.trials[t]
        cdef int k = trailing_zeros(trial.unsent)
        cdef probe_t probe
        cdef entry_t item
        cdef const route_t *route
        cdef const uint8_t *next_mac = NULL
        cdef uint16_t sport
        self.fill_ask(trial, k, &probe)
        trial.unsent &= trial.unsent - 1
        if trial.unsent == 0:
            if not trial.second:
                trial.since = now
            self.enlist(t, TRIALS_LAST if trial.second or self.passes == 1 else TRIALS_FIRST)
        route = self.way_known(&probe, &next_mac)
        if route == NULL or self.left_out(self.slices[trial.slice].excluded, &probe) >= 0:
            return
        if self.caps.table != NULL:
            caps_charge(&self.caps, &probe, now)
        item.slice = ASK_OF_HOST
        item.entry = 0
        sport = nray_source_port(&self.key, probe.family, probe.addr, probe.port, self.port_first,
                                 self.probe_width)
        self.frame(&item, &probe, route, next_mac, sport,
                   nray_cookie(&self.key, probe.family, probe.addr, route.source, sport,
                               probe.port, probe.protocol), NULL, 0, 0)

    cdef void match_ask(self, const probe_t *probe, uint8_t state) noexcept nogil:
        """An answer, or an ICMP error, that may be to what was asked about a host."""
        cdef host_t *host = host_place(self.hosts, &self.tarpit_key, probe.family, probe.addr)
        cdef trial_t *trial
        cdef int k
        if host.family == 0 or host.what != HOST_ASKED:
            return
        trial = &self.trials[host.trial]
        for k in range(ASKS):
            if trial.port[k] == probe.port:
                self.asked(host.trial, k, state == STATE_OPEN, state != STATE_OPEN)
                return

    cdef int64_t look_at_trials(self, int64_t now) noexcept nogil:
        """Ask once more halfway, where retries are asked for; judge by what there is when the
        timeout is over. Returns when there is more to do."""
        cdef int64_t soonest = 0x7FFFFFFFFFFFFFFF
        cdef int32_t t
        cdef trial_t *trial
        while self.trial_lists[TRIALS_FIRST].first >= 0:
            t = self.trial_lists[TRIALS_FIRST].first
            trial = &self.trials[t]
            if trial.since + self.timeout_ns[0] // 2 > now:
                soonest = trial.since + self.timeout_ns[0] // 2
                break
            trial.second = 1
            trial.unsent = ASKED_ALL & ~trial.answered
            self.enlist(t, TRIALS_TO_SEND)
            self.asks_anew = True
        while self.trial_lists[TRIALS_LAST].first >= 0:
            t = self.trial_lists[TRIALS_LAST].first
            trial = &self.trials[t]
            if trial.since + self.timeout_ns[0] + RING_SLACK_NS > now:
                soonest = min(soonest, trial.since + self.timeout_ns[0] + RING_SLACK_NS)
                break
            self.judge(t, self.agree(trial))
        return soonest

    # ── neighbours ──────────────────────────────────────────────────────────────────────────

    cdef neighbour_t *neighbour_at(self, int32_t link, const uint8_t *addr) noexcept nogil:
        """The place of a neighbour, of state 0 if it is new; good until the next call.

        `link` is the index of the link, doubled, and one more for IPv6.
        """
        cdef neighbour_t *one
        if self.neighbours_used >= NEIGHBOURS_MAX:
            self.drop_neighbours()
        one = neighbour_place(self.neighbours, link, addr)
        if not one.used:
            one.used = 1
            one.link = link
            memcpy(one.addr, addr, 16)
            self.neighbours_used += 1
        return one

    cdef void drop_neighbours(self) noexcept nogil:
        """Forget all that nobody waits for; HELD_MAX at most stay."""
        cdef neighbour_t *before = self.neighbours
        cdef uint32_t k
        self.neighbours = self.neighbours_spare
        self.neighbours_spare = before
        self.neighbours_used = 0
        for k in range(1 << NEIGHBOURS_BITS):
            if before[k].used and before[k].state == NEIGHBOUR_WANTED:
                neighbour_place(self.neighbours, before[k].link, before[k].addr)[0] = before[k]
                self.neighbours_used += 1
        memset(before, 0, (1 << NEIGHBOURS_BITS) * sizeof(neighbour_t))

    cdef void look_at_held(self, int64_t now) noexcept nogil:
        """Let those go on whose neighbour is known, or has not answered for too long."""
        cdef int32_t k, kept = 0
        cdef probe_t probe
        cdef uint64_t position
        cdef const route_t *route
        cdef neighbour_t *one
        self.news = False
        self.held_looked = now
        for k in range(self.held_used):
            self.locate(&self.held[k], &probe, &position)
            route = self.route_to(&probe)
            one = self.neighbour_at(route.link << 1 | (route.family == 6), probe.addr)
            if one.state == NEIGHBOUR_WANTED and now - one.since < NEIGHBOUR_NS:
                self.held[kept] = self.held[k]
                kept += 1
                continue
            if one.state == NEIGHBOUR_WANTED:
                one.state = NEIGHBOUR_SILENT
                one.since = now
            self.ready[self.ready_used] = self.held[k]
            self.ready_used += 1
        self.held_used = kept


# ── for tests and benchmarks ────────────────────────────────────────────────────────────────

def _siphash(bytes key not None, bytes data not None):
    """SipHash-2-4 of the data under a key of 16 bytes."""
    cdef nray_key_t made = raw_key(key)
    cdef uint64_t words[16]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    if len(padded) > 128:
        raise ValueError("too long for a test")
    memcpy(words, <const char *>padded, len(padded))
    return nray_siphash_words(&made, words, len(data) // 8, words[len(data) // 8])


def _raw_filter(int family, int first, int last):
    """The filter's program, as (code, jt, jf, k) each."""
    return list(raw_filter(family, first, last))


def _raw_frame(int protocol, bytes source not None, bytes target not None, bytes own_mac not None,
               bytes next_mac not None, int mtu, int dport, bytes key not None,
               bytes payload=b"", int first=RAW_PORT_FIRST, int width=RAW_PORTS):
    """The Ethernet frame of a probe."""
    cdef nray_key_t made = raw_key(key)
    cdef nray_template_t template
    cdef uint8_t frame[1600]
    cdef uint8_t none[6]
    cdef int family = 4 if len(source) == 4 else 6
    cdef const uint8_t *to = <const uint8_t *><const char *>target
    cdef const uint8_t *data = <const uint8_t *><const char *>payload
    cdef uint16_t sport
    cdef size_t size
    if (len(source) not in (4, 16) or len(target) != len(source) or len(own_mac) != 6
            or len(next_mac) != 6 or len(payload) > PAYLOAD_BYTES_MAX):
        raise ValueError("addresses of one family, link-layer addresses of 6 bytes")
    memset(none, 0, 6)
    nray_prepare(&template, family, protocol, <const uint8_t *><const char *>source,
                 <const uint8_t *><const char *>own_mac, none, mtu)
    sport = nray_source_port(&made, family, to, dport, first, width)
    size = nray_build(
        &template, frame, <const uint8_t *><const char *>next_mac, to, sport, dport,
        nray_cookie(&made, family, to, <const uint8_t *><const char *>source, sport, dport,
                    protocol),
        data, len(payload), nray_sum(data, len(payload)))
    return frame[:NRAY_ETHERNET + size]


def _raw_answer(bytes key not None, bytes packet not None):
    """What a packet is an answer to: (what, protocol, target, sport, dport, type, code), None."""
    cdef nray_key_t made = raw_key(key)
    cdef nray_answer_t answer
    if not nray_read_answer(<const uint8_t *><const char *>packet, len(packet), &answer):
        return None
    if not nray_shows_cookie(&made, &answer):
        return None
    what = ("", "syn-ack", "rst", "udp", "icmp", "echo-reply")[answer.what]
    return (what, answer.protocol, answer.target[:4 if answer.family == 4 else 16], answer.sport,
            answer.dport, answer.type, answer.code)


def _raw_costs(RawEngine engine not None, Space space not None, uint64_t count):
    """Processor time, seconds, for ``count`` times: locating a probe, its cookie, its frame.

    For bench/.
    """
    cdef probe_t probe
    cdef uint8_t frame[1600]
    cdef uint64_t k, cookie = 0, kept = 0
    cdef const route_t *route
    from time import process_time
    space.locate(0, &probe)
    route = engine.route_to(&probe)
    if route == NULL:
        raise ValueError("no route to the space's first probe")
    times = [process_time()]
    with nogil:
        for k in range(count):
            space_locate(&space.s, k, &probe)
            kept += probe.addr[3]
    times.append(process_time())
    with nogil:
        for k in range(count):
            cookie = nray_cookie(&engine.key, probe.family, probe.addr, route.source,
                                 <uint16_t>(k + cookie), probe.port, PROTO_TCP)
    times.append(process_time())
    with nogil:
        for k in range(count):
            nray_build(&route.tcp, frame, NULL, probe.addr, <uint16_t>k, probe.port, cookie + k,
                       NULL, 0, 0)
            kept += frame[40]
    times.append(process_time())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def _raw_fill_benchmark(RawEngine engine not None):
    """(processor seconds, frames): the batches of the first slice made, and none sent.

    For bench/; the engine is of no use afterwards.
    """
    cdef int64_t now = monotonic_ns(), wake = 0
    cdef uint64_t made = 0
    from time import process_time
    began = process_time()
    with nogil:
        while engine.fill(now, &wake):
            made += engine.batch_used
            engine.batch_used = 0
        made += engine.batch_used
    return process_time() - began, made
