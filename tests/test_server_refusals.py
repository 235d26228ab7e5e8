"""Refused probes at the server: counted apart, with the node's name, over a restart, status 3."""

from __future__ import annotations

import logging

import pytest
import trio

from fakes import in_trio, ledger_of, segment_of, serve
from nray.ledger.entries import REFUSED_BY
from nray.server.refusals import attribute, by_node, others
from nray.server.summary import exit_status, status_line, summary_lines
from nray.wire.messages import Ask, Bye, Counts, Lease, Stop


def test_a_node_cannot_tell_of_the_refusals_of_another() -> None:
    told = {REFUSED_BY + "other": 7, "local-error": 2}
    kept = attribute(told, 3, "nyc1")
    assert kept == {"local-error": 2, REFUSED_BY + "nyc1": 3}
    assert (by_node(kept), others(kept)) == ({"nyc1": 3}, {"local-error": 2})
    assert attribute(told, 0, "nyc1") == {"local-error": 2}


def test_a_name_moves_no_cursor() -> None:
    (name,) = by_node(attribute({}, 1, "\x1b[2J" * 30))
    assert name.isprintable()
    assert len(name) < 200


@in_trio
async def test_refused_probes_are_done_not_covered_and_told_with_their_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    segment = segment_of("198.18.0.0/28", "1-2")
    ledger = ledger_of([segment])
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], ledger=ledger, slice_most=16)
        peer = await served.peer(name="nyc1", policy="198.18.0.0/29 only\x1b[2J")
        await peer.channel.send(Ask(2))
        first, second = await peer.leases(2)
        counts = Counts(closed=6, refused=10)
        await peer.report(first, counts=counts, errors={REFUSED_BY + "other": 99})
        await peer.report(second, counts=Counts(refused=16))
        await peer.hear(Stop)
        await peer.channel.send(Bye())
        await served.finished.wait()
    scheduler = served.server.scheduler
    assert scheduler.finished
    assert exit_status(scheduler) == 3
    assert "; 26 refused by policies of nodes" in status_line(scheduler, 1)
    lines = summary_lines(scheduler, 1.0)
    assert lines[0].endswith("0 open, 6 closed, 26 refused")
    assert lines[1:] == ["26 probes refused by the policy of node nyc1: not covered"]
    assert ledger.tally(0) == (0, 6, 0, 0, 0, 0, 0, 0, 26)
    assert ledger.errors(0) == {REFUSED_BY + "nyc1": 26}
    assert "has a policy: 198.18.0.0/29 only\\x1b[2J;" in caplog.text


@in_trio
async def test_a_refused_count_must_add_up() -> None:
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-2")])
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        await peer.report(lease, counts=Counts(closed=2, refused=1))
        assert "3 probes reported for a slice of 2" in (await peer.hear()).detail
        nursery.cancel_scope.cancel()
