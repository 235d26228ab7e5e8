"""The json-file sink: whole lines at once, whatever the disk does."""

import errno
import math
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nray.events import model
from nray.events.json_file import JsonFileSink, _sync_directory
from nray.events.sink import SinkClosed, SinkError, SinkStartError


def event(port: int = 80, **changes: Any) -> model.Event:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "node_name": "node-a",
        "timestamp_ms": 1767323045123,
        "target": "198.18.0.5",
        "address": "198.18.0.5",
        "state": "open",
        "reason": "syn-ack",
        "timeout_ms": 1000,
    }
    return model.port_event(port=port, **(fields | changes))


EVENTS = [event(port) for port in range(1, 6)]
LINE_BYTES = len(model.encode(EVENTS[0])) + 1


def test_each_batch_is_one_write_and_visible_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    calls: list[int] = []

    def counting(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        return os.write(fd, data)

    sink = JsonFileSink(str(path), write=counting)
    sink.open()
    sink.write(EVENTS)
    assert path.read_bytes() == model.encode_lines(EVENTS)
    sink.write(EVENTS[:1])
    assert path.read_bytes() == model.encode_lines([*EVENTS, EVENTS[0]])
    sink.close()
    sink.close()
    assert len(calls) == 2


def test_a_file_that_someone_cuts_is_written_from_its_new_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    sink = JsonFileSink(str(path))
    sink.open()
    sink.write(EVENTS)
    os.truncate(path, 0)  # as logrotate's copytruncate does
    sink.write(EVENTS[:1])
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS[:1])


def test_an_existing_file_is_an_error_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("precious\n")
    with pytest.raises(SinkStartError) as caught:
        JsonFileSink(str(path)).open()
    assert str(path) in caught.value.message
    assert "overwriteExisting" in caught.value.hint
    assert caught.value.exit_status == 2
    assert path.read_text() == "precious\n"


def test_a_link_to_nowhere_is_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "out.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SinkStartError, match="exists already"):
        JsonFileSink(str(tmp_path / "out.json")).open()


def test_overwrite_existing_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old\n" * 1000)
    sink = JsonFileSink(str(path), overwrite_existing=True)
    sink.open()
    assert path.read_bytes() == b""
    sink.write(EVENTS)
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_a_file_that_another_sink_writes_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    first = JsonFileSink(str(path))
    first.open()
    first.write(EVENTS)
    with pytest.raises(SinkStartError, match="another process is writing"):
        JsonFileSink(str(path), overwrite_existing=True).open()
    first.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


@pytest.mark.parametrize(
    ("name", "hint"), [("no/such/out.json", "directory does not exist"), (".", "overwrite")]
)
def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(SinkStartError) as caught:
        JsonFileSink(str(tmp_path / name)).open()
    assert hint in caught.value.hint


def test_a_directory_cannot_be_overwritten(tmp_path: Path) -> None:
    with pytest.raises(SinkStartError, match="cannot open"):
        JsonFileSink(str(tmp_path), overwrite_existing=True).open()


@given(st.lists(st.integers(0, 5 * LINE_BYTES), min_size=1, max_size=3))
def test_a_disk_that_fills_up_leaves_only_whole_lines(accepted: list[int]) -> None:
    """The system takes `accepted` bytes write by write, then says that the disk is full."""
    wanted = model.encode_lines(EVENTS)
    left = iter(accepted)

    def filling(fd: int, data: memoryview) -> int:
        take = next(left, 0)
        if take == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data[:take])

    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"nray-test-{os.getpid()}.json"
    sink = JsonFileSink(str(path), overwrite_existing=True, write=filling)
    sink.open()
    error: SinkError | None = None
    try:
        sink.write(EVENTS)
    except SinkError as caught:
        error = caught
    finally:
        sink.close()
        content = path.read_bytes()
        path.unlink()
    if error is None:
        assert content == wanted
    else:
        assert f"{path}: writing failed: No space left" in error.message
        assert "free some space" in error.hint
    assert wanted.startswith(content)
    assert content == b"" or content.endswith(b"\n")
    reach = 0  # how far the system went before it first took nothing
    for take in accepted:
        if take == 0:
            break
        reach += take
    assert len(content) == min(reach, len(wanted)) // LINE_BYTES * LINE_BYTES


