"""The connect engine from underneath: each probe ends once, and as it did in truth.

Most tests run in a namespace of their own, many against a `Tun`, where the test is the far end of
the network and decides what comes when.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import platform
import random
import resource
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core_lab import (
    ACK,
    ALL_STATES,
    COUNTED,
    FIN,
    PROHIBITED,
    RST,
    SYN,
    TCP,
    UDP,
    UNREACHABLE,
    Drive,
    Ended,
    Packet,
    Tun,
    bucket,
    exclusions,
    expect_seconds,
    host,
    hosts,
    in_child,
    inside,
    own,
    run,
    space,
    tcp,
    udp,
)
from lab.namespaces import Namespace, require
from nray import _core

lab = pytest.mark.lab
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def engine(**options: object) -> _core.Engine:
    """One that reports all states, and has a rate of its own."""
    rate = options.pop("rate", 0)
    options.setdefault("states", ALL_STATES)
    return _core.Engine(bucket(rate), **options)  # type: ignore[arg-type]


def total(ended: Ended) -> int:
    """Probes that a slice accounts for, further addresses of names taken out again."""
    return sum(ended.counts[name] for name in COUNTED[:7]) - ended.counts["more"]


def check(ended: Ended, count: int) -> None:
    """The law: counts add up, each position has exactly one hit, and both agree."""
    assert ended.done == 1
    assert total(ended) == count
    assert set(ended.states) == set(range(count))
    told = Counter(hit.state for hit in ended.hits)
    assert told == Counter({name: ended.counts[name] for name in ALL_STATES if ended.counts[name]})
    assert sum(ended.errors.values()) == ended.counts["error"]


def by_port(where: _core.Space, ended: Ended) -> dict[int, tuple[str, str]]:
    return {where.at(at)[3]: state for at, state in ended.states.items()}


def leave_descriptors(free: int) -> None:
    """From now on this process (an `in_child`: there is no way back) gets so many more at most."""
    most = max(int(name) for name in os.listdir("/proc/self/fd")) + 1 + free
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def take_all_descriptors() -> list[int]:
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    return taken


@pytest.fixture
def tun(alone: Namespace) -> Iterator[Tun]:
    """The test, in its namespace, is the far end of two networks."""
    with inside(alone), Tun(alone) as made:
        yield made


def start(
    drive: Drive, tun: Tun, where: _core.Space, count: int | None = None, lease: int = 1
) -> list[Packet]:
    """Begin a whole space; returns its first ``count`` probes (all, if not told) once they are
    out."""
    drive.engine.add_slice(lease, 0, where.total, where, None)
    probes: list[Packet] = []
    wanted = where.total if count is None else count
    deadline = time.monotonic() + 60
    while len(probes) < wanted:
        assert time.monotonic() < deadline, f"{len(probes)} of {wanted} probes came out"
        drive.pump(0.001)
        probes += [p for p in tun.sent() if p.protocol == UDP or p.flags == SYN]
    return probes


# ── the law ─────────────────────────────────────────────────────────────────────────────────

OPEN_PORTS = range(1000, 1010)
SILENT_PORTS = range(1100, 1120)
#: Addresses with routes that refuse to send at once: EHOSTUNREACH, EACCES, EINVAL.
REFUSED = {
    "198.18.9.1": "no-route-from-here",
    "198.18.9.2": "forbidden-here",
    "198.18.9.3": "local-error",
    "2001:db8:9::1": "no-route-from-here",
    "2001:db8:9::2": "forbidden-here",
    "2001:db8:9::3": "local-error",
}
UNANSWERED = {TCP: ("filtered", "no-response"), UDP: ("open|filtered", "no-response")}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Namespace]:
    """Open, closed and silent ports of both protocols and families, and routes that refuse."""
    require("nft")
    with Namespace("mixed") as namespace:
        kinds = 2 * ("unreachable", "prohibit", "blackhole")
        for address, kind in zip(REFUSED, kinds, strict=True):
            namespace.ip("-6" if ":" in address else "-4", "route", "add", kind, address)
        ports = f"{{ {', '.join(map(str, SILENT_PORTS))} }}"
        namespace.call(
            ["nft", "-f", "-"],
            "table inet t { chain i { type filter hook input priority 0;\n"
            f"tcp dport {ports} drop\nudp dport {ports} drop\n}}\n}}\n",
        )
        with contextlib.ExitStack() as stack:
            with inside(namespace):
                for port in OPEN_PORTS:
                    sock = socket.create_server(
                        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000
                    )
                    stack.enter_context(sock)
            yield namespace


def truth(family: int, address: str, protocol: int, port: int) -> tuple[str, str]:
    if address in REFUSED:
        return "error", REFUSED[address]
    if port in SILENT_PORTS:
        return UNANSWERED[protocol]
    if protocol == UDP:
        return "closed", "port-unreach"
    return ("open", "syn-ack") if port in OPEN_PORTS else ("closed", "conn-refused")


HOSTS = ["127.0.0.1-127.0.0.3", "198.18.9.1-198.18.9.3", "::1", "2001:db8:9::1-2001:db8:9::3"]


@lab
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from([0, 1, 3, 17, 64, 500]),
    free=st.sampled_from([None, 18, 30, 60]),
    timeout_ms=st.sampled_from([1, 30, 100]),
    rate=st.sampled_from([0, 0, 20_000]),
    slices=st.integers(1, 30),
)
def test_each_probe_ends_once_and_in_truth(
    mixed: Namespace,
    seed: int,
    window: int,
    free: int | None,
    timeout_ms: int,
    rate: float,
    slices: int,
) -> None:
    rnd = random.Random(seed)
    silent = rnd.sample(list(SILENT_PORTS), 5 if window in (1, 3) and timeout_ms > 1 else 20)
    ports = sorted({*rnd.sample(list(OPEN_PORTS), 6), *silent, *rnd.sample(range(2000, 4000), 40)})
    if window == 1:
        ports = rnd.sample(ports, 20)
    where = space(HOSTS, rnd.sample(tcp(*ports) + udp(*ports), len(ports)))
    cuts = sorted({0, where.total, *(rnd.randrange(where.total) for _ in range(slices))})

    def work() -> dict[int, Ended]:
        if free is not None:
            leave_descriptors(free)
        tested = engine(
            window=window,
            tcp_timeout_s=timeout_ms / 1000,
            udp_timeout_s=timeout_ms / 1000,
            rate=rate,
        )
        drive = Drive(tested)
        for begin, end in itertools.pairwise(cuts):
            tested.add_slice(begin, begin, end - begin, where, None)
        drive.to_end(30)
        assert (tested.in_flight, tested.pending) == (0, 0)
        return drive.leases

    with inside(mixed):
        leases = in_child(work)[1]()
    states: dict[int, tuple[str, str]] = {}
    for begin, end in itertools.pairwise(cuts):
        ended = leases[begin]
        assert ended.done == 1
        assert total(ended) == end - begin == len(ended.hits)
        assert set(ended.states) == set(range(begin, end))
        states |= ended.states
    wrong = {}
    for position, found in states.items():
        family, number, protocol, port = where.at(position)
        address = socket.inet_ntop(
            socket.AF_INET if family == 4 else socket.AF_INET6,
            number.to_bytes(4 if family == 4 else 16, "big"),
        )
        meant = truth(family, address, protocol, port)
        # What answers within microseconds may be missed by a timeout of 1 ms on a busy machine.
        if found != meant and not (timeout_ms == 1 and found == UNANSWERED[protocol]):
            wrong[address, protocol, port] = found, meant
    assert not wrong


def test_no_descriptor_is_left_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        tested = engine(udp_timeout_s=0.05)
        run(tested, space(["127.0.0.1", "::1"], tcp(*range(1, 30)) + udp(*range(1, 30))))
        assert tested.sockets_open > 0
        del tested
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_arguments_out_of_bounds_are_refused() -> None:
    for options in (
        {"tcp_timeout_s": 0},
        {"udp_timeout_s": -1},
        {"tcp_timeout_s": float("nan")},
        {"window": -1},
        {"payload": b"x" * 1401},
        {"payloads": {53: b"x" * 1401}},
        {"payloads": {0: b""}},
        {"payloads": {65536: b""}},
    ):
        with pytest.raises(ValueError):
            engine(**options)
    with pytest.raises(OSError):
        engine(control_fd=10_000)


@pytest.mark.parametrize(
    ("start_at", "count"), [(0, 0), (0, 3), (1, 2), (2, 1), (2**64 - 1, 1), (1, 2**64 - 1)]
)
def test_a_slice_outside_of_its_space_is_refused(start_at: int, count: int) -> None:
    tested = engine()
    with pytest.raises(ValueError, match="slice"):
        tested.add_slice(1, start_at, count, space(["127.0.0.1"], tcp(1, 2)), None)
    assert (tested.slices_open, tested.pending) == (0, 0)


# ── slices, hits, pumping ───────────────────────────────────────────────────────────────────


def test_many_slices_at_once_and_one_too_many(version: int) -> None:
    tested = engine()
    where = space([own(version)], tcp(*range(1, 1026)))
    for round_ in range(2):
        for i in range(1024):
            tested.add_slice(i, i, 1, where, None)
        with pytest.raises(RuntimeError, match="too many"):
            tested.add_slice(9999, 0, 1, where, None)
        assert tested.slices_open == tested.pending == 1024
        drive = Drive(tested)
        drive.to_end()
        assert sorted(drive.leases) == list(range(1024)), round_
        assert all(set(ended.states) == {i} for i, ended in drive.leases.items())


def test_hits_that_nobody_takes_hold_the_scan_and_are_not_lost(version: int) -> None:
    tested = engine()
    where = space([own(version)], tcp(*range(1, 20_001)))
    tested.add_slice(1, 0, where.total, where, None)
    for _ in range(3000):
        tested.pump(0.001)
    assert tested.sent < 8192
    check(Drive(tested).to_end(), 20_000)


@lab
def test_a_pump_returns_when_a_slice_more_is_wanted(tun: Tun, version: int) -> None:
    """When each slice has begun, not only the last one: the next can be fetched meanwhile."""
    tested = engine(states=(), tcp_timeout_s=60)
    where = space([host(version, 1)], tcp(1, 2, 3))
    for i in range(3):
        tested.add_slice(i, i, 1, where, None)
    seen = []
    for _ in range(3):
        tested.pump(1)
        seen.append(tested.pending)
        assert tested.take() == []
    assert seen == [2, 1, 0]


@lab
def test_a_pump_with_nothing_to_do_sleeps(tun: Tun, version: int) -> None:
    """For as long as it was told to, whatever it is that is being waited for."""

    def asleep(tested: _core.Engine) -> None:
        drive = Drive(tested)
        for _ in range(5):
            drive.pump(0.01)  # what there is to tell is told first
        cpu = time.process_time()
        expect_seconds(lambda: drive.pump(0.15), 0.14, 0.4)
        assert time.process_time() - cpu < 0.05

    where = space([host(version, 1)], tcp(*range(1, 101)))
    asleep(engine())
    silent = engine(tcp_timeout_s=9, states=())
    silent.add_slice(1, 0, 100, where, None)
    asleep(silent)
    full = engine(tcp_timeout_s=9, window=10)
    full.add_slice(1, 0, 100, where, None)
    asleep(full)
    assert full.in_flight == 10
    slow = engine(tcp_timeout_s=9, rate=0.1)
    slow.add_slice(1, 0, 100, where, None)
    asleep(slow)
    assert slow.sent == 1
    paused = engine(tcp_timeout_s=9)
    paused.paused = True
    paused.add_slice(1, 0, 100, where, None)
    asleep(paused)
    assert paused.sent == 0


@lab
def test_the_control_descriptor_wakes_it(tun: Tun, version: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tested = engine(control_fd=theirs.fileno(), tcp_timeout_s=9)
        where = space([host(version, 1)], tcp(80))
        tested.add_slice(1, 0, 1, where, None)
        for _ in range(3):
            assert not tested.pump(0.01)
        ours.send(b"x")
        began = time.monotonic()
        assert tested.pump(5)
        assert tested.pump(5)  # until it is read
        theirs.recv(1)
        assert not tested.pump(0.01)
        ours.close()
        assert tested.pump(5)
        assert time.monotonic() - began < 4  # each of them would have slept for 5


@lab
def test_a_pause_holds_new_probes_and_lets_the_others_end(tun: Tun, version: int) -> None:
    tested = engine(tcp_timeout_s=5, window=10)
    drive = Drive(tested)
    where = space([host(version, 1)], tcp(*range(1, 31)))
    probes = start(drive, tun, where, 10)
    tested.paused = True
    for probe in probes:
        tun.answer_tcp(probe, RST | ACK)
    drive.until(lambda: tested.in_flight == 0, step_s=0.01)
    drive.pump(0.03)
    assert len(drive.leases[1].hits) == 10
    assert not [p for p in tun.sent() if p.flags == SYN]
    tested.paused = False
    answered = 0
    while answered < 20:
        drive.pump(0.001)
        for probe in tun.sent():
            if probe.flags == SYN:
                tun.answer_tcp(probe, RST | ACK)
                answered += 1
    check(drive.to_end(), 30)


# ── names ───────────────────────────────────────────────────────────────────────────────────


def packed(*addresses: str) -> list[bytes]:
    return [
        socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each)
        for each in addresses
    ]


def test_names_with_several_addresses_with_one_and_with_none() -> None:
    where = space([], tcp(1, 2), names=3)
    addresses = {0: packed("127.0.0.1", "::1", "127.0.0.2"), 1: packed("::1"), 2: []}
    tested = engine()
    tested.add_names(5, 0, 6, where, None, addresses)
    ended = Drive(tested).to_end()
    assert ended.counts["error"] == 2
    assert ended.errors == {"name-not-resolved": 2}
    assert ended.counts["closed"] == 8
    assert ended.counts["more"] == 4
    assert total(ended) == 6
    found = Counter((where.at(hit.position)[1], hit.address) for hit in ended.hits)
    assert found == {
        (0, "127.0.0.1"): 2,
        (0, "::1"): 2,
        (0, "127.0.0.2"): 2,
        (1, "::1"): 2,
    }


@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_slice_of_which_no_name_has_an_address(neighbours: int, version: int) -> None:
    """It has nothing to send, and ends all the same, also between two that have."""
    where = space([], tcp(1, 2), names=2)
    nothing: dict[int, list[bytes]] = {0: [], 1: []}
    there = {0: packed(own(version)), 1: packed(own(version))}
    tested = engine()
    if neighbours:
        tested.add_names(1, 0, 4, where, None, there)
    tested.add_names(2, 0, 4, where, None, nothing)
    if neighbours:
        tested.add_names(3, 0, 4, where, None, there)
    drive = Drive(tested)
    drive.to_end(3)
    assert sorted(drive.leases) == ([1, 2, 3] if neighbours else [2])
    assert drive.leases[2].counts["error"] == 4
    assert drive.leases[2].errors == {"name-not-resolved": 4}
    assert drive.leases[2].hits == []
    assert all(total(ended) == 4 and ended.done == 1 for ended in drive.leases.values())
    assert tested.sent == 8 * bool(neighbours)


def test_names_mixed_with_networks(version: int) -> None:
    where = space([own(version)], tcp(1, 2), names=1)
    tested = engine()
    with pytest.raises(ValueError, match="add_names"):
        tested.add_slice(1, 0, 4, where, None)
    tested.add_names(1, 0, 4, where, None, {0: packed(own(10 - version))})
    check(Drive(tested).to_end(), 4)


def test_names_without_good_addresses_are_refused_and_leave_nothing() -> None:
    where = space([], tcp(1), names=2)
    tested = engine()
    for addresses in ({0: []}, {}, {0: [], 1: [b"12345"]}, {0: [b""], 1: []}):
        with pytest.raises(ValueError, match="name"):
            tested.add_names(1, 0, 2, where, None, addresses)
    assert (tested.slices_open, tested.pending) == (0, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "mapped"),
    [("127.0.0.1", "127.0.0.2", ["::ffff:127.0.0.2"]), ("::1", "::2", [])],
)
def test_what_names_resolve_to_is_excluded_like_all_else(
    ours: str, theirs: str, mapped: list[str]
) -> None:
    where = space([], tcp(1), names=2)
    tested = engine()
    addresses = {0: packed(ours, theirs, *mapped), 1: packed(theirs)}
    tested.add_names(1, 0, 2, where, exclusions(theirs), addresses)
    ended = Drive(tested).to_end()
    excluded = 2 + len(mapped)
    assert (ended.counts["closed"], ended.counts["excluded"]) == (1, excluded)
    assert ended.counts["more"] == excluded - 1
    assert tested.sent == 1


# ── TCP ─────────────────────────────────────────────────────────────────────────────────────

#: What comes back for one SYN, and how the probe ends.
ANSWERS = {
    "syn-ack": ([(SYN | ACK, 1000)], "open"),
    "syn-ack, fin": ([(SYN | ACK, 1000), (FIN | ACK, 1001)], "open"),
    # A service that takes a connection only to drop it is open: nmap's SYN scan says so, and so
    # would this one had it looked a moment earlier.
    "syn-ack, rst": ([(SYN | ACK, 1000), (RST | ACK, 1001)], "open"),
    "syn-ack, fin, rst": ([(SYN | ACK, 1000), (FIN | ACK, 1001), (RST | ACK, 1002)], "open"),
    "rst": ([(RST | ACK, 0)], "closed"),
    "rst, syn-ack": ([(RST | ACK, 0), (SYN | ACK, 1000)], "closed"),
    # A RST that acknowledges nothing is not an answer to our SYN (RFC 9293, 3.10.7.3).
    "rst without ack": ([(RST, 0)], "filtered"),
    "ack": ([(ACK, 1000)], "filtered"),
}


@lab
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_an_answer_means(tun: Tun, answer: str, version: int) -> None:
    segments, state = ANSWERS[answer]
    tested = engine(tcp_timeout_s=0.2)
    drive = Drive(tested)
    (probe,) = start(drive, tun, space([host(version, 1)], tcp(80)))
    for flags, seq in segments:
        tun.answer_tcp(probe, flags, seq)
    ended = drive.to_end()
    assert [hit.state for hit in ended.hits] == [state]
    assert tested.sent == 1


@lab
def test_an_open_connection_is_ended_at_once(tun: Tun, version: int) -> None:
    drive = Drive(engine(tcp_timeout_s=1))
    (probe,) = start(drive, tun, space([host(version, 1)], tcp(80)))
    tun.answer_tcp(probe, SYN | ACK)
    drive.to_end()
    assert [p.flags & (SYN | RST | FIN) for p in tun.sent()] == [0, RST]


@lab
def test_an_answer_after_the_timeout_is_not_the_next_target_s(tun: Tun, version: int) -> None:
    """One socket, used for one target after the other; the first one's answer is late."""
    tested = engine(tcp_timeout_s=0.1, window=1)
    drive = Drive(tested)
    where = space([hosts(version, 1, 2)], tcp(80))
    (first,) = start(drive, tun, where, 1)
    drive.until(lambda: tested.sent == 2, step_s=0.01)
    (second,) = [p for p in tun.sent() if p.flags == SYN]
    for flags in (SYN | ACK, RST | ACK):
        tun.answer_tcp(first, flags)
    tun.answer_icmp(first, *PROHIBITED[version])
    ended = drive.to_end()
    assert {hit.address: hit.state for hit in ended.hits} == {
        first.target: "filtered",
        second.target: "filtered",
    }
    assert tested.sockets_open == 1


