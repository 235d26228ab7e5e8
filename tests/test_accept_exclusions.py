"""Issue 11, 4: with exclusions the totals are exact, and no excluded address gets a packet."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.namespaces import Namespace, require
from lab.nray import nray, run, scan, totals

pytestmark = pytest.mark.lab

#: 65,536 addresses each, all of them of this machine.
NETWORK = {4: ipaddress.ip_network("127.0.0.0/16"), 6: ipaddress.ip_network("2001:db8:1::/112")}
SIZE = 65536
PORTS = (7, 80, 443)
SEED = 11
#: Answers to probes from this machine go to this address: it must not be excluded here.
OWN = {4: "127.0.0.1", 6: "::1"}


def draw_excluded(version: int) -> set[str]:
    """One per cent of the addresses."""
    addresses = [str(address) for address in NETWORK[version] if str(address) != OWN[version]]
    return set(random.Random(SEED).sample(addresses, SIZE // 100))


@pytest.fixture(scope="module")
def here() -> Iterator[Namespace]:
    """A namespace to which both networks belong."""
    require()
    with Namespace("excluded") as made:
        made.ip("-6", "route", "add", "local", str(NETWORK[6]), "dev", "lo")
        yield made


@pytest.fixture
def excluded(version: int) -> set[str]:
    return draw_excluded(version)


@pytest.fixture
def flags(version: int, excluded: set[str], tmp_path: Path) -> list[str]:
    file = tmp_path / "excluded.txt"
    file.write_text("".join(f"{address}\n" for address in sorted(excluded)))
    ports = ",".join(map(str, PORTS))
    return ["-t", str(NETWORK[version]), "-p", ports, "--exclude-file", str(file)]


EXPECTED = (SIZE - SIZE // 100) * len(PORTS)


def test_the_count_is_the_arithmetic(here: Namespace, flags: list[str]) -> None:
    done = run(here, nray("scan", "--list", "--count", *flags)).expect(0)
    counted = totals(done.stdout)
    assert counted["probes"] == EXPECTED == 194643
    assert counted["ports"] == len(PORTS)


def test_the_list_has_each_once_and_none_that_is_excluded(
    here: Namespace, flags: list[str], excluded: set[str]
) -> None:
    done = run(here, nray("scan", "--list", *flags)).expect(0)
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines)) == EXPECTED
    pairs = [line.split() for line in lines]
    assert not excluded & {address for address, _ in pairs}
    assert {port for _, port in pairs} == {f"{port}/tcp" for port in PORTS}


def test_no_excluded_address_gets_a_packet(
    here: Namespace, version: int, flags: list[str], excluded: set[str], tmp_path: Path
) -> None:
    """On one of the ports: that each address has all of them is the list's to show."""
    flags[flags.index("-p") + 1] = str(PORTS[0])
    with Capture(here, "lo", tmp_path / "capture", answers_to=OWN[version]) as capture:
        done = scan(here, *flags).expect(0)
    # Of any kind: the filter passes every packet that does not go to OWN.
    hit = {packet.address for packet in capture.packets} & excluded
    assert not hit, f"{len(hit)} excluded addresses got packets, e.g. {sorted(hit)[:5]}"
    probed = {(packet.address, packet.port) for packet in capture.probes()}
    assert probed == {
        (str(each), PORTS[0]) for each in NETWORK[version] if str(each) not in excluded
    }
    assert done.probes == EXPECTED // len(PORTS)


def test_an_exclusion_wins_over_a_target_that_names_it(
    here: Namespace, version: int, tmp_path: Path
) -> None:
    named, other = {
        4: ("127.0.9.9", "127.0.9.8"),
        6: ("2001:db8:1::9", "2001:db8:1::8"),
    }[version]
    both = f"{named},{other}/{31 if version == 4 else 127}"
    with Capture(here, "lo", tmp_path / "capture", answers_to=OWN[version]) as capture:
        done = scan(here, "-t", both, "-p", "9", "--exclude", named)
    assert done.expect(0).probes == 1
    assert {packet.address for packet in capture.packets} == {other}
