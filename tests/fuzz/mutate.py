"""Mutations: of bytes, of msgpack's structure, of hits and segments inside of it, of the order.

All drawn from one `random.Random`: the same seed makes the same cases.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, get_args

from nray import _core
from nray.node.orders import DISCOVERY, METHODS
from nray.targets.findings import TARPIT_NUMBER
from nray.wire.framing import (
    GREETING_BYTES_MAX,
    HEADER_BYTES,
    NODE_FRAME_BYTES_MAX,
    SERVER_FRAME_BYTES_MAX,
)
from nray.wire.messages import Environment, NodeMessage, ServerMessage, Settings

from .case import NODE, SERVER, Case, Moved, frame
from .tree import Pairs, Raw, head_of, read, write

#: Bytes of a packed hit.
_HIT: Final = 32
#: What a talk may grow to, frames and bytes, so that a case stays quick.
FRAMES_MAX: Final = 160
TALK_BYTES_MAX: Final = 256 * 1024
#: One in so many mutated frames is as large as a frame may be.
HUGE_ONE_IN: Final = 1500

_LIMITS = (GREETING_BYTES_MAX, NODE_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX)
_INTS: Final = (
    *(0, 1, -1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 4097),
    *(65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1),
    *(2**63, 2**64 - 1, -32, -33, -128, -(2**31), -(2**63)),
)
_FLOATS: Final = (
    0.0,
    -0.0,
    1.0,
    0.5,
    -1.0,
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    5e-324,
)
_TEXTS: Final = (
    "", "a", "\0", "\x1b[2J\x1b]0;x\x07", "\r\n", "é" * 128, "𐍈" * 256, "𐍈" * 257,
    "x" * 32, "x" * 33,
    "x" * 256, "x" * 257, "x" * 5000, "\u202e", "%s%n{0}", "refused-by:", "welcome", "register",
)  # fmt: skip
_MESSAGES: Final = (*get_args(ServerMessage), *get_args(NodeMessage))
_TAGS: Final = tuple(str(each.__struct_config__.tag) for each in _MESSAGES)
_WORDS: Final = (
    *("type", *_TAGS, "unknown", *_core.STATES, *METHODS, DISCOVERY, _core.WITHHELD),
    *dict.fromkeys(
        name for each in (*_MESSAGES, Settings, Environment) for name in each.__struct_fields__
    ),
)
#: The reasons that have a meaning of their own, and the first that there are none of.
_REASONS: Final = (0, 1, TARPIT_NUMBER, len(_core.REASONS) - 1, len(_core.REASONS), 255)
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz0123456789"
_NESTED: Final = (Pairs, list)
_KINDS: Final = ("map", "array", "str", "bin")


class Mutator:
    """Draws mutated cases.

    Args:
        draw: where all chance comes from.
        frames: whole frames of recorded sessions, of both directions, to splice in.
    """

    def __init__(self, draw: random.Random, frames: Sequence[bytes]) -> None:
        self._draw = draw
        self._frames = frames
        self._known = frozenset(frames)

    def _is_new(self, frame: bytes) -> bool:
        return isinstance(frame, Moved) or frame not in self._known

    def case(self, case: Case, *, once: bool = False) -> Case:
        """A case made of this one by one or several mutations.

        Args:
            once: no more than one bad frame, for an end that hears nothing after it.
        """
        draw = self._draw
        number = draw.randrange(len(case.lines))
        if not case.lines[number]:
            return case
        steps = (self._one, self._spray, self._order, self._manner)
        chances = (60, 0, 30, 10) if once else (15, 70, 15, 4)
        for _ in range(1 if once or draw.random() < 0.6 else draw.randint(2, 4)):
            (step,) = draw.choices(steps, chances)
            case = step(case, number)
        line = case.lines[number][:FRAMES_MAX]
        if draw.random() < 0.5:  # an honest end is not worth its time always
            last = max((at for at, each in enumerate(line) if self._is_new(each)), default=0)
            line = line[: last + draw.randint(1, 4)]
        while len(line) > 1 and sum(map(len, line)) > TALK_BYTES_MAX:
            # A huge frame stays, if it is the last one.
            line = (
                line[: len(line) // 2] if len(line[-1]) < TALK_BYTES_MAX else (*line[:2], line[-1])
            )
            if len(line) <= 3:
                break
        return case.with_line(number, line)

    # ── a talk ──────────────────────────────────────────────────────────────────────────────

    def _one(self, case: Case, number: int) -> Case:
        """One frame is no longer what it was."""
        line = list(case.lines[number])
        at = self._place(line)
        line[at] = self.frame(line[at], case.end)
        return case.with_line(number, line)

    def _spray(self, case: Case, number: int) -> Case:
        """Before some frame, several mutated ones that a stricter peer would end the talk for."""
        draw = self._draw
        line = list(case.lines[number])
        for _ in range(draw.randint(1, 4)):
            at = self._place(line)
            near = line[at]
            line[at:at] = [
                self.frame(near if draw.random() < 0.7 else draw.choice(line), case.end)
                for _ in range(draw.randint(1, 24))
            ]
        return case.with_line(number, line)

    def _place(self, line: Sequence[bytes]) -> int:
        """Somewhere in a talk, each kind of frame as likely as any other."""
        kinds: dict[bytes, list[int]] = {}
        for at, each in enumerate(line):
            kinds.setdefault(each[5:18], []).append(at)
        return self._draw.choice(self._draw.choice(list(kinds.values())))

    def _order(self, case: Case, number: int) -> Case:
        """The right frames at the wrong moment."""
        draw = self._draw
        line: list[bytes] = list(case.lines[number])
        at = draw.randrange(len(line))
        match draw.randrange(7):
            case 0:
                del line[at]
            case 1:
                line.insert(draw.randrange(len(line) + 1), Moved(line[at]))
            case 2:
                other = draw.randrange(len(line))
                line[at], line[other] = Moved(line[other]), Moved(line[at])
            case 3:
                line.insert(at, Moved(draw.choice(self._frames)))
            case 4:
                line[at:at] = [Moved(line[at])] * draw.choice((2, 5, 30))
            case 5:
                line[at:] = map(Moved, reversed(line[at:]))
            case 6:
                line += map(Moved, line[at:])
        return case.with_line(number, line or [b""])

    def _manner(self, case: Case, number: int) -> Case:
        """The same words, said in another manner: split, joined, over several lines."""
        draw = self._draw
        line = list(case.lines[number])
        at = draw.randrange(len(line))
        match draw.randrange(5):
            case 0:
                cut = draw.randrange(len(line[at]) + 1)
                line[at : at + 1] = [line[at][:cut], line[at][cut:]]
            case 1:
                line[at : at + 3] = [b"".join(line[at : at + 3])]
            case 2:
                return self._changed(case, silent=not case.silent)
            case 3:
                return self._changed(case, together=not case.together)
            case 4 if len(case.lines) < 5:
                lines = (*case.lines, tuple(map(Moved, case.lines[number])))
                return Case(
                    case.end, case.world, lines, case.together, case.silent, draw.random() < 0.3
                )
        return case.with_line(number, line)

    @staticmethod
    def _changed(case: Case, **changes: bool) -> Case:
        known = {"together": case.together, "silent": case.silent, "alone": case.alone, **changes}
        return Case(case.end, case.world, case.lines, **known)

    # ── a frame ─────────────────────────────────────────────────────────────────────────────

    def frame(self, whole: bytes, end: str) -> bytes:
        """A frame made of this one."""
        draw = self._draw
        if draw.randrange(HUGE_ONE_IN) == 0:
            return frame(self._huge(end))
        chance = draw.random()
        if chance < 0.06 or len(whole) <= HEADER_BYTES:
            return self._length(whole)
        body = whole[HEADER_BYTES:]
        if chance < 0.75:
            tree = read(body)
            if tree is not None:
                for _ in range(1 if draw.random() < 0.8 else draw.randint(2, 4)):
                    tree = self._tree(tree)
                return frame(write(tree))
        return frame(self._bytes(body))

    def _length(self, whole: bytes) -> bytes:
        """The length lies, or the frame is cut."""
        draw = self._draw
        body = whole[HEADER_BYTES:]
        match draw.randrange(5):
            case 0:
                return whole[: draw.randrange(len(whole) + 1)]
            case 1:
                lie = max(0, len(body) + draw.choice((-2, -1, 1, 2)))
            case 2:
                lie = draw.choice(_LIMITS) + draw.choice((-1, 0, 1))
            case 3:
                lie = draw.choice((0, 2**31, 2**32 - 1, int.from_bytes(b"GET ", "big"), 0x16030100))
            case _:
                return len(body).to_bytes(HEADER_BYTES, "little") + body
        return (lie & 0xFFFFFFFF).to_bytes(HEADER_BYTES, "big") + body

    def _bytes(self, body: bytes) -> bytes:
        draw = self._draw
        out = bytearray(body)
        for _ in range(1 if draw.random() < 0.7 else draw.randint(2, 6)):
            at = draw.randrange(len(out) + 1)
            match draw.randrange(8):
                case 0 | 1 if at < len(out):
                    out[at] ^= 1 << draw.randrange(8)
                case 2 if at < len(out):
                    out[at] = draw.choice((0, 0x7F, 0x80, 0xFF, 0xC0, 0xC1, 0xC7, 0xD4, 0xDD, 0xDF))
                case 3:
                    out[at:at] = draw.randbytes(draw.randint(1, 8))
                case 4:
                    del out[at : at + draw.choice((1, 2, 4, 16))]
                case 5:
                    out[at:at] = out[at : at + draw.choice((1, 8, 32, 64))]
                case 6:
                    other = draw.choice(self._frames)[HEADER_BYTES:]
                    out[at:] = other[draw.randrange(len(other) + 1) :]
                case 7:
                    del out[at:]
        return bytes(out)

    def _tree(self, tree: Any) -> Any:
        """One node of a tree is changed."""
        draw = self._draw
        slots: list[tuple[list[Any], int]] = []
        _collect(tree, slots)
        # The outermost map is one of few nodes in many.
        if not slots or draw.random() < 0.03:
            return self._value(tree)
        holder, at = draw.choice(slots)
        holder[at] = self._value(holder[at])
        return tree

    def _value(self, old: Any) -> Any:
        draw = self._draw
        if draw.random() < 0.12:
            return self._nasty()
        match old:
            case bool():
                return draw.choice((not old, 0, 1, None, "true"))
            case int():
                return draw.choice(
                    (old + 1, old - 1, -old, old ^ (1 << draw.randrange(63)), draw.choice(_INTS),
                     draw.choice(_INTS), float(old), str(old))
                )  # fmt: skip
            case float():
                return draw.choice((draw.choice(_FLOATS), draw.choice(_INTS), -old))
            case str():
                return draw.choice(
                    (draw.choice(_TEXTS), draw.choice(_WORDS), old + draw.choice(_TEXTS), old[:-1],
                     old.encode(), Raw(_bad_text(draw, old)))
                )  # fmt: skip
            case bytes():
                return self._octets(old)
            case list():
                return self._items(list(old))
            case Pairs():
                return self._pairs(Pairs([list(pair) for pair in old.pairs]))
        return self._nasty()

    def _octets(self, old: bytes) -> Any:
        """Opaque bytes: hits, a segment, a key, a payload."""
        draw = self._draw
        chance = draw.random()
        if len(old) >= _HIT and len(old) % _HIT == 0 and chance < 0.6:
            return self._hits(old)
        # A packed segment: plain, or with what discovery needs.
        if len(old) > 8 and old[0] in (0x9B, 0x95) and chance < 0.85:
            tree = read(old)
            if tree is not None:
                for _ in range(draw.randint(1, 3)):
                    tree = self._tree(tree)
                return write(tree)
        return draw.choice(
            (
                self._bytes(old),
                old + draw.randbytes(draw.choice((1, 4, 16, 32))),
                old[: draw.randrange(len(old) + 1)],
                b"",
                old * draw.choice((2, 3, 50)),
                draw.randbytes(draw.choice((1, 2, 4, 8, 16, 32, 64, 1500))),
                old.decode("latin-1"),
                struct.pack(">II", *sorted(draw.choices((0, 1, 2**31, 2**32 - 1), k=2))),
                draw.choice((b"\0", b"\xff")) * draw.choice((2, 4, 8, 16, 32, 64)),
                bytes(16) + b"\xff" * 16,  # all of IPv6
            )
        )

    def _hits(self, old: bytes) -> bytes:
        draw = self._draw
        out = bytearray(old)
        at = _HIT * draw.randrange(len(old) // _HIT)
        match draw.randrange(9):
            case 0:
                position = (
                    draw.choice((draw.choice(_INTS), draw.randrange(4000))) & 0xFFFFFFFFFFFFFFFF
                )
                out[at : at + 8] = position.to_bytes(8, "little")
            case 1:
                place = at + 8 + draw.randrange(16)
                out[place] = draw.randrange(256)
            case 2:
                out[at + 31] = draw.choice((0, 4, 6, 1, 255))
            case 3:
                out[at + 29] = draw.choice((0, 1, 5, 6, 255))
            case 4:
                out[at + 30] = draw.choice(_REASONS)
            case 5:
                out[at:at] = out[at : at + _HIT]
            case 6:
                del out[at : at + _HIT]
            case 7:
                out[at + 8 : at + 24] = draw.randbytes(4).ljust(16, b"\0")
                out[at + 31] = draw.choice((0, 4, 6))
            case 8:
                out[at + draw.randrange(_HIT)] ^= 1 << draw.randrange(8)
        return bytes(out)

    def _items(self, old: list[Any]) -> Any:
        draw = self._draw
        match draw.randrange(7):
            case 0 if old:
                del old[draw.randrange(len(old))]
            case 1 if old:
                old.insert(draw.randrange(len(old)), draw.choice(old))
            case 2:
                old.append(self._nasty())
            case 3 if old:
                old = old * draw.choice((2, 5, 600))
                return old[:5000]
            case 4 if old:
                draw.shuffle(old)
            case 5:
                return Raw(_claims(draw, "array") + b"".join(map(write, old)))
            case 6:
                return [draw.choice(_INTS) for _ in range(draw.choice((1, 5, 9, 64)))]
        return old

    def _pairs(self, old: Pairs) -> Any:
        draw = self._draw
        pairs = old.pairs
        match draw.randrange(8):
            case 0 if pairs:
                del pairs[draw.randrange(len(pairs))]
            case 1 if pairs:
                pairs.append(list(draw.choice(pairs)))
            case 2:
                pairs.insert(0, [draw.choice(_WORDS), self._nasty()])
            case 3:
                pairs.append([self._nasty(), self._nasty()])
            case 4 if pairs:
                for pair in pairs:
                    if pair[0] == "type":
                        pair[1] = draw.choice(_TAGS)
            case 5 if pairs:
                draw.choice(pairs)[0] = draw.choice(_WORDS)
            case 6:
                written = b"".join(write(key) + write(value) for key, value in pairs)
                return Raw(_claims(draw, "map") + written)
            case 7:
                more = draw.choice((1, 63, 64, 65, 300))
                pairs += [[f"k{number}", number] for number in range(more)]
        return old

    def _nasty(self) -> Any:
        draw = self._draw
        match draw.randrange(13):
            case 0 | 1 | 2:
                return draw.choice(_INTS)
            case 3:
                return draw.choice(_FLOATS)
            case 4 | 5:
                return draw.choice(_TEXTS)
            case 6:
                return draw.choice(
                    (None, True, False, [], Pairs(), b"", [[]], [None], Pairs([[1, 2]]))
                )
            case 7:
                return Raw(
                    draw.choice((b"\x91", b"\x81\xa0", b"\x81")) * draw.choice((3, 200, 1200, 9000))
                )
            case 8:
                return Raw(_claims(draw, draw.choice(_KINDS)) + draw.randbytes(draw.randrange(9)))
            case 9:
                return Raw(_bad_text(draw, "text"))
            case 10:  # extensions, a timestamp (type -1), and the byte that is none
                return Raw(
                    draw.choice(
                        (b"\xc1", b"\xd4\x01\x00", b"\xd6\xff\x00\x00\x00\x00",
                         b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc9\xff\xff")
                    )
                )  # fmt: skip
            case 11:
                return draw.randbytes(draw.choice((0, 1, 31, 32, 33, 64, 1401)))
            case _:
                return [draw.choice(_INTS) for _ in range(draw.choice((0, 3, 9, 40)))]

    def _huge(self, end: str) -> bytes:
        """As large as a frame may be, or nearly, and made to swell."""
        draw = self._draw
        if end == NODE and draw.randrange(10) == 0:
            # Ranges or names that are all different take a minute to be looked at in full.
            return _huge(end, SERVER_FRAME_BYTES_MAX, draw.choice((0, 3, 5)))
        return _huge(end, draw.choice(_LIMITS[:2]), draw.randrange(6))


@lru_cache(maxsize=12)
def _huge(end: str, limit: int, kind: int) -> bytes:
    """Bodies of nearly ``limit`` bytes; each is made once, for most of them take a while."""
    if end == SERVER:
        most = limit - 200
        match kind:
            case 0:
                return _map(
                    type="report",
                    report=1,
                    lease=1,
                    errors=Raw(head_of("map", most // 9) + _different(most // 9, b"\xa7", b"\0")),
                )
            case 1:
                return _map(type="report", report=1, lease=1, hits=b"\0" * (most // 32 * 32))
            case 2:
                return _map(type="bye", detail="x" * most)
            case 3:
                return _map(
                    type="register",
                    leases=Raw(head_of("array", most // 2) + b"\xcc\xff" * (most // 2)),
                )
            case 4:
                return _map(
                    type="ask", leases=1, unknown=Raw(head_of("array", most) + b"\x90" * most)
                )
            case _:
                return _map(type="heartbeat", sent=Raw(b"\x91" * most))
    most = limit - 4000
    match kind:
        case 0:
            count = most // 4 // 36**3 * 36**3
            names = Raw(
                head_of("array", count) + (b"\xa3" + b"\xa3".join(_threes())) * (count // 36**3)
            )
            return _segment(names=names)
        case 1:
            pairs = b"".join(struct.pack(">II", 4 * n, 4 * n) for n in range(most // 8))
            return _segment(ranges4=pairs)
        case 2:
            count = most // 8
            names = Raw(head_of("array", count) + _different(count, b"\xa7"))
            return _segment(ranges4=bytes(8), excluded_names=names)
        case 3:
            payloads = dict.fromkeys(range(1, most // 1010), b"x" * 1000)
            settings = Pairs([["udp_payloads", Pairs([[k, v] for k, v in payloads.items()])]])
            return _map(
                type="registered",
                node_id="n",
                pool=0,
                server_time_ms=0,
                heartbeat_s=1.0,
                settings=settings,
            )
        case 4:
            pairs = b"".join((32 * n).to_bytes(16, "big") * 2 for n in range(1, most // 32))
            return _segment(ranges6=pairs)
        case _:
            return _map(type="stop", done=True, detail="\xe9" * (most // 2))


def _map(**fields: Any) -> bytes:
    return write(Pairs([[key, value] for key, value in fields.items()]))


def _segment(**changes: Any) -> bytes:
    fields = {
        "version": 1, "id": 0, "key": bytes(32), "ranges4": b"", "ranges6": b"", "names": [],
        "tcp": b"\x00\x16", "udp": b"", "excluded4": b"", "excluded6": b"", "excluded_names": [],
        **changes,
    }  # fmt: skip
    return _map(type="segment", segment=0, body=write(list(fields.values())))


@lru_cache
def _threes() -> list[bytes]:
    """Names of three letters, all there are."""
    return [bytes(each) for each in itertools.product(_LETTERS, repeat=3)]


def _different(count: int, head: bytes, tail: bytes = b"") -> bytes:
    """So many different texts of seven letters, each with these bytes around it."""
    threes = _threes()
    each = (b"%b%b-%b%b" % (head, one, other, tail) for one in threes for other in threes)
    return b"".join(itertools.islice(each, count))


def _claims(draw: random.Random, kind: str) -> bytes:
    return head_of(kind, draw.choice((17, 255, 65_535, 2**20, 2**28, 2**31, 2**32 - 1)), wide=True)


def _bad_text(draw: random.Random, text: str) -> bytes:
    bad = draw.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x28"))
    data = text.encode()[:20] + bad
    return bytes([0xA0 | len(data)]) + data if len(data) < 32 else head_of("str", len(data)) + data


def _collect(tree: Any, slots: list[tuple[list[Any], int]]) -> None:
    """The place of every node below a tree; keys are nodes, too, but values come twice."""
    if isinstance(tree, Pairs):
        for pair in tree.pairs:
            slots += ((pair, 1), (pair, 1), (pair, 0))
            if type(pair[1]) in _NESTED:
                _collect(pair[1], slots)
    elif isinstance(tree, list):
        for at, each in enumerate(tree[:40]):
            slots.append((tree, at))
            if type(each) in _NESTED:
                _collect(each, slots)
