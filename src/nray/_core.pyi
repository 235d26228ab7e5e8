"""The typed face of the compiled core; one section for each part of `_core.pyx`."""

from collections.abc import Mapping, Sequence

# ── space.pxi ───────────────────────────────────────────────────────────────────────────────

class Space:
    """The numbered probes of one segment, in the order of its key.

    A *position* counts in scan order, an *index* is ``host * ports + port``; the permutation
    maps the one to the other. Hosts are numbered IPv4 first, then IPv6, then names.

    Args:
        ranges4, ranges6: sorted, disjoint, inclusive (first, last) pairs, exclusions taken out.
        names: how many names follow the networks.
        ports: (protocol 6 or 17, port 1 to 65535) pairs.
        key: 16 bytes or more; decides the order.

    Raises:
        OverflowError: more than 2**63 probes.
        ValueError: ranges unsorted or out of bounds, no probe at all, key too short.
    """

    @property
    def hosts(self) -> int: ...
    @property
    def ports(self) -> int: ...
    @property
    def total(self) -> int: ...
    def __init__(
        self,
        ranges4: Sequence[tuple[int, int]],
        ranges6: Sequence[tuple[int, int]],
        names: int,
        ports: Sequence[tuple[int, int]],
        key: bytes,
    ) -> None: ...
    def index(self, position: int) -> int:
        """Index of the probe at a position. Raises IndexError outside of the space."""
    def position(self, index: int) -> int:
        """Position at which an index is probed: the inverse of `index`."""
    def at(self, position: int) -> tuple[int, int, int, int]:
        """(family 4, 6 or 0; address, or index of the name; protocol; port) at a position."""
    def listing(self, start: int, count: int, names: Sequence[str] = ()) -> bytes:
        """Lines ``host port/proto``, in scan order, of at most ``count`` probes from ``start``."""
    def decode(
        self, packed: bytes, exclusions: Exclusions
    ) -> list[tuple[int, int, str, int, int, int, int, int, int]]:
        """Hits of 32 bytes each as (position, name or -1, address text, protocol, port, state,
        reason, ttl, rtt in µs). Raises ValueError where a record contradicts this space."""

class Exclusions:
    """Addresses that must never be probed: sorted, disjoint, inclusive ranges."""

    def __init__(
        self, ranges4: Sequence[tuple[int, int]], ranges6: Sequence[tuple[int, int]]
    ) -> None: ...
    def covers(self, family: int, address: int) -> bool:
        """Whether an address is excluded; an IPv4-mapped IPv6 address counts as its IPv4 one."""

def _locate_benchmark(
    space: Space, start: int, count: int, exclusions: Exclusions | None = None
) -> tuple[float, int]:
    """(seconds, a sum of no meaning) for locating, and checking, ``count`` probes: for bench/."""

# ── policy.pxi ──────────────────────────────────────────────────────────────────────────────

class Policy:
    """What must not be probed from here, whoever asks for it.

    Args:
        refused: the addresses.
        ports: (protocol 6 or 17, first, last) of those that are allowed, inclusive.

    Raises:
        ValueError: there are no such ports.
    """

    def __init__(self, refused: Exclusions, ports: Sequence[tuple[int, int, int]]) -> None: ...
    def refuses(self, family: int, address: int, protocol: int, port: int) -> bool:
        """Whether a probe would be refused; an IPv4-mapped address counts as its IPv4 one."""

# ── bucket.pxi ──────────────────────────────────────────────────────────────────────────────

class Bucket:
    """A rate shared by the processes that map the same descriptor (a memfd of `BYTES`, zeroed).

    Raises:
        OSError: the memory cannot be mapped.
    """

    BYTES: int
    def __init__(self, fd: int) -> None: ...
    def set_rate(self, per_second: float) -> None:
        """Probes that may start each second; 0 for no limit. ValueError if negative."""
    @property
    def rate(self) -> float: ...
    def take(self, now_ns: int | None = None) -> int:
        """Take the next turn; when it is, ns of CLOCK_MONOTONIC."""

# ── hits.pxi ────────────────────────────────────────────────────────────────────────────────

#: Names by the code in a packed hit.
STATES: tuple[str, ...]
REASONS: tuple[str, ...]
HIT_BYTES: int
#: Python's struct format of one packed hit: position, address, rtt in µs, ttl, state, reason,
#: family.
HIT_FORMAT: str

# ── engine.pxi ──────────────────────────────────────────────────────────────────────────────

#: The longest payload of a UDP probe.
PAYLOAD_BYTES_MAX: int

class Engine:
    """The connect engine of one worker process: TCP connects and UDP datagrams.

    Args:
        bucket: the node's shared rate.
        control_fd: `pump` returns when it is readable; -1 for none.
        window: probes in flight at most; 0 grows to what descriptors allow.
        tcp_timeout_s, udp_timeout_s: how long an unanswered probe is waited for, seconds.
        states: names out of `STATES` that become hits; ``open`` always does.
        payload: what a UDP probe carries to a port without a payload of its own.
        payloads: UDP port to payload.
        udp_fast: leave UDP ports without an own payload out (counted as skipped).
        adaptive: give silent TCP probes up earlier where their network answers fast.
        policy: what it refuses is not sent, and counted as refused.

    Raises:
        OSError: no epoll descriptor can be had.
        ValueError: an argument is out of bounds.
    """

    paused: bool
    def __init__(
        self,
        bucket: Bucket,
        *,
        control_fd: int = -1,
        window: int = 0,
        tcp_timeout_s: float = 1.0,
        udp_timeout_s: float = 1.0,
        states: Sequence[str] = (),
        payload: bytes = b"nray",
        payloads: Mapping[int, bytes] | None = None,
        udp_fast: bool = False,
        adaptive: bool = False,
        policy: Policy | None = None,
    ) -> None: ...
    @property
    def pending(self) -> int: ...
    @property
    def slices_open(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def window_now(self) -> int: ...
    @property
    def sockets_open(self) -> int: ...
    def add_slice(
        self, lease: int, start: int, count: int, space: Space, exclusions: Exclusions | None
    ) -> None:
        """Queue ``count`` probes from position ``start``. ValueError, RuntimeError (too many)."""
    def add_names(
        self,
        lease: int,
        start: int,
        count: int,
        space: Space,
        exclusions: Exclusions | None,
        addresses: Mapping[int, Sequence[bytes]],
    ) -> None:
        """The same for a space of names; ``addresses``: index of a name to 4 or 16 bytes each."""
    def pump(self, seconds: float) -> bool:
        """Run for at most ``seconds``; earlier when there is something to tell or to fetch.

        Returns whether the control descriptor is readable.
        """
    def take(self) -> list[tuple[int, bytes, bool, tuple[int, ...], dict[str, int]]]:
        """What there is to report: (lease, packed hits, done, counts, errors) for each slice."""
