"""One exception for a configuration that its user has to mend, holding every mistake found."""

from __future__ import annotations

import msgspec

from nray import UserError

#: Longest piece of a user's file that is quoted back: fits a line of 80 columns with the rest.
_QUOTED_CHARS_MAX = 40

#: Longest path of a key in a message; the longest right one has 55 characters.
_KEY_CHARS_MAX = 72


class Problem(msgspec.Struct, frozen=True):
    """One mistake.

    Attributes:
        file: the name of the file, as the user gave it.
        line: counted from 1; 0 where the mistake belongs to no line.
        key: the path of the key as the user wrote it; empty for the file as a whole.
        seen: what is wrong.
        right: what would be right.
    """

    file: str
    line: int
    key: str
    seen: str
    right: str = ""

    @property
    def message(self) -> str:
        """``FILE:LINE: KEY: what is wrong``, without the parts that there are none of."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.seen) if part)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.right}" if self.right else self.message


class ConfigError(UserError):
    """A configuration that cannot be used; ``problems`` lists why, in the order of the lines."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        if len(problems) == 1:
            super().__init__(problems[0].message, problems[0].right)
        else:
            lines = "\n".join(str(problem) for problem in problems).replace("\n", "\n  ")
            super().__init__(f"{problems[0].file}: {len(problems)} mistakes", lines)


class Wrong(Exception):
    """A value that a kind refuses; the reader adds file, line and key to make a `Problem`."""

    def __init__(self, seen: str, right: str) -> None:
        super().__init__(seen)
        self.seen = seen
        self.right = right


def quoted(text: str) -> str:
    """The text for a message: in quotes, cut, and free of what would move a terminal's cursor."""
    return f'"{printable(text, _QUOTED_CHARS_MAX)}"'


def printable(text: str, chars_max: int = _KEY_CHARS_MAX) -> str:
    """The text cut to a readable length, anything unprintable shown as an escape."""
    cut = text if len(text) <= chars_max else text[: chars_max - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
