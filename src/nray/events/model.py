"""The event model: what one line of output says.

An event is one JSON object. Its field names and their order are those of the first nray, so
that people's `jq` lines go on working; what we add stands beside them, never instead:
``result.address``, ``result.portscan.state``/``reason``/``ttl``/``rtt``, and ``pool`` and
``identity`` at the top. Parts that an event does not have are left out of the object.

This module promises that `encode_lines` writes one whole line an event, in the order given,
and it never reads a clock: times are arguments.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

STATE_OPEN: Final = "open"
STATE_CLOSED: Final = "closed"
STATE_FILTERED: Final = "filtered"
STATE_OPEN_FILTERED: Final = "open|filtered"
STATE_ERROR: Final = "error"

# What each state says. An *error* is never an event unless asked for: it tells of this machine.
STATES: Final[dict[str, str]] = {
    STATE_OPEN: "something answered as a service would",
    STATE_CLOSED: "the target refused: RST, or ICMP port unreachable",
    STATE_FILTERED: "no answer in time, or ICMP said that something on the path forbids it",
    STATE_OPEN_FILTERED: "UDP silence: open and quiet, or filtered",
    STATE_ERROR: "this machine could not send the probe; says nothing about the target",
}

# Reasons for a state, in nmap's words where it has one: those of the core that a port can have.
# docs/events.md lists the same (tests compare all three).
REASONS: Final[dict[str, str]] = {
    "syn-ack": "TCP handshake answered",
    "udp-response": "a datagram came back, an answer as far as its protocol can tell",
    "unexpected-response": "a datagram came back, and was no answer to what was asked",
    "conn-refused": "connect() was refused (an RST seen through the socket)",
    "reset": "an RST was seen on the wire",
    "no-response": "nothing came back before the timeout",
    "port-unreach": "ICMP port unreachable",
    "host-unreach": "ICMP host unreachable, ICMPv6 address unreachable, or a silent neighbour",
    "net-unreach": "ICMP network unreachable",
    "no-route": "ICMPv6 no route to destination",
    "proto-unreach": "ICMP protocol unreachable",
    "beyond-scope": "ICMPv6 beyond scope of source address",
    "reject-route": "ICMPv6 reject route to destination",
    "admin-prohibited": "ICMP or ICMPv6: communication administratively prohibited",
    "host-prohibited": "ICMP: host administratively prohibited",
    "net-prohibited": "ICMP: network administratively prohibited",
    "dest-unreach": "ICMP destination unreachable with another code",
    "time-exceeded": "ICMP time exceeded on the way",
    "param-problem": "ICMP or ICMPv6: parameter problem",
    "no-route-from-here": "this machine has no route, or its link is down",
    "forbidden-here": "this machine does not allow it: its firewall, or a broadcast address",
    "connects-to-itself": "a connection reached only itself",
    "name-not-resolved": "the name could not be resolved",
    "out-of-descriptors": "this machine ran out of file descriptors",
    "out-of-buffers": "this machine ran out of memory for sockets",
    "out-of-local-ports": "this machine ran out of local ports",
    "local-error": "a socket call failed on this machine",
}

SCANTYPE_TCP_CONNECT: Final = "tcpconnect"
SCANTYPE_TCP_SYN: Final = "tcpsyn"
SCANTYPE_UDP: Final = "udp"
SCANNER_PORTS: Final = "native-portscanner"
SCANNER_ENVIRONMENT: Final = "node_environment"


class Environment(msgspec.Struct, frozen=True, gc=False):
    """What a node tells of itself when it registers. Text of an unverified peer: never trust it."""

    hostname: str = ""
    os: str = ""
    pid: int = 0
    processname: str = ""
    username: str = ""
    cpumodelname: str = ""


class PortScan(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one probe; units: `timeout` and `rtt` in milliseconds, `ttl` in hops."""

    target: str
    port: int
    open: bool
    scantype: str
    timeout: int
    state: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    ttl: int | UnsetType = UNSET
    rtt: float | UnsetType = UNSET


class ZgrabScan(msgspec.Struct, frozen=True, gc=False):
    """What an application-layer module found; the shape of `jsonResult` is the module's own."""

    jsonResult: dict[str, Any]


class Tarpit(msgspec.Struct, frozen=True, gc=False):
    """A host on which every port answers; units as in `PortScan`."""

    scantype: str
    timeout: int
    ttl: int | UnsetType = UNSET
    rtt: float | UnsetType = UNSET


class Result(msgspec.Struct, frozen=True, gc=False):
    """A finding: exactly one of `portscan`, `zgrabscan` and `tarpit` is there.

    `target` is what the user wrote (a name stays the name); `address` is always the address. A
    `tarpit` is about the host and has no `port`.
    """

    target: str
    port: int | UnsetType = UNSET
    portscan: PortScan | UnsetType = UNSET
    zgrabscan: ZgrabScan | UnsetType = UNSET
    address: str | UnsetType = UNSET
    tarpit: Tarpit | UnsetType = UNSET


class Event(msgspec.Struct, frozen=True, gc=False):
    """One line of output: who saw it, when (server's clock, UTC), and a result or environment."""

    nodeID: str
    nodeName: str
    timestamp: str
    scannername: str
    result: Result | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    pool: int | UnsetType = UNSET
    identity: str | UnsetType = UNSET


