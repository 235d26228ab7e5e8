"""A disk in memory: one directory, files that know what of them would survive a power cut.

Stands in for `os` in the json-file sink, which is the real one.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

#: Of a file that was not synced, each such block may or may not have been written.
BLOCK_BYTES: Final = 64
#: A full disk still takes up to so many bytes: the rest of a file's last block.
SLACK_BYTES: Final = 96


class ProcessDead(Exception):
    """Whoever calls was killed just now: nothing that it does has any effect."""


@dataclass(eq=False)
class File:
    """Bytes, of which the first `durable` survive everything."""

    data: bytearray
    durable: int = 0
    named: bool = False  # whether its name is on the disk
    holder: object = None  # the process that has it locked


@dataclass(frozen=True)
class _Stat:
    st_size: int
    st_mode: int = stat.S_IFREG | 0o644


class Disk:
    """What `nray.events.json_file` finds under the name ``os``.

    Args:
        draw: for what a power cut leaves.
        breach: told what must never be done to a file.
        writing: called before each write; the process may be dead after it.

    Attributes:
        process: the one that runs now, with an attribute ``dead``.
        full: there is no room.
    """

    def __init__(
        self, draw: random.Random, breach: Callable[[str], None], writing: Callable[[str], None]
    ) -> None:
        self._draw = draw
        self._breach = breach
        self._writing = writing
        self._descriptors: dict[int, File] = {}
        self._next = 1000
        self._slack = 0
        self._power_cuts = 0
        self.files: dict[str, File] = {}
        self.process: Any = None
        self._full = False
        self.path = SimpleNamespace(realpath=lambda name: name, dirname=lambda name: "/")

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)  # constants

    @property
    def full(self) -> bool:
        return self._full

    @full.setter
    def full(self, on: bool) -> None:
        self._full = on
        self._slack = self._draw.randrange(SLACK_BYTES)

    # ── what the sink calls ─────────────────────────────────────────────────────────────────

    def open(self, name: str, flags: int, mode: int = 0o777) -> int:
        self._alive()
        file = self.files.get(name)
        if file is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            file = self.files[name] = File(bytearray())
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists")
        self._next += 1
        self._descriptors[self._next] = file
        return self._next

    def stat(self, name: str) -> _Stat:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return _Stat(len(self.files[name].data))

    def fstat(self, fd: int) -> _Stat:
        return _Stat(len(self._descriptors[fd].data))

    def pread(self, fd: int, count: int, start: int) -> bytes:
        return bytes(self._descriptors[fd].data[start : start + count])

    def write(self, fd: int, data: memoryview) -> int:
        file = self._descriptors[fd]
        self._alive()
        if self._full:
            taken = min(self._slack, len(data))
            self._slack -= taken
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[:taken]
        before, cuts = len(file.data), self._power_cuts
        file.data += data
        self._writing("file")
        if self.process.dead:  # killed in the middle of it
            if cuts == self._power_cuts:
                del file.data[before + self._draw.randrange(len(data) + 1) :]
            raise ProcessDead
        return len(data)

    def ftruncate(self, fd: int, length: int) -> None:
        self._alive()
        file = self._descriptors[fd]
        gone = file.data[length:]
        if b"\n" in gone and 0 not in gone:  # zeros: blocks that a power cut left unwritten
            self._breach(f"whole lines were cut off the output: {bytes(gone)!r}")
        del file.data[length:]
        file.durable = min(file.durable, length)

    def fsync(self, fd: int) -> None:
        self._alive()
        self._writing("sync")
        self._alive()
        file = self._descriptors[fd]
        file.durable = len(file.data)

    def close(self, fd: int) -> None:
        file = self._descriptors.pop(fd)
        file.holder = None

    def flock(self, fd: int, how: int) -> None:
        file = self._descriptors[fd]
        if file.holder is not None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        file.holder = self.process

    def sync_directory(self, path: str) -> None:
        self._alive()
        for file in self.files.values():
            file.named = True

    def _alive(self) -> None:
        if self.process.dead:
            raise ProcessDead

    # ── what happens to it ──────────────────────────────────────────────────────────────────

    def process_died(self) -> None:
        """The kernel closes what it had open."""
        for fd in list(self._descriptors):
            self.close(fd)

    def power_cut(self) -> None:
        """Of what was not synced, some is gone: the end, or blocks in between, or a whole file."""
        self._power_cuts += 1
        for name, file in list(self.files.items()):
            if not file.named and not file.durable and self._draw.random() < 0.3:
                del self.files[name]
                continue
            loose = len(file.data) - file.durable
            kept = file.durable + (self._draw.randrange(loose + 1) if loose else 0)
            if kept and self._draw.random() < 0.5:
                self._leave_holes(file, kept)
            else:
                del file.data[kept:]
            file.durable = len(file.data)
            file.named = True

    def _leave_holes(self, file: File, start: int) -> None:
        """Zeros from ``start`` to the end of its block, and where else there is no luck."""
        at = start
        while at < len(file.data):
            end = min(len(file.data), (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
            if at == start or self._draw.random() < 0.5:
                file.data[at:end] = bytes(end - at)
            at = end
