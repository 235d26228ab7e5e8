"""Samples: packets to ports that have answered, sent again to learn what a path loses."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import core_lab
from core_lab import ACK, ICMP, PROHIBITED, RST, SYN, Drive, host, inside, space, tcp
from lab.namespaces import Namespace, require
from nray import _core
from raw_lab import FarEnd, echo_answer, icmp_error, source_port, target_of, tcp_answer

pytestmark = pytest.mark.lab

#: A range of addresses.
several = core_lab.hosts


@pytest.fixture(scope="module")
def alone() -> Iterator[Namespace]:
    require()
    with Namespace("samples") as made:
        yield made


@pytest.fixture
def far(alone: Namespace) -> Iterator[FarEnd]:
    with inside(alone), FarEnd(alone, False) as made:
        yield made


def hosts(version: int, count: int, *ports: int) -> _core.Space:
    return space([several(version, 1, count)], tcp(*ports))


class Sampled:
    """An engine that samples, whose probes and samples are told apart by their source ports."""

    def __init__(self, far: FarEnd, version: int = 4, **options: object) -> None:
        fd = os.memfd_create("test-samples", os.MFD_CLOEXEC)
        os.ftruncate(fd, _core.Bucket.BYTES)
        self.far = far
        self.version = version
        self.shared = _core.Bucket(fd)
        os.close(fd)
        given = {"samples": True, "shared": self.shared, "tcp_timeout_s": 60.0}
        self.engine = far.engine(**(given | options))
        self.drive = Drive(self.engine)
        first, last = self.engine.source_ports
        self.middle = first + (last + 1 - first) // 2
        self.probes: list[bytes] = []
        self.samples: list[bytes] = []
        #: What comes back to each sample, at once: on a busy machine a test that looks first and
        #: answers then may find that the sample was given up.
        self.answers: Callable[[bytes], list[bytes]] = lambda _: []

    def look(self, seconds: float = 0.001) -> None:
        self.drive.pump(seconds)
        for frame in self.far.probes():
            version = frame[14] >> 4
            if source_port(frame, version) < self.middle:
                self.probes.append(frame)
                continue
            self.samples.append(frame)
            for answer in self.answers(frame):
                self.far.put(answer)

    def until(self, count: int, samples: int = 0, limit_s: float = 60.0) -> None:
        """Look until so many probes and samples have come out."""
        deadline = time.monotonic() + limit_s
        while len(self.probes) < count or len(self.samples) < samples:
            assert time.monotonic() < deadline, (len(self.probes), len(self.samples))
            self.look()


def test_what_has_answered_is_asked_again(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, 80, 81)
    scan = Sampled(far)
    number = scan.shared.begin_stretch()
    scan.engine.add_slice(1, 0, where.total, where, None)
    scan.until(18)
    assert scan.samples == [], "nothing is known to answer yet"
    answered = scan.probes[:4]
    for probe in answered:
        far.put(tcp_answer(probe, SYN | ACK if target_of(probe)[1] == 80 else RST | ACK))
    scan.drive.until(lambda: sum(len(each.hits) for each in scan.drive.leases.values()) == 4)
    # Told twice it is one; and it is no hit, nor a double of one.
    scan.answers = lambda sample: [tcp_answer(sample, SYN | ACK), tcp_answer(sample, RST | ACK)]
    for k in range(50):
        more = hosts(version, 12, *range(1000 + 10 * k, 1010 + 10 * k))
        scan.engine.add_slice(2 + k, 0, more.total, more, None)
        scan.until(18 + 120 * (k + 1))
        for _ in range(5):
            scan.look(0.01)
        if scan.shared.samples(number)[1]:
            break
    assert {target_of(sample) for sample in scan.samples} <= {target_of(each) for each in answered}
    asked, heard, _ = scan.shared.samples(number)
    assert 1 <= heard <= asked == len(scan.samples)
    assert sum(len(each.hits) for each in scan.drive.leases.values()) == 4
    assert scan.engine.duplicates == 0
    assert scan.shared.sent == scan.engine.sent == len(scan.probes) + len(scan.samples)


def flood(scan: Sampled, rounds: int, lease: int = 100) -> None:
    """Send on to silent ports, so that there is a share for samples."""
    version = scan.version
    for k in range(rounds):
        where = space([host(version, 200)], tcp(*range(2000 + 16 * k, 2016 + 16 * k)))
        before = len(scan.probes)
        scan.engine.add_slice(lease + k, 0, 16, where, None)
        scan.until(before + 16)
        time.sleep(0.005)


def flood_until(scan: Sampled, met: Callable[[], bool]) -> None:
    for k in range(200):
        flood(scan, 1, 10_000 + k)
        if met():
            return
    raise AssertionError("not within 200 rounds")


def begun(far: FarEnd, version: int, known: int = 1, **options: object) -> Sampled:
    """A scan with so many ports that are known to answer."""
    scan = Sampled(far, version, **options)
    where = hosts(version, known, 80)
    scan.engine.add_slice(1, 0, where.total, where, None)
    scan.until(known)
    for probe in scan.probes:
        far.put(tcp_answer(probe, SYN | ACK))
    scan.drive.until(
        lambda: scan.drive.leases.get(1) is not None and scan.drive.leases[1].done == 1
    )
    return scan


def test_one_port_is_not_bothered_and_silence_is_told(far: FarEnd, version: int) -> None:
    scan = begun(far, version)
    number = scan.shared.begin_stretch()
    began = time.monotonic()
    flood(scan, 12)
    took = time.monotonic() - began
    assert 1 <= len(scan.samples) <= took / 0.1 + 1
    scan.drive.until(lambda: scan.shared.samples(number)[2] == len(scan.samples))
    assert scan.shared.samples(number) == (len(scan.samples), 0, len(scan.samples))


def test_a_port_that_falls_silent_is_left_alone(far: FarEnd, version: int) -> None:
    scan = begun(far, version)
    lost = 0
    for k in range(8):
        number = scan.shared.begin_stretch()
        flood(scan, 2, 1000 + 10 * k)
        scan.drive.until(
            lambda number=number: (
                sum(scan.shared.samples(number)[1:]) == scan.shared.samples(number)[0]
            )
        )
        lost += scan.shared.samples(number)[2]
        time.sleep(0.1)
    assert lost == len(scan.samples) == 3


def test_without_a_stretch_there_are_none(far: FarEnd, version: int) -> None:
    scan = begun(far, version, 3)
    flood(scan, 5)
    assert scan.samples == []
    scan.shared.begin_stretch()
    scan.shared.end_stretch()
    flood(scan, 5, 300)
    assert scan.samples == []


def test_an_engine_without_samples_has_all_ports(far: FarEnd, version: int) -> None:
    scan = Sampled(far, version, samples=False)
    middle, scan.middle = scan.middle, 1 << 16
    number = scan.shared.begin_stretch()
    flood(scan, 30)
    assert scan.shared.samples(number) == (0, 0, 0)
    assert scan.shared.sent == 0
    ports = Counter(source_port(probe, version) >= middle for probe in scan.probes)
    assert min(ports[True], ports[False]) > 100


def test_answers_that_nobody_asked_for_count_for_nothing(far: FarEnd, version: int) -> None:
    scan = begun(far, version, 2)
    number = scan.shared.begin_stretch()
    flood(scan, 6)
    sample = scan.samples[0]
    other = next(each for each in scan.probes if target_of(each) != target_of(sample))
    wrong = bytearray(sample)
    wrong[14 + (20 if version == 4 else 40) + 4] ^= 1  # another number: no cookie of ours
    far.put(tcp_answer(bytes(wrong), SYN | ACK))
    far.put(tcp_answer(other, SYN | ACK))
    for _ in range(3):
        scan.look(0.005)
    assert scan.shared.samples(number)[1] == 0
    scan.answers = lambda sample: [icmp_error(sample, *PROHIBITED[version])]
    flood_until(scan, lambda: scan.shared.samples(number)[1] >= 1)


def test_echo_replies_are_known_too(far: FarEnd, version: int) -> None:
    where = space([several(version, 1, 29)], [(1, 0)])
    scan = Sampled(far, version)
    number = scan.shared.begin_stretch()
    scan.engine.add_slice(1, 0, where.total, where, None)
    scan.until(29)
    for probe in scan.probes:
        far.put(echo_answer(probe))
    scan.drive.until(lambda: scan.engine.slices_open == 0)
    told = 29

    def answered() -> bool:
        nonlocal told
        frames = scan.probes + scan.samples
        at = 14 + (9 if version == 4 else 6)
        echoes = [each for each in frames if each[at] == ICMP[version]]
        for echo in echoes[told:]:
            far.put(echo_answer(echo))
        told = len(echoes)
        scan.look(0.01)
        return scan.shared.samples(number)[1] >= 1

    flood_until(scan, answered)


def test_stretches_are_counted_apart(far: FarEnd, version: int) -> None:
    scan = begun(far, version, 4)
    first = scan.shared.begin_stretch()
    flood(scan, 3)
    scan.shared.end_stretch()
    asked = scan.shared.samples(first)[0]
    assert asked == len(scan.samples) > 0
    second = scan.shared.begin_stretch()
    assert scan.shared.samples(second) == (0, 0, 0)
    for sample in scan.samples:
        far.put(tcp_answer(sample, SYN | ACK))
    scan.drive.until(lambda: sum(scan.shared.samples(first)[1:]) == asked)
    assert scan.shared.samples(second)[1] == 0


def test_they_take_turns_of_the_rate(far: FarEnd, version: int) -> None:
    scan = begun(far, version, 20)
    scan.shared.set_rate(2000)
    scan.shared.begin_stretch()
    where = hosts(version, 200, *range(3000, 3005))
    before = scan.engine.sent
    began = time.monotonic()
    scan.engine.add_slice(2, 0, where.total, where, None)
    scan.until(20 + 1000)
    took = time.monotonic() - began
    assert scan.samples
    assert scan.engine.sent - before <= 2000 * (took + 0.005) + 1
