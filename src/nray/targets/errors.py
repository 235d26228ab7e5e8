"""What is wrong with something a user wrote: raised at once, or noted and gone past."""

from __future__ import annotations

from nray import UserError

#: Notes kept word for word. A file that is no target file at all gives one for every line of
#: it, and nobody reads more than a screenful.
NOTES_MAX = 50


class TargetError(UserError):
    """A target, port or exclusion that cannot be used; names the place where it is written."""


class Notes:
    """Collects what was skipped; in strict use the first thing wrong is raised instead.

    Configuration files of the first nray may hold what it skipped with a warning, and go on
    working; on a command line a typing error must not silently scan less than was asked.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self._kept: list[str] = []
        self._more = 0

    def skip(self, place: str, what: str, hint: str = "") -> None:
        """Notes that something at ``place`` is skipped. Raises TargetError if strict."""
        if self.strict:
            raise TargetError(f"{place}: {what}", hint)
        if len(self._kept) < NOTES_MAX:
            self._kept.append(f"{place}: {what}; skipped")
        else:
            self._more += 1

    def add(self, place: str, what: str) -> None:
        """Notes something that is no reason to stop, strict or not."""
        if len(self._kept) < NOTES_MAX:
            self._kept.append(f"{place}: {what}")
        else:
            self._more += 1

    def all(self) -> tuple[str, ...]:
        """The notes in the order in which they came, the last telling how many more there are."""
        if self._more:
            return (*self._kept, f"and {self._more} more like these")
        return tuple(self._kept)
