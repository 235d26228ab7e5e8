"""What a malicious server can make a node do: scripts that lease and set what nobody should.

Whatever it is, the node ends with the reason in words, or goes on; no worker dies of it.
"""

from __future__ import annotations

import dataclasses
import os
import socket

import pytest

from fakes import in_trio
from nray import _core
from nray.api.policy import policy_of
from nray.config.kinds import COUNT_OR_AUTO
from nray.config.payloads import PAYLOAD_BYTES_MAX as CONFIG_PAYLOAD_MAX
from nray.config.policy import parse_policy
from nray.node import bounds
from nray.node.bounds import (
    HEARTBEAT_LEAST_S,
    NAMES_LEASE_MAX,
    PAYLOAD_BYTES_MAX,
    RETRIES_MAX,
    SEGMENT_BYTES,
    SEGMENTS_BYTES_MAX,
    TIMEOUT_MS_MAX,
    WORKERS_MAX,
    Segments,
    check_settings,
    heartbeat,
)
from nray.node.orders import configure
from nray.targets.plan import plan
from nray.targets.segment import Segment
from nray.wire.errors import PeerFault
from nray.wire.framing import encode_frame
from nray.wire.messages import PROTOCOL_VERSION, Lease, Registered, Report, Settings, Welcome
from nray.wire.messages import Segment as SegmentMessage
from nray.worker import protocol
from nray.worker.main import Worker
from test_node_client import SEGMENT, site

KEY = bytes(32)


def small(number: int, **changes: object) -> Segment:
    known = {"ranges4": ((0x7F010000, 0x7F0100FF),), "ranges6": (), "names": ()}
    return Segment(number, **{**known, **changes}, ports=((6, 9),), key=KEY)  # type: ignore[arg-type]


def policy(text: str):
    return policy_of(parse_policy(text), "p.yaml")


# ── settings ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": WORKERS_MAX + 1}, "workers"),
        ({"tcp_timeout_ms": 2**62}, "tcp_timeout_ms"),
        ({"udp_timeout_ms": TIMEOUT_MS_MAX + 1}, "udp_timeout_ms"),
        ({"udp_payload": bytes(PAYLOAD_BYTES_MAX + 1)}, "udp_payload has 1401 bytes"),
        ({"udp_payloads": {53: bytes(60_000)}}, "UDP port 53 has 60000 bytes"),
        ({"udp_payloads": {53: b"x"}, "udp_checks": {53: ((2, 0, 0, 2),)}}, "port 53: step 0 of"),
        ({"udp_checks": {53: ((9, 0, 0, 0),)}}, "no such kind"),
        ({"udp_further": {53: ((b"x", ()),)}}, "no first one"),
        ({"udp_payloads": {53: b""}, "udp_further": {53: ((bytes(1401), ()),)}}, "at most 1400"),
        ({"tcp_method": "fin"}, "'fin' is not known"),
        ({"retries": RETRIES_MAX + 1}, "retries are 11"),
        ({"states": ("closed", "ajar")}, "'ajar' is not known"),
        ({"states": ("\x1b[2J" * 50,)}, r"\x1b"),
    ],
)
def test_settings_that_workers_cannot_bear_are_refused(changes, words):
    with pytest.raises(PeerFault) as fault:
        check_settings(Settings(**changes))
    assert words in fault.value.detail


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(workers=10**9, ratelimit=1e300, tcp_timeout_ms=1, udp_timeout_ms=TIMEOUT_MS_MAX),
        Settings(workers=WORKERS_MAX, ratelimit=5e-324, tcp_timeout_ms=TIMEOUT_MS_MAX),
        Settings(udp_payload=bytes(1400), udp_payloads={1: b"", 65535: bytes(1400)}),
        Settings(
            udp_payloads={1: b"", 2: b"xy"},
            udp_checks={2: ((2, 0, 0, 2),) * 96, 3: ((0, 65535, 0, 0),)},
            udp_further={1: ((bytes(1400), ((4, 0, 1400, 0),)),) * 7},
        ),
        Settings(states=("closed", "filtered", "open|filtered", "error", "open")),
    ],
)
def test_what_passes_can_be_worked_with(settings):
    """The other half of the promise: a real worker is set up by it."""
    check_settings(settings)
    fd = os.memfd_create("rate")
    os.ftruncate(fd, _core.Bucket.BYTES)
    bucket = _core.Bucket(fd)
    os.close(fd)
    bucket.set_rate(settings.ratelimit)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Worker(theirs, bucket)._handle(configure(settings, 0, 2))


