"""Issue 13, 4: a node with a policy sends nothing elsewhere, whatever it is leased, and says so.

A whole /8 is leased; what is refused costs nothing on the wire, so it takes seconds.
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

ALLOWED = ipaddress.IPv4Network("127.1.0.0/16")
REFUSED = 2**24 - ALLOWED.num_addresses
#: Answers to probes from this machine go here, as does the talk of server and node.
OWN = "127.0.0.1"


def test_nothing_goes_beyond_the_policy_and_the_refused_share_is_shown(
    alone: Namespace, tmp_path: Path, credentials: Credentials
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"networks: [{ALLOWED}]\n")
    policy.chmod(0o600)
    cluster = Cluster(alone, tmp_path, credentials)
    with Capture(alone, "lo", tmp_path / "capture", answers_to=OWN) as capture:
        targets = {"targets": ["127.0.0.0/8"], "tcpports": ["9"], "udpports": []}
        cluster.start_server(targets, {})
        cluster.start_node("nyc1", "--policy", str(policy))
        statuses = cluster.statuses()
    server = cluster.said("server")
    assert statuses == {"server": 3, "nyc1": 0}, server + cluster.said("nyc1")

    # Of any kind: the filter passes every packet that does not go to OWN.
    others = [p for p in capture.packets if (p.address, p.port) != (OWN, PORT)]
    outside = {p.address for p in others if ipaddress.IPv4Address(p.address) not in ALLOWED}
    assert not outside, sorted(outside)[:5]
    assert {(p.address, p.port) for p in others} == {(str(each), 9) for each in ALLOWED}

    assert f"{REFUSED:,} probes refused by the policy of node nyc1: not covered" in server
    assert re.search(
        rf"16,777,216 probes in .*: 0 open, 65,536 closed, {REFUSED:,} refused", server
    )
    assert f"has a policy: {ALLOWED} only" in server
    assert f"policy of this node, whatever the server says: {ALLOWED} only" in cluster.said("nyc1")
    status = run(alone, nray("status", str(tmp_path / "conf.yaml.ledger"))).expect(0)
    assert f"refused: {REFUSED} (policy of node nyc1)" in status.stdout
