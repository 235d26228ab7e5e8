"""The manual's page holds every key with type and default, in the schema's order, no others."""

import re
from pathlib import Path

import pytest

from nray.config.reader import loads
from nray.config.schema import Field, leaves

PAGE = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()

#: Rows of the tables: key, type, unit, default, sentence. A bar within a cell is written \|.
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]]
}


def default_cell(field: Field) -> str:
    if field.default is None:
        return "not set"
    assert field.kind is not None
    written = field.kind.write(field.default)
    if isinstance(written, list):
        return f"`[{', '.join(str(item) for item in written)}]`"
    if isinstance(written, bool):
        return f"`{str(written).lower()}`"
    return f"`{written}`" if written != "" else '`""`'


@pytest.mark.parametrize(("path", "field"), list(leaves()), ids=[path for path, _ in leaves()])
def test_every_key_has_its_row(path: str, field: Field) -> None:
    assert path in ROWS, f"docs/configuration.md has no row for {path}"
    kind, unit, default, sentence = ROWS[path]
    assert field.kind is not None
    assert kind.replace("\\|", "|") == field.kind.name
    assert default == default_cell(field)
    assert bool(unit.strip("–")) or not field.attribute.endswith("_s")
    assert len(sentence) > 15


def test_no_row_has_lost_its_key() -> None:
    assert list(ROWS) == [path for path, _ in leaves()]


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_examples_of_the_page_are_read(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRAY_LDAP_USER", "reader")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "ldap-pass").write_text("x\n")
    loads(example, str(tmp_path / "conf.yaml"))


def test_the_payloads_of_the_page_are_all_the_same() -> None:
    (example,) = [e for e in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "Hex" in e]
    udp = loads(example).scannerconfig.udp
    assert {udp.default_hex_payload, *udp.custom_hex_payloads.values()} == {b"nray"}