def test_a_write_that_takes_nothing_is_not_tried_for_ever(tmp_path: Path) -> None:
    sink = JsonFileSink(str(tmp_path / "out.json"), write=lambda fd, data: 0)
    sink.open()
    with pytest.raises(SinkError, match="wrote nothing"):
        sink.write(EVENTS)
    sink.close()


def test_a_torn_line_that_cannot_be_cut_off_is_confessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = iter([10])

    def torn(fd: int, data: memoryview) -> int:
        if take := next(writes, 0):
            return os.write(fd, data[:take])
        raise OSError(errno.EIO, "Input/output error")

    sink = JsonFileSink(str(tmp_path / "out.json"), write=torn)
    sink.open()

    def refuse(fd: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(SinkError, match="torn"):
        sink.write(EVENTS)
    sink.close()


def test_the_systems_own_limit_on_a_files_size(tmp_path: Path) -> None:
    """No stand-in: the kernel takes part of the line and refuses the rest (EFBIG)."""
    path = tmp_path / "out.json"
    sink = JsonFileSink(str(path))
    sink.open()
    sink.write(EVENTS[:1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LINE_BYTES * 3 + 10, hard))
    try:
        with pytest.raises(SinkError, match="File too large"):
            sink.write(EVENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sink.close()
    assert path.read_bytes() == model.encode_lines([EVENTS[0], *EVENTS[:2]])


def test_sync_is_due_once_in_its_time_and_only_after_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    synced: list[float] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(now))
    sink = JsonFileSink(str(tmp_path / "out.json"), synctimer_s=10.0, clock=lambda: now)
    sink.open()
    assert sink.sync_due_s() == math.inf
    sink.write(EVENTS)
    assert sink.sync_due_s() == 10.0
    now = 104.0
    sink.write(EVENTS)
    assert sink.sync_due_s() == 6.0
    now = 111.0
    assert sink.sync_due_s() == 0.0
    sink.sync()
    assert sink.sync_due_s() == math.inf
    sink.sync()
    sink.close()  # nothing new: no third call
    assert synced == [111.0]


def test_closing_syncs_and_lets_go_even_if_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonFileSink(str(tmp_path / "out.json"))
    sink.open()
    sink.write(EVENTS)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SinkError, match="did not take it"):
        sink.close()
    sink.close()
    with pytest.raises(SinkError, match="not open"):
        sink.write(EVENTS)


def test_a_named_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    sink = JsonFileSink(str(path))
    sink.open()
    assert sink.abandonable
    sink.write(EVENTS)
    assert sink.sync_due_s() == math.inf
    sink.close()
    reader.join()
    assert got == [model.encode_lines(EVENTS)]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_named_pipe_whose_reader_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonFileSink(str(path))
    sink.open()
    os.close(reader)
    with pytest.raises(SinkClosed):
        sink.write(EVENTS)
    sink.close()


# ── position ────────────────────────────────────────────────────────────────────────────────


def opened(path: Path, **changes: Any) -> JsonFileSink:
    sink = JsonFileSink(str(path), **changes)
    sink.open()
    return sink


def crash(sink: JsonFileSink) -> None:
    """What a kill leaves: the descriptor and the lock are gone, nothing else was done."""
    sink._release()


class Disk:
    """Stands in for os.write: takes `room` bytes, then fails with `error`."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        self.room = room
        self.error = error

    def write(self, fd: int, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        taken = os.write(fd, data[: self.room])
        self.room -= taken
        return taken


def test_position_moves_with_the_sync_and_not_before(tmp_path: Path) -> None:
    sink = JsonFileSink(str(tmp_path / "out.json"))
    assert sink.position == 0
    sink.open()
    sink.write(EVENTS[:2])
    assert sink.position == 0
    sink.sync()
    assert sink.position == 2 * LINE_BYTES
    sink.write(EVENTS[2:])
    assert sink.position == 2 * LINE_BYTES
    sink.close()
    assert sink.position == 5 * LINE_BYTES


@pytest.mark.parametrize("resume_at", [None, 0])
def test_position_is_in_the_file_as_it_is_after_someone_cut_it(
    tmp_path: Path, resume_at: int | None
) -> None:
    path = tmp_path / "out.json"
    sink = opened(path, resume_at=resume_at)
    sink.write(EVENTS)
    sink.sync()
    os.truncate(path, 0)
    sink.write(EVENTS[:2])
    sink.close()
    assert sink.position == path.stat().st_size == 2 * LINE_BYTES


def test_after_a_failed_sync_position_never_moves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost page once; the next fsync of the same pages succeeds."""
    sink = opened(tmp_path / "out.json")
    sink.write(EVENTS[:1])
    sink.sync()
    fsync = os.fsync

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    sink.write(EVENTS[1:])
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SinkError, match="did not take it") as caught:
        sink.sync()
    assert not caught.value.retry
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SinkError, match="did not take it"):
        sink.close()
    assert sink.position == LINE_BYTES


