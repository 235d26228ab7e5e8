"""One input: what a bad peer says, on one or more lines, and how it is kept in a file."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nray.wire.framing import HEADER_BYTES

#: The ends that are attacked.
SERVER: Final = "server"
NODE: Final = "node"

Talk = tuple[bytes, ...]


class Moved(bytes):
    """A frame as it was recorded, but not where it belongs."""

    __slots__ = ()


@dataclass(frozen=True)
class Case:
    """What is said to an end.

    Attributes:
        end: which end hears it.
        world: what is scanned, see `worlds`.
        lines: a talk for each connection, cut into what were frames before they were mutated.
        together: all lines at once, in turns; else one after the other.
        silent: at the end of a line say nothing more; else close it.
        alone: one node for each machine.
    """

    end: str
    world: str
    lines: tuple[Talk, ...]
    together: bool = False
    silent: bool = False
    alone: bool = False

    def with_line(self, number: int, line: Sequence[bytes]) -> Case:
        """The same with another talk on one line."""
        lines = list(self.lines)
        lines[number] = tuple(line)
        return replace(self, lines=tuple(lines))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(frame) for line in self.lines for frame in line)

    @property
    def name(self) -> str:
        """Short, and the same for the same case."""
        return f"{self.end}-{zlib.crc32(self.text().encode()):08x}"

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "end": self.end,
                "world": self.world,
                "together": self.together,
                "silent": self.silent,
                "alone": self.alone,
                "lines": [[_written(frame) for frame in line] for line in self.lines],
            }
        )

    @classmethod
    def of(cls, text: str) -> Case:
        """The inverse of `text`."""
        known: dict[str, Any] = json.loads(text)
        lines = [tuple(map(_read, line)) for line in known.pop("lines")]
        return cls(lines=tuple(lines), **known)


def _written(frame: bytes) -> str:
    """Base64; of a large frame, which is mostly one thing over and over, what zlib makes of it."""
    if len(frame) > 4096:
        return "z:" + base64.b64encode(zlib.compress(frame, 9)).decode()
    return base64.b64encode(frame).decode()


def _read(text: str) -> bytes:
    if text.startswith("z:"):
        return zlib.decompress(base64.b64decode(text[2:]))
    return base64.b64decode(text)


def load(path: Path) -> list[Case]:
    """The cases of a file, one a line."""
    return [Case.of(line) for line in path.read_text().splitlines() if line]


def save(path: Path, cases: Iterable[Case]) -> None:
    """Write cases to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(case.text() + "\n" for case in cases))


def frame(body: bytes) -> bytes:
    """A body with its length before it."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def frames_in(stream: bytes) -> list[bytes]:
    """An honest stream, cut into its frames with their headers; what is cut short is left out."""
    found, at = [], 0
    while at + HEADER_BYTES <= len(stream):
        end = at + HEADER_BYTES + int.from_bytes(stream[at : at + HEADER_BYTES], "big")
        if end > len(stream):
            break
        found.append(bytes(stream[at:end]))
        at = end
    return found
