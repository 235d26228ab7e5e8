"""A server from its configuration: what ``nray server`` calls."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from nray import UserError
from nray.api.attend import is_loopback, read_again
from nray.api.interrupts import EXIT_INTERRUPTED, take_over
from nray.api.scan import limit_of
from nray.api.state import (
    Origin,
    create_state,
    demand_same_config,
    forget,
    open_state,
    plan_of_segments,
    position_of,
    unpack_origin,
)
from nray.config.errors import ConfigError
from nray.config.kinds import AUTO_RATE
from nray.config.reader import loads
from nray.config.rules import exposed, require_work, unsupported
from nray.config.schema import Config
from nray.config.writer import to_yaml
from nray.events.model import SCANTYPES, SCANTYPES_SYN
from nray.ledger.memory import MemoryLedger
from nray.node.bounds import TIMEOUT_MS_MAX
from nray.node.orders import is_raw
from nray.targets.discovery import sends_pings, unfollowed
from nray.targets.plan import Plan, plan
from nray.targets.segment import Segment
from nray.targets.udp import table
from nray.wire.messages import Settings
from nray.worker import privileges

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import trio

    from nray.api.credentials import ServerCredentials
    from nray.events.configured import Resume
    from nray.events.hub import SinkPort
    from nray.ledger.ledger import Ledger
    from nray.server.server import Server

log = logging.getLogger("nray.server")

#: The first ends in order, the second at once. Either leaves a ledger that can be gone on with.
INTERRUPTS_MAX = 2
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
#: In place of a file's name: keep nothing.
NO_LEDGER = "none"


def serve(config: Config, *, name: str, allow_plaintext: bool = False, resume: bool = False) -> int:
    """Serve a configuration's scan to its end; returns the exit status.

    Args:
        name: the file's, for error messages.
        resume: go on with the scan in the configuration's ledger instead of beginning one.

    Raises:
        UserError: the configuration asks for what cannot be done here.
    """
    missing = unsupported(config)
    if missing:
        raise UserError(f"{name}: {'; '.join(missing)}")
    require_work(config, name)
    for warning in exposed(config, name):
        log.warning("%s: %s", name, warning)
    _demand_loopback(config, name, allow_plaintext)
    credentials = _credentials(config, name)
    if credentials is not None:
        privileges.guard_keys()
    privileges.drop(keep_net_raw=False, keep=privileges.FILES + privileges.LOW_PORTS)
    made = None if resume else plan_of(config)
    for warning in made.warnings if made else ():
        log.warning("%s", warning)
    _import_the_rest()
    take_over()
    ledger = _ledger(config, name, made)
    try:
        if made is None:
            made = plan_of_segments(
                (Segment.unpack(body) for _, body in ledger.segments()),
                unpack_origin(ledger.settings, ledger_path(config, name)).seed,
            )
            if ledger.finished:
                status = _tell_finished(ledger, made, ledger_path(config, name))
                ledger.close()
                return status
            _tell_resumed(ledger, made)
        status = _run(config, made, credentials, name, ledger)
    except BaseException:
        if ledger.durable and not resume and ledger.last == 0:
            forget(ledger, ledger_path(config, name))
        ledger.close()
        raise
    if not ledger.finished and ledger.durable:
        log.info("go on with it by: nray server -c %s --resume", name)
    ledger.close()
    return status


def _import_the_rest() -> None:
    """What a server runs on: once there is a ledger to be forgotten again, no import is left in
    which a Ctrl+C could be lost."""
    import nray.api.loop
    import nray.events.configured
    import nray.events.terminal
    import nray.ledger.sqlite
    import nray.server.accept
    import nray.server.server
    import nray.server.summary
    import nray.server.tls  # noqa: F401


def ledger_path(config: Config, name: str) -> str:
    """The file of a configuration's ledger; empty if it is to have none."""
    if config.ledger == NO_LEDGER:
        return ""
    return config.ledger or f"{name}.ledger"


