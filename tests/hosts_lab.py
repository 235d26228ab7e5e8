"""Hosts that answer an engine's probes as a test says, at the far end of its interface."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from core_lab import ACK, RST, SYN, UDP, Drive, Ended, bucket, inside, space, summed, tcp
from lab.namespaces import Namespace
from nray import _core
from raw_lab import FarEnd, icmp_error, target_of, tcp_answer, udp_answer

BASE = {4: "198.18.0.", 6: "2001:db8:1::"}
#: Where ports are that hardly anybody has open.
IMPROBABLE = range(20480, 28672)
#: Long enough for a machine that is very busy; what answers is not waited for.
PATIENT_S = 20.0
#: Of what stays silent, each such test waits once.
SILENT_S = 0.4

OPEN, CLOSED, SILENT, FORBIDDEN = "open", "closed", "silent", "forbidden"
#: What a host says of a port that is asked for the nth time, from 0.
Host = Callable[[int, int], str]


def ordinary(*opened: int, others: str = CLOSED) -> Host:
    return lambda port, _: OPEN if port in opened else others


def tarpit(port: int, nth: int) -> str:
    return OPEN


class Network:
    """Hosts, by the last number of their address, that answer an engine's probes."""

    def __init__(self, far: FarEnd, engine: _core.Engine | _core.RawEngine, version: int) -> None:
        self.far = far
        self.drive = Drive(engine)
        self.version = version
        self.hosts: dict[int, Host] = {}
        #: How often each port was asked.
        self.asked: Counter[tuple[int, int]] = Counter()

    def scan(
        self, where: _core.Space, start: int = 0, count: int | None = None, lease: int = 1
    ) -> Ended:
        """One slice to its end."""
        count = where.total - start if count is None else count
        self.drive.engine.add_slice(lease, start, count, where, None)
        return self.to_end()[lease]

    def to_end(self) -> dict[int, Ended]:
        self._until(lambda: not self.drive.engine.slices_open)
        return self.drive.leases

    def until_found(self, lease: int, where: _core.Space) -> None:
        """Begin another slice, of a whole space, and go on until it has ended."""
        self.drive.engine.add_slice(lease, 0, where.total, where, None)
        self._until(lambda: lease in self.drive.leases and self.drive.leases[lease].done > 0)

    def _until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not met():
            assert time.monotonic() < deadline, self.drive.leases
            self.drive.pump(0.002)
            for probe in self.far.probes():
                self.answer(probe)

    def answer(self, probe: bytes) -> None:
        address, port = target_of(probe)
        host = int(ip_address(address)) & 0xFF
        says = self.hosts.get(host, ordinary())(port, self.asked[host, port])
        self.asked[host, port] += 1
        udp = probe[14 + (9 if self.version == 4 else 6)] == UDP
        if says == FORBIDDEN:
            self.far.put(icmp_error(probe, *((3, 13) if self.version == 4 else (1, 1))))
        elif udp and says == CLOSED:
            self.far.put(icmp_error(probe, *((3, 3) if self.version == 4 else (1, 4))))
        elif udp and says == OPEN:
            self.far.put(udp_answer(probe, b"yes"))
        elif says != SILENT:
            flags = SYN | ACK if says == OPEN else RST | ACK
            self.far.put(summed(tcp_answer(probe, flags)))

    def improbable(self, host: int) -> list[int]:
        """The ports of a host that were asked to judge it, one for each time."""
        found = [(port, n) for (who, port), n in self.asked.items() if who == host]
        return sorted(port for port, n in found for _ in range(n) if port in IMPROBABLE)


Make = Callable[..., Network]


@contextmanager
def answering(
    alone: Namespace, kind: str, version: int, *, ethernet: bool = False, **defaults: Any
) -> Iterator[Make]:
    """Makes networks in front of an engine, ``raw`` or ``connect``."""
    with inside(alone), FarEnd(alone, ethernet) as far:

        def make(timeout_s: float = PATIENT_S, **options: Any) -> Network:
            options = {"tcp_timeout_s": timeout_s, "udp_timeout_s": timeout_s} | defaults | options
            if kind == "raw":
                return Network(far, far.engine(**options), version)
            options.pop("retries", None)
            states = _core.STATES[1:]
            return Network(far, _core.Engine(bucket(), states=states, **options), version)

        yield make


def hosts(version: int, last: int, *ports: int) -> _core.Space:
    return space([f"{BASE[version]}1-{BASE[version]}{last}"], tcp(*ports))