@lru_cache(maxsize=4096)  # an hour of seconds: the events of one moment share theirs
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def timestamp(ms_since_epoch: int) -> str:
    """Milliseconds since 1970 (UTC) as text: ``2026-01-02T03:04:05.123Z``."""
    second, ms = divmod(ms_since_epoch, 1000)
    return f"{_second_text(second)}.{ms:03d}Z"


def port_event(
    *,
    node_id: str,
    node_name: str,
    timestamp_ms: int,
    target: str,
    address: str,
    port: int,
    state: str,
    reason: str,
    timeout_ms: int,
    scantype: str = SCANTYPE_TCP_CONNECT,
    ttl: int | None = None,
    rtt_us: int | None = None,
    pool: int = 0,
    identity: str | None = None,
) -> Event:
    """The event of one probed port.

    Args:
        timestamp_ms: when the answer (or the silence) was noted: ms since 1970, server's clock.
        target: as the user wrote it; `address` is what the probe was sent to.
        state: one of `STATES`; `open` is true for ``open`` alone, so not for ``open|filtered``.
        reason: one of `REASONS`.
        ttl: hops left in the answer's IP header; None where the socket does not tell.
        rtt_us: probe to answer in microseconds; None if nothing answered.
        identity: name in the node's verified certificate; None if it showed none.
    """
    scan = PortScan(
        target,
        port,
        state == STATE_OPEN,
        scantype,
        timeout_ms,
        state,
        reason,
        UNSET if ttl is None else ttl,
        UNSET if rtt_us is None else rtt_us / 1000,
    )
    return Event(
        node_id,
        node_name,
        timestamp(timestamp_ms),
        SCANNER_PORTS,
        Result(target, port, scan, UNSET, address),
        UNSET,
        pool,
        UNSET if identity is None else identity,
    )


#: By protocol; TCP ports may also be probed by SYNs alone.
SCANTYPES: Final[Mapping[str, str]] = {"tcp": SCANTYPE_TCP_CONNECT, "udp": SCANTYPE_UDP}
SCANTYPES_SYN: Final[Mapping[str, str]] = {**SCANTYPES, "tcp": SCANTYPE_TCP_SYN}


class EventMaker:
    """Makes many events that differ in the probe alone: what they share is worked out once.

    Arguments as for `port_event`; ``timeouts_ms`` and ``scantypes`` are by protocol.
    """

    def __init__(
        self,
        *,
        node_id: str,
        node_name: str,
        timestamp_ms: int,
        timeouts_ms: Mapping[str, int],
        pool: int = 0,
        identity: str | None = None,
        scantypes: Mapping[str, str] = SCANTYPES,
    ) -> None:
        self._node_id = node_id
        self._node_name = node_name
        self._timestamp = timestamp(timestamp_ms)
        self._timeouts_ms = timeouts_ms
        self._scantypes = scantypes
        self._pool = pool
        self._identity = UNSET if identity is None else identity

    def event(
        self,
        target: str,
        address: str,
        port: int,
        protocol: str,
        state: str,
        reason: str,
        ttl: int,
        rtt_ms: float,
    ) -> Event:
        """As `port_event`; a ttl or round trip of 0 is not known."""
        scan = PortScan(
            target,
            port,
            state == STATE_OPEN,
            self._scantypes[protocol],
            self._timeouts_ms[protocol],
            state,
            reason,
            ttl or UNSET,
            rtt_ms or UNSET,
        )
        return self._made(Result(target, port, scan, UNSET, address))

    def tarpit(self, target: str, address: str, protocol: str, ttl: int, rtt_ms: float) -> Event:
        """Of a host on which every port answers; a ttl or round trip of 0 is not known."""
        found = Tarpit(
            self._scantypes[protocol], self._timeouts_ms[protocol], ttl or UNSET, rtt_ms or UNSET
        )
        return self._made(Result(target, UNSET, UNSET, UNSET, address, found))

    def _made(self, result: Result) -> Event:
        return Event(
            self._node_id,
            self._node_name,
            self._timestamp,
            SCANNER_PORTS,
            result,
            UNSET,
            self._pool,
            self._identity,
        )


def environment_event(
    *,
    node_id: str,
    node_name: str,
    timestamp_ms: int,
    environment: Environment,
    pool: int = 0,
    identity: str | None = None,
) -> Event:
    """The event of a node's registration; arguments as for `port_event`."""
    return Event(
        node_id,
        node_name,
        timestamp(timestamp_ms),
        SCANNER_ENVIRONMENT,
        UNSET,
        environment,
        pool,
        UNSET if identity is None else identity,
    )


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as one JSON object, without a line end."""
    return _encoder.encode(event)


def encode_lines(events: Sequence[Event]) -> bytes:
    r"""The events as JSON lines, each ended by ``\n``; nothing for no events."""
    return _encoder.encode_lines(events)


def decode(line: bytes | str) -> Event:
    """An event back from its line. Raises `msgspec.DecodeError` for anything else."""
    return _decoder.decode(line)
