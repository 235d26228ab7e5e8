"""Every message that passes between a server and a node, and nothing else.

A message is a msgspec struct of a tagged union, written as a msgpack map whose key ``type``
holds the tag; unknown fields are ignored, so that a field may be added within one protocol
version. `framing` puts them on a stream, `states` says who may send what, and when.

Hits and segments travel as opaque bytes: packed by `nray._core` and `nray.targets`, which this
room does not know.
"""

from __future__ import annotations

import msgspec

from nray.events.model import Environment as Environment

#: What a datagram shows that is an answer: a kind and three numbers each.
Steps = tuple[tuple[int, int, int, int], ...]

#: Raised whenever an older peer would misread a message. Both ends must name the same one.
PROTOCOL_VERSION = 1


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of all messages."""


# ── server to node ──────────────────────────────────────────────────────────────────────────


class Welcome(Message, frozen=True, tag="welcome"):
    """The first frame of a server: the peer is verified and may register."""

    protocol: int
    server_version: str


class Refused(Message, frozen=True, tag="refused"):
    """The last frame of a server to a peer it does not want.

    ``reason`` is one of a small set (see `Reason`); ``detail`` is one sentence for a person.
    ``retry`` says whether trying again later can help (a second node of one machine: yes).
    """

    reason: str
    detail: str = ""
    retry: bool = False


class Settings(msgspec.Struct, frozen=True):
    """How a node is to scan: the server's ``scannerconfig``, defaults filled in.

    Attributes:
        workers: probes in flight in a node; 0 lets the window grow to what the machine bears.
        ratelimit: probes that a node starts in any second at most; 0 is no limit.
        ratelimit_auto: with ``syn``, `ratelimit` is but a cap: the node finds the rate that its
            path bears.
        host_rate: probes a second of a node to one host at most; 0 is no cap.
        network_rate: the same for one network, a /24 or a /64 of IPv6.
        tcp_timeout_ms: how long an unanswered TCP probe is waited for, milliseconds.
        udp_timeout_ms: the same for UDP.
        adaptive: wait less long for hosts whose neighbours answer fast.
        udp_fast: probe only UDP ports for which a payload is known.
        udp_payload: sent to a UDP port without a payload of its own.
        udp_payloads: port to payload: the known ones, over which those of the user win.
        udp_checks: port to what an answer to its payload shows, in steps of `nray._core`.
        udp_further: port to (payload, check) each, sent in turn while the port is silent.
        states: which states are reported as hits besides open (``closed``, ``filtered``, …).
        tcp_method: how TCP ports are probed: ``connect``, or ``syn`` (packets of our own).
        retries: with packets of our own, how often what is silent is probed again.
        pings: hosts are looked for by echo requests, ARP or neighbour discovery: packets of our
            own, whatever ``tcp_method`` is.
        tarpits: tell once of a host on which every TCP port answers, not of each of its ports.
        first_open: probe a host no further once an open port of it is known.
    """

    workers: int = 0
    ratelimit: float = 0.0
    ratelimit_auto: bool = False
    host_rate: float = 0.0
    network_rate: float = 0.0
    tcp_timeout_ms: int = 2500
    udp_timeout_ms: int = 2500
    adaptive: bool = False
    udp_fast: bool = False
    udp_payload: bytes = b"nray"
    udp_payloads: dict[int, bytes] = {}
    udp_checks: dict[int, Steps] = {}
    udp_further: dict[int, tuple[tuple[bytes, Steps], ...]] = {}
    states: tuple[str, ...] = ()
    tcp_method: str = "connect"
    retries: int = 1
    pings: bool = False
    tarpits: bool = False
    first_open: bool = False


class Registered(Message, frozen=True, tag="registered"):
    """The node is in: its identity, the server's clock (ms since the epoch) and the settings."""

    node_id: str
    pool: int
    server_time_ms: int
    heartbeat_s: float
    settings: Settings
    #: The same for all of one scan, also after the server was started again: a node that comes
    #: back to another scan drops what it has of the old one.
    scan: str = ""


