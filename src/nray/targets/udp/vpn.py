"""Tunnels and key exchange, up to where a stranger is answered.

WireGuard has no probe: it answers to nobody who does not know its public key (whitepaper,
section 5.1), and so an open port is silent by design.
"""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.probe import Identifiers, Probe, byte, find, least, own, same, text

# ── IKE ─────────────────────────────────────────────────────────────────────────────────────

IKE_HEADER = struct.Struct("!8s8sBBBBII")
SA_V1, SA, KE, NONCE = 1, 33, 34, 40
IKE_SA_INIT, MAIN_MODE = 34, 2
VERSION_IKE1, VERSION_IKE2, INITIATOR = 0x10, 0x20, 0x08
#: RFC 3948: four zeros where ESP would have its SPI.
NON_ESP_MARKER = bytes(4)
PROTOCOL_IKE = 1

ENCR, PRF, INTEG, DH = 1, 2, 3, 4
KEY_LENGTH = 14
AES_CBC = 12
#: Types and numbers of transforms as IANA registers them: AES-CBC (128 and 256 bits), PRF and
#: integrity with SHA-2 and SHA-1, and groups from the oldest still met to curve25519.
TRANSFORMS = (
    (ENCR, AES_CBC, 256), (ENCR, AES_CBC, 128), (PRF, 5, 0), (PRF, 2, 0), (INTEG, 12, 0),
    (INTEG, 2, 0), (DH, 31, 0), (DH, 19, 0), (DH, 14, 0), (DH, 2, 0),
)  # fmt: skip
#: The group whose key is sent: the smallest of them. Whoever wants a better one says so in a
#: few bytes (INVALID_KE_PAYLOAD), and neither computes a key nor keeps a state for us.
GROUP_SENT, GROUP_SENT_BYTES = 2, 128
NONCE_BYTES = 32

#: Attributes of IKEv1's transforms (RFC 2409, appendix A), all of them short.
IKE1_TRANSFORMS = tuple(
    # cipher, its key's bits, hash, authentication (pre-shared key, RSA), group
    ((1, cipher), *(((14, bits),) if bits else ()), (2, digest), (3, method), (4, group))
    for cipher, bits in ((7, 256), (7, 128), (5, 0))
    for digest, group in ((4, 14), (2, 2))
    for method in (1, 3)
)
SHORT_ATTRIBUTE = 0x8000


def _payload(following: int, body: bytes) -> bytes:
    """A payload with the header that all have: the next one's type, no flags, a length."""
    return struct.pack("!BBH", following, 0, 4 + len(body)) + body


def _ike(
    ids: Identifiers, first: int, version: int, exchange: int, flags: int, rest: bytes
) -> bytes:
    no_responder, message_id = bytes(8), 0
    length = IKE_HEADER.size + len(rest)
    header = IKE_HEADER.pack(
        ids.octets(8), no_responder, first, version, exchange, flags, message_id, length
    )
    return header + rest


def _transform2(kind: int, number: int, bits: int, last: bool) -> bytes:
    attributes = struct.pack("!HH", SHORT_ATTRIBUTE | KEY_LENGTH, bits) if bits else b""
    following = 0 if last else 3
    return _payload(following, struct.pack("!BBH", kind, 0, number) + attributes)


def ike2(ids: Identifiers) -> bytes:
    """An IKE_SA_INIT request (RFC 7296, section 1.2): SA, KE, nonce."""
    transforms = b"".join(_transform2(*each, last=each is TRANSFORMS[-1]) for each in TRANSFORMS)
    proposal = struct.pack("!4B", 1, PROTOCOL_IKE, 0, len(TRANSFORMS)) + transforms
    # A number below the group's prime, which has its highest bits set.
    public = bytes([0x7F]) + ids.octets(GROUP_SENT_BYTES - 1, at=8)
    nonce = ids.octets(NONCE_BYTES, at=200)
    rest = (
        _payload(KE, _payload(0, proposal))
        + _payload(NONCE, struct.pack("!HH", GROUP_SENT, 0) + public)
        + _payload(0, nonce)
    )
    return _ike(ids, SA, VERSION_IKE2, IKE_SA_INIT, INITIATOR, rest)


