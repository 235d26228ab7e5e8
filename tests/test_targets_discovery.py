"""Host discovery before anything is sent: what is asked, and what follows from what was found."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import _core
from nray.config.discovery import PORTS_MAX, DiscoveryError, format_discovery, parse_discovery
from nray.targets import discovery, ranges
from nray.targets.discovery import (
    Found,
    following,
    searched_hosts,
    sends_pings,
    stages_of,
    unfollowed,
)
from nray.targets.errors import TargetError
from nray.targets.plan import plan
from nray.targets.segment import (
    SEARCH_HOSTS,
    SEARCH_LINK,
    SEARCH_NEAR,
    SEARCH_NONE,
    Segment,
    Stage,
)

OPEN, FILTERED = _core.STATES.index("open"), _core.STATES.index("filtered")
ECHO, HTTP, HTTPS = (1, 0), (6, 80), (6, 443)
#: What is searched, and what is left out of it, by IP version.
SIXTEEN = {4: "198.18.0.0/28", 6: "2001:db8::/124"}
MORE = {4: "198.18.0.0/26", 6: "2001:db8::/122"}
NOT = {4: "198.18.0.", 6: "2001:db8::"}
TARGETS = "198.18.0.0/27,2001:db8::/124,a.example,b.example"


# ── as it is written ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("none", ()),
        ("ping", (Stage(SEARCH_HOSTS, (ECHO,)),)),
        (" ARP ", (Stage(SEARCH_LINK, (ECHO,)),)),
        ("syn:443, 80,443", (Stage(SEARCH_HOSTS, (HTTP, HTTPS)),)),
        ("auto", (Stage(SEARCH_NEAR, (ECHO,)), Stage(SEARCH_HOSTS, (HTTP, HTTPS)))),
    ],
)
def test_what_is_asked(text: str, stages: tuple[Stage, ...]) -> None:
    assert stages_of(text) == stages
    assert sends_pings(text) == any(ECHO in stage.ports for stage in stages)
    assert stages_of(format_discovery(*parse_discovery(text))) == stages


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "one of none, ping, arp, auto, syn:PORTS"),
        ("pings", "one of"),
        ("ping:80", "one of"),
        ("syn", "syn:80,443"),
        ("syn:", "syn:80,443"),
        ("syn:0", "'0' is no port"),
        ("syn:65536", "no port"),
        ("syn:1-5", "no port"),
        ("syn:http", "no port"),
        (f"syn:{','.join(map(str, range(1, PORTS_MAX + 2)))}", "at most 64"),
    ],
)
def test_what_says_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(DiscoveryError, match=says):
        parse_discovery(text)
    with pytest.raises(TargetError, match="no way to look for hosts"):
        stages_of(text)


# ── the plan ────────────────────────────────────────────────────────────────────────────────


def test_a_plan_looks_for_hosts_first_and_counts_both() -> None:
    made = plan(TARGETS, tcp="1-10", udp="53", discovery="auto", exclude="198.18.0.1", seed=1)
    assert (made.hosts, made.ports, made.probes, made.searches) == (49, 11, 539, 147)
    assert [segment.id for segment in made.segments] == [0, 1]
    for segment in made.segments:
        assert (segment.search, segment.ports, segment.after) == (SEARCH_NEAR, (ECHO,), -1)
        assert [stage.search for stage in segment.then] == [SEARCH_HOSTS, SEARCH_NONE]
        assert len(segment.wanted) == 11
        assert Segment.unpack(segment.pack()) == segment
    assert plan("198.18.0.0/27", tcp="1-10", seed=1).searches == 0


def test_too_many_probes_of_discovery_are_too_many() -> None:
    with pytest.raises(TargetError, match=r"more than 2\^63"):
        plan("2001:db8::/65", tcp="1", discovery="syn:1,2,3", permission=True)


# ── what was found ──────────────────────────────────────────────────────────────────────────


def record(segment: Segment, position: int, state: int = OPEN) -> bytes:
    family, number, _, _ = segment.space.at(position)
    address = number.to_bytes(4 if family == 4 else 16, "big") if family else b""
    head = position.to_bytes(8, "little") + address.ljust(16, b"\0") + bytes(5)
    return head + bytes([state, 1, family or 4])


def hosts_of(segment: Segment) -> set[object]:
    return {
        *((4, each) for first, last in segment.ranges4 for each in range(first, last + 1)),
        *((6, each) for first, last in segment.ranges6 for each in range(first, last + 1)),
        *segment.names,
    }


@given(
    data=st.data(),
    targets=st.sampled_from(["198.18.0.0/27", "2001:db8::/123", "198.18.0.9,2001:db8::/124",
                             "a.example,b.example,c.example"]),
    how=st.sampled_from(["ping", "syn:80,443", "auto"]),
    number=st.integers(1, 9),
)  # fmt: skip
def test_what_answers_is_scanned_and_what_is_silent_asked_otherwise(
    data: st.DataObject, targets: str, how: str, number: int
) -> None:
    (segment,) = plan(targets, tcp="22", udp="53", discovery=how, seed=3).segments
    positions = st.lists(st.integers(0, segment.probes - 1), max_size=40)
    found = Found(segment)
    answered = data.draw(positions)
    pieces = [record(segment, position) for position in answered]
    pieces += [record(segment, at, FILTERED) for at in data.draw(positions)]
    for piece in data.draw(st.permutations([b"".join(pieces[::2]), b"".join(pieces[1::2])])):
        found.add(piece)
    made = following(segment, found, number)
    at = segment.space.at
    there = {
        (family, host) if family else segment.names[host]
        for family, host in (at(position)[:2] for position in answered)
    }
    scanned = [each for each in made if each.search == SEARCH_NONE]
    asked = [each for each in made if each.search]
    assert set().union(*map(hosts_of, scanned)) == there
    assert set().union(*map(hosts_of, asked)) == (
        hosts_of(segment) - there if how == "auto" else set()
    )
    assert [each.id for each in made] == list(range(number, number + len(made)))
    assert len(scanned) <= 1
    for each in made:
        assert each.after == 0
        assert each.wanted == ((6, 22), (17, 53))
        assert Segment.unpack(each.pack()) == each
    # The very same, whoever asks again: a server that went on, say.
    assert following(segment, found, number) == made
    assert len({segment.key, *(each.key for each in made)}) == 1 + len(made)


def test_exclusions_go_with_what_follows(version: int) -> None:
    (segment,) = plan(
        SIXTEEN[version], tcp="22", discovery="auto", exclude=f"{NOT[version]}3"
    ).segments
    found = Found(segment)
    found.add(b"".join(record(segment, position) for position in range(5)))
    for each in following(segment, found, 1):
        assert (each.excluded4, each.excluded6) == (segment.excluded4, segment.excluded6)
        assert len(each.excluded4 + each.excluded6) == 1
        assert not ranges.meet(each.ranges4, each.excluded4)
        assert not ranges.meet(each.ranges6, each.excluded6)


def test_more_ranges_than_a_segment_holds_are_joined_within_the_targets(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "RANGES_MAX", {4: 3, 16: 3})
    (segment,) = plan(
        MORE[version], tcp="22", discovery="auto", exclude=f"{NOT[version]}2", seed=1
    ).segments
    found = Found(segment)
    wanted = {1, 3, 8, 10, 30, 50}
    found.add(
        b"".join(
            record(segment, position)
            for position in range(segment.probes)
            if segment.space.at(position)[1] & 63 in wanted
        )
    )
    scanned, asked = following(segment, found, 1)
    low = [each & 63 for _, each in hosts_of(scanned)]  # type: ignore[misc]
    assert sorted(low) == [1, *range(3, 11), 30, 50]  # 2 is excluded
    assert hosts_of(scanned).isdisjoint(hosts_of(asked))
    assert hosts_of(scanned) | hosts_of(asked) == hosts_of(segment)


def test_what_was_followed_and_how_many_are_up(version: int) -> None:
    (segment,) = plan(SIXTEEN[version], tcp="22", discovery="auto", seed=1).segments
    found = Found(segment)
    found.add(record(segment, 0) + record(segment, 1))
    scanned, asked = following(segment, found, 1)
    assert unfollowed([segment]) == [segment]
    assert unfollowed([segment, scanned, asked]) == [asked]
    assert searched_hosts([segment]) == (16, 0)
    assert searched_hosts([segment, scanned, asked]) == (16, 2)
    assert searched_hosts(plan(SIXTEEN[version], tcp="22").segments) == (0, 0)


@given(st.sets(st.integers(0, 200)), st.integers(1, 12))
def test_runs_and_joined_ranges_hold_what_they_should(numbers: set[int], most: int) -> None:
    def within(some: ranges.Ranges) -> set[int]:
        return {each for first, last in some for each in range(first, last + 1)}

    runs = ranges.runs(sorted(numbers))
    assert within(runs) == numbers
    assert runs == ranges.merge((each, each) for each in numbers)
    joined = ranges.joined(runs, most)
    assert len(joined) == min(most, len(runs))
    assert within(joined) >= numbers
    assert joined == ranges.merge(joined)
    gaps = [after[0] - before[1] for before, after in pairwise(runs)]
    kept = [after[0] - before[1] for before, after in pairwise(joined)]
    assert sorted(kept) == sorted(gaps)[len(gaps) - len(kept) :]


# ── packed ──────────────────────────────────────────────────────────────────────────────────


def of(**changes: object) -> Segment:
    (made,) = plan("198.18.0.0/28", tcp="22", discovery="auto", seed=1).segments
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


SCAN = Stage(SEARCH_NONE, ((6, 22),))
PINGED = Stage(SEARCH_HOSTS, (ECHO,))


@pytest.mark.parametrize(
    "wrong",
    [
        of(then=()),  # nothing follows it
        of(then=(PINGED,)),
        of(then=(SCAN, SCAN)),
        of(then=(Stage(SEARCH_NONE, ()),)),
        of(then=(Stage(SEARCH_NONE, (ECHO,)),)),
        of(then=(Stage(SEARCH_NEAR, (HTTP,)), SCAN)),
        of(then=(Stage(SEARCH_HOSTS, ((17, 53),)), SCAN)),
        of(then=(PINGED, PINGED, PINGED, PINGED, SCAN)),
        of(ports=(HTTP,)),
        of(ports=(ECHO, HTTP)),
        of(after=0),
        of(id=3, after=3),
        of(id=3, after=-2),
        of(search=SEARCH_NONE, then=()),
    ],
)
def test_a_discovery_segment_that_cannot_be(wrong: Segment) -> None:
    with pytest.raises(ValueError):
        Segment.unpack(wrong.pack())


@given(st.integers(0, 2**32), st.data())
def test_changed_bytes_are_a_segment_or_a_value_error(at: int, data: st.DataObject) -> None:
    whole = of(id=2, after=1)
    body = bytearray(whole.pack())
    assert Segment.unpack(bytes(body)) == whole
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        segment = Segment.unpack(bytes(body))
    except ValueError:
        return
    assert segment.space.total == segment.probes
    assert Segment.unpack(segment.pack()) == segment


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("value", [None, -2, 2**63, b"", "x", [[0, True, b"", b""]], [5]])
def test_parts_that_make_no_sense(at: int, value: object) -> None:
    raw = msgspec.msgpack.decode(of().pack())
    raw[at] = value
    with pytest.raises(ValueError):
        Segment.unpack(msgspec.msgpack.encode(raw))
