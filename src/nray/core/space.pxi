# The numbered space of a segment, its order, and the addresses that must not be probed.
#
# A host is a number: IPv4 ranges first, then IPv6 ranges, then names. A probe's index is
# host * ports + port; a keyed permutation (feistel.h) takes positions in scan order to indices.
# Number to probe costs one permutation, one division and one look into the sorted ranges; nothing
# is enumerated, so a /0 takes no more memory than a single address.

import hashlib

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc, realloc

cdef extern from "address.h" nogil:
    enum:
        NRAY_ADDRESS_TEXT_MAX
    ctypedef struct nray_number_t:
        uint64_t hi
        uint64_t lo
    uint32_t nray_load4(const uint8_t *bytes)
    void nray_store4(uint8_t *bytes, uint32_t value)
    nray_number_t nray_load6(const uint8_t *bytes)
    void nray_store6(uint8_t *bytes, nray_number_t value)
    nray_number_t nray_add(nray_number_t base, uint64_t offset)
    bint nray_at_most(nray_number_t x, nray_number_t y)
    bint nray_is_mapped(nray_number_t x)
    size_t nray_rank4(const uint32_t *sorted, size_t count, uint32_t x)
    size_t nray_rank6(const nray_number_t *sorted, size_t count, nray_number_t x)
    char *nray_decimal(char *out, unsigned value)
    char *nray_text4(char *out, const uint8_t *address)
    char *nray_text6(char *out, const uint8_t *address)

cdef extern from "feistel.h" nogil:
    enum:
        NRAY_FEISTEL_ROUNDS
    ctypedef struct nray_feistel_t:
        uint64_t size
        uint64_t key[6]
    uint64_t nray_mulhi(uint64_t x, uint64_t y)
    void nray_feistel_init(nray_feistel_t *f, uint64_t size)
    uint64_t nray_feistel_forward(const nray_feistel_t *f, uint64_t x)
    uint64_t nray_feistel_backward(const nray_feistel_t *f, uint64_t x)

# Positions, counts and sums of them stay within a signed 64-bit number everywhere (SQLite's too).
SPACE_TOTAL_MAX = 2**63
# Fewer key bytes than this would make the order guessable by trying.
SPACE_KEY_BYTES_MIN = 16
# A name's index is a uint32_t in probe_t.
SPACE_NAMES_MAX = 2**32 - 1

cdef enum:
    # Bytes of a packed hit (hits.pxi): u64 position, 16 address, u32 rtt, u8 ttl, state, reason,
    # family; little-endian, the address in network order.
    RECORD_BYTES = 32
    # " 65535/udp\n"
    LINE_TAIL_MAX = 12

cdef enum:
    # What a space is for. In a search any answer says that the host is there, and ends as open.
    SEARCH_NONE = 0         # the ports themselves
    SEARCH_HOSTS = 1        # hosts, by whatever answers
    SEARCH_NEAR = 2         # the same, but on the local link by its address resolution alone
    SEARCH_LINK = 3         # hosts on the local link alone
    SEARCH_KINDS = 4

cdef struct service_t:
    uint16_t port
    uint8_t protocol


def check_ranges(ranges, int bits):
    """Raises ValueError unless ranges are sorted, disjoint, inclusive and within ``bits`` bits."""
    before = -1
    for first, last in ranges:
        if not before < first <= last:
            raise ValueError("ranges must be sorted, disjoint and inclusive")
        before = last
    if before >> bits > 0:
        raise ValueError(f"address beyond {bits} bits")


cdef nray_number_t space_number(value):
    cdef nray_number_t number
    number.hi = value >> 64
    number.lo = value & 0xFFFFFFFFFFFFFFFF
    return number


cdef object space_integer(nray_number_t number):
    return (int(number.hi) << 64) | number.lo


# All that locating takes, in one place: C code that holds several spaces points to it.
cdef struct space_t:
    nray_feistel_t order
    uint64_t hosts              # addresses and names
    uint64_t addresses          # hosts below this are addresses, from it on names
    uint64_t total
    uint64_t reciprocal         # (2^64 - 1) / ports, for the division by ports
    uint32_t ports
    uint32_t guide_shift
    uint8_t search              # one of SEARCH_…
    size_t range_count
    size_t range_count4         # ranges below this are IPv4
    uint64_t *range_host        # first host number of each range, ascending
    nray_number_t *range_base   # first address of each range
    uint32_t *guide             # range that holds host i << guide_shift; one entry more
    service_t *services
    uint32_t *service_of[3]     # by protocol_index and port: index of the service and one; 0: none


