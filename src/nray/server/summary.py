"""How a scan stands and how it ended, in words and as an exit status."""

from __future__ import annotations

from collections.abc import Iterable

from nray.server.refusals import by_node, others
from nray.server.scheduler import Scheduler, Tally
from nray.targets.discovery import searched_hosts
from nray.targets.findings import HostSet
from nray.targets.segment import Segment

EXIT_COMPLETE = 0
EXIT_INCOMPLETE = 3

#: A rate is not told of shorter scans: half of such a time is the start.
RATE_LEAST_S = 0.1

#: Why a probe could not be sent (`nray._core`), for people.
_WORDS = {
    "out-of-descriptors": "out of file descriptors (ulimit -n)",
    "out-of-buffers": "out of memory for sockets",
    "out-of-local-ports": "out of local ports (net.ipv4.ip_local_port_range)",
    "no-route-from-here": "no route from here",
    "forbidden-here": "forbidden by this machine (its firewall?)",
    "local-error": "a socket call failed here",
    "connects-to-itself": "reached only itself",
    "name-not-resolved": "the name could not be resolved",
    "not-on-link": "not on a local link, where alone ARP reaches",
}


def totals(scheduler: Scheduler, discovery: bool = False) -> Tally:
    """The tallies of all pools together; of the scan itself, or of discovery."""
    total = Tally()
    for pool in scheduler.pools:
        tally = pool.sums(discovery).tally
        total.add(tuple(getattr(tally, name) for name in Tally.__slots__))
    return total


def standing(scheduler: Scheduler, discovery: bool = False) -> tuple[int, int]:
    """Probes done in all pools together, of how many that are known so far."""
    pairs = [pool.standing(discovery) for pool in scheduler.pools]
    return sum(done for done, _ in pairs), sum(total for _, total in pairs)


def exit_status(scheduler: Scheduler) -> int:
    """0 if everything was covered, 3 if not."""
    kinds = [totals(scheduler, discovery) for discovery in (False, True)]
    covered = scheduler.finished and not any(each.error or each.refused for each in kinds)
    return EXIT_COMPLETE if covered else EXIT_INCOMPLETE


def status_line(scheduler: Scheduler, nodes: int) -> str:
    """All, done, to do, per cent, as one line for people."""
    done, total = standing(scheduler)
    hits = sum(pool.hits for pool in scheduler.pools)
    share = 100.0 * done / total if total else 100.0
    line = (
        f"{share:.1f} % done: {done:,} of {total:,} probes, {total - done:,} to do; "
        f"{plural(nodes, 'node')}, {plural(hits, 'hit')}"
    )
    searched, to_search = standing(scheduler, discovery=True)
    if searched < to_search:
        answers = sum(pool.discovery.hits for pool in scheduler.pools)
        looking = (
            f"looking for hosts: {100.0 * searched / to_search:.1f} % done:"
            f" {searched:,} of {to_search:,} probes, {plural(answers, 'answer')}"
        )
        line = (
            f"{looking}; of those found {line}" if total else f"{looking}; {plural(nodes, 'node')}"
        )
    refused = sum(totals(scheduler, discovery).refused for discovery in (False, True))
    if refused:
        line += f"; {refused:,} refused by policies of nodes"
    empty = [str(pool.number) for pool in scheduler.pools if not pool.nodes and pool.left]
    if nodes == 0:
        line += "; waiting for nodes"
    elif empty:
        line += f"; pool {', '.join(empty)} waits for nodes"
    return line


def found(scheduler: Scheduler) -> str:
    """How many probes there were and how they ended, in one line."""
    probes = plural(standing(scheduler)[0], "probe")
    return f"{probes}, {_states(scheduler)}"


