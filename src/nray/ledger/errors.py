"""What may go wrong with a ledger, and whose move is next."""

from __future__ import annotations

from nray import UserError


class LedgerError(UserError):
    """A ledger failed while it was in use: the disk, say. No mistake in the usage."""

    exit_status = 1


class LedgerFull(LedgerError):
    """There is no room to write: nothing was changed, and the same call may be made again."""


class LedgerRefused(LedgerError):
    """A ledger cannot be made or opened as asked: the wrong file, or one that is in use."""

    exit_status = 2
