"""Issue 14: SYN scans against a truth drawn from a seed, nmap, tshark, and the clock."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_gaps, judge_rate, judge_runs, judge_seconds, judge_set, judge_states
from lab.namespaces import require
from lab.network import INTERFACE, LATE, TARPIT, Lab, RoutedLab, tarpit
from lab.nmap import syn_states
from lab.nray import nray, open_pairs, portscans, run, scan, states
from lab.truth import (
    ADMIN,
    CLOSED,
    LIMITED,
    LIMITED_PER_S,
    OPEN,
    SILENT,
    Fate,
    Truth,
    draw_ports,
    draw_space,
    rejected,
)
from lab.wireshark import Recording, show, wrong

pytestmark = pytest.mark.lab

#: 4,096 addresses each.
HOSTS = {4: "198.18.0.0/20", 6: "2001:db8:1::/116"}
HOST = {4: "198.18.64.9", 6: "2001:db8:1::9:9"}
SHARES = {OPEN: 0.2, SILENT: 0.3, CLOSED: 0.45, ADMIN: 0.05}
#: How late a network answers that does so late, seconds.
LATE_S = 0.4
SHOW = ("--show", "closed,filtered")
#: The scanner beside the router, and the router itself.
NEAR6 = ("2001:db8:fffe::1", "2001:db8:fffe::2")


@pytest.fixture(scope="module")
def routed() -> Iterator[RoutedLab]:
    """A router in between, an MTU of 1280 behind it, neighbours that must be asked for."""
    require("nft")
    with RoutedLab() as made:
        yield made


def test_4096_hosts_and_2_ports_are_told_as_they_are(lab: Lab, version: int) -> None:
    truth = draw_space(140 + version, HOSTS[version], (80, 443), SHARES)
    lab.keep_to(truth)
    done = scan(
        lab.scanner, "--syn", "-t", HOSTS[version], "-p", "80,443", "--rate", "50000", *SHOW
    )
    done.expect(0)
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []
    found = states(done.events)
    assert judge_states(found, truth, "syn") == []
    assert len(found) == len(truth.fates) == 8192
    assert {part["scantype"] for part in portscans(done.events)} == {"tcpsyn"}


def test_each_icmp_code_and_nmap_s_word_for_it(lab: Lab, version: int) -> None:
    require("nft", "nmap")
    network = {4: "198.18.3.0/28", 6: "2001:db8:1::30/124"}[version]
    ports = random.Random(version).sample(range(1, 65536), 13)
    shares: dict[Fate, float] = {OPEN: 0.2, SILENT: 0.2}
    shares |= dict.fromkeys(rejected(version), 0.5 / len(rejected(version)))
    truth = draw_space(144 + version, network, ports, shares)
    lab.keep_to(truth)
    listed = ",".join(map(str, ports))
    done = scan(lab.scanner, "--syn", "-t", network, "-p", listed, "--rate", "2000", *SHOW)
    found = states(done.expect(0).events)
    assert judge_states(found, truth, "syn") == []
    told = syn_states(lab.scanner, map(str, ipaddress.ip_network(network)), ports)
    assert len(told) == 208
    assert {pair: (found[pair], told[pair]) for pair in told if found[pair] != told[pair]} == {}


def test_through_a_router_to_a_small_mtu(routed: RoutedLab, version: int) -> None:
    network = {4: "198.18.8.0/24", 6: "2001:db8:1::800/120"}[version]
    truth = draw_space(148 + version, network, (22, 80), SHARES)
    routed.keep_to(truth)
    done = scan(routed.scanner, "--syn", "-t", network, "-p", "22,80", "--rate", "5000", *SHOW)
    found = states(done.expect(0).events)
    assert judge_states(found, truth, "syn") == []
    assert len(found) == 512
    # One hop further away: what is read is the packet from behind the router.
    ttls = {part["ttl"] for part in portscans(done.events) if part["state"] == "open"}
    assert ttls == {63}


def test_several_links_routes_and_what_has_none_in_one_scan(
    routed: RoutedLab, version: int
) -> None:
    network, lost, *others = {
        4: ("198.18.9.0/26", "198.18.9.32/27", "127.0.0.1", "198.19.254.1", "198.19.254.2"),
        6: ("2001:db8:1::900/122", "2001:db8:1::920/123", "::1", *NEAR6),
    }[version]
    truth = draw_space(152 + version, network, (80,), {OPEN: 0.5})
    routed.keep_to(truth)
    routed.scanner.ip(f"-{version}", "route", "add", "unreachable", lost)
    try:
        targets = ",".join([network, *others])
        done = scan(routed.scanner, "--syn", "-t", targets, "-p", "80", "--show", "closed,filtered")
    finally:
        routed.scanner.ip(f"-{version}", "route", "del", "unreachable", lost)
    done.expect(3)
    assert f"no route to {lost}: probes to it count as errors" in done.stderr
    assert "32 × no route from here" in done.stderr
    away = ipaddress.ip_network(lost)
    reached = {pair for pair in truth.open_pairs() if ipaddress.ip_address(pair[0]) not in away}
    assert judge_set(open_pairs(done.events), reached) == []
    found = states(done.events)
    assert len(found) == 32 + 3
    # Itself by its own address and by loopback, the router as a neighbour.
    for address in others:
        assert found[address, 80] == ("closed", "reset")


def test_a_neighbour_that_is_not_there(routed: RoutedLab, version: int) -> None:
    own, target = {
        4: ("198.19.128.1/24", "198.19.128.7"),
        6: ("2001:db8:fffd::1/64", "2001:db8:fffd::7"),
    }[version]
    at_once = ["nodad"] if version == 6 else []
    routed.scanner.ip("address", "add", own, "dev", INTERFACE, *at_once)
    try:
        done = scan(routed.scanner, "--syn", "-t", target, "-p", "80,81", *SHOW)
    finally:
        routed.scanner.ip("address", "del", own, "dev", INTERFACE)
    found = states(done.expect(0).events)
    assert set(found.values()) == {("filtered", "host-unreach")}


def test_no_route_at_all(routed: RoutedLab, version: int) -> None:
    refused, network = {
        4: ("198.18.10.0/24", "198.18.10.0/25"),
        6: ("2001:db8:1::a00/120", "2001:db8:1::a00/121"),
    }[version]
    routed.scanner.ip(f"-{version}", "route", "add", "prohibit", refused)
    try:
        done = scan(routed.scanner, "--syn", "-t", network, "-p", "80")
    finally:
        routed.scanner.ip(f"-{version}", "route", "del", "prohibit", refused)
    done.expect(2)
    assert f"no route to {network}: there is nothing that could be scanned" in done.stderr


def test_lost_packets_are_made_good_by_retries(lab: Lab, version: int) -> None:
    truth = draw_space(156 + version, HOSTS[version], (80,), {OPEN: 0.5})
    lab.keep_to(truth, loss=0.05)
    wanted = truth.open_pairs()
    try:
        for _ in range(3):
            # fmt: off
            done = scan(
                lab.scanner, "--syn", "-t", HOSTS[version], "-p", "80", "--rate", "20000",
                "--retries", "2", "--timeout", "300ms",
            ).expect(0)
            # fmt: on
            found = set(open_pairs(done.events))
            assert found <= wanted
            # A SYN and its answer are lost in one of ten tries; thrice in a row one of a thousand.
            # Of 2,048 that is 2 in the mean, and more than 12 in less than one run of a million:
            # but where this machine is so busy that it loses some itself.
            if len(wanted) - len(found) <= 12:
                return
    finally:
        lab.keep_to(Truth())
    raise AssertionError(f"{len(found)} of {len(wanted)}")


@pytest.fixture(scope="module")
def tarpits(lab: Lab) -> Lab:
    """A network that answers every SYN at once, and one that does 0.4 s later."""
    tarpit(lab)
    tarpit(lab, LATE, LATE_S)
    return lab


def test_a_host_that_answers_everything_is_one_event_a_port(tarpits: Lab, version: int) -> None:
    target = str(ipaddress.ip_network(TARPIT[version])[9])
    # fmt: off
    done = scan(
        tarpits.scanner, "--syn", "-t", target, "-p", "1-2000", "--rate", "5000",
        "--show", "closed", "--timeout", "300ms", "--keep-tarpits",
    ).expect(0)
    # fmt: on
    assert judge_set(open_pairs(done.events), {(target, port) for port in range(1, 2001)}) == []


def test_answers_that_are_late_count_once_too(tarpits: Lab, version: int) -> None:
    """They come after their ports were probed again: two answers each."""
    target = str(ipaddress.ip_network(LATE[version])[9])
    # fmt: off
    done = scan(
        tarpits.scanner, "--syn", "-t", target, "-p", "1-200", "--rate", "2000", *SHOW,
        "--timeout", f"{LATE_S * 750:.0f}ms", "--keep-tarpits",
    ).expect(0)
    # fmt: on
    assert judge_set(open_pairs(done.events), {(target, port) for port in range(1, 201)}) == []
    assert len(portscans(done.events)) == 200


def test_what_a_limit_on_icmp_hides_is_filtered_still(lab: Lab, version: int) -> None:
    truth = draw_ports(170 + version, HOST[version], {ADMIN: 40, OPEN: 5}, range(1, 101))
    lab.keep_to(truth)
    lab.limit_icmp(True)
    try:
        # fmt: off
        done = scan(
            lab.scanner, "--syn", "-t", HOST[version], "-p", "1-100", "--rate", "1000",
            "--timeout", "200ms", *SHOW,
        ).expect(0)
        # fmt: on
    finally:
        lab.limit_icmp(False)
    found = states(done.events)
    assert len(found) == 100
    told = {found[HOST[version], port] for _, _, port in truth.having(ADMIN)}
    assert ("filtered", "admin-prohibited") in told
    assert told <= {("filtered", "admin-prohibited"), ("filtered", "no-response")}
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []


def test_a_target_that_answers_only_so_fast(lab: Lab, version: int) -> None:
    truth = draw_ports(160, HOST[version], {LIMITED: 150}, range(1, 151))
    lab.keep_to(truth)
    # fmt: off
    slow = scan(
        lab.scanner, "--syn", "-t", HOST[version], "-p", "1-150", "--rate", str(LIMITED_PER_S // 2),
        "--timeout", "200ms",
    ).expect(0)
    fast = scan(
        lab.scanner, "--syn", "-t", HOST[version], "-p", "1-150", "--rate",
        str(LIMITED_PER_S * 100), "--retries", "0", "--timeout", "200ms", *SHOW,
    ).expect(0)
    # fmt: on
    assert {port for _, port in open_pairs(slow.events)} == set(range(1, 151))
    found = states(fast.events)
    assert len(found) == 150
    assert set(found.values()) == {("open", "syn-ack"), ("filtered", "no-response")}


def test_udp_ports_in_the_same_scan(lab: Lab, version: int) -> None:
    tcp = draw_ports(162, HOST[version], {OPEN: 5, SILENT: 4}, range(2000, 2050))
    udp = draw_ports(163, HOST[version], {OPEN: 5, SILENT: 4}, range(2000, 2050), "udp")
    lab.keep_to(Truth(tcp.fates | udp.fates))
    words = ["-t", HOST[version], "-p", "T:2000-2049,U:2000-2049", "--timeout", "500ms"]
    done = scan(lab.scanner, "--syn", *words, "--rate", "2000").expect(0)
    found = {kind: set() for kind in ("tcpsyn", "udp")}  # type: ignore[var-annotated]
    for part in portscans(done.events):
        found[part["scantype"]].add((part["target"], part["port"]))
    assert found == {"tcpsyn": tcp.open_pairs(), "udp": udp.open_pairs("udp")}


def test_every_frame_is_right_in_tshark_s_eyes(lab: Lab, version: int, tmp_path: Path) -> None:
    require("nft", "tcpdump", "tshark")
    lab.keep_to(draw_ports(164, HOST[version], {OPEN: 40, SILENT: 40}, range(1, 401)))
    with Recording(lab.target, INTERFACE, tmp_path / "frames.pcap") as recording:
        scan(
            lab.scanner,
            "--syn",
            "-t",
            HOST[version],
            "-p",
            "1-400",
            "--rate",
            "4000",
            "--timeout",
            "200ms",
        ).expect(0)
    ours = (
        f"eth.src == 02:00:00:00:00:01 && {'ip' if version == 4 else 'ipv6'} && tcp.flags.syn == 1"
    )
    sent = show(recording.file, ours, "tcp.dstport")
    ports = {int(port) for [port] in sent}
    assert set(range(1, 401)) <= ports
    # Those that tell a tarpit from a host with many open ports.
    others = ports - set(range(1, 401))
    assert others
    assert all(20480 <= port < 28672 for port in others)
    own = [port for [port] in sent if int(port) <= 400]
    assert len(own) == 440  # what is silent is asked once more
    assert wrong(recording.file, ours) == []


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("processes", [1, 2])
def test_10000_a_second_in_buckets_of_10_ms(
    lab: Lab, version: int, processes: int, tmp_path: Path
) -> None:
    """Ahead of what else runs on this machine: whoever has to wait for a processor for longer than
    a bucket cannot be even."""
    require("nft", "chrt")
    lab.keep_to(Truth())
    # fmt: off
    command = nray(
        "scan", "--syn", "-t", HOST[version], "-p", "1-20500", "--rate", "10000",
        "--timeout", "200ms", "--processes", str(processes),
    )
    # fmt: on

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            run(lab.scanner, ["chrt", "--fifo", "10", *command]).expect(0)
        sent = [packet.time_s for packet in capture.probes()]
        assert len(sent) == 20_500
        return sent

    def even(times_s: Sequence[float]) -> list[str]:
        return judge_rate(times_s, 10_000, 2.0, bucket_s=0.01)

    assert judge_runs(once, even, 10_000) == []


@pytest.mark.slow
@pytest.mark.alone
def test_10_a_second_is_one_each_100_ms(lab: Lab, version: int, tmp_path: Path) -> None:
    lab.keep_to(Truth())
    words = ["-t", HOST[version], "-p", "1-21", "--rate", "10", "--timeout", "200ms"]

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            scan(lab.scanner, "--syn", *words).expect(0)
        sent = [packet.time_s for packet in capture.probes()]
        assert len(sent) == 21
        return sent

    assert judge_runs(once, lambda times_s: judge_gaps(times_s, 10), 10) == []


#: SYNs a second that a router lets through, and what is dropped of the others.
NARROW = 4000


@pytest.fixture
def narrow(routed: RoutedLab) -> Iterator[RoutedLab]:
    rules = "type filter hook forward priority 0;\niifname near tcp flags syn"
    limit = f"limit rate over {NARROW}/second burst {NARROW // 50} packets drop"
    routed.router.call(
        ["nft", "-f", "-"], f"table inet n {{\nchain f {{\n{rules} {limit}\n}}\n}}\n"
    )
    yield routed
    routed.router.call(["nft", "delete", "table", "inet", "n"])


@pytest.mark.alone
def test_a_rate_is_found_that_a_narrow_path_bears(
    narrow: RoutedLab, version: int, tmp_path: Path
) -> None:
    truth = draw_space(176, HOSTS[version], (80, 443), {OPEN: 0.2})
    narrow.keep_to(truth)
    # fmt: off
    words = [
        "-t", HOSTS[version], "-p", "80,443", "--rate", "auto", "--retries", "4",
        "--timeout", "400ms",
    ]
    # fmt: on
    shares = []
    for number in range(3):
        with Capture(narrow.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            done = scan(narrow.scanner, "--syn", *words).expect(0)
        assert judge_set(open_pairs(done.events), truth.open_pairs()) == []
        sent = [packet.time_s for packet in capture.probes()]
        middle = (sent[0] + sent[-1]) / 2
        late = [time_s for time_s in sent if middle < time_s]
        shares.append(len(late) / (sent[-1] - middle) / NARROW)
        # It begins at a quarter of it, goes beyond, and comes to just below; the last packets of
        # all are few. On a busy machine the scan may be over before.
        if 0.6 <= shares[-1] <= 1.1:
            return
    assert all(share <= 1.5 for share in shares), shares


def test_auto_is_no_limit_where_nothing_is_lost(lab: Lab, version: int) -> None:
    truth = draw_space(178, HOSTS[version], (80, 443), SHARES)
    lab.keep_to(truth)
    done = scan(lab.scanner, "--syn", "-t", HOSTS[version], "-p", "80,443", "--rate", "auto", *SHOW)
    done.expect(0)
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []
    assert judge_states(states(done.events), truth, "syn") == []


def test_auto_by_a_server_whose_node_has_a_policy(
    lab: Lab, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    """The policy's rate is a cap for what is found, too."""
    network = {4: "198.18.17.0/24", 6: "2001:db8:1::1100/120"}[version]
    truth = draw_space(180, network, (80, 443), {OPEN: 0.3})
    lab.keep_to(truth)
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"networks: ['{network}']\nratelimit: 200\n")
    policy.chmod(0o600)
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [network], "tcpports": ["80", "443"], "udpports": []},
        {"tcp": {"method": "syn", "timeout": "300ms"}, "ratelimit": "auto"},
    )
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        cluster.start_node("one", "--policy", str(policy))
        cluster.expect_end()
    assert judge_set(open_pairs(cluster.events()), truth.open_pairs()) == []
    assert judge_seconds([packet.time_s for packet in capture.probes()], 200) == []