def _ledger(config: Config, name: str, made: Plan | None) -> Ledger:
    """A new ledger for a plan, or, without one, the ledger that is there."""
    path = ledger_path(config, name)
    written = to_yaml(config)
    if made is not None:
        if not path:
            return _memory(config, name, made)
        # Settings are told by the configuration again: what it refers to must not be stored.
        origin = Origin("server", Settings(), written, directory=os.getcwd())
        return create_state(path, origin, made)
    if not path:
        raise UserError(f"{name}: ledger: none keeps nothing that could be gone on with")
    ledger, before = open_state(path, "server")
    try:
        demand_same_config(_but_for_tls(before.config, config), written, path, name)
    except UserError:
        ledger.close()
        raise
    return ledger


def _but_for_tls(before: str, config: Config) -> str:
    """An earlier configuration with the TLS of now: whom a server believes may change within a
    scan, and does where somebody is revoked."""
    try:
        then = loads(before, follow=False)
    except ConfigError:
        return before
    # How TLS refers to variables and files is of now, too.
    kept = {key: each for key, each in then.references.items() if not key.startswith("TLS.")}
    now = {key: each for key, each in config.references.items() if key.startswith("TLS.")}
    return to_yaml(msgspec.structs.replace(then, tls=config.tls, references=kept | now))


def _memory(config: Config, name: str, made: Plan) -> MemoryLedger:
    return MemoryLedger(
        scan=secrets.token_hex(8),
        segments=[(segment.id, segment.pack()) for segment in made.segments],
        ended=not unfollowed(made.segments),
        release={port.sink.name for port in _sinks(config, name, None)},
    )


def _tell_resumed(ledger: Ledger, made: Plan) -> None:
    done = sum(
        ledger.done(pool, segment.id).total for pool in ledger.pools() for segment in made.segments
    )
    log.info("going on with the scan: %s probes were done", f"{done:,}")


def _tell_finished(ledger: Ledger, made: Plan, path: str) -> int:
    """There is nothing to go on with: every output has everything. The exit status, as it was."""
    from nray.server.restore import restore
    from nray.server.scheduler import Scheduler
    from nray.server.summary import exit_status, found

    scheduler = Scheduler(pools=max(ledger.pools(), default=0) + 1)
    for segment in made.segments:
        scheduler.add_segment(segment, discovery=bool(segment.search))
    scheduler.end_segments()
    restore(scheduler, ledger)
    log.info("%s: the scan is finished, nothing is left to do: %s", path, found(scheduler))
    return exit_status(scheduler)


def plan_of(config: Config) -> Plan:
    """What a configuration scans."""
    standard = config.targetgenerator.standard
    udp = standard.udp_ports
    return plan(
        standard.targets,
        tcp=standard.tcp_ports,
        udp=udp,
        target_files=[standard.target_file] if standard.target_file else [],
        exclude=standard.blacklist,
        exclude_files=[standard.blacklist_file] if standard.blacklist_file else [],
        seed=config.seed,
        strict=False,
        permission=standard.i_have_permission,
        include_reserved=standard.include_reserved,
        udp_only=_fast_ports(config) if config.scannerconfig.udp.fast else None,
        discovery=config.scannerconfig.discovery,
    )


def _fast_ports(config: Config) -> set[int]:
    return {*table.BY_PORT, *config.scannerconfig.udp.custom_hex_payloads}


