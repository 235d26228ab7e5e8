"""The terminal sink: columns, escapes, formats, readers that go away."""

import json
import os
import pty
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.events import model
from nray.events.sink import SinkClosed, SinkError, write_fully
from nray.events.terminal import TerminalSink, cut, line, milliseconds, printable


def event(**changes: Any) -> model.Event:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "node_name": "node-a",
        "timestamp_ms": 1767323045123,
        "target": "198.18.0.5",
        "address": "198.18.0.5",
        "port": 80,
        "state": "open",
        "reason": "syn-ack",
        "timeout_ms": 1000,
        "rtt_us": 412,
    }
    return model.port_event(**(fields | changes))


def joined(**about: Any) -> model.Event:
    return model.environment_event(
        node_id="n1",
        node_name="node-a",
        timestamp_ms=1767323045123,
        environment=model.Environment(**about),
    )


def test_lines_are_aligned() -> None:
    lines = [
        line(event()),
        line(event(target="198.18.10.255", address="198.18.10.255", port=65535, rtt_us=2_500_000)),
        line(event(state="filtered", reason="admin-prohibited", rtt_us=None)),
        line(event(scantype="udp", state="open|filtered", reason="no-response", rtt_us=None)),
    ]
    assert lines == [
        "198.18.0.5       80/tcp     open      syn-ack            0.41 ms  node-a",
        "198.18.10.255    65535/tcp  open      syn-ack            2500 ms  node-a",
        "198.18.0.5       80/tcp     filtered  admin-prohibited            node-a",
        "198.18.0.5       80/udp     open|filtered no-response             node-a",
    ]


reasons = st.sampled_from(sorted(model.REASONS))


@given(
    st.ip_addresses(v=4).map(str),
    st.integers(0, 65535),
    st.sampled_from(sorted(model.STATES)),
    reasons,
    st.none() | st.integers(0, 9_999_000),
    st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Mn"]), max_size=32),
    st.sampled_from(["tcpconnect", "udp"]),
)
def test_an_ipv4_line_fits_80_columns_and_holds_no_control_character(
    address: str,
    port: int,
    state: str,
    reason: str,
    rtt_us: int | None,
    node: str,
    scantype: str,
) -> None:
    text = line(
        event(
            target=address,
            address=address,
            port=port,
            state=state,
            reason=reason,
            rtt_us=rtt_us,
            node_name=node,
            scantype=scantype,
        )
    )
    assert len(text) <= 80
    assert text.isprintable()
    assert text.split()[0] == address


def test_a_name_is_shown_with_its_address() -> None:
    assert line(event(target="localhost")).startswith("localhost (198.18.0.5)  80/tcp")


@given(st.text(max_size=200), st.text(max_size=50))
def test_a_registration_is_one_printable_line(hostname: str, system: str) -> None:
    text = line(joined(hostname=hostname, os=system, pid=7))
    assert len(text) <= 80
    assert text.isprintable()


def test_a_finding_is_one_printable_line() -> None:
    found = model.ZgrabScan({"banner": "SSH-2.0-\x1b[2J" + "x" * 200})
    text = line(
        model.Event("n", "a", "t", "zgrab", model.Result("198.18.0.5", 22, zgrabscan=found))
    )
    assert text.startswith("198.18.0.5       22")
    assert len(text) <= 80
    assert text.isprintable()


def test_escapes() -> None:
    assert printable("a\x1b[31m\u202e\x9b\n\ud800") == r"a\x1b[31m\u202e\x9b\n\ud800"
    assert printable("größe 漢") == "größe 漢"


@given(st.text(max_size=30), st.integers(1, 30))
def test_cut_keeps_a_beginning(text: str, columns: int) -> None:
    short = cut(text, columns)
    assert len(short) <= columns
    assert short == text or text.startswith(short[:-1])


def test_cut_counts_wide_characters_twice() -> None:
    assert cut("漢字漢字", 8) == "漢字漢字"
    assert cut("漢字漢字", 7) == "漢字漢…"
    assert cut("漢字漢字", 6) == "漢字…"


@pytest.mark.parametrize(
    ("rtt", "text"),
    [(0.004, "0.00 ms"), (0.412, "0.41 ms"), (12.34, "12.3 ms"), (2500.4, "2500 ms")],
)
def test_milliseconds(rtt: float, text: str) -> None:
    assert milliseconds(rtt) == text


def written(sink: TerminalSink, events: list[model.Event], read: int, end: int) -> bytes:
    sink.open()
    sink.write(events)
    sink.close()
    os.close(end)
    return os.read(read, 1 << 16)


def test_a_pipe_gets_json_lines() -> None:
    read, end = os.pipe()
    data = written(TerminalSink(fd=end), [event(), joined()], read, end)
    os.close(read)
    assert data == model.encode_lines([event(), joined()])


def test_a_terminal_gets_text() -> None:
    read, end = pty.openpty()
    sink = TerminalSink(fd=end)
    sink.open()
    sink.write([event()])
    assert os.read(read, 4096).decode().rstrip() == line(event())
    os.close(end)
    os.close(read)


def test_json_on_a_terminal_lets_no_control_character_through() -> None:
    name = "\x1b]0;owned\x07\x7f\x9b2J\u0085ö"
    read, end = os.pipe()
    data = written(TerminalSink("json", end), [joined(hostname=name)], read, end)
    os.close(read)
    assert data.decode()[:-1].isprintable()
    assert json.loads(data)["environment"]["hostname"] == name


def test_a_reader_that_goes_away_is_a_clean_end() -> None:
    read, end = os.pipe()
    os.close(read)
    sink = TerminalSink(fd=end)
    sink.open()
    with pytest.raises(SinkClosed, match="the reader has gone"):
        sink.write([event()])
    os.close(end)


def test_a_full_device_is_an_error_of_its_own() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(SinkError, match="No space left") as caught:
        TerminalSink("json", full).write([event()])
    assert not isinstance(caught.value, SinkClosed)
    assert caught.value.exit_status == 1
    os.close(full)


def test_a_nonblocking_pipe_is_waited_for() -> None:
    read, end = os.pipe()
    os.set_blocking(end, False)
    events = [event(port=port) for port in range(1000)]  # several times what a pipe holds
    got = bytearray()

    def reader() -> None:
        while chunk := os.read(read, 65536):
            got.extend(chunk)

    thread = threading.Thread(target=reader)
    thread.start()
    TerminalSink("json", end).write(events)
    os.close(end)
    thread.join()
    os.close(read)
    assert bytes(got) == model.encode_lines(events)


def test_a_write_that_would_block_is_tried_again() -> None:
    read, end = os.pipe()
    answers: Iterator[int] = iter([0, 2, 0, 2])

    def stuttering(fd: int, data: memoryview) -> int:
        if not (take := next(answers)):
            raise BlockingIOError
        return os.write(fd, data[:take])

    write_fully(end, b"four", stuttering)
    os.close(end)
    assert os.read(read, 10) == b"four"
    os.close(read)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="xml"):
        TerminalSink("xml")
