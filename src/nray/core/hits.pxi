# States, reasons and packed hits: how a probe ended, in 32 bytes.
#
# States are those of DESIGN.md, reasons nmap's words (nmap's portreasons), and for what this
# machine could not do words of the same make. The numbers travel between peers of one protocol
# version: add at the end, never renumber.

cdef enum:
    STATE_NONE = 0
    STATE_OPEN = 1
    STATE_CLOSED = 2
    STATE_FILTERED = 3
    STATE_OPEN_FILTERED = 4
    STATE_ERROR = 5
    STATE_COUNT = 6

STATES = ("", "open", "closed", "filtered", "open|filtered", "error")

cdef enum:
    REASON_NONE = 0
    REASON_SYN_ACK = 1
    REASON_CONN_REFUSED = 2
    REASON_RESET = 3
    REASON_NO_RESPONSE = 4
    REASON_UDP_RESPONSE = 5
    REASON_NET_UNREACH = 6
    REASON_HOST_UNREACH = 7
    REASON_PROTO_UNREACH = 8
    REASON_PORT_UNREACH = 9
    REASON_NET_PROHIBITED = 10
    REASON_HOST_PROHIBITED = 11
    REASON_ADMIN_PROHIBITED = 12
    REASON_DEST_UNREACH = 13
    REASON_TIME_EXCEEDED = 14
    REASON_PARAM_PROBLEM = 15
    REASON_NO_ROUTE = 16
    REASON_BEYOND_SCOPE = 17
    REASON_REJECT_ROUTE = 18
    # what this machine could not do
    REASON_DESCRIPTORS = 19
    REASON_BUFFERS = 20
    REASON_PORTS = 21
    REASON_UNREACHABLE_HERE = 22
    REASON_FORBIDDEN_HERE = 23
    REASON_LOCAL = 24
    REASON_SELF = 25
    REASON_UNRESOLVED = 26
    # an answer again
    REASON_ECHO_REPLY = 27
    # a datagram that answers nothing that was asked
    REASON_UNEXPECTED = 28
    # of hosts that are looked for
    REASON_ARP_RESPONSE = 29
    REASON_ND_RESPONSE = 30
    REASON_LOCALHOST = 31
    # what this machine could not do, again
    REASON_OFF_LINK = 32
    # of a host, not of a port: see tarpits.pxi
    REASON_TARPIT = 33

REASONS = (
    "", "syn-ack", "conn-refused", "reset", "no-response", "udp-response",
    "net-unreach", "host-unreach", "proto-unreach", "port-unreach",
    "net-prohibited", "host-prohibited", "admin-prohibited", "dest-unreach",
    "time-exceeded", "param-problem", "no-route", "beyond-scope", "reject-route",
    "out-of-descriptors", "out-of-buffers", "out-of-local-ports", "no-route-from-here",
    "forbidden-here", "local-error", "connects-to-itself", "name-not-resolved",
    "echo-reply", "unexpected-response", "arp-response", "nd-response", "localhost-response",
    "not-on-link", "tarpit",
)

# One hit as it travels: little-endian on every machine that Linux and CPython are common on
# (checked at import), 32 bytes, no padding. Python's struct format is HIT_FORMAT.
cdef struct hit_t:
    uint64_t position
    uint8_t addr[16]
    uint32_t rtt_us     # 0 where nothing answered
    uint8_t ttl         # of the answer; 0 unknown
    uint8_t state
    uint8_t reason
    uint8_t family

HIT_BYTES = 32
HIT_FORMAT = "<Q16sIBBBB"

import sys as _sys

if sizeof(hit_t) != HIT_BYTES or _sys.byteorder != "little":
    raise ImportError("nray's packed hits need a little-endian machine")


cdef uint8_t icmp4_reason(uint8_t kind, uint8_t code) noexcept nogil:
    """Reason for an ICMP error (RFC 792, RFC 1812 section 5.2.7.1)."""
    if kind == 3:
        if code == 0 or code == 6 or code == 11:
            return REASON_NET_UNREACH
        if code == 1 or code == 7 or code == 12:
            return REASON_HOST_UNREACH
        if code == 2:
            return REASON_PROTO_UNREACH
        if code == 3:
            return REASON_PORT_UNREACH
        if code == 9:
            return REASON_NET_PROHIBITED
        if code == 10:
            return REASON_HOST_PROHIBITED
        if code == 13:
            return REASON_ADMIN_PROHIBITED
        return REASON_DEST_UNREACH
    if kind == 11:
        return REASON_TIME_EXCEEDED
    if kind == 12:
        return REASON_PARAM_PROBLEM
    return REASON_NONE


cdef uint8_t icmp6_reason(uint8_t kind, uint8_t code) noexcept nogil:
    """Reason for an ICMPv6 error (RFC 4443 section 3)."""
    if kind == 1:
        if code == 0:
            return REASON_NO_ROUTE
        if code == 1 or code == 5:
            return REASON_ADMIN_PROHIBITED
        if code == 2:
            return REASON_BEYOND_SCOPE
        if code == 3:
            return REASON_HOST_UNREACH
        if code == 4:
            return REASON_PORT_UNREACH
        if code == 6:
            return REASON_REJECT_ROUTE
        return REASON_DEST_UNREACH
    if kind == 3:
        return REASON_TIME_EXCEEDED
    if kind == 4:
        return REASON_PARAM_PROBLEM
    return REASON_NONE
