"""The outputs of ``nray scan``, with what a command line wants of them besides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nray.events.json_file import JsonFileSink, json_file_name
from nray.events.sink import SinkStartError
from nray.events.terminal import TerminalSink

if TYPE_CHECKING:
    from nray.cli.progress import Progress
    from nray.events.model import Event


class OutputFile(JsonFileSink):
    """The file of ``--output``. It can be opened early: before the first probe is sent.

    Args:
        filename: as the user wrote it; what messages call it, and what its cursor goes by.
        directory: where that is relative to; empty for the working directory.
        resume_at: bytes of it that hold what it was given by a scan that now goes on.
    """

    _is_ready = False

    def __init__(self, filename: str, directory: str = "", resume_at: int | None = None) -> None:
        super().__init__(os.path.join(directory, filename), resume_at=resume_at)
        self.name = json_file_name(filename)

    def open(self) -> None:
        """Open it, unless it is. Raises `SinkStartError`, without words about configurations."""
        if self._is_ready:
            return
        try:
            super().open()
        except SinkStartError as error:
            hint = error.hint
            if "overwriteExisting" in hint:
                hint = "move it away, or name another file"
            raise SinkStartError(error.message, hint) from error
        self._is_ready = True


class TidyTerminal(TerminalSink):
    """Prints results where the progress line was, never behind it."""

    def __init__(self, format: str, progress: Progress) -> None:
        super().__init__(format)
        self._progress = progress

    def write(self, events: Sequence[Event]) -> None:
        """As TerminalSink."""
        with self._progress.away():
            super().write(events)
