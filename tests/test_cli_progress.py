"""The progress line: on a terminal only, never mixed with results, gone at the end."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_lab import command_line, listening, own_address, started
from nray.cli.progress import fitting

ADDRESS = own_address(3)
SCAN = ["scan", "-t", ADDRESS, "-p", "21000-21020", "--rate", "15"]


@pytest.fixture(scope="module")
def ports() -> Iterator[set[int]]:
    with listening(ADDRESS, 3, high=21020) as found:
        yield found


def screen(raw: str) -> list[str]:
    """What a terminal shows in the end, for the two controls that nray uses."""
    lines = []
    for line in raw.replace("\r\n", "\n").split("\n"):
        shown = line.rpartition("\r\x1b[K")[2]
        assert "\x1b" not in shown
        assert "\r" not in shown
        lines.append(shown)
    return lines


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (26, "1.5 % done: 1,234 of 5,678"),
        (33, "1.5 % done: 1,234 of 5,678"),
        (34, "1.5 % done: 1,234 of 5,678; 1 node"),
        (41, "1.5 % done: 1,234 of 5,678; 1 node"),
        (42, "1.5 % done: 1,234 of 5,678; 1 node, 2 hits"),
        (20, "1.5 % done: 1,234 of"),
    ],
)
def test_a_line_that_is_too_long_ends_with_a_whole_part(columns: int, shown: str) -> None:
    line = "1.5 % done: 1,234 of 5,678; 1 node, 2 hits"
    assert fitting(line, columns) == shown


def on_a_terminal(tmp_path: Path, *arguments: str, stdout: bool) -> str:
    """All that reaches a terminal of 80 columns; standard output only if told so."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=theirs, check=True)
    streams = {"stderr": theirs} | ({"stdout": theirs} if stdout else {})
    with started(command_line(*arguments), tmp_path, **streams, env=os.environ | {"TERM": "xterm"}):
        os.close(theirs)
        raw = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the terminal's last user has gone
                break
            if not data:
                break
            raw += data
    os.close(ours)
    return raw.decode()


def test_results_and_progress_on_one_terminal(tmp_path: Path, ports: set[int]) -> None:
    raw = on_a_terminal(tmp_path, *SCAN, stdout=True)
    assert re.search(r"\r\x1b\[K[\d.]+ % done: ", raw), "no progress was shown"
    *results, summary, last = screen(raw)
    assert last == ""
    assert summary.startswith("21 probes in ")
    assert sorted(int(line.split()[1].split("/")[0]) for line in results) == sorted(ports)
    assert all(len(line) <= 80 for line in screen(raw))


def test_progress_alone_on_the_terminal(tmp_path: Path, ports: set[int]) -> None:
    raw = on_a_terminal(tmp_path, *SCAN, stdout=False)
    assert " % done: " in raw
    (summary, last) = screen(raw)
    assert (summary.startswith("21 probes in "), last) == (True, "")


def test_an_error_takes_the_line_away(tmp_path: Path, ports: set[int]) -> None:
    slow = [*SCAN[:-1], "8", "--seed", "3", "-o", "/dev/full"]
    raw = on_a_terminal(tmp_path, *slow, stdout=False)
    assert screen(raw)[0] == "error: json-file /dev/full: writing failed: No space left on device"


@pytest.mark.parametrize("quiet", [["-q"], []])
def test_none_where_nobody_sees_it(quiet: list[str], tmp_path: Path, ports: set[int]) -> None:
    if quiet:
        raw = on_a_terminal(tmp_path, *SCAN, *quiet, stdout=False)
    else:
        with started(command_line(*SCAN), tmp_path) as scan:
            assert scan.end() == 0
            raw = scan.said
    assert "% done" not in raw
    assert "\x1b" not in raw
