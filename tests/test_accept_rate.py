"""Issue 11, 8: a rate limit is kept, evenly, however many processes share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_gaps, judge_rate, judge_runs
from lab.network import INTERFACE, Lab
from lab.nray import scan
from lab.truth import Truth

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.alone]

TARGET = "198.18.1.1"
RUN_S = 3.0


def even(times_s: Sequence[float]) -> list[str]:
    return judge_rate(times_s, 1000, RUN_S)


def times(capture: Capture, count: int) -> list[float]:
    found = [packet.time_s for packet in capture.probes()]
    assert len(found) == count
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_1000_a_second(lab: Lab, processes: int, tmp_path: Path) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            # fmt: off
            scan(
                lab.scanner, "-t", TARGET, "-p", "1-3050",
                "--rate", "1000", "--processes", str(processes),
            ).expect(0)
            # fmt: on
        return times(capture, 3050)

    assert judge_runs(once, even, 1000) == []


def test_1000_a_second_by_a_node(lab: Lab, tmp_path: Path, credentials: Credentials) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        (directory := tmp_path / str(number)).mkdir()
        cluster = Cluster(lab.scanner, directory, credentials)
        with Capture(lab.scanner, INTERFACE, directory / "capture") as capture:
            cluster.start_server(
                {"targets": [TARGET], "tcpports": ["1-3050"], "udpports": []}, {"ratelimit": 1000}
            )
            cluster.start_node("one")
            cluster.expect_end()
        return times(capture, 3050)

    assert judge_runs(once, even, 1000) == []


def test_10_a_second_is_one_each_100_ms(lab: Lab, tmp_path: Path) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            scan(lab.scanner, "-t", TARGET, "-p", "1-31", "--rate", "10").expect(0)
        return times(capture, 31)

    assert judge_runs(once, lambda times_s: judge_gaps(times_s, 10), 10) == []
