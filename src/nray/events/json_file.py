"""The json-file sink: one JSON object a line, visible at once, and never half a line.

Each batch goes to the operating system whole, with a single write(), as soon as it comes. If
the system takes only part of it (the disk is full), the file is cut back to its last whole
line before the error is raised. What the system has is forced onto the disk (fsync) every
`synctimer_s` and on closing; a crash of nray loses nothing written, a crash of the machine at
most that much time.

A file can be continued after a crash. `JsonFileSink.position` says how far it is certainly on
the disk; whoever keeps the events notes that together with how many of them those bytes are.
Later it opens the file with ``resume_at=`` that position and hands over the events from there
on again, in the same order. What already stands in the file is compared with them and left as
it is, whole lines and a torn last one alike; only what is missing is appended. So every line
is there once, and no byte that a reader may have seen is written twice. Before anything that
is not ours the sink stops, and neither cuts nor overwrites it.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shlex
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final

from nray.events.model import Event, encode_lines
from nray.events.sink import (
    PartialWrite,
    SinkClosed,
    SinkError,
    SinkStartError,
    Write,
    write_fully,
)

# Results may name what is vulnerable: others may read them only if the umask lets them.
_MODE: Final = 0o666

_HINTS: Final = {
    errno.ENOENT: "its directory does not exist: make it first",
    errno.ENOTDIR: "part of the path is a file where a directory should be",
    errno.EISDIR: "that is a directory: name a file in it",
    errno.EACCES: "this user may not write there: choose another place or user",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "this user's quota is used up: free some space, or choose another disk",
    errno.EFBIG: "the limit on the size of files is reached: raise it (ulimit -f)",
}

# Errors that pass by themselves when somebody makes room.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def json_file_name(filename: str) -> str:
    """What error messages and cursors call the sink of a file."""
    return f"json-file {filename}"


class JsonFileSink:
    """Writes events to a file, which it creates or continues.

    Args:
        filename: relative to the working directory, or absolute. A pipe or a device
            (``/dev/stderr``) is written to as it is.
        overwrite_existing: empty an existing file instead of refusing to start.
        synctimer_s: seconds between two fsync calls at the least; 0 syncs after each batch.
        resume_at: continue the existing file, see above: a `position` that the sink had earlier,
            in bytes. At 0 the file may also be missing. `overwrite_existing` then means nothing,
            nor does this for a pipe or a device, which is written on to.
        clock: seconds on any steady clock.
        write: os.write, or a test's stand-in for it.
    """

    def __init__(
        self,
        filename: str,
        overwrite_existing: bool = False,
        synctimer_s: float = 10.0,
        *,
        resume_at: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        write: Write = os.write,
    ) -> None:
        if resume_at is not None and resume_at < 0:
            raise ValueError(f"resume_at must be at least 0, not {resume_at}")
        self.filename = filename
        self.name = json_file_name(filename)
        self.abandonable = False
        self.overwrite_existing = overwrite_existing
        self.synctimer_s = synctimer_s
        self.resume_at = resume_at
        self._clock = clock
        self._write = write
        self._fd: int | None = None
        self._regular = True
        self._dirty = False
        self._synced_at = -math.inf
        self._end = resume_at or 0  # where our whole lines end in the file
        self._durable = self._end  # how much of that is on the disk
        self._torn = 0  # bytes of a torn line behind our lines that could not be cut off yet
        self._replaying = False  # behind `_end` may stand what we wrote before the crash
        self._entry_synced = False  # the file's name is on the disk, too
        self._lost: SinkError | None = None  # a failed fsync: `_durable` cannot grow any more

    @property
    def position(self) -> int:
        """Bytes of whole lines on the disk: what `resume_at` may be later. 0 for a pipe.

        It falls if somebody else cuts the file, to what then stands in it.
        """
        return self._durable if self._regular else 0

    def open(self) -> None:
        """Create the file, empty it if it may be overwritten, or find where to continue it.

        Raises `SinkStartError` if it exists and may not, or is in use, or cannot be made; or if
        it is to be continued and is not, or no longer, the file that was written.
        """
        try:
            self._fd = self._opened()
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self.abandonable = not self._regular
            if self._regular:
                self._claim(self._fd)
                if self.resume_at is None:
                    os.ftruncate(self._fd, 0)
                else:
                    self._check_continuable(self._fd, self.resume_at)
                    self._replaying = True
        except FileExistsError:
            raise SinkStartError(
                f"{self.name}: the file exists already",
                "move it away, name another file, or set overwriteExisting: true",
            ) from None
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "")
            self._release()
            raise SinkStartError(f"{self.name}: cannot open it: {error.strerror}", hint) from error
        except SinkStartError:
            self._release()
            raise
        self._synced_at = self._clock()

    def write(self, events: Sequence[Event]) -> None:
        """Append the events, except for what already stands in a file that is continued.

        Raises `SinkError` and leaves the file at a line's end, if the system lets it. Where
        there was no room, the error says `retry`, and the rest may be handed over again.
        """
        fd = self._open_fd()
        if self._torn:
            self._cut_again(fd)
        data = encode_lines(events)
        standing = self._standing(fd, data) if self._replaying else 0
        try:
            self._dirty = True
            write_fully(fd, memoryview(data)[standing:], self._write)
        except PartialWrite as partial:
            raise self._repaired(fd, data, standing + partial.written, partial.cause) from (
                partial.cause
            )
        if self._regular:
            # Not counted: somebody else may have cut the file, as those who rotate logs do.
            self._end = self._end + len(data) if self._replaying else os.fstat(fd).st_size

    def sync_due_s(self) -> float:
        """Seconds until the next fsync; infinity while there is nothing to sync."""
        if not self._dirty or not self._regular:
            return math.inf
        return max(0.0, self._synced_at + self.synctimer_s - self._clock())

    def sync(self) -> None:
        """Force what was written onto the disk; `position` is then the end of our lines.

        Raises `SinkError` if the disk fails, and then always: the system may forget what it
        failed to write and call the next fsync a success.
        """
        if not self._dirty or not self._regular:
            return
        if self._lost is not None:
            raise self._lost
        try:
            os.fsync(self._open_fd())
            if not self._entry_synced:  # a file whose bytes are safe can still lose its name
                _sync_directory(os.path.dirname(os.path.realpath(self.filename)))
                self._entry_synced = True
        except OSError as error:
            self._lost = SinkError(
                f"{self.name}: the disk did not take it: {error.strerror}",
                "what was written since the last sync may be lost",
            )
            raise self._lost from error
        self._durable = self._end
        self._dirty = False
        self._synced_at = self._clock()

    def close(self) -> None:
        """Sync and close; the file is let go even if the sync fails."""
        if self._fd is None:
            return
        try:
            self.sync()
        finally:
            self._release()

    # ── opening ─────────────────────────────────────────────────────────────────────────────

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        if self.resume_at is not None:
            return self._reopened(self.resume_at)
        try:
            return os.open(self.filename, flags | os.O_CREAT | os.O_EXCL, _MODE)
        except FileExistsError:
            # O_EXCL decided, so no second process can create it in between. What is no regular
            # file holds nothing that could be overwritten.
            if self.overwrite_existing:
                return os.open(self.filename, flags | os.O_CREAT, _MODE)
            if self._is_stream():
                return os.open(self.filename, flags)
            raise

    def _reopened(self, resume_at: int) -> int:
        flags = os.O_APPEND | os.O_CLOEXEC
        if self._is_stream():  # never for reading: a pipe would then count us as its reader
            return os.open(self.filename, flags | os.O_WRONLY)
        if resume_at == 0:
            flags |= os.O_CREAT
        try:
            return os.open(self.filename, flags | os.O_RDWR, _MODE)
        except FileNotFoundError:
            if resume_at == 0:  # a missing directory
                raise
            raise SinkStartError(
                f"{self.name}: the file is gone, of which {resume_at} bytes were written before",
                "put it back as it was, or begin a new scan",
            ) from None

    def _check_continuable(self, fd: int, resume_at: int) -> None:
        size = os.fstat(fd).st_size
        if size < resume_at:
            raise SinkStartError(
                f"{self.name}: it holds {size} bytes, but {resume_at} were written before",
                "it was cut or replaced: put it back as it was, or begin a new scan",
            )
        if resume_at and os.pread(fd, 1, resume_at - 1) != b"\n":
            raise SinkStartError(
                f"{self.name}: at byte {resume_at} no line ends, as one did before",
                "it was changed or replaced: put it back as it was, or begin a new scan",
            )

    def _is_stream(self) -> bool:
        """Whether the name is that of a pipe or a character device."""
        try:
            mode = os.stat(self.filename).st_mode
        except OSError:  # a symbolic link to nowhere, say
            return False
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)

    def _claim(self, fd: int) -> None:
        """Lock the file for this process, so that no other nray empties or cuts it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkStartError(
                f"{self.name}: another process is writing to it", "name another file"
            ) from None
        except OSError:
            pass  # a file system without locks: as good as it gets there

    # ── continuing ──────────────────────────────────────────────────────────────────────────

    def _standing(self, fd: int, data: bytes) -> int:
        """How many bytes at the head of `data` stand in the file, behind our lines so far.

        Ends the replay at the end of the file. Raises `SinkError` if something else stands
        there; what agreed before it then counts as ours.
        """
        try:
            found = _read_at(fd, self._end, len(data))
            same = _same_bytes(found, data)
            hole = self._end + same
            if hole and same < len(found) and found[same] == 0:
                # No JSON has a zero byte. It is a block that was never written, because the
                # machine stopped; behind it nothing is certain, so it is all written again.
                # (Not at byte 0: that could be anybody's file, a disk image say.)
                os.ftruncate(fd, hole)
                found = found[:same]
        except OSError as error:
            raise SinkError(
                f"{self.name}: comparing what it holds failed: {error.strerror}"
            ) from error
        if same < len(found):
            raise self._foreign(data[: data.rfind(b"\n", 0, same) + 1])
        self._replaying = same == len(data)
        return same

    def _foreign(self, ours: bytes) -> SinkError:
        """Something stands in the file behind `ours` that we did not write; the error to raise."""
        self._end += len(ours)
        self._dirty = True
        return SinkError(
            f"{self.name}: the line at byte {self._end} is not the one that this scan wrote there",
            "something else wrote into the file: put it back as it was, or drop what follows "
            f"(truncate -s {self._end} {shlex.quote(self.filename)}); then resume again",
            written_events=ours.count(b"\n"),
        )

    # ── failed writes ───────────────────────────────────────────────────────────────────────

    def _repaired(self, fd: int, data: bytes, out: int, cause: OSError) -> SinkError:
        """Cut a torn line off the file's end, `out` bytes of `data` being out; the error to raise.

        In a file that is continued, the torn line may be an old one: it goes all the same.
        """
        whole = data.rfind(b"\n", 0, out) + 1
        events = data.count(b"\n", 0, whole)
        message = f"{self.name}: writing failed: {cause.strerror}"
        if not self._regular:
            if cause.errno == errno.EPIPE:
                return SinkClosed(f"{self.name}: the reader has gone", written_events=events)
            return SinkError(message, written_events=events)
        self._torn = out - whole
        ending = "the file ends with its last whole event"
        try:
            self._cut(fd)
        except OSError as error:
            ending = f"its last line is torn ({self._torn} bytes): {error.strerror}"
        return SinkError(
            f"{message}; {ending}",
            _HINTS.get(cause.errno or 0, ""),
            retry=cause.errno in _NO_ROOM,
            written_events=events,
        )

    def _cut(self, fd: int) -> None:
        """Cut off the torn line that a failed write left, if any. Raises OSError."""
        # Counted back from the end as it is now: whoever rotates logs may have cut it.
        self._end = max(0, os.fstat(fd).st_size - self._torn)
        if self._torn:
            os.ftruncate(fd, self._end)
            self._torn = 0

    def _cut_again(self, fd: int) -> None:
        """As `_cut`, before the next write; some file systems need room even for that."""
        try:
            self._cut(fd)
        except OSError as error:
            raise SinkError(
                f"{self.name}: its last line is torn ({self._torn} bytes): {error.strerror}",
                _HINTS.get(error.errno or 0, ""),
                retry=error.errno in _NO_ROOM,
            ) from error

    def _open_fd(self) -> int:
        if self._fd is None:
            raise SinkError(f"{self.name}: it is not open")
        return self._fd

    def _release(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _sync_directory(path: str, fsync: Callable[[int], None] = os.fsync) -> None:
    """Bring the names in a directory onto the disk, where that is possible. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # one that this user may not read
        return
    try:
        fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(fd)


def _read_at(fd: int, start: int, count: int) -> bytes:
    """`count` bytes of the file from `start` on; fewer only where it ends."""
    data = os.pread(fd, count, start)
    while len(data) < count and (more := os.pread(fd, count - len(data), start + len(data))):
        data += more
    return data


def _same_bytes(a: bytes, b: bytes) -> int:
    """The length of what both begin with."""
    if a == b[: len(a)]:  # nearly always
        return len(a)
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
