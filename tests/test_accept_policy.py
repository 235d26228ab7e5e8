"""Issue 13, 4: a node with a policy sends nothing elsewhere, whatever it is leased, and says so.

A whole /8 is leased, or as much of IPv6; what is refused costs nothing on the wire, so it takes
seconds.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.cluster import PORT, Cluster
from lab.namespaces import Namespace
from lab.nray import nray, run

pytestmark = pytest.mark.lab

#: Each of 2^24 addresses, and what is allowed of them.
NETWORK = {4: "127.0.0.0/8", 6: "2001:db8:1::/104"}
ALLOWED = {
    4: ipaddress.ip_network("127.1.0.0/16"),
    6: ipaddress.ip_network("2001:db8:1::1:0/116"),
}
#: Answers to probes from this machine go here.
OWN = {4: "127.0.0.1", 6: "::1"}
#: As does the talk of server and node.
TALK = ("127.0.0.1", PORT)


def test_nothing_goes_beyond_the_policy_and_the_refused_share_is_shown(
    alone: Namespace, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    alone.ip("-6", "route", "add", "local", NETWORK[6], "dev", "lo")
    allowed = ALLOWED[version]
    refused = 2**24 - allowed.num_addresses
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"networks: ['{allowed}']\n")
    policy.chmod(0o600)
    cluster = Cluster(alone, tmp_path, credentials)
    with Capture(alone, "lo", tmp_path / "capture", answers_to=OWN[version]) as capture:
        targets = {"targets": [NETWORK[version]], "tcpports": ["9"], "udpports": []}
        cluster.start_server(targets, {})
        cluster.start_node("nyc1", "--policy", str(policy))
        statuses = cluster.statuses()
    server = cluster.said("server")
    assert statuses == {"server": 3, "nyc1": 0}, server + cluster.said("nyc1")

    # Of any kind: the filter passes every packet that does not go to OWN.
    others = [p for p in capture.packets if (p.address, p.port) != TALK]
    outside = {p.address for p in others if ipaddress.ip_address(p.address) not in allowed}
    assert not outside, sorted(outside)[:5]
    assert {(p.address, p.port) for p in others} == {(str(each), 9) for each in allowed}

    assert f"{refused:,} probes refused by the policy of node nyc1: not covered" in server
    assert re.search(
        rf"16,777,216 probes in .*: 0 open, {allowed.num_addresses:,} closed, {refused:,} refused",
        server,
    )
    assert f"has a policy: {allowed} only" in server
    assert f"policy of this node, whatever the server says: {allowed} only" in cluster.said("nyc1")
    status = run(alone, nray("status", str(tmp_path / "conf.yaml.ledger"))).expect(0)
    assert f"refused: {refused} (policy of node nyc1)" in status.stdout
