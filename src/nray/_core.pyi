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
        ports: (protocol 6 or 17, port 1 to 65535) pairs; (1, 0) is an echo request, ICMP or
            ICMPv6 as the address has it, for `RawEngine` alone.
        key: 16 bytes or more; decides the order.
        search: 0 for the ports themselves. Else hosts are looked for: any answer ends its probe as
            open, and nothing else makes a hit. 1: by what answers; 2: on the local link by its
            address resolution, and only beyond it by probes; 3: on the local link alone. 2 and 3
            are for `RawEngine`, their reasons ``arp-response`` and ``nd-response``; to 3 its own
            addresses are there (``localhost-response``), others are errors (``not-on-link``).

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
        search: int = 0,
    ) -> None: ...
    def index(self, position: int) -> int:
        """Index of the probe at a position. Raises IndexError outside of the space."""
    def position(self, index: int) -> int:
        """Position at which an index is probed: the inverse of `index`."""
    def find(self, family: int, address: int, protocol: int, port: int) -> int | None:
        """Position of a probe, None where the space has no such; names are not looked into."""
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
        """Whether a probe would be refused; an IPv4-mapped address counts as its IPv4 one.

        An echo request (protocol 1, port 0) has no port: the addresses alone decide.
        """

# ── bucket.pxi ──────────────────────────────────────────────────────────────────────────────

class Bucket:
    """A rate shared by the processes that map the same descriptor (a memfd of `BYTES`, zeroed).

    Raises:
        OSError: the memory cannot be mapped.
    """

    BYTES: int
    def __init__(self, fd: int) -> None: ...
    def set_rate(self, per_second: float) -> None:
        """Probes that any second may hold at most; 0 for no limit. ValueError if negative."""
    @property
    def rate(self) -> float: ...
    def take(self, now_ns: int | None = None, count: int = 1) -> int:
        """Take the next turns; when the first is, ns of CLOCK_MONOTONIC."""
    def keep(self, at_ns: int, now_ns: int, count: int = 1) -> int | None:
        """Charge for turns, the first at ``at_ns``, that are used now and late.

        Returns when the first counts as having been; None if they are void.
        """
    def settle(self, at_ns: int, now_ns: int, count: int = 1) -> None:
        """Charge for probes that have left by now, if that was late, on turns from ``at_ns``."""
    def begin_stretch(self) -> int:
        """Begin a stretch of time whose samples (see `RawEngine`) are counted; its number."""
    def end_stretch(self) -> None:
        """No more samples until the next stretch begins."""
    def samples(self, stretch: int) -> tuple[int, int, int]:
        """Samples asked, answered and lost in one of the last 16 stretches."""
    @property
    def sent(self) -> int:
        """Packets sent by raw engines that were made with ``samples``."""
    @property
    def drops(self) -> int:
        """Answers that their rings had no room for."""

# ── caps.pxi ────────────────────────────────────────────────────────────────────────────────

class Caps:
    """What one host and one network (/24, or /64 of IPv6) get at most, for tests.

    Args:
        host_rate, network_rate: packets a second; 0 for no cap.
    """

    def __init__(self, host_rate: float, network_rate: float) -> None: ...
    def send(self, family: int, address: bytes, now: int, number: int) -> bool:
        """Whether a packet may leave at ``now`` (ns). If not it waits; OverflowError: no room."""
    def ready(self, now: int) -> int | None:
        """The number of one whose time has come, to be sent again; None if there is none."""
    @property
    def next_due(self) -> int | None:
        """When the first of those that wait is due."""

# ── hits.pxi ────────────────────────────────────────────────────────────────────────────────

#: Names by the code in a packed hit.
STATES: tuple[str, ...]
REASONS: tuple[str, ...]
HIT_BYTES: int
#: Python's struct format of one packed hit: position, address, rtt in µs, ttl, state, reason,
#: family.
HIT_FORMAT: str
#: The key among a slice's errors under which it says how many open ports it counted and did not
#: tell; see `Engine`.
WITHHELD: str
#: And how many probes it left out because an open port of their host was known.
SPARED: str

