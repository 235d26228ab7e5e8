"""What one host, or one network, gets at most: laws on a clock of the test's own, then engines."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_lab import ACK, ALL_STATES, RST, TCP, Drive, Tun, bucket, inside, space, tcp
from lab.judge import most_within
from lab.namespaces import Namespace, require
from nray import _core
from raw_lab import FarEnd, target_of, tcp_answer

SECOND_NS = 10**9
BEGIN = 10**12


def address(host: int, version: int = 4) -> bytes:
    return ip_address(f"198.18.0.{host}" if version == 4 else f"2001:db8:1::{host}").packed


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
    for version, network, host, pause in wanted:
        text = f"198.18.{network}.{host}" if version == 4 else f"2001:db8:1:{network}::{host}"
        now += pause
        line.run(now, delay_ns)
        line.send(now, version, ip_address(text).packed)
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


@pytest.mark.parametrize("version", [4, 6])
def test_one_host_is_sent_to_as_fast_as_it_may_be(version: int) -> None:
    line = Line(1000, 0)
    for k in range(3000):
        line.send(BEGIN + k, version, address(1, version))
    line.run(BEGIN + 10 * SECOND_NS)
    times = sorted(time_ns for time_ns, _ in line.left)
    assert len(times) == 3000
    assert most_within(sorted(times), SECOND_NS) <= 1000
    assert times[-1] - times[0] <= 3.05 * SECOND_NS


def test_hosts_of_one_network_share_its_cap_and_others_do_not() -> None:
    line = Line(0, 10)
    for k in range(100):
        line.send(BEGIN, 4, ip_address(f"198.18.7.{k}").packed)
        assert line.send(BEGIN, 4, ip_address(f"198.18.{100 + k}.1").packed)
    line.run(BEGIN + SECOND_NS - 1)
    assert sum(number % 2 == 0 for _, number in line.left) == 10


def test_a_wide_scan_is_not_held_up() -> None:
    """Two that meet by chance are no flood."""
    line = Line(1000, 5000)
    for k in range(20_000):
        host = k * 7919 % 65536
        assert line.send(BEGIN + k * 10_000, 4, ip_address(0xC6120000 + host).packed)


def test_there_is_room_for_so_many_that_wait() -> None:
    caps = _core.Caps(1, 0)
    assert [caps.send(4, address(1), BEGIN, k) for k in range(4097)] == [True] + 4096 * [False]
    with pytest.raises(OverflowError):
        caps.send(4, address(1), BEGIN, 4097)
    assert caps.send(4, address(2), BEGIN, 4098), "what need not wait needs no room"


def test_they_go_in_the_order_of_their_times() -> None:
    caps = _core.Caps(100, 0)
    for number in range(2000):
        caps.send(4, address(number % 7 + 1), BEGIN, number)
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


def flooded() -> _core.Space:
    """Thirty hosts of two networks, and three ports."""
    return space(["198.18.1.1-198.18.1.10", "198.18.2.1-198.18.2.20"], tcp(80, 81, 82))


@pytest.mark.lab
@pytest.mark.parametrize(("rates", "most"), [((NEVER, 0), 30), ((0, NEVER), 2), ((0, 0), 90)])
def test_the_raw_engine_defers_what_is_too_much(
    alone: Namespace, rates: tuple[float, float], most: int
) -> None:
    with inside(alone), FarEnd(alone, False) as far:
        where = flooded()
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
        key = {30: lambda text: text, 2: lambda text: text.rpartition(".")[0]}[most]
        assert len({key(target_of(probe)[0]) for probe in probes}) == most
        assert drive.leases.get(1) is None or drive.leases[1].done == 0


@pytest.mark.lab
def test_the_raw_engine_s_accounts_are_exact(alone: Namespace) -> None:
    with inside(alone), FarEnd(alone, False) as far:
        where = flooded()
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


@pytest.mark.lab
@pytest.mark.parametrize(("rates", "most"), [((NEVER, 0), 30), ((0, NEVER), 2)])
def test_the_connect_engine_defers_what_is_too_much(
    alone: Namespace, rates: tuple[float, float], most: int
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
        where = flooded()
        engine.add_slice(1, 0, where.total, where, None)
        drive.until(lambda: sum(len(each.hits) for each in drive.leases.values()) == most)
        for _ in range(5):
            drive.pump(0.02)
        assert len({(packet.target, packet.dport) for packet in tun.sent()}) == most
        assert engine.sent == most
        assert engine.slices_open == 1


@pytest.mark.lab
def test_the_connect_engine_s_accounts_are_exact(alone: Namespace) -> None:
    with inside(alone), Tun(alone) as tun:
        engine = _core.Engine(
            bucket(), tcp_timeout_s=0.2, states=ALL_STATES, host_rate=100, network_rate=300
        )
        drive = Drive(engine)
        where = flooded()
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