@lab
def test_an_icmp_error_that_comes_at_once_is_not_taken_for_a_reset(tun: Tun, version: int) -> None:
    """Where somebody else has his turn on the processor between two calls of connect()."""
    where = space([host(version, 1)], tcp(*range(1, 65)))

    def refuse() -> None:
        # His turn comes as soon as there is a packet, in the middle of connect().
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while True:
            for probe in tun.sent(wait_s=60):
                tun.answer_icmp(probe, *UNREACHABLE[version])

    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    child, _ = in_child(refuse)
    try:
        # Each looks for answers at once with its first probes, and goes on while there are some.
        told = [hit for _ in range(30) for hit in run(engine(window=1), where).hits]
    finally:
        os.sched_setaffinity(0, processors)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert {(hit.state, hit.reason) for hit in told} == {("closed", "port-unreach")}
    assert len(told) == 30 * 64


@lab
def test_an_engine_that_was_not_pumped_finds_answers_not_deadlines(tun: Tun, version: int) -> None:
    drive = Drive(engine(tcp_timeout_s=0.1, udp_timeout_s=0.1))
    where = space([hosts(version, 1, 9)], tcp(80) + udp(80))
    for probe in start(drive, tun, where):
        if probe.protocol == UDP:
            tun.answer_udp(probe, b"")
        else:
            tun.answer_tcp(probe, SYN | ACK)
    time.sleep(0.2)
    assert {hit.state for hit in drive.to_end().hits} == {"open"}