def summary_lines(
    scheduler: Scheduler, seconds: float, before: int = 0, segments: Iterable[Segment] = ()
) -> list[str]:
    """What came out, for people; the first line holds the total and the time.

    Args:
        before: probes that were done before these seconds (a scan that went on).
        segments: of the scan, where hosts may have been looked for.
    """
    tally = totals(scheduler)
    probes, total = standing(scheduler)
    searched, to_search = standing(scheduler, discovery=True)
    words = plural(probes, "probe")
    if to_search:
        words += f" and {searched:,} of discovery"
    withheld = _withheld(scheduler)
    spared = _spared(scheduler)
    # Of what an earlier run left out nothing is known.
    took = _time(0 if before and spared else probes + searched - before - spared, seconds)
    lines = [f"{words} in {took}: {_states(scheduler)}"]
    if before:
        lines.append(f"{before:,} of them were done before this run")
    if to_search:
        lines.append(_found(segments, searched < to_search))
    if tally.addresses:
        lines.append(f"{plural(tally.addresses, 'more probe')} for further addresses of names")
    if any(pool.shown is not None for pool in scheduler.pools):
        lines.append(_first_open(_shown(scheduler)))
    if withheld:
        hosts = len(set[bytes]().union(*(pool.tarpits for pool in scheduler.pools)))
        answer = "answers" if hosts == 1 else "answer"
        lines.append(
            f"{plural(hosts, 'host')} {answer} on every port (tarpit or SYN proxy):"
            f" {plural(withheld, 'finding')} withheld"
        )
        lines.append("  all of them: nray scan --keep-tarpits, or scannerconfig.tcp.keepTarpits")
    errors: dict[str, int] = {}
    for pool in scheduler.pools:
        for sums in (pool, pool.discovery):
            for reason, count in sums.errors.items():
                errors[reason] = errors.get(reason, 0) + count
    for name, count in sorted(by_node(errors).items()):
        lines.append(f"{plural(count, 'probe')} refused by the policy of node {name}: not covered")
    errors = others(errors)
    if errors:
        why = ", ".join(
            f"{count:,} × {_WORDS.get(reason, reason)}" for reason, count in sorted(errors.items())
        )
        lines.append(f"not everything could be covered: {why}")
        # Events tell of ports, not of hosts that are looked for.
        if any(pool.errors for pool in scheduler.pools):
            lines.append("  which: nray scan --show error, or states: [error] under an output")
    if not scheduler.finished:
        if searched < to_search:
            missing = to_search - searched
            looking = f"{missing:,} of {to_search:,} of discovery to do"
            lines.append(f"not finished: {looking}, then what it finds")
        else:
            lines.append(f"not finished: {total - probes:,} of {total:,} to do")
    return lines


def _found(segments: Iterable[Segment], unfinished: bool) -> str:
    """How many hosts were looked for, and how many of them there are."""
    looked_for, there = searched_hosts(segments)
    so_far = " so far" if unfinished else ""
    return f"{plural(looked_for, 'host')} looked for, {there:,} up{so_far}; no others were scanned"


def _withheld(scheduler: Scheduler) -> int:
    return sum(pool.withheld for pool in scheduler.pools)


def _first_open(hosts: int) -> str:
    """What became of hosts with an open port, where the first one is all that is asked for."""
    if hosts == 1:
        return "1 host has an open port: one of them is told, and the host is probed no further"
    return f"{hosts:,} hosts have an open port: one of each is told, and they are probed no further"


def _shown(scheduler: Scheduler) -> int:
    """Hosts of which an open port was found, from wherever."""
    sets = [pool.shown for pool in scheduler.pools if pool.shown is not None]
    if len(sets) > 1:
        together = HostSet()
        for each in sets:
            together.add(each.packed(0, len(each)))
        sets = [together]
    return len(sets[0]) if sets else 0


def _spared(scheduler: Scheduler) -> int:
    return sum(pool.spared for pool in scheduler.pools)


def _states(scheduler: Scheduler) -> str:
    """How many probes ended how, those left out that none did."""
    tally, withheld = totals(scheduler), _withheld(scheduler)
    spared = _spared(scheduler)
    counts = (
        (tally.open - withheld, "open"),
        (withheld, "open on tarpits"),
        (tally.closed, "closed"),
        (tally.filtered, "filtered"),
        (tally.open_filtered, "open|filtered"),
        (tally.error, "not sent"),
        (tally.excluded, "excluded after resolution"),
        (tally.skipped - spared, "without a known payload"),
        (spared, "left out"),
        (tally.refused, "refused"),
    )
    return ", ".join(f"{count:,} {word}" for count, word in counts if count or word == "open")


def _time(probes: int, seconds: float) -> str:
    """How long it took, and how fast where that can be told from so short a time."""
    if seconds < 1:
        took = f"{1000 * seconds:.0f} ms"
    elif seconds < 120:
        took = f"{seconds:.2f} s"
    else:
        minutes, rest = divmod(round(seconds), 60)
        took = f"{minutes} min {rest} s"
    if seconds < RATE_LEAST_S or not probes:
        return took
    return f"{took} ({probes / seconds:,.0f} a second)"


def plural(count: int, word: str) -> str:
    """So many of something, in English."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
