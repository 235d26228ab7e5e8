"""The kinds of values: how each is read from a node, written back, and called in the manual.

A kind knows nothing of keys, files or lines: it raises `Wrong`, and the reader adds where. A new
kind is one class here and one constant at the foot.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from typing import Any, ClassVar

from nray.config.discovery import DiscoveryError, format_discovery, parse_discovery
from nray.config.durations import DurationError, format_duration, parse_duration
from nray.config.errors import Wrong, quoted
from nray.config.nodes import Mapping, Node, Scalar, Sequence, describe
from nray.config.payloads import format_payload, parse_payload
from nray.config.secret import MASK, SecretText

#: What a node is called by has 160 characters at most before they are escaped.
NODE_PATTERN_CHARS_MAX = 320

_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})

# Decimal only, no leading zeros: 010 is eight to YAML 1.1 and ten to most people.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9_]{0,24})")
_FLOAT = re.compile(r"-?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]{1,3})?")

#: How a rate of ``auto`` is held.
AUTO_RATE = -1.0


class Kind:
    """One kind of value; ``name`` is what the manual calls it."""

    name: str = ""
    #: Whether a key without a value means the default.
    may_be_null: ClassVar[bool] = True

    def read(self, node: Node) -> Any:
        """The value of a node that is not null; raises `Wrong`."""
        raise NotImplementedError

    def write(self, value: Any) -> object:
        """What YAML is to hold so that `read` gives the value again."""
        return value


class Bool(Kind):
    """True or false, as YAML 1.1 writes them without quotes: nothing else passes for them."""

    name = "true or false"

    def read(self, node: Node) -> bool:
        if isinstance(node, Scalar) and (node.plain or node.reference):
            if node.text in _TRUE:
                return True
            if node.text in _FALSE:
                return False
        raise Wrong(f"{describe(node)} is neither true nor false", "write true or false, unquoted")


class Int(Kind):
    """A whole number within bounds; quotes around it are no matter."""

    name = "whole number"

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def read(self, node: Node) -> int:
        if isinstance(node, Scalar) and _INTEGER.fullmatch(node.text):
            number = int(node.text.replace("_", ""))
            if self.low <= number <= self.high:
                return number
            raise Wrong(f"{describe(node)} is out of range", self._right())
        raise Wrong(f"{describe(node)} is no whole number", self._right())

    def _right(self) -> str:
        return f"write a whole number from {self.low} to {self.high}"


class AutoInt(Int):
    """A whole number, or the word ``auto``, which is held as 0."""

    name = "auto or a whole number"

    def read(self, node: Node) -> int:
        if isinstance(node, Scalar) and node.text.casefold() == "auto":
            return 0
        return super().read(node)

    def write(self, value: int) -> object:
        return value or "auto"

    def _right(self) -> str:
        return f"write auto, or {super()._right().removeprefix('write ')}"


class Rate(Kind):
    """Probes a second above 0, or the word ``none``, which is held as 0.0."""

    name = "none or a number"
    _right = "write a number above 0, or none for no limit"

    def read(self, node: Node) -> float:
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no number", self._right)
        if node.text.casefold() == "none":
            return 0.0
        if not _FLOAT.fullmatch(node.text):
            raise Wrong(f"{describe(node)} is no number", self._right)
        rate = float(node.text.replace("_", ""))
        if not math.isfinite(rate) or rate <= 0:
            raise Wrong(f"{describe(node)} is no rate", self._right)
        return rate

    def write(self, value: float) -> object:
        if not value:
            return "none"
        return int(value) if value.is_integer() and value < 1e15 else value


class AutoRate(Rate):
    """The same, or the word ``auto``, which is held as `AUTO_RATE`."""

    name = "none, auto or a number"
    _right = "write a number above 0, none for no limit, or auto"

    def read(self, node: Node) -> float:
        if isinstance(node, Scalar) and node.text.casefold() == "auto":
            return AUTO_RATE
        return super().read(node)

    def write(self, value: float) -> object:
        return "auto" if value == AUTO_RATE else super().write(value)


class Duration(Kind):
    """A Go duration above 0, held as seconds.

    Args:
        bare_seconds: a number without a unit means seconds (keys under ``internal``). Elsewhere
            it is refused: the first nray took it for nanoseconds, which nobody ever meant.
        write_bare: written back as that bare number where it is whole.
    """

    name = "duration"

    def __init__(self, *, bare_seconds: bool = False, write_bare: bool = False) -> None:
        self._bare_seconds = bare_seconds
        self._write_bare = write_bare

    def read(self, node: Node) -> float:
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no duration", "write 2500ms, 15s or 1m30s, say")
        text = node.text
        if self._bare_seconds and _FLOAT.fullmatch(text):
            text += "s"
        try:
            seconds = parse_duration(text)
        except DurationError as error:
            raise Wrong(error.seen, error.right) from None
        if seconds <= 0:
            raise Wrong(f"{quoted(node.text)} is no time at all", "write a duration above 0")
        return seconds

    def write(self, value: float) -> object:
        if self._write_bare and value.is_integer():
            return int(value)
        return format_duration(value)


class Text(Kind):
    """Text on one line. Numbers pass; an unquoted true or no does not, being no text to YAML."""

    name = "text"

    def read(self, node: Node) -> str:
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no text", "write text, in quotes if need be")
        if node.plain and node.text in _TRUE | _FALSE:
            raise Wrong(f"{node.text} is no text to YAML", f'write it in quotes: "{node.text}"')
        # A NUL or a line break would fail only much later, as a name of a file or a host.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in node.text):
            raise Wrong(f"{quoted(node.text)} holds a control character", "write it without")
        return node.text


class Secret(Kind):
    """Text that is never shown again, not even in a complaint about it."""

    name = "text"

    def read(self, node: Node) -> SecretText:
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no text", "write text, in quotes if need be")
        try:
            return SecretText(TEXT.read(node))
        except Wrong:
            raise Wrong(
                "a true or false without quotes, or a control character",
                "write text without control characters, in quotes",
            ) from None

    def write(self, value: SecretText) -> object:
        return MASK if value else ""


class Regex(Text):
    """A regular expression."""

    name = "regular expression"

    def read(self, node: Node) -> str:
        text = super().read(node)
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise Wrong(f"{quoted(text)}: {error}", "write a regular expression") from None
        return text


class Choice(Text):
    """One of a few words, in any case."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self.name = " or ".join(words)

    def read(self, node: Node) -> str:
        text = super().read(node).strip().casefold()
        if text in self._words:
            return text
        near = difflib.get_close_matches(text[:40], self._words, 1)
        mean = f" (did you mean {near[0]}?)" if near else ""
        raise Wrong(f"{describe(node)} is not known here", f"write {self.name}{mean}")


