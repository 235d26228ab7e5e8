"""Pure functions that say what is wrong with what was captured; an empty list is a promise kept.

The limits are DESIGN.md's: at least 95 % of buckets within ±20 %, no bucket above 1.5 times its
share, the whole within 1 %.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from .truth import CLOSED, Truth

BUCKET_S = 0.1
NEAR = 0.20
NEAR_SHARE = 0.95
PEAK = 1.5
WHOLE = 0.01
#: Runs of which one must be even: whoever waits for a processor for longer than a bucket cannot be.
TRIES = 3
#: Of the last, where none was: the whole is not lower than this share of the rate. Machines that
#: are busy for all of three runs are no reason to find fault with what ran on them.
WHOLE_IF_BUSY = 0.7


def judge_rate(
    times_s: Sequence[float], rate: float, run_s: float, bucket_s: float = BUCKET_S
) -> list[str]:
    """Faults of a stream of probes that should have kept a rate.

    Args:
        times_s: when each probe left, sorted.
        rate: probes a second that were asked for, at least ten to a bucket.
        run_s: how long the run has to be judged; probes after it are left out.
    """
    if rate * bucket_s < 10:
        raise ValueError("too few probes to a bucket: judge the gaps instead")
    if not times_s or times_s[-1] - times_s[0] < 0.9 * run_s:
        return [f"the run is too short to be judged over {run_s} s"]
    begin = times_s[0]
    end = min(times_s[-1], begin + run_s)
    inside = [time for time in times_s if time <= end]
    counts = [0] * int((end - begin) / bucket_s + 1e-6)  # The last, unfinished bucket is left out.
    for time in inside:
        number = int((time - begin) / bucket_s)
        if number < len(counts):
            counts[number] += 1
    share = rate * bucket_s
    return _faults(
        near=sum(abs(count - share) <= NEAR * share for count in counts) / len(counts),
        peak=max(counts) / share,
        whole=(len(inside) - 1) / (inside[-1] - begin) / rate,
    )


def judge_gaps(times_s: Sequence[float], rate: float) -> list[str]:
    """The same for a rate so low that a bucket would hold one or two: judged by the gaps between.

    A gap below 1/1.5 of its share is to it what a bucket above 1.5 times its share is there.
    """
    if len(times_s) < 3:
        return [f"only {len(times_s)} probes"]
    share = 1.0 / rate
    gaps = [after - before for before, after in itertools.pairwise(times_s)]
    return _faults(
        near=sum(abs(gap - share) <= NEAR * share for gap in gaps) / len(gaps),
        peak=share / max(min(gaps), 1e-9),
        whole=len(gaps) / (times_s[-1] - times_s[0]) / rate,
    )


def _faults(near: float, peak: float, whole: float) -> list[str]:
    faults = []
    if near < NEAR_SHARE:
        faults.append(f"{near:.1%} within ±{NEAR:.0%}, less than {NEAR_SHARE:.0%}")
    if peak > PEAK:
        faults.append(f"a peak of {peak:.2f} times the share, more than {PEAK}")
    if abs(whole - 1) > WHOLE:
        faults.append(f"the whole is {whole:.4f} of the rate, more than {WHOLE:.0%} off")
    return faults


def most_within(times: Sequence[float], length: float) -> int:
    """How many of these, sorted, a window of a length holds at most, its end not included."""
    begin = most = 0
    for end, time in enumerate(times):
        while times[begin] <= time - length:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def judge_seconds(times_s: Sequence[float], rate: float) -> list[str]:
    """Faults of a stream of which no second, wherever it begins, may hold more than a rate."""
    most = most_within(times_s, 1.0)
    return [f"a second holds {most}, more than {rate}"] if most > rate else []


def judge_runs(
    run: Callable[[int], Sequence[float]],
    judge: Callable[[Sequence[float]], list[str]],
    rate: float,
) -> list[str]:
    """Faults of runs that should have kept a rate: no second of any holds more, and one is even.

    Args:
        run: runs once, given the number of the run; when each probe left, sorted.
        judge: what is wrong with the evenness of one.
    """
    faults: list[str] = []
    for number in range(TRIES):
        times_s = run(number)
        over = judge_seconds(times_s, rate)
        if over:
            return over
        faults = judge(times_s)
        if not faults:
            return []
    whole = (len(times_s) - 1) / (times_s[-1] - times_s[0])
    return [] if whole >= WHOLE_IF_BUSY * rate else faults


def judge_states(
    found: Mapping[tuple[str, int], tuple[str, str]], truth: Truth, method: str = "connect"
) -> list[str]:
    """Each probe whose state or reason is not what its fate allows."""
    faults = []
    fates = dict.fromkeys(found, CLOSED)
    fates |= {(address, port): fate for (_, address, port), fate in truth.fates.items()}
    for (address, port), fate in fates.items():
        state, reason = found.get((address, port), ("nothing", ""))
        wanted, reasons = fate.seen_by(method)
        if state != wanted or reason not in reasons:
            faults.append(f"{address} {port}: {state} {reason}, in truth {fate.name}")
    return faults


def judge_set(found: Sequence[tuple[str, int]], truth: set[tuple[str, int]]) -> list[str]:
    """Faults of a list of findings: missing, false, repeated; with a few examples of each."""
    faults = []
    seen = set(found)
    for what, pairs in (("missing", truth - seen), ("false", seen - truth)):
        if pairs:
            faults.append(f"{len(pairs)} {what}, e.g. {sorted(pairs)[:5]}")
    if len(found) != len(seen):
        repeated = sorted(pair for pair, times in Counter(found).items() if times > 1)
        faults.append(f"{len(found) - len(seen)} repeated, e.g. {repeated[:5]}")
    return faults
