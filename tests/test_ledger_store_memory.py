"""What only the ledger in memory does: crash, fail and let go on demand."""

from __future__ import annotations

import pytest

from ledger_lab import done, hits, node
from nray.ledger.entries import Cursor, CursorAt
from nray.ledger.errors import LedgerFull
from nray.ledger.memory import MemoryLedger


def made(**options):
    ledger = MemoryLedger(scan="abc", segments=[(0, b"")], **options)
    ledger.commit([node()])
    return ledger


def test_a_crashed_ledger_is_of_no_more_use():
    ledger = made()
    other = ledger.crash()
    with pytest.raises(ValueError, match="closed"):
        ledger.commit([hits(0)])
    other.commit([hits(0)])
    assert (other.generation, other.last) == (2, 1)


def test_faults_come_in_order_and_change_nothing():
    ledger = made()
    ledger.fail_next(LedgerFull("full"), OSError("broken"))
    with pytest.raises(LedgerFull):
        ledger.commit([hits(0)])
    with pytest.raises(OSError, match="broken"):
        ledger.set_cursor("file", Cursor(0))
    assert (ledger.last, ledger.cursor("file")) == (0, None)
    assert ledger.commit([hits(0), done(0, 1)]) == 1


def test_a_mistake_is_told_before_a_fault():
    ledger = made()
    ledger.fail_next(LedgerFull("full"))
    with pytest.raises(ValueError):
        ledger.commit([hits(0, segment=5)])
    with pytest.raises(LedgerFull):
        ledger.commit([hits(0)])


def test_rows_that_all_sinks_have_passed_are_let_go():
    ledger = made(release=["a", "b"])
    rows = [hits(0, at) for at in range(10)]
    ledger.commit(rows)
    ledger.set_cursor("a", Cursor(7))
    assert len(ledger.read(0, 100)) == 10
    ledger.set_cursor("b", Cursor(4))
    assert ledger.read(0, 100) == list(enumerate(rows, start=1))[4:]
    assert ledger.read(6, 2) == [(7, rows[6]), (8, rows[7])]
    ledger.set_cursor("b", Cursor(6))
    assert ledger.read(0, 100) == list(enumerate(rows, start=1))[6:]
    ledger.commit([done(0, 10), CursorAt("b", Cursor(10)), CursorAt("a", Cursor(10))])
    assert ledger.read(0, 100) == []
    assert (ledger.last, ledger.hits(0), ledger.hits_until(10)) == (10, 10, 10)
    assert ledger.commit([hits(20)]) == 11
    assert (ledger.read(10, 5), ledger.hits_until(11)) == ([(11, hits(20))], 11)


def test_without_sinks_nothing_is_kept():
    ledger = made(release=())
    for start in range(0, 1000, 10):
        ledger.commit([hits(start), done(start, 10)])
    assert (ledger.read(0, 10), ledger.last, ledger.hits(0)) == ([], 100, 100)


def test_a_ledger_that_lets_go_cannot_be_resumed():
    ledger = made(release=())
    with pytest.raises(ValueError, match="lets rows go"):
        ledger.crash()
    with pytest.raises(ValueError, match="lets rows go"):
        ledger.open_hits(0, 0)
