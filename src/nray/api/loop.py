"""Running trio so that a user's error comes out as itself, not wrapped in groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nray import UserError

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    """trio.run(main).

    Raises:
        UserError: one was raised inside, in whatever nursery, and nothing worse.
    """
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        mendable, worse = group.split(UserError)
        if mendable is None or worse is not None:
            raise
        raise _first(mendable) from group


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
