"""What is wrong with what a scan has left: pure functions; an empty list is a promise kept."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from .ground import Outcome


def judge_lines(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """The events in a file, and the faults of its lines."""
    faults = []
    if data and not data.endswith(b"\n"):
        faults.append(f"the last line is torn: {data[data.rfind(10) + 1 :][:80]!r}")
    events = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            faults.append(f"line {number} is no JSON: {line[:80]!r}")
            continue
        events.append(event)
    return events, faults


def judge_events(events: list[dict[str, Any]], truth: Outcome) -> list[str]:
    """Faults of events against what an undisturbed scan finds."""
    found = []
    registered: Counter[str] = Counter()
    for event in events:
        if "environment" in event:
            registered[event["nodeID"]] += 1
        else:
            part = event["result"]["portscan"]
            found.append((part["target"], part["port"], part["state"]))
    expected = {(*pair, state) for pair, state in truth.items()}
    faults = []
    for what, pairs in (("missing", expected - set(found)), ("false", set(found) - expected)):
        if pairs:
            faults.append(f"{len(pairs)} {what}, e.g. {sorted(pairs)[:3]}")
    twice = [pair for pair, times in Counter(one[:2] for one in found).items() if times > 1]
    if twice:
        faults.append(f"{len(twice)} twice, e.g. {sorted(twice)[:3]}")
    again = [node for node, times in registered.items() if times > 1]
    if again:
        faults.append(f"registered twice: {again}")
    return faults


def judge_ledger(path: Path, events: list[dict[str, Any]]) -> list[str]:
    """Faults of the ledger of a finished scan, read with nothing of ours."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        (finished,) = connection.execute("SELECT finished FROM scan").fetchone()
        (hits,) = connection.execute("SELECT sum(hits) FROM pool").fetchone()
        done = connection.execute("SELECT start, last FROM done").fetchall()
        (check,) = connection.execute("PRAGMA integrity_check").fetchone()
    finally:
        connection.close()
    faults = []
    if not finished:
        faults.append("the ledger says that the scan is not finished")
    written = sum("environment" not in event for event in events)
    if hits != written:
        faults.append(f"{hits} hits in the ledger, {written} in the file")
    if len(done) != 1:
        faults.append(f"{len(done)} intervals in the ledger: {done[:5]}")
    if check != "ok":
        faults.append(f"the database is damaged: {check}")
    return faults
