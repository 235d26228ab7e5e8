"""Ctrl+C while a program starts: quiet, at once, and handed over to what comes then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cli_lab import PATIENCE_S
from nray.api import interrupts, loop, serve
from nray.config.reader import loads


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def leave(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(interrupts.os, "_exit", leave)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_ends_at_once_until_something_takes_over() -> None:
    interrupts.end_at_once()
    with pytest.raises(Ended, match="130"):
        interrupt()
    interrupts.take_over()
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "own"])
def test_who_heeds_it_otherwise_is_left_alone(handler: object) -> None:
    signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    interrupts.end_at_once()
    interrupt()
    interrupts.take_over()
    interrupt()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_loop_takes_over() -> None:
    caught = []

    async def main() -> None:
        try:
            interrupt()
            await trio.sleep(60)
        except KeyboardInterrupt:  # trio's, at a checkpoint
            caught.append(True)
            raise

    interrupts.end_at_once()
    with pytest.raises(KeyboardInterrupt):
        loop.run(main)
    assert caught


def test_a_server_forgets_the_ledger_that_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ledger"
    config = loads(
        "host: 127.0.0.1\nlisten: 8601\ntargetgenerator.standard: {targets: [127.0.0.1],"
        f" tcpports: [80]}}\nevents.terminal: {{}}\nledger: {file}\n"
    )
    known = set(sys.modules)

    def run(*_: object) -> int:
        assert file.exists()
        interrupt()
        raise AssertionError("not interrupted")

    monkeypatch.setattr(serve, "_run", run)
    monkeypatch.setattr(serve, "take_over", lambda: known.update(sys.modules) or take_over())
    monkeypatch.setattr(serve.privileges, "drop", lambda **_: None)
    take_over = interrupts.take_over
    interrupts.end_at_once()
    with pytest.raises(KeyboardInterrupt):
        serve.serve(config, name="conf.yaml")
    assert not file.exists()
    assert {each for each in set(sys.modules) - known if each.startswith(("nray", "trio"))} == set()


#: A start that stands still where CPython drops exceptions: while something is disposed of.
STANDS_STILL = """\
import sys, time

class Held:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            Held()

sys.meta_path.insert(0, Finder())
sys.argv = ["nray", "--version"]
from nray.cli import main
main()
"""


def test_an_interrupt_that_python_would_drop_is_heeded() -> None:
    command = [sys.executable, "-c", STANDS_STILL]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_S) == ("", "")
    assert process.returncode == 130
