"""Issue 11, 10: kill -9 in the middle of a scan loses nothing and writes nothing twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_set
from lab.namespaces import alive
from lab.network import Lab
from lab.nray import environment, nray, open_pairs, read_events, workers_of
from lab.truth import OPEN, Truth, draw_ports

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TARGET = "198.18.3.3"
PORTS = 32768
#: Probes a second of all together: the scan lasts some three seconds, time enough to kill in it.
RATE = 10_000
#: Findings before the kill: about a quarter of the scan.
BEFORE = 100
TRIES = 5


@pytest.fixture
def truth(lab: Lab) -> Truth:
    truth = draw_ports(10, TARGET, {OPEN: 400}, range(1, PORTS + 1))
    lab.keep_to(truth)
    return truth


def in_time(strike: Callable[[Path], bool], directory: Path) -> None:
    """Strike in directories of their own until it was in the middle of a scan: a busy machine may
    keep us from it until too late, and what is killed then proves nothing."""
    for number in range(TRIES):
        (directory / str(number)).mkdir()
        if strike(directory / str(number)):
            return
    pytest.fail(f"killed too late {TRIES} times")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def expect_gone(pids: list[int]) -> None:
    """All of these processes end by themselves, soon."""
    deadline = time.monotonic() + 60
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_of_a_scan(lab: Lab, truth: Truth, processes: int, tmp_path: Path) -> None:
    # fmt: off
    command = nray(
        "scan", "-t", TARGET, "-p", f"1-{PORTS}", "--rate", str(RATE),
        "--processes", str(processes),
    )
    # fmt: on

    def strike(directory: Path) -> bool:
        lines: list[str] = []
        with (directory / "err").open("w") as err:
            process = lab.scanner.popen(
                command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment()
            )
            assert process.stdout is not None
            while len(lines) < BEFORE:
                line = process.stdout.readline()
                assert line, (directory / "err").read_text()
                lines.append(line)
            workers = workers_of(process.pid)
            if workers:
                assert len(workers) == processes
                kill(workers[0])
            # Not communicate(): it reads past what readline() has already taken into its buffer.
            rest = process.stdout.read()
            process.wait(timeout=180)
        assert process.returncode == 0, (directory / "err").read_text()
        events = read_events("".join(lines) + rest)
        assert judge_set(open_pairs(events), truth.open_pairs()) == []
        return bool(workers) and len(rest.splitlines()) > BEFORE

    in_time(strike, tmp_path)


@pytest.mark.parametrize("victim", ["node", "worker"])
def test_of_two_nodes(
    lab: Lab, truth: Truth, victim: str, tmp_path: Path, credentials: Credentials
) -> None:
    def strike(directory: Path) -> bool:
        cluster = Cluster(lab.scanner, directory, credentials)
        cluster.start_server(
            {"targets": [TARGET], "tcpports": [f"1-{PORTS}"], "udpports": []},
            {"ratelimit": RATE // 2, "tcp": {"timeout": "1000ms"}},
        )
        first = cluster.start_node("first")
        second = cluster.start_node("second")
        cluster.until(lambda: len(open_pairs(cluster.events())) >= BEFORE, 90)
        workers, others = workers_of(first.pid), workers_of(second.pid)
        if workers:
            kill(first.pid if victim == "node" else workers[0])
        at_kill = len(open_pairs(cluster.events()))
        cluster.expect_end(killed="first" if victim == "node" else "")
        assert judge_set(open_pairs(cluster.events()), truth.open_pairs()) == []
        expect_gone(workers)
        # Both were at work, and had work left.
        return bool(workers and others) and at_kill < len(truth.open_pairs()) * 3 // 4

    in_time(strike, tmp_path)


def test_both_nodes_and_a_third_comes(
    lab: Lab, truth: Truth, tmp_path: Path, credentials: Credentials
) -> None:
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [TARGET], "tcpports": [f"1-{PORTS}"], "udpports": []},
        # Slowly: a third node that came after the end would look for a server for ever.
        {"ratelimit": RATE // 3, "tcp": {"timeout": "1000ms"}},
    )
    first = cluster.start_node("first")
    cluster.until(lambda: len(open_pairs(cluster.events())) >= BEFORE, 90)
    kill(first.pid)
    first.wait()
    cluster.start_node("second")
    cluster.expect_end(killed="first")
    assert judge_set(open_pairs(cluster.events()), truth.open_pairs()) == []
    with contextlib.suppress(KeyError):
        assert cluster.processes["first"].returncode == -signal.SIGKILL