def test_the_first_sync_covers_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("nray.events.json_file._sync_directory", synced.append)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    sink = opened(tmp_path / "link" / "out.json")
    for first in range(3):
        sink.write(EVENTS[first : first + 1])
        sink.sync()
    sink.close()
    assert synced == [str((tmp_path / "there").resolve())]


def test_directories_that_cannot_be_synced_are_let_be(tmp_path: Path) -> None:
    def fails(number: int) -> Any:
        def fsync(fd: int) -> None:
            assert stat.S_ISDIR(os.fstat(fd).st_mode)
            raise OSError(number, os.strerror(number))

        return fsync

    _sync_directory(str(tmp_path / "missing"))
    _sync_directory(str(tmp_path))
    _sync_directory(str(tmp_path), fails(errno.EINVAL))
    with pytest.raises(OSError, match="Input/output"):
        _sync_directory(str(tmp_path), fails(errno.EIO))


# ── no room ─────────────────────────────────────────────────────────────────────────────────


def hand_over(sink: JsonFileSink, events: Sequence[model.Event], disk: Disk, more: int) -> int:
    """As a caller does who waits for room: the rest again, after every `retry`. How often."""
    waits = 0
    while True:
        try:
            sink.write(events)
        except SinkError as error:
            if not error.retry:
                raise
            events = events[error.written_events :]
            disk.room = more
            waits += 1
        else:
            return waits


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests with hundreds of files."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("nray.events.json_file._sync_directory", lambda path: None)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("resumed", [False, True])
def test_a_full_disk_at_every_byte_then_room(tmp_path: Path, resumed: bool) -> None:
    """Also where the line that finds no room was torn by a crash before."""
    wanted = model.encode_lines(EVENTS[:3])
    for room in range(len(wanted)):
        path = tmp_path / f"{room}.json"
        disk = Disk(room)
        if resumed:
            path.write_bytes(wanted[: LINE_BYTES + 30])
        sink = opened(path, write=disk.write, resume_at=LINE_BYTES if resumed else None)
        events = EVENTS[1:3] if resumed else EVENTS[:3]
        left = len(wanted) - (LINE_BYTES + 30 if resumed else 0)
        if room < left:
            with pytest.raises(SinkError, match="last whole event") as caught:
                sink.write(events)
            assert caught.value.retry
            lines = path.read_bytes()
            assert wanted.startswith(lines)
            assert lines == b"" or lines.endswith(b"\n")
            sink.sync()
            assert sink.position == len(lines)
            events = events[caught.value.written_events :]
            disk.room = len(wanted)
        sink.write(events)
        sink.close()
        assert path.read_bytes() == wanted
        assert sink.position == len(wanted)


@pytest.mark.parametrize(
    ("number", "retry"),
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EFBIG, False),
        (errno.EIO, False),
        (errno.EPIPE, False),
    ],
)
def test_only_what_waiting_helps_against_may_be_tried_again(
    tmp_path: Path, number: int, retry: bool
) -> None:
    sink = opened(tmp_path / "out.json", write=Disk(LINE_BYTES * 3 - 1, number).write)
    with pytest.raises(SinkError) as caught:
        sink.write(EVENTS)
    assert (caught.value.retry, caught.value.written_events) == (retry, 2)
    sink.close()


