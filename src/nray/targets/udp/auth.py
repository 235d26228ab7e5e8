"""Directories and authorities, asked for what they tell before anybody says who he is."""

from __future__ import annotations

import struct

from nray.targets.udp import Steps, ber
from nray.targets.udp.probe import Echoed, Identifiers, Probe

# ── LDAP over UDP ───────────────────────────────────────────────────────────────────────────

SEARCH_REQUEST = 3
#: The whole rootDSE of a domain controller has some kilobytes; this is a dozen bytes of it.
ATTRIBUTE = b"supportedLDAPVersion"
LDAP_ID_BITS = 31


def _cldap(ids: Identifiers) -> bytes:
    """A search of the rootDSE (RFC 4512, section 5.1) in a message of RFC 4511."""
    base_object, never_alias, no_limit = 0, 0, ber.integer(0)
    present = ber.tlv(0x87, b"objectClass")
    search = ber.application(
        SEARCH_REQUEST,
        ber.octets(b""),
        ber.integer(base_object, ber.ENUMERATED),
        ber.integer(never_alias, ber.ENUMERATED),
        no_limit,
        no_limit,
        ber.tlv(ber.BOOLEAN, b"\x00"),
        present,
        ber.sequence(ber.octets(ATTRIBUTE)),
    )
    return ber.sequence(ber.integer(ids.number(LDAP_ID_BITS)), search)


def _same_message(payload: bytes) -> Steps:
    return ber.repeats(payload, 2)


# ── Kerberos ────────────────────────────────────────────────────────────────────────────────

AS_REQ = 10
KERBEROS_VERSION = 5
NT_PRINCIPAL, NT_SRV_INST = 1, 2
#: Nobody has either, so that no account counts a failure: the answer is an error.
PRINCIPAL, REALM = b"nray", b"NRAY.INVALID"
#: aes256-cts-hmac-sha1-96 and its smaller brother (RFC 3962).
ENCRYPTION = (18, 17)


def _principal(kind: int, *names: bytes) -> bytes:
    strings = (ber.tlv(ber.GENERAL_STRING, name) for name in names)
    return ber.sequence(ber.context(0, ber.integer(kind)), ber.context(1, ber.sequence(*strings)))


def _kerberos(ids: Identifiers) -> bytes:
    """An AS-REQ (RFC 4120, section 5.4.1) without pre-authentication."""
    no_options = ber.tlv(ber.BIT_STRING, bytes(5))
    body = ber.sequence(
        ber.context(0, no_options),
        ber.context(1, _principal(NT_PRINCIPAL, PRINCIPAL)),
        ber.context(2, ber.tlv(ber.GENERAL_STRING, REALM)),
        ber.context(3, _principal(NT_SRV_INST, b"krbtgt", REALM)),
        ber.context(5, ber.tlv(ber.GENERALIZED_TIME, b"19700101000000Z")),
        ber.context(7, ber.integer(ids.number(31))),
        ber.context(8, ber.sequence(*map(ber.integer, ENCRYPTION))),
    )
    return ber.application(
        AS_REQ,
        ber.sequence(
            ber.context(1, ber.integer(KERBEROS_VERSION)),
            ber.context(2, ber.integer(AS_REQ)),
            ber.context(4, body),
        ),
    )


# ── RADIUS ──────────────────────────────────────────────────────────────────────────────────

STATUS_SERVER, MESSAGE_AUTHENTICATOR = 12, 80


def _radius(ids: Identifiers) -> bytes:
    """A Status-Server request (RFC 5997). We share no secret with the server, so that its
    authenticator is zeros, and only a careless server answers. Nobody is logged in or out."""
    attribute = struct.pack("!BB", MESSAGE_AUTHENTICATOR, 18) + bytes(16)
    header = struct.pack("!BBH", STATUS_SERVER, ids.number(8), 20 + len(attribute))
    return header + ids.octets(16, at=1) + attribute


PROBES = (
    Probe((88,), "Kerberos", "a ticket for nobody in a realm of nobody", "RFC 4120", _kerberos,
          None, ("kerberos",)),
    Probe((389,), "CLDAP", "`supportedLDAPVersion` of the rootDSE", "RFC 4511; [MS-ADTS] 3.1.1.3",
          _cldap, _same_message, ("cldap",)),
    Probe((1812, 1813, 1645, 1646), "RADIUS",
          "its status; servers should not answer to strangers", "RFC 5997; RFC 2865", _radius,
          Echoed(1, 1, 1, least=20, free=(1, 1)), ("radius",)),
)  # fmt: skip
