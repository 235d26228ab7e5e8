"""Issue 11, 3: exactly the ports that ``ss`` shows; with 64 descriptors, on ::1, by a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.certs import Credentials
from lab.cluster import Cluster
from lab.exact import ADDRESSES, listen_everywhere, reachable
from lab.judge import judge_set
from lab.namespaces import Namespace
from lab.nray import limited, nray, open_pairs, run

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("nofile", [None, 64], ids=["plenty", "ulimit-64"])
def test_a_scan_finds_what_listens(alone: Namespace, address: str, nofile: int | None) -> None:
    listen_everywhere(alone, seed=nofile or 1)
    truth = reachable(alone, address)
    assert len(truth) > 300
    command = nray("scan", "-t", address, "-p", "1-65535")
    done = run(alone, limited(nofile, command) if nofile else command).expect(0)
    assert judge_set(open_pairs(done.events), truth) == []
    assert done.probes == 65535


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_server_with_two_nodes_finds_what_listens(
    alone: Namespace, address: str, tmp_path: Path, credentials: Credentials
) -> None:
    listen_everywhere(alone, seed=3)
    cluster = Cluster(alone, tmp_path, credentials)
    targets = {"targets": [address], "tcpports": ["1-65535"], "udpports": []}
    cluster.start_server(targets, {"tcp": {"timeout": "1000ms"}})
    # The server's own port is one of those that listen, if the scan is of its address.
    cluster.until(lambda: ("127.0.0.1", 8601) in reachable(alone, "127.0.0.1"), 60.0)
    truth = reachable(alone, address)
    cluster.start_node("one")
    cluster.start_node("two")
    cluster.expect_end()
    assert judge_set(open_pairs(cluster.events()), truth) == []
