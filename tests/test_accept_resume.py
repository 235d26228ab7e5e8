"""Issue 12, 3 and 6: a server is killed, interrupted, or out of room, and the scan goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.capture import Capture
from lab.certs import Credentials
from lab.namespaces import require
from nray.ledger.sqlite import SqliteAccount
from nray.server.server import FAREWELL_S
from nray.targets.segment import Segment
from torture.crew import PORT, Crew, Process
from torture.ground import DATA, PORTS, TARGETS, Ground
from torture.judge import judge_events, judge_ledger, judge_lines
from torture.plan import FAR, NEAR

pytestmark = [pytest.mark.lab, pytest.mark.slow]

#: Probes of a slice at most, where the work done again is counted.
SLICE = 100
#: Leases of one of our nodes at most: two workers, each with one in work and one ahead; and as
#: many again whose end is reported and not yet on the disk.
HELD = 4 + 4
END_S = 120.0


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    require()
    with Ground() as made:
        yield made


@pytest.fixture
def crew_of(
    ground: Ground, credentials: Credentials, tmp_path: Path
) -> Iterator[Callable[..., Crew]]:
    """Makes a crew; its processes are gone after the test."""
    made: list[Crew] = []

    def make(**changes: Any) -> Crew:
        made.append(Crew(ground, tmp_path, credentials, changes))
        return made[-1]

    yield make
    for crew in made:
        crew.close()


def lines(crew: Crew) -> int:
    with contextlib.suppress(FileNotFoundError):
        return crew.output.read_bytes().count(b"\n")
    return 0


def until(condition: Callable[[], bool], crew: Crew, timeout_s: float = END_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, crew.said()
        time.sleep(0.01)


def begin(crew: Crew, share: float = 0.3) -> None:
    """Server and both nodes; returns when so much of the scan is written down."""
    crew.start_server()
    crew.start_node(NEAR)
    crew.start_node(FAR)
    until(lambda: lines(crew) > share * len(TARGETS) * len(PORTS), crew)


def expect_end(crew: Crew, process: Process, status: int = 0) -> None:
    try:
        process.popen.wait(END_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{process.name} does not end\n{crew.said()}")
    assert process.popen.returncode == status, crew.said()
    assert "Traceback" not in process.said, process.said


def expect_whole(crew: Crew, ground: Ground) -> None:
    events, faults = judge_lines(crew.output.read_bytes())
    faults += judge_events(events, ground.truth) + judge_ledger(crew.ledger, events)
    assert faults == [], crew.said()


# ── the server is killed ────────────────────────────────────────────────────────────────────


def test_nodes_come_back_and_little_is_done_again(
    ground: Ground, crew_of: Callable[..., Crew], tmp_path: Path
) -> None:
    standard = {
        "enabled": True,
        "targets": list(TARGETS),
        "tcpports": [f"{PORTS.start}-{PORTS.stop - 1}"],
        "udpports": [],
        "maxHostsPerBatch": 1,
        "maxTcpPortsPerBatch": SLICE,
    }
    crew = crew_of(targetgenerator={"standard": standard})
    near = Capture(ground.hub, "lo", tmp_path / "near.capture")
    far = Capture(ground.far, DATA, tmp_path / "far.capture")
    with near, far:
        begin(crew)
        crew.server.kill()
        done = done_probes(crew.ledger)
        crew.start_server()
        expect_end(crew, crew.server)
        for node in crew.nodes:
            expect_end(crew, node)
    expect_whole(crew, ground)
    for node in crew.nodes:
        assert f"back at {crew_server()} as node-" in node.said
    sent = Counter(
        (packet.address, packet.port)
        for packet in near.probes() + far.probes()
        if packet.protocol == "tcp"
        and packet.address in TARGETS
        # Others are those that tell tarpits from hosts with many open ports.
        and packet.port in PORTS
    )
    assert set(sent) == set(ground.truth)
    again = {probe for probe, times in sent.items() if times > 1}
    assert max(sent.values()) <= 2
    assert len(done) > SLICE, "killed too early to prove anything"
    assert again, "nothing was open when the server was killed: killed too late"
    assert again.isdisjoint(done)
    assert len(again) <= 2 * HELD * SLICE


def crew_server() -> str:
    from torture.ground import SERVER

    return f"{SERVER}:{PORT}"


def done_probes(path: Path) -> set[tuple[str, int]]:
    """Target and port of every probe that a ledger calls done."""
    account = SqliteAccount.inspect(path)
    try:
        ((number, body),) = account.segments()
        segment = Segment.unpack(body)
        intervals = list(account.done(0, number))
    finally:
        account.close()
    found = set()
    for start, end in intervals:
        for line in segment.listing(start, end - start).decode().splitlines():
            host, _, service = line.partition(" ")
            found.add((host, int(service.partition("/")[0])))
    return found


def test_a_finished_scan_has_nothing_to_go_on_with(
    ground: Ground, crew_of: Callable[..., Crew]
) -> None:
    crew = crew_of()
    begin(crew)
    expect_end(crew, crew.server)
    before = crew.output.read_bytes()
    again = crew.start_server()
    assert "--resume" in again.popen.args
    expect_end(crew, again)
    assert "finished" in again.said
    assert crew.output.read_bytes() == before
    expect_whole(crew, ground)


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def test_a_changed_configuration_is_refused_with_the_difference(
    ground: Ground, crew_of: Callable[..., Crew]
) -> None:
    crew = crew_of()
    begin(crew)
    crew.server.kill()
    text = crew.configuration.read_text()
    crew.configuration.write_text(text.replace('"1500ms"', '"1700ms"'))
    refused = crew.start_server()
    expect_end(crew, refused, 2)
    said = refused.said.splitlines()
    assert any(line.strip().startswith("-") and "1500ms" in line for line in said), refused.said
    assert any(line.strip().startswith("+") and "1700ms" in line for line in said), refused.said
    crew.configuration.write_text(text)
    crew.start_server()
    expect_end(crew, crew.server)
    expect_whole(crew, ground)


@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["anew", "resume"])
def test_a_second_server_is_refused(
    ground: Ground, crew_of: Callable[..., Crew], more: list[str]
) -> None:
    crew = crew_of()
    begin(crew, 0.1)
    first = crew.server
    for node in crew.nodes:  # held, or on a busy machine the scan ends before the second looks
        node.signal(signal.SIGSTOP)
    ledger, crew.ledger = crew.ledger, crew.ledger.with_name("none")  # start_server() looks for it
    second = crew.start_server(*more)
    crew.ledger = ledger
    expect_end(crew, second, 2)
    for node in crew.nodes:
        node.signal(signal.SIGCONT)
    assert f"another nray (process {first.popen.pid}) is writing this ledger" in second.said
    expect_end(crew, first)
    expect_whole(crew, ground)


# ── Ctrl+C ──────────────────────────────────────────────────────────────────────────────────


def test_the_first_interrupt_ends_in_order(ground: Ground, crew_of: Callable[..., Crew]) -> None:
    crew = crew_of()
    begin(crew)
    crew.server.signal(signal.SIGINT)
    expect_end(crew, crew.server, 130)
    assert "--resume" in crew.server.said
    for node in crew.nodes:
        expect_end(crew, node)
    events, faults = judge_lines(crew.output.read_bytes())
    assert faults == []
    assert len(events) < len(ground.truth), "interrupted too late to prove anything"
    assert not crew.ledger.with_name(crew.ledger.name + "-wal").exists()
    before = crew.output.read_bytes()
    begin(crew, 0.9)
    expect_end(crew, crew.server)
    expect_whole(crew, ground)
    assert crew.output.read_bytes().startswith(before)


def test_the_second_interrupt_ends_at_once(ground: Ground, crew_of: Callable[..., Crew]) -> None:
    crew = crew_of(internal={"nodeExpiryTime": 60, "nodeExpiryCheckInterval": 1})
    begin(crew)
    for node in crew.nodes:  # they do not say good-bye, for which the server would wait
        node.signal(signal.SIGSTOP)
    crew.server.signal(signal.SIGINT)
    time.sleep(0.3)
    assert crew.server.running
    begun = time.monotonic()
    crew.server.signal(signal.SIGINT)
    expect_end(crew, crew.server, 130)
    assert time.monotonic() - begun < FAREWELL_S / 2
    for node in crew.nodes:  # the word to stop has reached them
        node.signal(signal.SIGCONT)
        expect_end(crew, node)
    begin(crew, 0.9)
    expect_end(crew, crew.server)
    expect_whole(crew, ground)


# ── a full disk ─────────────────────────────────────────────────────────────────────────────

#: Room for the whole scan: some 3 MB of events, and a log of SQLite that grows to 16.
DISK_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of `DISK_BYTES`."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "nraylab", str(path)], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> Path:
    """Take all the room that is left; the file to be removed."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


