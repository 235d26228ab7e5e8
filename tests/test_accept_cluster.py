"""Issue 11, 7: server and two nodes started at one moment end well, and nothing is left of them.

How long they take against nmap is bench/compare.py's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.certs import Credentials
from lab.cluster import configuration, node_command, server_command
from lab.judge import judge_set
from lab.measure import measure
from lab.network import Lab
from lab.nray import environment, open_pairs, portscans, read_events
from lab.truth import OPEN, draw_ports

pytestmark = pytest.mark.lab

TARGET = {4: "198.18.2.2", 6: "2001:db8:1::2:2"}


@pytest.mark.parametrize("version", [4, 6])
def test_all_at_once_and_all_gone(
    lab: Lab, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    truth = draw_ports(30 + version, TARGET[version], {OPEN: 300})
    lab.keep_to(truth)
    targets = {"targets": [TARGET[version]], "tcpports": ["all"], "udpports": []}
    written = configuration(tmp_path, credentials, targets, {"tcp": {"timeout": "1000ms"}})
    commands = [
        server_command(written),
        node_command(credentials, "one"),
        node_command(credentials, "two"),
    ]
    weighed = measure(commands, tmp_path, namespace=lab.scanner, env=environment(), timeout_s=180)
    said = "\n".join((tmp_path / f"{number}.err").read_text()[-1000:] for number in range(3))
    assert weighed.statuses == [0, 0, 0], said
    assert weighed.left == 0, f"processes left behind\n{said}"
    assert "Traceback" not in said
    events = read_events((tmp_path / "out.json").read_text())
    assert judge_set(open_pairs(events), truth.open_pairs()) == []
    assert len(portscans(events)) == 300
    # Both registered; that both worked is for the scheduler's own tests.
    registered = {event["nodeName"] for event in events if "environment" in event}
    assert registered == {"one", "two"}
