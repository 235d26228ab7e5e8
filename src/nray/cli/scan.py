"""``nray scan``: a scan of one process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from nray import UserError

if TYPE_CHECKING:
    from nray.events.hub import SinkPort
    from nray.targets.plan import Plan

#: What ``--timeout`` is where it is not given: then hosts near others that answered fast are
#: waited for less long.
TIMEOUT_S = 1.0
#: Probes listed at a time: some 100 kB of text.
LIST_CHUNK = 4096
SHOWN = ("closed", "filtered", "open|filtered", "error")


@click.command(
    name="scan",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
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
    metavar="DURATION",
    help="Wait so long for an answer. [default: 1000ms at most, less where neighbours answer fast]",
)
@click.option("-o", "--output", metavar="FILE", help="Also write events to FILE, a line each.")
@click.option(
    "-w", "--workers", metavar="N", default="auto", show_default=True, help="Probes in flight."
)
@click.option(
    "--target-file",
    multiple=True,
    metavar="FILE",
    help="Read targets from FILE; - is standard input.",
)
@click.option("--exclude", multiple=True, metavar="LIST", help="Never probe these.")
@click.option("--exclude-file", multiple=True, metavar="FILE", help="Never probe those in FILE.")
@click.option("--rate", type=float, metavar="N", help="Start at most N probes a second.")
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Worker processes. [default: one a core]",
)
@click.option(
    "--show",
    metavar="LIST",
    help="Also report these states: closed, filtered, open|filtered, error.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
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
@click.option("--list", "list_", is_flag=True, help="Print what would be probed, send nothing.")
@click.option("--count", is_flag=True, help="With --list: print totals only.")
@click.option(
    "--i-have-permission", "permission", is_flag=True, help="You may scan more than a /8."
)
@click.option("--include-reserved", is_flag=True, help="Leave reserved ranges in such a scan.")
@click.option("-q", "--quiet", is_flag=True, help="No words but warnings and errors.")
@click.option("--debug", is_flag=True, hidden=True)
def scan(**options: Any) -> int:
    """Scan targets from this machine.

    \b
    Examples:
      nray scan -t 127.0.0.1 -p 1-65535
      nray scan -t 198.18.0.0/20,scan.example.org -p top100 --rate 2000
      nray scan -t 198.18.0.0/16 -p 80,443 --exclude 198.18.7.0/24 -o out.json
      nray scan -t 198.18.0.0/30 -p U:53,T:80 --list
    """
    from nray.targets.plan import plan

    _check_usage(options)
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
    )
    if not options["quiet"]:
        for warning in made.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    if options["list_"]:
        return _list(made, totals=options["count"])
    return _scan(made, options)


def _check_usage(options: dict[str, Any]) -> None:
    if not options["targets"] and not options["target_file"]:
        raise click.UsageError("Missing option '-t' / '--targets' (or '--target-file').")
    if not options["ports"]:
        raise click.UsageError("Missing option '-p' / '--ports'.")
    if options["count"] and not options["list_"]:
        raise click.UsageError("--count goes with --list.")
    if options["rate"] is not None and not options["rate"] > 0:
        raise click.BadParameter("a rate is a number above 0", param_hint="--rate")


def _scan(made: Plan, options: dict[str, Any]) -> int:
    from nray.api.scan import run, settings_for
    from nray.config.durations import DurationError, parse_duration

    timeout_s = TIMEOUT_S
    if options["timeout"] is not None:
        try:
            timeout_s = parse_duration(options["timeout"])
        except DurationError as error:
            raise click.BadParameter(str(error), param_hint="--timeout") from None
        if timeout_s <= 0:
            raise click.BadParameter("must be above 0", param_hint="--timeout")
    show = _shown(options["show"])
    settings = settings_for(
        timeout_s=timeout_s,
        adaptive=options["timeout"] is None,
        workers=_workers(options["workers"]),
        rate=options["rate"] or 0.0,
        show=show,
    )

    def sinks() -> list[SinkPort]:
        from nray.events.hub import SinkPort
        from nray.events.json_file import JsonFileSink
        from nray.events.terminal import TerminalSink

        ports = [SinkPort(TerminalSink(options["format_"]), states=show)]
        if options["output"]:
            ports.append(SinkPort(JsonFileSink(options["output"]), states=show, channelsize=10000))
        return ports

    progress = None
    if not options["quiet"] and sys.stderr.isatty():
        progress = _progress
    _start_log(options)
    result = run(made, settings, sinks, options["processes"] or 0, progress=progress)
    if progress is not None:
        _progress("")
    if not options["quiet"] or result.exit_status:
        for line in result.summary:
            print(line, file=sys.stderr)
    return result.exit_status


def _start_log(options: dict[str, Any]) -> None:
    from nray.cli.logs import start_logging

    start_logging(debug=options["debug"], quiet=True)


def _workers(text: str) -> int:
    if text == "auto":
        return 0
    if text.isdecimal() and 0 < int(text) <= 1_000_000:
        return int(text)
    raise click.BadParameter("a number of probes in flight, or auto", param_hint="--workers")


def _shown(text: str | None) -> tuple[str, ...]:
    states = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for state in states:
        if state not in (*SHOWN, "open"):
            raise click.BadParameter(
                f"there is no state {state!r}; there are {', '.join(SHOWN)}", param_hint="--show"
            )
    return tuple(state for state in states if state != "open")


def _progress(line: str) -> None:
    """One line on the terminal, written over."""
    width = os.get_terminal_size(2).columns if os.isatty(2) else 80
    sys.stderr.write(f"\r\x1b[K{line[: width - 1]}")
    sys.stderr.flush()


def _list(made: Plan, *, totals: bool) -> int:
    if totals:
        print(
            f"hosts {made.hosts}\nports {made.ports}\nprobes {made.probes}\n"
            f"excluded {made.excluded}"
        )
        return 0
    try:
        for segment in made.segments:
            for start in range(0, segment.probes, LIST_CHUNK):
                _write_all(segment.listing(start, min(LIST_CHUNK, segment.probes - start)))
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        raise UserError(f"cannot write the list: {error.strerror}") from error
    return 0


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
