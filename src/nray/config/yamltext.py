"""YAML text to `nodes`, with bounds on what a document may cost.

Events of the YAML library are put together here rather than by its composer: that one recurses,
and lets aliases multiply. Here nesting is bounded before anything recurses, every alias is charged
with all the nodes it stands for, and tags are refused, so no tag can make an object; but for
``!env`` and ``!file`` where they are asked for, which are read as references and not followed here.

A complaint quotes neither an unknown tag nor an unknown alias: an unquoted password may look like
either.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from nray.config.errors import ConfigError, Problem, printable, quoted
from nray.config.nodes import Mapping, Node, Reference, Scalar, Sequence
from nray.config.references import TAGS

#: 1 MiB holds some 60,000 networks; more than that belongs in a targetFile.
TEXT_BYTES_MAX = 1 << 20

#: The deepest key of the schema lies at 4 (events.json-file.internal.synctimer); filters nest
#: a few more.
DEPTH_MAX = 24

#: More values, aliases written out, than a file of the size above holds by honest means.
NODES_MAX = 1 << 18

_STR_TAGS = frozenset({"!", "tag:yaml.org,2002:str"})

# libyaml is ten times faster; wheels of PyYAML carry it, a build from source may not.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document(text: str, name: str, *, references: bool = False) -> Node | None:
    """The one document of a YAML text; None if it holds nothing.

    Args:
        text: the file's content.
        name: the file's name, for messages.
        references: whether values may be references (`references`), which stay unresolved.

    Raises:
        ConfigError: not YAML, more than one document, a tag, an unknown or endless alias, or one
            of the bounds above exceeded. Always a single problem: what follows the first mistake
            of syntax is guesswork.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise _failure(name, text.count("\n", 0, error.start) + 1, "not UTF-8 text") from None
    if len(data) > TEXT_BYTES_MAX:
        raise _failure(
            name,
            0,
            f"more than {TEXT_BYTES_MAX >> 20} MiB",
            "put long lists into a file of their own: targetFile, blacklistFile",
        )
    try:
        return _Composer(name, yaml.parse(data, Loader=_Loader), references).document()
    except yaml.YAMLError as error:
        raise _syntax_error(name, data, error) from None


