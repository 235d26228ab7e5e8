"""Files of targets and exclusions, and standard input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from nray import UserError
from nray.targets import files
from nray.targets.files import LINE_MAX, from_file, from_values


def read(path: Path) -> list[tuple[str, str, int]]:
    return list(from_file(str(path), "target file"))


def test_one_or_several_on_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_bytes(
        b"\xef\xbb\xbf10.0.0.1\r\n# nothing here\n\n  a.example, b.example\t10.0.0.0/8 # why\n::1#x"
    )
    assert [(text, line) for text, _, line in read(path)] == [
        ("10.0.0.1", 1),
        ("a.example", 4),
        ("b.example", 4),
        ("10.0.0.0/8", 4),
        ("::1", 5),
    ]
    assert {source for _, source, _ in read(path)} == {str(path)}


def test_standard_input_by_value_and_by_file() -> None:
    given = b"10.0.0.1\n10.0.0.2\n"
    entries = [("10.0.0.1", "standard input", 1), ("10.0.0.2", "standard input", 2)]
    assert list(from_file("-", "target file", io.BytesIO(given))) == entries
    values = list(from_values("a.example,-", "targets", io.BytesIO(given)))
    assert values == [("a.example", "targets", 0), *entries]


def test_standard_input_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.example")))
    assert list(from_file("-", "target file")) == [("a.example", "standard input", 1)]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UserError, match=reason) as caught:
            read(path)
        assert str(path) in caught.value.message
        assert caught.value.message.startswith("target file: ")
    monkeypatch.setattr(files.sys, "stdin", None)
    with pytest.raises(UserError, match="cannot read standard input: it is closed"):
        list(from_file("-", "target file"))
    with pytest.raises(UserError, match="null"):
        list(from_file("a\x00b", "target file"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_bytes(b"10.0.0.1\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"targets\.txt:2: no UTF-8"):
        read(path)


def test_a_line_without_end() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= LINE_MAX + 1
            self.asked += 1
            assert self.asked < 3, "it reads on"
            return b"a" * size

    with pytest.raises(UserError, match="standard input:1: a line of more"):
        list(from_file("-", "target file", Endless()))  # type: ignore[arg-type]


def test_line_zero_is_no_line() -> None:
    assert files.place("targets", 0) == "targets"
    assert files.place("a.txt", 7) == "a.txt:7"
