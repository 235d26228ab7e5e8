"""Files that change while they are in use: when they are read again, and what bad ones cost."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from nray.pki import reload as reload_module
from nray.pki.errors import PkiError
from nray.pki.reload import UNSETTLED_NS, Reloaded


class Pair:
    """Two files that belong together: good if they hold the same."""

    def __init__(self, directory: Path) -> None:
        self.one, self.two = directory / "one", directory / "two"
        self.loads = 0
        self.write("a", "a")
        self.reloaded = Reloaded([str(self.one), str(self.two)], self.load)

    def load(self) -> str:
        self.loads += 1
        try:
            one, two = self.one.read_text(), self.two.read_text()
        except OSError as error:
            raise PkiError(f"{error.filename}: there is no such file") from error
        if one == "bug":
            raise ZeroDivisionError
        if one != two:
            raise PkiError(f"{self.two}: {two} is not {one}", "make both alike")
        return one

    def write(self, one: str, two: str) -> None:
        self.one.write_text(one)
        self.two.write_text(two)

    def settle(self) -> None:
        """As if they had been written long ago."""
        for path in (self.one, self.two):
            found = path.stat()
            old = found.st_mtime_ns - 10 * UNSETTLED_NS
            os.utime(path, ns=(old, old))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(reload_module, "COMPARE_EVERY_S", 0.0)
    return Pair(tmp_path)


def test_what_is_bad_at_the_start_is_an_error(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.write("a", "b")
    with pytest.raises(PkiError):
        Reloaded([str(pair.one), str(pair.two)], pair.load)


def test_new_files_take_effect_once(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert not pair.reloaded.refresh()
    pair.write("b", "b")
    assert pair.reloaded.refresh()
    assert pair.reloaded.value == "b"
    assert not pair.reloaded.refresh()
    assert caplog.text.count("read again") == 1


def test_what_has_not_changed_is_neither_opened_nor_loaded(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ctime cannot be set back, so the clock goes on.
    late = reload_module.time.time_ns() + 2 * UNSETTLED_NS
    monkeypatch.setattr(reload_module.time, "time_ns", lambda: late)

    assert not pair.reloaded.refresh()  # once more, for the first look was too early

    def fail() -> bytes:
        raise AssertionError("opened")

    monkeypatch.setattr(pair.reloaded, "_content", fail)
    for _ in range(3):
        assert not pair.reloaded.refresh()
    assert pair.loads == 1


@pytest.mark.parametrize("later_s", [0, 10])
def test_a_change_that_leaves_times_and_size_alone_is_seen_too(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, later_s: int
) -> None:
    """Two writes within one tick of the file system's clock look alike to stat; also to a look
    that comes long after."""
    marks = pair.reloaded._look()
    monkeypatch.setattr(pair.reloaded, "_look", lambda: marks)
    pair.write("b", "b")
    late = reload_module.time.time_ns() + later_s * 1_000_000_000
    monkeypatch.setattr(reload_module.time, "time_ns", lambda: late)
    assert pair.reloaded.refresh()
    assert pair.reloaded.value == "b"


def test_fresh_files_are_not_compared_for_each_of_a_flood_of_looks(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "COMPARE_EVERY_S", 3600.0)
    compared = []
    monkeypatch.setattr(pair.reloaded, "_content", lambda: compared.append(1))
    for _ in range(100):
        assert not pair.reloaded.refresh()
    assert compared == []


def test_a_replaced_file_of_old_times_is_seen(pair: Pair) -> None:
    """mv of a file that was made earlier, cp -p: the inode or the change time tells."""
    pair.settle()
    assert not pair.reloaded.refresh()
    for path in (pair.one, pair.two):
        other = path.with_suffix(".new")
        other.write_text("b")
        os.utime(other, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
        other.replace(path)
    assert pair.reloaded.refresh()
    assert pair.reloaded.value == "b"


def test_a_link_that_is_turned_elsewhere_is_seen(tmp_path: Path) -> None:
    """As Kubernetes does it: the names stay, the directory behind them changes."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "data"
    link.symlink_to("old")
    path = link / "file"
    reloaded = Reloaded([str(path)], path.read_text)
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").replace(link)
    assert reloaded.refresh()
    assert reloaded.value == "new"


def test_half_a_change_keeps_the_old_and_is_told_of_once(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.one.write_text("b")
    for _ in range(3):
        assert not pair.reloaded.refresh()
    assert pair.reloaded.value == "a"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(pair.two) in record.getMessage()
    assert "a is not b (make both alike); the earlier files stay in use" in record.getMessage()
    pair.two.write_text("b")
    assert pair.reloaded.refresh()
    assert pair.reloaded.value == "b"


def test_a_bad_file_is_not_loaded_for_each_look(pair: Pair) -> None:
    pair.one.write_text("b")
    for _ in range(5):
        pair.reloaded.refresh()
    assert pair.loads == 2


def test_another_fault_is_told_again_and_so_is_the_same_if_asked(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.one.write_text("b")
    pair.reloaded.refresh()
    pair.one.write_text("c")
    pair.reloaded.refresh()
    assert len(caplog.records) == 2
    pair.reloaded.refresh()
    assert len(caplog.records) == 2
    pair.reloaded.refresh(insist=True)
    assert len(caplog.records) == 3


def test_back_to_what_it_was_is_no_news(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.one.write_text("b")
    pair.reloaded.refresh()
    pair.one.write_text("a")
    assert not pair.reloaded.refresh()
    assert pair.loads == 2
    # And the same fault afterwards is a new one.
    pair.one.write_text("b")
    pair.reloaded.refresh()
    assert len(caplog.records) == 2


def test_a_file_that_is_gone_for_a_moment(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.two.unlink()
    for _ in range(3):
        assert not pair.reloaded.refresh()
    assert len(caplog.records) == 1
    assert "no such file" in caplog.text
    assert pair.reloaded.value == "a"
    pair.write("c", "c")
    assert pair.reloaded.refresh()
    assert pair.reloaded.value == "c"


def test_a_mistake_of_ours_ends_nothing(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.write("bug", "bug")
    assert not pair.reloaded.refresh()
    assert pair.reloaded.value == "a"
    assert "ZeroDivisionError" in caplog.text


def test_what_it_goes_by_besides_may_change(pair: Pair) -> None:
    assert pair.reloaded.refresh(anew=True)
    assert pair.loads == 2


def test_asked_for_it_reads_again_only_what_is_new(pair: Pair) -> None:
    assert not pair.reloaded.refresh(insist=True)
    assert pair.loads == 1
