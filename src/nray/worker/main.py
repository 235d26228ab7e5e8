"""The life of one worker process: take slices, run the engine, send hits.

It keeps nothing that others need: killed at any moment, it loses the slices that it has in
hand, and the node begins them again elsewhere. It ends when the node closes its socket, also by
dying.
"""

from __future__ import annotations

import errno
import os
import socket

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
RECEIVE_BYTES = 1 << 18


class Worker:
    """One worker process's state: the engine, the spaces, what was asked for.

    Args:
        control: the socket to the node. Blocking: a node that does not read holds the worker,
            and with it the scan.
        bucket: the rate shared with the node's other workers.
    """

    def __init__(self, control: socket.socket, bucket: _core.Bucket) -> None:
        self._control = control
        self._bucket = bucket
        self._unpacker = Unpacker(at_worker=True)
        self._engine: _core.Engine | _core.RawEngine | None = None
        self._spaces: dict[int, tuple[_core.Space, _core.Exclusions]] = {}
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
                self._engine = self._made(message)
            case Space():
                self._spaces[message.segment] = (
                    _core.Space(
                        range_pairs(message.ranges4, 4),
                        range_pairs(message.ranges6, 16),
                        message.names,
                        message.ports,
                        message.key,
                    ),
                    _core.Exclusions(
                        range_pairs(message.excluded4, 4), range_pairs(message.excluded6, 16)
                    ),
                )
            case Slice():
                self._add(message)
            case Pause():
                assert self._engine is not None
                self._engine.paused = message.on
            case Neighbours():
                assert isinstance(self._engine, _core.RawEngine)
                for link, address, mac in message.told:
                    self._engine.set_neighbour(link, address, mac)

    def _made(self, told: Configure) -> _core.Engine | _core.RawEngine:
        """The engine for what was told. Raises `_CannotScan`."""
        if told.raw is None:
            return _core.Engine(
                self._bucket,
                control_fd=self._control.fileno(),
                window=told.window,
                tcp_timeout_s=told.tcp_timeout_s,
                udp_timeout_s=told.udp_timeout_s,
                states=told.states,
                payload=told.payload,
                payloads=told.payloads,
                checks=told.checks,
                further=told.further,
                udp_fast=told.udp_fast,
                adaptive=told.adaptive,
                policy=_policy(told.policy),
            )
        try:
            engine = _core.RawEngine(
                self._bucket,
                control_fd=self._control.fileno(),
                key=told.raw.key,
                shard=told.raw.shard,
                shards=told.raw.shards,
                links=told.raw.links,
                routes=_routes(told.raw),
                tcp_timeout_s=told.tcp_timeout_s,
                udp_timeout_s=told.udp_timeout_s,
                retries=told.raw.retries,
                states=told.states,
                payload=told.payload,
                payloads=told.payloads,
                checks=told.checks,
                further=told.further,
                udp_fast=told.udp_fast,
                policy=_policy(told.policy),
                xdp=told.raw.xdp,
            )
        except OSError as error:
            raise _CannotScan(f"sockets for packets of its own: {error}") from error
        for link, code in engine.no_xdp.items():
            self._control.sendall(pack(Note(_without_xdp(told.raw, link, code))))
        return engine

    def _add(self, work: Slice) -> None:
        assert self._engine is not None
        space, exclusions = self._spaces[work.segment]
        self._wanted = max(0, self._wanted - 1)  # the first may come unasked
        if work.addresses is None:
            self._engine.add_slice(work.lease, work.start, work.count, space, exclusions)
        else:
            self._engine.add_names(
                work.lease, work.start, work.count, space, exclusions, work.addresses
            )

    def _work(self) -> None:
        """Run the engine until the node has something to say."""
        engine = self._engine
        if engine is None:
            return
        raw = engine if isinstance(engine, _core.RawEngine) else None
        while True:
            told = engine.pump(PUMP_S)
            drops = raw.drops if raw is not None else 0
            out = [
                pack(Found(lease, hits, done, counts, errors, engine.sent, drops))
                for lease, hits, done, counts, errors in engine.take()
            ]
            wanted = raw.neighbours_wanted() if raw is not None else []
            if wanted:
                out.append(pack(Wonder(wanted)))
            more = SLICES_AHEAD - engine.pending - self._wanted
            if more > 0 and engine.slices_open < _SLICES_FULL:
                self._wanted += more
                out.append(pack(Want(more)))
            if not out and not told:
                out.append(pack(Alive(engine.sent)))
            self._control.sendall(b"".join(out))
            if told:
                return


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
    os.close(bucket_fd)
    try:
        Worker(control, bucket).run()
    except _CannotScan as reason:
        control.sendall(pack(Unfit(str(reason))))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone, and with it whoever would want to know