class Discovery(Text):
    """How hosts are looked for; held as it is written out again."""

    name = "none, ping, arp, auto or syn:PORTS"

    def read(self, node: Node) -> str:
        text = super().read(node)
        try:
            return format_discovery(*parse_discovery(text))
        except DiscoveryError as error:
            raise Wrong(f"{describe(node)} is no way to look for hosts", str(error)) from None


class ListOf(Kind):
    """A list of a kind, held as a tuple. A single value is a list of one, or of the words in it.

    Entries without a value and empty ones are left out, so a template's ``[""]`` is an empty list;
    repeated ones fall away.
    """

    def __init__(self, item: Kind, *, at_least_one: bool = False) -> None:
        self._item = item
        self._at_least_one = at_least_one
        self.name = f"list ({item.name})"

    def read(self, node: Node) -> tuple[Any, ...]:
        if isinstance(node, Mapping):
            raise Wrong(f"{describe(node)} is no list", "write a list: [one, two]")
        values = dict.fromkeys(
            self._item.read(item)
            for item in self._items(node)
            if not (isinstance(item, Scalar) and (item.is_null or not item.text.strip()))
        )
        if self._at_least_one and not values:
            raise Wrong("an empty list", "write at least one")
        return tuple(values)

    def write(self, value: tuple[Any, ...]) -> object:
        return [self._item.write(item) for item in value]

    @staticmethod
    def _items(node: Node) -> tuple[Node, ...]:
        if isinstance(node, Sequence):
            return node.items
        assert isinstance(node, Scalar)
        words = node.text.split()
        if len(words) < 2:
            return (node,)
        return tuple(Scalar(word, node.line, node.plain) for word in words)


