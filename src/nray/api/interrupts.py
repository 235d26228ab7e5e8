"""Ctrl+C while a program still starts: it ends at once, without a word.

Until something has begun that must be ended in order, nothing is lost by that. And Python's own
way, an exception, is none amid imports: it comes out as a traceback, or CPython drops it (in a
callback, such as that of an import's lock) and the program goes on.

Out of reach are the some 25 ms of the interpreter's own start, before any code of ours runs.

Light on purpose: of our own modules it is the first that the command line imports.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal itself is a millisecond away: it makes enumerations

#: The exit status of what was interrupted.
EXIT_INTERRUPTED = 130


def end_at_once() -> None:
    """Let SIGINT end this process, until `take_over`. Where it is ignored it stays so (nohup, a
    shell's background); a handler of the caller's own is left alone, too."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _end)


def take_over() -> None:
    """From here on SIGINT is an exception again, for a loop or a ``finally`` to catch.

    trio watches over it only where it finds Python's own handler, so this comes before a loop.
    """
    if _signal.getsignal(_signal.SIGINT) is _end:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os._exit(EXIT_INTERRUPTED)
