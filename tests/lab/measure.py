"""Runs commands side by side and weighs them: a program, and the function that drives it.

Standard input: one JSON object, see `measure`. It makes itself the reaper of all orphans below it
(PR_SET_CHILD_SUBREAPER), so that the processor time of *every* process is counted, also of workers
whose parent did not wait for them, and so that a process which outlives its command is found.

It is a small process of its own for one more reason: a child's ``ru_maxrss`` begins with the
resident size of the process that forked it, so that pytest's own size would be taken for nray's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .namespaces import Namespace

PR_SET_CHILD_SUBREAPER = 36
#: How long processes may outlive their command before they count as left behind.
GRACE_S = 5.0
#: A sample of memory costs about a millisecond for each process: rare enough not to disturb much.
SAMPLE_EVERY_S = 0.05


@dataclass(frozen=True)
class Weighed:
    """What commands cost.

    Attributes:
        statuses: exit status of each, in order; negative for a signal.
        wall_s: from the start of the first to the end of the last.
        gone_s: the same until every process below them was gone.
        cpu_s: user and system time of every process.
        maxrss_bytes: resident size of the largest process.
        memory_bytes: largest sum of proportional set sizes (PSS) at one moment; 0 if not asked for.
        left: processes that had to be killed afterwards.
    """

    statuses: list[int]
    wall_s: float
    gone_s: float
    cpu_s: float
    maxrss_bytes: int
    memory_bytes: int
    left: int


def measure(
    commands: Sequence[Sequence[str]],
    directory: Path,
    *,
    namespace: Namespace | None = None,
    memory: bool = False,
    nofile: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> Weighed:
    """Start all commands at the same moment, wait for all, and say what they cost.

    Output goes to ``0.out``, ``0.err``, ``1.out`` … in the directory, in the order of the commands;
    the directory is their working directory too.

    Args:
        namespace: where they run; None is here.
        memory: sample memory; it disturbs times a little.
        nofile: limit of open files, hard and soft.
        env: their environment; None is ours.
    Raises:
        TimeoutError: after ``timeout_s``; everything below is killed first.
    """
    job = {
        "commands": [list(command) for command in commands],
        "directory": str(directory),
        "memory": memory,
        "nofile": nofile,
        "timeout_s": timeout_s,
    }
    program = [sys.executable, "-S", "-E", __file__]
    started: subprocess.Popen[str] = subprocess.Popen(
        namespace.inside(program) if namespace else program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=None if env is None else dict(env),
    )
    out, _ = started.communicate(json.dumps(job))
    report = json.loads(out)
    if report.pop("timed_out"):
        raise TimeoutError(f"not done after {timeout_s} s: {commands}")
    return Weighed(**report)


# ── the program ─────────────────────────────────────────────────────────────────────────────


def children(pid: int) -> list[int]:
    """Process ids of the children, of all its threads."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All below, parents before their children."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


class _Sampler(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        while True:
            total = sum(map(_pss_bytes, descendants(os.getpid())))
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(SAMPLE_EVERY_S)


def _start(command: list[str], number: int, directory: Path, nofile: int | None) -> int:
    """Fork and exec with output to files; the process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(directory)
        for target, path in ((0, "/dev/null"), (1, f"{number}.out"), (2, f"{number}.err")):
            flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o644), target)
        if nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
        os.execvp(command[0], command)
    except BaseException as error:
        os.write(2, f"measure: {error}\n".encode())
    os._exit(127)


def _kill_all() -> int:
    left = descendants(os.getpid())
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def _weigh(job: dict[str, Any]) -> dict[str, Any]:
    sampler = _Sampler()
    alarm = {"timed_out": False, "left": 0}
    begun = time.monotonic()
    pids = [
        _start(command, number, Path(job["directory"]), job["nofile"])
        for number, command in enumerate(job["commands"])
    ]
    if job["memory"]:
        sampler.start()  # Not before the forks: a thread and a fork do not go together.
    statuses: dict[int, int] = {}
    cpu_s, maxrss, wall_s, gone_s = 0.0, 0, 0.0, 0.0

    def ring(*_: object) -> None:
        """Too late: for a command, or for what a command left behind."""
        alarm["timed_out"] |= len(statuses) < len(pids)
        alarm["left"] += _kill_all()
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # Killing one may bring forth another.

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, job["timeout_s"])
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        gone_s = time.monotonic() - begun
        cpu_s += usage.ru_utime + usage.ru_stime
        maxrss = max(maxrss, usage.ru_maxrss)
        if pid in pids:
            statuses[pid] = os.waitstatus_to_exitcode(status)
            if len(statuses) == len(pids):
                wall_s = gone_s
                signal.setitimer(signal.ITIMER_REAL, GRACE_S)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        **alarm,
        "statuses": [statuses.get(pid, -1) for pid in pids],
        "wall_s": wall_s,
        "gone_s": gone_s,
        "cpu_s": cpu_s,
        "maxrss_bytes": maxrss << 10,
        "memory_bytes": sampler.peak_bytes,
    }


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print(json.dumps(_weigh(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
