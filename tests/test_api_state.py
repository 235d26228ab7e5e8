"""What a ledger keeps of a scan's beginning, and a scan of one process that goes on with it."""

from __future__ import annotations

import os
import random
import socket

import msgspec
import pytest

from fakes import found_in, hit
from nray import UserError
from nray.api import scan as scanning
from nray.api.collect import CallSink
from nray.api.serve import cursors_of, ledger_path
from nray.api.standing import standing_lines
from nray.api.state import (
    Origin,
    create_state,
    demand_same_config,
    forget,
    open_state,
    pack_origin,
    plan_of_segments,
    position_of,
    unpack_origin,
)
from nray.config.schema import Config
from nray.events import model
from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink
from nray.ledger.entries import Cursor, Hits, NodeSeen, SliceDone
from nray.ledger.errors import LedgerError
from nray.ledger.memory import MemoryLedger
from nray.targets.plan import plan
from nray.targets.segment import Segment

SETTINGS = scanning.settings_for(timeout_s=1.0)


def origin(kind="scan", **changes):
    return Origin(kind, SETTINGS, **changes)


# ── how a scan was begun ────────────────────────────────────────────────────────────────────


def test_an_origin_comes_back():
    made = origin(
        "server", config="a: 1\n", show=("closed",), output="x", directory="/d", processes=3, seed=9
    )
    assert unpack_origin(pack_origin(made), "state") == made


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"\xc0", msgspec.msgpack.encode({"kind": "scan"}), b"\x93\x01\x02\x03"]
)
def test_what_is_no_origin_is_an_error_that_names_the_file(data):
    with pytest.raises(UserError, match=r"my\.state"):
        unpack_origin(data, "my.state")


def test_another_versions_origin_is_refused():
    data = pack_origin(msgspec.structs.replace(origin(), version=99))
    with pytest.raises(UserError, match="another version"):
        unpack_origin(data, "my.state")


def test_a_plan_comes_back_from_its_segments():
    made = plan(["198.18.0.0/28", "a.example"], tcp="1-10", exclude="198.18.0.3", seed=5)
    again = plan_of_segments((Segment.unpack(each.pack()) for each in made.segments), 5)
    assert again.segments == made.segments
    assert (again.probes, again.hosts, again.ports, again.seed) == (made.probes, 16, 10, 5)


def test_a_state_is_created_opened_and_forgotten(tmp_path):
    path = str(tmp_path / "my.state")
    made = plan("198.18.0.0/28", tcp="1-10", seed=5)
    ledger = create_state(path, origin("scan", show=("closed",)), made)
    assert ledger.generation == 1
    with pytest.raises(LedgerError):
        open_state(path, "scan")  # in use
    ledger.close()
    ledger, before = open_state(path, "scan")
    assert (before.kind, before.show, before.seed) == ("scan", ("closed",), 5)
    assert before.created_ms > 1_700_000_000_000
    assert ledger.generation == 2
    assert [Segment.unpack(body) for _, body in ledger.segments()] == list(made.segments)
    assert ledger.segments_ended
    ledger.close()
    with pytest.raises(LedgerError):  # it would be lost
        create_state(path, origin(), made)
    ledger, _ = open_state(path, "scan")
    forget(ledger, path)
    assert not os.path.exists(path)
    with pytest.raises(LedgerError):
        open_state(path, "scan")


@pytest.mark.parametrize(
    ("kind", "wanted", "hint"),
    [("scan", "server", "nray scan --resume"), ("server", "scan", "nray server --resume")],
)
def test_the_other_kind_of_scan_is_named(tmp_path, kind, wanted, hint):
    path = str(tmp_path / "my.state")
    create_state(path, origin(kind), plan("198.18.0.1", tcp="1")).close()
    with pytest.raises(UserError, match="not of this kind") as caught:
        open_state(path, wanted)
    assert hint.split()[1] in caught.value.hint
    open_state(path, kind)[0].close()  # it was let go


# ── the configuration of a scan that goes on ────────────────────────────────────────────────


def test_the_same_configuration_is_accepted():
    demand_same_config("a: 1\nb: 2\n", "a: 1\nb: 2\n", "my.ledger", "conf.yaml")


