"""The json-file sink: one JSON object a line, visible at once, and never half a line.

Each batch goes to the operating system whole, with a single write(), as soon as it comes. If
the system takes only part of it (the disk is full), the file is cut back to its last whole
line before the error is raised. What the system has is forced onto the disk (fsync) every
`synctimer_s` and on closing; a crash of nray loses nothing written, a crash of the machine at
most that much time.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
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


class JsonFileSink:
    """Writes events to a file, which it creates.

    Args:
        filename: relative to the working directory, or absolute. A pipe or a device
            (``/dev/stderr``) is written to as it is.
        overwrite_existing: empty an existing file instead of refusing to start.
        synctimer_s: seconds between two fsync calls at the least; 0 syncs after each batch.
        clock: seconds on any steady clock.
        write: os.write, or a test's stand-in for it.
    """

    def __init__(
        self,
        filename: str,
        overwrite_existing: bool = False,
        synctimer_s: float = 10.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        write: Write = os.write,
    ) -> None:
        self.filename = filename
        self.name = f"json-file {filename}"
        self.abandonable = False
        self.overwrite_existing = overwrite_existing
        self.synctimer_s = synctimer_s
        self._clock = clock
        self._write = write
        self._fd: int | None = None
        self._regular = True
        self._dirty = False
        self._synced_at = -math.inf

    def open(self) -> None:
        """Create the file, or empty it if it may be overwritten.

        Raises `SinkStartError` if it exists and may not, or is in use, or cannot be made.
        """
        try:
            self._fd = self._opened()
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self.abandonable = not self._regular
            if self._regular:
                self._claim(self._fd)
                os.ftruncate(self._fd, 0)
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
        """Append the events. Raises `SinkError`, and leaves the file at a line's end if so."""
        data = encode_lines(events)
        fd = self._open_fd()
        try:
            self._dirty = True
            write_fully(fd, data, self._write)
        except PartialWrite as partial:
            raise self._repaired(fd, data, partial) from partial.cause

    def sync_due_s(self) -> float:
        """Seconds until the next fsync; infinity while there is nothing to sync."""
        if not self._dirty or not self._regular:
            return math.inf
        return max(0.0, self._synced_at + self.synctimer_s - self._clock())

    def sync(self) -> None:
        """Force what was written onto the disk. Raises `SinkError` if the disk fails."""
        if not self._dirty or not self._regular:
            return
        try:
            os.fsync(self._open_fd())
        except OSError as error:
            raise SinkError(
                f"{self.name}: the disk did not take it: {error.strerror}",
                "what was written since the last sync may be lost",
            ) from error
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

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
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

    def _repaired(self, fd: int, data: bytes, partial: PartialWrite) -> SinkError:
        """Cut a torn line off the file's end; the error to raise."""
        cause = partial.cause
        if not self._regular:
            if cause.errno == errno.EPIPE:
                return SinkClosed(f"{self.name}: the reader has gone")
            return SinkError(f"{self.name}: writing failed: {cause.strerror}")
        whole = data.rfind(b"\n", 0, partial.written) + 1
        torn = partial.written - whole
        hint = _HINTS.get(cause.errno or 0, "")
        message = f"{self.name}: writing failed: {cause.strerror}"
        if torn:
            try:
                # Counted back from the end as it is now: whoever rotates logs may have cut it.
                os.ftruncate(fd, max(0, os.fstat(fd).st_size - torn))
            except OSError as error:
                return SinkError(
                    f"{message}; its last line is torn ({torn} bytes): {error.strerror}", hint
                )
        return SinkError(f"{message}; the file ends with its last whole event", hint)

    def _open_fd(self) -> int:
        if self._fd is None:
            raise SinkError(f"{self.name}: it is not open")
        return self._fd

    def _release(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
