"""Any order of commits, refusals, kills and restarts, against a model that is plain sets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ledger_lab import MemoryKind, SqliteKind, done, hits, node, places
from nray.ledger.entries import Cursor, CursorAt, Hits, Registration, SliceDone

PLACES = [(pool, segment) for pool in (0, 1) for segment in (0, 1)]
END = 48
# In memory where there is such a place: what a power cut would do is not asked here.
SHM = Path("/dev/shm")


class Model:
    """What is committed."""

    def __init__(self):
        self.rows = []
        self.done = {place: set() for place in PLACES}
        self.probes = dict.fromkeys((0, 1), 0)
        self.errors = {0: {}, 1: {}}
        self.cursor = None

    def take(self, entries):
        for entry in entries:
            if isinstance(entry, Hits | Registration):
                self.rows.append(entry)
            elif isinstance(entry, SliceDone):
                covered = range(entry.start, entry.start + entry.count)
                self.done[entry.pool, entry.segment] |= set(covered)
                self.probes[entry.pool] += entry.count
                for reason, count in entry.errors.items():
                    errors = self.errors[entry.pool]
                    errors[reason] = errors.get(reason, 0) + count
            elif isinstance(entry, CursorAt):
                self.cursor = entry.cursor

    def open_places(self, place):
        return [
            at
            for row in self.rows
            if isinstance(row, Hits) and (row.pool, row.segment) == place
            for at in places(row.packed)
            if at not in self.done[place]
        ]


class Machine(RuleBasedStateMachine):
    kind: type

    @initialize()
    def begin(self):
        self.directory = Path(tempfile.mkdtemp(dir=SHM if SHM.is_dir() else None))
        self.make = self.kind(self.directory)
        self.ledger = self.make.create(segments=[(0, b""), (1, b"")])
        self.ledger.commit([node()])
        self.model = Model()
        self.generation = 1
        self.pending = []
        self.recut()

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.directory)

    def recut(self):
        """No slice is open: all that is not done is to be cut anew."""
        self.slices = {place: {} for place in PLACES}
        self.free = {place: sorted(set(range(END)) - self.model.done[place]) for place in PLACES}

    @rule(place=st.sampled_from(PLACES), most=st.integers(1, 9), at=st.integers(0, END))
    def open_slice(self, place, most, at):
        """Somewhere, not only at the front: what is left is cut as nodes come and go."""
        free = self.free[place]
        if not free:
            return
        start = free[at % len(free)]
        count = 1
        while count < most and start + count in free:
            count += 1
        self.slices[place][start] = count
        self.free[place] = [each for each in free if not start <= each < start + count]

    @rule(place=st.sampled_from(PLACES), data=st.data())
    def report(self, place, data):
        if self.slices[place]:
            start = data.draw(st.sampled_from(sorted(self.slices[place])))
            within = st.integers(start, start + self.slices[place][start] - 1)
            at = data.draw(st.lists(within, min_size=1, max_size=4))
            self.pending.append(hits(start, *at, pool=place[0], segment=place[1]))

    @rule(place=st.sampled_from(PLACES), data=st.data())
    def end_slice(self, place, data):
        if self.slices[place]:
            start = data.draw(st.sampled_from(sorted(self.slices[place])))
            count = self.slices[place].pop(start)
            self.pending.append(
                done(start, count, pool=place[0], segment=place[1], errors={"x": 1})
            )

    @rule()
    def register(self):
        self.pending.append(Registration(1, 5))

    @rule(position=st.integers(0, 2**63 - 1))
    def move_cursor(self, position):
        self.pending.append(CursorAt("file", Cursor(self.ledger.last, position)))

    @rule()
    def commit(self):
        self.model.take(self.pending)
        assert self.ledger.commit(self.pending) == len(self.model.rows)
        self.pending = []

    @precondition(lambda self: any(self.model.done.values()))
    @rule(data=st.data())
    def commit_is_refused(self, data):
        place = data.draw(st.sampled_from([each for each in PLACES if self.model.done[each]]))
        at = data.draw(st.sampled_from(sorted(self.model.done[place])))
        wrong = data.draw(st.sampled_from([done, hits]))
        entry = wrong(at, 1, pool=place[0], segment=place[1]) if wrong is done else hits(
            at, pool=place[0], segment=place[1]
        )  # fmt: skip
        with pytest.raises(ValueError):
            self.ledger.commit([*self.pending, entry])

    @rule(gently=st.booleans())
    def restart(self, gently):
        """What is pending was never acknowledged: it is gone, and its slices are cut anew."""
        self.ledger = (self.make.reopened if gently else self.make.killed)(self.ledger)
        self.generation += 1
        self.pending = []
        self.recut()

    @invariant()
    def it_is_as_the_model(self):
        if not hasattr(self, "ledger"):
            return
        ledger, model = self.ledger, self.model
        assert ledger.generation == self.generation
        assert ledger.read(0, 10**6) == list(enumerate(model.rows, start=1))
        assert ledger.cursor("file") == model.cursor
        for place in PLACES:
            covered = {at for start, end in ledger.done(*place) for at in range(start, end)}
            assert covered == model.done[place]
            found = [at for piece in ledger.open_hits(*place) for at in places(piece)]
            assert found == model.open_places(place)
        for pool in (0, 1):
            assert ledger.tally(pool)[1] == model.probes[pool]
            assert ledger.errors(pool) == model.errors[pool]
            assert ledger.hits(pool) == sum(
                len(places(row.packed))
                for row in model.rows
                if isinstance(row, Hits) and row.pool == pool
            )


def machine(kind, examples):
    made = type(f"{kind.__name__}Machine", (Machine,), {"kind": kind}).TestCase
    made.settings = settings(max_examples=examples, stateful_step_count=40, deadline=None)
    return made


TestInMemory = machine(MemoryKind, 60)
TestInAFile = machine(SqliteKind, 25)
