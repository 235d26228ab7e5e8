"""What is written into a ledger: every kind of entry, and the cursor of a sink.

Entries are made by the server and checked by `book` before anything is written. `Hits` and
`Registration` are the rows of the *journal*, which sinks follow; they are kept as they are, as
msgpack arrays. A field may be added at the end of one, with a default; no number or order of
fields may ever change, since a ledger may be older than the program that reads it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nray.events.model import Environment

#: Bytes of a packed hit (`nray._core.HIT_FORMAT`): its position is the first 8, little-endian.
RECORD_BYTES = 32
#: Of these, position and address: a hit's identity within its pool and segment.
IDENTITY_BYTES = 24

#: Positions, counts and times are below this: what a database holds as an integer.
INTEGER_MAX = 2**63 - 1
#: Pools and nodes are counted from 0 and 1; nobody has so many.
POOL_MAX = 2**31 - 1
#: Hits of one entry, bytes. A report's are below 1 MiB; this only keeps a row within reason.
HITS_BYTES_MAX = 16 * 1024 * 1024

#: Counts of a slice that has ended, in the order of the wire's ``Counts``: open, closed,
#: filtered, open|filtered, error, excluded, skipped, further addresses of names, refused.
COUNTS = 9

#: A reason among the errors of a slice that begins so is no error: it tells how many probes the
#: policy of the node whose name follows has refused.
REFUSED_BY = "refused-by:"


class NodeSeen(msgspec.Struct, frozen=True):
    """A node as events are to tell of it; under a known ``node`` it replaces what was there.

    Attributes:
        node: its number in this ledger, from 1; what rows of the journal name it by.
        node_id, name: as events call it.
        identity: the name in its verified certificate; None if it showed none.
        instance, machine: by which it is known again when it comes back.
        environment: what it told of itself; None where there is no remote node.
        ms: when, ms since 1970.
    """

    node: int
    node_id: str
    name: str
    pool: int
    identity: str | None
    instance: str
    machine: str
    environment: Environment | None
    ms: int


class Registration(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A row of the journal: a node has registered (ms since 1970)."""

    node: int
    ms: int


class Hits(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A row of the journal: hits of one open slice that were not written down before.

    Attributes:
        start: first position of the slice; the slice's `SliceDone` names the same.
        ms: when they came in, ms since 1970.
        packed: records of `RECORD_BYTES`, at least one.
        discovery: they tell of hosts that are there: counted apart, and no events.
    """

    node: int
    pool: int
    segment: int
    start: int
    ms: int
    packed: bytes
    discovery: bool = False


#: What `Ledger.read` gives.
Row = Hits | Registration


class SliceDone(msgspec.Struct, frozen=True):
    """A slice has ended; all its hits stand before this, in the same commit or an earlier one.

    Attributes:
        counts: see `COUNTS`.
        errors: why probes could not be sent, and how often; see `REFUSED_BY`.
        discovery: of a discovery segment, whose sums are kept apart.
    """

    pool: int
    segment: int
    start: int
    count: int
    counts: tuple[int, int, int, int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
    errors: dict[str, int] = {}
    discovery: bool = False


class SegmentAdded(msgspec.Struct, frozen=True):
    """A segment of the scan's space, packed (`nray.targets.segment`)."""

    number: int
    body: bytes


class SegmentsEnded(msgspec.Struct, frozen=True):
    """No more segments will come."""


class Cursor(msgspec.Struct, frozen=True):
    """How far a sink has come.

    Attributes:
        seq: it has written all rows of the journal up to this one; 0 for none.
        position: length of its file after that, bytes; 0 where there is no file.
    """

    seq: int
    position: int = 0


class CursorAt(msgspec.Struct, frozen=True):
    """A sink has come so far."""

    sink: str
    cursor: Cursor


class Finished(msgspec.Struct, frozen=True):
    """The scan is over: there is nothing left to resume."""


Entry = (
    NodeSeen | Registration | Hits | SliceDone | SegmentAdded | SegmentsEnded | CursorAt | Finished
)

_encoder = msgspec.msgpack.Encoder()
_rows = msgspec.msgpack.Decoder(list[Row])
_node = msgspec.msgpack.Decoder(NodeSeen)


def pack_rows(rows: list[Row]) -> bytes:
    """Rows of the journal as bytes."""
    return _encoder.encode(rows)


def unpack_rows(packed: bytes) -> list[Row]:
    """Rows from bytes. Raises `msgspec.MsgspecError` (a ValueError) for anything else."""
    return _rows.decode(packed)


def pack_node(node: NodeSeen) -> bytes:
    """A node as bytes. Raises ValueError for text that is no Unicode."""
    return _encoder.encode(node)


def unpack_node(packed: bytes) -> NodeSeen:
    """A node from bytes. Raises `msgspec.MsgspecError` (a ValueError) for anything else."""
    return _node.decode(packed)


def size(entry: Any) -> int:
    """Bytes of hits in an entry; what bounds of memory are reckoned by."""
    return len(entry.packed) if isinstance(entry, Hits) else 0
