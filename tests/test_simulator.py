"""Scans in a bottle, by their seeds: the laws hold, and planted mistakes are found.

``make simulate SEEDS=10000`` runs more of the same; a failure here says how to see it again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from simulator import __main__ as program
from simulator import runs
from simulator.agenda import Agenda
from simulator.disk import Disk, ProcessDead
from simulator.judge import _read
from simulator.lines import EOF, RESET, SILENT, Quality, line_pair
from simulator.plants import PLANTS
from simulator.runs import first_breach, replay_command, run_many, run_seed
from simulator.scenario import draw
from simulator.truth import addresses_of

ROOT = Path(__file__).parents[1]
#: Seeds of every session of tests.
SEEDS = 150
BLOCK = 25
#: A mistake that this many seeds do not find is not one that the simulator knows.
FOUND_WITHIN = 1000


# ── the laws ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_law_holds(first):
    run = first_breach(range(first, first + BLOCK))
    assert run is None, f"{run.breach}\nagain: {replay_command(run.seed)}"


#: Those that issue 12 asks for, and two that are as old as distributed programs.
NAMED = ("ack-before-commit", "forget-reported", "reuse-leases")


@pytest.mark.parametrize("planted", NAMED)
def test_a_planted_mistake_is_found(planted):
    run = first_breach(range(FOUND_WITHIN), planted)
    assert run is not None, f"{planted}: not found by {FOUND_WITHIN} seeds"
    assert run.breach.startswith(f"seed {run.seed}: ")
    # It is the mistake that was found, and not something else.
    assert run_seed(run.seed).breach is None


#: Rare ones are found by one seed in a hundred; where to begin, to find them soon. Should the
#: scenarios be drawn in another way, these are no longer right, and the tests only take longer.
SOONER = {
    "end-with-worker": 151,
    "forget-on-send": 8,
    "forget-shown": 160,
    "keep-lost-leases": 56,
    "leave-gaps": 8,
    "never-expire": 24,
    "no-resync": 5,
    "send-once": 8,
    "spare-before-commit": 50,
}


@pytest.mark.parametrize("planted", sorted(set(PLANTS) - {*NAMED, "no-rest"}))
def test_many_other_mistakes_are_found(planted):
    begin = SOONER.get(planted, 0)
    run = first_breach(range(begin, begin + FOUND_WITHIN), planted)
    assert run is not None, f"{planted}: not found by {FOUND_WITHIN} seeds"


def test_a_run_that_stays_at_one_moment_is_ended(monkeypatch):
    monkeypatch.setattr(runs, "REAL_S_MAX", 0.7)
    run = first_breach(range(FOUND_WITHIN), "no-rest")
    assert "goes round in a circle at" in run.breach


# ── the same seed, the same steps ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_takes_the_same_steps_again(seed):
    assert run_seed(seed) == run_seed(seed)


def test_seeds_take_different_steps():
    assert len({run_seed(seed).trace for seed in range(5)}) == 5


def test_another_process_takes_the_same_steps():
    seeds = [seed for seed in range(40) if len(draw(seed).nodes) > 2][:3]
    for seed in seeds:
        told = subprocess.run(
            [sys.executable, "-m", "tests.simulator", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed + 1)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"trace {run_seed(seed).trace}\n" in told.stdout


def test_a_planted_mistake_takes_other_steps():
    run = first_breach(range(FOUND_WITHIN), "ack-before-commit")
    assert run_seed(run.seed, "ack-before-commit") == run
    assert run_seed(run.seed).trace != run.trace


def test_what_is_replaced_is_put_back():
    # Hypothesis sets the second by itself as soon as a property test has run before this one.
    before = trio._core._run._r, trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING
    run_seed(0, "ack-before-commit")
    assert trio._core._run._r is before[0]
    assert trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING is before[1]


# ── the program ─────────────────────────────────────────────────────────────────────────────


def test_the_program_tells_of_a_breach_and_how_to_see_it_again(monkeypatch, capsys):
    monkeypatch.setenv("PLANTED", "ack-before-commit")
    seed = first_breach(range(FOUND_WITHIN), "ack-before-commit").seed
    assert program.main([str(seed)]) == 1
    told = capsys.readouterr().out
    assert f"seed {seed}: report" in told
    assert f"PLANTED=ack-before-commit {replay_command(seed)}" in told


def test_the_program_tells_every_step(capsys):
    assert program.main(["3", "--tell"]) == 0
    captured = capsys.readouterr()
    assert "seed 3: all laws kept" in captured.out
    for word in ("faults:", "nodes:", "'server', 1", "'commit'", "'sent'"):
        assert word in captured.err


def test_many_seeds_in_processes(capsys):
    assert run_many(0, 4, 2) == 0
    assert "4 seeds in" in capsys.readouterr().out
    assert run_many(0, 16, 1, "all-hits-new") > 0
    told = capsys.readouterr().out
    assert "is in the journal twice" in told
    assert "again: PLANTED=all-hits-new" in told


@pytest.mark.parametrize("arguments", [[], ["1", "--seeds", "2"], ["x"]])
def test_the_program_refuses_what_makes_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_unknown_plant_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("PLANTED", "ack-before-comit")
    with pytest.raises(SystemExit):
        program.main(["1"])
    assert "ack-before-commit" in capsys.readouterr().err


# ── what is drawn ───────────────────────────────────────────────────────────────────────────


def test_a_scenario_is_the_seeds():
    assert draw(7).tell() == draw(7).tell()
    assert draw(7).tell() != draw(8).tell()


def test_scenarios_hold_everything_that_may_happen():
    drawn = [draw(seed) for seed in range(300)]
    faults = [fault for each in drawn for fault in each.faults]
    assert {fault.kind for fault in faults} >= {"kill-server", "power-cut", "disk-full", "stall"}
    assert {fault.point for fault in faults} >= {"commit", "committed", "to-node", "time"}
    assert {each.pools for each in drawn} == {1, 2, 3}
    assert any(segment.names for each in drawn for segment in each.segments)
    assert any(not each.faults for each in drawn)
    assert any(each.terminal for each in drawn)
    assert any(each.first_open for each in drawn)


def test_names_have_more_than_one_address():
    counts = {len(addresses_of(f"h0x{host}.sim.test")) for host in range(12)}
    assert counts == {1, 2, 3}


# ── what is made up: lines, disk, output ────────────────────────────────────────────────────


class Here:
    """The process at an end of a line."""

    frozen = False

    async def awake(self):
        await trio.sleep_forever()

    def when_awake(self, call):
        call()


def on_a_line(test, **quality):
    """Run a test on a new line, on a clock of its own."""

    async def main():
        agenda = Agenda()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agenda.run)
            await test(*line_pair(agenda, Quality(**quality), Here(), Here(), "line"))
            nursery.cancel_scope.cancel()

    async def bounded():
        with trio.fail_after(1000):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


async def read_all(line):
    """What arrives until the end, and how it ends."""
    data = b""
    try:
        while more := await line.receive_some():
            data += more
    except trio.BrokenResourceError:
        return data, RESET
    return data, EOF


@pytest.mark.parametrize("piece", [0, 1, 3])
@pytest.mark.parametrize("latency", [0.0, 0.5])
def test_a_line_brings_all_bytes_in_order(latency, piece):
    async def test(one, other):
        for data in (b"abc", b"de", b"fghi"):
            await one.send_all(data)
        await one.aclose()
        assert await read_all(other) == (b"abcdefghi", EOF)
        assert trio.current_time() == latency

    on_a_line(test, latency_s=latency, piece_bytes=piece)


@pytest.mark.parametrize("how", [EOF, RESET])
@pytest.mark.parametrize("kept", range(6))
def test_a_line_breaks_at_any_byte(kept, how):
    async def test(one, other):
        await one.send_all(b"abc")
        await one.send_all(b"de")
        one.cut(kept / 5, 1.0, how)
        assert await read_all(other) == (b"abcde"[:kept], how)
        assert await read_all(one) == (b"", how)
        with pytest.raises(trio.BrokenResourceError):
            await one.send_all(b"f")

    on_a_line(test, latency_s=0.1)


def test_a_silent_line_tells_nobody():
    async def test(one, other):
        await one.send_all(b"abc")
        one.cut(1.0, 1.0, SILENT)
        await one.send_all(b"lost")
        await other.send_all(b"lost")
        assert await other.receive_some() == b"abc"
        for end in (one, other):
            with trio.move_on_after(300) as waited:
                await end.receive_some()
            assert waited.cancelled_caught

    on_a_line(test)


def test_a_stalled_line_brings_it_later():
    async def test(one, other):
        other.back.stall(5.0)
        await one.send_all(b"abc")
        assert await other.receive_some() == b"abc"
        assert trio.current_time() == 5.0

    on_a_line(test)


def test_a_full_line_holds_its_sender():
    async def test(one, other):
        await one.send_all(b"abcd")
        with trio.move_on_after(1) as waited:
            await one.send_all(b"e")
        assert waited.cancelled_caught
        assert await other.receive_some() == b"abcd"
        await one.send_all(b"f")
        assert await other.receive_some() == b"f"

    on_a_line(test, window_bytes=4)


def test_a_killed_process_reads_and_writes_no_more():
    async def test(one, other):
        await one.send_all(b"abcd")
        await other.send_all(b"xyz")
        one.kill(0.5, RESET)
        assert await read_all(other) == (b"ab", RESET)
        with pytest.raises(trio.ClosedResourceError):
            await one.receive_some()

    on_a_line(test)


class Writer:
    """A process; ``dies``: in its next write."""

    dead = False
    dies = False

    def writing(self, point):
        self.dead = self.dies


def new_disk(seed=1):
    breaches = []
    process = Writer()
    disk = Disk(random.Random(seed), breaches.append, process.writing)
    disk.process = process
    return disk, breaches


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_keeps_what_was_synced_and_lies_about_nothing(seed):
    disk, _ = new_disk(seed)
    fd = disk.open("/f", os.O_CREAT)
    disk.write(fd, memoryview(b"a" * 100))
    disk.fsync(fd)
    disk.sync_directory("/")
    disk.write(fd, memoryview(b"b" * 300))
    disk.power_cut()
    left = bytes(disk.files["/f"].data)
    assert left.startswith(b"a" * 100)
    assert set(left[100:]) <= {ord("b"), 0}
    assert len(left) <= 400


def test_a_full_disk_takes_a_part_and_then_nothing():
    disk, _ = new_disk()
    fd = disk.open("/f", os.O_CREAT)
    disk.full = True
    taken = disk.write(fd, memoryview(b"x" * 1000))
    assert 0 < taken < 1000
    with pytest.raises(OSError, match="No space"):
        disk.write(fd, memoryview(b"x"))
    disk.full = False
    assert disk.write(fd, memoryview(b"x")) == 1


def test_a_process_that_dies_in_a_write_leaves_a_part_of_it():
    lengths = set()
    for seed in range(30):
        disk, _ = new_disk(seed)
        disk.process.dies = True
        fd = disk.open("/f", os.O_CREAT)
        with pytest.raises(ProcessDead):
            disk.write(fd, memoryview(b"abcd"))
        lengths.add(len(disk.files["/f"].data))
        with pytest.raises(ProcessDead):
            disk.write(fd, memoryview(b"efgh"))
    assert lengths == {0, 1, 2, 3, 4}


def test_cutting_off_whole_lines_is_a_breach():
    disk, breaches = new_disk()
    fd = disk.open("/f", os.O_CREAT)
    disk.write(fd, memoryview(b"one\ntwo\nthr"))
    disk.ftruncate(fd, 8)
    assert not breaches
    disk.ftruncate(fd, 5)
    assert breaches


def test_a_torn_line_is_no_line():
    line = (
        b'{"nodeID":"n","nodeName":"n","timestamp":"t","scannername":"node_environment",'
        b'"environment":{},"pool":0}'
    )
    assert _read(line + b"\n") == [("n", "n", "t", 0)]
    assert _read(line) == [(line,)]
    assert _read(line[:50] + line + b"\n") == [(line[:50] + line + b"\n",)]
    assert _read(b"\n") == [(b"\n",)]
