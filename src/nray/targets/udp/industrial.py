"""Buildings, plants and boards that watch over machines: reads alone, and small ones."""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.probe import Echoed, Identifiers, Probe, byte, either, least, own, same

# ── IPMI ────────────────────────────────────────────────────────────────────────────────────

RMCP_VERSION, RMCP_NO_ACK, RMCP_CLASS_ASF = 6, 0xFF, 6
ASF_IANA, PRESENCE_PING = 4542, 0x80
#: The tag 255 would say that no answer is wanted.
TAGS = 255
_PONG = ((0, 255, RMCP_VERSION), (3, 0x1F, RMCP_CLASS_ASF), (8, 255, 0x40))


def _asf_ping(ids: Identifiers) -> bytes:
    reserved, no_data = 0, 0
    rmcp = struct.pack("!4B", RMCP_VERSION, reserved, RMCP_NO_ACK, RMCP_CLASS_ASF)
    tag = ids.number(16) % TAGS
    return rmcp + struct.pack("!I4B", ASF_IANA, PRESENCE_PING, tag, reserved, no_data)


# ── BACnet ──────────────────────────────────────────────────────────────────────────────────

BVLL_IP, ORIGINAL_UNICAST, FORWARDED = 0x81, 0x0A, 0x04
NPDU_VERSION, EXPECTING_REPLY = 1, 0x04
CONFIRMED_REQUEST, MAX_480_BYTES, READ_PROPERTY = 0x00, 0x03, 0x0C
DEVICE = 8
#: Clause 12.11: the instance by which any device may be asked.
ANY_INSTANCE = 0x3FFFFF
OBJECT_IDENTIFIER = 75


def _bacnet(ids: Identifiers) -> bytes:
    """ReadProperty of the device's own object identifier."""
    npdu = bytes([NPDU_VERSION, EXPECTING_REPLY])
    apdu = bytes([CONFIRMED_REQUEST, MAX_480_BYTES, ids.number(8), READ_PROPERTY])
    object_tag, property_tag = 0x0C, 0x19
    apdu += struct.pack("!BI", object_tag, DEVICE << 22 | ANY_INSTANCE)
    apdu += struct.pack("!BB", property_tag, OBJECT_IDENTIFIER)
    return struct.pack("!BBH", BVLL_IP, ORIGINAL_UNICAST, 4 + len(npdu + apdu)) + npdu + apdu


def _same_invoke(payload: bytes) -> Steps:
    """Past the network layer's addresses, if there are any, stand type and invoke id."""

    def layout(function: int, target: int, source: int) -> Steps:
        """Answers with network addresses of so many bytes (0: none)."""
        at = 4 if function == ORIGINAL_UNICAST else 10
        control = (0x20 if target else 0) | (0x08 if source else 0)
        steps = byte(0, 255, BVLL_IP) + byte(1, 255, function) + byte(at, 255, NPDU_VERSION)
        steps += byte(at + 1, 0xA8, control)
        at += 2
        for size in (target, source):
            if size:
                steps += byte(at + 2, 255, size)
                at += 3 + size
        at += 1 if target else 0
        return steps + same(8, at + 1, 1) + least(at + 2)

    # MS/TP and ARCNET have addresses of one byte, BACnet/IP of six.
    layouts = [(ORIGINAL_UNICAST, 0, 0), (ORIGINAL_UNICAST, 0, 1), (ORIGINAL_UNICAST, 0, 6),
               (ORIGINAL_UNICAST, 1, 1), (ORIGINAL_UNICAST, 6, 1), (FORWARDED, 0, 0)]  # fmt: skip
    return own(8, 1) + either(layout(*each) for each in layouts)


# ── EtherNet/IP ─────────────────────────────────────────────────────────────────────────────

LIST_IDENTITY = 0x63
ENCAPSULATION = struct.Struct("<HHII8sI")


def _enip(ids: Identifiers) -> bytes:
    no_data, no_session, success, no_options = 0, 0, 0, 0
    return ENCAPSULATION.pack(
        LIST_IDENTITY, no_data, no_session, success, ids.octets(8), no_options
    )


# ── KNX ─────────────────────────────────────────────────────────────────────────────────────

KNX_HEADER_BYTES, KNX_VERSION, DESCRIPTION_REQUEST = 6, 0x10, 0x0203
HPAI_BYTES, HPAI_UDP = 8, 1


def _knx(ids: Identifiers) -> bytes:
    """A description request whose endpoint is 0.0.0.0:0, "where this came from"."""
    endpoint = struct.pack("!BBIH", HPAI_BYTES, HPAI_UDP, 0, 0)
    length = KNX_HEADER_BYTES + len(endpoint)
    return (
        struct.pack("!BBHH", KNX_HEADER_BYTES, KNX_VERSION, DESCRIPTION_REQUEST, length) + endpoint
    )


# ── OMRON FINS ──────────────────────────────────────────────────────────────────────────────

FINS_COMMAND, GATEWAYS = 0x80, 2
CONTROLLER_DATA_READ = 0x0501


def _fins(ids: Identifiers) -> bytes:
    """Reads model and version of the controller at hand (network, node and unit 0)."""
    here = bytes(3)
    service_id = ids.number(8)
    header = bytes([FINS_COMMAND, 0, GATEWAYS]) + here + here + bytes([service_id])
    whole = 0
    return header + struct.pack("!HB", CONTROLLER_DATA_READ, whole)


PROBES = (
    Probe((623,), "IPMI (ASF)", "whether it is there (presence ping)", "DMTF DSP0136, section 3.2",
          _asf_ping, Echoed(9, 9, 1, least=12, head=_PONG), ("rmcp", "asf")),
    Probe((47808,), "BACnet", "the number of the device", "ASHRAE 135, clause 15.5 and annex J",
          _bacnet, _same_invoke, ("bvlc", "bacnet", "bacapp")),
    Probe((44818,), "EtherNet/IP", "who it is (ListIdentity)", "ODVA, CIP volume 2, chapter 2",
          _enip, Echoed(12, 12, 8, least=24, head=((0, 255, LIST_IDENTITY), (1, 255, 0)),
                        free=(12, 8)),
          ("enip",)),
    Probe((3671,), "KNXnet/IP", "its description", "EN 13321-2 (KNX Standard 3.8)", _knx, None,
          ("kip",)),
    Probe((9600,), "OMRON FINS", "model and version of the controller", "OMRON W227, FINS commands",
          _fins, Echoed(9, 9, 3, least=12, head=((0, 0x40, 0x40),), free=(9, 1)), ("omron",)),
)  # fmt: skip
