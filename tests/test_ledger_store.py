"""What every ledger promises: one table of behaviours, run in memory and in a file."""

from __future__ import annotations

import threading

import pytest

from ledger_lab import KINDS, LARGEST, done, hits, node, packed, places
from nray.events.model import Environment
from nray.ledger.entries import (
    HITS_BYTES_MAX,
    Cursor,
    CursorAt,
    Finished,
    Hits,
    Registration,
    SegmentAdded,
    SegmentsEnded,
    SliceDone,
)
from nray.ledger.intervals import IntervalSet
from nray.ledger.ledger import READ_BYTES_MAX

SEGMENTS = [(0, b"zero"), (1, b"one")]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def ledger(kind):
    made = kind.create(segments=SEGMENTS)
    made.commit([node(1), node(2, pool=1)])
    yield made
    made.close()


def view(ledger):
    """All that a ledger tells, but for its generation."""
    pools = ledger.pools()
    numbers = [number for number, _ in ledger.segments()]
    return {
        "scan": (ledger.scan, ledger.settings, ledger.segments_ended, ledger.finished),
        "segments": ledger.segments(),
        "rows": ledger.read(0, 10**6),
        "last": ledger.last,
        "hits until": [ledger.hits_until(seq) for seq in range(ledger.last + 2)],
        "nodes": ledger.nodes(),
        "cursors": [ledger.cursor(name) for name in ("terminal", "file")],
        "pools": {p: (ledger.tally(p), ledger.errors(p), ledger.hits(p)) for p in pools},
        "done": {(p, s): list(ledger.done(p, s)) for p in (0, 1) for s in numbers},
        "open": {
            (p, s): b"".join(ledger.open_hits(p, s)) for p in (0, 1) for s in numbers
        },
    }  # fmt: skip


def fill(ledger):
    """Something of everything."""
    ledger.commit([Registration(1, 11), hits(0, 3), hits(0, 4, 5), done(0, 10, errors={"a": 2})])
    ledger.commit([hits(10, 12, pool=1), hits(30), SegmentAdded(7, b"seven")])
    ledger.commit([CursorAt("file", Cursor(2, 300)), done(20, 10), done(5, 5, segment=7)])
    ledger.end_segments()


# ── what is there at first, and after a while ───────────────────────────────────────────────


def test_a_new_ledger_knows_what_it_was_made_with(kind):
    ledger = kind.create(segments=SEGMENTS)
    assert (ledger.scan, ledger.settings, ledger.generation) == ("abc", b"settings", 1)
    assert ledger.segments() == SEGMENTS
    assert not ledger.segments_ended
    assert not ledger.finished
    assert (ledger.last, ledger.read(0, 10), ledger.nodes(), ledger.pools()) == (0, [], [], [])
    assert list(ledger.done(0, 0)) == []
    assert list(ledger.open_hits(0, 0)) == []
    assert (ledger.tally(0), ledger.errors(0), ledger.hits(0)) == ((0,) * 9, {}, 0)
    assert ledger.cursor("file") is None
    assert ledger.hits_until(5) == 0
    assert ledger.commit([]) == 0
    ledger.close()


def test_it_may_be_made_with_all_its_segments(kind):
    ledger = kind.create(segments=SEGMENTS, ended=True)
    assert ledger.segments_ended
    with pytest.raises(ValueError, match="after the last"):
        ledger.add_segment(2, b"two")
    ledger.close()


def test_segments_twice_are_refused_from_the_start(kind):
    with pytest.raises(ValueError, match="there already"):
        kind.create(segments=[(0, b"a"), (0, b"b")])


def test_sums_are_those_of_ended_slices_by_pool(ledger):
    counts = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    ledger.commit([done(0, 28, counts=counts, errors={"no-route-from-here": 5})])
    ledger.commit([done(28, 1), done(0, 2, pool=1, errors={"x": 1})])
    ledger.commit([done(29, 1, errors={"no-route-from-here": 1, "y": 2})])
    assert ledger.tally(0) == (1, 4, 3, 4, 5, 6, 7, 8, 9)
    assert ledger.tally(1) == (0, 2, 0, 0, 0, 0, 0, 0, 0)
    assert ledger.errors(0) == {"no-route-from-here": 6, "y": 2}
    assert ledger.errors(1) == {"x": 1}
    assert ledger.pools() == [0, 1]