def test_bounds_are_those_of_the_rooms_that_a_node_cannot_ask() -> None:
    assert CONFIG_PAYLOAD_MAX == PAYLOAD_BYTES_MAX
    assert COUNT_OR_AUTO.high == WORKERS_MAX
    assert _core.STATES[1:] == protocol.STATES


@pytest.mark.parametrize(
    ("asked", "kept"), [(1e-9, HEARTBEAT_LEAST_S), (5.0, 5.0), (1e308, 86_400.0)]
)
def test_a_heartbeat_is_kept_within_reason(asked, kept):
    assert heartbeat(asked) == kept


# ── segments and leases ─────────────────────────────────────────────────────────────────────


def test_segments_are_bounded_in_all_however_small_they_are() -> None:
    segments = Segments(Settings())
    body = small(0).pack()
    most = SEGMENTS_BYTES_MAX // (len(body) + SEGMENT_BYTES)
    assert most > 10_000  # a stream of names may bring thousands
    for number in range(most - 100):  # numbers take a few bytes, too
        segments.add(number, small(number).pack())

    def go_on() -> None:
        for number in range(most - 100, most + 1):
            segments.add(number, small(number).pack())

    with pytest.raises(PeerFault, match="one too many: a node keeps 64 MiB"):
        go_on()


def test_segments_are_bounded_by_their_size(monkeypatch) -> None:
    monkeypatch.setattr(bounds, "SEGMENTS_BYTES_MAX", 100_000)
    segments = Segments(Settings())
    segments.add(0, small(0, names=tuple(f"n{i}" for i in range(5000))).pack())
    with pytest.raises(PeerFault, match="segment 1 is one too many"):
        segments.add(1, small(1, names=tuple(f"n{i}" for i in range(15000))).pack())
    assert 1 not in segments


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        (small(1), "calls itself 1"),
        (small(0, ranges4=((0, 2**32 - 1),), ranges6=((0, 5),) * 2), "sorted"),
        (small(0, ranges6=((0xFFFF << 32, (0xFFFF << 32) + 5),)), "IPv4-mapped"),
        (small(0, ranges6=((0, 2**64),)), "probes"),
        (small(0, names=("10.0.0.1",)), "no name"),
        (small(0, names=("a..b",)), "no name"),
        (dataclasses.replace(small(0), key=b"short"), "key"),
        (dataclasses.replace(small(0), ports=()), "probes"),
    ],
)
def test_segments_that_are_none_are_refused(segment, words):
    with pytest.raises(PeerFault, match=words):
        Segments(Settings()).add(0, segment.pack())


@pytest.mark.parametrize(
    ("settings", "welcome"),
    [(Settings(), False), (Settings(pings=True), True), (Settings(tcp_method="syn"), True)],
    ids=["connect", "pings", "syn"],
)
def test_pings_that_the_settings_do_not_have_are_refused(settings, welcome):
    """Workers were told by the settings alone whether they send packets of their own."""
    (ping, *_) = plan("198.18.0.0/30", tcp="80", discovery="ping").segments
    (syn, *_) = plan("198.18.0.0/30", tcp="80", discovery="syn:80").segments
    Segments(settings).add(0, syn.pack())
    if welcome:
        Segments(settings).add(0, ping.pack())
    else:
        with pytest.raises(PeerFault, match="pings, which the scan's settings do not have"):
            Segments(settings).add(0, ping.pack())


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", bytes(100), b"\x91" * 9999]
)
def test_bytes_that_are_no_segment_are_refused(body):
    with pytest.raises(PeerFault):
        Segments(Settings()).add(0, body)


@pytest.mark.parametrize(
    ("start", "count"), [(0, 257), (256, 1), (2**63 - 2, 1), (1, 2**63 - 2), (255, 2)]
)
def test_leases_beyond_their_segment_are_refused(start, count):
    segments = Segments(Settings())
    segments.add(0, small(0).pack())
    segments.check(Lease(1, 0, 0, 256))
    with pytest.raises(PeerFault, match="which has 256 probes"):
        segments.check(Lease(1, 0, start, count))


