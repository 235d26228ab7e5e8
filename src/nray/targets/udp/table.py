"""The table: which UDP port is sent what, and whether an answer is one to it."""

from __future__ import annotations

from nray.targets.udp import (
    auth,
    discovery,
    dns,
    games,
    industrial,
    media,
    rpc,
    secure,
    services,
    small,
    snmp,
    vpn,
)
from nray.targets.udp.probe import Probe

#: A payload stays within one packet of any path; the core refuses more.
PAYLOAD_BYTES_MAX = 1400

_FAMILIES = (
    small, dns, snmp, rpc, auth, discovery, secure, vpn, media, services, industrial, games,
)  # fmt: skip

#: Every probe that is sent, by its first port.
PROBES: tuple[Probe, ...] = tuple(
    sorted((probe for family in _FAMILIES for probe in family.PROBES), key=lambda each: each.ports)
)

#: Other questions for ports that have one, for whoever sends more than one payload to a port;
#: the connect engine sends one.
FURTHER: tuple[Probe, ...] = (*snmp.FURTHER, *vpn.FURTHER)

#: UDP port to the probe of its usual service.
BY_PORT: dict[int, Probe] = {port: probe for probe in PROBES for port in probe.ports}


def payloads(key: int = 0) -> dict[int, bytes]:
    """UDP port to payload, for the scan of this key.

    Args:
        key: decides the identifiers; a scan's seed. The same key gives the same payloads.
    """
    return {port: sent for probe in PROBES for sent in [probe.payload(key)] for port in probe.ports}


def answers(port: int, payload: bytes, answer: bytes) -> bool | None:
    """Whether a datagram from a port is an answer to the known payload that was sent there.

    Any datagram shows that a port is open; this tells whether its service is the usual one, and
    whether it answered to us.

    Args:
        payload: as `payloads` gave it.

    Returns:
        None where nothing can be told: no payload is known for the port, or the protocol has no
        identifier.
    """
    probe = BY_PORT.get(port)
    return None if probe is None else probe.answers(payload, answer)
