"""A ledger in a file: SQLite in WAL mode, synced at every commit.

The file is one plain database while nobody has it open. While it is written, ``-wal`` and ``-shm``
stand beside it (SQLite's own), and ``-lock``. What a killed process leaves is put right by
whoever opens the ledger next.

Everything that SQLite raises leaves this module as a `LedgerError` that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from nray.ledger import statements as sql
from nray.ledger.book import Book, Change, Sums, not_done
from nray.ledger.entries import (
    COUNTS,
    RECORD_BYTES,
    Cursor,
    CursorAt,
    Entry,
    Finished,
    Hits,
    NodeSeen,
    Row,
    SegmentAdded,
    SegmentsEnded,
    pack_rows,
    size,
    unpack_node,
    unpack_rows,
)
from nray.ledger.errors import LedgerError, LedgerFull, LedgerRefused
from nray.ledger.intervals import IntervalSet
from nray.ledger.ledger import READ_BYTES_MAX
from nray.ledger.lock import WriterLock

#: Rows of the journal that are stored as one: many, so that thousands of small reports are a few
#: inserts; not more, since a reader unpacks all of them for any one.
STORED_ROWS_MAX: Final = 256
#: The same in bytes of hits: what a reader needs of memory beyond what it asked for.
STORED_BYTES_MAX: Final = READ_BYTES_MAX
#: The log is brought into the database when it has so many pages (of 4 KiB): 16 MiB. Each time
#: costs two more syncs, so not at each MiB; and the log is to be read when resuming.
CHECKPOINT_PAGES: Final = 4096
#: What one huge commit, or a long reader, has made of the log is cut back to this.
LOG_BYTES_MAX: Final = 64 * 1024 * 1024
#: Nothing but a person with a database shell locks our file for longer than a moment.
BUSY_S: Final = 5.0
#: With less than this on its file system, an error of writing is put down to lack of room.
ROOM_LEAST_BYTES: Final = 64 * 1024


class SqliteAccount:
    """A ledger in a file as it can be read; see `ledger.Account`. Made by `inspect`.

    It shows one moment, whatever a server writes meanwhile. Close it soon: until then that
    server's log can only grow.
    """

    def __init__(self, path: str, reader: sqlite3.Connection) -> None:
        self.path = path
        self._reader = reader
        self._read_lock = threading.Lock()
        self._closed = False
        with self._reading() as connection:
            row = connection.execute(sql.GET_SCAN).fetchone()
            if row is None:
                raise LedgerError(f"{path}: the ledger is damaged: it holds no scan")
            self.scan: str = row[0]
            self.settings: bytes = row[1]
            self.generation: int = row[2]
            self._state = (bool(row[3]), bool(row[4]))
            last = connection.execute(sql.GET_LAST).fetchone()
            self._last: int = last[0] if last else 0

    @classmethod
    def inspect(cls, path: str | os.PathLike[str]) -> SqliteAccount:
        """A ledger, while a server writes it or not.

        Raises:
            LedgerRefused: there is none at this path that this program can read.
            LedgerError: the disk or the file failed.
        """
        name = os.path.realpath(path)
        _demand_file(name, os.R_OK)
        with _opening(name), contextlib.ExitStack() as stack:
            reader = _connect(name, "ro")
            stack.callback(reader.close)
            _check_format(name, reader)
            reader.execute(sql.SNAPSHOT)
            account = cls(name, reader)
            stack.pop_all()
            return account

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock, _explained(self.path):
            if self._closed:
                raise ValueError(f"{self.path}: the ledger is closed")
            yield self._reader

    def _all(self, statement: str, *values: object) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(statement, values).fetchall()

    @property
    def segments_ended(self) -> bool:
        return self._state[0]

    @property
    def finished(self) -> bool:
        return self._state[1]

    @property
    def last(self) -> int:
        return self._last

    def segments(self) -> list[tuple[int, bytes]]:
        return self._all(sql.GET_SEGMENTS)

    def pools(self) -> list[int]:
        return [pool for (pool,) in self._all(sql.GET_POOLS)]

    def done(self, pool: int, segment: int) -> IntervalSet:
        pairs = self._all(sql.GET_DONE, pool, segment)
        try:
            return _intervals(pairs)
        except ValueError as error:
            raise _damaged(self.path, error) from error

    def open_hits(self, pool: int, segment: int) -> Iterator[bytes]:
        done = self.done(pool, segment)
        mark = self._all(sql.GET_LAST)
        after = mark[0][2] - 1 if mark else 0
        while rows := self.read(after, STORED_ROWS_MAX):
            for _, row in rows:
                if isinstance(row, Hits) and (row.pool, row.segment) == (pool, segment):
                    piece = not_done(row.packed, done)
                    if piece:
                        yield piece
            after = rows[-1][0]

    def tally(self, pool: int, discovery: bool = False) -> tuple[int, ...]:
        return tuple(self._sums(pool, discovery).counts)

    def errors(self, pool: int, discovery: bool = False) -> dict[str, int]:
        return dict(self._all(sql.GET_ERRORS, pool, discovery))

    def hits(self, pool: int, discovery: bool = False) -> int:
        return self._sums(pool, discovery).hits

    def _sums(self, pool: int, discovery: bool) -> Sums:
        for row in self._all(sql.GET_SUMS, pool, discovery):
            return _sums(row)
        return Sums()

    def hits_until(self, seq: int) -> int:
        if seq <= 0:
            return 0
        for last, hits, body in self._all(sql.GET_ROWS_AT, seq):
            later = self._unpack(body)[seq - last :] if seq < last else []
            return int(hits) - sum(size(row) for row in later) // RECORD_BYTES
        return sum(self.hits(pool, which) for pool in self.pools() for which in (False, True))

    def nodes(self) -> list[NodeSeen]:
        bodies = self._all(sql.GET_NODES)
        try:
            return [unpack_node(body) for (body,) in bodies]
        except ValueError as error:
            raise _damaged(self.path, error) from error

    def read(self, after: int, most: int) -> list[tuple[int, Row]]:
        found: list[tuple[int, Row]] = []
        room = READ_BYTES_MAX
        with (
            self._reading() as connection,
            # The statement ends with the block: one left open would hold its view of the file.
            contextlib.closing(connection.execute(sql.GET_ROWS, (after,))) as stored,
        ):
            for last, body in stored:
                rows = self._unpack(body)
                first = last - len(rows) + 1
                for seq in range(max(first, after + 1), last + 1):
                    row = rows[seq - first]
                    room -= size(row)
                    if len(found) == most or (found and room < 0):
                        return found
                    found.append((seq, row))
        return found

    def _unpack(self, body: bytes) -> list[Row]:
        try:
            return unpack_rows(body)
        except ValueError as error:
            raise _damaged(self.path, error) from error

    def cursor(self, sink: str) -> Cursor | None:
        for seq, position in self._all(sql.GET_CURSOR, sink):
            return Cursor(seq, position)
        return None

    def close(self) -> None:
        with self._read_lock:
            self._closed = True
            self._reader.close()


class SqliteLedger(SqliteAccount):
    """A ledger in a file as it can be written; see `ledger.Ledger`.

    Made by `create` or `open`. Closing it leaves one file; to be killed is as good.
    """

    durable = True

    def __init__(
        self,
        path: str,
        reader: sqlite3.Connection,
        writer: sqlite3.Connection,
        lock: WriterLock,
    ) -> None:
        super().__init__(path, reader)
        self._writer = writer
        self._write_lock = threading.Lock()
        self._lock = lock
        self._book: Book | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        scan: str,
        settings: bytes,
        segments: Sequence[tuple[int, bytes]] = (),
        ended: bool = False,
        replace_finished: bool = False,
    ) -> SqliteLedger:
        """A new ledger. There is none, or a whole one, at any moment.

        Args:
            scan: a random id. settings: what is to be known when the scan is resumed.
            segments: number and packed form; ``ended``: whether these are all.
            replace_finished: whether the ledger of a finished scan may be replaced.

        Raises:
            LedgerRefused: something is there already, or the place does not do.
            LedgerError: the disk failed; `LedgerFull`: there is no room.
        """
        name = os.path.realpath(path)
        # Refuses numbers that are there twice.
        Book(_nothing).plan([SegmentAdded(number, body) for number, body in segments])
        with contextlib.ExitStack() as stack:
            lock = WriterLock(name)
            stack.callback(lock.release)
            if os.path.lexists(name):
                _make_way(name, replace_finished)
            _build(name, scan, settings, segments, ended)
            ledger = cls._begin(name, lock)
            stack.pop_all()
            return ledger

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SqliteLedger:
        """A ledger that is there, to go on with it; its generation is one higher.

        Raises:
            LedgerRefused: there is none at this path that this program can read, or another
                process is writing it.
            LedgerError: the disk or the file failed; `LedgerFull`: there is no room.
        """
        name = os.path.realpath(path)
        _demand_file(name, os.R_OK | os.W_OK)
        with contextlib.ExitStack() as stack:
            lock = WriterLock(name)
            stack.callback(lock.release)
            ledger = cls._begin(name, lock)
            stack.pop_all()
            return ledger

    @classmethod
    def _begin(cls, path: str, lock: WriterLock) -> SqliteLedger:
        with _opening(path), contextlib.ExitStack() as stack:
            writer = _connect(path, "rw")
            stack.callback(writer.close)
            _check_format(path, writer)
            _write_ahead(path, writer)
            writer.execute(sql.BEGIN)
            writer.execute(sql.NEXT_GENERATION)
            writer.execute(sql.COMMIT)
            reader = _connect(path, "rw")
            stack.callback(reader.close)
            reader.execute("PRAGMA query_only = 1")
            ledger = cls(path, reader, writer, lock)
            ledger._book = ledger._reloaded()
            stack.pop_all()
            return ledger

    def _load(self) -> Book:
        """The book of what is committed."""
        read = self._writer.execute
        book = Book(lambda *place: _intervals(read(sql.GET_DONE, place).fetchall()))
        state = read(sql.GET_SCAN).fetchone()
        book.segments_ended, book.finished = bool(state[3]), bool(state[4])
        book.nodes = {node for (node,) in read(sql.GET_NODE_NUMBERS)}
        book.segments = {number for (number,) in read(sql.GET_SEGMENT_NUMBERS)}
        book.sums = {(row[0], bool(row[1])): _sums(row) for row in read(sql.GET_ALL_SUMS)}
        book.errors = {
            (pool, bool(which), reason): n for pool, which, reason, n in read(sql.GET_ALL_ERRORS)
        }
        found = read(sql.GET_LAST).fetchone()
        if found is not None:
            book.last, book.hits, mark = found
            book.inherit(self._rows_from(mark))
        return book

    def _rows_from(self, seq: int) -> Iterator[tuple[int, Row]]:
        after = seq - 1
        while rows := self.read(after, STORED_ROWS_MAX):
            yield from rows
            after = rows[-1][0]

    def open_hits(self, pool: int, segment: int) -> Iterator[bytes]:
        with self._write_lock:
            if self._book is not None and not self._book.may_be_open((pool, segment)):
                return iter(())  # without reading for each of many segments what is of few
        return super().open_hits(pool, segment)

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    def commit(self, entries: Sequence[Entry]) -> int:
        with self._write_lock, _explained(self.path):
            if self._closed:
                raise ValueError(f"{self.path}: the ledger is closed")
            # Out of our hands until file and book agree again: if Ctrl+C comes amid this, only
            # the file knows whether the commit was made.
            book, self._book = self._book or self._reloaded(), None
            try:
                change = book.plan(entries)
                self._write(change)
            except Exception:
                self._book = book
                raise
            book.apply(change)
            self._show(book)
            self._book = book
            return change.last

    def _reloaded(self) -> Book:
        book = self._load()
        self._show(book)
        return book

    def _show(self, book: Book) -> None:
        self._last = book.last
        self._state = (book.segments_ended, book.finished)

    def _write(self, change: Change) -> None:
        """One transaction, or nothing."""
        rows = _stored(change)
        connection = self._writer
        try:
            connection.execute(sql.BEGIN)
            _write_change(connection, change, rows, self._state)
            connection.execute(sql.COMMIT)
        except BaseException:
            if connection.in_transaction:  # SQLite ends it by itself for some errors
                connection.execute(sql.ROLLBACK)
            raise

    def add_segment(self, number: int, body: bytes) -> None:
        self.commit([SegmentAdded(number, body)])

    def end_segments(self) -> None:
        self.commit([SegmentsEnded()])

    def set_cursor(self, sink: str, cursor: Cursor) -> None:
        self.commit([CursorAt(sink, cursor)])

    def finish(self) -> None:
        self.commit([Finished()])

    def close(self) -> None:
        with self._write_lock:
            if self._closed:
                return
            super().close()
            # Leaves one file. Where that cannot be (no room, somebody reads), all is in the log
            # as it would be after a kill.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("PRAGMA busy_timeout = 0")
                self._writer.execute("PRAGMA journal_mode = DELETE")
            self._writer.close()
            self._lock.release()


# ── a commit ────────────────────────────────────────────────────────────────────────────────


def _stored(change: Change) -> list[tuple[int, int, int, bytes]]:
    """The rows as they are stored: last, hits, mark, body."""
    stored = []
    last = change.last - len(change.rows)
    hits = change.hits - sum(size(row) for row in change.rows) // RECORD_BYTES
    group: list[Row] = []
    held = 0
    for row in change.rows:
        if group and (len(group) == STORED_ROWS_MAX or held + size(row) > STORED_BYTES_MAX):
            stored.append((last, hits, change.mark, pack_rows(group)))
            group, held = [], 0
        group.append(row)
        held += size(row)
        hits += size(row) // RECORD_BYTES
        last += 1
    if group:
        stored.append((last, hits, change.mark, pack_rows(group)))
    return stored


def _write_change(
    connection: sqlite3.Connection,
    change: Change,
    rows: list[tuple[int, int, int, bytes]],
    state: tuple[bool, bool],
) -> None:
    many = connection.executemany
    if rows:
        many(sql.PUT_ROWS, rows)
    for place, intervals in change.intervals.items():
        gone = [start for start, last in intervals.items() if last is None]
        here = [(start, last) for start, last in intervals.items() if last is not None]
        if gone:
            connection.execute(sql.DROP_DONE, (*place, json.dumps(gone)))
        connection.execute(sql.PUT_DONE, (*place, json.dumps(here)))
    if change.sums:
        many(sql.PUT_SUMS, [(*kept, *s.counts, s.hits) for kept, s in change.sums.items()])
    if change.errors:
        many(sql.PUT_ERROR, [(*name, count) for name, count in change.errors.items()])
    if change.nodes:
        many(sql.PUT_NODE, list(change.nodes.items()))
    if change.segments:
        many(sql.PUT_SEGMENT, list(change.segments.items()))
    if change.cursors:
        many(sql.PUT_CURSOR, [(name, c.seq, c.position) for name, c in change.cursors.items()])
    if change.segments_ended or change.finished:
        ended, finished = state
        connection.execute(
            sql.PUT_STATE, (ended or change.segments_ended, finished or change.finished)
        )


def _sums(row: Sequence[int]) -> Sums:
    """Of a row of the table of sums: pool, whether of discovery, counts, hits."""
    return Sums(list(row[2 : 2 + COUNTS]), row[2 + COUNTS])


def _nothing(pool: int, segment: int) -> IntervalSet:
    return IntervalSet()


def _intervals(pairs: Sequence[tuple[int, int]]) -> IntervalSet:
    return IntervalSet.of((start, last + 1) for start, last in pairs)


# ── files ───────────────────────────────────────────────────────────────────────────────────


def _connect(path: str, mode: str) -> sqlite3.Connection:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # No isolation level: transactions begin and end where this module says so. Threads take
    # turns by our locks.
    connection = sqlite3.connect(
        f"file://{quoted}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _write_ahead(path: str, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerRefused(
            f"{path}: its file system cannot share memory between processes",
            "keep the ledger on a local disk",
        )
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
    connection.execute("PRAGMA cache_size = -8192")  # 8 MiB: most of a large commit


def _demand_file(path: str, access: int) -> None:
    if not os.path.lexists(path):
        raise LedgerRefused(
            f"{path}: there is no such ledger", "name the state file that the scan was begun with"
        )
    if not os.path.isfile(path):
        raise _stranger(path)
    if not os.access(path, access):
        raise LedgerRefused(
            f"{path}: this user may not {'write' if access & os.W_OK else 'read'} it",
            "a ledger belongs to the user who began the scan: go on as that user",
        )


def _check_format(path: str, connection: sqlite3.Connection) -> None:
    """Raises LedgerRefused for what is no ledger, or one of a newer program."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if mark != sql.APPLICATION_ID:
        raise _stranger(path)
    if version != sql.FORMAT:
        raise LedgerRefused(
            f"{path}: a ledger of format {version}; this nray reads format {sql.FORMAT}",
            "use the nray that wrote it, or begin the scan anew with another file",
        )


