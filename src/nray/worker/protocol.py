"""What a node and its worker processes say to each other over a socket pair.

Both ends are of one version and one machine, so this is plain: four bytes of length,
little-endian, then a msgpack array of a tagged union. The node's TLS peers never see it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from nray import _core

#: What `Configure` may hold as states; the first of the core's is no state.
STATES = _core.STATES[1:]
#: The longest payload of a UDP probe that `Configure` may hold.
PAYLOAD_BYTES_MAX = _core.PAYLOAD_BYTES_MAX
#: What an answer to a payload shows, and what is wrong with that, in words.
Steps = tuple[tuple[int, int, int, int], ...]
steps_fault = _core.steps_fault

#: Slices with probes not yet started that a worker likes to have: one that it works on and one
#: to go on with, so that it never waits for a round trip. It begins with this many wanted.
SLICES_AHEAD = 2

_LENGTH = struct.Struct("<I")


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """What this node's own policy refuses: addresses as `Space` has them, and the ports that it
    allows, as (protocol, first, last)."""

    refused4: bytes
    refused6: bytes
    ports: list[tuple[int, int, int]]


class Raw(msgspec.Struct, frozen=True, array_like=True):
    """How to send packets of one's own making: `_core.RawEngine` has the meaning of each.

    ``routes`` are (family, first, last, index in ``links``, source, gateway's MAC), addresses in
    big-endian bytes.
    """

    key: bytes
    shard: int
    shards: int
    retries: int
    links: list[tuple[int, str, bool, bytes, int]]
    routes: list[tuple[int, bytes, bytes, int, bytes, bytes]]
    xdp: bool = False
    samples: bool = False


class Configure(_Message, frozen=True, tag="configure"):
    """First of all: how to scan. Times in seconds; ``window`` 0 lets it grow. ``raw``: what spaces
    that ask for it need; None where there are none. ``host_rate``, ``network_rate``: this worker's
    share of what a host and a network may get, 0 for no cap. ``first_open``: a host is probed no
    further once an open port of it is known, here or by the set that the node shares with us."""

    window: int
    tcp_timeout_s: float
    udp_timeout_s: float
    states: tuple[str, ...]
    payload: bytes
    payloads: dict[int, bytes]
    udp_fast: bool
    adaptive: bool
    policy: Policy | None = None
    raw: Raw | None = None
    checks: dict[int, Steps] = {}
    further: dict[int, tuple[tuple[bytes, Steps], ...]] = {}
    sharers: int = 1
    tarpits: bool = False
    host_rate: float = 0.0
    network_rate: float = 0.0
    first_open: bool = False


class Space(_Message, frozen=True, tag="space"):
    """A segment's space. ``ranges`` and ``excluded`` are inclusive pairs, in big-endian bytes:
    4 for each IPv4, 16 for each IPv6 address; ``ports`` are (protocol, port) pairs. ``search`` is
    as `_core.Space` has it; ``raw``: its slices go out as packets of one's own."""

    segment: int
    ranges4: bytes
    ranges6: bytes
    names: int
    ports: list[tuple[int, int]]
    key: bytes
    excluded4: bytes
    excluded6: bytes
    search: int = 0
    raw: bool = False


class Slice(_Message, frozen=True, tag="slice"):
    """Probes to run: ``count`` positions from ``start``. ``addresses`` maps the index of each
    name in the slice to what it was resolved to, an empty address standing for a name that the
    policy refuses to look up; None for a space of networks."""

    lease: int
    segment: int
    start: int
    count: int
    addresses: dict[int, list[bytes]] | None = None


class Pause(_Message, frozen=True, tag="pause"):
    """Hold new probes back, or go on."""

    on: bool


class Neighbours(_Message, frozen=True, tag="neighbours"):
    """Who has which address: (index in ``Raw.links``, address, MAC; None: nobody answers)."""

    told: list[tuple[int, bytes, bytes | None]]


class Wonder(_Message, frozen=True, tag="wonder"):
    """From a worker: who has these? (index in ``Raw.links``, address) each."""

    wanted: list[tuple[int, bytes]]


class Unfit(_Message, frozen=True, tag="unfit"):
    """From a worker that cannot scan as it was told, whatever the slice; it ends."""

    why: str


class Note(_Message, frozen=True, tag="note"):
    """From a worker: what the node's user should know."""

    text: str


class Want(_Message, frozen=True, tag="want"):
    """From a worker: so many slices more, please (beyond the first `SLICES_AHEAD`)."""

    slices: int


class Found(_Message, frozen=True, tag="found"):
    """From a worker: packed hits of a slice; with ``done`` it has ended, and counts are set.
    ``drops`` are answers that this machine has lost so far."""

    lease: int
    hits: bytes
    done: bool
    counts: tuple[int, ...]
    errors: dict[str, int]
    sent: int
    drops: int = 0


class Alive(_Message, frozen=True, tag="alive"):
    """From a worker that has had nothing else to say for a while."""

    sent: int


class Started(_Message, frozen=True, tag="started"):
    """From a worker: it is there."""

    pid: int


ToWorker = Configure | Space | Slice | Pause | Neighbours
FromWorker = Want | Found | Alive | Started | Wonder | Unfit | Note

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def pack(message: ToWorker | FromWorker) -> bytes:
    """One message as it goes over the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Cuts a stream into messages, at either end."""

    def __init__(self, *, at_worker: bool) -> None:
        self._buffer = bytearray()
        self._at_worker = at_worker

    def feed(self, data: bytes) -> Iterator[ToWorker | FromWorker]:
        """The messages that are whole with ``data``."""
        buffer = self._buffer
        buffer += data
        start = 0
        decode = _to_worker.decode if self._at_worker else _from_worker.decode
        while len(buffer) - start >= 4:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start - 4 < size:
                break
            yield decode(memoryview(buffer)[start + 4 : start + 4 + size].tobytes())
            start += 4 + size
        del buffer[:start]


def range_bytes(ranges: list[tuple[int, int]], width: int) -> bytes:
    """Inclusive (first, last) pairs as bytes, ``width`` (4 or 16) for each address."""
    return b"".join(n.to_bytes(width, "big") for pair in ranges for n in pair)


def range_pairs(data: bytes, width: int) -> list[tuple[int, int]]:
    """The inverse of `range_bytes`."""
    if width == 4:
        flat = struct.unpack(f">{len(data) // 4}I", data)
    else:
        flat = tuple(int.from_bytes(data[i : i + 16], "big") for i in range(0, len(data), 16))
    return list(zip(flat[::2], flat[1::2], strict=True))
