"""A scheduler that goes on where a ledger stands."""

from __future__ import annotations

from nray.ledger.ledger import Account
from nray.server.scheduler import Scheduler


def restore(scheduler: Scheduler, ledger: Account) -> None:
    """Bring a new scheduler, which has the ledger's segments, to where the ledger stands.

    What was leased and not ended is leased again; what was reported of it is remembered.
    """
    written = set(ledger.pools())
    for pool in scheduler.pools:
        if pool.number not in written:
            continue
        for segment in pool.segments:
            scheduler.restore(
                pool.number,
                segment,
                ledger.done(pool.number, segment),
                ledger.open_hits(pool.number, segment),
            )
        for discovery in (False, True):
            scheduler.restore_sums(
                pool.number,
                ledger.tally(pool.number, discovery),
                ledger.errors(pool.number, discovery),
                ledger.hits(pool.number, discovery),
                discovery=discovery,
            )
