"""Issue 12, 2: real processes are killed, stopped and cut off, and the events are the same.

The suite's share; ``make torture`` strikes two hundred times. The seed of a trial that fails is
in the message, and ``python -m tests.torture SEED`` carries it out again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.certs import Credentials
from lab.namespaces import require
from torture.campaign import Campaign, describe
from torture.ground import Ground, truth
from torture.judge import judge_events, judge_lines
from torture.plan import KINDS, UNDISTURBED, draw
from torture.pressure import press

#: Trials of the suite, chosen for blows of every kind, early and late, one upon the other.
SEEDS = (2, 9, 10, 11, 15, 20, 27, 30)
BLOWS = 19
JOBS = 2
#: How long the reader of a pipe stops at least, how many ports of 256 hosts are scanned (more than
#: all queues can take in), and what the issue allows memory to grow meanwhile.
HELD_S = 1.0
PORTS = 500
GROWS_MOST_BYTES = 50_000_000


@pytest.mark.lab
@pytest.mark.slow
def test_nothing_lost_and_nothing_twice(tmp_path: Path) -> None:
    require()
    campaign = Campaign(tmp_path)
    campaign.run(iter([UNDISTURBED, *map(draw, SEEDS)]), JOBS)
    assert campaign.failed == [], "\n".join(map(describe, campaign.failed))
    assert campaign.landed >= BLOWS


@pytest.mark.lab
@pytest.mark.slow
def test_an_output_that_stands_still_holds_the_scan(
    tmp_path: Path, credentials: Credentials
) -> None:
    """The suite's share of bench/pressure.py, which stops the reader for a minute."""
    require()
    with Ground() as ground:
        pressed = press(ground, tmp_path, credentials, HELD_S, PORTS)
    assert pressed.faults == []
    # What the pipe holds and `cat` had taken may still come; a scan that went on would be more.
    assert pressed.stood < 1 << 20
    assert pressed.grown < GROWS_MOST_BYTES


def test_a_seed_is_a_plan() -> None:
    assert [draw(seed) for seed in range(1, 50)] == [draw(seed) for seed in range(1, 50)]
    for seeds in (SEEDS, range(1, 200)):
        assert {blow.kind for seed in seeds for blow in draw(seed).blows} == set(KINDS)
    assert sum(len(draw(seed).blows) for seed in SEEDS) == BLOWS


# ── the judge ───────────────────────────────────────────────────────────────────────────────

TRUTH = {("198.18.3.1", 22): "open", ("198.18.3.1", 23): "closed"}


def event(port: int, state: str, target: str = "198.18.3.1") -> dict[str, Any]:
    part = {"target": target, "port": port, "state": state}
    return {"nodeID": "node-1", "result": {"portscan": part}}


REGISTRATION = {"nodeID": "node-1", "environment": {}}
GOOD = [REGISTRATION, event(22, "open"), event(23, "closed")]


def test_the_judge_has_no_fault_to_find() -> None:
    assert judge_events(GOOD, TRUTH) == []
    assert judge_events(GOOD[::-1], TRUTH) == []


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        (GOOD[:2], "1 missing"),
        ([*GOOD, event(22, "open")], "1 twice"),
        ([*GOOD, event(22, "closed")], "1 twice"),
        ([GOOD[0], event(22, "filtered"), GOOD[2]], "1 false"),
        ([*GOOD, event(24, "closed")], "1 false"),
        ([REGISTRATION, *GOOD], "registered twice"),
    ],
)
def test_the_judge_sees(events: list[dict[str, Any]], fault: str) -> None:
    assert any(fault in each for each in judge_events(events, TRUTH))


def test_the_judge_sees_torn_lines() -> None:
    line = json.dumps(REGISTRATION).encode() + b"\n"
    assert judge_lines(line * 2) == ([REGISTRATION] * 2, [])
    assert "torn" in judge_lines(line + line[:9])[1][0]
    assert "line 1 is no JSON" in judge_lines(line[:9] + line + line)[1][0]


def test_the_truth_has_both_kinds() -> None:
    assert set(truth().values()) == {"open", "closed"}
