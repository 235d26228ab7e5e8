"""``nray.scan(…)``: a scan of one process, for scripts.

>>> import nray
>>> result = nray.scan("127.0.0.1", "1-1024")            # doctest: +SKIP
>>> [(e.result.target, e.result.port) for e in result.events]   # doctest: +SKIP
[('127.0.0.1', 22)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nray import UserError
from nray.api.workers import start_fork_server
from nray.node.orders import METHODS, is_raw, needs_raw
from nray.node.pacing import CAP
from nray.targets.discovery import sends_pings, unfollowed
from nray.targets.plan import Plan, plan
from nray.targets.ports import UDP
from nray.targets.udp import Questions
from nray.wire.messages import Settings

if TYPE_CHECKING:
    from nray.api.local import Progress, ScanResult
    from nray.events.hub import SinkPort
    from nray.events.model import Event
    from nray.ledger.ledger import Ledger
    from nray.node.raw import RawNet
    from nray.worker.forkserver import ForkServer


#: As `nray.node.bounds` has it, which is slow to import.
RETRIES_MAX = 10


@dataclass(frozen=True)
class Scanned:
    """What a scan has brought.

    Attributes:
        events: one for each port found in a state that was asked for, in the order of finding.
        complete: whether every probe could be sent and was counted.
        summary: lines for people.
    """

    events: list[Event]
    complete: bool
    summary: list[str]


def scan(
    targets: str | Iterable[str],
    ports: str | Iterable[str | int],
    *,
    udp: bool = False,
    timeout_s: float = 1.0,
    workers: int = 0,
    processes: int = 0,
    rate: float | Literal["auto"] = 0.0,
    host_rate: float = 0.0,
    network_rate: float = 0.0,
    method: Literal["connect", "syn"] = "connect",
    retries: int = 1,
    discovery: str = "none",
    keep_tarpits: bool = False,
    stop_after_first_open: bool = False,
    exclude: str | Iterable[str] = (),
    show: Sequence[str] = (),
    seed: int | None = None,
    permission: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Scanned:
    """Scan from this machine, and wait for the end.

    Call it from the main thread of a program that runs no trio loop of its own.

    Args:
        targets, ports: as on the command line of ``nray scan``.
        udp: whether ports without a prefix are UDP ports.
        timeout_s: how long an unanswered probe is waited for, seconds.
        workers: probes in flight; 0 lets the number grow to what the machine bears.
        processes: worker processes; 0 for one on each core.
        rate: probes started in any second at most; 0 for no limit. ``auto`` finds one that the
            path bears (with ``syn``; else it is no limit, and what is in flight adapts itself).
        host_rate, network_rate: the same for each host, and for each network (/24, or /64 of
            IPv6), so that none is flooded; 0 for no cap.
        method: how TCP ports are probed; ``syn`` needs the right to raw sockets.
        retries: with ``syn``, how often silent ports are probed again, at most 10.
        discovery: how hosts are looked for first, so that ports are probed of those alone that
            are there: ``none``, ``ping``, ``arp``, ``auto`` or ``syn:80,443``; ``ping``, ``arp``
            and ``auto`` need the right to raw sockets.
        keep_tarpits: report each port of hosts on which every port answers, not each such host
            once.
        stop_after_first_open: probe a host no further once an open port of it is known, and report
            that one alone.
        exclude: never probed, whatever the targets say.
        show: states that make events besides open.
        seed: decides the order of probes.
        permission: you may scan more than a /8.
        on_event: called for each event, from another thread; the list then stays empty.

    Raises:
        nray.UserError: targets or ports cannot be read, or there is nothing to scan.
    """
    made = plan(
        targets,
        tcp=() if udp else ports,
        udp=ports if udp else (),
        exclude=exclude,
        seed=seed,
        permission=permission,
        discovery=discovery,
    )
    events: list[Event] = []
    take = on_event or events.append

    def sinks() -> list[SinkPort]:
        from nray.api.collect import CallSink
        from nray.events.hub import SinkPort

        return [SinkPort(CallSink(take), states=show)]

    settings = settings_for(
        timeout_s=timeout_s,
        workers=workers,
        rate=rate,
        host_rate=host_rate,
        network_rate=network_rate,
        show=show,
        method=method,
        retries=retries,
        keep_tarpits=keep_tarpits,
        first_open=stop_after_first_open,
        payloads=payloads_for(made),
        pings=sends_pings(discovery),
    )
    result = run(made, settings, sinks, processes)
    return Scanned(events, result.exit_status == 0, result.summary)


def settings_for(
    *,
    timeout_s: float,
    adaptive: bool = False,
    workers: int = 0,
    rate: float | Literal["auto"] = 0.0,
    host_rate: float = 0.0,
    network_rate: float = 0.0,
    show: Sequence[str] = (),
    method: str = "connect",
    retries: int = 1,
    keep_tarpits: bool = False,
    first_open: bool = False,
    payloads: Questions | None = None,
    pings: bool = False,
) -> Settings:
    """How a scan without a configuration file scans; times in seconds.

    Args:
        payloads: what UDP ports are asked, as of `payloads_for`.
        pings: hosts are looked for by echo requests or ARP.

    Raises:
        UserError: there is no such method, or so many retries are not to be had.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}", f"it is one of {', '.join(METHODS)}")
    if not 0 <= retries <= RETRIES_MAX:
        raise UserError(f"{retries} retries are not from 0 to {RETRIES_MAX}")
    timeout_ms = max(1, round(timeout_s * 1000))
    limit, auto = limit_of(rate, method)
    return Settings(
        workers=workers,
        ratelimit=limit,
        ratelimit_auto=auto,
        host_rate=host_rate,
        network_rate=network_rate,
        tcp_timeout_ms=timeout_ms,
        udp_timeout_ms=timeout_ms,
        adaptive=adaptive,
        udp_payloads=payloads.payloads if payloads else {},
        udp_checks=payloads.checks if payloads else {},
        udp_further=payloads.further if payloads else {},
        states=tuple(state for state in show if state != "open"),
        tcp_method=method,
        retries=retries,
        pings=pings,
        tarpits=not keep_tarpits,
        first_open=first_open,
    )