cdef inline size_t space_range_of(const space_t *s, uint64_t host) noexcept nogil:
    """The range that holds a host below `addresses`."""
    cdef uint64_t slot = host >> s.guide_shift
    cdef size_t low = s.guide[slot]
    cdef size_t high = s.guide[slot + 1]
    cdef size_t middle
    while low < high:
        middle = low + (high - low + 1) // 2
        if s.range_host[middle] <= host:
            low = middle
        else:
            high = middle - 1
    return low


cdef inline void space_fill(const space_t *s, uint64_t index, probe_t *out) noexcept nogil:
    """The probe of an index below `total`."""
    # A division by multiplication: the quotient is right or one too small, because index is
    # at most 2^63 and the reciprocal is less than one off (Granlund, Montgomery 1994).
    cdef uint64_t host = nray_mulhi(index, s.reciprocal)
    cdef uint64_t rest = index - host * s.ports
    cdef size_t i
    cdef nray_number_t address
    if rest >= s.ports:
        rest -= s.ports
        host += 1
    out.port = s.services[rest].port
    out.protocol = s.services[rest].protocol
    if host >= s.addresses:
        out.family = 0
        out.name = <uint32_t>(host - s.addresses)
        memset(out.addr, 0, 16)
        return
    i = space_range_of(s, host)
    address = nray_add(s.range_base[i], host - s.range_host[i])
    out.name = 0
    if i < s.range_count4:
        out.family = 4
        memset(out.addr, 0, 16)
        nray_store4(out.addr, <uint32_t>address.lo)
    else:
        out.family = 6
        nray_store6(out.addr, address)


cdef inline int space_locate(const space_t *s, uint64_t position, probe_t *out) noexcept nogil:
    """Fills `out` with the probe at a position in scan order; -1 if there is no such."""
    if position >= s.total:
        return -1
    space_fill(s, nray_feistel_forward(&s.order, position), out)
    return 0


cdef int64_t space_find(const space_t *s, const probe_t *probe) noexcept nogil:
    """The position of an address, protocol and port; -1 where the space has no such probe.

    Needs `Space.make_findable` to have been called. Where a port was given twice, its last place.
    """
    cdef size_t first = 0 if probe.family == 4 else s.range_count4
    cdef size_t count = s.range_count4 if probe.family == 4 else s.range_count - s.range_count4
    cdef uint32_t service = s.service_of[protocol_index(probe.protocol)][probe.port]
    cdef nray_number_t address, offset
    cdef size_t rank
    cdef uint64_t end
    if service == 0:
        return -1
    if probe.family == 4:
        address.hi = 0
        address.lo = nray_load4(probe.addr)
    else:
        address = nray_load6(probe.addr)
    rank = nray_rank6(s.range_base + first, count, address)
    if rank == 0:
        return -1
    rank += first - 1
    offset.lo = address.lo - s.range_base[rank].lo
    offset.hi = address.hi - s.range_base[rank].hi - (address.lo < s.range_base[rank].lo)
    end = s.range_host[rank + 1] if rank + 1 < s.range_count else s.addresses
    if offset.hi or offset.lo >= end - s.range_host[rank]:
        return -1
    return <int64_t>nray_feistel_backward(
        &s.order, (s.range_host[rank] + offset.lo) * s.ports + service - 1)


