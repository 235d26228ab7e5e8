"""``!env NAME`` and ``!file PATH``: values that stand elsewhere than in the configuration.

What a reference yields may be a secret, so it is never quoted in a message: the reference is. It
is read each time that the configuration is, and kept nowhere but in the configuration in memory.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from nray.config.errors import Wrong, printable
from nray.config.nodes import Node, Reference, Scalar, Sequence

ENV = "!env"
FILE = "!file"
TAGS = frozenset({ENV, FILE})

#: A password, a token, a list of some thousand networks; more is not meant to be a value.
VALUE_BYTES_MAX = 1 << 16

# POSIX: what a shell can set.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def holds_reference(node: Node) -> bool:
    """Whether a value, or an entry of a list, is a reference."""
    if isinstance(node, Sequence):
        return any(holds_reference(item) for item in node.items)
    return isinstance(node, Scalar) and node.reference is not None


def resolved(node: Node, directory: Path) -> Node:
    """The node with what its references stand for as text; other nodes as they are.

    Args:
        directory: where relative paths begin.

    Raises:
        Wrong: a reference that leads nowhere.
    """
    if isinstance(node, Sequence):
        return Sequence(tuple(resolved(item, directory) for item in node.items), node.line)
    if not isinstance(node, Scalar) or node.reference is None:
        return node
    text = _value(node.reference, directory)
    return Scalar(text, node.line, plain=False, reference=node.reference)


def as_written(node: Node) -> Scalar | tuple[Scalar, ...]:
    """A node that holds references, as it is to be written again: no value of theirs is in it."""
    if isinstance(node, Sequence):
        return tuple(_bare(item) for item in node.items if isinstance(item, Scalar))
    assert isinstance(node, Scalar)
    return _bare(node)


def unfit(given: Node, value: Node, what: str) -> Wrong:
    """The complaint about a value that does not fit, without the value.

    Args:
        given: as it was written; ``value``: resolved.
        what: the kind of value that belongs there.
    """
    names = " ".join(str(each.reference) for each in _scalars(given) if each.reference)
    texts = [each.text for each in _scalars(value) if each.reference]
    if any(text.startswith("-----BEGIN ") for text in texts):
        return Wrong(
            f"{names} holds a certificate or key", "name its file here: the same without !file"
        )
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    size = f" ({lines} lines)" if lines > 1 else ""
    return Wrong(f"the value of {names}{size} does not fit here", f"it has to be: {what}")


def path_of(reference: Reference, directory: Path) -> Path:
    """The file that a ``!file`` means."""
    return directory / reference.name


def _bare(node: Scalar) -> Scalar:
    text = "" if node.reference else node.text
    return Scalar(text, 0, node.plain, node.double_quoted, node.reference)


def _scalars(node: Node) -> list[Scalar]:
    if isinstance(node, Sequence):
        return [scalar for item in node.items for scalar in _scalars(item)]
    return [node] if isinstance(node, Scalar) else []


def _value(reference: Reference, directory: Path) -> str:
    if reference.tag == ENV:
        return _variable(reference)
    return _content(reference, directory)


def _variable(reference: Reference) -> str:
    name = reference.name
    if not _NAME.fullmatch(name):
        # Not quoted: whoever mistakes !env for a way to mark a secret writes the secret here.
        raise Wrong(
            f"{ENV} is not followed by the name of a variable",
            f"write {ENV} NAME; a name is letters, digits and _, without $",
        )
    value = os.environ.get(name)
    if value is None:
        right = f"export {name} to this process, or check its spelling"
        raise Wrong(f"{reference}: the variable is not set", right)
    if not value:
        raise Wrong(f"{reference}: the variable is empty", f"give {name} a value")
    return value


def _content(reference: Reference, directory: Path) -> str:
    if not reference.name:
        raise Wrong(f"{FILE} is not followed by the name of a file", f"write {FILE} PATH")
    path = path_of(reference, directory)
    try:
        data = _read(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise Wrong(
            f"{reference}: cannot be read: {reason}", f"looked for {_shown(path)}"
        ) from None
    if data is None:
        raise Wrong(f"{reference}: {_shown(path)} is no regular file", "name one")
    if len(data) > VALUE_BYTES_MAX:
        raise Wrong(
            f"{reference}: more than {VALUE_BYTES_MAX >> 10} KiB", "a file with one value is meant"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Wrong(f"{reference}: the file is not UTF-8 text", "save it as UTF-8") from None
    # One line end, as editors and `echo` leave it; a second one would be meant.
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Wrong(f"{reference}: the file is empty", "write the value into it")
    return text


def _read(path: Path) -> bytes | None:
    """At most the bound and one byte; None for what is no regular file (a pipe could hang us)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(VALUE_BYTES_MAX + 1)
    finally:
        os.close(fd)


def _shown(path: Path) -> str:
    return printable(str(path), 200)
