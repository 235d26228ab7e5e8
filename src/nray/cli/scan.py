"""``nray scan``: a scan of one process."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from nray import UserError
from nray.api.interrupts import EXIT_INTERRUPTED
from nray.cli import streams
from nray.cli.command import Command, Number, Rate

if TYPE_CHECKING:
    from nray.api.state import Origin
    from nray.cli.progress import Progress
    from nray.cli.sinks import OutputFile
    from nray.events.hub import SinkPort
    from nray.ledger.ledger import Ledger
    from nray.node.raw import RawNet
    from nray.targets.plan import Plan
    from nray.worker.forkserver import ForkServer

#: What ``--timeout`` is where it is not given: then hosts near others that answered fast are
#: waited for less long.
TIMEOUT_S = 1.0
#: No answer takes longer; what is meant may be ms.
TIMEOUT_MAX_S = 3600
#: As in a configuration.
RETRIES_MAX = 10
#: Probes listed at a time: some 100 kB of text.
LIST_CHUNK = 4096
#: Events that wait for the file of --output before the scan waits: the default of a json-file.
FILE_WAITING_MAX = 10_000
#: States that make events if asked for; open ones always do.
SHOWN = ("closed", "filtered", "open|filtered", "error")


class InFlight(Number):
    """A number of probes, or ``auto``, which is 0."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        return 0 if value == "auto" else super().convert(value, param, ctx)

    def _right(self) -> str:
        return f"{super()._right()}, or auto"


