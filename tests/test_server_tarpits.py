"""Hosts on which every port answers, at the server: each told once, also after a restart."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
import trio

from fakes import hit, in_trio, ledger_of, segment_of, serve
from nray.api.standing import _pool_lines
from nray.events.filters import compile_filter, compile_states
from nray.events.model import EventMaker, decode, encode
from nray.events.terminal import COLUMNS_MAX, line
from nray.ledger.entries import REFUSED_BY, NodeSeen
from nray.ledger.memory import MemoryLedger
from nray.server import scheduler as module
from nray.server.books import entries_of
from nray.server.refusals import others
from nray.server.restore import restore
from nray.server.scheduler import FaultyReport, Scheduler
from nray.server.summary import exit_status, found, summary_lines
from nray.targets.findings import TARPIT, TARPIT_NUMBER, WITHHELD, check, expand
from nray.targets.segment import Segment
from nray.wire.messages import Ask, Bye, Counts, Lease, Stop

SEGMENTS = {
    4: segment_of("198.18.0.0/29", "1-20"),
    6: segment_of("2001:db8::/125", "1-20"),
}
SEGMENT = SEGMENTS[4]
NODE = 1


@pytest.fixture
def segment(version: int) -> Segment:
    return SEGMENTS[version]


def tarpit(position: int, segment: Segment = SEGMENT) -> bytes:
    """A hit that tells of the host at a position."""
    record = hit(segment, position)
    return record[:30] + bytes([TARPIT_NUMBER]) + record[31:]


def of_host(last: int, most: int, segment: Segment = SEGMENT) -> list[int]:
    """Positions below ``most`` of the host whose address ends so."""
    return [n for n in range(most) if segment.space.at(n)[1] & 7 == last]


def begun(segment: Segment = SEGMENT, pools: int = 1) -> Scheduler:
    """Of slices of 64, 64 and 32 probes."""
    made = Scheduler(pools=pools)
    made.add_segment(segment)
    made.end_segments()
    return made


def test_a_ledger_that_keeps_nothing_has_nothing_to_be_restored() -> None:
    ledger = MemoryLedger(scan="s", segments=[(0, SEGMENT.pack())], ended=True, release=["sink"])
    scheduler = begun()
    restore(scheduler, ledger)
    assert scheduler.pools[0].left == SEGMENT.probes


def counts(opened: int, count: int = 64) -> tuple[int, ...]:
    return (opened, count - opened, 0, 0, 0, 0, 0, 0, 0)


def test_two_nodes_tell_of_a_host_and_it_is_handed_on_once_for_each_pool(segment: Segment) -> None:
    scheduler = begun(segment, pools=2)
    nodes = [scheduler.join(name, pool, 1) for name, pool in (("a", 0), ("b", 0), ("c", 1))]
    fresh = []
    for node in nodes:
        scheduler.want(node, 1)
        (grant,) = scheduler.grant(node, 0.0)
        assert grant.count == 64
        inside = range(grant.start, grant.start + grant.count)
        mine = [n for n in inside if segment.space.at(n)[1] & 7 == 3]
        other = next(n for n in inside if segment.space.at(n)[1] & 7 == 5)
        # Each tells of the host at the first port of it that it met, and of another's open port.
        told = tarpit(mine[0], segment) + hit(segment, other)
        check(segment, told)
        taken = scheduler.report(
            grant.lease, told, done=True, counts=counts(11), errors={WITHHELD: 10}
        )
        assert taken is not None
        fresh.append([record[30] for record in (taken.fresh[:32], taken.fresh[32:]) if record])
    ordinary = hit(segment, 0)[30]
    assert fresh == [[TARPIT_NUMBER, ordinary], [ordinary], [TARPIT_NUMBER, ordinary]]
    assert [pool.hits for pool in scheduler.pools] == [3, 2]
    assert [pool.withheld for pool in scheduler.pools] == [20, 10]


def test_addresses_of_two_families_are_two_hosts() -> None:
    pool = begun().pools[0]
    one = tarpit(0)
    other = one[:31] + b"\x06"
    assert pool.told_once(one + other + one) == one + other


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch, segment: Segment) -> None:
    monkeypatch.setattr(module, "TARPITS_MAX", 2)
    pool = begun(segment).pools[0]
    firsts = [of_host(host, 160, segment)[0] for host in range(4)]
    for _ in range(2):
        told = pool.told_once(b"".join(tarpit(n, segment) for n in firsts))
    assert [told[at : at + 8] for at in range(0, len(told), 32)] == [
        n.to_bytes(8, "little") for n in firsts[2:]
    ]
    assert len(pool.tarpits) == 2


@pytest.mark.parametrize("withheld", [-1, 12])
def test_more_withheld_than_open_is_a_lie_and_changes_nothing(
    withheld: int, segment: Segment
) -> None:
    scheduler = begun(segment)
    node = scheduler.join("a", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    with pytest.raises(FaultyReport, match="withheld"):
        scheduler.report(
            grant.lease,
            tarpit(0, segment),
            done=True,
            counts=counts(11),
            errors={WITHHELD: withheld},
        )
    assert scheduler.pools[0].done == 0
    assert not scheduler.pools[0].tarpits


@pytest.mark.parametrize("ended", [False, True])
def test_after_a_restart_a_host_is_not_told_again(ended: bool, segment: Segment) -> None:
    """Whether the slice that told of it had ended, or not."""
    ledger = ledger_of([segment])
    ledger.commit([NodeSeen(NODE, "node-1", "a", 0, None, "i", "m", None, 5)])
    first = begun(segment)
    node = first.join("a", 0, 1)
    first.want(node, 1)
    (grant,) = first.grant(node, 0.0)
    mine = of_host(3, 160, segment)
    taken = first.report(grant.lease, tarpit(mine[0], segment))
    assert taken is not None
    ledger.commit(entries_of(taken, (), {}, NODE))
    if ended:
        errors = {WITHHELD: 9}
        taken = first.report(grant.lease, b"", done=True, counts=counts(9), errors=errors)
        assert taken is not None
        ledger.commit(entries_of(taken, counts(9), errors, NODE))
    again = begun(segment)
    restore(again, ledger)
    assert len(again.pools[0].tarpits) == 1
    assert again.pools[0].withheld == (9 if ended else 0)
    node = again.join("a", 0, 1)
    again.want(node, 3)
    grants = again.grant(node, 0.0)
    last = mine[-1]
    grant = next(each for each in grants if each.start <= last < each.start + each.count)
    taken = again.report(grant.lease, tarpit(last, segment) + tarpit(of_host(4, 160, segment)[-1]))
    assert taken is not None
    assert len(taken.fresh) == 32
    assert taken.fresh[8:24] != tarpit(last, segment)[8:24]


@in_trio
async def test_it_is_an_event_without_a_port_and_a_line_in_the_summary(segment: Segment) -> None:
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], slice_most=64)
        peer = await served.peer(name="nyc1")
        await peer.channel.send(Ask(3))
        for lease in await peer.leases(3):
            inside = range(lease.start, lease.start + lease.count)
            mine = next(n for n in inside if segment.space.at(n)[1] & 7 == 3)
            other = next(n for n in inside if segment.space.at(n)[1] & 7 == 5)
            hits = tarpit(mine, segment) + hit(segment, other)
            told = Counts(open=6, closed=lease.count - 6)
            await peer.report(lease, hits, counts=told, errors={WITHHELD: 5})
        await peer.hear(Stop)
        await peer.channel.send(Bye())
        await served.finished.wait()
    events = [json.loads(encode(event)) for event in served.hub.events if event.result]
    (seen,) = [event["result"] for event in events if "tarpit" in event["result"]]
    third = str(ip_address(segment.space.at(of_host(3, 160, segment)[0])[1]))
    assert seen == {
        "target": third,
        "address": third,
        "tarpit": {"scantype": "tcpconnect", "timeout": 1000, "rtt": 1.0},
    }
    assert len(events) == 4
    assert [
        event["result"]["portscan"]["open"] for event in events if "portscan" in event["result"]
    ]
    scheduler = served.server.scheduler
    assert exit_status(scheduler) == 0
    lines = summary_lines(scheduler, 1.0)
    assert lines[0].endswith(": 3 open, 15 open on tarpits, 142 closed")
    assert lines[1] == ("1 host answers on every port (tarpit or SYN proxy): 15 findings withheld")
    assert "--keep-tarpits" in lines[2]
    assert len(lines) == 3
    assert found(scheduler) == "160 probes, 3 open, 15 open on tarpits, 142 closed"
    shown = _pool_lines(served.ledger, 0, [segment])
    assert shown[1] == "  hits 4; 3 open, 142 closed"
    assert shown[2] == "  withheld: 15 (open on hosts where every port answers)"
    assert others({WITHHELD: 3, "local-error": 1, REFUSED_BY + "x": 2}) == {"local-error": 1}


@in_trio
async def test_a_lie_of_a_node_ends_its_line() -> None:
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-2")])
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        assert isinstance(lease, Lease)
        await peer.report(lease, counts=Counts(open=1, closed=1), errors={WITHHELD: 2})
        assert "withheld" in (await peer.hear()).detail  # type: ignore[union-attr]
        nursery.cancel_scope.cancel()


MAKER = EventMaker(
    node_id="n",
    node_name="node-a",
    timestamp_ms=0,
    timeouts_ms={"tcp": 1000},
)
EVENT = MAKER.tarpit("198.18.255.255", "198.18.255.255", "tcp", 64, 0.4)


def test_the_event_comes_back_from_its_line_and_passes_filters_about_it_alone() -> None:
    assert decode(encode(EVENT)) == EVENT
    assert compile_states([])(EVENT)
    for text, passes in (
        ({"result.tarpit": None}, True),
        ({"result.tarpit.ttl": 64}, True),
        ({"result.target": "198.18.255.255"}, True),
        ({"result.portscan.open": True}, False),
        ({"result.port": 80}, False),
        ({"result.portscan": None}, False),
    ):
        wanted = compile_filter(text)
        assert wanted is not None
        assert wanted(EVENT) is passes, text


def test_the_line_for_people_fits_a_terminal() -> None:
    text = line(EVENT)
    assert text.startswith("198.18.255.255   every port answers (tarpit or SYN proxy)")
    assert len(text) <= COLUMNS_MAX
    odd = MAKER.tarpit("a\x1bb", "::1", "tcp", 0, 0.0)
    assert line(odd).startswith("a\\x1bb (::1)")


def test_a_hit_of_a_host_has_its_reason(segment: Segment) -> None:
    (finding,) = expand(segment, tarpit(7, segment))
    assert (finding.reason, finding.state) == (TARPIT, "open")