def test_a_pipe_cannot_be_tried_again_but_counts(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = opened(path, write=Disk(LINE_BYTES + 5).write, resume_at=0)
    with pytest.raises(SinkError) as caught:
        sink.write(EVENTS)
    assert (caught.value.retry, caught.value.written_events) == (False, 1)
    sink.close()
    os.close(reader)


def test_a_torn_line_that_could_not_be_cut_is_cut_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems need room even to cut a file."""
    path = tmp_path / "out.json"
    disk = Disk(LINE_BYTES + 20)
    sink = opened(path, write=disk.write)
    ftruncate = os.ftruncate

    def full(fd: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(SinkError, match=r"torn \(20 bytes\)") as first:
        sink.write(EVENTS)
    assert (first.value.retry, first.value.written_events) == (True, 1)
    sink.sync()
    assert sink.position == LINE_BYTES  # the torn bytes do not count
    disk.room = 10_000
    with pytest.raises(SinkError, match=r"torn \(20 bytes\)") as second:
        sink.write(EVENTS[1:])
    assert (second.value.retry, second.value.written_events) == (True, 0)
    monkeypatch.setattr(os, "ftruncate", ftruncate)
    sink.write(EVENTS[1:])
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 16 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "nray-test", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_real_disk_that_is_full_and_gets_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8192))
    path = small_disk / "out.json"
    events = [event(port) for port in range(10_000, 10_040)]
    sink = opened(path)
    with pytest.raises(SinkError, match="No space left") as caught:
        sink.write(events)
    assert caught.value.retry
    assert 0 < caught.value.written_events < len(events)
    assert path.read_bytes() == model.encode_lines(events[: caught.value.written_events])
    ballast.unlink()
    sink.write(events[caught.value.written_events :])
    sink.close()
    assert path.read_bytes() == model.encode_lines(events)


# ── continuing ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("unsynced")
def test_a_file_cut_at_every_byte_is_continued_without_touching_what_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader never sees the file shrink or a byte change: it is only appended to."""
    wanted = model.encode_lines(EVENTS[:3])
    path = tmp_path / "out.json"

    def refuse(fd: int, length: int) -> None:
        raise AssertionError("a file that is continued was cut")

    monkeypatch.setattr(os, "ftruncate", refuse)
    for size in range(LINE_BYTES, len(wanted) + 1):
        path.write_bytes(wanted[:size])
        appended: list[bytes] = []

        def noting(fd: int, data: memoryview, appended: list[bytes] = appended) -> int:
            appended.append(bytes(data))
            return os.write(fd, data)

        sink = opened(path, resume_at=LINE_BYTES, write=noting)
        assert sink.position == LINE_BYTES
        sink.write(EVENTS[1:2])
        sink.write([])
        sink.write(EVENTS[2:3])
        assert sink.position == LINE_BYTES
        sink.close()
        assert sink.position == len(wanted)
        assert b"".join(appended) == wanted[size:]
        assert path.read_bytes() == wanted


def test_replayed_lines_are_synced_although_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(model.encode_lines(EVENTS))
    sink = opened(path, resume_at=0, clock=lambda: 0.0, synctimer_s=10.0)
    sink.write(EVENTS[:2])
    assert sink.sync_due_s() == 10.0
    sink.sync()
    assert sink.position == 2 * LINE_BYTES
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("fill"), st.integers(0, 2000)),
        st.tuples(st.just("kill"), st.just(0)),
        st.tuples(st.just("power"), st.floats(0, 1)),
        st.tuples(st.just("zeros"), st.floats(0, 1)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, max_size=12), STEPS, st.booleans())
def test_whatever_happens_each_line_is_there_once(
    names: list[str], steps: list[tuple[str, Any]], created: bool
) -> None:
    """Writes, syncs, full disks; kills, cuts and unwritten blocks behind the synced bytes."""
    events = [event(port, node_name=name) for port, name in enumerate(names, 1)]
    wanted = model.encode_lines(events)
    disk = Disk(10_000)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"nray-test-{os.getpid()}.json"
    given_ = saved = position = 0
    sink = opened(path, write=disk.write, resume_at=None if created else 0)
    try:
        for step, value in [*steps, ("write", len(events))]:
            if step == "write":
                hand_over(sink, events[given_ : given_ + value], disk, 10_000)
                given_ = min(given_ + value, len(events))
            elif step == "sync":
                sink.sync()
                saved, position = given_, sink.position
                assert path.read_bytes()[:position] == model.encode_lines(events[:saved])
            elif step == "fill":
                disk.room = value
            else:
                crash(sink)
                size = path.stat().st_size
                if step != "kill":
                    kept = max(position + round((size - position) * value), min(size, 1))
                    os.truncate(path, kept)
                    if step == "zeros":
                        os.truncate(path, size)
                sink = opened(path, write=disk.write, resume_at=position)
                given_ = saved
        hand_over(sink, events[given_:], disk, 10_000)
        sink.close()
        assert sink.position == len(wanted)
        assert path.read_bytes() == wanted
    finally:
        crash(sink)
        path.unlink()