def ike1(ids: Identifiers) -> bytes:
    """The first message of main mode (RFC 2408, RFC 2409): what we would take."""
    doi_ipsec, identity_only, key_ike = 1, 1, 1
    transforms = b""
    for number, attributes in enumerate(IKE1_TRANSFORMS, 1):
        body = struct.pack("!BBH", number, key_ike, 0)
        body += b"".join(struct.pack("!HH", SHORT_ATTRIBUTE | kind, value)
                         for kind, value in attributes)  # fmt: skip
        transforms += _payload(3 if number < len(IKE1_TRANSFORMS) else 0, body)
    proposal = struct.pack("!4B", 1, PROTOCOL_IKE, 0, len(IKE1_TRANSFORMS)) + transforms
    association = struct.pack("!II", doi_ipsec, identity_only) + _payload(0, proposal)
    return _ike(ids, SA_V1, VERSION_IKE1, MAIN_MODE, 0, _payload(0, association))


def _ike2_nat(ids: Identifiers) -> bytes:
    return NON_ESP_MARKER + ike2(ids)


def _same_spi(payload: bytes) -> Steps:
    """The initiator's SPI comes back."""
    return least(IKE_HEADER.size) + same(0, 0, 8) + own(0, 8)


def _same_spi_nat(payload: bytes) -> Steps:
    marker = len(NON_ESP_MARKER)
    steps = text(0, NON_ESP_MARKER) + least(marker + IKE_HEADER.size)
    return steps + same(marker, marker, 8) + own(marker, 8)


# ── OpenVPN ─────────────────────────────────────────────────────────────────────────────────

HARD_RESET_CLIENT_V2, HARD_RESET_SERVER_V2 = 7, 8
SESSION_BYTES = 8


def _openvpn(ids: Identifiers) -> bytes:
    key_id, no_acks, packet_id = 0, 0, 0
    opcode = bytes([HARD_RESET_CLIENT_V2 << 3 | key_id])
    return opcode + ids.octets(SESSION_BYTES) + struct.pack("!BI", no_acks, packet_id)


def _same_session(payload: bytes) -> Steps:
    """Opcode, the server's session, a list of acknowledged packets, and then our session."""
    opcode = byte(0, 0xF8, HARD_RESET_SERVER_V2 << 3)
    return opcode + find(1, SESSION_BYTES) + own(1, SESSION_BYTES)


# ── L2TP ────────────────────────────────────────────────────────────────────────────────────

#: RFC 2661, section 3.1: a control message, with its length, sequence numbers, version 2.
L2TP_CONTROL = 0x8000 | 0x4000 | 0x0800 | 2
MANDATORY = 0x8000
START_CONTROL_CONNECTION_REQUEST = 1


def _avp(kind: int, value: bytes) -> bytes:
    ietf = 0
    return struct.pack("!HHH", MANDATORY | 6 + len(value), ietf, kind) + value


def _l2tp(ids: Identifiers) -> bytes:
    """A Start-Control-Connection-Request, with the five AVPs that it must have.

    The half-open tunnel is forgotten when nobody goes on with it.
    """
    message_type, protocol_version, framing, host_name, tunnel = 0, 2, 3, 7, 9
    avps = (
        _avp(message_type, struct.pack("!H", START_CONTROL_CONNECTION_REQUEST))
        + _avp(protocol_version, bytes([1, 0]))
        + _avp(framing, struct.pack("!I", 3))
        + _avp(host_name, b"nray")
        + _avp(tunnel, struct.pack("!H", ids.number(16)))
    )
    none_yet = 0
    header = struct.pack("!6H", L2TP_CONTROL, 12 + len(avps), none_yet, none_yet, 0, 0)
    return header + avps


def _same_tunnel(payload: bytes) -> Steps:
    """The tunnel that the answer is sent into is the one that we assigned, in our last AVP."""
    return byte(0, 0xC0, 0xC0) + byte(1, 0x0F, 0x02) + same(len(payload) - 2, 4, 2)


PROBES = (
    Probe(
        (500,), "IKEv2", "to begin, with a key of a group that few still take",
        "RFC 7296", ike2, _same_spi, ("isakmp",),
    ),
    Probe(
        (4500,), "IKEv2 through NAT", "the same, behind a non-ESP marker",
        "RFC 7296, section 2.23; RFC 3948", _ike2_nat, _same_spi_nat, ("udpencap", "isakmp"),
    ),
    Probe(
        (1194,), "OpenVPN", "to begin (hard reset, version 2); silent with `tls-auth`",
        "OpenVPN Wire Protocol (openvpn.github.io/openvpn-rfc)", _openvpn, _same_session,
        ("openvpn",),
    ),
    Probe(
        (1701,), "L2TP", "to begin a control connection", "RFC 2661", _l2tp, _same_tunnel,
        ("l2tp",),
    ),
)  # fmt: skip

FURTHER = (
    Probe(
        (500,), "IKEv1", "to begin main mode", "RFC 2408; RFC 2409", ike1, _same_spi, ("isakmp",)
    ),
)