def test_by_a_server_and_a_node(
    lab: Lab, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    network = {4: "198.18.16.0/24", 6: "2001:db8:1::1000/120"}[version]
    truth = draw_space(166 + version, network, (80,), SHARES)
    lab.keep_to(truth)
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [network], "tcpports": ["80"], "udpports": []},
        {"tcp": {"method": "syn", "retries": 1, "timeout": "300ms"}, "ratelimit": 5000},
    )
    cluster.start_node("one")
    cluster.expect_end()
    events = cluster.events()
    assert judge_set(open_pairs(events), truth.open_pairs()) == []
    assert {part["scantype"] for part in portscans(events)} == {"tcpsyn"}


def test_loopback_finds_what_listens(lab: Lab) -> None:
    lab.keep_to(draw_ports(168, HOST[4], {OPEN: 30}, range(1, 3000)))
    words = ["-p", "1-3000", "--show", "closed", "--rate", "20000"]
    done = run(lab.target, nray("scan", "--syn", "-t", f"127.0.0.1,::1,{HOST[4]}", *words)).expect(
        0
    )
    found = states(done.events)
    assert len(found) == 9000
    listening = {port for _, port in lab_listening(lab)}
    for address in ("127.0.0.1", "::1", HOST[4]):
        opened = {port for host, port in open_pairs(done.events) if host == address}
        assert opened == listening


def lab_listening(lab: Lab) -> set[tuple[str, int]]:
    shown = lab.target.call(["ss", "-ltnH"]).splitlines()
    return {("tcp", int(line.split()[3].rpartition(":")[2])) for line in shown}
