"""Issue 11, 5: a /0 is listed and counted in little memory (time: bench/listing.py)."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lab.listing import COMMAND, draw_networks, size
from lab.measure import Weighed, measure
from lab.nray import environment, nray, totals

#: The limit of the issue.
LIMIT_BYTES = 100_000_000


def weigh(words: list[str], directory: Path, head: bool = False) -> tuple[Weighed, str, str]:
    command = nray("scan", "--list", *words)
    if head:
        command = ["sh", "-c", f"{shlex.join(command)} | head -1"]
    weighed = measure([command], directory, env=environment(), timeout_s=180)
    return weighed, (directory / "0.out").read_text(), (directory / "0.err").read_text()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.txt"
    path.write_text("".join(f"{network}\n" for network in draw_networks()))
    return path


@pytest.mark.parametrize("excluding", [False, True], ids=["plain", "excluding-10000"])
def test_the_first_line_comes_in_little_memory(tmp_path: Path, file: Path, excluding: bool) -> None:
    words = [*COMMAND, "--exclude-file", str(file)] if excluding else COMMAND
    weighed, out, err = weigh(words, tmp_path, head=True)
    assert weighed.statuses == [0], err
    assert out.count("\n") == 1
    assert out.strip().endswith("/tcp")
    assert "Traceback" not in err
    assert "rror" not in err
    assert weighed.left == 0
    assert weighed.maxrss_bytes < LIMIT_BYTES


def test_the_count_of_everything_is_exact_in_little_memory(tmp_path: Path, file: Path) -> None:
    plain, out, err = weigh(["--count", *COMMAND], tmp_path)
    assert plain.statuses == [0], err
    everything = totals(out)
    assert everything["ports"] == 100
    excluding, out, err = weigh(["--count", *COMMAND, "--exclude-file", str(file)], tmp_path)
    assert excluding.statuses == [0], err
    rest = totals(out)
    assert everything["probes"] - rest["probes"] == size(draw_networks()) * 100
    assert plain.maxrss_bytes < LIMIT_BYTES
    assert excluding.maxrss_bytes < LIMIT_BYTES