def test_done_is_by_pool_and_segment_and_merged(ledger):
    for start in (0, 20, 10, 40, 30):
        ledger.commit([done(start, 10)])
    ledger.commit([done(5, 5, pool=1), done(5, 5, segment=1)])
    assert list(ledger.done(0, 0)) == [(0, 50)]
    assert list(ledger.done(1, 0)) == [(5, 10)]
    assert list(ledger.done(0, 1)) == [(5, 10)]
    assert list(ledger.done(1, 1)) == []


def test_done_is_the_callers_to_change(ledger):
    ledger.commit([done(0, 10)])
    ledger.done(0, 0).add(10, 20)
    assert list(ledger.done(0, 0)) == [(0, 10)]
    ledger.commit([done(10, 10)])


def test_positions_up_to_the_largest(ledger):
    ledger.commit([hits(LARGEST - 1, LARGEST), done(LARGEST, 1), done(0, LARGEST - 1)])
    assert list(ledger.done(0, 0)) == [(0, LARGEST - 1), (LARGEST, LARGEST + 1)]
    ledger.commit([done(LARGEST - 1, 1)])
    assert list(ledger.done(0, 0)) == [(0, LARGEST + 1)]


def test_sums_stop_at_the_largest_integer(ledger):
    counts = (LARGEST,) * 9
    ledger.commit([done(0, 1, counts=counts, errors={"x": LARGEST})])
    ledger.commit([done(1, 1, counts=counts, errors={"x": LARGEST})])
    assert ledger.tally(0) == counts
    assert ledger.errors(0) == {"x": LARGEST}


def test_a_node_seen_again_replaces_what_was_told_of_it(ledger):
    ledger.commit([node(1, name="new", identity="cert", environment=None)])
    assert [(each.node, each.name, each.identity) for each in ledger.nodes()] == [
        (1, "new", "cert"),
        (2, "änne", None),
    ]
    assert ledger.nodes()[0].environment is None
    assert ledger.nodes()[1].environment == Environment(hostname="host", pid=5)


# ── the journal ─────────────────────────────────────────────────────────────────────────────


def test_rows_are_numbered_in_the_order_of_their_entries(ledger):
    rows = [Registration(1, 5), hits(0, 1), hits(0, 2), Registration(2, 6)]
    assert ledger.commit(rows[:3]) == 3
    assert ledger.commit([done(50, 1)]) == 3
    assert ledger.commit(rows[3:]) == 4
    assert ledger.last == 4
    assert ledger.read(0, 10) == list(enumerate(rows, start=1))


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("most", [1, 2, 100])
def test_reading_begins_anywhere_and_takes_so_many(ledger, after, most):
    rows = [hits(0, at) for at in range(7)]
    ledger.commit(rows[:3])
    ledger.commit(rows[3:])
    assert ledger.read(after, most) == list(enumerate(rows, start=1))[after : after + most]


def test_a_commit_of_many_small_reports_is_read_as_they_were(ledger):
    rows = [hits(0, at) for at in range(1500)]
    ledger.commit(rows)
    found = []
    while more := ledger.read(len(found), 77):
        found += more
    assert found == list(enumerate(rows, start=1))
    assert [ledger.hits_until(seq) for seq in (0, 1, 255, 256, 257, 1499, 1500, 1501)] == [
        0, 1, 255, 256, 257, 1499, 1500, 1500,
    ]  # fmt: skip


