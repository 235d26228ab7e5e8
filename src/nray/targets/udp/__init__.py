"""UDP payloads, written from the protocols' specifications; see `table`."""

from __future__ import annotations

from typing import NamedTuple

#: What a datagram shows that is an answer, as `nray._core.Steps`.
Steps = tuple[tuple[int, int, int, int], ...]


class Questions(NamedTuple):
    """What UDP ports are asked, and by what an answer is known.

    Attributes:
        payloads: port to what it is sent first.
        checks: port to what an answer to that shows; without one nothing can be told.
        further: port to more of both, sent in turn while it is silent.
    """

    payloads: dict[int, bytes]
    checks: dict[int, Steps]
    further: dict[int, tuple[tuple[bytes, Steps], ...]]