cdef class Space:
    """The numbered probes of one segment, in the order of its key (see `_core.pyi`)."""

    cdef space_t s

    def __cinit__(self, ranges4, ranges6, names, ports, key, int search=SEARCH_NONE):
        if not 0 <= search < SEARCH_KINDS:
            raise ValueError(f"no such search: {search}")
        self.s.search = search
        check_ranges(ranges4, 32)
        check_ranges(ranges6, 128)
        if not 0 <= names <= SPACE_NAMES_MAX:
            raise ValueError("number of names out of bounds")
        if len(key) < SPACE_KEY_BYTES_MIN:
            raise ValueError(f"key shorter than {SPACE_KEY_BYTES_MIN} bytes")
        addresses = sum([last - first + 1 for first, last in ranges4])
        addresses += sum([last - first + 1 for first, last in ranges6])
        total = (addresses + names) * len(ports)
        if total == 0:
            raise ValueError("no probe in this space")
        if total > SPACE_TOTAL_MAX:
            raise OverflowError(f"{total} probes are more than 2^63")
        self.s.addresses = addresses
        self.s.hosts = addresses + names
        self.s.total = total
        self._set_services(ports)
        self._set_ranges(ranges4, ranges6)
        self._set_guide()
        self._set_order(key)

    def __dealloc__(self):
        free(self.s.services)
        free(self.s.service_of[0])
        free(self.s.service_of[1])
        free(self.s.service_of[2])
        free(self.s.range_host)
        free(self.s.range_base)
        free(self.s.guide)

    cdef _set_services(self, ports):
        cdef uint32_t i = 0
        if len(ports) > 2 * 65535:
            raise ValueError("more ports than there are")
        self.s.ports = len(ports)
        self.s.reciprocal = <uint64_t>0xFFFFFFFFFFFFFFFF // self.s.ports
        self.s.services = <service_t *>calloc(self.s.ports, sizeof(service_t))
        if self.s.services == NULL:
            raise MemoryError
        for protocol, port in ports:
            if not is_service(protocol, port):
                raise ValueError(f"no such port: protocol {protocol}, port {port}")
            self.s.services[i].protocol = protocol
            self.s.services[i].port = port
            i += 1

    cdef _set_ranges(self, ranges4, ranges6):
        cdef size_t i = 0
        cdef uint64_t host = 0
        self.s.range_count4 = len(ranges4)
        self.s.range_count = self.s.range_count4 + len(ranges6)
        # one more than needed: calloc of nothing may be NULL
        self.s.range_host = <uint64_t *>calloc(self.s.range_count + 1, sizeof(uint64_t))
        self.s.range_base = <nray_number_t *>calloc(self.s.range_count + 1, sizeof(nray_number_t))
        if self.s.range_host == NULL or self.s.range_base == NULL:
            raise MemoryError
        for ranges in (ranges4, ranges6):
            for first, last in ranges:
                self.s.range_host[i] = host
                self.s.range_base[i] = space_number(first)
                host += <uint64_t>(last - first + 1)
                i += 1

    cdef _set_guide(self):
        # The table has at least one entry for every two ranges, at most two for each: where ranges
        # are spread evenly, the search that follows it has a step or two, not log2(ranges).
        cdef size_t entries = 0
        cdef size_t i, at = 0
        if self.s.range_count:
            while ((self.s.addresses - 1) >> self.s.guide_shift) >= 2 * self.s.range_count:
                self.s.guide_shift += 1
            entries = ((self.s.addresses - 1) >> self.s.guide_shift) + 1
        self.s.guide = <uint32_t *>calloc(entries + 1, sizeof(uint32_t))
        if self.s.guide == NULL:
            raise MemoryError
        for i in range(entries):
            while at + 1 < self.s.range_count and self.s.range_host[at + 1] <= i << self.s.guide_shift:
                at += 1
            self.s.guide[i] = at
        self.s.guide[entries] = self.s.range_count - 1 if entries else 0

    cdef _set_order(self, key):
        cdef int i
        nray_feistel_init(&self.s.order, self.s.total)
        stream = hashlib.shake_256(b"nray order 1\0" + bytes(key)).digest(8 * NRAY_FEISTEL_ROUNDS)
        for i in range(NRAY_FEISTEL_ROUNDS):
            self.s.order.key[i] = int.from_bytes(stream[8 * i:8 * i + 8], "little")

    @property
    def hosts(self):
        return self.s.hosts

    @property
    def ports(self):
        return self.s.ports

    @property
    def total(self):
        return self.s.total

    cdef uint32_t tcp_ports(self):
        cdef uint32_t k, count = 0
        for k in range(self.s.ports):
            count += self.s.services[k].protocol == PROTO_TCP
        return count

    cdef int locate(self, uint64_t position, probe_t *out) noexcept nogil:
        return space_locate(&self.s, position, out)

    cdef make_findable(self):
        """Tables for `space_find`, half a megabyte: made by those who want them."""
        cdef uint32_t i
        cdef int k
        if self.s.service_of[0] != NULL:
            return
        for k in range(3):
            self.s.service_of[k] = <uint32_t *>calloc(65536 if k < 2 else 1, sizeof(uint32_t))
            if self.s.service_of[k] == NULL:
                raise MemoryError
        for i in range(self.s.ports):
            k = protocol_index(self.s.services[i].protocol)
            self.s.service_of[k][self.s.services[i].port] = i + 1

    def find(self, int family, address, int protocol, int port):
        cdef probe_t probe
        cdef int64_t position
        if family not in (4, 6) or not is_service(protocol, port):
            raise ValueError(f"no such probe: family {family}, protocol {protocol}, port {port}")
        memset(&probe, 0, sizeof(probe))
        probe.family = family
        probe.protocol = protocol
        probe.port = port
        if family == 4:
            nray_store4(probe.addr, address)
        else:
            nray_store6(probe.addr, space_number(address))
        self.make_findable()
        position = space_find(&self.s, &probe)
        return None if position < 0 else position

    def index(self, position):
        if not 0 <= position < self.s.total:
            raise IndexError(f"position {position} of {self.s.total}")
        return nray_feistel_forward(&self.s.order, position)

    def position(self, index):
        if not 0 <= index < self.s.total:
            raise IndexError(f"index {index} of {self.s.total}")
        return nray_feistel_backward(&self.s.order, index)

    def at(self, position):
        cdef probe_t probe
        if not 0 <= position < self.s.total:
            raise IndexError(f"position {position} of {self.s.total}")
        self.locate(position, &probe)
        if probe.family == 0:
            host = probe.name
        elif probe.family == 4:
            host = nray_load4(probe.addr)
        else:
            host = space_integer(nray_load6(probe.addr))
        return probe.family, host, probe.protocol, probe.port

    def listing(self, start, count, names=()):
        cdef uint64_t position, end
        cdef size_t used = 0, size = 4096, length
        cdef probe_t probe
        cdef char *text
        cdef char *grown
        cdef char *at
        cdef bytes name
        if start < 0 or count < 0:
            raise IndexError(f"no slice of {count} from {start}")
        if <uint64_t>len(names) != self.s.hosts - self.s.addresses:
            raise ValueError("as many names are needed as the space has")
        position = min(start, self.s.total)
        end = min(start + count, self.s.total)
        text = <char *>malloc(size)
        if text == NULL:
            raise MemoryError
        try:
            while position < end:
                self.locate(position, &probe)
                name = names[probe.name].encode("ascii") if probe.family == 0 else b""
                length = len(name) + NRAY_ADDRESS_TEXT_MAX + LINE_TAIL_MAX
                if used + length > size:
                    size = 2 * size + length
                    grown = <char *>realloc(text, size)
                    if grown == NULL:
                        raise MemoryError
                    text = grown
                at = text + used
                if probe.family == 4:
                    at = nray_text4(at, probe.addr)
                elif probe.family == 6:
                    at = nray_text6(at, probe.addr)
                else:
                    memcpy(at, <const char *>name, len(name))
                    at += len(name)
                at[0] = b" "
                at = nray_decimal(at + 1, probe.port)
                if probe.protocol == PROTO_ICMP:
                    memcpy(at, <const char *>b"/icmp\n", 6)
                    at += 1
                else:
                    memcpy(at, b"/tcp\n" if probe.protocol == PROTO_TCP else b"/udp\n", 5)
                used = at + 5 - text
                position += 1
            return PyBytes_FromStringAndSize(text, used)
        finally:
            free(text)

    def decode(self, packed, Exclusions exclusions not None):
        cdef const uint8_t[::1] view = packed
        cdef const uint8_t *record
        cdef size_t count = view.shape[0] // RECORD_BYTES
        cdef size_t i
        cdef probe_t probe
        cdef uint64_t position
        cdef uint32_t rtt
        cdef char text[NRAY_ADDRESS_TEXT_MAX]
        cdef char *end
        cdef object name
        cdef list found = []
        if count * RECORD_BYTES != <size_t>view.shape[0]:
            raise ValueError(f"hits are records of {RECORD_BYTES} bytes, not {len(packed)} in all")
        for i in range(count):
            record = &view[i * RECORD_BYTES]
            memcpy(&position, record, 8)  # little-endian, as is every machine we build for
            memcpy(&rtt, record + 24, 4)
            if self.locate(position, &probe) < 0:
                raise ValueError(f"hit at {position}, beyond the space of {self.s.total}")
            if probe.family == 0:
                name = probe.name
                probe.family = record[31]
                memcpy(probe.addr, record + 8, 16)
                if not record_plausible(&probe) or exclusions.covers_probe(&probe):
                    raise ValueError(f"hit at {position}: no address that its name may have")
            else:
                name = -1
                if record[31] != probe.family or memcmp(probe.addr, record + 8, 16) != 0:
                    raise ValueError(f"hit at {position}: not the address that stands there")
            end = text
            if probe.family == 4:
                end = nray_text4(text, probe.addr)
            elif probe.family == 6:
                end = nray_text6(text, probe.addr)
            found.append((
                position, name, text[:end - text].decode("ascii"), probe.protocol, probe.port,
                record[29], record[30], record[28], rtt,
            ))
        return found