class Timeout(click.ParamType):  # type: ignore[type-arg]
    """A duration as in configuration files, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from nray.config.durations import DurationError, parse_duration

        try:
            seconds = parse_duration(value)
        except DurationError as error:
            self.fail(str(error), param, ctx)
        if not 0 < seconds <= TIMEOUT_MAX_S:
            self.fail(f"{value} is not above 0 and at most {TIMEOUT_MAX_S // 60}m", param, ctx)
        return seconds


class Discovery(click.ParamType):  # type: ignore[type-arg]
    """How hosts are looked for, as in configuration files."""

    name = "how"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from nray.config.discovery import DiscoveryError, format_discovery, parse_discovery

        try:
            return format_discovery(*parse_discovery(value))
        except DiscoveryError as error:
            self.fail(f"{value[:60]!r} is no way to look for hosts: {error}", param, ctx)


class States(click.ParamType):  # type: ignore[type-arg]
    """Names of states, commas between; without ``open``."""

    name = "states"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        states = [part for part in value.replace(",", " ").split() if part != "open"]
        for state in states:
            if state not in SHOWN:
                self.fail(f"there is no state {state!r}: {', '.join(SHOWN)}", param, ctx)
        return tuple(states)


@click.command(name="scan", cls=Command, example="nray scan -t 198.18.0.0/24,192.0.2.7 -p 22,80")
@click.option(
    "-t",
    "--targets",
    multiple=True,
    metavar="LIST",
    help="Addresses, networks, ranges, names; commas between.",
)
@click.option(
    "-p",
    "--ports",
    multiple=True,
    metavar="LIST",
    help="22, 8000-8100, top25, all, U:53,T:80; commas between.",
)
@click.option("-u", "--udp", is_flag=True, help="Ports without a prefix are UDP ports.")
@click.option(
    "--timeout",
    type=Timeout(),
    metavar="DURATION",
    help="Wait so long for an answer, 1500ms say. [default: 1000ms, or less where "
    "neighbours answer fast]",
)
@click.option(
    "--syn",
    is_flag=True,
    help="Probe TCP ports by SYNs alone, made by nray; needs the right to raw sockets.",
)
@click.option(
    "--discovery",
    type=Discovery(),
    metavar="HOW",
    default="none",
    show_default=True,
    help="Find hosts first, and scan those: ping, arp, auto or syn:80,443.",
)
@click.option(
    "--retries",
    type=Number("a number of retries", 0, RETRIES_MAX),
    metavar="N",
    help="With --syn, and with pings: probe what is silent N times more. [default: 1]",
)
@click.option(
    "--keep-tarpits",
    is_flag=True,
    help="Report each port of hosts on which every port answers, not each such host once.",
)
@click.option(
    "--stop-after-first-open",
    is_flag=True,
    help="Probe a host no further once an open port of it is known; report that one alone.",
)
@click.option("--xdp", is_flag=True, help="With --syn: send by AF_XDP, faster, unseen by captures.")
@click.option("-o", "--output", metavar="FILE", help="Also write events to FILE, a line each.")
@click.option(
    "-w",
    "--workers",
    type=InFlight("a number of probes in flight", 1, 1_000_000),
    metavar="N",
    default="auto",
    show_default=True,
    help="Probes in flight at most; auto: what the machine bears.",
)
@click.option(
    "--target-file",
    multiple=True,
    metavar="FILE",
    help="Read targets from FILE; - is standard input.",
)
@click.option("--exclude", multiple=True, metavar="LIST", help="Never probe these.")
@click.option("--exclude-file", multiple=True, metavar="FILE", help="Never probe those in FILE.")
@click.option(
    "--rate",
    type=Rate("a rate", 0.001, whole=False),
    metavar="N",
    help="Start at most N probes a second; auto, with --syn: what the path bears.",
)
@click.option(
    "--host-rate",
    type=Number("a rate", 0.001, whole=False),
    metavar="N",
    help="Send one host at most N probes a second.",
)
@click.option(
    "--network-rate",
    type=Number("a rate", 0.001, whole=False),
    metavar="N",
    help="Send one network (/24, IPv6: /64) at most N probes a second.",
)
@click.option(
    "--processes",
    type=Number("a number of processes", 1, 1024),
    metavar="N",
    help="Worker processes. [default: one a core]",
)
@click.option(
    "--show",
    type=States(),
    default="",
    metavar="LIST",
    help="Also report these states: closed, filtered, open|filtered, error.",
)
@click.option(
    "--seed",
    type=Number("a seed", 0, 2**64 - 1),
    metavar="N",
    help="Decides the order; the same seed, the same order.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="auto: text on a terminal, JSON lines elsewhere.",
)
@click.option(
    "--state", metavar="FILE", help="Keep the scan's state in FILE, so that it can be resumed."
)
@click.option(
    "--resume", metavar="FILE", help="Go on with the scan whose state is in FILE, as it was begun."
)
@click.option("--list", "list_", is_flag=True, help="Print what would be probed, send nothing.")
@click.option("--count", is_flag=True, help="With --list: print totals only.")
@click.option(
    "--i-have-permission", "permission", is_flag=True, help="You may scan more than a /8."
)
@click.option("--include-reserved", is_flag=True, help="Leave reserved ranges in such a scan.")
@click.option("-q", "--quiet", is_flag=True, help="Neither progress nor summary.")
@click.option("--debug", is_flag=True, help="Tell more, the seed for instance.")
def scan(**options: Any) -> int:
    """Scan targets from this machine.

    \b
    Examples:
      nray scan -t 127.0.0.1 -p 1-65535
      nray scan -t 198.18.0.0/20,scan.example.org -p top100 --rate 2000
      nray scan -t 198.18.0.0/16 -p 80,443 --exclude 198.18.7.0/24 -o out.json
      nray scan -t 198.18.0.0/16 -p 80,443 --syn --rate 100000
      nray scan -t 198.18.0.0/16 -p top100 --syn --discovery auto
      nray scan -t 198.18.0.0/30 -p U:53,T:80 --list
      nray scan -t 198.18.0.0/16 -p all -o out.json --state scan.state
      nray scan --resume scan.state
    """
    from nray.api.workers import start_fork_server

    check_usage(options)
    if options["list_"]:
        return _list(_plan(options), totals=options["count"])
    # It gets ready on another core while the targets are read.
    fork_server = start_fork_server()
    try:
        if options["resume"]:
            return _resume(options, fork_server)
        return _begin(_plan(options), options, fork_server)
    finally:
        fork_server.close()


def _plan(options: dict[str, Any]) -> Plan:
    from nray.targets.plan import plan

    ports = options["ports"]
    made = plan(
        options["targets"],
        tcp=() if options["udp"] else ports,
        udp=ports if options["udp"] else (),
        target_files=options["target_file"],
        exclude=options["exclude"],
        exclude_files=options["exclude_file"],
        seed=options["seed"],
        permission=options["permission"],
        include_reserved=options["include_reserved"],
        listing=options["list_"],
        discovery=options["discovery"],
    )
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return made


#: Options that a scan which is resumed has from its beginning.
SETTLED = (
    "targets", "target_file", "ports", "udp", "timeout", "output", "exclude", "exclude_file",
    "syn", "discovery", "retries", "keep_tarpits", "stop_after_first_open", "rate", "host_rate",
    "network_rate", "show", "seed", "state", "list_", "permission", "include_reserved",
)  # fmt: skip


def _is_given(value: object) -> bool:
    return bool(value) or (value == 0 and value is not False)


def check_usage(options: dict[str, Any]) -> None:
    if options["resume"]:
        given = [name for name in SETTLED if _is_given(options[name]) and options[name] != "none"]
        if given:
            flag = "--" + given[0].rstrip("_").replace("_", "-")
            raise click.UsageError(f"{flag} is settled: --resume goes on as the scan was begun")
        return
    if not options["targets"] and not options["target_file"]:
        raise click.UsageError("no targets are given (-t/--targets or --target-file)")
    if not options["ports"]:
        raise click.UsageError("no ports are given (-p/--ports)")
    if options["count"] and not options["list_"]:
        raise click.BadOptionUsage("count", "--count goes with --list")
    pings = options["discovery"] in ("ping", "arp", "auto")
    if options["retries"] is not None and not (options["syn"] or pings):
        raise click.BadOptionUsage("retries", "--retries goes with --syn: else the kernel tries")
    if options["xdp"] and not options["syn"]:
        raise click.BadOptionUsage("xdp", "--xdp goes with --syn: else the kernel sends")


def _begin(made: Plan, options: dict[str, Any], fork_server: ForkServer) -> int:
    """A new scan."""
    from nray.api.scan import payloads_for, raw_net, settings_for
    from nray.api.state import Origin, create_state, forget
    from nray.targets.discovery import sends_pings

    streams.demand_output()
    settings = settings_for(
        timeout_s=options["timeout"] or TIMEOUT_S,
        adaptive=options["timeout"] is None,
        workers=options["workers"],
        rate=options["rate"] or 0.0,
        host_rate=options["host_rate"] or 0.0,
        network_rate=options["network_rate"] or 0.0,
        show=options["show"],
        method="syn" if options["syn"] else "connect",
        retries=1 if options["retries"] is None else options["retries"],
        keep_tarpits=options["keep_tarpits"],
        first_open=options["stop_after_first_open"],
        payloads=payloads_for(made),
        pings=sends_pings(options["discovery"]),
    )
    # What cannot be had is told before files are made.
    raw = raw_net(made, settings, xdp=options["xdp"])
    origin = Origin(
        "scan",
        settings,
        show=options["show"],
        output=options["output"] or "",
        directory=os.getcwd(),
        processes=options["processes"] or 0,
    )
    if not options["state"]:
        return _scan(made, options, origin, fork_server, _output(options["output"]), None, raw)
    ledger = create_state(options["state"], origin, made)
    try:
        file = _output(options["output"])
    except UserError:
        forget(ledger, options["state"])
        raise
    try:
        return _scan(made, options, origin, fork_server, file, ledger, raw)
    finally:
        ledger.close()


def _resume(options: dict[str, Any], fork_server: ForkServer) -> int:
    """The scan in a state file, from where it stands."""
    from nray.api.scan import raw_net
    from nray.api.state import open_state, plan_of_segments, position_of
    from nray.events.json_file import json_file_name
    from nray.targets.segment import Segment

    streams.demand_output()
    path = options["resume"]
    ledger, origin = open_state(path, "scan")
    try:
        made = plan_of_segments(
            (Segment.unpack(body) for _, body in ledger.segments()), origin.seed
        )
        raw = raw_net(made, origin.settings, xdp=options["xdp"])
        known = position_of(ledger, json_file_name(origin.output))
        file = _output(origin.output, origin.directory, known)
        options |= {"state": path, "show": origin.show, "processes": origin.processes}
        return _scan(made, options, origin, fork_server, file, ledger, raw)
    finally:
        ledger.close()


def _scan(
    made: Plan,
    options: dict[str, Any],
    origin: Origin,
    fork_server: ForkServer,
    file: OutputFile | None,
    ledger: Ledger | None,
    raw: RawNet | None = None,
) -> int:
    from nray.api.scan import run
    from nray.cli.logs import start_logging

    progress = _progress(quiet=options["quiet"])
    start_logging(debug=options["debug"], quiet=True, before=progress.clear if progress else None)
    logging.getLogger("nray.scan").debug("seed %d, %d probes", made.seed, made.probes)
    try:
        result = run(
            made,
            origin.settings,
            lambda: _sinks(options, file, progress),
            origin.processes,
            progress=progress,
            fork_server=fork_server,
            ledger=ledger,
            raw=raw,
        )
    finally:
        if progress is not None:
            progress.clear()
    if not options["quiet"] or result.exit_status:
        for line in result.summary:
            print(line, file=sys.stderr)
    if result.exit_status == EXIT_INTERRUPTED and ledger is not None:
        print(f"go on with it by: nray scan --resume {options['state']}", file=sys.stderr)
    return result.exit_status


def _progress(*, quiet: bool) -> Progress | None:
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from nray.cli.progress import Progress

    return Progress()


def _output(
    filename: str | None, directory: str = "", resume_at: int | None = None
) -> OutputFile | None:
    """The file of --output, open: what is wrong with it is told before anything is sent."""
    if not filename:
        return None
    from nray.cli.sinks import OutputFile

    file = OutputFile(filename, directory, resume_at)
    file.open()
    return file


def _sinks(
    options: dict[str, Any], file: OutputFile | None, progress: Progress | None
) -> list[SinkPort]:
    from nray.events.hub import SinkPort
    from nray.events.terminal import TerminalSink

    terminal = TerminalSink(options["format_"])
    if progress is not None and os.isatty(1):
        from nray.cli.sinks import TidyTerminal

        terminal = TidyTerminal(options["format_"], progress)
    ports = [SinkPort(terminal, states=options["show"])]
    if file is not None:
        ports.append(SinkPort(file, states=options["show"], channelsize=FILE_WAITING_MAX))
    return ports


def _list(made: Plan, *, totals: bool) -> int:
    if totals:
        print(
            f"hosts {made.hosts}\nports {made.ports}\nprobes {made.probes}\n"
            f"excluded {made.excluded}"
        )
        if made.searches:
            print(f"discovery {made.searches}")
        return 0
    if made.searches:
        from nray.server.summary import plural

        print(
            f"this is how hosts are looked for first; then {plural(made.ports, 'port')} of each"
            f" that is found, {plural(made.probes, 'probe')} at most",
            file=sys.stderr,
        )
    try:
        for segment in made.segments:
            for start in range(0, segment.probes, LIST_CHUNK):
                _write_all(segment.listing(start, min(LIST_CHUNK, segment.probes - start)))
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        raise streams.OutputError(f"cannot write the list: {error.strerror}") from error
    return 0


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