def test_a_missing_file_is_created_only_if_nothing_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(SinkStartError, match="gone, of which 7 bytes") as caught:
        JsonFileSink(str(path), resume_at=7).open()
    assert str(path) in caught.value.message
    assert "begin a new scan" in caught.value.hint
    assert not path.exists()
    sink = opened(path, resume_at=0)
    sink.write(EVENTS)
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)
    with pytest.raises(SinkStartError) as caught:
        JsonFileSink(str(tmp_path / "no" / "out.json"), resume_at=0).open()
    assert "directory does not exist" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\nbcd", "holds 5 bytes, but 6 were"), (b"", "holds 0"), (b"a\nbcdefgh", "no line ends")],
)
def test_a_file_that_was_cut_or_replaced_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(content)
    with pytest.raises(SinkStartError, match=words) as caught:
        JsonFileSink(str(path), resume_at=6).open()
    assert "put it back" in caught.value.hint
    assert path.read_bytes() == content
    os.truncate(path, 0)
    path.write_bytes(b"abcde\n")
    opened(path, resume_at=6).close()  # the refused one has let the lock go


@pytest.mark.parametrize(
    "foreign", [b"mine\n", b"mine", b"{}", b"\n", b" \0", b'{"nodeID":"n1","x']
)
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_what_another_wrote_stops_the_sink_and_stays(
    tmp_path: Path, foreign: bytes, lines: int
) -> None:
    """Wherever it stands in the batch, also as a last line without an end."""
    path = tmp_path / "out.json"
    content = model.encode_lines(EVENTS[: 1 + lines]) + foreign
    path.write_bytes(content)
    sink = opened(path, resume_at=LINE_BYTES)
    at = LINE_BYTES * (1 + lines)
    with pytest.raises(SinkError, match=rf"the line at byte {at} is not") as caught:
        sink.write(EVENTS[1:])
    assert str(path) in caught.value.message
    assert f"truncate -s {at} {path}" in caught.value.hint
    assert (caught.value.retry, caught.value.written_events) == (False, lines)
    with pytest.raises(SinkError, match=rf"byte {at}"):  # it does not get better by asking again
        sink.write(EVENTS[1 + lines :])
    sink.close()
    assert sink.position == at
    assert path.read_bytes() == content
    os.truncate(path, at)  # what the hint says
    sink = opened(path, resume_at=sink.position)
    sink.write(EVENTS[1 + lines :])
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_a_file_that_begins_with_zeros_is_nobodys_torn_output(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1000))
    sink = opened(path, resume_at=0)
    with pytest.raises(SinkError, match="byte 0"):
        sink.write(EVENTS)
    sink.close()
    assert path.read_bytes() == bytes(1000)


def test_events_in_another_order_are_not_taken_for_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(model.encode_lines(EVENTS))
    sink = opened(path, resume_at=0)
    with pytest.raises(SinkError, match="byte 0"):
        sink.write(EVENTS[::-1])
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_a_file_that_cannot_be_read_again_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(model.encode_lines(EVENTS))
    sink = opened(path, resume_at=0)

    def broken(fd: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(SinkError, match="comparing what it holds failed"):
        sink.write(EVENTS)
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_short_reads_are_no_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(model.encode_lines(EVENTS))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 100), at))
    sink = opened(path, resume_at=0)
    sink.write(EVENTS)
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_a_file_that_is_continued_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    first = opened(path)
    with pytest.raises(SinkStartError, match="another process is writing"):
        JsonFileSink(str(path), resume_at=0).open()
    first.close()
    second = opened(path, resume_at=0)
    with pytest.raises(SinkStartError, match="another process is writing"):
        JsonFileSink(str(path), overwrite_existing=True).open()
    second.close()


def test_continuing_wins_over_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(model.encode_lines(EVENTS[:1]))
    sink = opened(path, overwrite_existing=True, resume_at=LINE_BYTES)
    sink.write(EVENTS[1:])
    sink.close()
    assert path.read_bytes() == model.encode_lines(EVENTS)


def test_a_pipe_is_written_on_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = opened(path, resume_at=LINE_BYTES)
    sink.write(EVENTS[:2])
    sink.sync()
    assert sink.position == 0
    assert os.read(reader, 10_000) == model.encode_lines(EVENTS[:2])
    os.close(reader)
    with pytest.raises(SinkClosed):  # it is not its own reader
        sink.write(EVENTS)
    sink.close()


def test_a_position_is_not_negative() -> None:
    with pytest.raises(ValueError, match="resume_at"):
        JsonFileSink("out.json", resume_at=-1)