class PortExpression(Text):
    """``22``, ``8000-8100``, ``top25``, ``all``: read in full by `nray.targets`, here only so far
    that what cannot be ports is found with its line."""

    name = "port expression"
    _allowed = re.compile(r"[A-Za-z0-9:,*\[\]?_-]+")
    # Numbers that stand for themselves: not the count of top-100, not digits within a name.
    _numbers = re.compile(r"(?<![A-Za-z0-9])(?<![A-Za-z]-)[0-9]+(?![A-Za-z0-9])")
    _right = "write 22, 8000-8100, top25 or all, say; ports go from 1 to 65535"

    def read(self, node: Node) -> str:
        text = super().read(node).strip()
        if not self._allowed.fullmatch(text):
            raise Wrong(f"{describe(node)} is no port", self._right)
        for number in self._numbers.findall(text):
            if not 1 <= int(number[:6]) <= 65535:
                raise Wrong(f"{describe(node)} is no port", self._right)
        return text


class Subscription(Text):
    """A port that a module runs against: ``tcp/443``."""

    name = "protocol/port"

    def read(self, node: Node) -> str:
        text = super().read(node).strip().casefold()
        protocol, _, port = text.partition("/")
        if (
            protocol in ("tcp", "udp")
            and re.fullmatch(r"[1-9][0-9]{0,4}", port)
            and (int(port) <= 65535)
        ):
            return text
        raise Wrong(f"{describe(node)} names no port", "write tcp/443, say")


class NodePattern(Text):
    """A pattern as a shell has them, for the names of nodes (see `nray.pki.allowed`). What
    `fnmatch` would take literally and never was meant so is refused."""

    name = "pattern"
    _right = "write node7.example.org, *.example.org or nyc[0-9], say"

    def read(self, node: Node) -> str:
        text = super().read(node)
        if text != text.strip():
            raise Wrong(f"{quoted(text)} begins or ends with a space", "write it without")
        if len(text) > NODE_PATTERN_CHARS_MAX:
            raise Wrong(f"a pattern of {len(text)} characters", self._right)
        at = 0
        while (at := text.find("[", at)) >= 0:
            start = at + 1 + text.startswith("!", at + 1)
            end = text.find("]", start + 1)
            if end < 0:
                raise Wrong(f"{quoted(text)} has a [ without its ]", self._right)
            for low, high in re.findall(r"(.)-(.)", text[start:end]):
                if low > high:
                    raise Wrong(f"{quoted(text)} has an empty range, {low}-{high}", self._right)
            at = end + 1
        return text


class NodePatterns(ListOf):
    """At least one pattern; a single value is one, whatever spaces it has. No value is an error:
    it must not come to mean "all" that somebody took the last one out."""

    may_be_null = False

    def __init__(self) -> None:
        super().__init__(NodePattern(), at_least_one=True)

    def read(self, node: Node) -> tuple[Any, ...]:
        if isinstance(node, Scalar):
            node = Sequence((node,), node.line)
        return super().read(node)


class Payload(Kind):
    """Bytes, as text with escapes (see `payloads`)."""

    name = "bytes"

    def read(self, node: Node) -> bytes:
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no payload", r"write '\x6e\x72', say")
        return parse_payload(node.text, escapes=not node.double_quoted)

    def write(self, value: bytes) -> object:
        return Quoted(format_payload(value))


class Quoted(str):
    """Text that the writer must put in quotes: single ones, in which YAML reads no escapes,
    unless it holds what only double ones can."""


