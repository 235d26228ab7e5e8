"""What one host, or one network, gets at most: laws on a clock of the test's own, then engines."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_lab import (
    ACK,
    ALL_STATES,
    RST,
    TCP,
    UNREACHABLE,
    Drive,
    Tun,
    bucket,
    host,
    hosts,
    inside,
    space,
    summed,
    tcp,
    udp,
)
from lab.judge import most_within
from lab.namespaces import Namespace, require
from nray import _core
from raw_lab import FarEnd, icmp_error, target_of, tcp_answer

SECOND_NS = 10**9
BEGIN = 10**12


def address(number: int, version: int = 4) -> bytes:
    return ip_address(host(version, number)).packed


class Line:
    """Packets that go through the caps, on a clock; each as soon as it may."""

    def __init__(self, host_rate: float, network_rate: float) -> None:
        self.caps = _core.Caps(host_rate, network_rate)
        self.left: list[tuple[int, int]] = []
        self.packets: list[tuple[int, bytes]] = []

    def send(self, now: int, version: int, target: bytes) -> bool:
        """A new packet; whether it leaves at once."""
        self.packets.append((version, target))
        return self._try(now, len(self.packets) - 1)

    def _try(self, now: int, number: int) -> bool:
        went = self.caps.send(*self.packets[number], now, number)
        if went:
            self.left.append((now, number))
        return went

    def run(self, until: int, delay_ns: int = 0) -> None:
        """Let those that wait go when their time comes, or so much later."""
        while self.caps.next_due is not None and self.caps.next_due + delay_ns <= until:
            now = self.caps.next_due + delay_ns
            number = self.caps.ready(now)
            assert number is not None
            self._try(now, number)

    def by(self, key: object) -> dict[object, list[int]]:
        times: dict[object, list[int]] = defaultdict(list)
        for time_ns, number in self.left:
            times[key(self.packets[number])].append(time_ns)  # type: ignore[operator]
        return times


def network_of(packet: tuple[int, bytes]) -> bytes:
    return packet[1][: 3 if packet[0] == 4 else 8]


targets = st.tuples(
    st.sampled_from([4, 6]), st.integers(0, 1), st.integers(1, 2), st.integers(0, 2_000_000)
)


@settings(max_examples=60, deadline=None)
@given(
    st.just(0.0) | st.floats(1, 60),
    st.just(0.0) | st.floats(1, 60),
    st.lists(targets, min_size=1, max_size=50).map(lambda some: 8 * some),
    st.sampled_from([0, 0, 3_000_000, 700_000_000]),
)
def test_no_second_holds_more_and_none_is_lost(
    host_rate: float,
    network_rate: float,
    wanted: list[tuple[int, int, int, int]],
    delay_ns: int,
) -> None:
    line = Line(host_rate, network_rate)
    now = BEGIN
    for version, network, number, pause in wanted:
        now += pause
        line.run(now, delay_ns)
        line.send(now, version, ip_address(host(version, number, network)).packed)
    line.run(now + 10_000 * SECOND_NS, delay_ns)
    assert sorted(number for _, number in line.left) == list(range(len(wanted)))
    if host_rate:
        for times in line.by(lambda packet: packet).values():
            assert most_within(sorted(times), SECOND_NS) <= math.ceil(host_rate)
    if network_rate:
        for times in line.by(network_of).values():
            assert most_within(sorted(times), SECOND_NS) <= math.ceil(network_rate)
    if not host_rate and not network_rate:
        assert line.caps.next_due is None


def test_one_host_is_sent_to_as_fast_as_it_may_be(version: int) -> None:
    line = Line(1000, 0)
    for k in range(3000):
        line.send(BEGIN + k, version, address(1, version))
    line.run(BEGIN + 10 * SECOND_NS)
    times = sorted(time_ns for time_ns, _ in line.left)
    assert len(times) == 3000
    assert most_within(sorted(times), SECOND_NS) <= 1000
    assert times[-1] - times[0] <= 3.05 * SECOND_NS


def test_hosts_of_one_network_share_its_cap_and_others_do_not(version: int) -> None:
    line = Line(0, 10)
    for k in range(100):
        line.send(BEGIN, version, ip_address(host(version, k, 7)).packed)
        assert line.send(BEGIN, version, ip_address(host(version, 1, 100 + k)).packed)
    line.run(BEGIN + SECOND_NS - 1)
    assert sum(number % 2 == 0 for _, number in line.left) == 10


def test_a_wide_scan_is_not_held_up(version: int) -> None:
    """Two that meet by chance are no flood."""
    line = Line(1000, 5000)
    for k in range(20_000):
        network, number = divmod(k * 7919 % 65536, 256)
        target = ip_address(host(version, number, network)).packed
        assert line.send(BEGIN + k * 10_000, version, target)


def test_there_is_room_for_so_many_that_wait(version: int) -> None:
    caps = _core.Caps(1, 0)
    one, other = (address(number, version) for number in (1, 2))
    assert [caps.send(version, one, BEGIN, k) for k in range(4097)] == [True] + 4096 * [False]
    with pytest.raises(OverflowError):
        caps.send(version, one, BEGIN, 4097)
    assert caps.send(version, other, BEGIN, 4098), "what need not wait needs no room"


def test_they_go_in_the_order_of_their_times(version: int) -> None:
    caps = _core.Caps(100, 0)
    for number in range(2000):
        caps.send(version, address(number % 7 + 1, version), BEGIN, number)
    dues = []
    heap: list[int] = []
    while (due := caps.next_due) is not None:
        dues.append(due)
        heapq.heappush(heap, caps.ready(due) or 0)
    assert dues == sorted(dues)
    assert len(dues) == 2000 - 7


# ── engines ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def alone() -> Iterator[Namespace]:
    require()
    with Namespace("caps") as made:
        yield made


#: A second packet is due in so many seconds that no test sees it.
NEVER = 0.001


def flooded(version: int) -> _core.Space:
    """Thirty hosts of two networks, and three ports."""
    return space([hosts(version, 1, 10, 1), hosts(version, 1, 20, 2)], tcp(80, 81, 82))


@pytest.mark.lab
@pytest.mark.parametrize(("rates", "most"), [((NEVER, 0), 30), ((0, NEVER), 2), ((0, 0), 90)])
def test_the_raw_engine_defers_what_is_too_much(
    alone: Namespace, rates: tuple[float, float], most: int, version: int
) -> None:
    with inside(alone), FarEnd(alone, False) as far:
        where = flooded(version)
        engine = far.engine(
            retries=1, tcp_timeout_s=0.05, host_rate=rates[0], network_rate=rates[1]
        )
        drive = Drive(engine)
        probes = far.start(drive, where, most)
        for _ in range(20):
            drive.pump(0.02)
            probes += far.probes()
        if most == 90:
            assert len(probes) == 180
            return
        # No retry either, of what is silent: it is a packet to the same host.
        assert len(probes) == most
        kept = {30: 16, 2: 3 if version == 4 else 8}[most]
        targets = (ip_address(target_of(probe)[0]).packed[:kept] for probe in probes)
        assert len(set(targets)) == most
        assert drive.leases.get(1) is None or drive.leases[1].done == 0


@pytest.mark.lab
def test_the_raw_engine_s_accounts_are_exact(alone: Namespace, version: int) -> None:
    with inside(alone), FarEnd(alone, False) as far:
        where = flooded(version)
        engine = far.engine(retries=1, tcp_timeout_s=0.05, host_rate=100, network_rate=300)
        drive = Drive(engine)
        engine.add_slice(1, 0, where.total, where, None)
        seen: dict[tuple[str, int], int] = defaultdict(int)
        while engine.slices_open:
            drive.pump(0.01)
            for probe in far.probes():
                seen[target_of(probe)] += 1
                if target_of(probe)[1] == 81:
                    far.put(tcp_answer(probe, RST | ACK))
        counts = drive.leases[1].counts
        assert (counts["closed"], counts["filtered"], counts["error"]) == (30, 60, 0)
        assert len(seen) == 90
        assert all(times == (1 if port == 81 else 2) for (_, port), times in seen.items())


#: Longer than what is due in a moment may be waited for on any machine.
LONG_S = 30.0


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["raw", "connect"])
def test_an_engine_wakes_for_those_that_wait(alone: Namespace, kind: str, version: int) -> None:
    """Also for one whose time came while others were sent."""
    with inside(alone), FarEnd(alone, False) as far:
        options = {"tcp_timeout_s": 0.001, "states": (), "host_rate": 2000}
        engine = far.engine(**options) if kind == "raw" else _core.Engine(bucket(), **options)
        where = space([hosts(version, 1, 9)], tcp(*range(1, 101)))
        for lease in range(10):
            engine.add_slice(lease, 0, where.total, where, None)
            while engine.slices_open:
                began = time.monotonic()
                engine.pump(LONG_S)
                assert time.monotonic() - began < LONG_S
                engine.take()
        assert engine.sent >= 10 * where.total


def scanned(far: FarEnd, drive: Drive, lease: int, where: _core.Space) -> Counter[tuple[str, int]]:
    """How often each port was asked until a slice's end. Of port 50 hosts say that it is closed."""
    seen: Counter[tuple[str, int]] = Counter()
    drive.engine.add_slice(lease, 0, where.total, where, None)
    while drive.engine.slices_open:
        drive.pump(0.002)
        for probe in far.probes():
            seen[target_of(probe)] += 1
            if target_of(probe)[1] == 50:
                far.put(summed(icmp_error(probe, *UNREACHABLE[probe[14] >> 4])))
    return seen


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["raw", "connect"])
def test_ports_that_wait_for_a_cap_are_not_told_silent_before_they_are_asked(
    alone: Namespace, kind: str, version: int
) -> None:
    """Four hosts that seem to limit their ICMP errors share what their network gets, which is much
    less than one packet in the time that an answer is waited for."""
    with inside(alone), FarEnd(alone, False) as far:
        options = {"udp_timeout_s": 0.02, "states": ALL_STATES, "network_rate": 20}
        drive = Drive(far.engine(**options) if kind == "raw" else _core.Engine(bucket(), **options))
        for lease in range(50):  # on a busy machine their answers are late
            scanned(far, drive, lease, space([hosts(version, 1, 4)], udp(50)))
            if drive.leases[lease].counts["closed"] == 4:
                break
        seen = scanned(far, drive, 100, space([hosts(version, 1, 4)], udp(51)))
        asked = {port: times for port, times in seen.items() if port[1] == 51}
        assert asked == {(host(version, number), 51): 2 for number in range(1, 5)}
        assert drive.leases[100].counts["open|filtered"] == 4
        assert seen.total() <= 2 * 4 + 4 * 20


