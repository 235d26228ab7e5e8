"""What the tests of the ledger share: entries that are quickly made, and both kinds of ledger."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from nray.events.model import Environment
from nray.ledger.entries import Hits, NodeSeen, SliceDone
from nray.ledger.memory import MemoryLedger
from nray.ledger.sqlite import SqliteLedger

HIT = struct.Struct("<Q16sIBBBB")
LARGEST = 2**63 - 1


def packed(*places: int, address: int = 1) -> bytes:
    """Hits at these positions."""
    return b"".join(
        HIT.pack(place, address.to_bytes(16, "big"), 7, 64, 1, 1, 4) for place in places
    )


def places(data: bytes) -> list[int]:
    """Positions of packed hits."""
    return [HIT.unpack_from(data, at)[0] for at in range(0, len(data), HIT.size)]


def node(number: int = 1, **changes: object) -> NodeSeen:
    fields: dict[str, object] = {
        "node": number,
        "node_id": f"node-{number}",
        "name": "änne",
        "pool": 0,
        "identity": None,
        "instance": f"instance-{number}",
        "machine": "machine",
        "environment": Environment(hostname="host", pid=5),
        "ms": 1_700_000_000_000,
    }
    return NodeSeen(**(fields | changes))  # type: ignore[arg-type]


def hits(start: int, *at: int, pool: int = 0, segment: int = 0, address: int = 1) -> Hits:
    """Hits of the slice from ``start``, at these positions (none given: at its first)."""
    return Hits(1, pool, segment, start, 1234, packed(*(at or (start,)), address=address))


def done(start: int, count: int, *, pool: int = 0, segment: int = 0, **more: object) -> SliceDone:
    counts = (0, count, 0, 0, 0, 0, 0, 0, 0)
    return SliceDone(pool, segment, start, count, **({"counts": counts} | more))  # type: ignore[arg-type]


class MemoryKind:
    """Ledgers in memory; a killed one is found again as it was committed."""

    name = "memory"

    def __init__(self, directory: Path) -> None:
        pass

    def create(self, **options: object) -> MemoryLedger:
        return MemoryLedger(**({"scan": "abc", "settings": b"settings"} | options))  # type: ignore[arg-type]

    def reopened(self, ledger: MemoryLedger) -> MemoryLedger:
        return ledger.crash()

    killed = reopened


class SqliteKind:
    """Ledgers in files; a killed one is the files as they are at that moment."""

    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0

    def create(self, **options: object) -> SqliteLedger:
        self.count += 1
        defaults = {"scan": "abc", "settings": b"settings"}
        return SqliteLedger.create(self.directory / f"{self.count}.nray", **(defaults | options))  # type: ignore[arg-type]

    def reopened(self, ledger: SqliteLedger) -> SqliteLedger:
        ledger.close()
        return SqliteLedger.open(ledger.path)

    def killed(self, ledger: SqliteLedger) -> SqliteLedger:
        self.count += 1
        copy = self.directory / f"{self.count}.nray"
        for ending in ("", "-wal"):
            shutil.copyfile(ledger.path + ending, f"{copy}{ending}")
        opened = SqliteLedger.open(copy)
        ledger.close()
        return opened


KINDS = (MemoryKind, SqliteKind)
