"""The small parts of the server: findings into events, words at the end, the door of TLS."""

from __future__ import annotations

import typing

import pytest
import trio
import trio.testing

from fakes import (
    FakeHub,
    Line,
    books_over,
    counts_of,
    hit,
    in_trio,
    ledger_of,
    line_pair,
    segment_of,
)
from nray.events.model import Environment
from nray.ledger.entries import Hits, NodeSeen, Registration
from nray.pki import errors as pki_errors
from nray.pki.errors import PeerRejected
from nray.pki.stream import TlsError
from nray.server.complaints import Complaints
from nray.server.door import Lobby
from nray.server.scheduler import Scheduler
from nray.server.server import explain, reason_for
from nray.server.summary import exit_status, status_line, summary_lines, totals
from nray.server.tls import TlsDoorman
from nray.wire.errors import Reason

# ── what is written down into events ────────────────────────────────────────────────────────


async def events_of(segment, row, node):
    """The events that the outputs are given for one row of the journal."""
    hub = FakeHub()
    ledger = ledger_of([segment])
    async with books_over(hub, ledger, [segment]) as books:
        books.submit([node, row])
    return hub.events


def node_seen(**changes):
    known = {
        "node": 3, "node_id": "node-3", "name": "nyc1", "pool": 2, "identity": None,
        "instance": "i", "machine": "m", "environment": None, "ms": 1,
    }  # fmt: skip
    return NodeSeen(**{**known, **changes})


@in_trio
async def test_a_finding_becomes_an_event_with_where_it_comes_from():
    segment = segment_of("198.18.0.7", "80")
    row = Hits(3, 2, 0, 0, 1767323045123, hit(segment, 0))
    (event,) = await events_of(segment, row, node_seen(identity="CN=nyc1"))
    assert (event.nodeID, event.nodeName, event.pool, event.identity) == (
        "node-3",
        "nyc1",
        2,
        "CN=nyc1",
    )
    assert event.timestamp == "2026-01-02T03:04:05.123Z"
    scan = event.result.portscan
    assert (scan.target, scan.port, scan.scantype, scan.timeout) == (
        "198.18.0.7",
        80,
        "tcpconnect",
        1000,
    )
    assert (scan.state, scan.reason, scan.rtt) == ("open", "syn-ack", 1.0)
    assert not scan.ttl


@in_trio
async def test_udp_has_its_own_type():
    segment = segment_of("198.18.0.7", "U:53")
    (event,) = await events_of(segment, Hits(3, 2, 0, 0, 1, hit(segment, 0)), node_seen())
    assert event.result.portscan.scantype == "udp"
    assert not event.identity


@in_trio
async def test_a_registration_is_an_event_too():
    node = node_seen(environment=Environment(hostname="h", pid=4))
    (event,) = await events_of(segment_of(), Registration(3, 1), node)
    assert (event.environment.hostname, event.environment.pid) == ("h", 4)
    assert event.nodeName == "nyc1"


# ── how it stands ───────────────────────────────────────────────────────────────────────────


def scan_of(total, pools=1):
    from dataclasses import make_dataclass

    made = Scheduler(pools=pools, slice_most=total)
    kind = make_dataclass("Seg", ["id", "probes", "names"])
    made.add_segment(kind(0, total, ()))
    made.end_segments()
    return made


def do(scheduler, counts, pool=0, errors=None):
    node = scheduler.join("n", pool, 1)
    while True:
        scheduler.want(node, 1)
        granted = scheduler.grant(node, 0.0)
        if not granted:
            return
        (grant,) = granted
        counted = counts if sum(counts) == grant.count else counts_of(grant.count)
        scheduler.report(grant.lease, b"", done=True, counts=counted, errors=errors)


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ((10, 0, 0, 0, 0, 0, 0, 0, 0), 0),
        ((0, 3, 3, 4, 0, 0, 0, 0, 0), 0),
        ((0, 0, 0, 0, 0, 10, 0, 0, 0), 0),
        ((0, 0, 0, 0, 0, 0, 10, 0, 0), 0),
        ((9, 0, 0, 0, 1, 0, 0, 0, 0), 3),
        ((9, 0, 0, 0, 0, 0, 0, 0, 1), 3),
    ],
)
def test_only_errors_and_refusals_make_a_finished_scan_incomplete(counts, status):
    scheduler = scan_of(10)
    assert exit_status(scheduler) == 3  # not begun
    do(scheduler, counts)
    assert scheduler.finished
    assert exit_status(scheduler) == status