def test_a_changed_configuration_is_refused_and_the_difference_shown():
    before = "listen: [8601]\npools: 1\nseed: 5\nscannerconfig:\n  ratelimit: 100\n"
    now = "listen: [8601]\npools: 2\nseed: 5\nscannerconfig:\n  ratelimit: 100\n  workers: 7\n"
    with pytest.raises(UserError, match=r"conf\.yaml was changed .* my\.ledger") as caught:
        demand_same_config(before, now, "my.ledger", "conf.yaml")
    shown = [line.strip() for line in caught.value.message.splitlines()]
    assert "-pools: 1" in shown
    assert "+pools: 2" in shown
    assert "+  workers: 7" in shown
    assert not [line for line in shown if "seed" in line or "ratelimit" in line or "@@" in line]
    assert "--resume" in caught.value.hint


def test_a_long_difference_is_cut():
    before = "".join(f"a{n}: 1\n" for n in range(500))
    with pytest.raises(UserError) as caught:
        demand_same_config(before, before.replace(": 1", ": 2"), "l", "c")
    assert len(caught.value.message.splitlines()) < 60


@pytest.mark.parametrize(
    ("key", "path"), [("", "conf.yaml.ledger"), ("x.ledger", "x.ledger"), ("none", "")]
)
def test_where_a_servers_ledger_is(key, path):
    assert ledger_path(Config(ledger=key), "conf.yaml") == path


def test_an_output_is_gone_on_with_from_its_cursor_and_from_nowhere_at_first():
    ledger = MemoryLedger(scan="s", segments=[(0, b"")], ended=True)
    assert cursors_of(ledger) is None
    ledger.set_cursor("json-file x", Cursor(0, 77))
    again = ledger.crash()
    resume = cursors_of(again)
    assert (resume("json-file x"), resume("json-file y")) == (77, 0)
    assert position_of(again, "json-file x") == 77


# ── a scan in one process ───────────────────────────────────────────────────────────────────


def run(made, ledger, take, processes=2, size=1000):
    ports = [SinkPort(CallSink(take), channelsize=size)]
    return scanning.run(made, SETTINGS, lambda: ports, processes, ledger=ledger)


@pytest.fixture
def listener():
    with socket.create_server(("0.0.0.0", 0), backlog=500) as made:
        yield made.getsockname()[1]


def test_a_scan_with_a_state_ends_as_one_without(tmp_path, listener):
    made = plan("127.5.0.0/26", tcp=str(listener), seed=1)
    path = str(tmp_path / "my.state")
    ledger = create_state(path, origin(), made)
    taken = []
    result = run(made, ledger, taken.append)
    assert (result.exit_status, result.probes, len(set(found_in(taken)))) == (0, 64, 64)
    assert ledger.finished
    assert ledger.done(0, 0).total == 64
    assert ledger.hits(0) == 64
    ledger.close()
    assert any("64 of 64 probes done" in line for line in standing_lines(path))


def test_a_scan_goes_on_with_what_is_missing_and_with_what_outputs_miss(tmp_path, listener):
    made = plan("127.5.0.0/26", tcp=str(listener), seed=1)
    path = str(tmp_path / "my.state")
    ledger = create_state(path, origin(), made)
    record = hit(made.segments[0], 3)
    ledger.commit(
        [
            NodeSeen(1, "local", "elsewhere", 0, None, "", "", None, 1),
            Hits(1, 0, 0, 0, 1_700_000_000_000, record),
            SliceDone(0, 0, 0, 40, (1, 39, 0, 0, 0, 0, 0, 0, 0)),
            Hits(1, 0, 0, 40, 1_700_000_000_000, hit(made.segments[0], 41)),
        ]
    )
    ledger.close()
    ledger, _ = open_state(path, "scan")
    taken = []
    result = run(plan_of_segments(made.segments, 1), ledger, taken.append)
    assert (result.exit_status, result.probes, result.total) == (0, 64, 64)
    assert any("40 of them were done before" in line for line in result.summary)
    assert result.tally.open == 1 + 24
    # The output had nothing yet: both old hits, under the name of then, and 23 new ones.
    found = found_in(taken)
    assert len(found) == len(set(found)) == 2 + 23
    assert [event.nodeName for event in taken[:2]] == ["elsewhere"] * 2
    assert {event.nodeName for event in taken[2:]} != {"elsewhere"}
    ledger.close()


