"""``nray certs`` called in this process, with what it printed and how it ended."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from nray.cli.root import _status


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def certs(*arguments: object) -> Ended:
    """``nray certs ARGUMENTS``, as `nray.cli.root` runs it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _status(["certs", *map(str, arguments)], "nray")
    return Ended(status, out.getvalue(), err.getvalue())


def good(*arguments: object) -> str:
    """The same; it must end with 0."""
    ended = certs(*arguments)
    assert ended.status == 0, ended
    return ended.out


def wrong(*arguments: object, status: int = 2) -> str:
    """The same; it must end otherwise, in words."""
    ended = certs(*arguments)
    assert ended.status == status, ended
    assert "Traceback" not in ended.err
    return ended.err if status == 2 else ended.out