def test_a_lease_of_endless_names_is_refused() -> None:
    segments = Segments(Settings())
    half = ((0x20010DB8 << 96, (0x20010DB8 << 96) + 2**62),)
    segments.add(0, small(0, ranges6=half, names=("localhost",)).pack())
    segments.check(Lease(1, 0, 0, NAMES_LEASE_MAX))
    with pytest.raises(PeerFault, match="names"):
        segments.check(Lease(1, 0, 0, 2**62))


# ── a whole node ────────────────────────────────────────────────────────────────────────────


async def refused(made) -> str:
    """Why the node has ended, in its words; its workers are gone by then."""
    await made.ended()
    (error,) = made.errors
    assert "does not talk as a nray server does" in error.message
    return error.message


@in_trio
async def test_a_node_refuses_settings_in_words_and_keeps_its_workers():
    async with site() as made:
        server = await made.accept()
        await server.let_in(settings=Settings(udp_payload=bytes(5000)))
        assert "udp_payload has 5000 bytes, more than 1400" in await refused(made)
    assert made.forks.spawned == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": Settings(udp_payload=bytes(1_000_000))},
        {"settings": Settings(tcp_timeout_ms=0)},
        {"settings": Settings(udp_timeout_ms=-5)},
        {"settings": Settings(ratelimit=-1.0)},
        {"settings": Settings(ratelimit=float("nan"))},
        {"settings": Settings(workers=-1)},
        {"heartbeat_s": 0.0},
        {"heartbeat_s": float("inf")},
    ],
)
def test_a_node_refuses_what_no_message_may_hold(changes):
    @in_trio
    async def against_it():
        async with site() as made:
            server = await made.accept()
            known = {
                "node_id": "n",
                "pool": 0,
                "server_time_ms": 0,
                "heartbeat_s": 5.0,
                "settings": Settings(),
            }
            await server.channel.send(Welcome(PROTOCOL_VERSION, "x"))
            await server.hear()
            # Past the server's own rules, which would not let it out.
            await server.line.send_all(encode_frame(Registered(**{**known, **changes})))
            assert await refused(made)

    against_it()


@in_trio
async def test_a_node_refuses_a_slice_outside_of_its_segment():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(6)
        await server.lease(1, 0, SEGMENT.probes + 1, announce=True)
        assert "which has" in await refused(made)


@in_trio
async def test_a_node_with_a_policy_tells_it_and_tells_its_workers():
    kept = policy("networks: 198.18.0.0/29\nratelimit: 100\nworkers: 7")
    async with site(policy=kept) as made:
        server = await made.accept()
        register = await server.let_in(settings=Settings(ratelimit=1e300, workers=10**9))
        assert register.policy == kept.words()
        await server.asked(6)
        await server.lease(1, 0, 10, announce=True)
        await server.hear(Report)
        assert made.forks.rate == 100
        orders = [worker.heard[0] for worker in made.forks.workers]
        assert sum(each.window for each in orders) == 7
        assert all(each.policy == kept.order() for each in orders)
        await server.dismiss()
        await made.ended()
    assert made.errors == []


@in_trio
async def test_what_is_refused_as_a_whole_needs_no_worker():
    async def never(worker, work):
        raise AssertionError("a worker got a slice")

    async with site(never, policy=policy("networks: 203.0.113.0/24")) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(6)
        await server.lease(1, 0, 10, announce=True)
        await server.lease(2, 10, 30)
        for lease, count in ((1, 10), (2, 30)):
            report = await server.hear(Report)
            assert (report.lease, report.done, report.counts.refused) == (lease, True, count)
        await server.dismiss()
        await made.ended()
    assert made.errors == []


@in_trio
async def test_without_names_in_a_policy_none_is_looked_up():
    got = []

    async def behave(worker, work):
        got.append(work.addresses)
        await worker.found(work, counts=(0,) * 8 + (work.count,))

    segment = small(0, names=("localhost",))
    async with site(behave, policy=policy("networks: 127.0.0.0/8\nnames: no")) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(6)
        await server.channel.send(SegmentMessage(0, segment.pack()))
        await server.channel.send(Lease(1, 0, 0, segment.probes))
        report = await server.hear(Report)
        assert report.counts.refused == segment.probes
        await server.dismiss()
        await made.ended()
    assert got == [{0: [b""]}]
