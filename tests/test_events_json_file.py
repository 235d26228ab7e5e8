"""The json-file sink: whole lines at once, whatever the disk does."""

import errno
import math
import os
import resource
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.events import model
from nray.events.json_file import JsonFileSink
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