@pytest.mark.parametrize("on_it", ["ledger", "output", "both"])
def test_a_full_disk_pauses_the_scan(
    ground: Ground,
    credentials: Credentials,
    tmp_path: Path,
    small_disk: Path,
    on_it: str,
) -> None:
    ledger = (tmp_path if on_it == "output" else small_disk) / "ledger"
    output = (tmp_path if on_it == "ledger" else small_disk) / "out.json"
    json_file = {
        "filename": str(output),
        "states": ["closed", "filtered", "error"],
        # Little waits in memory: the scan has to stand soon.
        "internal": {"channelsize": 100},
    }
    crew = Crew(
        ground,
        tmp_path,
        credentials,
        {"ledger": str(ledger), "events": {"json-file": json_file}},
    )
    crew.ledger, crew.output = ledger, output
    try:
        begin(crew, 0.2)
        ballast = fill(small_disk)
        until(lambda: "paused" in crew.server.said, crew)
        until(lambda: stands(crew, ledger), crew)
        assert crew.server.running
        assert judge_lines(crew.output.read_bytes())[1] == []
        told = [line for line in crew.server.said.splitlines() if "paused" in line]
        assert len(told) == (2 if on_it == "both" and len(told) == 2 else 1), told
        assert all("room" in line for line in told)
        ballast.unlink()
        expect_end(crew, crew.server)
        for node in crew.nodes:
            expect_end(crew, node)
        assert "there is room again" in crew.server.said
        expect_whole(crew, ground)
    finally:
        crew.close()


