"""docs/protocol.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nray.events.model import Environment
from nray.wire import channel, framing, rules
from nray.wire.errors import EXPLANATIONS, RETRY_HELPS, TEXT_CHARS_MAX, Reason
from nray.wire.framing import decode_node_message
from nray.wire.messages import PROTOCOL_VERSION, Ask, Counts, ServerMessage, Settings
from nray.wire.states import NODE_SAYS, SERVER_SAYS, State
from test_wire_messages import CASES

PAGE = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables in a text, without their heads."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("| ---"):
            found.pop()  # what stood before was the head
        elif line.startswith("| "):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("tag", CASES)
def test_every_message_has_its_row_with_every_field(tag):
    server = isinstance(CASES[tag], ServerMessage)
    title = "From server to node" if server else "From node to server"
    (row,) = [row for row in rows(section(title)) if row[0] == f"`{tag}`"]
    for field in CASES[tag].__struct_fields__:
        assert f"`{field}`" in row[1]
    assert len(row) == 3


def test_every_row_is_of_a_message_or_a_setting():
    known = {*CASES, *Settings.__struct_fields__}
    for title in ("From server to node", "From node to server"):
        for row in rows(section(title)):
            assert set(re.findall(r"`(\w+)`", row[0])) <= known


def test_the_fields_of_nested_records():
    for field in Settings.__struct_fields__:
        assert f"`{field}`" in section("From server to node")
    for field in Environment.__struct_fields__:
        assert f"`{field}`" in section("From node to server")
    order = " ".join(section("From node to server").split())
    assert ", ".join(Counts.__struct_fields__) in order


def test_the_states():
    table = {row[0]: row for row in rows(section("States"))}
    assert list(table) == [state.value for state in State]
    for state in State:
        for says, cell in (
            (SERVER_SAYS, table[state.value][2]),
            (NODE_SAYS, table[state.value][3]),
        ):
            words = [kind.__struct_config__.tag for kind in says[state]]
            assert cell == (", ".join(words) or "nothing")


def test_the_reasons():
    said = {row[0].strip("`"): row[1] for row in rows(section("Reasons"))}
    assert list(said) == list(Reason)
    for reason in Reason:
        assert said[reason] == EXPLANATIONS[reason] + " (later)" * (reason in RETRY_HELPS)


@pytest.mark.parametrize(
    "number",
    [
        framing.GREETING_BYTES_MAX,
        framing.NODE_FRAME_BYTES_MAX,
        framing.SERVER_FRAME_BYTES_MAX,
        channel.DRAIN_BYTES_MAX,
        int(channel.REFUSE_S),
        rules.SEGMENT_BYTES_MAX,
        rules.HITS_BYTES_MAX,
        rules.HIT_BYTES,
        rules.ASKED_MAX,
        rules.NAME_CHARS_MAX,
        rules.ERROR_KINDS_MAX,
        rules.STATES_MAX,
        rules.UDP_PAYLOAD_BYTES_MAX,
        TEXT_CHARS_MAX,
        PROTOCOL_VERSION,
    ],
)
def test_every_limit_is_told(number):
    assert re.search(rf"(?<!\d){number}(?!\d)", PAGE)


def test_the_example_frame_is_one():
    (line,) = re.findall(r"^    ([0-9a-f ]+)$", PAGE, re.MULTILINE)
    frame = bytes.fromhex(line)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode_node_message(frame[4:]) == Ask(2)