cdef bint record_plausible(const probe_t *probe) noexcept nogil:
    """Whether family and address of a name fit: what an address leaves free is zero.

    Family 0 is a name that did not resolve.
    """
    cdef int i
    if probe.family == 6:
        return True
    if probe.family != 4 and probe.family != 0:
        return False
    for i in range(probe.family, 16):
        if probe.addr[i]:
            return False
    return True


# Sorted, disjoint, inclusive ranges of addresses.
cdef struct ranges_t:
    size_t count4
    size_t count6
    uint32_t *first4
    uint32_t *last4
    nray_number_t *first6
    nray_number_t *last6


cdef inline bint ranges_cover4(const ranges_t *r, uint32_t address) noexcept nogil:
    cdef size_t rank = nray_rank4(r.first4, r.count4, address)
    return rank > 0 and address <= r.last4[rank - 1]


cdef inline bint ranges_cover6(const ranges_t *r, nray_number_t address) noexcept nogil:
    cdef size_t rank
    if nray_is_mapped(address):
        return ranges_cover4(r, <uint32_t>address.lo)
    rank = nray_rank6(r.first6, r.count6, address)
    return rank > 0 and nray_at_most(address, r.last6[rank - 1])


cdef inline bint ranges_cover(const ranges_t *r, const probe_t *probe) noexcept nogil:
    """Whether a probe must not be sent; a name that is still to be resolved may be."""
    if probe.family == 4:
        return ranges_cover4(r, nray_load4(probe.addr))
    if probe.family == 6:
        return ranges_cover6(r, nray_load6(probe.addr))
    return False


