"""The life of one worker process: take slices, run the engine, send hits.

It keeps nothing that others need: killed at any moment, it loses the slices that it has in
hand, and the node begins them again elsewhere. It ends when the node closes its socket, also by
dying.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from nray import _core
from nray.worker.protocol import (
    SLICES_AHEAD,
    Alive,
    Configure,
    Found,
    Neighbours,
    Note,
    Pause,
    Policy,
    Raw,
    Slice,
    Space,
    Started,
    ToWorker,
    Unfit,
    Unpacker,
    Want,
    Wonder,
    pack,
    range_pairs,
)

#: The engine comes back at least this often, seconds, and the worker then says that it lives.
PUMP_S = 5.0
#: Two engines that both have slices take turns, seconds: few answers come meanwhile to the other.
TURN_S = 0.005
RECEIVE_BYTES = 1 << 18


class Worker:
    """One worker process's state: the engines, the spaces, what was asked for.

    Mostly there is one engine. A scan by connecting that looks for hosts by packets of its own
    has two, of which seldom more than one has slices.

    Args:
        control: the socket to the node. Blocking: a node that does not read holds the worker,
            and with it the scan.
        bucket: the rate shared with the node's other workers.
        shared_fd: the memory that it is in; behind it there is the set of hosts that need no more
            probes, in scans that have one.
    """

    def __init__(
        self, control: socket.socket, bucket: _core.Bucket, shared_fd: int | None = None
    ) -> None:
        self._control = control
        self._bucket = bucket
        self._shared_fd = shared_fd
        self._unpacker = Unpacker(at_worker=True)
        self._told: Configure | None = None
        self._plain: _core.Engine | None = None
        self._raw: _core.RawEngine | None = None
        self._paused = False
        self._spaces: dict[int, tuple[_core.Space, _core.Exclusions, bool]] = {}
        self._wanted = SLICES_AHEAD

    def run(self) -> None:
        """Work until the node has closed its end."""
        self._control.sendall(pack(Started(os.getpid())))
        while self._receive():
            self._work()

    def _receive(self) -> bool:
        """Read what the node has sent, waiting for it; false at its end."""
        data = self._control.recv(RECEIVE_BYTES)
        for message in self._unpacker.feed(data):
            self._handle(message)  # type: ignore[arg-type]
        return bool(data)

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Configure():
                self._told = message
                self._engine(raw=message.raw is not None)
            case Space():
                self._spaces[message.segment] = (
                    _core.Space(
                        range_pairs(message.ranges4, 4),
                        range_pairs(message.ranges6, 16),
                        message.names,
                        message.ports,
                        message.key,
                        message.search,
                    ),
                    _core.Exclusions(
                        range_pairs(message.excluded4, 4), range_pairs(message.excluded6, 16)
                    ),
                    message.raw,
                )
            case Slice():
                self._add(message)
            case Pause():
                self._paused = message.on
                for engine in self._engines():
                    engine.paused = message.on
            case Neighbours():
                assert self._raw is not None
                for link, address, mac in message.told:
                    self._raw.set_neighbour(link, address, mac)

    def _engines(self) -> list[_core.Engine | _core.RawEngine]:
        return [each for each in (self._plain, self._raw) if each is not None]

    def _engine(self, *, raw: bool) -> _core.Engine | _core.RawEngine:
        """One of the two, made when it is first needed. Raises `_CannotScan`."""
        assert self._told is not None
        engine: _core.Engine | _core.RawEngine
        if raw:
            engine = self._raw = self._raw or self._made_raw(self._told)
        else:
            engine = self._plain = self._plain or self._made(self._told)
        engine.paused = self._paused
        return engine

    def _shown(self, told: Configure) -> _core.HostSet | None:
        if not told.first_open or self._shared_fd is None:
            return None
        return _core.HostSet(self._shared_fd)

    def _made(self, told: Configure) -> _core.Engine:
        return _core.Engine(
            self._bucket,
            control_fd=self._control.fileno(),
            window=told.window,
            adaptive=told.adaptive,
            sharers=told.sharers,
            shown=self._shown(told),
            **_of_both(told),
        )

    def _made_raw(self, told: Configure) -> _core.RawEngine:
        assert told.raw is not None
        try:
            engine = _core.RawEngine(
                self._bucket,
                control_fd=self._control.fileno(),
                key=told.raw.key,
                shard=told.raw.shard,
                shards=told.raw.shards,
                links=told.raw.links,
                routes=_routes(told.raw),
                retries=told.raw.retries,
                samples=told.raw.samples,
                xdp=told.raw.xdp,
                shown=self._shown(told),
                **_of_both(told),
            )
        except OSError as error:
            raise _CannotScan(f"sockets for packets of its own: {error}") from error
        for link, code in engine.no_xdp.items():
            self._control.sendall(pack(Note(_without_xdp(told.raw, link, code))))
        return engine

    def _add(self, work: Slice) -> None:
        space, exclusions, raw = self._spaces[work.segment]
        engine = self._engine(raw=raw)
        self._wanted = max(0, self._wanted - 1)  # the first may come unasked
        if work.addresses is None:
            engine.add_slice(work.lease, work.start, work.count, space, exclusions)
        else:
            engine.add_names(work.lease, work.start, work.count, space, exclusions, work.addresses)

    def _work(self) -> None:
        """Run the engines until the node has something to say."""
        engines = self._engines()
        while engines:
            told = self._pump(engines)
            sent = sum(each.sent for each in engines)
            drops = self._raw.drops if self._raw is not None else 0
            out = [
                pack(Found(lease, hits, done, counts, errors, sent, drops))
                for each in engines
                for lease, hits, done, counts, errors in each.take()
            ]
            wanted = self._raw.neighbours_wanted() if self._raw is not None else []
            if wanted:
                out.append(pack(Wonder(wanted)))
            more = SLICES_AHEAD - sum(each.pending for each in engines) - self._wanted
            if more > 0 and sum(each.slices_open for each in engines) < _SLICES_FULL:
                self._wanted += more
                out.append(pack(Want(more)))
            if not out and not told:
                out.append(pack(Alive(sent)))
            self._control.sendall(b"".join(out))
            if told:
                return

    def _pump(self, engines: Sequence[_core.Engine | _core.RawEngine]) -> bool:
        """Run those that have slices, in turns; whether the node has something to say."""
        busy = [each for each in engines if each.slices_open] or engines[:1]
        if len(busy) == 1:
            return busy[0].pump(PUMP_S)
        until = time.monotonic() + PUMP_S
        while (begun := time.monotonic()) < until:
            told = [each.pump(TURN_S) for each in busy]
            if any(told):
                return True
            if time.monotonic() - begun < TURN_S * len(busy):
                break  # one came back early: there is something to be taken
        return False


def _of_both(told: Configure) -> dict[str, Any]:
    """The arguments that mean the same to either engine."""
    return {
        "tcp_timeout_s": told.tcp_timeout_s,
        "udp_timeout_s": told.udp_timeout_s,
        "states": told.states,
        "payload": told.payload,
        "payloads": told.payloads,
        "checks": told.checks,
        "further": told.further,
        "udp_fast": told.udp_fast,
        "policy": _policy(told.policy),
        "tarpits": told.tarpits,
        "host_rate": told.host_rate,
        "network_rate": told.network_rate,
    }


def _policy(told: Policy | None) -> _core.Policy | None:
    if told is None:
        return None
    refused = _core.Exclusions(range_pairs(told.refused4, 4), range_pairs(told.refused6, 16))
    return _core.Policy(refused, told.ports)


def _without_xdp(told: Raw, link: int, code: int) -> str:
    """Why a link is not served by AF_XDP; each of a device's queues serves one process alone."""
    name = told.links[link][1]
    if code == errno.EINVAL and told.shard:
        why = "the device has no more queues"
    elif code == errno.EBUSY:
        why = "another program has the device's queue"
    else:
        why = os.strerror(code)
    return f"process {told.shard + 1} of {told.shards} sends over {name} without AF_XDP: {why}"


def _routes(told: Raw) -> list[tuple[int, int, int, int, bytes, bytes]]:
    return [
        (family, int.from_bytes(first, "big"), int.from_bytes(last, "big"), link, source, mac)
        for family, first, last, link, source, mac in told.routes
    ]


class _CannotScan(Exception):
    """This process cannot be made to scan as it was told."""


#: Slices that wait for their last answers, beyond which no more are wanted; well under what the
#: engine holds (1,024).
_SLICES_FULL = 900


def run(control_fd: int, bucket_fd: int) -> None:
    """Be a worker on these descriptors, and return at the node's end."""
    control = socket.socket(fileno=control_fd)
    bucket = _core.Bucket(bucket_fd)
    try:
        Worker(control, bucket, bucket_fd).run()
    except _CannotScan as reason:
        control.sendall(pack(Unfit(str(reason))))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone, and with it whoever would want to know