def test_a_state_that_was_finished_scans_nothing_more(tmp_path, listener):
    made = plan("127.5.0.0/28", tcp=str(listener), seed=1)
    path = str(tmp_path / "my.state")
    ledger = create_state(path, origin(), made)
    run(made, ledger, lambda event: None)
    ledger.close()
    ledger, _ = open_state(path, "scan")
    taken = []
    result = run(made, ledger, taken.append)
    assert (result.exit_status, result.probes, taken) == (0, 16, [])
    ledger.close()


def test_an_output_that_fails_leaves_a_state_that_can_be_gone_on_with(tmp_path, listener):
    # Few enough that all runs together do not fill the backlog, from which nobody takes.
    made = plan("127.5.0.0/26", tcp=str(listener), seed=1)
    path = str(tmp_path / "my.state")
    out = tmp_path / "out.json"
    rng = random.Random(3)
    errors = []
    for life in range(30):
        if life:
            ledger, _ = open_state(path, "scan")
        else:
            ledger = create_state(path, origin(), made)
        resume = position_of(ledger, f"json-file {out}") if life else None
        if out.exists():
            os.truncate(out, rng.randint(resume, out.stat().st_size))
        left = [rng.randint(1, 6) if life < 4 else 10_000]

        def fail(fd, data, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "Input/output error")
            return os.write(fd, data[: rng.randint(1, 4000)])

        sink = JsonFileSink(str(out), resume_at=resume, write=fail)
        ports = [SinkPort(sink, channelsize=8)]
        try:
            result = scanning.run(made, SETTINGS, lambda ports=ports: ports, 2, ledger=ledger)
        except UserError as error:
            errors.append(error.message)
            continue
        finally:
            ledger.close()
        break
    assert len(errors) >= 2
    assert all("Input/output error" in message for message in errors)
    assert result.exit_status == 0
    found = found_in([model.decode(line) for line in out.read_bytes().splitlines()])
    assert sorted(found) == sorted((f"127.5.0.{n}", listener) for n in range(64))


def test_hosts_that_were_found_are_scanned_by_the_process_that_goes_on(tmp_path, listener):
    """Killed when discovery was done and nothing followed it yet."""
    made = plan("127.5.0.0/26", tcp=str(listener), discovery="syn:1", seed=1)
    path = str(tmp_path / "my.state")
    ledger = create_state(path, origin(), made)
    assert not ledger.segments_ended
    first = made.segments[0]
    ledger.commit(
        [
            NodeSeen(1, "local", "elsewhere", 0, None, "", "", None, 1),
            Hits(1, 0, 0, 0, 1_700_000_000_000, hit(first, 3) + hit(first, 9), True),
            SliceDone(0, 0, 0, 64, (2, 0, 62, 0, 0, 0, 0, 0, 0), discovery=True),
        ]
    )
    ledger.close()
    assert "64 hosts looked for, 0 up so far; only those are scanned" in standing_lines(path)
    ledger, kept = open_state(path, "scan")
    going_on = plan_of_segments((Segment.unpack(body) for _, body in ledger.segments()), kept.seed)
    assert (going_on.hosts, going_on.probes, going_on.searches) == (64, 64, 64)
    taken = []
    result = run(going_on, ledger, taken.append)
    assert (result.exit_status, result.probes, result.total) == (0, 2, 2)
    assert len(found_in(taken)) == 2
    assert "64 hosts looked for, 2 up; no others were scanned" in result.summary
    assert [number for number, _ in ledger.segments()] == [0, 1]
    assert ledger.segments_ended
    assert ledger.finished
    ledger.close()
    lines = standing_lines(path)
    assert "pool 0: 2 of 2 probes done (100.0 %), 0 missing" in lines
    assert "pool 0: 64 of 64 probes of discovery done (100.0 %), 0 missing" in lines


def test_hosts_are_looked_for_and_scanned_in_one_process(listener):
    made = plan("127.5.0.0/26", tcp=str(listener), discovery="syn:1,2", seed=1)
    taken = []
    result = run(made, None, taken.append)
    assert (result.exit_status, result.probes, len(set(found_in(taken)))) == (0, 64, 64)
    assert result.summary[0].startswith("64 probes and 128 of discovery in ")