# ── hostset.pxi ─────────────────────────────────────────────────────────────────────────────

#: A host as it travels: its family (4 or 6), its address, and zeros behind one of IPv4.
HOST_BYTES: int

class HostSet:
    """A set of hosts that only grows, private or shared by the processes that map one descriptor.

    Args:
        fd: of at least `OFFSET` + `BYTES` of shared memory (a memfd), zeroed by its maker, who
            maps it first; -1 for a set of one's own. It may be closed afterwards.

    Of `HOSTS_MAX` hosts it is full, and takes no more: they are then as unknown as before.

    Raises:
        OSError: the memory cannot be mapped.
    """

    BYTES: int
    HOSTS_MAX: int
    OFFSET: int
    def __init__(self, fd: int = -1) -> None: ...
    def __len__(self) -> int:
        """Hosts in it; a few more where several processes put one in at the same moment."""
    def renew(self) -> None:
        """Begin anew, empty. Other processes must map it anew to see what comes."""
    def add(self, packed: bytes) -> None:
        """Put hosts in, `HOST_BYTES` each. ValueError: that is no host."""
    def has(self, packed: bytes) -> bool:
        """Whether one is in it."""
    def fresh(self, hits: bytes) -> bytes:
        """Packed hits without the open ones of hosts that are in it; puts those of the others in.

        Of a host that is new the first open hit stays. ValueError: they are no whole hits.
        """
    def packed(self, start: int, end: int) -> bytes:
        """The hosts put in as number ``start`` and up to ``end``, packed."""

# ── questions.pxi ───────────────────────────────────────────────────────────────────────────

#: The longest payload of a UDP probe.
PAYLOAD_BYTES_MAX: int
#: The most steps of a check, and payloads of a port.
STEPS_MAX: int
QUESTIONS_MAX: int

#: Kinds of steps, each with three numbers behind it:
#: the answer has at least a bytes;
STEP_LEAST: int
#: its byte a is c, in the bits b;
STEP_BYTE: int
#: its c bytes from b on are the payload's from a on;
STEP_SAME: int
#: its byte b is the payload's byte a, in the bits c;
STEP_BITS: int
#: the payload's b bytes from a on stand anywhere in it;
STEP_FIND: int
#: it is the payload itself, which otherwise is no answer;
STEP_WHOLE: int
#: all steps so far hold, or those that follow;
STEP_ELSE: int
#: nothing to compare: of the payload, b bytes (1 to 8) from a on may be replaced by the sender.
STEP_OWN: int

#: What a datagram shows that is an answer: (kind, a, b, c) each, numbers below 65536.
Steps = Sequence[tuple[int, int, int, int]]

def steps_fault(payload: bytes, steps: Steps) -> str:
    """What is wrong with the steps for answers to this payload, in words; empty if nothing."""

def answers(payload: bytes, steps: Steps, answer: bytes) -> bool | None:
    """Whether a datagram is an answer; None if the steps have nothing to tell by."""

# ── engine.pxi ──────────────────────────────────────────────────────────────────────────────

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
        checks: UDP port to what an answer to its payload shows. A datagram that does not makes a
            port open, too: ``unexpected-response``.
        further: UDP port to (payload, check) each, asked in turn while the port is silent.
        udp_fast: leave UDP ports without an own payload out (counted as skipped).
        adaptive: give silent TCP probes up earlier where their network answers fast.
        policy: what it refuses is not sent, and counted as refused.
        host_rate, network_rate: probes a second to one host, to one network (/24, or /64 of IPv6)
            at most, of this engine; 0 for no cap. What is beyond waits.
        sharers: how many engines ask the same hosts at once.
        tarpits: tell once of a host on which every TCP port answers, not of each of its ports.
            In spaces of at least 16 TCP ports a host's first open port is held back while three
            ports are probed that hardly anybody has open. Of a host that answers there, too, a
            slice has one hit (open, reason ``tarpit``, at the position of one of its open ports),
            and its open ports are counted open, without hits; how many, `take` says under
            `WITHHELD` among the errors.
        shown: hosts of which an open port is known; None to probe all. These it asks no more, nor
            in the same slice those of which it has found one itself: what it had not sent is
            counted as skipped (how much, `take` says under `SPARED` among the errors), what it
            had, and nobody answered, as silent. The questions of ``tarpits`` are asked all the
            same. It adds nothing to the set: its maker does, once the hits are safe.

    Hosts that send only so many ICMP errors a second are asked about their silent UDP ports again,
    at a pace that they bear, for at most a minute (see limited.h); so does `RawEngine`, with all of
    its shards.

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
        checks: Mapping[int, Steps] | None = None,
        further: Mapping[int, Sequence[tuple[bytes, Steps]]] | None = None,
        udp_fast: bool = False,
        adaptive: bool = False,
        policy: Policy | None = None,
        sharers: int = 1,
        tarpits: bool = False,
        host_rate: float = 0,
        network_rate: float = 0,
        shown: HostSet | None = None,
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

