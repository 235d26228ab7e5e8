"""Durations as Go writes them (``2500ms``, ``1m30s``), to and from seconds.

The grammar is that of Go's ``time.ParseDuration`` (https://pkg.go.dev/time#ParseDuration) without
a sign: numbers, each with a unit, one after the other. Arithmetic is exact in nanoseconds, so
``parse_duration(format_duration(x)) == x`` for every ``x`` that came out of `parse_duration`.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NS_PER_S = 10**9

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5, micro sign
    "μs": 10**3,  # U+03BC, Greek letter mu: Go takes both
    "ms": 10**6,
    "s": _NS_PER_S,
    "m": 60 * _NS_PER_S,
    "h": 3600 * _NS_PER_S,
}

#: 30 days. Nothing here waits longer, and up to 2**52 ns (52 days) a float of seconds still
#: tells every nanosecond apart, which the exact round trip needs.
DURATION_MAX_S = 30 * 24 * 3600.0

#: No duration worth reading is longer; keeps the integers below small.
_TEXT_CHARS_MAX = 64

_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(f"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")

#: What would be right, for messages.
RIGHT = "write a number and a unit (ns, us, ms, s, m, h), such as 2500ms, 15s or 1m30s"


class DurationError(ValueError):
    """A text that is no duration: ``seen`` says why, ``right`` what would be."""

    def __init__(self, seen: str, right: str = RIGHT) -> None:
        super().__init__(f"{seen}; {right}")
        self.seen = seen
        self.right = right


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``2500ms``, ``1m30s``, ``1.5h`` or ``0``.

    Fractions below a nanosecond are rounded to the nearest one.

    Raises:
        DurationError: (a ValueError) for anything else, a negative one and one above
            `DURATION_MAX_S` included; its text says what would be right.
    """
    text = text.strip()
    if not text:
        raise DurationError("an empty text is no duration")
    if len(text) > _TEXT_CHARS_MAX:
        raise DurationError(f"{len(text)} characters are too many for a duration")
    if text == "0":
        return 0.0
    if text.startswith("-"):
        raise DurationError(f'"{text}" is negative')
    if _NUMBER.fullmatch(text):
        raise DurationError(f'"{text}" has no unit', f"write {text}s or {text}ms, say")
    if not _WHOLE.fullmatch(text):
        raise DurationError(f'"{text}" is no duration')
    total_ns = sum(
        (Fraction(_decimal(number)) * _UNITS_NS[unit] for number, unit in _PART.findall(text)),
        start=Fraction(0),
    )
    if total_ns > DURATION_MAX_S * _NS_PER_S:
        raise DurationError(f'"{text}" is too long', "write at most 720h (30 days)")
    return round(total_ns) / _NS_PER_S


def format_duration(seconds: float) -> str:
    """The duration in Go's words, as short as it stays exact: ``1m30s``, ``2500ms``, ``15s``.

    Raises:
        ValueError: for a negative number, NaN, or more than `DURATION_MAX_S`.
    """
    if not 0 <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{seconds} s is not within 0 s to {DURATION_MAX_S} s")
    rest_ns = round(Fraction(seconds) * _NS_PER_S)
    if rest_ns == 0:
        return "0s"
    # A few seconds and a fraction read best as milliseconds, as the manual writes them.
    if rest_ns < 10 * _NS_PER_S and rest_ns % _NS_PER_S:
        return _below_ten_seconds(rest_ns)
    hours, rest_ns = divmod(rest_ns, _UNITS_NS["h"])
    minutes, rest_ns = divmod(rest_ns, _UNITS_NS["m"])
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if rest_ns:
        parts.append(f"{_quotient(rest_ns, _NS_PER_S)}s")
    return "".join(parts)


def _below_ten_seconds(ns: int) -> str:
    unit = next(unit for unit in ("ms", "us", "ns") if ns >= _UNITS_NS[unit])
    return f"{_quotient(ns, _UNITS_NS[unit])}{unit}"


def _quotient(ns: int, unit_ns: int) -> str:
    """``ns / unit_ns`` in exact decimals; every unit here is a power of ten of nanoseconds."""
    whole, rest = divmod(ns, unit_ns)
    digits = len(str(unit_ns)) - 1
    return f"{whole}.{rest:0{digits}}".rstrip("0") if rest else str(whole)


def _decimal(number: str) -> str:
    """Go's ``1.`` and ``.5`` in the form that `Fraction` reads."""
    return f"0{number}" if number.startswith(".") else number.rstrip(".")
