"""A msgpack writer that lies: it writes whatever a tree says, right or wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass
class Raw:
    """Bytes that stand in the output as they are."""

    data: bytes


@dataclass
class Pairs:
    """A map as it is written: keys may come twice."""

    pairs: list[list[Any]] = field(default_factory=list)


def read(body: bytes) -> Any:
    """A tree of what honest msgpack holds, or None."""
    try:
        return _tree(msgspec.msgpack.decode(body))
    except (ValueError, RecursionError, TypeError):
        return None


def _tree(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs([[_tree(key), _tree(each)] for key, each in value.items()])
    if isinstance(value, list):
        return [_tree(each) for each in value]
    return value


def write(value: Any) -> bytes:
    """The bytes of a tree."""
    out = bytearray()
    _write(value, out)
    return bytes(out)


def _write(value: Any, out: bytearray) -> None:
    match value:
        case Raw(data):
            out += data
        case Pairs(pairs):
            out += head_of("map", len(pairs))
            for key, each in pairs:
                _write(key, out)
                _write(each, out)
        case list():
            out += head_of("array", len(value))
            for each in value:
                _write(each, out)
        case int() if not isinstance(value, bool) and not -(2**63) <= value < 2**64:
            out += b"\xcb" + struct.pack(">d", float(value))
        case _:
            out += msgspec.msgpack.encode(value)


def head_of(kind: str, length: int, wide: bool = False) -> bytes:
    """The head of a map, array, str or bin, in its shortest or its widest form."""
    short, small, large = {
        "map": (0x80, 0xDE, 0xDF),
        "array": (0x90, 0xDC, 0xDD),
        "str": (None, 0xDA, 0xDB),
        "bin": (None, 0xC5, 0xC6),
    }[kind]
    if not wide and short is not None and length < 16:
        return bytes([short | length])
    if not wide and length < 1 << 16:
        return struct.pack(">BH", small, length)
    return struct.pack(">BI", large, length & 0xFFFFFFFF)
