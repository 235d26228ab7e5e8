"""One writer for a ledger: a lock that a killed process lets go of.

It is `flock` on a file beside the ledger. Not on the ledger itself: SQLite locks that with POSIX
locks, all of which a process loses as soon as it closes any descriptor of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from nray.ledger.errors import LedgerError, LedgerRefused

#: The one before us may remove the file between our opening and locking it; we then begin
#: again. More often than so many times in a row, something else is wrong.
_TRIES: Final = 20
_PID_BYTES_MAX: Final = 20


class WriterLock:
    """Held from when it is made until `release`, or until the process ends in whatever way.

    Raises:
        LedgerRefused: another process has it, or the file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = f"{path}-lock"
        self._fd = self._take(path)
        # Only for the message of whoever comes next: a full disk is no reason to stop here.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go, and remove the file. Harmless when repeated."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1

    def _take(self, path: str) -> int:
        for _ in range(_TRIES):
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise LedgerRefused(
                    f"{path}: cannot make {self.path}: {error.strerror}",
                    "the directory of a ledger must be there and writable: choose another place",
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(fd)
                os.close(fd)
                raise LedgerRefused(
                    f"{path}: another nray{holder} is writing this ledger",
                    "wait for its end, or use another file; `nray status` may read it meanwhile",
                ) from None
            except OSError as error:
                os.close(fd)
                raise LedgerRefused(
                    f"{path}: its file system has no locks: {error.strerror}",
                    "keep the ledger on a local disk",
                ) from error
            if self._is_in_place(fd):
                return fd
            os.close(fd)
        raise LedgerError(f"{path}: {self.path} keeps disappearing")

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False


def _holder(fd: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(fd, _PID_BYTES_MAX, 0).decode("ascii", "replace").strip()
        if text.isdigit():
            return f" (process {text})"
    return ""
