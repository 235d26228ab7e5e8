"""The ledger under kill -9, a torn log and a full disk, with real processes and files.

Run as a program, this file is the process that is killed, or the one whose disk is full.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ledger_lab import done, hits, node
from nray.ledger import sqlite as module
from nray.ledger.entries import Cursor, CursorAt, Registration
from nray.ledger.errors import LedgerFull
from nray.ledger.sqlite import SqliteAccount, SqliteLedger

HERE = Path(__file__)
SOURCES = Path(module.__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{SOURCES}:{HERE.parent}"}

KILLS = 12
#: Small, so that kills also fall into the moment at which the log is brought into the database.
CHECKPOINT_PAGES = 12
#: Slices of one commit, at most.
SLICES = 40
WIDTH = 1000


def entries_of(commit):
    """What commit number ``commit`` (from 0) writes: always the same, of very different sizes."""
    draw = random.Random(commit)
    made = [Registration(1, commit)]
    for number in range(draw.choice([1, 3, SLICES])):
        start = (commit * SLICES + number) * WIDTH
        made += [hits(start, start + 1, start + 2), hits(start, start + 3)]
        if draw.random() < 0.8:  # the others never end: their hits stay open
            made.append(done(start, WIDTH, errors={"x": 1}))
    made.append(CursorAt("file", Cursor(0, commit + 1)))
    return made


def expected(commits):
    """Rows, done slices and hits after so many commits."""
    rows = []
    covered = []
    for entry in itertools.chain.from_iterable(entries_of(n) for n in range(commits)):
        if hasattr(entry, "ms"):
            rows.append(entry)
        elif hasattr(entry, "count"):
            covered.append((entry.start, entry.start + entry.count))
    return rows, covered


def commits_in(ledger):
    """How many commits a ledger holds; fails unless it holds exactly these, whole."""
    cursor = ledger.cursor("file")
    commits = cursor.position if cursor else 0
    rows, covered = expected(commits)
    found = []
    while more := ledger.read(len(found), 1000):
        found += more
    assert found == list(enumerate(rows, start=1))
    assert ledger.last == len(rows)
    kept = ledger.done(0, 0)
    assert kept.total == WIDTH * len(covered)
    assert all(kept.covers(*each) for each in covered)
    assert ledger.tally(0)[1] == kept.total
    assert ledger.errors(0).get("x", 0) == len(covered)
    assert ledger.hits(0) == sum(len(row.packed) // 32 for row in rows if hasattr(row, "packed"))
    return commits


def begin(path):
    ledger = SqliteLedger.create(path, scan="abc", settings=b"", segments=[(0, b"")])
    ledger.commit([node()])
    return ledger


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────


def write_for_ever(path):
    """The process that is killed: goes on where the ledger stands, and tells each commit."""
    module.CHECKPOINT_PAGES = CHECKPOINT_PAGES
    ledger = SqliteLedger.open(path)
    for commit in itertools.count(ledger.cursor("file").position if ledger.last else 0):
        ledger.commit(entries_of(commit))
        os.write(1, b"%d\n" % (commit + 1))


@pytest.mark.parametrize("seed", [1])
def test_kill_9_at_any_moment_leaves_every_acknowledged_commit_whole(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "scan.nray"
    begin(path).close()
    acknowledged = 0
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, str(HERE), "write", str(path)], stdout=subprocess.PIPE, env=ENV
        )
        try:
            for _ in range(draw.randrange(1, 12)):
                writer.stdout.readline()
            time.sleep(draw.random() * 0.01)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
        told, _ = writer.communicate()
        lines = told.split(b"\n")[:-1]
        ledger = SqliteLedger.open(path)
        held = commits_in(ledger)
        if lines:
            acknowledged = int(lines[-1])
        # At most the one that was under way is there beyond what was told.
        assert acknowledged <= held, f"seed {seed}, kill {kill}"
        if lines:
            assert held <= acknowledged + 1
        assert ledger.generation == 2 * kill + 3
        acknowledged = held
        ledger.close()
    assert acknowledged > KILLS


# ── a torn log ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A ledger of 12 commits, all in the log: the file, and the log's bytes."""
    directory = tmp_path_factory.mktemp("log")
    ledger = begin(directory / "scan.nray")
    for commit in range(12):
        ledger.commit(entries_of(commit))
    file = directory / "file"
    shutil.copyfile(ledger.path, file)
    data = Path(f"{ledger.path}-wal").read_bytes()
    ledger.close()
    return file, data


def commits_after(log, data, tmp_path):
    path = tmp_path / "torn.nray"
    for each in tmp_path.glob("torn.nray*"):
        each.unlink()
    shutil.copyfile(log[0], path)
    Path(f"{path}-wal").write_bytes(data)
    ledger = SqliteLedger.open(path)
    try:
        if not ledger.nodes():  # torn before the first commit that counts
            assert ledger.last == 0
            return -1
        commits = commits_in(ledger)
        ledger.commit(entries_of(commits))
        return commits
    finally:
        ledger.close()