def test_an_error_in_one_pool_is_one_of_the_whole():
    scheduler = scan_of(1, pools=2)
    do(scheduler, (1, 0, 0, 0, 0, 0, 0, 0, 0), 0)
    assert exit_status(scheduler) == 3
    do(scheduler, (0, 0, 0, 0, 1, 0, 0, 0, 0), 1, {"name-not-resolved": 1})
    assert exit_status(scheduler) == 3
    assert (totals(scheduler).open, totals(scheduler).error) == (1, 1)
    assert any("not everything could be covered" in line for line in summary_lines(scheduler, 1))


def test_what_is_left_is_told():
    scheduler = scan_of(1000)
    assert any(line.startswith("not finished") for line in summary_lines(scheduler, 0))
    do(scheduler, counts_of(1000))
    assert not any(line.startswith("not finished") for line in summary_lines(scheduler, 0))


def test_the_status_line_says_who_is_waited_for():
    scheduler = scan_of(100, pools=2)
    assert "waiting for nodes" in status_line(scheduler, 0)
    scheduler.join("a", 0, 1)
    assert "pool 1 waits for nodes" in status_line(scheduler, 1)
    scheduler.join("b", 1, 1)
    line = status_line(scheduler, 2)
    assert "wait" not in line
    assert "0.0 % done: 0 of 200 probes, 200 to do; 2 nodes, 0 hits" in line


# ── the door of TLS ─────────────────────────────────────────────────────────────────────────


def test_every_reason_for_a_certificate_has_words_for_the_peer():
    for rejected in typing.get_args(pki_errors.Reason):
        assert isinstance(reason_for(rejected), Reason)
        assert explain(reason_for(rejected))


def guest_on(stream):
    return Lobby(Complaints()).enter(stream, lambda: None)


class Tls:
    """Stands in for `nray.pki.endpoint.ServerTls`: what it raises is the argument."""

    def __init__(self, error):
        self.error = error

    async def accept(self, stream, *, timeout_s, spent):
        await trio.lowlevel.checkpoint()
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        TlsError("no TLS"),
        trio.BrokenResourceError("cut"),
        trio.ClosedResourceError("closed"),
        PeerRejected("weak", "a key of 512 bits"),
    ],
)
@in_trio
async def test_who_is_not_admitted_is_only_told_of_in_the_log(error, caplog):
    ours, _ = line_pair()
    assert await TlsDoorman(Tls(error)).admit(ours, guest_on(ours)) is None
    if isinstance(error, PeerRejected):
        assert "a key of 512 bits" in caplog.text


class Told(Line):
    """A stream that was secured, whose peer is not wanted."""

    async def half_close(self):
        await self.send_eof()

    async def end_and_drain(self, most):
        while await self.receive_some(most):
            pass


@pytest.mark.parametrize("reason", typing.get_args(pki_errors.Reason))
@in_trio
async def test_a_peer_that_is_not_verified_hears_the_reason_and_no_more(reason):
    ours, theirs = line_pair()
    error = PeerRejected(reason, "the words for our own log")
    error.stream = Told(ours._out, ours._back)
    heard = []

    async def listen():
        while data := await theirs.receive_some(1000):
            heard.append(data)
        await theirs.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        assert await TlsDoorman(Tls(error)).admit(ours, guest_on(ours)) is None
    told = b"".join(heard)
    assert reason_for(reason).value.encode() in told
    assert b"words for our own log" not in told
