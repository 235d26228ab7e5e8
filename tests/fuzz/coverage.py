"""Which lines of nray followed which: what tells a new input from one more of the same.

A trace function (Python 3.11 has no `sys.monitoring`) that looks only at the rooms a peer's words
pass through. Compiled code is not seen; its refusals are, by their words (`laws.feature`).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import nray

_ROOT: Final = str(Path(nray.__file__).parent)
_ROOMS: Final = tuple(f"{_ROOT}/{room}/" for room in ("wire", "server", "node", "targets"))
_LINE_BITS: Final = 13


class Coverage:
    """Edges that were seen since the last `take`."""

    def __init__(self) -> None:
        self._new: set[int] = set()
        # By id: a code object's own hash goes over all that it holds. Kept alive with it.
        self._known: dict[int, tuple[int | None, CodeType]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note edges within the block."""
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def take(self) -> set[int]:
        """The edges since the last time."""
        new, self._new = self._new, set()
        return new

    def _call(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        known = self._known.get(id(code))
        if known is None:
            known = self._meet(code)
        number = known[0]
        if number is None:
            return None
        add = self._new.add
        previous = 0

        def line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal previous
            if event == "line":
                now = frame.f_lineno
                add((number << _LINE_BITS | previous) << _LINE_BITS | now)
                previous = now
            return line

        return line

    def _meet(self, code: CodeType) -> tuple[int | None, CodeType]:
        number = None
        if code.co_filename.startswith(_ROOMS):
            # Of its place, not of when it was met: two processes then count alike.
            place = f"{code.co_filename[len(_ROOT) :]}:{code.co_firstlineno}:{code.co_name}"
            number = zlib.crc32(place.encode())
        known = self._known[id(code)] = (number, code)
        return known
