"""Issue 14, stopAfterFirstOpen: one open port is told of each host that has any, and little is sent
to a host after that."""

from __future__ import annotations

import ipaddress
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lab.certs import Credentials
from lab.cluster import Cluster
from lab.network import Lab
from lab.nray import environment, nray, open_pairs, read_events, scan
from lab.truth import CLOSED, OPEN, SILENT, Truth, draw_ports

pytestmark = pytest.mark.lab

BASE = {4: "198.18.70.0", 6: "2001:db8:1::70:0"}
PORTS = range(1, 301)
HOSTS = 12
#: Few enough a second that an answer is there before many more probes have left.
SLOWLY = ("--rate", "3000", "--timeout", "1s")


def address(version: int, number: int) -> str:
    return str(ipaddress.ip_address(BASE[version]) + number)


def drawn(version: int, seed: int) -> Truth:
    """Hosts with none, one, some and many open ports, and with silent ones among them."""
    made = Truth()
    draw = random.Random(seed)
    for number in range(HOSTS):
        opened = [0, 1, 2, draw.randrange(3, 40), 150][number % 5]
        counts = {OPEN: opened, SILENT: draw.randrange(20), CLOSED: 0}
        made.fates.update(draw_ports(seed + number, address(version, number), counts, PORTS).fates)
    return made


def judge(events: list[dict[str, Any]], truth: Truth) -> list[str]:
    """What is wrong with the findings: each is to be true, and of each host there is to be one."""
    found = open_pairs(events)
    truly = truth.open_pairs()
    times = Counter(host for host, _ in found)
    with_open = {host for host, _ in truly}
    faults = [f"{pair} is not open" for pair in set(found) - truly]
    faults += [f"{host} is told {count} times" for host, count in times.items() if count > 1]
    return faults + [f"{host} is missing" for host in with_open - set(times)]


def all_of(version: int) -> str:
    return f"{address(version, 0)}-{address(version, HOSTS - 1)}"


@pytest.mark.parametrize("method", ["connect", "syn"])
@pytest.mark.parametrize("version", [4, 6])
def test_one_of_each_host_from_two_processes(lab: Lab, version: int, method: str) -> None:
    truth = drawn(version, 1400 + version)
    lab.keep_to(truth)
    words = ["-t", all_of(version), "-p", "1-300", "--processes", "2", *SLOWLY]
    words += ["--syn"] if method == "syn" else []
    done = scan(lab.scanner, *words, "--stop-after-first-open").expect(0)
    assert judge(done.events, truth) == []
    hosts = len({host for host, _ in truth.open_pairs()})
    assert f"{hosts} hosts have an open port: one of each is told" in done.stderr
    assert done.probes == HOSTS * len(PORTS)
    left_out = int(done.stderr.split(" left out")[0].rsplit(" ", 1)[1].replace(",", ""))
    # Half of a host's ports come before its only open one, at the least; of 150, hardly any.
    assert left_out > HOSTS * len(PORTS) / 4


def test_two_nodes_hear_of_each_other(lab: Lab, tmp_path: Path, credentials: Credentials) -> None:
    truth = drawn(4, 1500)
    lab.keep_to(truth)
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [all_of(4)], "tcpports": ["1-300"], "udpports": []},
        {
            "tcp": {"method": "syn", "timeout": "1s", "retries": 1},
            "ratelimit": 300,
            "stopAfterFirstOpen": True,
        },
    )
    for name in ("one", "two"):
        cluster.start_node(name)
    cluster.expect_end()
    assert judge(cluster.events(), truth) == []
    said = cluster.said("server")
    hosts = len({host for host, _ in truth.open_pairs()})
    assert f"{hosts} hosts have an open port: one of each is told" in said
    assert " left out" in said


def test_after_ctrl_c_and_resume_no_host_is_told_twice(lab: Lab, tmp_path: Path) -> None:
    truth = drawn(4, 1600)
    lab.keep_to(truth)
    state, out = tmp_path / "scan.state", tmp_path / "out.json"
    # fmt: off
    command = nray(
        "scan", "-t", all_of(4), "-p", "1-300", "--rate", "500", "--stop-after-first-open",
        "--state", str(state), "-o", str(out),
    )
    # fmt: on
    first = lab.scanner.popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_text().count("\n") >= 4):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    found = len(read_events(out.read_text()))
    assert 0 < found < HOSTS - HOSTS // 5 - 1, "interrupted too late to prove anything"
    done = scan(lab.scanner, "--resume", str(state)).expect(0)
    events = read_events(out.read_text())
    assert judge(events, truth) == []
    assert "left out" in done.stderr


def test_a_resume_settles_it(lab: Lab, tmp_path: Path) -> None:
    state = str(tmp_path / "none.state")
    done = scan(lab.scanner, "--resume", state, "--stop-after-first-open").expect(2)
    assert "--stop-after-first-open is settled" in done.stderr