cdef class Exclusions:
    """Addresses that must never be probed (see `_core.pyi`)."""

    cdef ranges_t r

    def __cinit__(self, ranges4, ranges6):
        cdef size_t i
        check_ranges(ranges4, 32)
        check_ranges(ranges6, 128)
        self.r.count4 = len(ranges4)
        self.r.count6 = len(ranges6)
        self.r.first4 = <uint32_t *>calloc(self.r.count4 + 1, sizeof(uint32_t))
        self.r.last4 = <uint32_t *>calloc(self.r.count4 + 1, sizeof(uint32_t))
        self.r.first6 = <nray_number_t *>calloc(self.r.count6 + 1, sizeof(nray_number_t))
        self.r.last6 = <nray_number_t *>calloc(self.r.count6 + 1, sizeof(nray_number_t))
        if not (self.r.first4 and self.r.last4 and self.r.first6 and self.r.last6):
            raise MemoryError
        for i, (first, last) in enumerate(ranges4):
            self.r.first4[i] = first
            self.r.last4[i] = last
        for i, (first, last) in enumerate(ranges6):
            self.r.first6[i] = space_number(first)
            self.r.last6[i] = space_number(last)

    def __dealloc__(self):
        free(self.r.first4)
        free(self.r.last4)
        free(self.r.first6)
        free(self.r.last6)

    cdef bint covers_probe(self, const probe_t *probe) noexcept nogil:
        return ranges_cover(&self.r, probe)

    def covers(self, int family, address):
        if family not in (4, 6) or address < 0 or address >> (32 if family == 4 else 128):
            raise ValueError(f"no IPv{family} address: {address}")
        if family == 4:
            return ranges_cover4(&self.r, address)
        return ranges_cover6(&self.r, space_number(address))


def _locate_benchmark(
    Space space not None, uint64_t start, uint64_t count, Exclusions exclusions=None
):
    """(seconds, a sum that keeps the loop alive) for locating, and if asked checking, probes.

    For bench/.
    """
    cdef probe_t probe
    cdef uint64_t position
    cdef uint64_t kept = 0
    import time
    began = time.perf_counter()
    if exclusions is None:
        with nogil:
            for position in range(start, start + count):
                space.locate(position, &probe)
                kept += probe.addr[3]
    else:
        with nogil:
            for position in range(start, start + count):
                space.locate(position, &probe)
                kept += not exclusions.covers_probe(&probe)
    return time.perf_counter() - began, kept
