"""The table: which UDP port is sent what, and whether an answer is one to it."""

from __future__ import annotations

from collections.abc import Collection

from nray.targets.udp import (
    Questions,
    Steps,
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

#: Other questions for ports that have one, asked in this order while the port is silent.
FURTHER: tuple[Probe, ...] = (*snmp.FURTHER, *vpn.FURTHER)

#: UDP port to the probe of its usual service.
BY_PORT: dict[int, Probe] = {port: probe for probe in PROBES for port in probe.ports}


def payloads(key: int = 0) -> dict[int, bytes]:
    """UDP port to payload, for the scan of this key.

    Args:
        key: decides the identifiers; a scan's seed. The same key gives the same payloads.
    """
    return {port: sent for probe in PROBES for sent in [probe.payload(key)] for port in probe.ports}


def questions(key: int = 0, ports: Collection[int] | None = None) -> Questions:
    """What the known ports are asked in the scan of this key.

    Args:
        ports: leave others out.
    """
    sent = {port: data for port, data in payloads(key).items() if ports is None or port in ports}
    checks = {port: BY_PORT[port].steps(data) for port, data in sent.items()}
    further: dict[int, tuple[tuple[bytes, Steps], ...]] = {}
    for probe in FURTHER:
        data = probe.payload(key)
        for port in sent.keys() & set(probe.ports):
            further[port] = (*further.get(port, ()), (data, probe.steps(data)))
    return Questions(sent, {port: steps for port, steps in checks.items() if steps}, further)


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