def test_a_log_that_is_cut_anywhere_holds_the_commits_before(log, tmp_path):
    _, data = log
    draw = random.Random(5)
    cuts = sorted(draw.sample(range(len(data)), 25))
    found = [commits_after(log, data[:cut], tmp_path) for cut in cuts]
    assert found == sorted(found)
    assert len(set(found)) > 6
    assert commits_after(log, data, tmp_path) == 12


def test_a_log_with_a_torn_page_holds_the_commits_before(log, tmp_path):
    """The disk wrote sectors out of order: the end is there, something before it is not."""
    _, data = log
    draw = random.Random(6)
    found = []
    for at in sorted(draw.sample(range(32, len(data) - 512), 25)):
        torn = data[:at] + bytes(each ^ 255 for each in data[at : at + 512]) + data[at + 512 :]
        found.append(commits_after(log, torn, tmp_path))
    assert found == sorted(found)
    assert len(set(found)) > 4


# ── a full disk ─────────────────────────────────────────────────────────────────────────────

DISK = "4m"


def fill(disk, leave):
    """Fill the disk but for so many bytes; the file that does."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave
        while room > 0:
            room -= file.write(bytes(min(room, 4096)))
    return ballast


def until_full(ledger, commit):
    """Commit until there is no room; the number of the commit that failed."""
    numbers = itertools.count(commit)
    with pytest.raises(LedgerFull) as caught:
        commit_all(ledger, numbers)
    assert ledger.path in str(caught.value)
    assert caught.value.exit_status == 1
    return next(numbers) - 1


def commit_all(ledger, numbers):
    for number in numbers:
        ledger.commit(entries_of(number))


def full_while_writing(disk):
    """LedgerFull, nothing changed, nothing torn; the same entries go in when there is room."""
    ledger = begin(disk / "scan.nray")
    commit = 0
    for turn in range(4):
        ballast = fill(disk, leave=100_000 * (turn + 1))
        commit = until_full(ledger, commit)
        for _ in range(3):
            assert commits_in(ledger) == commit
            assert until_full(ledger, commit) == commit
        with contextlib.suppress(LedgerFull):  # what is small may still fit
            ledger.set_cursor("terminal", Cursor(1))
        ballast.unlink()
        ledger.commit(entries_of(commit))
        commit += 1
        assert commits_in(ledger) == commit
    ledger.close()
    again = SqliteLedger.open(ledger.path)
    assert commits_in(again) == commit
    again.close()


def killed_while_full(disk):
    """Killed on a full disk: all that was acknowledged is there, once there is room."""
    child = os.fork()
    if child == 0:
        ledger = begin(disk / "scan.nray")
        fill(disk, leave=150_000)
        until_full(ledger, 0)
        os._exit(0)  # as good as a kill: nothing is closed
    assert os.waitpid(child, 0)[1] == 0
    with contextlib.suppress(LedgerFull):  # to be opened is to be written to
        SqliteLedger.open(disk / "scan.nray").close()
    account = SqliteAccount.inspect(disk / "scan.nray")
    held = commits_in(account)
    account.close()
    (disk / "ballast").unlink()
    ledger = SqliteLedger.open(disk / "scan.nray")
    assert held > 0
    assert commits_in(ledger) == held
    ledger.commit(entries_of(held))
    ledger.close()


def full_from_the_start(disk):
    """No room for a new ledger: nothing is left behind, and it is made when there is room."""
    ballast = fill(disk, leave=0)
    with pytest.raises(LedgerFull, match=r"scan\.nray: "):
        begin(disk / "scan.nray")
    assert sorted(each.name for each in disk.iterdir()) == ["ballast"]
    ballast.unlink()
    begin(disk / "scan.nray").close()


def full_at_the_end(disk):
    """No room to tidy up: closing does not fail, and loses nothing."""
    ledger = begin(disk / "scan.nray")
    for commit in range(10):
        ledger.commit(entries_of(commit))
    ballast = fill(disk, leave=0)
    ledger.close()
    ballast.unlink()
    again = SqliteLedger.open(ledger.path)
    assert commits_in(again) == 10
    again.close()
    assert sorted(each.name for each in disk.iterdir()) == ["scan.nray"]


SCENES = (full_while_writing, killed_while_full, full_from_the_start, full_at_the_end)


def require_mounts():
    """Skip where this user may mount nothing; under CI that is a failure."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        ran = subprocess.run(probe, capture_output=True, text=True)
        reason = "" if ran.returncode == 0 else ran.stderr.strip()
    except FileNotFoundError as error:
        reason = str(error)
    if reason and os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"no small disk can be made: {reason} (under CI this is a failure)")
    if reason:
        pytest.skip(f"no small disk can be made: {reason}")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_on_a_full_disk(tmp_path, scene):
    require_mounts()
    command = f'mount -t tmpfs -o size={DISK} none "$1" && exec "$2" "$3" disk "$4" "$1"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh",
         tmp_path, sys.executable, HERE, scene.__name__],
        env=ENV, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_for_ever(sys.argv[2])
    else:
        next(each for each in SCENES if each.__name__ == sys.argv[2])(Path(sys.argv[3]))