@lab
def test_a_process_stopped_for_a_while_finds_answers_not_deadlines(tun: Tun, version: int) -> None:
    """SIGSTOP interrupts epoll_wait (signal(7)): what was not looked at has not run out."""
    where = space([hosts(version, 1, 30)], tcp(80) + udp(80))

    def work() -> Ended:
        return run(engine(tcp_timeout_s=0.3, udp_timeout_s=0.3), where)

    child, result = in_child(work)
    probes: list[Packet] = []
    while len(probes) < 60:
        probes += [p for p in tun.sent(1) if p.protocol == UDP or p.flags == SYN]
    time.sleep(0.05)  # it sleeps in epoll now
    os.kill(child, signal.SIGSTOP)
    for probe in probes:
        if probe.protocol == UDP:
            tun.answer_udp(probe, b"x")
        else:
            tun.answer_tcp(probe, RST | ACK)
    time.sleep(0.4)
    os.kill(child, signal.SIGCONT)
    ended = result()
    check(ended, 60)
    assert (ended.counts["open"], ended.counts["closed"]) == (30, 30)


@lab
def test_more_answers_at_once_than_one_look_fetches(tun: Tun, version: int) -> None:
    """Those that are still to be fetched have not run out either."""
    for timeout_s in (0.3, 1, 3, 10):  # on a busy machine the first run out before the last leave
        drive = Drive(engine(tcp_timeout_s=timeout_s))
        began = time.monotonic()
        # They are read while they come.
        probes = start(drive, tun, space([host(version, 1)], tcp(*range(1, 1501))))
        if time.monotonic() - began < timeout_s:
            break
    for probe in probes:
        tun.answer_tcp(probe, RST | ACK)
    time.sleep(max(0.0, began + timeout_s + 0.05 - time.monotonic()))
    ended = drive.to_end()
    check(ended, 1500)
    assert ended.counts["closed"] == 1500


