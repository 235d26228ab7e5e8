"""A server from its configuration: what ``nray server`` calls."""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import TYPE_CHECKING

from nray import UserError
from nray.api.attend import is_loopback
from nray.config.rules import require_work, unsupported
from nray.config.schema import Config
from nray.targets.plan import Plan, plan
from nray.targets.udp_payloads import KNOWN
from nray.wire.messages import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from nray.server.server import Doorman, Server

log = logging.getLogger("nray.server")

EXIT_INTERRUPTED = 130
#: The first ends in order; the last leaves everything as it is.
INTERRUPTS_MAX = 3


def serve(config: Config, *, name: str, allow_plaintext: bool = False) -> int:
    """Serve a configuration's scan to its end; returns the exit status.

    Args:
        name: the file's, for error messages.

    Raises:
        UserError: the configuration asks for what cannot be done here.
    """
    missing = unsupported(config)
    if missing:
        raise UserError(f"{name}: {'; '.join(missing)}")
    require_work(config, name)
    _demand_loopback(config, name, allow_plaintext)
    made = plan_of(config)
    for warning in made.warnings:
        log.warning("%s", warning)
    doorman = _doorman(config, name)
    return _run(config, made, doorman, name)


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
        udp_only=_payloads(config) if config.scannerconfig.udp.fast else None,
    )


def _payloads(config: Config) -> dict[int, bytes]:
    return KNOWN | config.scannerconfig.udp.custom_hex_payloads


def settings_of(config: Config) -> Settings:
    """How a configuration scans."""
    scanner = config.scannerconfig
    sinks = [config.events.terminal, config.events.json_file]
    states = {state for sink in sinks if sink is not None for state in sink.states}
    return Settings(
        workers=scanner.workers,
        ratelimit=scanner.ratelimit,
        tcp_timeout_ms=max(1, round(scanner.tcp.timeout_s * 1000)),
        udp_timeout_ms=max(1, round(scanner.udp.timeout_s * 1000)),
        adaptive=scanner.tcp.adaptive_timeout,
        udp_fast=scanner.udp.fast,
        udp_payload=scanner.udp.default_hex_payload,
        udp_payloads=_payloads(config),
        states=tuple(sorted(states - {"open"})),
    )


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


def _doorman(config: Config, name: str) -> Doorman | None:
    if not config.tls.enabled:
        return None
    from nray.pki.endpoint import ServerTls
    from nray.pki.errors import PkiError
    from nray.pki.keys import load_identity, load_trust
    from nray.server.tls import TlsDoorman

    try:
        identity = load_identity(config.tls.cert, config.tls.key)
        trust = load_trust(config.tls.ca) if config.tls.ca else None
        tls = ServerTls(identity, trust, config.tls.force_client_auth)
    except PkiError as error:
        raise UserError(f"{name}: TLS: {error.message}", error.hint) from error
    for warning in identity.warnings:
        log.warning("%s", warning)
    return TlsDoorman(tls)


def _run(config: Config, made: Plan, doorman: Doorman | None, name: str) -> int:
    import trio

    from nray.api import loop
    from nray.events.configured import sinks_from_config
    from nray.events.hub import SinkPort, open_hub
    from nray.events.terminal import TerminalSink
    from nray.server.recorder import Recorder
    from nray.server.server import Server, ServerOptions, open_listeners
    from nray.server.summary import exit_status, summary_lines

    settings = settings_of(config)
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
    sinks = sinks_from_config(config.events, where=f"{name}: events")
    if not sinks:
        log.warning("%s: no output is configured under events:, so findings go to stdout", name)
        sinks = [SinkPort(TerminalSink("auto"))]

    async def main() -> Server:
        # Before outputs are opened: a port that is taken must not leave an empty file behind.
        listeners = await open_listeners(options.host, options.ports)
        async with open_hub(sinks) as hub:
            _announce(config, made, listeners)
            recorder = Recorder(hub, settings.tcp_timeout_ms, settings.udp_timeout_ms)
            server = Server(options, made.segments, recorder, doorman)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_signals, server)
                await server.run(listeners)
                nursery.cancel_scope.cancel()
        return server

    server = loop.run(main)
    begun = server.first_lease_at
    seconds = time.monotonic() - begun if begun is not None else 0.0
    for line in summary_lines(server.scheduler, seconds):
        print(line, file=sys.stderr)
    return EXIT_INTERRUPTED if server.interrupted else exit_status(server.scheduler)


def _announce(config: Config, made: Plan, listeners: Sequence[trio.SocketListener]) -> None:
    """Say what is served, where, and to whom."""
    if not config.tls.enabled:
        how = "without TLS"
    elif config.tls.force_client_auth:
        how = "TLS, certificates of nodes demanded"
    else:
        how = "TLS, any node may join"
    where = ", ".join(sorted({_name(listener) for listener in listeners}))
    log.info("listening on %s (%s); waiting for nodes", where, how)
    log.info(
        "%s probes: %s hosts, %s ports%s%s; seed %d",
        *(f"{number:,}" for number in (made.probes, made.hosts, made.ports)),
        f", {made.excluded:,} hosts excluded" if made.excluded else "",
        f", in each of {config.pools} pools" if config.pools > 1 else "",
        made.seed,
    )


def _name(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _watch_signals(server: Server) -> None:
    import os

    import trio

    count = 0
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            count += 1
            if count == 1:
                log.info("interrupted: stopping the nodes; a third Ctrl+C ends at once")
                server.interrupt("the server was interrupted")
            elif count >= INTERRUPTS_MAX:
                log.warning("ended at once")
                os._exit(EXIT_INTERRUPTED)
