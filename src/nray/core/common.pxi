# Types that every part of the core shares.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "siphash.h" nogil:
    ctypedef struct nray_key_t:
        uint64_t k0
        uint64_t k1
    uint64_t nray_siphash_words(const nray_key_t *key, const uint64_t *words, size_t count,
                                uint64_t last)

# IP protocol numbers (IANA), as in probe_t.protocol.
cdef enum:
    PROTO_ICMP = 1      # of either family: an echo request, whose port is 0
    PROTO_TCP = 6
    PROTO_UDP = 17

cdef inline int protocol_index(int protocol) noexcept nogil:
    """0 for TCP, 1 for UDP, 2 for echo requests: a place in tables of each."""
    return 0 if protocol == PROTO_TCP else 1 if protocol == PROTO_UDP else 2


def is_service(int protocol, port):
    """Whether there is such a port: TCP's and UDP's from 1, and 0 for an echo request."""
    if protocol == PROTO_ICMP:
        return port == 0
    return protocol in (PROTO_TCP, PROTO_UDP) and 0 < port < 65536


# One probe: where it goes. `addr` is in network byte order; IPv4 uses its first four bytes.
cdef struct probe_t:
    uint8_t addr[16]
    uint32_t name       # index of the name, where family is 0
    uint16_t port       # host byte order
    uint8_t family      # 4, 6, or 0 for a name that is still to be resolved
    uint8_t protocol    # PROTO_TCP, PROTO_UDP or PROTO_ICMP