# ── adaptive timeouts ───────────────────────────────────────────────────────────────────────

#: Bounds of engine.pxi's IMPATIENT_NS, which is a matter of taste between them.
IMPATIENT_S = (0.2, 0.3)


def quick(version: int) -> str:
    return hosts(version, 0, 19, 1)


def answer_all(drive: Drive, tun: Tun, networks: list[str], flags: int = RST | ACK) -> None:
    """Have these hosts' port 80 answered at once, so that their networks are known as quick."""
    for probe in start(drive, tun, space(networks, tcp(80)), lease=1000):
        tun.answer_tcp(probe, flags)
    drive.until(lambda: drive.engine.in_flight == 0, step_s=0.01)


def beside_quick(tun: Tun, version: int, **options: object) -> Drive:
    """An engine to which `quick`'s network is known as quick: on a busy machine not at once."""
    for _ in range(50):
        drive = Drive(engine(adaptive=True, **options))
        answer_all(drive, tun, [quick(version)])
        if max(hit.rtt_us for hit in drive.leases[1000].hits) * 8 <= IMPATIENT_S[0] * 1e6:
            tun.sent()
            return drive
    raise AssertionError("this machine is too busy")


@lab
@pytest.mark.parametrize("timeout_s", [0.8, 5])
def test_silence_in_a_quick_network_is_not_waited_for(
    tun: Tun, timeout_s: float, version: int
) -> None:
    """But where the kernel would have sent a second SYN, one is sent."""
    tries = 2 if timeout_s > 1 else 1
    most_s = IMPATIENT_S[1] * tries + 0.3
    for _ in range(5):  # on a busy machine it is late
        drive = beside_quick(tun, version, tcp_timeout_s=timeout_s)
        began = time.monotonic()
        start(drive, tun, space([host(version, 200, 1)], tcp(80)), lease=2000)
        ended = drive.to_end()
        took = time.monotonic() - began
        check(ended, 1)
        assert ended.hits[0].state == "filtered"
        assert took >= IMPATIENT_S[0] * tries
        second = len([p for p in tun.sent() if p.flags == SYN])
        if took < most_s:
            break
    assert took < most_s
    assert second == tries - 1


@lab
@pytest.mark.parametrize("flags", [SYN | ACK, RST | ACK])
def test_the_second_try_finds_what_a_lost_packet_hid(tun: Tun, flags: int, version: int) -> None:
    drive = beside_quick(tun, version, tcp_timeout_s=5)
    (first,) = start(drive, tun, space([host(version, 200, 1)], tcp(80)), lease=2000)
    drive.until(lambda: drive.engine.sent == 22, step_s=0.05)
    (second,) = [p for p in tun.sent() if p.flags == SYN]
    assert (second.target, second.dport) == (first.target, first.dport)
    tun.answer_tcp(second, flags)
    ended = drive.to_end()
    check(ended, 1)
    assert ended.hits[0].state == ("open" if flags & SYN else "closed")


