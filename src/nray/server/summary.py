"""How a scan stands and how it ended, in words and as an exit status."""

from __future__ import annotations

from nray.server.scheduler import Scheduler, Tally

EXIT_COMPLETE = 0
EXIT_INCOMPLETE = 3


def totals(scheduler: Scheduler) -> Tally:
    """The tallies of all pools together."""
    total = Tally()
    for pool in scheduler.pools:
        total.add(tuple(getattr(pool.tally, name) for name in Tally.__slots__))
    return total


def exit_status(scheduler: Scheduler) -> int:
    """0 if everything was covered, 3 if not."""
    return EXIT_INCOMPLETE if totals(scheduler).error or not scheduler.finished else EXIT_COMPLETE


def status_line(scheduler: Scheduler, nodes: int) -> str:
    """All, done, to do, per cent, as one line for people."""
    total = sum(pool.total for pool in scheduler.pools)
    done = sum(pool.done for pool in scheduler.pools)
    hits = sum(pool.hits for pool in scheduler.pools)
    share = 100.0 * done / total if total else 100.0
    line = (
        f"{share:.1f} % done: {done:,} of {total:,} probes, {total - done:,} to do; "
        f"{_plural(nodes, 'node')}, {_plural(hits, 'hit')}"
    )
    empty = [str(pool.number) for pool in scheduler.pools if not pool.nodes and pool.left]
    if nodes == 0:
        line += "; waiting for nodes"
    elif empty:
        line += f"; pool {', '.join(empty)} waits for nodes"
    return line


def summary_lines(scheduler: Scheduler, seconds: float) -> list[str]:
    """What came out, for people; the first line holds the total and the time."""
    tally = totals(scheduler)
    probes = sum(pool.done for pool in scheduler.pools)
    parts = [
        f"{count:,} {word}"
        for word, count in (
            ("open", tally.open),
            ("closed", tally.closed),
            ("filtered", tally.filtered),
            ("open|filtered", tally.open_filtered),
            ("errors", tally.error),
            ("excluded after resolution", tally.excluded),
            ("without a known payload", tally.skipped),
        )
        if count or word == "open"
    ]
    rate = probes / seconds if seconds > 0 else 0.0
    lines = [
        f"{probes:,} probes in {seconds:.2f} s ({rate:,.0f} a second): {', '.join(parts)}",
    ]
    if tally.addresses:
        lines.append(f"{tally.addresses:,} more probes for further addresses of names")
    errors: dict[str, int] = {}
    for pool in scheduler.pools:
        for reason, count in pool.errors.items():
            errors[reason] = errors.get(reason, 0) + count
    if errors:
        why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(errors.items()))
        lines.append(f"not everything could be covered: {why}")
    if not scheduler.finished:
        left = sum(pool.total - pool.done for pool in scheduler.pools)
        lines.append(f"not finished: {left:,} probes to do")
    return lines


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
