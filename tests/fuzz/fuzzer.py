"""The loop: draw a case, play it, judge it, keep what is new."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from . import desk, ends
from .case import NODE, SERVER, Case, load
from .coverage import Coverage
from .laws import Breach, feature
from .mutate import Mutator
from .record import recorded
from .stage import set_up

CORPUS: Final = Path(__file__).parent / "corpus"

#: One case in so many goes to a whole end.
WHOLE_ONE_IN: Final = 15
#: One case in so many is watched line by line, besides those with words never seen: watching
#: takes five times as long.
WATCHED_ONE_IN: Final = 6
#: One case in so many has its memory measured, besides those with large frames.
MEASURED_ONE_IN: Final = 100
LARGE_BYTES: Final = 48 * 1024

#: Real seconds of a case, far above what the largest frame takes on a busy machine.
CASE_S_MAX: Final = 30.0
#: Memory that a case may take while it is played: so much, and for each of its bytes so many. A
#: server turns a map of seven-letter keys into 11 bytes for each on the wire. A node is held to
#: what `nray.node.bounds` says of a segment, which here is unpacked, packed for a worker, and
#: unpacked again, all in one process: a range of one address, 8 bytes, takes 49 times as much.
CASE_BYTES_FREE: Final = 6 << 20
CASE_SWELL_MAX: Final = {SERVER: 16, NODE: 64}
#: How much a process may grow after its first fifth, where that is long enough for all caches to
#: have filled: so many bytes besides the cases that it keeps (the heap has holes where large frames
#: were), and so many of Python's blocks, for each case kept, each new word, and at all. One object
#: left behind by each case would be more.
GROWTH_BYTES_MAX: Final = 32 << 20
GROWTH_BLOCKS_MAX: Final = (15, 6, 4_000)
GROWS_FROM_FRAMES: Final = 100_000
#: Bytes of all cases that are kept, and of one.
CORPUS_BYTES_MAX: Final = 6 << 20
KEPT_BYTES_MAX: Final = 16 << 10
#: Different failures after which a run ends.
FAILURES_MAX: Final = 8
TOLD_EVERY_S: Final = 30.0


class Hang(BaseException):
    """Raised into a case that has taken `CASE_S_MAX`; no handler of errors is to stop it."""


@dataclass
class Failure:
    """A case that broke a law."""

    case: Case
    whole: bool
    error: str
    trace: str


@dataclass
class Tally:
    """What a run has come to."""

    seed: int = 0
    cases: int = 0
    frames: int = 0
    changed: int = 0
    whole_cases: int = 0
    whole_frames: int = 0
    seconds: float = 0.0
    rss_first: int = 0
    rss_last: int = 0
    rss_peak: int = 0
    blocks_first: int = 0
    blocks_last: int = 0
    #: Bytes of the cases that are kept, their number, and that of the words seen.
    kept_first: tuple[int, int, int] = (0, 0, 0)
    kept_last: tuple[int, int, int] = (0, 0, 0)
    swell_most: float = 0.0
    edges: set[int] = field(default_factory=set)
    words: set[Any] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    corpus: list[Case] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Fuzzer:
    """One process's run.

    Args:
        seed: of everything that is drawn.
        whole_one_in: see `WHOLE_ONE_IN`.
        begin: cases to begin from besides the recorded ones; left out, the corpus.
    """

    def __init__(
        self,
        seed: int,
        whole_one_in: int = WHOLE_ONE_IN,
        begin: Sequence[Case] | None = None,
        tell: bool = False,
    ) -> None:
        self.tally = Tally(seed)
        self._draw = random.Random(seed)
        self._coverage = Coverage()
        self._whole_one_in = whole_one_in
        self._tell = tell
        self._recorded = recorded()
        self._known = frozenset(
            frame for case in self._recorded for line in case.lines for frame in line
        )
        self._mutator = Mutator(self._draw, sorted(self._known))
        self._begin = list(begin) if begin is not None else list(kept())
        self._kept_bytes = 0
        self._mistakes: Callable[[], list[str]] = list
        self._failed: set[Any] = set()

    def run(self, changed: int, seconds: float = 1e9) -> Tally:
        """Until so many changed frames were heard, or so many seconds have passed, or
        `FAILURES_MAX` cases have failed."""
        tally = self.tally
        began = told = time.monotonic()
        with set_up() as self._mistakes, _alarm():
            for case in [*self._recorded, *self._begin]:
                if len(tally.failures) < FAILURES_MAX:
                    self._desk(case, watched=True)
            tally.cases = tally.frames = tally.changed = 0
            tally.refusals.clear()
            while tally.changed < changed and len(tally.failures) < FAILURES_MAX:
                now = time.monotonic()
                if now - began > seconds:
                    break
                self.step()
                if tally.cases % 500 == 0:
                    self._look(changed)
                if self._tell and now - told > TOLD_EVERY_S:
                    told = now
                    print(f"  {_line(tally, now - began)}", file=sys.stderr, flush=True)
        tally.seconds = time.monotonic() - began
        self._look(changed)
        if changed >= GROWS_FROM_FRAMES and (trouble := _grown(tally)):
            tally.failures.append(Failure(self._recorded[0], False, trouble, ""))
        return tally

    def step(self) -> None:
        """One case."""
        whole = self.tally.cases % self._whole_one_in == self._whole_one_in - 1
        case = self._mutator.case(self._base(), once=whole)
        if whole:
            # A peer that falls silent is seen by clocks alone, and only a whole end has one.
            if self._draw.random() < 0.05:
                case = case.with_line(0, case.lines[0][: self._draw.randrange(2)])
            self._whole(replace(case, silent=self._draw.random() < 0.5))
        else:
            self._desk(case)

    def _base(self) -> Case:
        corpus = self.tally.corpus
        if not corpus or self._draw.random() < 0.15:
            return self._draw.choice(self._recorded)
        if self._draw.random() < 0.3:  # the newest lead furthest
            return self._draw.choice(corpus[-40:])
        return self._draw.choice(corpus)

    def _look(self, changed: int) -> None:
        """At this process's memory, twice: warm, and at the end."""
        tally = self.tally
        over = tally.changed >= changed
        if over or (not tally.rss_first and tally.changed * 5 >= changed):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            tally.rss_last, tally.blocks_last = rss(), sys.getallocatedblocks()
            if not over:
                tally.rss_first, tally.blocks_first = tally.rss_last, tally.blocks_last
                tally.kept_first = self._kept_bytes, len(tally.corpus), len(tally.words)
            tally.kept_last = self._kept_bytes, len(tally.corpus), len(tally.words)
        tally.rss_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    # ── one case ────────────────────────────────────────────────────────────────────────────

    def _desk(self, case: Case, watched: bool = False) -> None:
        tally = self.tally
        tally.cases += 1
        watched = watched or tally.cases % WATCHED_ONE_IN == 0
        measured = case.size > LARGE_BYTES or tally.cases % MEASURED_ONE_IN == 0
        try:
            with _patience(), self._coverage.watching() if watched else nullcontext():
                outcome = (self._measure if measured else self._play)(case)
            new = {each: at for each, at in outcome.features.items() if each not in tally.words}
            if new and not watched:
                with _patience(), self._coverage.watching():
                    desk.play(case)
        except (Exception, Hang) as error:
            self._failure(case, False, error)
            return
        tally.frames += outcome.frames
        tally.changed += outcome.changed
        tally.refusals.update(reason for _, _, reason in outcome.refusals)
        if self._is_new(new):
            self._keep(_trimmed(case, outcome, new))

    def _play(self, case: Case) -> desk.Outcome:
        return desk.play(case, self._known)

    def _measure(self, case: Case) -> desk.Outcome:
        """Play a case and see what memory it takes meanwhile."""
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            outcome = desk.play(case, self._known)
            took = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        size = sum(map(len, (frame for line in case.lines for frame in line)))
        if size > LARGE_BYTES:
            self.tally.swell_most = max(self.tally.swell_most, took / size)
        if took > CASE_BYTES_FREE + CASE_SWELL_MAX[case.end] * size:
            raise Breach(f"{size} bytes made it take {took} bytes of memory")
        return outcome

    def _whole(self, case: Case) -> None:
        tally = self.tally
        tally.cases += 1
        tally.whole_cases += 1
        watched = tally.whole_cases % WATCHED_ONE_IN == 0
        try:
            with _patience(), self._coverage.watching() if watched else nullcontext():
                ended = ends.play(case, self._mistakes)
            _same(case, ended)
        except (Exception, Hang) as error:
            self._failure(case, True, error)
            return
        tally.frames += ended.frames
        tally.whole_frames += ended.frames
        heard = [frame for line in case.lines for frame in line][: ended.frames]
        tally.changed += sum(frame not in self._known for frame in heard)
        for words in ended.refusals:
            if words is not None:
                tally.refusals[words if case.end == SERVER else "(told to a node's user)"] += 1
        new = {feature("whole", case.end, str(words)) for words in ended.refusals if words}
        if self._is_new(new) and case.size <= KEPT_BYTES_MAX:
            self._keep(case)

    def _is_new(self, words: Any) -> bool:
        tally = self.tally
        edges = self._coverage.take() - tally.edges
        tally.edges |= edges
        fresh = set(words) - tally.words
        tally.words |= fresh
        return bool(edges or fresh)

    def _keep(self, case: Case) -> None:
        if case.size <= KEPT_BYTES_MAX and self._kept_bytes + case.size <= CORPUS_BYTES_MAX:
            self._kept_bytes += case.size
            self.tally.corpus.append(case)

    def _failure(self, case: Case, whole: bool, error: BaseException) -> None:
        leaf = leaf_of(error)
        self._coverage.take()
        self._mistakes()
        key = feature(type(leaf).__name__, str(leaf))
        if key not in self._failed:
            self._failed.add(key)
            trace = "".join(traceback.format_exception(leaf))[-6000:]
            words = f"{type(leaf).__name__}: {leaf}"[:500]
            self.tally.failures.append(Failure(case, whole, words, trace))


