"""The event model: its JSON to the byte, its times, its speed in the ways that matter."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import _core
from nray.events import model
from nray.events.model import Environment, decode, encode, encode_lines, timestamp

AT_MS = 1767323045123  # 2026-01-02T03:04:05.123Z
DOCS = Path(__file__).parent.parent / "docs" / "events.md"


def event(**changes: Any) -> model.Event:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "node_name": "node-a",
        "timestamp_ms": AT_MS,
        "target": "10.0.0.5",
        "address": "10.0.0.5",
        "port": 22,
        "state": "open",
        "reason": "syn-ack",
        "timeout_ms": 1000,
    }
    return model.port_event(**(fields | changes))


def test_port_event_is_the_first_nrays_object_with_our_fields_beside_it() -> None:
    line = encode(event(rtt_us=412, ttl=64, pool=1, identity="node-a.example"))
    assert line == (
        b'{"nodeID":"n1","nodeName":"node-a","timestamp":"2026-01-02T03:04:05.123Z",'
        b'"scannername":"native-portscanner","result":{"target":"10.0.0.5","port":22,'
        b'"portscan":{"target":"10.0.0.5","port":22,"open":true,"scantype":"tcpconnect",'
        b'"timeout":1000,"state":"open","reason":"syn-ack","ttl":64,"rtt":0.412},'
        b'"address":"10.0.0.5"},"pool":1,"identity":"node-a.example"}'
    )


def test_without_our_fields_it_is_the_first_nrays_object_exactly() -> None:
    ours = json.loads(encode(event()))
    del ours["pool"], ours["result"]["address"]
    del ours["result"]["portscan"]["state"], ours["result"]["portscan"]["reason"]
    theirs = (
        '{"nodeID": "n1", "nodeName": "node-a", "timestamp": "2026-01-02T03:04:05.123Z", '
        '"scannername": "native-portscanner", "result": {"target": "10.0.0.5", "port": 22, '
        '"portscan": {"target": "10.0.0.5", "port": 22, "open": true, "scantype": "tcpconnect", '
        '"timeout": 1000}}}'
    )
    assert json.dumps(ours) == theirs  # json keeps the order of the keys


def test_environment_event() -> None:
    about = Environment("host-1", "linux", 4, "nray", "root", "A CPU")
    line = encode(
        model.environment_event(
            node_id="n1", node_name="node-a", timestamp_ms=AT_MS, environment=about
        )
    )
    assert line == (
        b'{"nodeID":"n1","nodeName":"node-a","timestamp":"2026-01-02T03:04:05.123Z",'
        b'"scannername":"node_environment","environment":{"hostname":"host-1","os":"linux",'
        b'"pid":4,"processname":"nray","username":"root","cpumodelname":"A CPU"},"pool":0}'
    )


@pytest.mark.parametrize("absent", ["ttl", "rtt", "identity", "environment", "zgrabscan"])
def test_what_an_event_does_not_have_is_left_out(absent: str) -> None:
    assert absent.encode() not in encode(event())


@pytest.mark.parametrize("state", ["closed", "filtered", "open|filtered", "error"])
def test_only_open_is_open(state: str) -> None:
    scan = json.loads(encode(event(state=state)))["result"]["portscan"]
    assert scan["open"] is False
    assert scan["state"] == state


def test_a_name_stays_the_target_in_both_places() -> None:
    result = json.loads(encode(event(target="localhost", address="127.0.0.1")))["result"]
    assert result["target"] == result["portscan"]["target"] == "localhost"
    assert result["address"] == "127.0.0.1"


@given(st.integers(0, 60_000_000))
def test_rtt_keeps_its_microseconds_and_no_more_digits(rtt_us: int) -> None:
    text = re.search(rb'"rtt":([0-9.]+)', encode(event(rtt_us=rtt_us)))
    assert text is not None
    whole, _, digits = text[1].partition(b".")
    assert len(digits) <= 3
    assert int(whole) * 1000 + int(digits.ljust(3, b"0")) == rtt_us


@given(st.integers(0, 4_102_444_800_000))
def test_timestamp_is_utc_with_milliseconds(ms: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert timestamp(ms) == moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_lines_are_one_event_each_whatever_the_text(names: list[str]) -> None:
    events = [event(node_name=name, target=name) for name in names]
    lines = encode_lines(events).split(b"\n")
    assert lines.pop() == b""
    assert [decode(line) for line in lines] == events


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"nodeID":1}', encode(event())[:-1]])
def test_what_is_no_event_is_not_decoded(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(line)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_jq_line_of_users() -> None:
    about = model.environment_event(
        node_id="n1", node_name="a", timestamp_ms=AT_MS, environment=Environment()
    )
    events = [about, event(), event(port=23, state="closed"), event(target="localhost", port=443)]
    jq = r'select(.result.portscan.open == true) | "\(.result.target) \(.result.port)"'
    run = subprocess.run(
        ["jq", "-r", jq], input=encode_lines(events), capture_output=True, check=True
    )
    assert run.stdout == b"10.0.0.5 22\nlocalhost 443\n"


def test_what_the_core_says_of_a_port_is_a_reason() -> None:
    #: What is said of hosts that are looked for, or of a host as a whole.
    of_hosts = {
        "echo-reply", "arp-response", "nd-response", "localhost-response", "not-on-link", "tarpit",
    }  # fmt: skip
    assert set(model.REASONS) == set(_core.REASONS) - of_hosts - {""}


def test_the_manual_has_every_field_state_and_reason() -> None:
    text = DOCS.read_text()
    for struct in (model.Event, model.Result, model.PortScan, model.Tarpit, model.Environment):
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"`[a-z.]*{field.encode_name}`", text), field.encode_name
    for word in (*model.STATES, *model.REASONS):
        assert f"`{word.replace('|', chr(92) + '|')}`" in text, word