@lab
def test_more_second_tries_than_there_is_room_for(tun: Tun, version: int) -> None:
    """Then the kernel's own second SYN is waited for: no probe ends with a single one."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 13_000:
        pytest.skip("needs 13,000 descriptors")
    where = space([host(version, 200, 1)], tcp(*range(1, 12_001)))
    for _ in range(10):  # on a busy machine the first end before the last have begun
        drive = Drive(engine(tcp_timeout_s=1.3, adaptive=True, states=()))
        answer_all(drive, tun, [quick(version)])
        tun.sent()
        drive.engine.add_slice(2000, 0, where.total, where, None)
        while drive.engine.in_flight < 12_000 and drive.engine.slices_open:
            drive.pump(0.01)
        if drive.engine.slices_open:
            break
    assert drive.engine.in_flight == 12_000
    time.sleep(0.35)  # and now all of them are overdue at once
    # Seen as bytes: to parse 24,000 packets would take longer than the scan.
    sent: Counter[bytes] = Counter()
    port_at = (20 if version == 4 else 40) + 2
    while drive.engine.slices_open:
        drive.pump(0.01)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent[os.read(tun.fd, 2000)[port_at : port_at + 2]] += 1
    assert drive.leases[2000].counts["filtered"] == 12_000
    assert all(sent[port.to_bytes(2, "big")] >= 2 for port in range(1, 12_001))


def table_place(prefix: bytes, family: int) -> int:
    """Where the engine keeps a network's answers, written down anew: 14 top bits of a Fibonacci
    multiplication of the prefix as a little-endian number with the family in its top byte."""
    number = int.from_bytes(prefix, "little") | family << 56
    return (number * 0x9E3779B97F4A7C15 % 2**64) >> 50


def colliding_network(version: int) -> str:
    """An address of another /56 in 2001:db8::/32 that has the place of `quick`'s network."""
    prefix = ip_address(host(version, 0, 1)).packed[: 3 if version == 4 else 7]
    wanted = table_place(prefix, version)
    begin = bytes.fromhex("20010db8")
    for number in range(2**24):
        found = begin + number.to_bytes(3, "big")
        if found != prefix and table_place(found, 6) == wanted:
            return socket.inet_ntop(socket.AF_INET6, found + b"\0" * 8 + b"\1")
    raise AssertionError("no network collides")


@lab
@pytest.mark.parametrize("where", ["elsewhere", "colliding", "too few"])
def test_silence_elsewhere_is_waited_for_to_the_end(tun: Tun, where: str, version: int) -> None:
    """Quickness is a network's own: not its neighbour's, nor that of one in its table's place."""
    drive = Drive(engine(tcp_timeout_s=0.6, adaptive=True))
    answer_all(drive, tun, [hosts(version, 0, 14, 1) if where == "too few" else quick(version)])
    silent = {"elsewhere": host(version, 200, 2), "too few": host(version, 200, 1)}.get(where)
    began = time.monotonic()
    drive.engine.add_slice(2000, 0, 1, space([silent or colliding_network(version)], tcp(80)), None)
    ended = drive.to_end()
    check(ended, 1)
    assert ended.counts["filtered"] == 1
    assert time.monotonic() - began >= 0.6


@lab
def test_a_slow_network_is_waited_for_to_the_end(tun: Tun, version: int) -> None:
    drive = Drive(engine(tcp_timeout_s=0.6, adaptive=True))
    probes = start(drive, tun, space([quick(version)], tcp(80)), lease=1000)
    for probe in probes[1:]:
        tun.answer_tcp(probe, RST | ACK)
    drive.until(lambda: drive.engine.in_flight == 1, step_s=0.01)
    drive.pump(0.05)
    tun.answer_tcp(probes[0], RST | ACK)  # after 50 ms: eight times that is too long
    drive.until(lambda: drive.engine.in_flight == 0, step_s=0.01)
    began = time.monotonic()
    start(drive, tun, space([host(version, 200, 1)], tcp(80)), lease=2000)
    drive.to_end()
    assert time.monotonic() - began >= 0.6


# ── this machine's own shortages ────────────────────────────────────────────────────────────


@lab
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_more_probes_than_local_ports_end_as_they_should(
    alone: Namespace, tun: Tun, protocol: int, version: int
) -> None:
    """Each waits until a port is free again; none becomes an error, and each really went out."""
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40019"})
    tested = engine(tcp_timeout_s=0.2, udp_timeout_s=0.2)
    drive = Drive(tested)
    where = space([host(version, 1)], [(protocol, port) for port in range(1, 71)])
    tested.add_slice(1, 0, where.total, where, None)
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while tested.slices_open:
        assert time.monotonic() < deadline
        drive.pump(0.02)
        seen |= {p.dport for p in tun.sent()}
    ended = drive.leases[1]
    check(ended, 70)
    assert ended.counts["error"] == 0
    assert seen == set(range(1, 71))
    assert tested.window_now >= 1


@lab
def test_ports_that_our_own_probes_hold_are_waited_for(
    alone: Namespace, tun: Tun, version: int
) -> None:
    """For as long as those take, which is longer here than all tries with their pauses.

    Over UDP: TCP shares a local port among connections to different targets."""
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40003"})
    ended = run(engine(udp_timeout_s=1.4), space([host(version, 1)], udp(*range(1, 7))))
    check(ended, 6)
    assert ended.counts["open|filtered"] == 6


@lab
def test_a_pause_holds_those_that_are_to_be_tried_again_too(
    alone: Namespace, tun: Tun, version: int
) -> None:
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40003"})
    tested = engine(udp_timeout_s=0.1)
    drive = Drive(tested)
    start(drive, tun, space([host(version, 1)], udp(*range(1, 6))), 4)
    assert (tested.pending, tested.in_flight) == (0, 4)
    tested.paused = True
    drive.until(lambda: tested.in_flight == 0, step_s=0.01)
    drive.pump(0.05)
    assert tun.sent() == []
    tested.paused = False
    check(drive.to_end(), 5)
    assert len(tun.sent()) == 1


@lab
def test_ports_that_others_hold_for_good_end_as_errors(
    alone: Namespace, tun: Tun, version: int
) -> None:
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40003"})
    with contextlib.ExitStack() as stack:
        for port in range(40000, 40004):
            sock = stack.enter_context(socket.socket(FAMILY[version]))
            sock.bind(("", port))
        ended = run(engine(tcp_timeout_s=0.2), space([host(version, 1)], tcp(*range(1, 11))))
    check(ended, 10)
    assert ended.errors == {"out-of-local-ports": 10}


@lab
def test_an_own_address_that_is_lacking_is_told_at_once(alone: Namespace, version: int) -> None:
    """No port is free, says the kernel of IPv6 in both cases; waiting helps in one."""
    if version == 4:
        alone.ip("address", "del", "127.0.0.1/8", "dev", "lo")
    else:
        alone.sysctl({"net.ipv6.conf.all.disable_ipv6": 1})
    with inside(alone):

        def scan() -> None:
            tested = engine(udp_timeout_s=0.2)
            ended = run(tested, space([own(version)], tcp(*range(1, 1001)) + udp(1, 2)))
            check(ended, 1002)
            assert ended.errors == {"no-route-from-here": 1002}
            assert tested.window_now > 100, "what was never sent is no overload"

        expect_seconds(scan, 0, 0.5)


