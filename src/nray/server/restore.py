"""A scheduler that goes on where a ledger stands."""

from __future__ import annotations

from nray.ledger.entries import Hits
from nray.ledger.ledger import Account
from nray.server.scheduler import Scheduler

#: Rows of the journal that are read at a time.
_ROWS_MOST = 256


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
    _restore_told(scheduler, ledger, written)


def _restore_told(scheduler: Scheduler, ledger: Account, written: set[int]) -> None:
    """Have the hosts remembered that are told of once: because every port answers, or because one
    open port is all that is asked for.

    Of the former alone, the journal is read from its beginning only where an ended slice has
    withheld something of such a host; those told of by slices that have not ended are among the
    open hits.
    """
    pools = {pool.number: pool for pool in scheduler.pools if pool.number in written}
    if not any(pool.shown is not None or pool.withheld for pool in pools.values()):
        for pool in pools.values():
            for segment in (n for n, each in pool.segments.items() if not each.discovery):
                for piece in ledger.open_hits(pool.number, segment):
                    scheduler.restore_told(pool.number, piece)
        return
    after = 0
    while rows := ledger.read(after, _ROWS_MOST):
        for _, row in rows:
            if isinstance(row, Hits) and row.pool in pools and not row.discovery:
                scheduler.restore_told(row.pool, row.packed)
        after = rows[-1][0]
