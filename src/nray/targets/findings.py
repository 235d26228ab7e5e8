"""Packed hits made readable again, where results are written down.

A hit is 32 bytes (`_core.HIT_FORMAT`): position, address, round trip, ttl, state, reason, family.
The position alone says target and port, so a node cannot report what it was not asked to probe;
the address says which of a name's addresses answered.
"""

from __future__ import annotations

from typing import Final

import msgspec

from nray import _core
from nray.targets.ports import PROTOCOL_NAMES
from nray.targets.segment import Segment

#: A finding with this reason is about a host: each of its ports answers, so none of them is told
#: (`core/tarpits.pxi`).
TARPIT: Final = "tarpit"
#: Its number in a packed hit.
TARPIT_NUMBER: Final = _core.REASONS.index(TARPIT)
#: The key among a slice's errors that is no error: how many open ports it counted and did not tell.
WITHHELD: Final = _core.WITHHELD

#: And how many probes it left out because an open port of their host was known.
SPARED: Final = _core.SPARED
#: Hosts of which an open port is known.
HostSet = _core.HostSet


class Finding(msgspec.Struct, frozen=True, gc=False):
    """How one probe ended.

    Attributes:
        position: of the probe in its segment, in scan order.
        target: the name where one was scanned, else the address.
        address: what was probed, as text; empty if a name did not resolve.
        port: 1 to 65535.
        protocol: ``tcp`` or ``udp``.
        state: one of `_core.STATES`.
        reason: one of `_core.REASONS`.
        ttl: of the answer, 0 if unknown.
        rtt_ms: round trip in milliseconds, 0 if nothing answered.
    """

    position: int
    target: str
    address: str
    port: int
    protocol: str
    state: str
    reason: str
    ttl: int
    rtt_ms: float


def check(segment: Segment, packed: bytes) -> None:
    """Raises what `expand` would raise, in a third of its time.

    Raises:
        ValueError: see `expand`.
    """
    states, reasons = len(_core.STATES), len(_core.REASONS)
    segment.space.decode(packed, segment.exclusions)
    # Byte 29 of a record is its state, byte 30 its reason.
    seen_states, seen_reasons = set(packed[29::32]), set(packed[30::32])
    if not all(0 < state < states for state in seen_states):
        raise ValueError(f"unknown state among {sorted(seen_states)}")
    if not all(reason < reasons for reason in seen_reasons):
        raise ValueError(f"unknown reason among {sorted(seen_reasons)}")


def expand(segment: Segment, packed: bytes) -> list[Finding]:
    """Findings from packed hits, in their order.

    Raises:
        ValueError: a hit cannot come from this segment: its length, its position, an address
            that is not the one there, an excluded address for a name, an unknown state or reason.
    """
    names = segment.names
    states, reasons = _core.STATES, _core.REASONS
    findings = []
    for record in segment.space.decode(packed, segment.exclusions):
        position, name, address, protocol, port, state, reason, ttl, rtt_us = record
        if not 0 < state < len(states) or reason >= len(reasons):
            raise ValueError(f"hit at {position}: unknown state {state} or reason {reason}")
        findings.append(
            Finding(
                position,
                names[name] if name >= 0 else address,
                address,
                port,
                PROTOCOL_NAMES[protocol],
                states[state],
                reasons[reason],
                ttl,
                rtt_us / 1000,
            )
        )
    return findings
