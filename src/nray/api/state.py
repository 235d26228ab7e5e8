"""What a ledger is told of a scan at its beginning, so that it can be gone on with."""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from nray import UserError
from nray.targets.discovery import unfollowed
from nray.targets.plan import Plan
from nray.targets.segment import Segment
from nray.wire.messages import Settings

if TYPE_CHECKING:
    from nray.ledger.ledger import Ledger
    from nray.ledger.sqlite import SqliteLedger

#: Raised when older programs would misread it.
VERSION = 1


class Origin(msgspec.Struct, frozen=True):
    """How a scan was begun.

    Attributes:
        kind: ``server`` or ``scan``: the command that goes on with it.
        config: the server's effective configuration, YAML; empty for ``scan``.
        settings: how nodes scan.
        show: states shown besides open (``scan``).
        output: file of events (``scan``) as the user wrote it; empty for none.
        directory: where ``output`` is relative to.
        processes: workers (``scan``), 0 for one a core.
        seed: of the order of probes.
        created_ms: when, ms since 1970.
    """

    kind: str
    settings: Settings
    config: str = ""
    show: tuple[str, ...] = ()
    output: str = ""
    directory: str = ""
    processes: int = 0
    seed: int = 0
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


def create_state(path: str, origin: Origin, made: Plan) -> SqliteLedger:
    """A new ledger for a plan.

    Raises:
        LedgerError: there is an unfinished scan in the file, or it cannot be written.
    """
    from nray.ledger.sqlite import SqliteLedger

    origin = msgspec.structs.replace(origin, seed=made.seed, created_ms=time.time_ns() // 1_000_000)
    return SqliteLedger.create(
        path,
        scan=secrets.token_hex(8),
        settings=pack_origin(origin),
        segments=[(segment.id, segment.pack()) for segment in made.segments],
        ended=not unfollowed(made.segments),
        replace_finished=True,
    )


def open_state(path: str, kind: str) -> tuple[SqliteLedger, Origin]:
    """The ledger of a scan that is to go on.

    Raises:
        LedgerError: there is none, or another process has it.
        UserError: it was begun by the other command, or by another version.
    """
    from nray.ledger.sqlite import SqliteLedger

    ledger = SqliteLedger.open(path)
    try:
        origin = unpack_origin(ledger.settings, path)
        if origin.kind != kind:
            right = f"nray scan --resume {path}" if kind == "server" else "nray server --resume"
            raise UserError(f"{path} is not of this kind of scan", f"go on with it by: {right}")
    except UserError:
        ledger.close()
        raise
    return ledger, origin


def forget(ledger: Ledger, path: str) -> None:
    """A scan that could not begin leaves no ledger that the next one would stumble over."""
    ledger.close()
    with contextlib.suppress(OSError):
        os.unlink(path)


def position_of(ledger: Ledger, sink: str) -> int:
    """How many bytes of an output's file are known to hold what it was given."""
    cursor = ledger.cursor(sink)
    return cursor.position if cursor is not None else 0


def demand_same_config(before: str, now: str, path: str, name: str) -> None:
    """A scan goes on with the configuration that it was begun with.

    Raises:
        UserError: it was changed; the difference is shown.
    """
    if before == now:
        return
    was, is_now = before.splitlines(), now.splitlines()
    diff = difflib.unified_diff(was, is_now, "then", "now", n=0, lineterm="")
    lines = [line for line in diff if not line.startswith("@@")]
    shown = "\n".join(f"    {line}" for line in lines[:40])
    raise UserError(
        f"{name} was changed since the scan in {path} was begun:\n{shown}",
        "undo the change to go on with the scan, or begin a new one without --resume",
    )


def plan_of_segments(segments: Iterable[Segment], seed: int = 0) -> Plan:
    """A plan from what a ledger holds; what was excluded is subtracted already."""
    parts = tuple(segments)
    first = [segment for segment in parts if segment.after < 0]
    wanted = [len(segment.wanted) for segment in first]
    return Plan(
        segments=parts,
        warnings=(),
        hosts=sum(segment.hosts for segment in first),
        ports=max(wanted, default=0),
        probes=sum(segment.hosts * ports for segment, ports in zip(first, wanted, strict=True)),
        excluded=0,
        seed=seed,
        searches=sum(segment.probes for segment in parts if segment.search),
    )
