"""Issue 11, 8: a rate limit is kept, evenly, however many processes share it."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_gaps, judge_rate, judge_runs, judge_seconds
from lab.network import INTERFACE, TARGET6, Lab
from lab.nray import scan
from lab.truth import Truth

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.alone]

TARGET = {4: "198.18.1.1", 6: "2001:db8:1::1"}
RUN_S = 2.0
#: Of which the last 50 are not judged.
COUNT = 2050


def even(times_s: Sequence[float]) -> list[str]:
    return judge_rate(times_s, 1000, RUN_S)


def times(capture: Capture, count: int) -> list[float]:
    found = [packet.time_s for packet in capture.probes()]
    assert len(found) == count
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_1000_a_second(lab: Lab, version: int, processes: int, tmp_path: Path) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            # fmt: off
            scan(
                lab.scanner, "-t", TARGET[version], "-p", f"1-{COUNT}",
                "--rate", "1000", "--processes", str(processes),
            ).expect(0)
            # fmt: on
        return times(capture, COUNT)

    assert judge_runs(once, even, 1000) == []


def test_1000_a_second_by_a_node(
    lab: Lab, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        (directory := tmp_path / str(number)).mkdir()
        cluster = Cluster(lab.scanner, directory, credentials)
        with Capture(lab.scanner, INTERFACE, directory / "capture") as capture:
            cluster.start_server(
                {"targets": [TARGET[version]], "tcpports": [f"1-{COUNT}"], "udpports": []},
                {"ratelimit": 1000},
            )
            cluster.start_node("one")
            cluster.expect_end()
        return times(capture, COUNT)

    assert judge_runs(once, even, 1000) == []


#: Five hosts of two networks of each family.
CAPPED = "198.18.1.1,198.18.2.1-4,2001:db8:1::1,2001:db8:2::1-2001:db8:2::4"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("syn", [False, True])
def test_no_host_and_no_network_gets_more_than_its_cap(
    lab: Lab, syn: bool, processes: int, tmp_path: Path
) -> None:
    """Though the rate of the whole is another; and each port is probed once. Of both families."""
    lab.keep_to(Truth())
    second = "2001:db8:2::/64"
    lab.scanner.ip("-6", "route", "replace", second, "via", TARGET6)
    lab.target.ip("-6", "route", "replace", "local", second, "dev", "lo")
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        # fmt: off
        scan(
            lab.scanner, "-t", CAPPED, "-p", "1-240", "--rate", "5000",
            "--host-rate", "200", "--network-rate", "400", "--processes", str(processes),
            *(["--syn"] if syn else []),
        ).expect(0)
        # fmt: on
    packets = capture.probes()
    assert len(packets) == len({(packet.address, packet.port) for packet in packets}) == 2400
    by_host: dict[str, list[float]] = defaultdict(list)
    by_network: dict[bytes, list[float]] = defaultdict(list)
    for packet in packets:
        by_host[packet.address].append(packet.time_s)
        packed = ipaddress.ip_address(packet.address).packed
        by_network[packed[: 3 if len(packed) == 4 else 8]].append(packet.time_s)
    assert [judge_seconds(times_s, 200) for times_s in by_host.values()] == [[]] * 10
    assert [judge_seconds(times_s, 400) for times_s in by_network.values()] == [[]] * 4


def test_10_a_second_is_one_each_100_ms(lab: Lab, version: int, tmp_path: Path) -> None:
    lab.keep_to(Truth())

    def once(number: int) -> list[float]:
        with Capture(lab.scanner, INTERFACE, tmp_path / f"capture{number}") as capture:
            scan(lab.scanner, "-t", TARGET[version], "-p", "1-21", "--rate", "10").expect(0)
        return times(capture, 21)

    assert judge_runs(once, lambda times_s: judge_gaps(times_s, 10), 10) == []
