"""The judges of the acceptance tests are judged first: each must be able to say no."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from lab import namespaces
from lab.capture import probe_filter
from lab.judge import judge_gaps, judge_rate, judge_runs, judge_seconds, judge_set
from lab.nray import probes_reported, states, totals
from lab.truth import ADMIN, CLOSED, OPEN, REJECTED, SILENT, Truth, draw_hosts, draw_ports, nftables


def even(rate: float, seconds: float) -> list[float]:
    return [1000.0 + number / rate for number in range(int(rate * seconds) + 1)]


def test_an_even_stream_keeps_the_rate() -> None:
    assert judge_rate(even(1000, 5), 1000, 5) == []


def test_jitter_within_the_limits_keeps_the_rate() -> None:
    chance = random.Random(5)
    times = sorted(time + chance.uniform(-0.005, 0.005) for time in even(1000, 5))
    assert judge_rate(times, 1000, 5) == []


@pytest.mark.parametrize("rate", [970, 1030])
def test_a_wrong_whole_is_a_fault(rate: int) -> None:
    assert any("whole" in fault for fault in judge_rate(even(rate, 6), 1000, 5))


def test_bursts_are_a_fault() -> None:
    times = [1000.0 + number // 250 * 0.25 for number in range(5001)]
    faults = judge_rate(times, 1000, 5)
    assert any("within" in fault for fault in faults)
    assert any("peak" in fault for fault in faults)


def test_one_burst_is_a_fault() -> None:
    times = sorted([*even(1000, 5), *([1002.05] * 60)])
    assert any("peak" in fault for fault in judge_rate(times, 1000, 5))


def test_two_workers_that_do_not_share_are_a_fault() -> None:
    assert judge_rate(sorted(even(1000, 5) * 2), 1000, 5)


def test_a_pause_between_slices_is_a_fault() -> None:
    times = [time + (int(time - 1000) * 0.3) for time in even(1000, 5)]
    assert any("within" in fault for fault in judge_rate(times, 1000, 5))


@pytest.mark.parametrize("times", [[], [1000.0], even(1000, 2)])
def test_too_short_a_run_proves_nothing(times: list[float]) -> None:
    assert judge_rate(times, 1000, 5)


def test_even_gaps_keep_a_low_rate() -> None:
    assert judge_gaps(even(10, 3), 10) == []


@pytest.mark.parametrize(
    "times",
    [
        even(10, 0.1),
        even(11, 3),
        sorted([*even(10, 3), 1001.55]),
        [1000.0 + number // 2 * 0.2 for number in range(30)],
    ],
)
def test_uneven_gaps_are_a_fault(times: list[float]) -> None:
    assert judge_gaps(times, 10)


def test_no_second_may_hold_more() -> None:
    assert judge_seconds(even(999.9, 5), 1000) == []
    assert judge_seconds(sorted([*even(999.9, 5), 1001.5, 1001.5]), 1000)


def runs(*all_times: list[float]) -> Callable[[int], list[float]]:
    return lambda number: all_times[number]


def test_one_of_three_runs_must_be_even() -> None:
    def judge(times: Sequence[float]) -> list[str]:
        return judge_rate(times, 1000, 5)

    good, slow, fast = even(995, 6), even(900, 6), even(1100, 6)
    assert judge_runs(runs(slow, good), judge, 1000) == []
    assert judge_runs(runs(slow, slow, slow), judge, 1000) == []
    assert judge_runs(runs(slow, slow, even(600, 9)), judge, 1000)
    assert "more than 1000" in judge_runs(runs(slow, fast, good), judge, 1000)[0]


def test_sets() -> None:
    truth = {("a", 1), ("b", 2)}
    assert judge_set([("b", 2), ("a", 1)], truth) == []
    assert judge_set([("a", 1)], truth) == ["1 missing, e.g. [('b', 2)]"]
    assert judge_set([("a", 1), ("b", 2), ("c", 3)], truth) == ["1 false, e.g. [('c', 3)]"]
    assert judge_set([("a", 1), ("b", 2), ("b", 2)], truth) == ["1 repeated, e.g. [('b', 2)]"]


def test_two_events_of_one_port_are_found() -> None:
    part = {"target": "a", "port": 1, "open": True, "state": "open", "reason": "syn-ack"}
    event = {"result": {"portscan": part}}
    assert states([event]) == {("a", 1): ("open", "syn-ack")}
    with pytest.raises(AssertionError, match="two events"):
        states([event, event])


def test_the_number_of_probes_is_read_or_missed() -> None:
    assert probes_reported("hello\nprobes 194640, open 0\n") == 194640
    assert probes_reported("done: 194,640 probes in 2 s\n") == 194640
    with pytest.raises(AssertionError, match="no number"):
        probes_reported("done\n")


def test_totals_are_read() -> None:
    assert totals("hosts 2\nports 3\nprobes 6\n") == {"hosts": 2, "ports": 3, "probes": 6}


def test_truth_is_drawn_from_its_seed() -> None:
    counts = {OPEN: 20, ADMIN: 5}
    truth = draw_ports(1, "198.18.0.1", counts)
    assert truth == draw_ports(1, "198.18.0.1", counts)
    assert truth != draw_ports(2, "198.18.0.1", counts)
    assert len(truth.having(OPEN)) == 20
    hosts = draw_hosts(1, "198.18.0.0/24", 80, {OPEN: 0.25, SILENT: 0.5})
    assert [len(hosts.having(fate)) for fate in (OPEN, SILENT, CLOSED)] == [64, 128, 64]


def test_a_rejection_that_its_ip_version_lacks_is_refused() -> None:
    only4 = next(fate for fate in REJECTED if not fate.rule6)
    with pytest.raises(ValueError, match="IPv6"):
        nftables(Truth({("tcp", "2001:db8:1::1", 80): only4}))


def test_a_lack_skips_and_under_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "missing", lambda *programs: f"no {programs}")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nft"):
        namespaces.require("nft")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="nft"):
        namespaces.require("nft")


def test_the_filter_jumps_forward_only() -> None:
    for answers_to in (None, "127.0.0.1", "::1"):
        program = probe_filter(answers_to)
        for at, (_, true, false, _) in enumerate(program):
            assert 0 <= true < len(program) - at
            assert 0 <= false < len(program) - at