def settings_of(config: Config, seed: int) -> Settings:
    """How a configuration scans.

    Args:
        seed: the scan's; the identifiers in known UDP payloads are drawn from it.
    """
    scanner = config.scannerconfig
    sinks = [config.events.terminal, config.events.json_file]
    known, custom = table.questions(seed), scanner.udp.custom_hex_payloads
    states = {state for sink in sinks if sink is not None for state in sink.states}
    rate = scanner.ratelimit
    limit, auto = limit_of("auto" if rate == AUTO_RATE else rate, scanner.tcp.method)
    return Settings(
        workers=scanner.workers,
        ratelimit=limit,
        ratelimit_auto=auto,
        host_rate=scanner.host_rate,
        network_rate=scanner.network_rate,
        tcp_timeout_ms=_milliseconds(scanner.tcp.timeout_s),
        udp_timeout_ms=_milliseconds(scanner.udp.timeout_s),
        adaptive=scanner.tcp.adaptive_timeout,
        udp_fast=scanner.udp.fast,
        udp_payload=scanner.udp.default_hex_payload,
        udp_payloads=known.payloads | custom,
        udp_checks={port: steps for port, steps in known.checks.items() if port not in custom},
        udp_further={port: more for port, more in known.further.items() if port not in custom},
        states=tuple(sorted(states - {"open"})),
        tcp_method=scanner.tcp.method,
        retries=scanner.tcp.retries,
        pings=sends_pings(scanner.discovery),
        tarpits=not scanner.tcp.keep_tarpits,
        first_open=scanner.stop_after_first_open,
    )


def _milliseconds(seconds: float) -> int:
    """A timeout as nodes take it; 25 days are as good as for ever."""
    return min(max(1, round(seconds * 1000)), TIMEOUT_MS_MAX)


def slice_cap(config: Config) -> int:
    """The ``max…PerBatch`` keys as a cap on a slice; 0 where none was given."""
    standard = config.targetgenerator.standard
    hosts = standard.max_hosts_per_batch
    ports = [standard.max_tcp_ports_per_batch, standard.max_udp_ports_per_batch]
    if hosts is None and ports == [None, None]:
        return 0
    # A part that was not given does not cap: hosts alone cap at all ports of so many hosts.
    given = [each for each in ports if each is not None]
    count = sum(given) if given else 2 * 65535
    return min((hosts or 2**31) * count, 2**62)


def _demand_loopback(config: Config, name: str, allowed: bool) -> None:
    if config.tls.enabled:
        return
    if config.tls.cert or config.tls.key:
        log.warning("%s: certificates are given, but TLS.enabled is false", name)
    if config.host and is_loopback(config.host):
        return
    where = config.host or "all addresses"
    if not allowed:
        raise UserError(
            f"{name}: host: listening on {where} without TLS would let anybody there read the "
            "findings and pose as a node",
            "set TLS.enabled: true with CA, cert and key, or insist with --allow-plaintext",
        )
    log.warning(
        "listening on %s without TLS: anybody there can read the findings and pose as a node",
        where,
    )


def _credentials(config: Config, name: str) -> ServerCredentials | None:
    """What the server shows and whom it believes; None without TLS."""
    if not config.tls.enabled:
        return None
    from nray.api.credentials import ServerCredentials, TlsFiles
    from nray.pki.allowed import AllowedNodes
    from nray.pki.errors import PkiError

    tls = config.tls
    try:
        credentials = ServerCredentials(
            TlsFiles(tls.cert, tls.key, tls.ca, tls.crl),
            log,
            require_client=tls.force_client_auth,
            allowed=AllowedNodes(tls.allowed_nodes),
        )
    except PkiError as error:
        raise UserError(f"{name}: TLS: {error.message}", error.hint) from error
    credentials.warn()
    return credentials