class _Composer:
    """Puts the events of one document together. Used once."""

    def __init__(self, name: str, events: Iterator[yaml.Event], references: bool) -> None:
        self._name = name
        self._references = references
        self._events = events
        # Anchor to its finished node, the number of nodes that it stands for, and its height. An
        # anchor is entered when its node ends: no alias can stand inside what it names.
        self._anchors: dict[str, tuple[Node, int, int]] = {}
        self._open_anchors: set[str] = set()
        self._nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self._fail(event, "a second document", "keep a single one: remove ---")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)[0]
        return root

    def _node(self, event: yaml.NodeEvent, depth: int) -> tuple[Node, int]:
        """The node that begins with an event, and its height: how deep it nests in itself."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        self._refuse_tag(event)
        self._check_depth(event, depth)
        before = self._nodes
        self._charge(event, 1)
        if event.anchor is None:
            return self._fill(event, depth)
        anchor = str(event.anchor)
        self._open_anchors.add(anchor)
        node, height = self._fill(event, depth)
        self._open_anchors.discard(anchor)
        self._anchors[anchor] = (node, self._nodes - before, height)
        return node, height

    def _fill(self, event: yaml.NodeEvent, depth: int) -> tuple[Node, int]:
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            if event.tag in TAGS:
                return Scalar("", line, False, reference=Reference(event.tag, event.value)), 0
            # implicit[0]: no quotes and no tag, so that YAML would guess a type.
            return Scalar(event.value, line, event.implicit[0], event.style == '"'), 0
        children = [self._node(child, depth + 1) for child in self._children()]
        nodes = [node for node, _ in children]
        height = max((height for _, height in children), default=0) + 1
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(tuple(nodes), line), height
        pairs = []
        for key, value in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key, Scalar) or key.reference is not None:
                seen = "a key that is a list, a section or a reference"
                raise self._fail(event, seen, "write plain keys")
            pairs.append((key, value))
        return Mapping(self._merged(event, pairs), line), height

    def _children(self) -> Iterator[yaml.NodeEvent]:
        for event in self._events:
            if isinstance(event, yaml.CollectionEndEvent):
                return
            yield event  # type: ignore[misc]

    def _alias(self, event: yaml.AliasEvent, depth: int) -> tuple[Node, int]:
        anchor = str(event.anchor)
        if anchor in self._open_anchors:
            raise self._fail(event, f"*{printable(anchor)} stands within what it names")
        if anchor not in self._anchors:
            raise self._fail(
                event, "an alias that names nothing", "text that begins with * goes in quotes"
            )
        node, nodes, height = self._anchors[anchor]
        self._charge(event, nodes)
        self._check_depth(event, depth + height)
        return node, height

    def _merged(
        self, event: yaml.NodeEvent, pairs: list[tuple[Scalar, Node]]
    ) -> tuple[tuple[Scalar, Node], ...]:
        """The pairs with ``<<: *other`` written out; keys of one's own win, then the earlier."""
        own = [(key, value) for key, value in pairs if not (key.plain and key.text == "<<")]
        if len(own) == len(pairs):
            return tuple(own)
        taken = {key.text.casefold() for key, _ in own}
        for key, value in pairs:
            if not (key.plain and key.text == "<<"):
                continue
            for source in value.items if isinstance(value, Sequence) else (value,):
                if not isinstance(source, Mapping):
                    raise self._fail(event, "<< with something that is no section")
                new = [pair for pair in source.entries if pair[0].text.casefold() not in taken]
                taken.update(key.text.casefold() for key, _ in new)
                own.extend(new)
        return tuple(own)

    def _check_depth(self, event: yaml.NodeEvent, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise self._fail(event, "nested too deep", f"nest at most {DEPTH_MAX} levels")

    def _charge(self, event: yaml.NodeEvent, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            raise self._fail(
                event,
                f"more than {NODES_MAX:,} values",
                "put long lists into a file of their own: targetFile, blacklistFile",
            )

    def _refuse_tag(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is None or tag in _STR_TAGS:
            return
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        if shown.startswith("!!"):
            raise self._fail(event, f"the tag {quoted(shown)} is not read", "remove it")
        if tag not in TAGS or not self._references:
            right = "text that begins with ! goes in quotes"
            known = "; the tags are !env NAME and !file PATH" if self._references else ""
            raise self._fail(event, "the tag is not read", right + known)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._fail(event, f"{tag} with a list or a section", f"write {tag} and one name")

    def _fail(self, event: yaml.Event, seen: str, right: str = "") -> ConfigError:
        return _failure(self._name, _line(event), seen, right)


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else int(event.start_mark.line) + 1


def _failure(name: str, line: int, seen: str, right: str = "") -> ConfigError:
    return ConfigError(Problem(name, line, "", seen, right))


def _syntax_error(name: str, data: bytes, error: yaml.YAMLError) -> ConfigError:
    """The library's complaint with file and line, and what most often is meant by it."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        problem = str(error.problem or error.context)
        return _failure(name, line, f"not YAML: {problem}", _SYNTAX_HINTS.get(problem, ""))
    # A character that YAML does not allow; the position counts characters or bytes, by parser.
    position = int(getattr(error, "position", None) or 0)
    character = getattr(error, "character", None)
    what = f" U+{character:04X}" if isinstance(character, int) else ""
    return _failure(
        name,
        data.count(b"\n", 0, position) + 1,
        f"a control character{what}",
        r'write it as an escape in double quotes, "\x00" say',
    )


#: What the library says, and what the user most likely did.
_SYNTAX_HINTS = {
    "exceeded maximum nesting depth": f"nest at most {DEPTH_MAX} levels",
    "found unknown escape character": (
        r"YAML knows no octal escapes: put it in single quotes, '\101', and nray reads it"
    ),
    "found character that cannot start any token": (
        "indent with spaces, not tabs; put text with @ ` % in quotes"
    ),
    "mapping values are not allowed in this context": (
        "check the indentation, and put text with a colon in quotes"
    ),
    "did not find expected key": "check the indentation and the quotes of the line above",
    "did not find expected ',' or ']'": "close the list with ]",
    "did not find expected ',' or '}'": "close the section with }",
}
