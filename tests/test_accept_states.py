"""Issue 11, 6 and 9: states are told as they are, IPv4 and IPv6, TCP and UDP."""

from __future__ import annotations

import pytest

from lab.judge import judge_set, judge_states
from lab.network import Lab
from lab.nray import open_pairs, portscans, scan, states
from lab.truth import (
    ADMIN,
    CLOSED,
    OPEN,
    SILENT,
    Fate,
    draw_hosts,
    draw_ports,
    rejected,
)

pytestmark = pytest.mark.lab

#: 4,096 addresses each.
HOSTS = {4: "198.18.0.0/20", 6: "2001:db8:1::/116"}
HOST = {4: "198.18.64.9", 6: "2001:db8:1::9:9"}
SHARES = {OPEN: 0.2, SILENT: 0.4, CLOSED: 0.35, ADMIN: 0.05}


def test_4096_hosts_of_which_40_per_cent_are_silent(lab: Lab, version: int) -> None:
    truth = draw_hosts(40 + version, HOSTS[version], 80, SHARES)
    lab.keep_to(truth)
    done = scan(lab.scanner, "-t", HOSTS[version], "-p", "80", "--show", "closed,filtered")
    done.expect(0)
    found = states(done.events)
    assert judge_states(found, truth) == []
    assert len(found) == len(truth.fates) == 4096
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []


def test_only_open_ports_make_events_unless_asked(lab: Lab, version: int) -> None:
    network = {4: "198.18.0.0/24", 6: "2001:db8:1::/120"}[version]
    truth = draw_hosts(50, network, 80, SHARES)
    lab.keep_to(truth)
    done = scan(lab.scanner, "-t", network, "-p", "80").expect(0)
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []
    assert len(portscans(done.events)) == len(truth.open_pairs())
    assert done.probes == 256


def test_each_icmp_code_has_its_state_and_reason(lab: Lab, version: int) -> None:
    counts: dict[Fate, int] = dict.fromkeys(rejected(version), 3)
    truth = draw_ports(60 + version, HOST[version], {OPEN: 5, SILENT: 3, **counts}, range(1, 2001))
    lab.keep_to(truth)
    done = scan(lab.scanner, "-t", HOST[version], "-p", "1-2000", "--show", "closed,filtered")
    done.expect(0)
    found = states(done.events)
    assert judge_states(found, truth) == []
    assert len(found) == 2000


def test_500_prohibited_ports_are_filtered_and_hold_nothing_up(lab: Lab, version: int) -> None:
    assert lab.icmp_unlimited, "this kernel does not let a namespace lift its ICMP limits"
    truth = draw_ports(70 + version, HOST[version], {OPEN: 50, ADMIN: 500}, range(1, 5001))
    lab.keep_to(truth)
    # fmt: off
    done = scan(
        lab.scanner, "-t", HOST[version], "-p", "1-5000",
        "--show", "filtered", "--timeout", "10s",
    ).expect(0)
    # fmt: on
    found = states(done.events)
    assert judge_states(found, truth) == []
    assert len(found) == 550
    # Had a single one been waited for, this would be 10 s. bench/prohibited.py measures the rest.
    assert done.seconds < 5


def test_udp_answers_are_told_apart(lab: Lab, version: int) -> None:
    counts = {OPEN: 5, SILENT: 4, ADMIN: 4}
    truth = draw_ports(80 + version, HOST[version], counts, range(2000, 2100), "udp")
    lab.keep_to(truth)
    # fmt: off
    done = scan(
        lab.scanner, "-u", "-t", HOST[version], "-p", "2000-2099",
        "--show", "closed,filtered,open|filtered", "--timeout", "500ms",
    ).expect(0)
    # fmt: on
    assert all(part["scantype"] == "udp" for part in portscans(done.events))
    found = {pair: state for pair, (state, _) in states(done.events).items()}
    meant = {OPEN: "open", SILENT: "open|filtered", ADMIN: "filtered"}
    wanted = {(HOST[version], port): "closed" for port in range(2000, 2100)}
    wanted |= {(address, port): meant[fate] for (_, address, port), fate in truth.fates.items()}
    assert found == wanted


def test_silence_over_udp_makes_no_event(lab: Lab, version: int) -> None:
    truth = draw_ports(90, HOST[version], {OPEN: 2, SILENT: 8}, range(3000, 3010), "udp")
    lab.keep_to(truth)
    words = ["-u", "-t", HOST[version], "-p", "3000-3009", "--timeout", "500ms"]
    done = scan(lab.scanner, *words).expect(0)
    assert judge_set(open_pairs(done.events), truth.open_pairs("udp")) == []
    assert len(portscans(done.events)) == 2