@pytest.mark.lab
@pytest.mark.parametrize(("rates", "most"), [((NEVER, 0), 30), ((0, NEVER), 2)])
def test_the_connect_engine_defers_what_is_too_much(
    alone: Namespace, rates: tuple[float, float], most: int, version: int
) -> None:
    with inside(alone), Tun(alone) as tun:
        engine = _core.Engine(
            bucket(),
            tcp_timeout_s=0.05,
            states=ALL_STATES,
            host_rate=rates[0],
            network_rate=rates[1],
        )
        drive = Drive(engine)
        where = flooded(version)
        engine.add_slice(1, 0, where.total, where, None)
        drive.until(lambda: sum(len(each.hits) for each in drive.leases.values()) == most)
        for _ in range(5):
            drive.pump(0.02)
        assert len({(packet.target, packet.dport) for packet in tun.sent()}) == most
        assert engine.sent == most
        assert engine.slices_open == 1


@pytest.mark.lab
def test_the_connect_engine_s_accounts_are_exact(alone: Namespace, version: int) -> None:
    with inside(alone), Tun(alone) as tun:
        engine = _core.Engine(
            bucket(), tcp_timeout_s=0.2, states=ALL_STATES, host_rate=100, network_rate=300
        )
        drive = Drive(engine)
        where = flooded(version)
        engine.add_slice(1, 0, where.total, where, None)
        seen = set()
        while engine.slices_open:
            drive.pump(0.005)
            for packet in tun.sent():
                if packet.protocol == TCP and packet.flags == 2:
                    seen.add((packet.target, packet.dport))
                    if packet.dport == 81:
                        tun.answer_tcp(packet, RST | ACK)
        counts = drive.leases[1].counts
        assert (counts["closed"], counts["filtered"], counts["error"]) == (30, 60, 0)
        assert len(seen) == 90
