"""Files that are read again when they change, and what they held as long as they are bad.

A look costs a few `stat` calls and may be taken for each connection. What is read anew takes
effect only if it is good as a whole; a certificate that was replaced before its key, or half a
file, is told of once, and what was there before stays in use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from nray.pki.errors import PkiError

#: A file that was changed so short a time ago, ns, may be changed again without its times
#: telling (they move in steps, on some file systems of two seconds): it is compared by content.
UNSETTLED_NS = 2_000_000_000
#: Files that look unchanged, but for that, are compared so often at most, seconds: a list can have
#: megabytes, and connections come in floods.
COMPARE_EVERY_S = 0.1

T = TypeVar("T")


class Reloaded(Generic[T]):
    """What some files hold.

    Args:
        paths: all files that `load` reads.
        load: reads them; it raises PkiError for whatever is wrong.
        log: for the warning, and for the word that new files are in use.

    Attributes:
        value: what `load` returned when the files were last good.

    Raises:
        PkiError: they are not good now.
    """

    def __init__(
        self, paths: Sequence[str], load: Callable[[], T], log: logging.Logger | None = None
    ) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._log = log or logging.getLogger("nray.pki")
        self._marks = self._look()
        self._note_time()
        self._good = self._tried = self._content()
        self.value = load()
        self._fault = ""

    def refresh(self, *, insist: bool = False, anew: bool = False) -> bool:
        """Read the files again if they have changed; whether `value` is a new one.

        Args:
            insist: somebody asks for it: compare contents whatever the times say, and tell of a
                fault again that was told already.
            anew: something else that `load` goes by has changed.
        """
        marks = self._look()
        asked = insist or anew
        if marks == self._marks and not asked:
            if self._sure and not self._fault:
                return False
            if time.monotonic() - self._compared_at < COMPARE_EVERY_S:
                return False
        self._marks = marks
        self._note_time()
        content = self._content()
        if content is not None and content == self._tried and not asked:
            return False
        self._tried = content
        if content is not None and content == self._good and not anew:
            self._fault = ""
            return False
        try:
            value = self._load()
        except PkiError as error:
            self._tell(error.message, error.hint, insist=insist)
            return False
        except Exception as error:  # a mistake of ours must not end what runs
            self._tell(f"{', '.join(self._paths)}: {error!r}", "", insist=insist)
            return False
        self.value = value
        self._good = content
        self._fault = ""
        self._log.info("read again: %s", ", ".join(self._paths))
        return True

    def _tell(self, fault: str, hint: str, *, insist: bool) -> None:
        if fault == self._fault and not insist:
            return
        self._fault = fault
        self._log.warning(
            "%s%s; the earlier files stay in use", fault, f" ({hint})" if hint else ""
        )

    def _look(self) -> tuple[tuple[int, ...] | None, ...]:
        """What tells one state of the files from another without reading them."""
        return tuple(_mark(path) for path in self._paths)

    def _content(self) -> bytes | None:
        """A digest of all that stands in them; None if one cannot be read."""
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                with open(path, "rb") as file:
                    one = hashlib.file_digest(file, "sha256")
            except (OSError, ValueError):
                return None
            digest.update(one.digest())
        return digest.digest()

    def _note_time(self) -> None:
        """Before the files are read: whether a later change would show in their times."""
        before = time.time_ns() - UNSETTLED_NS
        self._sure = all(mark is not None and max(mark[:2]) < before for mark in self._marks)
        self._compared_at = time.monotonic()


def _mark(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
