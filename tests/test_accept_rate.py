"""Issue 11, 8: a rate limit is kept, evenly, however many processes share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_gaps, judge_rate
from lab.network import INTERFACE, Lab
from lab.nray import scan
from lab.truth import Truth

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TARGET = "198.18.1.1"
RUN_S = 5.0


def times(capture: Capture) -> list[float]:
    return [packet.time_s for packet in capture.probes()]


@pytest.mark.parametrize("processes", [1, 2])
def test_1000_a_second(lab: Lab, processes: int, tmp_path: Path) -> None:
    lab.keep_to(Truth())
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        # fmt: off
        scan(
            lab.scanner, "-t", TARGET, "-p", "1-5050",
            "--rate", "1000", "--processes", str(processes),
        ).expect(0)
        # fmt: on
    sent = times(capture)
    assert len(sent) == 5050
    assert judge_rate(sent, 1000, RUN_S) == []


def test_1000_a_second_by_a_node(lab: Lab, tmp_path: Path, credentials: Credentials) -> None:
    lab.keep_to(Truth())
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        cluster.start_server(
            {"targets": [TARGET], "tcpports": ["1-5050"], "udpports": []}, {"ratelimit": 1000}
        )
        cluster.start_node("one")
        cluster.expect_end()
    sent = times(capture)
    assert len(sent) == 5050
    assert judge_rate(sent, 1000, RUN_S) == []


def test_10_a_second_is_one_each_100_ms(lab: Lab, tmp_path: Path) -> None:
    lab.keep_to(Truth())
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        scan(lab.scanner, "-t", TARGET, "-p", "1-31", "--rate", "10").expect(0)
    sent = times(capture)
    assert len(sent) == 31
    assert judge_gaps(sent, 10) == []