def limit_of(rate: float | Literal["auto"], method: str) -> tuple[float, bool]:
    """A rate as nodes are told: the limit, and whether they are to find a rate below it.

    Connects find their own pace, by how many are in flight: there ``auto`` is no limit.
    """
    if rate != "auto":
        return rate, False
    return (CAP, True) if method == "syn" else (0.0, False)


def raw_net(made: Plan, settings: Settings, *, xdp: bool = False) -> RawNet | None:
    """What a scan by packets of its own needs of this machine; None for others.

    Args:
        xdp: let frames leave by AF_XDP where devices have queues for it.

    Raises:
        NoRight, NoRoute: it cannot be had. To be asked before files are made.
    """
    if not needs_raw(settings):
        return None
    from nray.node.raw import net_for

    return net_for(made.segments, xdp=xdp, hosts_alone=not is_raw(settings))


def payloads_for(made: Plan) -> Questions:
    """What the UDP ports of a plan are asked, with identifiers of its seed.

    A scan of TCP ports alone does not pay for the import of the table.
    """
    services = {service for each in made.segments for service in each.wanted}
    ports = {number for protocol, number in services if protocol == UDP}
    if not ports:
        return Questions({}, {}, {})
    from nray.targets.udp import table

    return table.questions(made.seed, ports)


def run(
    made: Plan,
    settings: Settings,
    sinks: Callable[[], list[SinkPort]],
    processes: int = 0,
    *,
    progress: Progress | None = None,
    fork_server: ForkServer | None = None,
    ledger: Ledger | None = None,
    raw: RawNet | None = None,
) -> ScanResult:
    """Scan a plan in this process and its workers.

    The workers are started before anything else is imported that they can do without: it is
    half of the time that a short scan takes.

    Args:
        fork_server: started earlier still; closed here.
        ledger: keeps the scan's state, or is gone on with; stays the caller's to close. None:
            nothing is kept.
        raw: of `raw_net`; looked for here where it is None and needed.
    """
    from nray.node.machine import default_name, processors

    count = processes or processors()
    if settings.workers:
        count = min(count, settings.workers)
    server = fork_server or start_fork_server()
    try:
        raw = raw or raw_net(made, settings)
        from nray.api.begin import begin

        begun = begin(made, settings, server, count, ledger)
        from nray.api import loop
        from nray.api.local import scan_here
        from nray.ledger.memory import MemoryLedger

        ports = sinks()
        kept = ledger or MemoryLedger(
            scan="",
            segments=[(segment.id, b"") for segment in made.segments],
            ended=not unfollowed(made.segments),
            release={port.sink.name for port in ports},
        )

        async def main() -> ScanResult:
            return await scan_here(
                begun, ports, server, kept, node_name=default_name(), progress=progress, raw=raw
            )

        return loop.run(main)
    finally:
        server.close()
