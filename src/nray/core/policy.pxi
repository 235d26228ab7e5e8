# What a node's own policy lets it probe, asked before every packet whatever a server has leased.
#
# The policy comes as what it refuses: the addresses outside of its networks (an `Exclusions`, so
# that an IPv4-mapped IPv6 address counts as the IPv4 address that it reaches) and the ports
# outside of its ports. A name that is still to be resolved is refused, too: nothing is sent to it,
# and what it resolves to is asked about by address.

cdef class Policy:
    """What must not be probed from here, whoever asks for it (see `_core.pyi`)."""

    cdef Exclusions addresses
    cdef uint8_t ports[2][8192]     # a bit for each TCP and each UDP port that is allowed

    def __cinit__(self, Exclusions refused not None, ports):
        cdef uint32_t number
        cdef int which
        self.addresses = refused
        memset(self.ports, 0, sizeof(self.ports))
        for protocol, first, last in ports:
            if protocol not in (PROTO_TCP, PROTO_UDP) or not 0 < first <= last < 65536:
                raise ValueError(f"no such ports: protocol {protocol}, {first} to {last}")
            which = protocol == PROTO_UDP
            for number in range(<uint32_t>first, <uint32_t>last + 1):
                self.ports[which][number >> 3] |= 1 << (number & 7)

    cdef inline bint allows_port(self, int protocol, int port) noexcept nogil:
        # An echo request has no port: the networks alone decide.
        return (protocol == PROTO_ICMP
                or self.ports[protocol == PROTO_UDP][port >> 3] >> (port & 7) & 1)

    cdef bint refuses_probe(self, const probe_t *probe) noexcept nogil:
        if not self.allows_port(probe.protocol, probe.port):
            return True
        return probe.family == 0 or self.addresses.covers_probe(probe)

    def refuses(self, int family, address, int protocol, int port):
        if not is_service(protocol, port):
            raise ValueError(f"no such port: protocol {protocol}, port {port}")
        if not self.allows_port(protocol, port):
            return True
        return self.addresses.covers(family, address)
