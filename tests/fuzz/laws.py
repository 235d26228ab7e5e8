"""What must be true of every input, said without the code under test.

The talk's grammar and the bounds of its values are those of docs/protocol.md, written a second
time; a bound that is lost from `nray.wire` is missed here.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from nray.wire.errors import PeerFault, Reason, refusal
from nray.wire.framing import decode_server_message, encode_frame
from nray.wire.messages import Ask, Lease, Message, Refused, Register, Report, ServerMessage

#: Reasons that a bad peer may hear for what it says.
REASONS: Final = frozenset(each.value for each in Reason)
#: Characters of a refusal's text.
DETAIL_CHARS_MAX: Final = 256
#: Of what a node's user reads of it, with the words around.
WORDS_CHARS_MAX: Final = 800

#: A talk as letters: small for a node's words, large for a server's; docs/protocol.md, "States".
_LETTERS: Final = {
    "welcome": "W", "refused": "F", "registered": "R", "segment": "S", "lease": "L", "ack": "A",
    "pulse": "U", "shown": "O", "stop": "X", "register": "g", "ask": "k", "report": "p",
    "heartbeat": "h", "bye": "b",
}  # fmt: skip
_GRAMMAR: Final = re.compile(r"(W(g(R[SLAUOkph]*(X[AUOkph]*)?(b[SLAUOX]*)?)?)?)?F?", re.ASCII)
_TEXT_CHARS: Final = {"name": 32}
_ITEMS: Final = {"states": 16, "methods": 16, "udp_checks": 96, "udp_further": 96}
_BYTES: Final = {"hits": 917_504, "hosts": 69_632, "body": 16_776_192, "udp_payload": 65_507}


class Breach(Exception):
    """A law was broken."""


class Talk:
    """One connection as an end took it: every message that passed, judged as it passes."""

    def __init__(self) -> None:
        self.letters = ""
        self._asked = 0
        self._report = 0
        self._acked = 0

    def passes(self, message: Message, heard: bool = False) -> None:
        """Note a message that was said or taken; what we say ourselves is not looked into.

        Raises:
            Breach: it should not have been.
        """
        tag = str(message.__struct_config__.tag)
        self.letters += _LETTERS[tag]
        if not _GRAMMAR.fullmatch(self.letters):
            raise Breach(f"{tag} passed out of turn: …{self.letters[-40:]}")
        if heard:
            _bounds(tag, msgspec.to_builtins(message, builtin_types=(bytes,)), tag)
        match message:
            case Ask(leases):
                self._asked += leases
                if self._asked > 4096:
                    raise Breach(f"{self._asked} slices asked for at once")
            case Lease(start=start, count=count):
                self._asked -= 1
                if self._asked < 0:
                    raise Breach("a lease that was not asked for")
                if start + count >= 2**63:
                    raise Breach(f"a lease up to {start + count}")
            case Report(report, hits=hits):
                if self._report and report != self._report + 1:
                    raise Breach(f"report {report} after {self._report} passed")
                if len(hits) % 32:
                    raise Breach("half a hit passed")
                self._report = report
            case Register(leases=leases):
                if len(leases) > 4096 or len(set(leases)) < len(leases):
                    raise Breach("leases twice, or too many")


def _bounds(path: str, value: Any, key: str) -> None:
    match value:
        case bool() | None:
            pass
        case int():
            least = -1 if key == "preferred_pool" else 0
            if not least <= value < 2**63:
                raise Breach(f"{path} is {value}")
        case float():
            if not math.isfinite(value) or value < 0:
                raise Breach(f"{path} is {value}")
        case str():
            if len(value) > _TEXT_CHARS.get(key, 256):
                raise Breach(f"{path} has {len(value)} characters")
        case bytes():
            if len(value) > _BYTES.get(key, 65_507):
                raise Breach(f"{path} has {len(value)} bytes")
        case list() | tuple():
            if len(value) > _ITEMS.get(path.split(".")[-2] if key.isdecimal() else key, 4096):
                raise Breach(f"{path} has {len(value)} items")
            for each in value:
                _bounds(path, each, key)
        case dict():
            if key == "errors" and len(value) > 64:
                raise Breach(f"{path} has {len(value)} keys")
            for name, each in value.items():
                _bounds(path, name, "key")
                _bounds(f"{path}.{name}"[:200], each, str(name))


def check_fault(fault: PeerFault) -> None:
    """A refusal can be made of any fault, and what goes out can be read."""
    told = refusal(fault.reason, fault.detail)
    assert told == fault.refusal
    check_refused(decode_server_message(encode_frame(told)[4:]))


def check_refused(message: ServerMessage) -> Refused:
    """A refusal says why, in a word of the small set and in some of its own.

    Raises:
        Breach: it does not.
    """
    if not isinstance(message, Refused):
        raise Breach(f"not a refusal: {message!r:.200}")
    if message.reason not in REASONS:
        raise Breach(f"the reason {message.reason!r} is none")
    if not 0 < len(message.detail) <= DETAIL_CHARS_MAX:
        raise Breach(f"a detail of {len(message.detail)} characters")
    return message


_NUMBERS = re.compile(r"0x[0-9a-f]+|-?\d+(\.\d+)?(e[+-]?\d+)?")
#: What is quoted, also where the quotation was cut off.
_QUOTED = re.compile(r"(['\"]).*?(\1|$)|: .{60,}", re.DOTALL)


def feature(*parts: object) -> tuple[str, ...]:
    """What a refusal adds to coverage: its words, without what they quote of the peer."""
    return tuple(_NUMBERS.sub("#", _QUOTED.sub("'", str(part)))[:70] for part in parts)
