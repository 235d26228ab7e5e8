"""Issue 11, 4: with exclusions the totals are exact, and no excluded address gets a packet."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.namespaces import Namespace
from lab.nray import nray, run, scan, totals

pytestmark = pytest.mark.lab

NETWORK = ipaddress.IPv4Network("127.0.0.0/16")
PORTS = (7, 80, 443)
SEED = 11
#: Answers to probes from this machine go to this address: it must not be excluded here.
OWN = "127.0.0.1"


def draw_excluded() -> set[str]:
    """One per cent of the addresses."""
    count = NETWORK.num_addresses // 100
    addresses = [str(address) for address in NETWORK if str(address) != OWN]
    return set(random.Random(SEED).sample(addresses, count))


@pytest.fixture(scope="module")
def excluded() -> set[str]:
    return draw_excluded()


@pytest.fixture
def flags(excluded: set[str], tmp_path: Path) -> list[str]:
    file = tmp_path / "excluded.txt"
    file.write_text("".join(f"{address}\n" for address in sorted(excluded)))
    ports = ",".join(map(str, PORTS))
    return ["-t", str(NETWORK), "-p", ports, "--exclude-file", str(file)]


EXPECTED = (NETWORK.num_addresses - NETWORK.num_addresses // 100) * len(PORTS)


def test_the_count_is_the_arithmetic(alone: Namespace, flags: list[str]) -> None:
    done = run(alone, nray("scan", "--list", "--count", *flags)).expect(0)
    counted = totals(done.stdout)
    assert counted["probes"] == EXPECTED == 194643
    assert counted["ports"] == len(PORTS)


def test_the_list_has_each_once_and_none_that_is_excluded(
    alone: Namespace, flags: list[str], excluded: set[str]
) -> None:
    done = run(alone, nray("scan", "--list", *flags)).expect(0)
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines)) == EXPECTED
    pairs = [line.split() for line in lines]
    assert not excluded & {address for address, _ in pairs}
    assert {port for _, port in pairs} == {f"{port}/tcp" for port in PORTS}


def test_no_excluded_address_gets_a_packet(
    alone: Namespace, flags: list[str], excluded: set[str], tmp_path: Path
) -> None:
    """On one of the ports: that each address has all of them is the list's to show."""
    flags[flags.index("-p") + 1] = str(PORTS[0])
    with Capture(alone, "lo", tmp_path / "capture", answers_to=OWN) as capture:
        done = scan(alone, *flags).expect(0)
    # Of any kind: the filter passes every packet that does not go to OWN.
    hit = {packet.address for packet in capture.packets} & excluded
    assert not hit, f"{len(hit)} excluded addresses got packets, e.g. {sorted(hit)[:5]}"
    probed = {(packet.address, packet.port) for packet in capture.probes()}
    assert probed == {(str(each), PORTS[0]) for each in NETWORK if str(each) not in excluded}
    assert done.probes == EXPECTED // len(PORTS)


def test_an_exclusion_wins_over_a_target_that_names_it(alone: Namespace, tmp_path: Path) -> None:
    with Capture(alone, "lo", tmp_path / "capture", answers_to=OWN) as capture:
        done = scan(alone, "-t", "127.0.9.9,127.0.9.8/31", "-p", "9", "--exclude", "127.0.9.9")
    assert done.expect(0).probes == 1
    assert {packet.address for packet in capture.packets} == {"127.0.9.8"}
