"""DNS and the protocols in its format: multicast DNS, LLMNR, NetBIOS names."""

from __future__ import annotations

import struct

from nray.targets.udp.probe import Echoed, Identifiers, Probe

RECURSION_DESIRED = 0x0100
TYPE_A, TYPE_PTR, TYPE_TXT, TYPE_NBSTAT = 1, 12, 16, 0x21
CLASS_IN, CLASS_CHAOS = 1, 3
#: RFC 6762, section 5.4: the answer may come by unicast.
UNICAST_RESPONSE = 0x8000
#: RFC 1001, section 14.1: a name has 16 bytes, each written as two letters from "A" on.
NETBIOS_NAME_BYTES = 16

#: The identifier stands first, and the highest bit of the flags says "response".
_SAME_ID = Echoed(sent=0, got=0, size=2, least=12, head=((2, 0x80, 0x80),), free=(0, 2))


def name(*labels: bytes) -> bytes:
    """A domain name, uncompressed."""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\x00"


def query(id_: int, flags: int, qname: bytes, qtype: int, qclass: int) -> bytes:
    """A message with one question and nothing else (RFC 1035, section 4.1)."""
    questions, answers, authorities, additional = 1, 0, 0, 0
    header = struct.pack("!6H", id_, flags, questions, answers, authorities, additional)
    return header + qname + struct.pack("!2H", qtype, qclass)


def netbios_name(text: bytes) -> bytes:
    """A NetBIOS name, padded with zeros, as the label of a domain name."""
    padded = text.ljust(NETBIOS_NAME_BYTES, b"\x00")
    return name(bytes(ord("A") + half for byte in padded for half in (byte >> 4, byte & 15)))


def _version_bind(ids: Identifiers) -> bytes:
    # Answered from memory, without a look at any other server; who keeps the version to himself
    # still answers, with REFUSED or NOTIMP.
    qname = name(b"version", b"bind")
    return query(ids.number(16), RECURSION_DESIRED, qname, TYPE_TXT, CLASS_CHAOS)


def _service_types(ids: Identifiers) -> bytes:
    # From a port other than 5353 it is a "legacy" query: the answer, by unicast, repeats the id.
    qname = name(b"_services", b"_dns-sd", b"_udp", b"local")
    return query(ids.number(16), 0, qname, TYPE_PTR, CLASS_IN | UNICAST_RESPONSE)


def _localhost(ids: Identifiers) -> bytes:
    return query(ids.number(16), 0, name(b"localhost"), TYPE_A, CLASS_IN)


def _node_status(ids: Identifiers) -> bytes:
    return query(ids.number(16), 0, netbios_name(b"*"), TYPE_NBSTAT, CLASS_IN)


PROBES = (
    Probe(
        (53,), "DNS", "`version.bind`, TXT in class CHAOS", "RFC 1035; RFC 4892", _version_bind,
        _SAME_ID, ("dns",),
    ),
    Probe(
        (5353,), "mDNS", "which kinds of services there are (DNS-SD)",
        "RFC 6762, section 6.7; RFC 6763, section 9", _service_types, _SAME_ID, ("mdns",),
    ),
    Probe(
        (5355,), "LLMNR", "the address of `localhost`; hosts answer to names of their own alone",
        "RFC 4795", _localhost, _SAME_ID, ("llmnr",),
    ),
    Probe(
        (137,), "NetBIOS names", "the node's status", "RFC 1002, section 4.2.17", _node_status,
        _SAME_ID, ("nbns",),
    ),
)  # fmt: skip
