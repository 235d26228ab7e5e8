"""How the scan in a ledger stands, for people."""

from __future__ import annotations

import datetime
import os
import time

from nray.api.state import Origin, unpack_origin
from nray.config.errors import ConfigError
from nray.config.reader import loads
from nray.ledger.ledger import Account
from nray.ledger.sqlite import SqliteAccount
from nray.server.refusals import by_node, others
from nray.targets.discovery import searched_hosts
from nray.targets.findings import SPARED, WITHHELD
from nray.targets.segment import Segment

#: Gaps in what is done that are told one by one.
GAPS_TOLD_MAX = 5
STATES = ("open", "closed", "filtered", "open|filtered", "errors", "excluded", "skipped")


def standing_lines(path: str) -> list[str]:
    """Lines about the scan in a ledger, which may be in use.

    Raises:
        LedgerError: there is none that can be read.
        UserError: another version of nray wrote it.
    """
    account = SqliteAccount.inspect(path)
    try:
        return _lines(account, unpack_origin(account.settings, path), path)
    finally:
        account.close()


def _lines(account: Account, origin: Origin, path: str) -> list[str]:
    segments = [Segment.unpack(body) for _, body in account.segments()]
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(origin.created_ms / 1000))
    lines = [
        f"scan {account.scan}, begun {begun} by nray {origin.kind}",
        "finished" if account.finished else f"not finished; {_how_to_go_on(origin, path)}",
    ]
    pools = account.pools() or [0]
    for pool in pools:
        lines += _pool_lines(account, pool, segments)
    looked_for, there = searched_hosts(segments)
    if looked_for:
        so_far = "" if account.segments_ended else " so far"
        lines.append(f"{looked_for} hosts looked for, {there} up{so_far}; only those are scanned")
    nodes = account.nodes()
    if nodes and origin.kind == "server":
        names = ", ".join(f"{node.node_id} ({node.name})" for node in nodes)
        lines.append(f"nodes seen: {names}")
    if origin.kind == "server" and not account.finished:
        lines += _ending_lines(origin)
    return lines


def _ending_lines(origin: Origin) -> list[str]:
    """What the server shows and ends soon, where its files can be read from here."""
    try:
        tls = loads(origin.config, follow=False).tls
    except ConfigError:
        return []
    if not tls.enabled:
        return []
    from nray.pki.errors import PkiError
    from nray.pki.expiry import certificate_ending
    from nray.pki.keys import load_trust
    from nray.pki.revocation import load_revocations

    def path(name: str) -> str:
        return os.path.join(origin.directory, name)

    endings = []
    try:
        endings.append(certificate_ending(tls.cert, load_trust(path(tls.cert))[0]))
        if tls.crl and tls.ca:
            endings += load_revocations(path(tls.crl), load_trust(path(tls.ca))).endings()
    except PkiError:
        pass  # the server says what is wrong with them; this is no place to
    now = datetime.datetime.now(datetime.UTC)
    return [words for words in (ending.warning(now) for ending in endings) if words]


def _how_to_go_on(origin: Origin, path: str) -> str:
    if origin.kind == "scan":
        return f"go on with it by: nray scan --resume {path}"
    return "go on with it by: nray server -c FILE --resume"


def _pool_lines(account: Account, pool: int, segments: list[Segment]) -> list[str]:
    lines: list[str] = []
    gaps: list[str] = []
    gap_count = 0
    for discovery in (False, True):
        of = [segment for segment in segments if bool(segment.search) == discovery]
        if of or not discovery:
            lines += _sum_lines(account, pool, of, discovery)
    for segment in segments:
        intervals = account.done(pool, segment.id)
        for start, end in intervals.gaps(segment.probes):
            gap_count += 1
            if len(gaps) < GAPS_TOLD_MAX:
                gaps.append(f"{segment.id}:{start}-{end - 1}")
    if gaps:
        more = f" and {gap_count - len(gaps)} more" if gap_count > len(gaps) else ""
        lines.append(f"  missing, as segment:positions: {', '.join(gaps)}{more}")
    return lines


def _sum_lines(account: Account, pool: int, of: list[Segment], discovery: bool) -> list[str]:
    """What is done of a pool's discovery, or of its scan itself, and how it ended."""
    done = sum(account.done(pool, segment.id).total for segment in of)
    total = sum(segment.probes for segment in of)
    share = 100 * done / total if total else 100.0
    kind = "probes of discovery" if discovery else "probes"
    lines = [f"pool {pool}: {done} of {total} {kind} done ({share:.1f} %), {total - done} missing"]
    errors = account.errors(pool, discovery)
    withheld = errors.get(WITHHELD, 0)
    opened, *others_counted = account.tally(pool, discovery)
    counts = (opened - withheld, *others_counted)
    told = [f"{count} {state}" for state, count in zip(STATES, counts, strict=False) if count]
    hits = "answers" if discovery else "hits"
    found = account.hits(pool, discovery)
    lines.append(f"  {hits} {found}" + (f"; {', '.join(told)}" if told else ""))
    if withheld:
        lines.append(f"  withheld: {withheld} (open on hosts where every port answers)")
    if SPARED in errors:
        lines.append(f"  left out: {errors[SPARED]} (an open port of the host was known)")
    for name, count in sorted(by_node(errors).items()):
        lines.append(f"  refused: {count} (policy of node {name})")
    for reason, count in sorted(others(errors).items()):
        lines.append(f"  not sent: {count} ({reason})")
    return lines