class States(ListOf):
    """Which states are shown besides open; a text may hold them with commas, as in ``--show``."""

    _known = ("closed", "filtered", "open|filtered", "error")

    def __init__(self) -> None:
        super().__init__(Choice(*self._known, "open"))
        self.name = f"list ({', '.join(self._known)})"

    def read(self, node: Node) -> tuple[Any, ...]:
        if isinstance(node, Scalar):
            node = Scalar(node.text.replace(",", " "), node.line, node.plain)
        # Open ports are always shown; naming them is no mistake.
        return tuple(state for state in super().read(node) if state != "open")


class MapOf(Kind):
    """A mapping whose keys are the user's, held as a dict. Read entry by entry."""

    #: Whether an entry may be a section, whose keys are then joined with dots.
    nests: ClassVar[bool] = False

    def read_entry(self, key: str, node: Node) -> tuple[Any, Any]:
        """The key and value of one entry, a null value included; raises `Wrong`."""
        raise NotImplementedError


class Payloads(MapOf):
    """UDP port to payload."""

    name = "port: bytes"

    def __init__(self) -> None:
        self._port = PORT
        self._payload = Payload()

    def read_entry(self, key: str, node: Node) -> tuple[int, bytes]:
        if isinstance(node, Scalar) and node.is_null:
            raise Wrong("no value", r"write the bytes to send: '\x6e\x72', say")
        return self._port.read(Scalar(key)), self._payload.read(node)

    def write(self, value: dict[int, bytes]) -> object:
        return {port: self._payload.write(payload) for port, payload in value.items()}


class Filter(MapOf):
    """Path into an event to the value it must have; None for any. Paths are kept as written."""

    name = "path: value"
    nests = True

    def read_entry(self, key: str, node: Node) -> tuple[str, bool | int | float | str | None]:
        if not all(key.split(".")):
            raise Wrong(f"{quoted(key)} is no path", "write result.port: 25, say")
        if not isinstance(node, Scalar):
            raise Wrong(f"{describe(node)} is no value", "write one number, text, true or false")
        return key, _plain_value(node)

    def write(self, value: dict[str, bool | int | float | str | None]) -> object:
        # Text stays text whatever it looks like: what a number is, we and YAML differ on (1e5).
        return {
            path: Quoted(wanted) if isinstance(wanted, str) else wanted
            for path, wanted in value.items()
        }


def _plain_value(node: Scalar) -> bool | int | float | str | None:
    if not node.plain and not node.reference:
        return node.text
    if node.is_null:
        return None
    if node.text in _TRUE or node.text in _FALSE:
        return node.text in _TRUE
    if _INTEGER.fullmatch(node.text):
        return int(node.text.replace("_", ""))
    if _FLOAT.fullmatch(node.text) and math.isfinite(float(node.text.replace("_", ""))):
        return float(node.text.replace("_", ""))
    return node.text


BOOL = Bool()
TEXT = Text()
TEXTS = ListOf(TEXT)
SECRET = Secret()
REGEX = Regex()
PORT = Int(1, 65535)
PORTS_TO_LISTEN = ListOf(PORT, at_least_one=True)
PORT_EXPRESSIONS = ListOf(PortExpression())
SUBSCRIPTIONS = ListOf(Subscription())
DURATION = Duration()
SECONDS = Duration(bare_seconds=True, write_bare=True)
DURATION_OR_SECONDS = Duration(bare_seconds=True)
RATE = Rate()
RATE_OR_AUTO = AutoRate()
DISCOVERY = Discovery()
PAYLOAD = Payload()
PAYLOADS = Payloads()
FILTER = Filter()
STATES = States()
NODE_PATTERNS = NodePatterns()
#: Rooms count with 64 bits; these are far above any use and below any overflow.
#: Beyond ten a scan only lasts and bothers.
RETRIES = Int(0, 10)
COUNT = Int(1, 2**31 - 1)
COUNT_OR_ZERO = Int(0, 2**31 - 1)
COUNT_OR_AUTO = AutoInt(1, 2**31 - 1)
#: A fork of each takes some 10 MB: more is a typing error.
PROCESSES = AutoInt(1, 1024)
#: Each pool keeps an account of every slice.
POOLS = Int(1, 1024)
SEED = Int(0, 2**64 - 1)
