"""Standard input, output and error, made safe to use.

- A stream that was closed by whoever started us (``>&-``) must not be a free number: the next
  socket would get it, and results would be written into a connection.
- What cannot be written to standard output is an error that names it. Words on standard error
  are lost without one: a scan must not fail for them.
"""

from __future__ import annotations

import fcntl
import io
import os
import sys
from typing import Any, TextIO

from nray import UserError


class OutputError(UserError):
    """Standard output does not take what is written to it; the disk is full, say."""

    exit_status = 1


class Output(io.TextIOWrapper):
    """Standard output; raises `OutputError` (a reader that has gone: BrokenPipeError)."""

    def write(self, text: str) -> int:
        """Write, or say why not."""
        try:
            return super().write(text)
        except OSError as error:
            raise _failed(error) from error

    def flush(self) -> None:
        """Flush, or say why not."""
        try:
            super().flush()
        except OSError as error:
            raise _failed(error) from error


class Words(io.TextIOWrapper):
    """Standard error; what it does not take is lost."""

    def write(self, text: str) -> int:
        """Write if that is possible."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            super().flush()
        except OSError:
            pass


def _failed(error: OSError) -> OSError | UserError:
    if isinstance(error, BrokenPipeError):
        return error
    return OutputError(f"cannot write to standard output: {error.strerror}")


def prepare() -> None:
    """Put streams of our own in place of Python's. Once, before anything is opened."""
    # The wrong direction on purpose: using a stream that was closed stays an error.
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        if not _is_open(fd):
            os.dup2(os.open(os.devnull, mode), fd)
    sys.stdout = Output(**_like(sys.stdout, 1), line_buffering=False)
    sys.stderr = Words(**_like(sys.stderr, 2), line_buffering=True)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _like(stream: TextIO | None, fd: int) -> dict[str, Any]:
    # Unprintable to this terminal's encoding is no reason to fail.
    if stream is None:
        return {"buffer": io.BufferedWriter(io.FileIO(fd, "wb", closefd=False)), "encoding": "utf8"}
    encoding = stream.encoding
    stream.flush()
    return {"buffer": stream.detach(), "encoding": encoding, "errors": "backslashreplace"}  # type: ignore[attr-defined]


def demand_output() -> None:
    """Raises UserError if standard output was closed before we began."""
    if fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise UserError(
            "standard output is closed, and results go there",
            "redirect it; >/dev/null throws them away",
        )


def finish(status: int) -> int:
    """Flush both; the exit status: 1 instead of 0 if something that was printed is lost."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OutputError as error:
        if status == 0:
            print(f"error: {error.message}", file=sys.stderr)
            status = error.exit_status
    sys.stderr.flush()
    return status
