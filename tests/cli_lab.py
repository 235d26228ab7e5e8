"""The command line under test: parsed without a call, or run as a process of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from nray.cli.root import nray

#: For anything that a process is waited for; far more than it takes.
PATIENCE_S = 120.0


def parse(*arguments: str) -> click.Context:
    """The context of the innermost command, nothing called."""
    ctx = nray.make_context("nray", list(arguments))
    while isinstance(ctx.command, click.Group):
        name, below, rest = ctx.command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert below is not None
        ctx = below.make_context(name, rest, parent=ctx)
    return ctx


def command_line(*arguments: str, program: str = "nray") -> list[str]:
    """As a user would start it: the installed script if there is one."""
    script = Path(sys.executable).parent / program
    if script.exists():
        return [str(script), *arguments]
    call = "main" if program == "nray" else "node_main"
    return [sys.executable, "-c", f"from nray.cli import {call}; {call}()", *arguments]


def shell(script: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``nray`` is the command under test."""
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        **options,
    )


class Process:
    """A command in a session of its own, so that what is left of it can be found."""

    def __init__(self, arguments: Sequence[str], cwd: Path, name: str, **options: Any) -> None:
        self.out, self.err = cwd / f"{name}.out", cwd / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                arguments,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                **({"stdout": out, "stderr": err} | options),
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Standard error so far."""
        return self.err.read_text()

    def interrupt(self) -> None:
        """Ctrl+C: the terminal sends SIGINT to all of them."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for it; its exit status. AssertionError with what it said if it does not end."""
        try:
            return self.popen.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end; it said: {self.said}") from None

    def left(self) -> list[int]:
        """Processes of its session that are still there after a moment."""
        until(lambda: not self._members(), PATIENCE_S, lambda: "")
        return self._members()

    def kill(self) -> None:
        """End whatever is left of it."""
        for pid in [*self._members(), self.popen.pid]:
            if self.popen.returncode is None or pid != self.popen.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.popen.wait()

    def _members(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    # After the name, which may hold blanks: state, ppid, pgrp, session.
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.popen.pid and fields[0] != "Z":
                        found.append(int(entry.name))
        return found


@contextlib.contextmanager
def started(
    arguments: Sequence[str], cwd: Path, name: str = "nray", **options: Any
) -> Iterator[Process]:
    """A process, and nothing of it afterwards."""
    process = Process(arguments, cwd, name, **options)
    try:
        yield process
    finally:
        process.kill()


def until(
    condition: Callable[[], object],
    timeout_s: float = PATIENCE_S,
    why: Callable[[], str] | None = None,
) -> None:
    """Wait for it; AssertionError if it does not come about (unless ``why`` has no words)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            words = why() if why else "did not come about"
            if words:
                raise AssertionError(words)
            return
        time.sleep(0.01)


def own_address(number: int) -> str:
    """A loopback address of this test run alone: two runs at once must not meet."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 8) % 63}.{pid % 256}.{number}"


#: Which of the processes of a test session this is (pytest-xdist), and how many could be.
_PROCESS, _PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16, 16


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has, and that no outgoing connection will take.

    Processes of one session draw from ports of their own: two must not find the same one free.
    """
    while True:
        port = random.randrange(10_000, 20_000) // _PROCESSES * _PROCESSES + _PROCESS
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def listening(address: str, count: int, low: int = 21000, high: int = 21100) -> Iterator[set[int]]:
    """So many listeners at an address; the ports open there, with those open on all addresses."""
    everywhere = {port for port in range(low, high + 1) if _answers("127.91.92.93", port)}
    with contextlib.ExitStack() as stack:
        mine = [port for port in range(low, high + 1) if port not in everywhere][::7][:count]
        for port in mine:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(128)
        yield everywhere | set(mine)


def _answers(address: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((address, port)) == 0
