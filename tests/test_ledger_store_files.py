"""The ledger as a file: how it comes to be, who may have it, what is refused, what is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ledger_lab import done, hits, node, packed
from nray import UserError
from nray.ledger import sqlite as module
from nray.ledger import statements as sql
from nray.ledger.entries import Cursor
from nray.ledger.errors import LedgerError, LedgerFull, LedgerRefused
from nray.ledger.lock import WriterLock
from nray.ledger.sqlite import SqliteAccount, SqliteLedger

SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(module.__file__)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.nray"


def create(path, **options):
    return SqliteLedger.create(path, **({"scan": "abc", "settings": b"s"} | options))


def filled(path, **options):
    ledger = create(path, segments=[(0, b"zero")], **options)
    ledger.commit([node(), hits(0, 1, 2), done(0, 10)])
    return ledger


def beside(path):
    return sorted(each.name for each in path.parent.iterdir())


def finished(path):
    ledger = filled(path, ended=True)
    ledger.finish()
    ledger.close()


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert isinstance(caught.value, LedgerError)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    return caught.value


# ── what lies in the directory ──────────────────────────────────────────────────────────────


def test_while_it_is_open_nobody_else_may_read_any_of_its_files(path):
    umask = os.umask(0)
    try:
        ledger = filled(path)
        assert beside(path) == ["scan.nray", "scan.nray-lock", "scan.nray-shm", "scan.nray-wal"]
        assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
        ledger.close()
    finally:
        os.umask(umask)
    assert beside(path) == ["scan.nray"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_settings_of_its_connections(path):
    """A power cut cannot be tested here; that SQLite is told to wait for the disk (2) can."""
    ledger = filled(path)
    read = ledger._writer.execute
    assert read("PRAGMA synchronous").fetchone() == (2,)
    assert read("PRAGMA journal_mode").fetchone() == ("wal",)
    assert read("PRAGMA wal_autocheckpoint").fetchone() == (module.CHECKPOINT_PAGES,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        ledger._reader.execute("DELETE FROM journal")
    ledger.close()


@pytest.mark.parametrize("name", ["a?mode=ro#b%41.nray", "ünï cödé", "-x", "a'b\"c", "%00", "c:d"])
def test_odd_names(tmp_path, name):
    filled(tmp_path / name).close()
    assert [each.name for each in tmp_path.iterdir()] == [name]
    ledger = SqliteLedger.open(tmp_path / name)
    assert ledger.last == 1
    ledger.close()


def test_a_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    filled(name).close()
    with SqliteAccountOf(name) as account:
        assert account.last == 1


class SqliteAccountOf:
    """An inspected ledger, closed at the end of its block."""

    def __init__(self, path):
        self.account = SqliteAccount.inspect(path)

    def __enter__(self):
        return self.account

    def __exit__(self, *_):
        self.account.close()


def test_a_relative_name_in_a_directory_that_is_left(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    ledger = filled("scan.nray")
    monkeypatch.chdir("/")
    ledger.commit([hits(20)])
    ledger.close()
    assert beside(path) == ["scan.nray"]


def test_a_link_leads_to_the_ledger_and_its_one_lock(path):
    ledger = filled(path)
    link = path.parent / "link"
    link.symlink_to(path)
    refused(lambda: SqliteLedger.open(link), "another nray")
    ledger.close()
    SqliteLedger.open(link).close()
    assert beside(path) == ["link", "scan.nray"]


# ── one writer ──────────────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_refused_and_told_who_has_it(path):
    ledger = filled(path)
    for second in (
        lambda: SqliteLedger.open(path),
        lambda: create(path),
        lambda: create(path, replace_finished=True),
    ):
        error = refused(second, str(path), f"process {os.getpid()}")
        assert error.exit_status == 2
    ledger.commit([hits(20)])
    ledger.close()
    again = SqliteLedger.open(path)
    assert (again.last, again.generation) == (2, 2)
    again.close()


def test_a_second_process_is_refused(path):
    ledger = filled(path)
    code = (
        "import sys; from nray.ledger.sqlite import SqliteLedger as L\n"
        "try: L.open(sys.argv[1])\nexcept Exception as e: sys.exit(repr(e))"
    )
    env = {**os.environ, "PYTHONPATH": SOURCES}
    ran = subprocess.run(
        [sys.executable, "-c", code, path], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert f"another nray (process {os.getpid()})" in ran.stderr
    ledger.close()


def test_a_child_of_the_writer_does_not_keep_the_lock(path):
    ledger = filled(path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        ledger.close()
        SqliteLedger.open(path).close()
    finally:
        child.kill()
        child.wait()


def test_a_lock_file_that_was_left_is_no_lock(path):
    filled(path).close()
    path.with_name("scan.nray-lock").write_text("1\n")
    SqliteLedger.open(path).close()
    assert beside(path) == ["scan.nray"]


def test_a_lock_file_that_goes_between_opening_and_locking_is_no_lock(path, monkeypatch):
    first = WriterLock(str(path))
    flock = fcntl.flock

    def flock_late(fd, how):
        first.release()
        return flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock_late)
        second = WriterLock(str(path))
    refused(lambda: WriterLock(str(path)), "another nray")
    second.release()
    assert beside(path) == []


def test_writers_that_come_and_go_at_once_never_meet(path):
    filled(path).close()
    inside = 0
    most = 0
    opened = 0
    counting = threading.Lock()

    def come_and_go():
        nonlocal inside, most, opened
        for _ in range(15):
            try:
                ledger = SqliteLedger.open(path)
            except LedgerRefused:
                continue
            with counting:
                inside += 1
                opened += 1
                most = max(most, inside)
            with counting:
                inside -= 1
            ledger.close()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1
    last = SqliteLedger.open(path)
    assert last.generation == opened + 2
    last.close()


# ── create ──────────────────────────────────────────────────────────────────────────────────


def test_an_unfinished_ledger_is_never_replaced(path):
    filled(path).close()
    before = path.read_bytes()
    for replace in (False, True):
        error = refused(lambda r=replace: create(path, replace_finished=r), str(path), "--resume")
        assert error.exit_status == 2
    assert beside(path) == ["scan.nray"]
    assert path.read_bytes() == before


def test_what_a_killed_server_left_is_unfinished_too(path, tmp_path):
    ledger = filled(path)
    copy = tmp_path / "copy"
    for ending in ("", "-wal"):
        os.link(f"{path}{ending}", f"{copy}{ending}")
    refused(lambda: create(copy, replace_finished=True), "not finished")
    ledger.close()


def test_a_finished_ledger_is_replaced_only_if_that_is_wanted(path):
    finished(path)
    refused(lambda: create(path), "finished", "remove it")
    ledger = create(path, scan="new", replace_finished=True)
    assert (ledger.scan, ledger.last, ledger.generation) == ("new", 0, 1)
    ledger.close()
    assert beside(path) == ["scan.nray"]


def test_a_finished_ledger_that_was_killed_then_is_replaced_whole(path):
    ledger = filled(path, ended=True)
    ledger.finish()
    wal = path.with_name("scan.nray-wal").read_bytes()
    file = path.read_bytes()
    ledger.close()
    path.write_bytes(file)
    path.with_name("scan.nray-wal").write_bytes(wal)
    ledger = create(path, scan="new", replace_finished=True)
    assert (ledger.scan, ledger.last, ledger.finished) == ("new", 0, False)
    ledger.close()


def test_the_log_of_a_ledger_that_was_removed_is_not_taken_for_the_new_ones(path):
    ledger = filled(path)
    wal = path.with_name("scan.nray-wal").read_bytes()
    ledger.close()
    path.unlink()
    path.with_name("scan.nray-wal").write_bytes(wal)
    path.with_name("scan.nray-new").write_bytes(b"half a ledger")
    ledger = create(path, scan="new")
    assert (ledger.scan, ledger.last, ledger.segments()) == ("new", 0, [])
    ledger.close()
    assert beside(path) == ["scan.nray"]


def test_segments_that_cannot_be_leave_nothing(path):
    with pytest.raises(ValueError):
        create(path, segments=[(1, b""), (1, b"")])
    assert beside(path) == []


@pytest.mark.parametrize("where", ["missing/scan.nray", "file/scan.nray"])
def test_a_place_that_does_not_do(tmp_path, where):
    (tmp_path / "file").write_text("")
    error = refused(lambda: create(tmp_path / where), "directory")
    assert error.exit_status == 2


def test_it_is_there_whole_or_not_at_all(path, monkeypatch):
    """Stopped at any step of its making: nothing, or something that can be opened."""
    steps = ["sqlite3.connect", "os.replace", "os.fsync"]
    for step in steps:

        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(step, stop)
            with pytest.raises(KeyboardInterrupt):
                create(path)
        if path.exists():
            SqliteLedger.open(path).close()
            path.unlink()
        assert beside(path) == [], step


# ── what is no ledger ───────────────────────────────────────────────────────────────────────


def other_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()


def newer(path):
    filled(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {sql.FORMAT + 1}")
    connection.close()


STRANGERS = {
    "empty": (lambda path: path.write_bytes(b""), "no ledger"),
    "text": (lambda path: path.write_text("10.0.0.0/8\n" * 500), "no ledger"),
    "another database": (other_database, "no ledger"),
    "a directory": (lambda path: path.mkdir(), "no ledger"),
    "a pipe": (lambda path: os.mkfifo(path), "no ledger"),
    "of a newer nray": (newer, f"format {sql.FORMAT + 1}; this nray reads format {sql.FORMAT}"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_no_ledger_is_refused_and_left_as_it_is(path, case):
    make, words = STRANGERS[case]
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for call in (
        lambda: SqliteLedger.open(path),
        lambda: SqliteAccount.inspect(path),
        lambda: create(path, replace_finished=True),
    ):
        error = refused(call, str(path), words)
        assert error.exit_status == 2
    assert beside(path) == ["scan.nray"]
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("how", [SqliteLedger.open, SqliteAccount.inspect])
def test_what_is_not_there(path, how):
    error = refused(lambda: how(path), str(path), "no such ledger")
    assert error.exit_status == 2
    assert beside(path) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_ledger_is_no_traceback(path, seed):
    """Whatever is overwritten: it works, or says what is wrong; it never ends in another way."""
    ledger = filled(path)
    ledger.commit([hits(20, *range(20, 300)), done(20, 400)])
    ledger.close()
    draw = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(3):
        at = draw.randrange(100, len(data))
        data[at : at + 40] = draw.randbytes(len(data[at : at + 40]))
    path.write_bytes(data)
    with contextlib.suppress(LedgerError):
        ledger = SqliteLedger.open(path)
        for call in (
            lambda: ledger.read(0, 100),
            lambda: ledger.nodes(),
            lambda: ledger.hits_until(1),
            lambda: list(ledger.open_hits(0, 0)),
            lambda: ledger.commit([node(5)]),
        ):
            with contextlib.suppress(LedgerError):
                call()
        ledger.close()


# ── inspect ─────────────────────────────────────────────────────────────────────────────────


def test_inspecting_shows_one_moment_while_a_server_writes(path):
    ledger = filled(path)
    ledger.set_cursor("file", Cursor(1, 10))
    with SqliteAccountOf(path) as account:
        ledger.commit([hits(20, 20, 21), done(20, 10), done(10, 10)])
        ledger.set_cursor("file", Cursor(2, 20))
        assert (account.scan, account.settings, account.generation) == ("abc", b"s", 1)
        assert (account.last, account.hits(0), account.cursor("file")) == (1, 2, Cursor(1, 10))
        assert list(account.done(0, 0)) == [(0, 10)]
        assert [seq for seq, _ in account.read(0, 10)] == [1]
        assert account.segments() == [(0, b"zero")]
        assert account.nodes() == [node()]
    with SqliteAccountOf(path) as account:
        assert (account.last, account.hits(0)) == (2, 4)
        assert list(account.done(0, 0)) == [(0, 30)]
    ledger.close()
    assert beside(path) == ["scan.nray"]


def test_inspecting_leaves_nothing_and_changes_nothing(path):
    finished(path)
    before = path.read_bytes()
    with SqliteAccountOf(path) as account:
        assert account.finished
        assert account.tally(0)[1] == 10
        assert not hasattr(account, "commit")
    assert beside(path) == ["scan.nray"]
    assert path.read_bytes() == before


def test_inspecting_what_a_killed_server_left(path, tmp_path):
    ledger = filled(path)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    (tmp_path / "copy-wal").write_bytes(path.with_name("scan.nray-wal").read_bytes())
    with SqliteAccountOf(copy) as account:
        assert account.last == 1
    again = SqliteLedger.open(copy)
    assert (again.last, again.generation) == (1, 2)
    again.close()
    ledger.close()


def test_a_server_may_end_and_begin_while_somebody_reads(path):
    ledger = filled(path)
    with SqliteAccountOf(path) as account:
        ledger.close()
        assert account.last == 1
        again = SqliteLedger.open(path)
        again.commit([hits(20)])
        assert account.last == 1
    again.close()
    assert beside(path) == ["scan.nray"]


# ── during a commit ─────────────────────────────────────────────────────────────────────────


def test_reading_goes_on_while_a_commit_is_under_way(path, monkeypatch):
    ledger = filled(path)
    inside, go_on = threading.Event(), threading.Event()
    write = module._write_change

    def slowly(*arguments):
        write(*arguments)
        inside.set()
        assert go_on.wait(10)

    monkeypatch.setattr(module, "_write_change", slowly)
    thread = threading.Thread(target=ledger.commit, args=([hits(20), done(20, 10)],))
    thread.start()
    assert inside.wait(10)
    try:
        assert [seq for seq, _ in ledger.read(0, 10)] == [1]
        assert (ledger.last, list(ledger.done(0, 0))) == (1, [(0, 10)])
        with SqliteAccountOf(path) as account:
            assert account.last == 1
    finally:
        go_on.set()
        thread.join()
    assert (ledger.last, list(ledger.done(0, 0))) == (2, [(0, 10), (20, 30)])
    ledger.close()


@pytest.mark.parametrize("made", [False, True], ids=["before", "after"])
def test_ctrl_c_amid_a_commit_leaves_file_and_mind_of_one_mind(path, monkeypatch, made):
    ledger = filled(path)
    write, apply = module._write_change, module.Book.apply

    def interrupted(*arguments):
        (apply if made else write)(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if made:
            patch.setattr(module.Book, "apply", interrupted)
        else:
            patch.setattr(module, "_write_change", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.commit([hits(20), done(20, 10)])
    if made:
        with pytest.raises(ValueError, match="done already"):
            ledger.commit([done(20, 10)])
    else:
        ledger.commit([hits(20), done(20, 10)])
    assert ledger.last == 2
    assert ledger.commit([hits(30)]) == 3
    assert [seq for seq, _ in ledger.read(0, 10)] == [1, 2, 3]
    ledger.close()


class FailingConnection:
    """A connection that fails at one statement, as a disk would."""

    def __init__(self, real, statement, error):
        self._real, self._statement, self._error = real, statement, error

    def _run(self, method, statement, *values):
        if statement == self._statement:
            raise self._error
        return getattr(self._real, method)(statement, *values)

    def execute(self, *arguments):
        return self._run("execute", *arguments)

    def executemany(self, *arguments):
        return self._run("executemany", *arguments)

    def __getattr__(self, name):
        return getattr(self._real, name)


def sqlite_error(name):
    error = sqlite3.OperationalError("as told by SQLite")
    error.sqlite_errorname = name
    return error


ERRORS = {
    "SQLITE_FULL": (LedgerFull, "no room"),
    "SQLITE_IOERR_WRITE": (LedgerError, "dmesg"),
    "SQLITE_IOERR_FSYNC": (LedgerError, "dmesg"),
    "SQLITE_BUSY": (LedgerError, "locked"),
    "SQLITE_READONLY": (LedgerError, "writable"),
    "SQLITE_CORRUPT": (LedgerError, "damaged"),
    "": (LedgerError, "unknown"),
}


@pytest.mark.parametrize("statement", [sql.BEGIN, sql.PUT_ROWS, sql.PUT_SUMS, sql.COMMIT])
@pytest.mark.parametrize("name", ERRORS)
def test_a_commit_that_fails_at_any_statement_changes_nothing(path, statement, name):
    kind, words = ERRORS[name]
    ledger = filled(path)
    entries = [hits(20, 20, 21), done(20, 10)]
    real = ledger._writer
    ledger._writer = FailingConnection(real, statement, sqlite_error(name))
    for _ in range(2):
        error = refused(lambda: ledger.commit(entries), str(path), words)
        assert type(error) is kind
        assert error.exit_status == 1
        assert (ledger.last, ledger.hits(0), list(ledger.done(0, 0))) == (1, 2, [(0, 10)])
        assert ledger.commit([]) == 1 if statement not in (sql.BEGIN, sql.COMMIT) else True
    ledger._writer = real
    assert ledger.commit(entries) == 2
    assert (ledger.hits(0), list(ledger.done(0, 0))) == (4, [(0, 10), (20, 30)])
    ledger.close()


def test_an_error_of_writing_on_a_disk_without_room_is_lack_of_room(path, monkeypatch):
    monkeypatch.setattr(module, "_room", lambda path: False)
    error = module._explain(str(path), sqlite_error("SQLITE_IOERR_SHMSIZE"))
    assert type(error) is LedgerFull


# ── size ────────────────────────────────────────────────────────────────────────────────────

SLICES = 2**14
SLASH_0 = 2**32


@pytest.mark.parametrize(
    ("order", "most"), [("random", 512 * 1024), ("as nodes end them", 64 * 1024)]
)
def test_a_slash_0_takes_kilobytes(path, order, most):
    starts = list(range(0, SLASH_0, SLASH_0 // SLICES))
    draw = random.Random(1)
    if order == "random":
        draw.shuffle(starts)
    else:
        for at in range(0, SLICES, 64):
            part = starts[at : at + 64]
            draw.shuffle(part)
            starts[at : at + 64] = part
    ledger = create(path, segments=[(0, b"")])
    for at in range(0, SLICES, 500):
        ledger.commit([done(start, SLASH_0 // SLICES) for start in starts[at : at + 500]])
    assert list(ledger.done(0, 0)) == [(0, SLASH_0)]
    assert ledger.tally(0)[1] == SLASH_0
    assert ledger._all("SELECT count(*) FROM done") == [(1,)]
    ledger.close()
    assert path.stat().st_size <= most


def test_the_mark_follows_the_oldest_open_slice(path):
    """What a resumed scan reads is what was reported since, not all."""
    ledger = create(path, segments=[(0, b"")])
    ledger.commit([node()])
    mark = lambda: ledger._all(sql.GET_LAST)[0][2]  # noqa: E731
    for start in range(0, 1000, 10):
        ledger.commit([hits(start)])
        ledger.commit([hits(start, start + 1), done(start, 10)])
    assert mark() == 201
    ledger.commit([hits(5000)])
    for start in range(1000, 2000, 10):
        ledger.commit([hits(start), done(start, 10)])
    assert mark() == 201
    ledger.commit([done(5000, 10), hits(6000)])
    assert mark() == 302
    ledger.close()


def test_done_sets_that_are_not_kept_in_mind_are_read_again(path, monkeypatch):
    monkeypatch.setattr("nray.ledger.book.DONE_KEPT_MAX", 3)
    ledger = create(path, segments=[(number, b"") for number in range(20)])
    ledger.commit([node()])
    for start in (0, 10):
        for number in range(20):
            ledger.commit([hits(start, segment=number), done(start, 10, segment=number)])
    ledger.commit([done(20, 10, segment=number) for number in range(20)])
    assert all(list(ledger.done(0, number)) == [(0, 30)] for number in range(20))
    with pytest.raises(ValueError):
        ledger.commit([done(0, 1, segment=4)])
    assert len(ledger._book._done) == 3
    ledger.close()


def test_what_it_imports():
    """Nothing heavy: `nray status` is to answer at once."""
    code = "import sys, nray.ledger.sqlite; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": SOURCES}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    heavy = {"trio", "asyncio", "cryptography", "OpenSSL", "yaml", "nray._core", "ssl"}
    assert heavy.isdisjoint(ran.stdout.split())


def test_packed_hits_in_this_file_are_those_of_the_core():
    from nray import _core

    assert _core.HIT_FORMAT == "<Q16sIBBBB"
    assert len(packed(1)) == _core.HIT_BYTES


def test_the_manual_says_of_every_statement_what_would_differ():
    page = Path(SOURCES).parent / "docs" / "ledger.md"
    section = page.read_text().partition("## Another database")[2]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    told = re.findall(r"`([A-Z_]+)`", " ".join(cells))
    assert sorted(told) == sorted(
        name for name in vars(sql) if name.isupper() and not isinstance(vars(sql)[name], int)
    )


def test_open_hits_of_many_segments_are_not_sought_in_vain(path, monkeypatch):
    ledger = create(path, segments=[(number, b"") for number in range(50)])
    ledger.commit([node(), hits(0, segment=3), hits(0, segment=4), done(0, 5, segment=4)])
    reads = []
    read = SqliteLedger.read
    monkeypatch.setattr(SqliteLedger, "read", lambda *a: reads.append(a) or read(*a))
    found = [number for number in range(50) if b"".join(ledger.open_hits(0, number))]
    assert (found, len(reads)) == ([3], 2)
    ledger.close()
