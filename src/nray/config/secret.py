"""A secret in memory: it can be used, and cannot be shown, logged or stored by accident."""

from __future__ import annotations

from typing import NoReturn

#: What stands in place of a secret wherever one would be shown. As long for every secret: how long
#: it is, is nobody's business either.
MASK = "********"


class SecretText:
    """Text that shows as `MASK`: in messages, logs, tracebacks and `repr` of what holds it.

    No encoder takes it (msgspec, pickle and json all refuse), so that what holds one cannot be
    written to a ledger or sent to a peer whole. False if it is empty.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str = "") -> None:
        self.__text = text

    def reveal(self) -> str:
        """The text itself, for the one who needs it."""
        return self.__text

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and other.__text == self.__text

    def __hash__(self) -> int:
        return hash(self.__text)

    def __repr__(self) -> str:
        return MASK if self.__text else "''"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not stored")