@lab
def test_a_queue_that_is_full_loses_no_probe(alone: Namespace, tun: Tun, version: int) -> None:
    """ENOBUFS: the interface took no more. Sent again later, not counted as silence."""
    require("tc")
    # Some 28 datagrams at once, then 60 a second.
    size = 32 if version == 4 else 52
    # fmt: off
    alone.call(
        ["tc", "qdisc", "add", "dev", "tun0", "root", "tbf", "rate", f"{60 * 8 * size}bit",
         "burst", f"{28 * size}", "limit", f"{10 * size}"]
    )
    # fmt: on
    tested = engine(udp_timeout_s=0.2)
    drive = Drive(tested)
    where = space([host(version, 1)], udp(*range(1, 61)))
    tested.add_slice(1, 0, where.total, where, None)
    seen: Counter[int] = Counter()
    while tested.slices_open:
        drive.pump(0.02)
        seen.update(p.dport for p in tun.sent())
    time.sleep(0.2)
    seen.update(p.dport for p in tun.sent())
    ended = drive.leases[1]
    check(ended, 60)
    assert tested.sent > 60, "the queue was never full: this proves nothing"
    for position, (state, reason) in ended.states.items():
        port = where.at(position)[3]
        assert (state, seen[port]) in {("open|filtered", 1), ("error", 0)}, (port, reason)
    assert ended.counts["error"] < 10


@lab
@pytest.mark.parametrize("window", [0, 40])
def test_descriptors_taken_by_someone_else_and_given_back(
    tun: Tun, window: int, version: int
) -> None:
    """The window fits itself to the sockets that there are, and grows again; nothing is lost."""

    def work() -> Ended:
        leave_descriptors(80)
        tested = engine(tcp_timeout_s=0.1, window=window)
        drive = Drive(tested)
        where = space([host(version, 1)], tcp(*range(1, 301)))
        tested.add_slice(1, 0, where.total, where, None)
        # A rate of its own is not needed: the first burst of 64 would take nearly all there are.
        taken = take_all_descriptors()
        for fd in taken[:20]:
            os.close(fd)
        for _ in range(10):
            drive.pump(0.02)
            assert tested.sockets_open == tested.window_now == 20
        for fd in taken[20:]:
            os.close(fd)
        drive.to_end()
        assert tested.sockets_open > 20
        return drive.leases[1]

    ended = in_child(work)[1]()
    check(ended, 300)
    assert ended.counts["filtered"] == 300


@lab
def test_not_one_descriptor_to_be_had(tun: Tun, version: int) -> None:
    def work() -> Ended:
        leave_descriptors(30)
        tested = engine(tcp_timeout_s=0.1)
        take_all_descriptors()
        return run(tested, space([host(version, 1)], tcp(*range(1, 11))))

    ended = in_child(work)[1]()
    check(ended, 10)
    assert ended.errors == {"out-of-descriptors": 10}


@lab
def test_few_descriptors_for_all_kinds_of_sockets(mixed: Namespace) -> None:
    """The idle ones of one kind make room for those of another."""
    ports = [*SILENT_PORTS[:4], *range(2000, 2050)]
    where = space(["127.0.0.1", "::1"], tcp(*ports) + udp(*ports))
    with inside(mixed):
        for window in (1, 2, 5):
            tested = engine(window=window, tcp_timeout_s=0.03, udp_timeout_s=0.03)
            ended = run(tested, where)
            check(ended, where.total)
            assert ended.counts["error"] == 0
            assert tested.sockets_open <= window


def forbid_sockets(family: int, code: int) -> None:
    """From now on socket(family, …) fails so in this process (seccomp(2), a BPF filter)."""
    number = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
    if number is None:
        pytest.skip("socket(2) has another number here")
    load, equal, give = 0x20, 0x15, 0x06
    # fmt: off
    program = b"".join(struct.pack("HBBI", *line) for line in (
        (load, 0, 0, 0),                    # the number of the call
        (equal, 0, 3, number),
        (load, 0, 0, 16),                   # its first argument
        (equal, 0, 1, family),
        (give, 0, 0, 0x00050000 | code),    # SECCOMP_RET_ERRNO
        (give, 0, 0, 0x7FFF0000),           # SECCOMP_RET_ALLOW
    ))
    # fmt: on
    text = ctypes.create_string_buffer(program)
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0) == 0  # PR_SET_SECCOMP, a filter


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EAFNOSUPPORT, "no-route-from-here"),
        (errno.EACCES, "forbidden-here"),
        (errno.EPROTONOSUPPORT, "local-error"),
    ],
)
def test_sockets_of_a_kind_that_there_is_not(code: int, reason: str, version: int) -> None:
    """As with ipv6.disable=1: told at once, the other kind is scanned as ever, and it ends."""

    def work() -> tuple[Ended, int]:
        forbid_sockets(FAMILY[version], code)
        tested = engine()
        where = space(["127.0.0.1", "::1"], tcp(*range(1, 301)))
        return run(tested, where), tested.window_now

    ended, window = in_child(work)[1]()
    check(ended, 600)
    assert ended.errors == {reason: 300}
    assert ended.counts["closed"] == 300
    assert window > 100, "a kind that there is not is no shortage"


@lab
def test_an_address_that_needs_a_scope_is_an_error(alone: Namespace, tun: Tun) -> None:
    ended = run(engine(), space(["fe80::1"], tcp(80) + udp(80)))
    check(ended, 2)
    assert ended.counts["error"] == 2


# ── this machine meets itself ───────────────────────────────────────────────────────────────

#: Local port ranges so small that a probe often comes from the very port that it goes to.
RANGES = [(40000, 40003), (40000, 40000), (40000, 40099)]


@lab
@pytest.mark.parametrize("ports", RANGES, ids=str)
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_socket_that_reaches_itself_is_not_open(
    alone: Namespace, ports: tuple[int, int], protocol: int, address: str
) -> None:
    first, last = ports
    alone.sysctl({"net.ipv4.ip_local_port_range": f"{first} {last}"})
    where = space([address], [(protocol, port) for port in range(first, last + 1)])
    counts: Counter[str] = Counter()
    with inside(alone):
        tested = engine(udp_timeout_s=0.01, states=("error",), window=3)
        drive = Drive(tested)
        for lease in range(30 if first < last else 3):
            tested.add_slice(lease, 0, where.total, where, None)
            ended = drive.to_end()
            counts.update(ended.counts)
            assert set(ended.errors) <= {"connects-to-itself"}
    assert counts["open"] == 0
    if first == last:
        assert counts["error"] == counts.total()
    else:
        # It can nearly always be found out from another port.
        assert counts["error"] <= counts.total() * 0.05


@lab
@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_socket_that_reaches_itself_by_another_name_is_not_open(
    alone: Namespace, address: str
) -> None:
    """It is this machine, says connect(2)."""
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40003"})
    with inside(alone):
        where = space([address], tcp(*range(40000, 40004)))
        for _ in range(30):
            assert run(engine(states=()), where).counts["open"] == 0


