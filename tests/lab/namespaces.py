"""Network namespaces that are gone when the test is over, whatever happened in it.

The names carry the process id of their maker. A run that was killed outright leaves its
namespaces behind; the next one removes those whose maker is dead.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PREFIX = "nraylab"
NETNS_DIR = Path("/run/netns")
#: A command that only sets something up; the longest (nft with 10,000 elements) takes under 1 s.
SETUP_TIMEOUT_S = 120.0
#: How long a killed process may take to be gone; the kernel closes up to 20,000 sockets meanwhile.
KILL_TIMEOUT_S = 30.0

_count = itertools.count()


class LabError(Exception):
    """The laboratory could not be set up; its text holds what the failed program said."""


def missing(*programs: str) -> str | None:
    """Say why no namespace can be made here, or None if it can.

    Args:
        programs: further programs that the caller needs on the PATH.
    """
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [program for program in ("ip", *programs) if shutil.which(program) is None]
    if absent:
        return f"not on the PATH: {', '.join(absent)}"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True)
    return None


def require(*programs: str) -> None:
    """Skip the running test where it cannot run; under ``CI=true`` fail it instead.

    A continuous integration that skips its most telling tests looks green and proves nothing.
    """
    import pytest

    reason = missing(*programs)
    if reason is None:
        return
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"{reason} (under CI this is a failure)", pytrace=False)
    pytest.skip(reason)


def call(command: Sequence[str], stdin: str = "") -> str:
    """Run a set-up command; return its output. Raises `LabError` with what it said."""
    done = subprocess.run(
        list(command), input=stdin, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[:2000]}")
    return done.stdout


def alive(pid: int) -> bool:
    """Whether a process of that id exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name in brackets may itself hold brackets and blanks: the state is behind the last one.
    return text.rpartition(")")[2].split()[0] != "Z"


def remove_stale() -> None:
    """Remove namespaces whose maker is no longer alive."""
    if not NETNS_DIR.is_dir():
        return
    for path in NETNS_DIR.glob(f"{PREFIX}-*-*"):
        maker = path.name.split("-")[1]
        if maker.isdigit() and not Path(f"/proc/{maker}").exists():
            _delete(path.name)


def _pids(name: str) -> list[int]:
    shown = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(word) for word in shown.stdout.split()]


def _delete(name: str) -> None:
    """Kill what runs in the namespace, by process id, and remove it."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (pids := _pids(name)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Namespace:
    """One network namespace with ``lo`` up and no other way out.

    A context manager: leaving it kills every process inside and removes it. The same happens at
    the end of the interpreter if the block was never left.
    """

    def __init__(self, label: str) -> None:
        remove_stale()
        self.name = f"{PREFIX}-{os.getpid()}-{next(_count)}-{label}"
        self._children: list[subprocess.Popen[Any]] = []
        call(["ip", "netns", "add", self.name])
        atexit.register(self.close)
        try:
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ip(self, *words: str) -> str:
        """``ip`` with the namespace as its ``-n``."""
        return call(["ip", "-n", self.name, *words])

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in here; it keeps the process id."""
        return ["ip", "netns", "exec", self.name, *command]

    def call(self, command: Sequence[str], stdin: str = "") -> str:
        """Run a set-up command in here; see `call`."""
        return call(self.inside(command), stdin)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in here; it is killed with the namespace at the latest."""
        child = subprocess.Popen(self.inside(command), **options)
        self._children.append(child)
        return child

    def pids(self) -> list[int]:
        """Ids of all processes in here, also of those that their parents left behind."""
        return _pids(self.name)

    def sysctl(self, values: Mapping[str, int | str]) -> list[str]:
        """Set kernel parameters; return the names of those that this kernel does not have here."""
        lines = []
        for name, value in values.items():
            path = f"/proc/sys/{name.replace('.', '/')}"
            lines.append(f"if [ -w {path} ]; then echo '{value}' > {path}; else echo {name}; fi")
        return self.call(["sh", "-e", "-c", "\n".join(lines)]).split()

    def close(self) -> None:
        """Kill and remove; a second call does nothing."""
        atexit.unregister(self.close)
        if (NETNS_DIR / self.name).exists():
            _delete(self.name)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(KILL_TIMEOUT_S)
        self._children.clear()