def test_reading_is_bounded_by_bytes_but_always_goes_on(ledger):
    big = Hits(1, 0, 0, 0, 1, packed(0) * (READ_BYTES_MAX // 32 // 2 + 1))
    huge = Hits(1, 0, 0, 0, 1, packed(0) * (READ_BYTES_MAX // 32 + 1))
    ledger.commit([big, big, huge, hits(0), huge])
    assert [len(ledger.read(after, 100)) for after in range(6)] == [1, 1, 1, 1, 1, 0]
    assert [row.packed for after in range(5) for _, row in ledger.read(after, 100)] == [
        each.packed for each in (big, big, huge, hits(0), huge)
    ]


def test_hits_are_counted_by_pool_and_by_row(ledger):
    ledger.commit([hits(0, 1, 2, 3), Registration(1, 1), hits(0, 1, pool=1), hits(9, 9, 10)])
    assert (ledger.hits(0), ledger.hits(1), ledger.hits(2)) == (5, 1, 0)
    assert [ledger.hits_until(seq) for seq in range(-1, 6)] == [0, 0, 3, 3, 4, 6, 6]


def test_cursors_move_both_ways(ledger):
    ledger.commit([hits(0, 1), hits(0, 2), CursorAt("file", Cursor(2, 70))])
    assert ledger.cursor("file") == Cursor(2, 70)
    ledger.set_cursor("file", Cursor(1, LARGEST))
    ledger.set_cursor("terminal", Cursor(0))
    assert ledger.cursor("file") == Cursor(1, LARGEST)
    assert ledger.cursor("terminal") == Cursor(0, 0)
    assert ledger.cursor("other") is None


# ── hits of slices that have not ended ──────────────────────────────────────────────────────


def open_places(ledger, pool=0, segment=0):
    return [place for piece in ledger.open_hits(pool, segment) for place in places(piece)]


def test_open_hits_are_those_of_slices_that_have_not_ended(ledger):
    ledger.commit([hits(0, 1), hits(10, 11, 12), hits(0, 2), hits(20, pool=1), done(0, 10)])
    assert open_places(ledger) == [11, 12]
    assert open_places(ledger, pool=1) == [20]
    assert open_places(ledger, segment=1) == []
    ledger.commit([done(10, 10)])
    assert open_places(ledger) == []


def test_open_hits_are_told_apart_by_position_where_slices_were_cut_anew(kind, ledger):
    ledger.commit([hits(0, 1, 5, 8), hits(50, 51)])
    ledger = kind.killed(ledger)
    assert open_places(ledger) == [1, 5, 8, 51]
    ledger.commit([done(0, 4), hits(4, 6)])
    assert open_places(ledger) == [5, 8, 51, 6]
    ledger.commit([done(4, 3)])
    ledger = kind.killed(ledger)
    assert open_places(ledger) == [8, 51]
    ledger.commit([done(7, 43), hits(50, 53)])
    ledger = kind.killed(ledger)
    assert open_places(ledger) == [51, 53]
    ledger.commit([done(50, 1)])
    ledger.commit([done(51, 9)])
    ledger = kind.killed(ledger)
    assert open_places(ledger) == []
    ledger.close()


def test_hits_of_a_new_slice_with_the_start_of_an_old_one_stay_open(kind, ledger):
    ledger.commit([hits(0, 5)])
    ledger = kind.killed(ledger)
    ledger.commit([hits(0, 1)])
    ledger.commit([done(3, 7), hits(20)])
    ledger = kind.killed(ledger)
    assert open_places(ledger) == [1, 20]
    ledger.close()


def test_hits_of_one_name_at_several_addresses_are_all_kept(ledger):
    ledger.commit([hits(0, 3, address=1), hits(0, 3, address=2)])
    assert b"".join(ledger.open_hits(0, 0)) == packed(3, address=1) + packed(3, address=2)


# ── refused, changing nothing ───────────────────────────────────────────────────────────────

FIT = [hits(60, 61), done(60, 10), Registration(1, 5), node(3), SegmentAdded(8, b"8")]
COUNTS_SHORT = (0,) * 7
REFUSED = {
    "a slice that is done": [done(0, 10)],
    "a slice that is partly done": [done(9, 2)],
    "a slice around one that is done": [done(0, 40)],
    "a slice twice in one commit": [done(70, 5), done(74, 5)],
    "hits of a done slice": [hits(0, 5)],
    "hits of a slice that ended just before": [done(70, 5), hits(70, 71)],
    "hits at a done position": [hits(4, 12, segment=7)],
    "a hit before its slice": [hits(70, 69)],
    "a hit beyond all positions": [hits(70, 2**63)],
    "a hit of a negative slice": [hits(-1, 70)],
    "no hits": [Hits(1, 0, 0, 70, 1, b"")],
    "half a hit": [Hits(1, 0, 0, 70, 1, packed(70)[:-1])],
    "too many hits": [Hits(1, 0, 0, 70, 1, bytes(HITS_BYTES_MAX + 32))],
    "hits of no node": [Hits(99, 0, 0, 70, 1, packed(70))],
    "hits at no time": [Hits(1, 0, 0, 70, -1, packed(70))],
    "hits of no segment": [hits(70, segment=99)],
    "hits of a negative pool": [hits(70, pool=-1)],
    "a slice of no segment": [done(70, 1, segment=99)],
    "a slice of a segment added later": [done(70, 1, segment=99), SegmentAdded(99, b"")],
    "a slice of too high a pool": [done(70, 1, pool=2**31)],
    "an empty slice": [done(70, 0)],
    "a negative slice": [done(-1, 1)],
    "a slice beyond all positions": [done(LARGEST, 2)],
    "too few counts": [SliceDone(0, 0, 70, 1, COUNTS_SHORT)],  # type: ignore[arg-type]
    "a negative count": [done(70, 1, counts=(-1, *COUNTS_SHORT))],
    "a count beyond integers": [done(70, 1, counts=(2**63, *COUNTS_SHORT))],
    "a negative count of errors": [done(70, 1, errors={"x": -1})],
    "a node of number 0": [node(0)],
    "a name that is no text": [node(9, name="\ud800")],
    "a reason that is no text": [done(70, 1, errors={"\udc00": 1})],
    "a sink that is no text": [CursorAt("\udc00", Cursor(0))],
    "a registration of no node": [Registration(99, 1)],
    "a segment twice": [SegmentAdded(0, b"zero")],
    "a segment twice in one commit": [SegmentAdded(9, b""), SegmentAdded(9, b"")],
    "a negative segment": [SegmentAdded(-1, b"")],
    "a segment after the last": [SegmentsEnded(), SegmentAdded(9, b"")],
    "a cursor ahead of the journal": [CursorAt("file", Cursor(99))],
    "a negative cursor": [CursorAt("file", Cursor(-1))],
    "a negative place in a file": [CursorAt("file", Cursor(0, -1))],
    "an end while segments may come": [Finished()],
    "hits after the end": [SegmentsEnded(), Finished(), hits(70)],
    "no entry": ["hits"],
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_the_ledger_is_refused_and_changes_nothing(kind, ledger, case):
    ledger.commit([hits(0, 3), done(0, 10), SegmentAdded(7, b""), done(10, 5, segment=7)])
    before = view(ledger)
    with pytest.raises(ValueError):
        ledger.commit([*FIT, *REFUSED[case]])
    assert view(ledger) == before
    assert ledger.commit(FIT) == ledger.last
    ledger = kind.killed(ledger)
    assert ledger.hits(0) == 2
    ledger.close()


def test_after_the_end_only_sinks_and_nodes_write(kind):
    ledger = kind.create(segments=SEGMENTS, ended=True)
    ledger.commit([node(1), hits(0), done(0, 5)])
    ledger.finish()
    ledger.commit([node(2), Registration(2, 1), CursorAt("file", Cursor(2))])
    for entry in (hits(70), done(70, 1)):
        with pytest.raises(ValueError, match="finished"):
            ledger.commit([entry])
    ledger = kind.reopened(ledger)
    assert ledger.finished
    ledger.close()


def test_a_closed_ledger_says_so(ledger):
    ledger.close()
    ledger.close()
    for call in (
        lambda: ledger.commit([node(5)]),
        lambda: ledger.read(0, 1),
        lambda: ledger.done(0, 0),
        lambda: ledger.nodes(),
        lambda: ledger.set_cursor("x", Cursor(0)),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


# ── over restarts ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["reopened", "killed"])
def test_all_is_there_again(kind, ledger, how):
    fill(ledger)
    before = view(ledger)
    for generation in (2, 3):
        ledger = getattr(kind, how)(ledger)
        assert view(ledger) == before
        assert ledger.generation == generation
    # … and goes on as if nothing had been.
    assert ledger.commit([hits(30, 31), done(10, 10)]) == before["last"] + 1
    with pytest.raises(ValueError):
        ledger.commit([done(0, 1)])
    assert list(ledger.done(0, 0)) == [(0, 30)]
    ledger.close()


# ── threads ─────────────────────────────────────────────────────────────────────────────────


def test_threads_may_write_and_read_at_once(ledger):
    def write(thread):
        for turn in range(20):
            start = (thread * 20 + turn) * 10
            ledger.commit([hits(start, start, start + 1), done(start, 10)])

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for each in threads:
        each.start()
    seen = []
    while len(seen) < 80:
        more = ledger.read(len(seen), 7)
        assert [seq for seq, _ in more] == list(range(len(seen) + 1, len(seen) + 1 + len(more)))
        seen += more
    for each in threads:
        each.join()
    assert ledger.done(0, 0) == IntervalSet.of([(0, 800)])
    assert ledger.hits(0) == 160
    assert sorted(row.start for _, row in seen) == [10 * n for n in range(80)]