def stands(crew: Crew, ledger: Path) -> bool:
    """Whether nothing is written for a while; what is under way may come to its end first."""
    stood = lines(crew), size_of(ledger)
    time.sleep(1.0)
    return (lines(crew), size_of(ledger)) == stood


def size_of(path: Path) -> int:
    return sum(os.stat(each).st_size for each in (path, f"{path}-wal") if os.path.exists(each))


def test_a_full_disk_and_a_killed_server(
    ground: Ground, credentials: Credentials, tmp_path: Path, small_disk: Path
) -> None:
    """The worst of both: it comes back while there is no room, and again when there is."""
    crew = Crew(ground, tmp_path, credentials, {})
    config = json.loads(crew.configuration.read_text())
    config["ledger"] = str(small_disk / "ledger")
    config["events"]["json-file"]["filename"] = str(small_disk / "out.json")
    crew.configuration.write_text(json.dumps(config))
    crew.ledger, crew.output = small_disk / "ledger", small_disk / "out.json"
    try:
        begin(crew, 0.2)
        ballast = fill(small_disk)
        until(lambda: "paused" in crew.server.said, crew)
        crew.server.kill()
        returned = crew.start_server()
        until(lambda: not returned.running or "paused" in returned.said, crew)
        ended = not returned.running
        if ended:  # it may say that there is no room, too
            expect_end(crew, returned, 1)
            assert "room" in returned.said
        ballast.unlink()
        if ended:
            crew.start_server()
        expect_end(crew, crew.server)
        for node in crew.nodes:
            expect_end(crew, node)
        expect_whole(crew, ground)
    finally:
        crew.close()
