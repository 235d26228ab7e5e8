# Types that every part of the core shares.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

# IP protocol numbers (IANA), as in probe_t.protocol.
cdef enum:
    PROTO_TCP = 6
    PROTO_UDP = 17

# One probe: where it goes. `addr` is in network byte order; IPv4 uses its first four bytes.
cdef struct probe_t:
    uint8_t addr[16]
    uint32_t name       # index of the name, where family is 0
    uint16_t port       # host byte order
    uint8_t family      # 4, 6, or 0 for a name that is still to be resolved
    uint8_t protocol    # PROTO_TCP or PROTO_UDP
