r"""Bytes written as text with escapes: UDP payloads in a configuration.

In double quotes YAML itself has read the escapes, and each character up to U+00FF is a byte. In
single quotes and plain text the backslashes are still there; they are read here, as Go reads them
in a string (https://go.dev/ref/spec#Rune_literals): ``\xHH``, ``\OOO`` and the letters below.
"""

from __future__ import annotations

import re

from nray.config.errors import Wrong, quoted

#: The most that the core puts into a probe: one packet on any path, never a train of fragments.
PAYLOAD_BYTES_MAX = 1400

_LETTERS = {
    "a": 0x07,
    "b": 0x08,
    "f": 0x0C,
    "n": 0x0A,
    "r": 0x0D,
    "t": 0x09,
    "v": 0x0B,
    "\\": 0x5C,
    "'": 0x27,
    '"': 0x22,
}

_PIECE = re.compile(
    r"\\x(?P<hex>[0-9A-Fa-f]{2})|\\(?P<octal>[0-3][0-7]{2})|\\(?P<letter>[abfnrtv\\'\"])"
    r"|(?P<literal>[^\\])",
    re.DOTALL,
)

_RIGHT = r"write bytes as \xHH (two hexadecimal digits) or \OOO (three octal ones, to \377)"


def parse_payload(text: str, *, escapes: bool) -> bytes:
    """The bytes that a text stands for.

    Args:
        text: the text as YAML hands it over.
        escapes: whether backslashes are still to be read (False for double quotes).

    Raises:
        Wrong: an escape that is none, a character above U+00FF, or more bytes than a datagram
            can carry.
    """
    payload = _unescape(text) if escapes else b"".join(_byte(character) for character in text)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Wrong(f"{len(payload)} bytes", f"a probe carries at most {PAYLOAD_BYTES_MAX}")
    return payload


def format_payload(payload: bytes) -> str:
    r"""The text that `parse_payload` reads back: printable ASCII as it is, the rest ``\xHH``."""
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in payload
    )


def _unescape(text: str) -> bytes:
    pieces = []
    position = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            raise Wrong(f"{quoted(text[position : position + 4])} is no escape", _RIGHT)
        pieces.append(_piece(match))
        position = match.end()
    return b"".join(pieces)


def _piece(match: re.Match[str]) -> bytes:
    if match["hex"]:
        return bytes.fromhex(match["hex"])
    if match["octal"]:
        return bytes([int(match["octal"], 8)])
    if match["letter"]:
        return bytes([_LETTERS[match["letter"]]])
    return _byte(match["literal"])


def _byte(character: str) -> bytes:
    if ord(character) > 0xFF:
        raise Wrong(f"{quoted(character)} is no single byte", _RIGHT)
    return character.encode("latin-1")
