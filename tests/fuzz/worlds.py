"""What is scanned while a peer misbehaves: small spaces, one of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import msgspec

from nray.targets.plan import plan
from nray.targets.segment import Segment
from nray.wire.messages import Settings

#: Probes of a slice, always: then the leases of a talk do not depend on how fast anybody was.
SLICE: Final = 64


#: What stands in each of `unlike_defaults` that is neither a truth value nor a number.
_QUESTION = b"\x12\x34what is it?"
_STEPS = ((0, 0, 0, 2),)
_OTHERS: Final[dict[str, Any]] = {
    "udp_payload": b"other",
    "udp_payloads": {53: _QUESTION, 161: b"x"},
    "udp_checks": {53: _STEPS},
    "udp_further": {53: ((b"again", ()), (_QUESTION, _STEPS))},
    "states": ("closed", "filtered"),
    "tcp_method": "syn",
}


def unlike_defaults(**changes: Any) -> Settings:
    """Settings of which each differs from its default, so that all of them are mutated; those
    that are added to the program, too, where they are truth values or numbers."""
    told: dict[str, Any] = {}
    for each in msgspec.structs.fields(Settings):
        if each.type is bool:
            told[each.name] = not each.default
        elif each.type in (int, float):
            told[each.name] = each.default + 2
        else:
            told[each.name] = _OTHERS[each.name]
    return Settings(**(told | changes))


@dataclass(frozen=True)
class World:
    """Segments, how many pools scan them, and how."""

    segments: tuple[Segment, ...]
    pools: int = 1
    settings: Settings = field(default_factory=Settings)

    @property
    def searched(self) -> bool:
        """Whether hosts are looked for first."""
        return any(each.search for each in self.segments)


def _segments(
    targets: Sequence[str],
    tcp: str = "1-10",
    udp: str = "",
    exclude: Sequence[str] = (),
    discovery: str = "none",
) -> tuple[Segment, ...]:
    made = plan(targets, tcp=tcp, udp=udp or (), seed=1, exclude=exclude, discovery=discovery)
    return tuple(made.segments)


@cache
def worlds() -> dict[str, World]:
    """All of them, by name."""
    hosts = [f"host-{number}.invalid" for number in range(30)]
    return {
        "v4": World(_segments(["198.18.0.0/24"])),
        "v6": World(_segments(["2001:db8::/120"], udp="53", exclude=["2001:db8::80/123"]), pools=2),
        "names": World(_segments(hosts, "1-20", exclude=["198.18.0.0/16", "no.invalid"])),
        "wide": World(_segments(["2001:db8::/80"])),
        # By connecting; but hosts are pinged, so that workers of both kinds are there.
        "pinged": World(
            _segments(["198.18.4.0/25", "2001:db8::/123"], "1-30", discovery="ping"),
            settings=unlike_defaults(tcp_method="connect"),
        ),
        "searched": World(
            _segments(["198.18.5.0/25", *hosts[:5]], "1-4", "53", discovery="auto"),
            settings=unlike_defaults(),
        ),
        "mixed": World(_segments(["198.18.3.0/26", "2001:db8::/122", *hosts[:9]], "22,80,443")),
    }
