"""The three shapes of a YAML document, as plain structs that know their line.

They keep what a value's reader needs and yaml's own nodes make awkward: whether a scalar was
quoted, and how (escapes mean different things), and no guessing of types.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from nray.config.errors import printable, quoted

#: Plain scalars that mean "no value" (YAML 1.1, as the first nray's parser reads it).
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Reference(msgspec.Struct, frozen=True):
    """A value that stands elsewhere.

    Attributes:
        tag: ``!env`` or ``!file``.
        name: of the variable or the file, as the user wrote it.
    """

    tag: str
    name: str

    def __str__(self) -> str:
        return f"{self.tag} {printable(self.name)}"


class Scalar(msgspec.Struct, frozen=True):
    """A single value.

    Attributes:
        text: the value after YAML's own unquoting.
        line: where it starts, counted from 1.
        plain: written without quotes, so that it may be a number, a truth value or nothing.
        double_quoted: YAML has already read its backslash escapes.
        reference: what the text was got by, or, while it is empty, is to be got by. Such a text
            is never shown; it is neither plain nor quoted, for nobody quotes in a variable.
    """

    text: str
    line: int = 0
    plain: bool = True
    double_quoted: bool = False
    reference: Reference | None = None

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS


class Sequence(msgspec.Struct, frozen=True):
    """A list."""

    items: tuple[Node, ...]
    line: int = 0


class Mapping(msgspec.Struct, frozen=True):
    """A section: keys in the order written, duplicates included."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int = 0


Node: TypeAlias = Scalar | Sequence | Mapping


def describe(node: Node) -> str:
    """The node in a few words, for a message."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a section with keys of its own"
    if node.reference is not None:
        return f"the value of {node.reference}"
    if node.is_null:
        return "no value"
    return (
        node.text
        if node.plain and node.text.isalnum() and len(node.text) < 24
        else (quoted(node.text))
    )
