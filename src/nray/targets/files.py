"""Where targets and exclusions are written: values of a key or flag, files, standard input.

All become entries: one piece of text each, with the place to name if it is wrong. Pieces are
parted by white space or commas, in files also over lines; ``#`` begins a comment there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from nray.targets.errors import TargetError

#: (text, source, line); line 0 where the source has no lines.
Entry = tuple[str, str, int]

#: Bytes of one line. The longest sensible line is a few thousand addresses; a longer one is no
#: text at all, and must not fill the memory before that is found out.
LINE_MAX = 1 << 20


def place(source: str, line: int) -> str:
    """How a message names the place of an entry."""
    return f"{source}:{line}" if line else source


def from_values(
    values: str | Iterable[object], source: str, stdin: BinaryIO | None = None
) -> Iterator[Entry]:
    """Entries of a flag's or key's values; ``-`` among them stands for standard input.

    Raises:
        TargetError: a value is no text (YAML makes 1.2 a number).
    """
    if isinstance(values, str):
        values = [values]
    for value in values:
        if not isinstance(value, str):
            raise TargetError(f"{source}: {value!r} is no text", "put it in quotes")
        for piece in value.replace(",", " ").split():
            if piece == "-":
                yield from from_file(piece, source, stdin)
            else:
                yield piece, source, 0


def from_file(path: str, source: str, stdin: BinaryIO | None = None) -> Iterator[Entry]:
    """Entries of a file; ``-`` is standard input, or ``stdin`` where one is given.

    Args:
        path: the file.
        source: the key or flag that names it, for messages about the file as a whole.

    Raises:
        TargetError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        if path == "-":
            yield from _from_stream(stdin or _standard_input(), "standard input")
        else:
            with open(path, "rb") as stream:
                yield from _from_stream(stream, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a closed stream
        reason = getattr(error, "strerror", None) or error
        shown = "standard input" if path == "-" else repr(path)
        raise TargetError(f"{source}: cannot read {shown}: {reason}") from None


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # a daemon's, say
        raise OSError("it is closed")
    return sys.stdin.buffer


def _from_stream(stream: BinaryIO, source: str) -> Iterator[Entry]:
    number = 0
    while line := stream.readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise TargetError(f"{source}:{number}: a line of more than {LINE_MAX} bytes")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            hint = "one or several targets on a line, comments after #"
            raise TargetError(f"{source}:{number}: no UTF-8 text", hint) from None
        for piece in text.partition("#")[0].replace(",", " ").split():
            yield piece, source, number
