"""Whose policy refused how many probes: kept with the reasons why probes were not sent.

A node tells how many (`nray.wire.messages.Counts`), the server knows who it is: it writes the count
down under a reason of its own, which no node can make up for another.
"""

from __future__ import annotations

from collections.abc import Mapping

from nray.config.errors import printable
from nray.ledger.entries import REFUSED_BY
from nray.targets.findings import SPARED, WITHHELD

#: Characters of a node's name, as its registration may hold.
_NAME_CHARS_MAX = 32


def attribute(errors: Mapping[str, int], refused: int, name: str) -> dict[str, int]:
    """The errors of a report as they are written down; ``name`` is the node's."""
    kept = {reason: count for reason, count in errors.items() if not reason.startswith(REFUSED_BY)}
    if refused:
        # What a node calls itself goes to a terminal.
        kept[REFUSED_BY + printable(name, _NAME_CHARS_MAX)] = refused
    return kept


def by_node(errors: Mapping[str, int]) -> dict[str, int]:
    """How many probes each node has refused, by its name."""
    start = len(REFUSED_BY)
    return {
        reason[start:]: count for reason, count in errors.items() if reason.startswith(REFUSED_BY)
    }


def others(errors: Mapping[str, int]) -> dict[str, int]:
    """The reasons why probes were not sent that are no refusals."""
    kept = attribute(errors, 0, "")
    kept.pop(WITHHELD, None)
    kept.pop(SPARED, None)
    return kept