# ── raw.pxi ─────────────────────────────────────────────────────────────────────────────────

class RawEngine:
    """The raw engine of one worker process: TCP SYN, UDP and echo request as packets of its own.

    Its face to a worker is `Engine`'s. It opens its sockets in the network namespace that it is
    made in, and needs CAP_NET_RAW.

    Args:
        bucket: the node's shared rate; every packet takes a turn, those of retries too.
        control_fd: `pump` returns when it is readable; -1 for none.
        key: 16 bytes, secret, the same for all engines of a scan that may take each other's slices
            over: whoever knows it can forge answers.
        shard, shards: this engine and how many share the source ports (`source_ports`).
        links: (interface index, name, whether frames are Ethernet's, own link-layer address or
            ``b""``, MTU). Over a link without Ethernet (lo, tun, WireGuard) packets leave by raw
            IP sockets, and the kernel chooses the way by itself.
        routes: (family, first, last, index in ``links``, own address, link-layer address of the
            gateway), each family's sorted and disjoint, addresses as numbers and inclusive. Over
            Ethernet, ``b""`` as gateway says that the targets are neighbours. A target without a
            route ends as an error, ``no-route-from-here``.
        tcp_timeout_s, udp_timeout_s: how long silence is waited for after the last pass, seconds.
        retries: further passes over what is silent, 0 to 100.
        host_rate, network_rate, states, payload, payloads, udp_fast, policy, tarpits, shown: as
            `Engine`. Samples go to hosts that need no more probes, too.
        samples: while a stretch of ``bucket`` goes on, probe some ports that have answered again,
            from half of the source ports, and tell the bucket what became of it. What is sent,
            and answers without room, are told it, too.
        checks, further: as `Engine`, but each pass asks one question, and a datagram that shows
            nothing of what was asked is not believed: the port counts as silent, with the reason
            ``unexpected-response``. Where a payload has room for it (`STEP_OWN`) each target gets
            an identifier of its own.
        xdp: let Ethernet frames leave by AF_XDP, from the device's queue numbered as the shard;
            where that cannot be had (`no_xdp`) they leave as without. Frames that a device drops
            then count as sent, and captures on this machine do not show them.

    States and reasons: SYN-ACK is open (``syn-ack``), RST closed (``reset``); any ICMP error about
    a SYN is filtered with its reason, port unreachable too, as nmap has it; about UDP that one is
    closed (``port-unreach``). An echo reply is open (``echo-reply``), an ICMP error about the
    request filtered. Silence is filtered, over UDP open|filtered (``no-response``). A
    neighbour that does not answer is filtered (``host-unreach``), as it is for `Engine`. A packet
    that the kernel does not take for a second is an error.

    Raises:
        PermissionError: this process may not open raw sockets.
        OSError: sockets or the ring of answers cannot be had.
        ValueError: an argument is out of bounds.
    """

    paused: bool
    def __init__(
        self,
        bucket: Bucket,
        *,
        control_fd: int = -1,
        key: bytes,
        shard: int = 0,
        shards: int = 1,
        links: Sequence[tuple[int, str, bool, bytes, int]],
        routes: Sequence[tuple[int, int, int, int, bytes, bytes]],
        tcp_timeout_s: float = 1.0,
        udp_timeout_s: float = 1.0,
        retries: int = 1,
        states: Sequence[str] = (),
        payload: bytes = b"nray",
        payloads: Mapping[int, bytes] | None = None,
        checks: Mapping[int, Steps] | None = None,
        further: Mapping[int, Sequence[tuple[bytes, Steps]]] | None = None,
        udp_fast: bool = False,
        policy: Policy | None = None,
        xdp: bool = False,
        samples: bool = False,
        tarpits: bool = False,
        host_rate: float = 0,
        network_rate: float = 0,
        shown: HostSet | None = None,
    ) -> None: ...
    @property
    def no_xdp(self) -> Mapping[int, int]:
        """Why links are not served by AF_XDP although asked for: index in ``links`` to errno."""
    @property
    def pending(self) -> int: ...
    @property
    def slices_open(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def drops(self) -> int:
        """Packets that found no room in the rings: answers may be among them."""
    @property
    def duplicates(self) -> int:
        """Answers to probes that had been answered before."""
    @property
    def send_failures(self) -> int:
        """Packets of retries that could not be sent; those of first passes are errors."""
    @property
    def source_ports(self) -> tuple[int, int]:
        """The first and the last port that probes of this engine leave from."""
    def neighbours_wanted(self) -> list[tuple[int, bytes]]:
        """(index in ``links``, packed address) of targets whose link-layer address is needed.

        Each is told once; `pump` returns early when there are such. Their probes wait for
        `set_neighbour`, for 3 s at most.
        """
    def set_neighbour(self, link_index: int, address: bytes, mac: bytes | None) -> None:
        """Say a neighbour's link-layer address, None for one that does not answer.

        It may be said unasked, and again when it changes. ValueError for what is no address.
        """
    def add_slice(
        self, lease: int, start: int, count: int, space: Space, exclusions: Exclusions | None
    ) -> None:
        """As `Engine.add_slice`; ValueError, too, for more than 2**28 probes."""
    def add_names(
        self,
        lease: int,
        start: int,
        count: int,
        space: Space,
        exclusions: Exclusions | None,
        addresses: Mapping[int, Sequence[bytes]],
    ) -> None: ...
    def pump(self, seconds: float) -> bool: ...
    def take(self) -> list[tuple[int, bytes, bool, tuple[int, ...], dict[str, int]]]: ...

class _Limits:
    def __init__(self, timeout: int, sharers: int = 1) -> None: ...
    def note(self, addr: bytes, port: int) -> bool: ...
    def push(self, addr: bytes, token: int, now: int) -> bool: ...
    def settle(self, now: int) -> int | None: ...
    def take(self, now: int, keep: bool, until: int = 0) -> tuple[str, bytes, int] | None: ...
    def spaced(self, every: int) -> None: ...
    def drop(self, upper: int) -> int: ...
    @property
    def wake(self) -> int: ...
    @property
    def hosts_waiting(self) -> int: ...

def _siphash(key: bytes, data: bytes) -> int: ...
def _raw_filter(family: int, first: int, last: int) -> list[tuple[int, int, int, int]]: ...
def _raw_frame(
    protocol: int,
    source: bytes,
    target: bytes,
    own_mac: bytes,
    next_mac: bytes,
    mtu: int,
    dport: int,
    key: bytes,
    payload: bytes = b"",
    first: int = 61440,
    width: int = 4096,
) -> bytes: ...
def _raw_answer(key: bytes, packet: bytes) -> tuple[str, int, bytes, int, int, int, int] | None: ...
def keep_capabilities(keep: int) -> None:
    """Give up all capabilities but these, in every set, for good; set no_new_privs. OSError.

    For the calling thread and those that it starts later.
    """

def refuse_dumps() -> None:
    """Neither core dumps of this process nor ptrace by its own user. OSError."""

def _raw_costs(engine: RawEngine, space: Space, count: int) -> tuple[float, float, float]: ...
def _raw_fill_benchmark(engine: RawEngine) -> tuple[float, int]: ...