def _run(
    config: Config,
    made: Plan,
    credentials: ServerCredentials | None,
    name: str,
    ledger: Ledger,
) -> int:
    import trio

    from nray.api import loop
    from nray.server.accept import open_listeners
    from nray.server.books import open_books
    from nray.server.server import Server, ServerOptions
    from nray.server.summary import exit_status, summary_lines

    doorman = None
    if credentials is not None:
        from nray.server.tls import TlsDoorman

        doorman = TlsDoorman(credentials)
    settings = settings_of(config, made.seed)
    options = ServerOptions(
        host=config.host,
        ports=config.listen,
        settings=settings,
        pools=config.pools,
        node_expiry_s=config.internal.node_expiry_time_s,
        expiry_check_s=config.internal.node_expiry_check_interval_s,
        status_every_s=config.status_print_interval_s,
        pool_by_preference=config.consider_client_pool_preference,
        several_per_machine=config.allow_multiple_nodes_per_host,
        slice_most=slice_cap(config),
    )
    segments = {segment.id: segment for segment in made.segments}
    timeouts_ms = {"tcp": settings.tcp_timeout_ms, "udp": settings.udp_timeout_ms}
    scantypes = SCANTYPES_SYN if is_raw(settings) else SCANTYPES

    async def main() -> Server:
        with trio.open_signal_receiver(*WATCHED) as signals:
            return await serving(signals)

    async def serving(signals: AsyncIterator[int]) -> Server:
        # Before outputs are opened: a port that is taken must not leave an empty file behind.
        listeners = await open_listeners(options.host, options.ports)
        sinks = _sinks(config, name, cursors_of(ledger))
        async with open_books(ledger, sinks, segments, timeouts_ms, scantypes) as books:
            _announce(config, made, listeners)
            server = Server(options, made.segments, books, doorman)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, server, credentials)
                if credentials is not None:
                    nursery.start_soon(credentials.watch)
                await server.run(listeners)
                await books.written()
                nursery.cancel_scope.cancel()
            if server.scheduler.finished:
                books.finish()
        return server

    server = loop.run(main)
    begun = server.first_lease_at
    seconds = time.monotonic() - begun if begun is not None else 0.0
    for line in summary_lines(server.scheduler, seconds, server.done_before, server.segments):
        print(line, file=sys.stderr)
    return EXIT_INTERRUPTED if server.interrupted else exit_status(server.scheduler)


def _sinks(config: Config, name: str, resume: Resume) -> list[SinkPort]:
    """The configured outputs, to be gone on with where they have a cursor."""
    from nray.events.configured import sinks_from_config
    from nray.events.hub import SinkPort
    from nray.events.terminal import TerminalSink

    sinks = sinks_from_config(config.events, where=f"{name}: events", resume=resume)
    if not sinks:
        log.warning("%s: no output is configured under events:, so findings go to stdout", name)
        sinks = [SinkPort(TerminalSink("auto"))]
    return sinks


def cursors_of(ledger: Ledger) -> Resume:
    """How far an output is, in bytes, by its name; None for a scan that only begins."""

    return None if ledger.generation == 1 else partial(position_of, ledger)


def _announce(config: Config, made: Plan, listeners: Sequence[trio.SocketListener]) -> None:
    """Say what is served, where, and to whom."""
    from nray.server.summary import plural

    if not config.tls.enabled:
        how = "without TLS"
    elif config.tls.force_client_auth:
        how = "TLS, certificates of nodes demanded"
    else:
        how = "TLS, any node may join"
    where = ", ".join(sorted({_name(listener) for listener in listeners}))
    log.info("listening on %s (%s); waiting for nodes", where, how)
    log.info(
        "%s: %s, %s%s%s; seed %d",
        plural(made.probes, "probe"),
        plural(made.hosts, "host"),
        plural(made.ports, "port"),
        f", {plural(made.excluded, 'host')} excluded" if made.excluded else "",
        f", in each of {config.pools} pools" if config.pools > 1 else "",
        made.seed,
    )
    if made.searches:
        log.info(
            "hosts are looked for first (%s), by %s probes at most; the others are of those found",
            config.scannerconfig.discovery,
            f"{made.searches:,}",
        )


def _name(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _heed(
    signals: AsyncIterator[int], server: Server, credentials: ServerCredentials | None
) -> None:
    interrupts = 0
    async for number in signals:
        if number == signal.SIGHUP:
            read_again(credentials, log)
            continue
        if number == signal.SIGUSR1:
            server.pause(not server.paused)
            log.info("%s", "paused; SIGUSR1 again to go on" if server.paused else "going on")
            continue
        interrupts += 1
        if interrupts == 1:
            log.info("interrupted: stopping the nodes; once more to end at once")
            server.interrupt("the server was interrupted")
        elif interrupts >= INTERRUPTS_MAX:
            log.warning("ended at once")
            os._exit(EXIT_INTERRUPTED)
