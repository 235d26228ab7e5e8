"""The command under test, as a user would run it, and its output read as a user's script would."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import descendants
from .namespaces import Namespace

SOURCE = Path(__file__).resolve().parents[2] / "src"


def nray(*arguments: str) -> list[str]:
    """The command line of ``nray`` under the running interpreter."""
    return [sys.executable, "-m", "nray", *arguments]


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("nray") is not None


def environment() -> dict[str, str]:
    """Ours, with the source tree to import from if nray is not installed."""
    env = dict(os.environ)
    if not _installed():
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCE), env.get("PYTHONPATH"))))
    return env


@dataclass(frozen=True)
class Finished:
    """A command that has ended; both outputs are text."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.stdout)

    @property
    def probes(self) -> int:
        return probes_reported(self.stderr)

    def expect(self, status: int = 0) -> Finished:
        """Itself, if it ended so and without a traceback; else AssertionError with what it said."""
        assert self.status == status, f"exit {self.status}, not {status}: {self.stderr[-3000:]}"
        assert "Traceback" not in self.stderr, self.stderr[-3000:]
        return self


def limited(nofile: int, command: Sequence[str]) -> list[str]:
    """The command under ``ulimit -n``."""
    return ["sh", "-c", f'ulimit -n {nofile} && exec "$@"', "sh", *command]


def run(
    namespace: Namespace, command: Sequence[str], timeout_s: float = 180.0, **options: Any
) -> Finished:
    """Run a command to its end in a namespace.

    Raises `subprocess.TimeoutExpired` with its output; what is left dies with the namespace.
    """
    begun = time.monotonic()
    process = namespace.popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Finished(process.returncode, stdout, stderr, time.monotonic() - begun)


def scan(namespace: Namespace, *arguments: str, timeout_s: float = 180.0) -> Finished:
    """``nray scan`` with these arguments, to its end."""
    return run(namespace, nray("scan", *arguments), timeout_s)


def read_events(text: str) -> list[dict[str, Any]]:
    """JSON lines; AssertionError with the line that is none."""
    events = []
    for line in text.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            raise AssertionError(f"no JSON: {line!r}") from None
    return events


def portscans(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ``result.portscan`` parts, in order; events of other kinds have none."""
    found = []
    for event in events:
        result = event.get("result")
        if result and "portscan" in result:
            found.append(result["portscan"])
    return found


def open_pairs(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(target, port) of each event with an open port, in order, repetitions included."""
    return [(part["target"], part["port"]) for part in portscans(events) if part["open"] is True]


def states(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], tuple[str, str]]:
    """(target, port) to (state, reason). AssertionError if one pair has two events."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for part in portscans(events):
        pair = (part["target"], part["port"])
        assert pair not in found, f"two events for {pair}"
        found[pair] = (part["state"], part["reason"])
    return found


def probes_reported(stderr: str) -> int:
    """The probes of a scan, from the summary at the end of its standard error."""
    for line in reversed(stderr.splitlines()):
        found = re.search(r"\bprobes[ :=]+([\d,]+)|([\d,]+) probes?\b", line)
        if found:
            return int((found[1] or found[2]).replace(",", ""))
    raise AssertionError(f"no number of probes in: {stderr[-2000:]!r}")


def totals(stdout: str) -> dict[str, int]:
    """What ``--list --count`` printed: one ``name value`` a line."""
    found = {}
    for line in stdout.splitlines():
        name, _, value = line.partition(" ")
        found[name] = int(value)
    return found


def workers_of(pid: int) -> list[int]:
    """Worker processes below a scan or a node: the deepest of its descendants.

    They are grandchildren, for a forkserver stands between; while it starts there may be none.
    """
    below = descendants(pid)
    parents = {child: _parent(child) for child in below}
    return [child for child in below if parents[child] not in (0, pid)]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
