"""What a ledger is told of a scan at its beginning, so that it can be gone on with."""

from __future__ import annotations

import difflib

import msgspec

from nray import UserError
from nray.wire.messages import Settings

#: Raised when older programs would misread it.
VERSION = 1


class Origin(msgspec.Struct, frozen=True):
    """How a scan was begun.

    Attributes:
        kind: ``server`` or ``scan``: the command that goes on with it.
        config: the server's effective configuration, YAML; empty for ``scan``.
        settings: how nodes scan.
        show: states shown besides open (``scan``).
        output: file of events (``scan``), absolute; empty for none.
        processes: workers (``scan``), 0 for one a core.
        created_ms: when, ms since 1970.
    """

    kind: str
    settings: Settings
    config: str = ""
    show: tuple[str, ...] = ()
    output: str = ""
    processes: int = 0
    created_ms: int = 0
    version: int = VERSION


_decoder = msgspec.msgpack.Decoder(Origin)


def pack_origin(origin: Origin) -> bytes:
    """As the ledger keeps it."""
    return msgspec.msgpack.encode(origin)


def unpack_origin(data: bytes, path: str) -> Origin:
    """The inverse of `pack_origin`.

    Raises:
        UserError: another version of nray wrote it.
    """
    try:
        origin = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}: this version of nray cannot read its settings: {error}") from None
    if origin.version != VERSION:
        raise UserError(f"{path}: begun by another version of nray ({origin.version})")
    return origin


def demand_same_config(before: str, now: str, path: str, name: str) -> None:
    """A scan goes on with the configuration that it was begun with.

    Raises:
        UserError: it was changed; the difference is shown.
    """
    if before == now:
        return
    lines = [
        line
        for line in difflib.unified_diff(
            before.splitlines(),
            now.splitlines(),
            f"as {path} was begun",
            f"{name} now",
            "",
            "",
            0,
            "",
        )
        if not line.startswith("@@")
    ]
    shown = "\n".join(f"    {line}" for line in lines[:40])
    raise UserError(
        f"{name} was changed since the scan in {path} was begun:\n{shown}",
        "undo the change to go on with the scan, or begin a new one without --resume",
    )