@lab
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_two_workers_that_meet_each_other_are_not_open(
    alone: Namespace, protocol: int, version: int
) -> None:
    """Simultaneous open (RFC 9293, 3.5): without a look at it, some 1 % here would seem open."""
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40005"})
    where = space([own(version)], [(protocol, port) for port in range(40000, 40006)])

    def work() -> Counter[str]:
        counts: Counter[str] = Counter()
        tested = engine(states=(), tcp_timeout_s=0.01, udp_timeout_s=0.01, window=2)
        drive = Drive(tested)
        for lease in range(600 if protocol == TCP else 30):
            tested.add_slice(lease, 0, where.total, where, None)
            counts.update(drive.to_end().counts)
        return counts

    with inside(alone):
        results = [in_child(work)[1] for _ in range(2)]
    for result in results:
        counts = result()
        assert counts["open"] == 0
        assert counts["closed"] > counts.total() / 2


@lab
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_listener_on_a_local_port_is_open_and_asked_once(alone: Namespace, address: str) -> None:
    """The port is one that probes come from too: it must not be taken for one of ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    alone.sysctl({"net.ipv4.ip_local_port_range": "40000 40099"})
    with inside(alone), socket.create_server((address, 40050), family=family) as listener:
        tested = engine()
        ended = run(tested, space([address], tcp(40050)))
        assert ended.hits[0].state == "open"
        assert tested.sent == 1
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


@lab
def test_a_udp_service_of_this_machine_is_open_also_if_it_echoes(
    alone: Namespace, version: int
) -> None:
    """An echo is what another probe of ours would say, too; it is believed in the end."""
    with inside(alone), socket.socket(FAMILY[version], socket.SOCK_DGRAM) as echo:
        echo.bind((own(version), 40050))
        echo.setblocking(False)
        drive = Drive(engine(udp_timeout_s=1))
        where = space([own(version)], udp(40050))
        drive.engine.add_slice(1, 0, 1, where, None)
        deadline = time.monotonic() + 60
        while drive.engine.slices_open and time.monotonic() < deadline:
            drive.pump(0.005)
            with contextlib.suppress(BlockingIOError):
                data, peer = echo.recvfrom(100)
                echo.sendto(data, peer)
    assert [hit.state for hit in drive.leases[1].hits] == ["open"]


# ── UDP ─────────────────────────────────────────────────────────────────────────────────────


@lab
def test_the_same_socket_goes_from_the_right_address_to_each_target(tun: Tun, version: int) -> None:
    """Loopback first: a socket kept connected would go on from 127.0.0.1."""
    tested = engine(udp_timeout_s=0.05, window=1)
    drive = Drive(tested)
    tested.add_slice(1, 0, 1, space([own(version)], udp(9)), None)
    drive.to_end()
    (probe,) = start(drive, tun, space([host(version, 1)], udp(9)), lease=2)
    assert probe.source == Tun.OWN[version]
    tun.answer_udp(probe, b"here")
    assert drive.to_end().hits[0].state == "open"
    tested.add_slice(3, 0, 1, space([own(version)], udp(9)), None)
    assert drive.to_end().hits[0].state == "closed"
    assert tested.sockets_open == 1


@lab
@pytest.mark.parametrize("late", ["datagram", "icmp"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_late_answer_of_an_earlier_target_is_nobody_s(
    tun: Tun, late: str, when: str, version: int
) -> None:
    """On the same socket; come while it was idle, or when the next probe was out already."""
    tested = engine(udp_timeout_s=0.1, window=1)
    drive = Drive(tested)

    def be_late(probe: Packet) -> None:
        if late == "icmp":
            tun.answer_icmp(probe, *UNREACHABLE[version])
        else:
            tun.answer_udp(probe, b"too late")

    (first,) = start(drive, tun, space([host(version, 1)], udp(53)))
    assert drive.to_end().hits[0].state == "open|filtered"
    if when == "before":
        be_late(first)
    start(drive, tun, space([host(version, 2)], udp(53)), lease=2)
    if when == "after":
        be_late(first)
    assert drive.to_end().hits[0].state == "open|filtered"
    assert tested.sockets_open == 1


@lab
def test_a_second_answer_of_an_earlier_target_is_nobody_s(tun: Tun, version: int) -> None:
    """It lies in the socket's queue when the next target's turn comes."""
    tested = engine(udp_timeout_s=0.1, window=1)
    drive = Drive(tested)
    (first,) = start(drive, tun, space([host(version, 1)], udp(53)))
    for text in (b"one", b"two", b"three"):
        tun.answer_udp(first, text)
    assert drive.to_end().hits[0].state == "open"
    start(drive, tun, space([host(version, 2)], udp(53)), lease=2)
    assert drive.to_end().hits[0].state == "open|filtered"
    assert tested.sockets_open == 1


@lab
def test_a_datagram_from_elsewhere_is_no_answer(tun: Tun, version: int) -> None:
    drive = Drive(engine(udp_timeout_s=0.1))
    (probe,) = start(drive, tun, space([host(version, 1)], udp(53)))
    for target, port in ((host(version, 2), 53), (host(version, 1), 54)):
        forged = Packet(probe.source, target, UDP, probe.sport, port, 0, 0, b"", probe.raw)
        tun.answer_udp(forged, b"not me")
    assert drive.to_end().hits[0].state == "open|filtered"


@lab
@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 1400])
def test_payloads_arrive_as_they_are_and_any_answer_counts(
    tun: Tun, payload: bytes, version: int
) -> None:
    drive = Drive(engine(udp_timeout_s=1, payload=payload, payloads={53: b"question", 54: b""}))
    probes = start(drive, tun, space([host(version, 1)], udp(52, 53, 54)))
    assert {p.dport: p.payload for p in probes} == {52: payload, 53: b"question", 54: b""}
    for probe, text in zip(probes, (b"", b"z" * 1400, payload), strict=True):
        tun.answer_udp(probe, text)
    assert {hit.reason for hit in drive.to_end().hits} == {"udp-response"}


@lab
def test_an_answer_to_something_else_is_open_with_another_reason(tun: Tun, version: int) -> None:
    checks = {53: [(_core.STEP_SAME, 0, 0, 2)]}
    drive = Drive(engine(udp_timeout_s=1, payloads={53: b"question"}, checks=checks))
    some = hosts(version, 1, 3)
    probes = sorted(start(drive, tun, space([some], udp(53))), key=lambda probe: probe.target)
    for probe, text in zip(probes, (b"quite right", b"wrong", b"question"), strict=True):
        tun.answer_udp(probe, text)
    found = {hit.address: (hit.state, hit.reason) for hit in drive.to_end().hits}
    assert found == {
        host(version, 1): ("open", "udp-response"),
        host(version, 2): ("open", "unexpected-response"),
        host(version, 3): ("open", "unexpected-response"),
    }


@lab
def test_a_silent_port_is_asked_its_further_questions(tun: Tun, version: int) -> None:
    steps = [(_core.STEP_SAME, 0, 0, 1)]
    further = {161: [(b"two", steps), (b"1", steps)]}
    tested = engine(
        udp_timeout_s=0.1, payloads={161: b"three", 162: b"x"}, checks={161: steps}, further=further
    )
    drive = Drive(tested)
    where = space([host(version, 1), host(version, 2)], udp(161, 162))
    sent = start(drive, tun, where)
    assert {(p.dport, p.payload) for p in sent} == {(161, b"three"), (162, b"x")}
    while len(sent) < 6:
        drive.pump(0.01)
        sent += tun.sent()
    assert [p.payload for p in sent[4:]] == [b"two", b"two"]
    answered = sent[4]
    tun.answer_udp(answered, b"t as asked")
    ended = drive.to_end()
    (more,) = tun.sent()
    assert (more.target == answered.target, more.payload) == (False, b"1")
    assert total(ended) == 4
    assert tested.sent == 7
    assert {(h.address, where.at(h.position)[3], h.state) for h in ended.hits} == {
        (answered.target, 161, "open"),
        (more.target, 161, "open|filtered"),
        (answered.target, 162, "open|filtered"),
        (more.target, 162, "open|filtered"),
    }


@lab
def test_silent_ports_of_a_host_that_told_of_others_are_asked_slowly(
    tun: Tun, version: int
) -> None:
    tested = engine(udp_timeout_s=0.1)
    drive = Drive(tested)
    where = space([host(version, 1), host(version, 2)], udp(50, 51, 52, 53))
    for probe in start(drive, tun, where):
        if (probe.target, probe.dport) == (host(version, 1), 50):
            tun.answer_icmp(probe, *UNREACHABLE[version])
    asked: list[int] = []
    while len([port for port in asked if port != 50]) < 3:
        drive.pump(0.001)
        for probe in tun.sent():
            assert probe.target == host(version, 1)
            asked.append(probe.dport)
            if probe.dport != 53:
                tun.answer_icmp(probe, *UNREACHABLE[version])
    assert 19 <= asked.index(next(port for port in asked if port != 50)) <= 20
    ended = drive.to_end()
    assert total(ended) == 8
    closed = {(h.address, where.at(h.position)[3]) for h in ended.hits if h.state == "closed"}
    assert closed == {(host(version, 1), 50), (host(version, 1), 51), (host(version, 1), 52)}
    assert ended.counts["open|filtered"] == 5
    assert tested.in_flight == 0


@lab
def test_fast_udp_leaves_ports_without_a_payload_out(tun: Tun, version: int) -> None:
    drive = Drive(
        engine(
            tcp_timeout_s=0.1, udp_timeout_s=0.1, udp_fast=True, payloads={53: b"question", 54: b""}
        )
    )
    probes = start(drive, tun, space([host(version, 1)], udp(52, 53, 54, 55) + tcp(52)), 3)
    ended = drive.to_end()
    assert sorted((p.protocol, p.dport) for p in probes) == [(TCP, 52), (UDP, 53), (UDP, 54)]
    assert ended.counts["skipped"] == 2
    assert total(ended) == 5


@lab
def test_no_packet_goes_to_an_excluded_address(tun: Tun, version: int) -> None:
    tested = engine(tcp_timeout_s=0.1, udp_timeout_s=0.1)
    where = space([hosts(version, 0, 31)], tcp(80) + udp(80))
    tested.add_slice(1, 0, 64, where, exclusions(hosts(version, 8, 23)))
    drive = Drive(tested)
    seen: set[str] = set()
    while tested.slices_open:
        drive.pump(0.01)
        seen |= {p.target for p in tun.sent()}
    assert seen == {host(version, i) for i in [*range(8), *range(24, 32)]}
    assert drive.leases[1].counts["excluded"] == 32
    assert total(drive.leases[1]) == 64


# ── the rate ────────────────────────────────────────────────────────────────────────────────


def test_a_rate_is_kept_to_the_last_probe(version: int) -> None:
    where = space([own(version)], tcp(*range(1, 102)))
    expect_seconds(lambda: run(engine(rate=500, window=1), where), 0.2 - 0.005, 0.35)


def test_excluded_probes_cost_no_turns(version: int) -> None:
    """But the one that the last of them wait for: 0.2 s here, where 255 would be 51 s."""
    tested = engine(rate=5)
    second, last = (ip_address(own(version)) + more for more in (1, 255))
    where = space([f"{own(version)}-{last}"], tcp(1))
    tested.add_slice(1, 0, 256, where, exclusions(f"{second}-{last}"))
    began = time.monotonic()
    assert Drive(tested).to_end().counts["excluded"] == 255
    assert time.monotonic() - began < 20


@lab
def test_a_turn_far_off_is_void_when_the_rate_changes(tun: Tun, version: int) -> None:
    """A worker that waits for a turn at one probe in an hour goes on when the rate is raised."""
    rate = bucket(1 / 3600)
    tested = _core.Engine(rate, tcp_timeout_s=0.1, states=ALL_STATES)
    drive = Drive(tested)
    where = space([host(version, 1)], tcp(*range(1, 11)))
    tested.add_slice(1, 0, 10, where, None)
    for _ in range(5):
        drive.pump(0.02)
    assert tested.sent == 1
    rate.set_rate(1000)
    check(drive.to_end(2), 10)


def test_a_turn_left_over_is_not_kept_for_later(version: int) -> None:
    """Two workers: one has a turn and nothing to do, and gets work when the other is at it.

    Between two turns lie 50 ms; a busy machine may tell of the first one late, and so of less."""
    assert any(_gap_of_a_turn_left_over(version) >= 0.04 for _ in range(5))


def _gap_of_a_turn_left_over(version: int) -> float:
    rate = bucket(20)
    one, other = (_core.Engine(rate, states=ALL_STATES) for _ in range(2))
    where = space([f"{own(version)}-{ip_address(own(version)) + 2}"], tcp(1))
    # The first's last probe is excluded, and so leaves a turn over.
    last = {4: IPv4Address, 6: IPv6Address}[version](where.at(2)[1])
    one.add_slice(1, 0, 3, where, exclusions(str(last)))
    Drive(one).to_end()
    time.sleep(0.15)
    times = []
    for tested in (other, one):
        tested.add_slice(2, 0, 1, where, None)
        before = tested.sent
        while tested.sent == before:
            tested.pump(0.001)
        times.append(time.monotonic())
    return times[1] - times[0]