def _same(case: Case, ended: ends.Ended) -> None:
    """The whole server refuses for the reason for which its parts do."""
    if case.end != SERVER or case.together or ended.finished:
        return
    if case.silent and len(case.lines) > 1:
        return  # what has expired meanwhile, the parts do not know
    expected = desk.play(case, strict=True).endings
    if ended.refusals != expected:
        raise Breach(f"a server refused with {ended.refusals}, its parts with {expected}")


def replay(case: Case) -> str | None:
    """Play a case to the parts and to the whole; the first law that it breaks, in words."""
    with set_up() as mistakes, _alarm():
        try:
            with _patience():
                desk.play(case)
            with _patience():
                ended = ends.play(case, mistakes)
            _same(case, ended)
        except (Exception, Hang) as error:
            leaf = leaf_of(error)
            return "".join(traceback.format_exception(leaf))
    return None


def kept() -> Iterator[Case]:
    """The cases that lie in the corpus."""
    for path in sorted(CORPUS.glob("*.jsonl")):
        yield from load(path)


def leaf_of(error: BaseException) -> BaseException:
    """The first exception in groups of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def rss() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _trimmed(case: Case, outcome: desk.Outcome, new: dict[Any, tuple[int, int]]) -> Case:
    """Without the frames that were refused and have shown nothing new."""
    shown = set(new.values())
    useless = {(line, at) for line, at, _ in outcome.refusals} - shown
    for number, line in enumerate(case.lines):
        kept_here = [frame for at, frame in enumerate(line) if (number, at) not in useless]
        if kept_here:
            case = case.with_line(number, kept_here)
    return case


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang(f"a case takes longer than {CASE_S_MAX:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _patience() -> Iterator[None]:
    """No case for ever."""
    signal.setitimer(signal.ITIMER_REAL, CASE_S_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _grown(tally: Tally) -> str:
    """Whether memory is not flat, in words."""
    more_bytes, more_cases, more_words = (
        last - first for first, last in zip(tally.kept_first, tally.kept_last, strict=True)
    )
    grown = tally.rss_last - tally.rss_first
    if grown > GROWTH_BYTES_MAX + 2 * more_bytes:
        return f"Breach: memory has grown by {grown >> 20} MiB"
    a_case, a_word, at_all = GROWTH_BLOCKS_MAX
    blocks = tally.blocks_last - tally.blocks_first
    if blocks > a_case * more_cases + a_word * more_words + at_all:
        return f"Breach: there are {blocks} objects more, for {more_cases} cases that are kept"
    return ""


def _line(tally: Tally, seconds: float) -> str:
    return (
        f"{tally.changed:,} changed frames of {tally.frames:,} in {tally.cases:,} cases, "
        f"{tally.frames / max(seconds, 1e-3):,.0f}/s, {len(tally.edges):,} edges, "
        f"{len(tally.words):,} words, corpus {len(tally.corpus):,}, "
        f"RSS {rss() >> 20} MiB, {len(tally.failures)} failures"
    )
