"""SNMP in its three versions.

Version 3 is what port 161 gets first: the discovery of an engine's id is open to strangers, so that
it finds agents whose community nobody guesses, and guesses none. Agents that know nothing of it are
silent; then versions 1 and 2c ask by the community "public", which many agents are delivered with.
"""

from __future__ import annotations

from nray.targets.udp import Steps, ber
from nray.targets.udp.probe import Identifiers, Probe

VERSION_1, VERSION_2C, VERSION_3 = 0, 1, 3
GET_REQUEST = 0
SYS_DESCR = "1.3.6.1.2.1.1.1.0"
COMMUNITY = b"public"
USM = 3
#: RFC 3412: tell me of your errors; neither authenticated nor encrypted.
REPORTABLE = 0x04
#: What we could take: one packet of an Ethernet, and above the 484 that every agent must keep to.
MESSAGE_BYTES_MAX = 1472
#: Identifiers are whole numbers from 0 to 2^31 - 1.
ID_BITS = 31


def _pdu(request: int, *bindings: bytes) -> bytes:
    no_error, no_index = ber.integer(0), ber.integer(0)
    return ber.context(
        GET_REQUEST, ber.integer(request), no_error, no_index, ber.sequence(*bindings)
    )


def by_community(version: int, ids: Identifiers) -> bytes:
    """A GetRequest for sysDescr.0 (RFC 1157 and RFC 1901; RFC 3418)."""
    binding = ber.sequence(ber.oid(SYS_DESCR), ber.tlv(ber.NULL))
    pdu = _pdu(ids.number(ID_BITS), binding)
    return ber.sequence(ber.integer(version), ber.octets(COMMUNITY), pdu)


def version_1(ids: Identifiers) -> bytes:
    return by_community(VERSION_1, ids)


def version_2c(ids: Identifiers) -> bytes:
    return by_community(VERSION_2C, ids)


def engine_id(ids: Identifiers) -> bytes:
    """The discovery of RFC 3414, section 4: no user, no engine, no variables."""
    global_data = ber.sequence(
        ber.integer(ids.number(ID_BITS)),
        ber.integer(MESSAGE_BYTES_MAX),
        ber.octets(bytes([REPORTABLE])),
        ber.integer(USM),
    )
    nobody = ber.octets(b"")
    boots, time = ber.integer(0), ber.integer(0)
    security = ber.sequence(nobody, boots, time, nobody, nobody, nobody)
    scoped = ber.sequence(ber.octets(b""), ber.octets(b""), _pdu(ids.number(ID_BITS, at=4)))
    return ber.sequence(ber.integer(VERSION_3), global_data, ber.octets(security), scoped)


def same_request(payload: bytes) -> Steps:
    """The request's identifier, behind version and community, comes back."""
    return ber.repeats(payload, 2 + 3 + 2 + len(COMMUNITY) + 2)


def same_message(payload: bytes) -> Steps:
    """msgID, the first number behind the version, comes back."""
    return ber.repeats(payload, 2 + 3 + 2)


PROBES = (
    Probe(
        (161,), "SNMPv3", "the id of its engine", "RFC 3414, section 4", engine_id, same_message,
        ("snmp",),
    ),
)  # fmt: skip

FURTHER = (
    Probe(
        (161,), "SNMPv1", "`sysDescr.0` by the community `public`", "RFC 1157", version_1,
        same_request, ("snmp",),
    ),
    Probe(
        (161,), "SNMPv2c", "`sysDescr.0` by the community `public`", "RFC 1901; RFC 3416",
        version_2c, same_request, ("snmp",),
    ),
)  # fmt: skip