class Segment(Message, frozen=True, tag="segment"):
    """A segment of the scan's space, packed by `nray.targets`; sent before its first lease."""

    segment: int
    body: bytes


class Lease(Message, frozen=True, tag="lease"):
    """A slice for this node to scan. ``lease`` is the fencing number, never given twice."""

    lease: int
    segment: int
    start: int
    count: int


class Ack(Message, frozen=True, tag="ack"):
    """The server has all reports up to and including ``report``; the node may forget them."""

    report: int


class Pulse(Message, frozen=True, tag="pulse"):
    """Answer to a heartbeat: ``pause`` holds new probes back until a later pulse says otherwise."""

    pause: bool = False


class Shown(Message, frozen=True, tag="shown"):
    """Hosts of the node's pool of which an open port is known, and safe: with
    `Settings.first_open` they need no more probes. Packed by `nray._core`, 17 bytes each: family
    (4 or 6) and address, zeros behind one of IPv4."""

    hosts: bytes


class Stop(Message, frozen=True, tag="stop"):
    """No more work: ``done`` if the scan is finished, else the server gave up (Ctrl+C).

    The node drops what it has not begun, reports what it has, says `Bye` and closes.
    """

    done: bool
    detail: str = ""


# ── node to server ──────────────────────────────────────────────────────────────────────────


class Register(Message, frozen=True, tag="register"):
    """The first frame of a node.

    Attributes:
        protocol: the version that this node speaks.
        machine_id: the same for every node of one machine.
        instance: random for each node process, and kept over reconnects: by it a server knows
            its own node again.
        name: the name that the node gives itself, at most 32 characters.
        preferred_pool: -1 for none.
        processes: worker processes it will keep busy.
        leases: of this server's, those whose end the node has not yet reported. Empty at first;
            after a reconnect the server gives to others what was lost on the way.
        policy: what the node's own policy allows, in words for a person; empty without one.
        methods: values of ``Settings.tcp_method`` that the node knows. One that does not would
            pass the field over and connect where it should not: a server does not let it in.
            ``discovery`` is among them where the node knows segments by which hosts are found,
            ``first-open`` where it knows `Shown`.
    """

    protocol: int
    node_version: str
    machine_id: str
    instance: str
    name: str
    preferred_pool: int
    processes: int
    environment: Environment
    leases: tuple[int, ...] = ()
    policy: str = ""
    methods: tuple[str, ...] = ("connect",)


class Ask(Message, frozen=True, tag="ask"):
    """Ready for ``leases`` more slices than were asked for before."""

    leases: int


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """How many probes of a report ended in which state; ``addresses`` are further addresses of
    names, which cost probes beyond the slice's count. ``refused`` are those that the node's own
    policy kept it from sending."""

    open: int = 0
    closed: int = 0
    filtered: int = 0
    open_filtered: int = 0
    error: int = 0
    excluded: int = 0
    skipped: int = 0
    addresses: int = 0
    refused: int = 0


class Report(Message, frozen=True, tag="report"):
    """What a slice has brought since its last report.

    ``report`` numbers the reports of a node from 1 without gaps; ``done`` ends the slice, and
    only then ``counts`` is set. ``hits`` are packed records of `nray._core`.
    """

    report: int
    lease: int
    hits: bytes = b""
    done: bool = False
    counts: Counts = Counts()
    #: Why probes ended as errors, with how often: for people, not for machines.
    errors: dict[str, int] = {}


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Alive. ``sent`` counts probes started since registration."""

    sent: int = 0


class Bye(Message, frozen=True, tag="bye"):
    """The node ends of its own will: its open slices may go to others at once."""

    detail: str = ""


ServerMessage = Welcome | Refused | Registered | Segment | Lease | Ack | Pulse | Shown | Stop
NodeMessage = Register | Ask | Report | Heartbeat | Bye
