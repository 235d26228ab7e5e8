"""Running trio so that a user's error comes out as itself, not wrapped in groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nray import UserError
from nray.api.interrupts import take_over

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    """trio.run(main).

    Raises:
        UserError: one was raised inside, in whatever nursery, and nothing worse.
        KeyboardInterrupt: the same of a Ctrl+C that came when nobody watched signals.
    """
    take_over()
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        for plain in (UserError, KeyboardInterrupt):
            found, others = group.split(plain)
            if found is not None and others is None:
                raise _first(found) from group
        raise


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
