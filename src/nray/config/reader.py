"""YAML text to a `Config`, with every mistake found on the way.

Keys are taken in any case, nested or flat (``TLS.enabled``), or both: a section's keys are
gathered from all the ways they were written before it is read. A key without a value means its
default; a key given twice is a mistake, as is one that does not exist. A value may be a reference
(`references`): it is resolved before its kind reads it, and from then on never quoted.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nray.config import rules
from nray.config.errors import ConfigError, Problem, Wrong, printable
from nray.config.kinds import MapOf
from nray.config.nodes import Mapping, Node, Scalar, describe
from nray.config.references import as_written, holds_reference, resolved, unfit
from nray.config.schema import Config, Field, Section, fields, leaves
from nray.config.yamltext import TEXT_BYTES_MAX, read_document

#: More than a screen of mistakes helps nobody, and bounds the work that a bad file makes.
PROBLEMS_MAX = 20

#: Likeness (0 to 1, see difflib) below which a suggestion misleads more than it helps; a key of
#: another section has to be more alike.
_NEAR_HERE = 0.6
_NEAR_ELSEWHERE = 0.8


def load(path: str | Path) -> Config:
    """The configuration in a file.

    Raises:
        ConfigError: the file cannot be read, or what `loads` says.
    """
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from None
    return loads(decode(data, name), name)


def unreadable(name: str, error: OSError | ValueError) -> ConfigError:
    """What a file that cannot be read is told as."""
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(Problem(name, 0, "", f"cannot be read: {reason}"))


def decode(data: bytes, name: str) -> str:
    """The text of a file, of which at most `TEXT_BYTES_MAX` and one byte were read.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        # A file cut at the bound may end within a character; the bound is then the complaint.
        return data.decode("utf-8", "replace" if len(data) > TEXT_BYTES_MAX else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise ConfigError(
            Problem(name, line, "", f"not UTF-8 text ({byte})", "save the file as UTF-8")
        ) from None


def loads(text: str, name: str = "configuration", *, follow: bool = True) -> Config:
    """The configuration in a text; ``name`` stands for the file in messages, and for the directory
    where relative references begin. Empty: all defaults.

    Args:
        follow: whether references are resolved. If not, they have their keys' defaults as values,
            and what keys demand of each other is not asked: for a text that `writer` made.

    Raises:
        ConfigError: with up to `PROBLEMS_MAX` problems, in the order of the lines.
    """
    document = read_document(text, name, references=True)
    if document is None or (isinstance(document, Scalar) and document.is_null):
        return Config()
    if not isinstance(document, Mapping):
        raise ConfigError(
            Problem(
                name,
                document.line,
                "",
                f"{describe(document)} is no configuration",
                "write keys and values: host: 127.0.0.1",
            )
        )
    return _Reading(name, follow=follow).config(document)


_S = TypeVar("_S", bound=Section)
_V = TypeVar("_V")


def read_strictly(text: str, name: str, section: type[_S]) -> _S:
    """A section that is a document of its own, where nothing may be left to chance: a key without
    a value is a mistake, too. An empty text gives all defaults.

    Raises:
        ConfigError: as `loads`.
    """
    document = read_document(text, name)
    if document is None or (isinstance(document, Scalar) and document.is_null):
        return section()
    if not isinstance(document, Mapping):
        right = f"write keys and values; the keys are {_keys(section)}"
        seen = f"{describe(document)} is no section"
        raise ConfigError(Problem(name, document.line, "", seen, right))
    read: _S = _Reading(name, section, strict=True).section(document)
    return read


class _Given(msgspec.Struct, frozen=True):
    """One key as it stands in the file.

    Attributes:
        rest: what is left of the key below the section at hand; ``enabled`` of ``TLS.enabled``.
        written: the whole path from the top, as the user wrote it.
    """

    rest: str
    written: str
    line: int
    node: Node


class _Full(Exception):
    """Enough problems: stop reading."""


class _Reading:
    """Reads one document. Used once; holds the problems found and where each key stands."""

    def __init__(
        self,
        name: str,
        root: type[Section] = Config,
        *,
        strict: bool = False,
        follow: bool = True,
    ) -> None:
        self._name = name
        self._root = root
        self._strict = strict
        self._follow = follow
        self._problems: list[Problem] = []
        # Full paths of the schema: to where they were written, and those that could not be read.
        self._places: dict[str, _Given] = {}
        self._failed: set[str] = set()
        self._directory = Path(name).parent
        self._references: dict[str, Scalar | tuple[Scalar, ...]] = {}

    def config(self, document: Mapping) -> Config:
        config = Config()
        try:
            config = self._section(Config, self._below("", document), "")
            config = msgspec.structs.replace(config, references=self._references)
            if self._follow:
                config = self._tls_by_certificates(config)
                self._check_relations(config)
        except _Full:
            pass
        self._raise()
        return config

    def section(self, document: Mapping) -> Any:
        """The document as the section that is its root."""
        section = None
        try:
            section = self._section(self._root, self._below("", document), "")
        except _Full:
            pass
        self._raise()
        return section

    def _raise(self) -> None:
        if self._problems:
            raise ConfigError(*sorted(self._problems, key=lambda problem: problem.line))

    # ── sections ────────────────────────────────────────────────────────────────────────────

    def _section(self, section: type[Section], given: Iterable[_Given], path: str) -> Any:
        by_key = {field.key.casefold(): field for field in fields(section)}
        groups: dict[str, list[_Given]] = {}
        for entry in given:
            head, dot, rest = entry.rest.partition(".")
            field = by_key.get(head.strip().casefold())
            if field is None or (dot and not rest):
                self._unknown(section, path, entry)
                continue
            below = _Given(rest, entry.written, entry.line, entry.node)
            groups.setdefault(field.key, []).append(below)
        values = {}
        for field in fields(section):
            if field.key in groups:
                values[field.attribute] = self._field(field, groups[field.key], path + field.key)
        return section(**values)

    def _field(self, field: Field, given: list[_Given], path: str) -> Any:
        self._places[path] = given[0]
        if field.section is not None:
            return self._section(field.section, self._gather(given, path), f"{path}.")
        if isinstance(field.kind, MapOf):
            return self._map(field.kind, self._gather(given, path), path)
        return self._leaf(field, given, path)

    def _gather(self, given: list[_Given], path: str) -> list[_Given]:
        """The keys of a section from all the places where some were written."""
        gathered = []
        whole: _Given | None = None
        for entry in given:
            if entry.rest:
                gathered.append(entry)
                continue
            if whole is not None:
                self._twice(entry, whole, path)
                continue
            whole = entry
            if isinstance(entry.node, Mapping):
                gathered.extend(self._below(entry.written, entry.node))
            elif not (isinstance(entry.node, Scalar) and entry.node.is_null):
                self._problem(
                    entry,
                    path,
                    f"{describe(entry.node)} is no section",
                    f"write its keys below it, indented, or as {path}.KEY: VALUE",
                )
        return gathered

    @staticmethod
    def _below(written: str, mapping: Mapping) -> list[_Given]:
        prefix = f"{written}." if written else ""
        return [
            _Given(key.text, prefix + key.text, key.line, value) for key, value in mapping.entries
        ]

    # ── values ──────────────────────────────────────────────────────────────────────────────

    def _leaf(self, field: Field, given: list[_Given], path: str) -> Any:
        assert field.kind is not None
        first, *others = given
        for other in others:
            self._twice(other, first, path)
        for entry in given:
            if entry.rest:
                self._problem(entry, path, "no such key", f"{path} has no keys of its own")
                return field.default
        if isinstance(first.node, Scalar) and first.node.is_null:
            if self._strict or not field.kind.may_be_null:
                self._problem(first, path, "no value", "give it one, or remove the key")
            return field.default
        if not self._follow and holds_reference(first.node):
            self._remember(path, first.node)
            return field.default
        try:
            value = self._read(field.kind.read, field.kind.name, first.node)
        except Wrong as wrong:
            self._problem(first, path, wrong.seen, wrong.right)
            return field.default
        self._remember(path, first.node)
        return value

    def _read(self, read: Callable[[Node], _V], what: str, node: Node) -> _V:
        """What a kind makes of a node; no complaint tells what a reference has brought."""
        if not holds_reference(node):
            return read(node)
        if not self._follow:
            return read(Scalar("", plain=False))
        value = resolved(node, self._directory)
        try:
            return read(value)
        except Wrong:
            raise unfit(node, value, what) from None

    def _remember(self, path: str, node: Node) -> None:
        if holds_reference(node):
            self._references[path] = as_written(node)

    def _map(self, kind: MapOf, given: list[_Given], path: str) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        firsts: dict[Any, _Given] = {}
        for entry in given:
            if kind.nests and isinstance(entry.node, Mapping) and entry.node.entries:
                below = [
                    _Given(f"{entry.rest}.{key.text}", f"{entry.written}.{key.text}", key.line, v)
                    for key, v in entry.node.entries
                ]
                nested = self._map(kind, below, path)
                for key in nested.keys() & values.keys():
                    self._twice(entry, firsts[key], path)
                values.update(nested)
                firsts.update(dict.fromkeys(nested, entry))
                continue
            node = entry.node
            if kind.nests and isinstance(node, Mapping):
                node = Scalar("", node.line)
            try:
                key, value = self._read(partial(kind.read_entry, entry.rest), kind.name, node)
            except Wrong as wrong:
                self._problem(entry, path, wrong.seen, wrong.right)
                continue
            if key in values:
                self._twice(entry, firsts[key], path)
            values[key] = value
            firsts[key] = entry
            self._remember(f"{path}.{key}", node)
        return values

    # ── what keys demand of each other ──────────────────────────────────────────────────────

    def _tls_by_certificates(self, config: Config) -> Config:
        """TLS is on as soon as certificates are given, unless the file itself says otherwise."""
        said = self._places.get("TLS.enabled")
        unsaid = said is None or (isinstance(said.node, Scalar) and said.node.is_null)
        if unsaid and config.tls.cert and config.tls.key:
            return msgspec.structs.replace(
                config, tls=msgspec.structs.replace(config.tls, enabled=True)
            )
        return config

    def _check_relations(self, config: Config) -> None:
        for broken in rules.relations(config):
            # A key that could not be read has had its own complaint.
            if self._failed & {broken.key, broken.because}:
                continue
            given = self._places.get(broken.key) or self._places.get(broken.because)
            line = given.line if given is not None else 0
            self._add(Problem(self._name, line, broken.key, broken.seen, broken.right))

    # ── problems ────────────────────────────────────────────────────────────────────────────

    def _problem(self, entry: _Given, path: str, seen: str, right: str) -> None:
        self._failed.add(path)
        self._add(Problem(self._name, entry.line, printable(entry.written), seen, right))

    def _twice(self, entry: _Given, first: _Given, path: str) -> None:
        self._problem(
            entry, path, f"given twice (line {first.line} has it first)", "keep one of them"
        )

    def _unknown(self, section: type[Section], path: str, entry: _Given) -> None:
        self._problem(
            entry,
            path + entry.rest,
            "unknown key",
            _suggestion(self._root, section, path, entry.rest),
        )

    def _add(self, problem: Problem) -> None:
        self._problems.append(problem)
        if len(self._problems) >= PROBLEMS_MAX:
            raise _Full


def _suggestion(root: type[Section], section: type[Section], path: str, rest: str) -> str:
    """The nearest right key: alike in this section, else of this name or alike in another one."""
    wanted = rest.casefold()[:64]
    here = {field.key.casefold(): path + field.key for field in fields(section)}
    near = difflib.get_close_matches(wanted.partition(".")[0], here, 1, _NEAR_HERE)
    if near:
        return f"did you mean {here[near[0]]}?"
    everywhere = [full for full, _ in leaves(root)]
    same = [full for full in everywhere if f".{full.casefold()}".endswith(f".{wanted}")]
    if same:
        return f"did you mean {' or '.join(same[:3])}?"
    names = {full.casefold().rpartition(".")[2]: full for full in everywhere}
    alike = difflib.get_close_matches(wanted.rpartition(".")[2], names, 1, _NEAR_ELSEWHERE)
    if alike:
        return f"did you mean {names[alike[0]]}?"
    return f"the keys here are {_keys(section)}"


def _keys(section: type[Section]) -> str:
    return ", ".join(field.key for field in fields(section))
