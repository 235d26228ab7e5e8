"""Issue "Trust", 2: a bad peer meets a refusal with a reason, and costs nobody else anything.

A short run of `tests/fuzz`; ``make fuzz FRAMES=1000000`` runs more of the same. A case that fails
is in the message, and ``python -m tests.fuzz --replay FILE`` shows it again.
"""

from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest

from fuzz import __main__ as program
from fuzz import desk, ends, fuzzer, tree
from fuzz.case import NODE, SERVER, Case, frame, load, save
from fuzz.coverage import Coverage
from fuzz.fuzzer import CORPUS, Fuzzer, kept, replay
from fuzz.laws import Breach, Talk
from fuzz.mutate import Mutator
from fuzz.plants import PLANTS, planted
from fuzz.record import recorded
from fuzz.stage import set_up
from fuzz.worlds import unlike_defaults
from nray import _core
from nray.targets.findings import TARPIT_NUMBER, WITHHELD
from nray.targets.segment import SEARCH_HOSTS, SEARCH_NEAR, SEARCH_NONE, Segment
from nray.wire.errors import PeerFault, Reason
from nray.wire.framing import HEADER_BYTES, decode_node_message, decode_server_message
from nray.wire.messages import (
    Ask,
    Bye,
    Heartbeat,
    Message,
    NodeMessage,
    Registered,
    Report,
    ServerMessage,
    Settings,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage

#: Changed frames of every session of tests, and the seed they are drawn from.
FRAMES = 1_000
SEED = 1
#: Bytes of the corpus in the repository.
CORPUS_BYTES_MAX = 200_000


def described(failure: fuzzer.Failure) -> str:
    return f"{failure.error}\n{failure.trace}\nthe case: {failure.case.text()[:5000]}"


# ── the laws ────────────────────────────────────────────────────────────────────────────────


def test_mutated_frames_end_in_refusals():
    tally = Fuzzer(SEED, 5, begin=[]).run(FRAMES)
    assert not tally.failures, "\n".join(map(described, tally.failures))
    assert tally.changed >= FRAMES
    assert tally.whole_frames > 20
    assert {"malformed", "protocol", "unexpected", "oversize"} <= set(tally.refusals)
    assert len(tally.edges) > 1000
    assert tally.corpus, "no input has led anywhere new"


def test_the_corpus_is_heard_without_a_mistake():
    cases = list(kept())
    with set_up() as mistakes:
        for case in cases:
            desk.play(case)
        for case in cases[:: max(1, len(cases) // 20)]:
            ends.play(case, mistakes)
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < CORPUS_BYTES_MAX


def test_sessions_that_were_recorded_are_honest():
    """Both directions of each; a server's end takes all, or all before what was left out."""
    cases = recorded()
    assert {case.end for case in cases} == {SERVER, NODE}
    assert any(len(case.lines) > 1 for case in cases)
    for case in cases:
        if case.end == SERVER:
            assert desk.play(case, strict=True).frames > 15
    assert any(desk.play(case).endings == [None] for case in cases if case.end == NODE)


def test_all_that_can_be_said_is_said():
    """Else it would not be mutated: a field that is left out of the honest sessions."""
    other = unlike_defaults()
    assert not [
        each.name
        for each in msgspec.structs.fields(Settings)
        if getattr(other, each.name) in (each.default, None)
        or (isinstance(getattr(other, each.name), tuple | dict) and not getattr(other, each.name))
    ]
    said = [decode(frame) for case in recorded() for line in case.lines for frame in line]
    assert {type(each) for each in said} == {*get_args(ServerMessage), *get_args(NodeMessage)}
    led = [each.settings for each in said if isinstance(each, Registered)]
    assert {(each.tcp_method, each.pings) for each in led if each.udp_checks} == {
        ("connect", True), ("syn", True), ("syn", False),
    }  # fmt: skip
    segments = [Segment.unpack(each.body) for each in said if isinstance(each, SegmentMessage)]
    assert {each.search for each in segments} >= {SEARCH_NONE, SEARCH_HOSTS, SEARCH_NEAR}
    assert any(each.after >= 0 and not each.search for each in segments)
    reports = [each for each in said if isinstance(each, Report)]
    assert any(TARPIT_NUMBER in each.hits[30::32] for each in reports)
    assert any(WITHHELD in each.errors for each in reports)


def decode(frame: bytes) -> Message:
    try:
        return decode_server_message(frame[HEADER_BYTES:])
    except PeerFault:
        return decode_node_message(frame[HEADER_BYTES:])


def test_a_node_s_parts_are_told_all_that_its_worker_makes_engines_of():
    """The worker's own code makes them; here, that both kinds are made and get slices."""
    made = set()

    def hear(self: desk._Hired, message: object) -> None:
        heard(self, message)
        made.update(type(each) for each in self._engines() if each.slices_open)

    heard = desk._Hired.hear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk._Hired, "hear", hear)
        for case in recorded():
            if case.end == NODE:
                desk.play(case)
    assert made == {_core.Engine, _core.RawEngine}


def test_a_run_is_its_seed():
    first, second = (Fuzzer(3, begin=[]).run(150) for _ in range(2))
    assert (first.cases, first.frames, first.refusals) == (
        second.cases, second.frames, second.refusals,
    )  # fmt: skip
    assert first.edges == second.edges


# ── mistakes that are planted ───────────────────────────────────────────────────────────────

#: Found by whole ends alone, by their clocks and their words.
WHOLE = ("refusal-unsaid", "silence-suffered")
#: Those that a session of tests has the time for.
QUICK = (
    *("bad-text-comes-out", "frames-of-any-size", "no-bound-on-numbers"),
    *("no-order-of-reports", "refused-but-noted", "unknown-lease-crashes", "counts-unchecked"),
    *("more-than-was-asked", "sessions-kept", "leases-unchecked", "refusal-unsaid"),
)
#: A mistake that so many changed frames do not find is not one that the fuzzer knows.
FOUND_WITHIN = 5_000


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_mistake_is_found(name, monkeypatch):
    monkeypatch.setattr(fuzzer, "FAILURES_MAX", 1)
    recorded()  # honest ones, before there is a mistake
    with planted(name):
        tally = Fuzzer(SEED, 3 if name in WHOLE else 1000).run(FOUND_WITHIN)
    (failure,) = tally.failures
    # It is the mistake that was found, and not something else.
    assert replay(failure.case) is None
    with planted(name):
        assert replay(failure.case) is not None


def test_a_failing_case_is_kept_and_can_be_seen_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzzer, "FAILURES_MAX", 1)
    told = ["--frames=500", "--seed=1", "--plant=unknown-lease-crashes", f"--out={tmp_path}"]
    assert program.main(told) == 1
    (path,) = tmp_path.iterdir()
    assert f"again: python -m tests.fuzz --replay {path}" in capsys.readouterr().out
    assert program.main([f"--replay={path}", "--plant=unknown-lease-crashes"]) == 1
    assert "KeyError" in capsys.readouterr().out
    assert program.main([f"--replay={path}"]) == 0


def test_every_plant_fits():
    """Names that they stand for are still there; `make fuzz` has the time to find them all."""
    assert set(QUICK) < set(PLANTS)
    for name in PLANTS:
        with planted(name):
            pass


@pytest.mark.parametrize(("bytes_more", "blocks_more"), [(0, 20_000), (60 << 20, 0)])
def test_memory_that_grows_is_seen(bytes_more, blocks_more):
    tally = fuzzer.Tally(rss_first=100 << 20, blocks_first=300_000, kept_last=(1 << 20, 100, 400))
    tally.rss_last, tally.blocks_last = tally.rss_first + (20 << 20), 305_000
    assert not fuzzer._grown(tally)
    tally.rss_last += bytes_more
    tally.blocks_last += blocks_more
    assert "Breach" in fuzzer._grown(tally)


# ── its parts ───────────────────────────────────────────────────────────────────────────────


def test_a_case_survives_its_file(tmp_path):
    case = Case(SERVER, "v4", ((b"\0\xff", b"x" * 9000), ()), together=True, alone=True)
    save(tmp_path / "cases.jsonl", [case, case])
    assert load(tmp_path / "cases.jsonl") == [case, case]
    assert (tmp_path / "cases.jsonl").stat().st_size < 1000


@pytest.mark.parametrize(
    "said",
    [
        [Ask(1)],
        [Welcome(1, "0"), Welcome(1, "0")],
        [Welcome(1, "0"), Heartbeat()],
        [Welcome(1, "0"), Stop(True)],
    ],
)
def test_the_grammar_knows_what_is_out_of_turn(said):
    talk = Talk()
    for message in said[:-1]:
        talk.passes(message, heard=True)
    with pytest.raises(Breach):
        talk.passes(said[-1], heard=True)


@pytest.mark.parametrize(
    "message",
    [
        Ask(-1),
        Ask(2**63),
        Bye("x" * 257),
        Report(1, 1, bytes(32 * 28_673)),
        Report(1, 1, errors={str(number): 1 for number in range(65)}),
        Heartbeat(float("nan")),  # type: ignore[arg-type]
    ],
)
def test_the_bounds_are_known(message):
    talk = Talk()
    talk.letters = "WgR"
    with pytest.raises(Breach):
        talk.passes(message, heard=True)


def test_the_writer_writes_what_it_is_told():
    pairs = tree.Pairs([["type", "ask"], ["leases", 1], ["leases", 2**80]])
    body = tree.write(pairs)
    assert body.startswith(b"\x83\xa4type\xa3ask\xa6leases\x01\xa6leases\xcb")
    assert tree.write(tree.read(tree.write([1, "x", b"y", {}]))) == tree.write([1, "x", b"y", {}])
    assert tree.read(b"\xc1") is None


def test_mutations_are_drawn_from_the_seed():
    cases = recorded()
    frames = sorted({each for case in cases for line in case.lines for each in line})

    def drawn(seed: int) -> list[Case]:
        mutator = Mutator(random.Random(seed), frames)
        return [mutator.case(case) for case in cases]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_coverage_sees_what_a_frame_reaches():
    coverage = Coverage()
    (case, *_) = recorded()
    seen = []
    for line in (case.lines[0][:1], case.lines[0][:3]):
        with coverage.watching():
            desk.play(Case(SERVER, case.world, (line,)))
        seen.append(coverage.take())
    assert seen[0] < seen[1]


def test_a_refusal_is_told_by_the_whole_server():
    case = Case(SERVER, "v4", ((frame(b"\xc1"),), (b"GET / HTTP/1.1\r\n\r\n",)))
    with set_up() as mistakes:
        ended = ends.play(case, mistakes)
    assert ended.refusals == [Reason.MALFORMED, Reason.OVERSIZE]


def test_a_node_tells_its_user():
    case = Case(NODE, "v4", ((b"HTTP/1.1 400 Bad Request\r\n",),))
    with set_up() as mistakes:
        ended = ends.play(case, mistakes)
    (words,) = ended.refusals
    assert "does not talk as a nray server does" in words