def _stranger(path: str) -> LedgerRefused:
    return LedgerRefused(f"{path}: this is no ledger of nray", "name another file")


def _make_way(path: str, replace_finished: bool) -> None:
    """Raises LedgerRefused unless what is there is a ledger that may be replaced.

    Leaves it as one file: a log that stayed beside the new ledger would be taken for its own.
    """
    _demand_file(path, os.R_OK | os.W_OK)
    with _explained(path), contextlib.closing(_connect(path, "rw")) as connection:
        _check_format(path, connection)
        scan = connection.execute(sql.GET_SCAN).fetchone()
        if scan is None or not scan[4]:
            raise LedgerRefused(
                f"{path}: holds a scan that is not finished",
                "go on with it (--resume), remove it, or name another file",
            )
        if not replace_finished:
            raise LedgerRefused(f"{path}: holds a finished scan", "remove it, or name another file")
        connection.execute("PRAGMA journal_mode = DELETE")


def _build(
    path: str, scan: str, settings: bytes, segments: Sequence[tuple[int, bytes]], ended: bool
) -> None:
    """Write a new ledger aside, then put it in its place, both synced. We hold the lock."""
    aside = f"{path}-new"
    with contextlib.ExitStack() as stack:
        try:
            _remove(aside)
            os.close(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            stack.callback(_remove, aside)
            with _explained(path), contextlib.closing(_connect(aside, "rw")) as connection:
                # A file that nobody knows needs no way back.
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute(sql.BEGIN)
                for statement in sql.SCHEMA:
                    connection.execute(statement)
                connection.execute(sql.PUT_SCAN, (scan, settings, ended))
                connection.executemany(sql.PUT_SEGMENT, segments)
                connection.execute(sql.COMMIT)
            for ending in ("-wal", "-shm", "-journal"):
                # Of a ledger that somebody removed: it would be taken for the new one's.
                _remove(path + ending)
            os.replace(aside, path)
            stack.pop_all()
            _sync_directory(path)
        except OSError as error:
            kind = LedgerFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else LedgerError
            raise kind(f"{path}: cannot be made: {error.strerror}") from error


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    except UnicodeDecodeError as error:  # in text that was damaged; what we write is encoded
        raise _damaged(path, error) from error


@contextlib.contextmanager
def _opening(path: str) -> Iterator[None]:
    """The same, where any value that makes no sense comes from the file."""
    try:
        with _explained(path):
            yield
    except (TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _explain(path: str, error: sqlite3.Error) -> LedgerError:
    name: str = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and not _room(path)):
        return LedgerFull(
            f"{path}: no room on its disk (or quota)", "free some space: nothing written is lost"
        )
    if name == "SQLITE_NOTADB":
        return _stranger(path)
    if name == "SQLITE_ERROR" or name.startswith("SQLITE_CORRUPT"):  # our statements are right
        return _damaged(path, error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerError(
            f"{path}: locked by another program", "end whatever has it open (a database shell?)"
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return LedgerError(
            f"{path}: cannot be written: {error}",
            "the file and its directory must be writable for this user, and on a local disk",
        )
    return LedgerError(
        f"{path}: the disk did not take it: {error} ({name or 'unknown'})",
        "look into the system's log (dmesg); the ledger holds all that was committed",
    )


def _damaged(path: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"{path}: the ledger is damaged: {error}",
        "restore it from a copy, or begin the scan anew with another file",
    )


def _room(path: str) -> bool:
    try:
        disk = os.statvfs(os.path.dirname(path))
    except OSError:
        return True
    return disk.f_bavail * disk.f_frsize >= ROOM_LEAST_BYTES
