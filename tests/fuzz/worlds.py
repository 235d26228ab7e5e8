"""What is scanned while a peer misbehaves: small spaces, one of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from nray.targets.plan import plan
from nray.targets.segment import Segment

#: Probes of a slice, always: then the leases of a talk do not depend on how fast anybody was.
SLICE: Final = 64


@dataclass(frozen=True)
class World:
    """Segments, and how many pools scan them."""

    segments: tuple[Segment, ...]
    pools: int = 1


def _segments(
    targets: Sequence[str], tcp: str = "1-10", udp: str = "", exclude: Sequence[str] = ()
) -> tuple[Segment, ...]:
    return tuple(plan(targets, tcp=tcp, udp=udp or (), seed=1, exclude=exclude).segments)


@cache
def worlds() -> dict[str, World]:
    """All of them, by name."""
    hosts = [f"host-{number}.invalid" for number in range(30)]
    return {
        "v4": World(_segments(["198.18.0.0/24"])),
        "v6": World(_segments(["2001:db8::/120"], udp="53", exclude=["2001:db8::80/123"]), pools=2),
        "names": World(_segments(hosts, "1-20", exclude=["198.18.0.0/16", "no.invalid"])),
        "wide": World(_segments(["2001:db8::/80"])),
        "mixed": World(_segments(["198.18.3.0/26", "2001:db8::/122", *hosts[:9]], "22,80,443")),
    }
