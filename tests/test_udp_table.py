"""The table of UDP payloads: its laws, the payloads' own lengths, answers right and wrong.

Run as a program it writes the table of docs/udp.md anew.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import nray
from core_lab import inside
from nray import _core
from nray.api.scan import payloads_for
from nray.api.serve import settings_of
from nray.config.reader import loads
from nray.config.schema import Config
from nray.node.bounds import check_settings
from nray.targets.plan import plan
from nray.targets.udp import snmp, table
from nray.targets.udp.probe import Probe
from nray.wire.framing import encode_frame
from nray.wire.messages import Registered
from nray.worker.protocol import PAYLOAD_BYTES_MAX
from udp_lab import RIGHT, RIGHT_FURTHER, h

PAGE = Path(__file__).parent.parent / "docs" / "udp.md"
BEGIN = "<!-- payloads: written by tests/test_udp_table.py -->\n"
END = "<!-- end -->"

EVERY = (*table.PROBES, *table.FURTHER)
each_probe = pytest.mark.parametrize("probe", EVERY, ids=lambda probe: probe.protocol)

#: What the first nray knew.
FIRST_NRAY = {53, 111, 123, 137, 161, 524, 1434, 1604, 5093}


def right(probe: Probe, payload: bytes) -> bytes:
    return (RIGHT_FURTHER.get(probe.protocol) or RIGHT[probe.ports[0]])(payload)


def own_of(probe: Probe, key: int = 1) -> tuple[int, int] | None:
    """Where a payload may have an identifier of its target's own, and its size."""
    steps = probe.steps(probe.payload(key))
    places = [(at, size) for kind, at, size, _ in steps if kind == _core.STEP_OWN]
    assert len(places) < 2
    return places[0] if places else None


def written(page: str) -> str:
    """The page with its table as it should be."""
    rows = ["| ports | protocol | is asked | checked | specification |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for probe in sorted(EVERY, key=lambda each: each.ports):
        checked = "–" if probe.match is None else "per target" if own_of(probe) else "per scan"
        ports = ", ".join(map(str, probe.ports)) + " (then)" * (probe in table.FURTHER)
        rows.append(f"| {ports} | {probe.protocol} | {probe.asks} | {checked} | {probe.source} |")
    before, _, after = page.partition(BEGIN)
    return before + BEGIN + "\n".join(rows) + "\n" + END + after.partition(END)[2]


# ── the table ───────────────────────────────────────────────────────────────────────────────


def test_the_page_has_every_payload() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == 1
    assert written(page) == page, "run .venv/bin/python tests/test_udp_table.py"


def test_a_port_has_one_payload() -> None:
    ports = [port for probe in table.PROBES for port in probe.ports]
    assert len(ports) == len(set(ports)) >= 60
    assert set(table.payloads()) == set(table.BY_PORT) == set(ports)
    assert set(ports) >= FIRST_NRAY
    assert {port for probe in table.FURTHER for port in probe.ports} <= set(ports)


def test_protocols_are_told_apart_by_name() -> None:
    """Their identifiers hang on it."""
    assert len({probe.protocol for probe in EVERY}) == len(EVERY)


def test_every_payload_fits_one_packet_of_the_core() -> None:
    assert table.PAYLOAD_BYTES_MAX == PAYLOAD_BYTES_MAX
    for probe in EVERY:
        assert 0 < len(probe.payload(5)) <= PAYLOAD_BYTES_MAX


def test_all_of_them_take_little_of_a_frame() -> None:
    """They go to each node once, and from there to each worker, whose socket must take them."""
    message = Registered("n", 0, 0, 5.0, settings_of(Config(), 2**62))
    assert len(encode_frame(message)) < 16 * 1024


@given(st.integers(0, 2**63))
def test_the_same_key_gives_the_same_payloads_of_the_same_lengths(key: int) -> None:
    one, other, base = (table.payloads(each) for each in (key, key, 1))
    assert one == other
    for port, payload in one.items():
        # BER and decimal numbers may be a little shorter.
        assert abs(len(payload) - len(base[port])) <= 9


@each_probe
def test_another_key_gives_another_identifier(probe: Probe) -> None:
    if probe.match is not None and probe.protocol != "NetWare NCP":
        assert len({probe.payload(key) for key in range(8)}) > 1


def test_a_scan_of_tcp_has_no_payloads_and_one_of_udp_its_own() -> None:
    assert payloads_for(plan("127.0.0.1", tcp="53")) == ({}, {}, {})
    asked = payloads_for(plan("127.0.0.1", udp="53,54,69,161", seed=3))
    assert asked.payloads == {port: table.payloads(3)[port] for port in (53, 69, 161)}
    assert set(asked.checks) == {53, 161}
    ((first, _), (second, _)) = asked.further.pop(161)
    assert [first[4], second[4]] == [snmp.VERSION_1, snmp.VERSION_2C]
    assert asked.further == {}


def test_a_user_s_payload_is_the_only_one_of_its_port() -> None:
    config = loads("scannerconfig.udp.customHexPayloads: {161: mine}")
    made = settings_of(config, 1)
    assert made.udp_payloads[161] == b"mine"
    assert 161 not in made.udp_checks
    assert 161 not in made.udp_further
    assert 500 in made.udp_checks
    assert 500 in made.udp_further


def test_what_is_told_of_questions_is_what_a_node_takes() -> None:
    for key in range(20):
        check_settings(settings_of(Config(), key))


# ── what is sent ────────────────────────────────────────────────────────────────────────────

#: Port, where a length stands, its bytes, how much it does not count.
LENGTHS = [
    (427, 2, 3, 0), (500, 24, 4, 0), (1701, 2, 2, 0), (1812, 2, 2, 0), (3671, 4, 2, 0),
    (47808, 2, 2, 0), (3130, 2, 2, 0), (2123, 2, 2, 4), (2152, 2, 2, 8), (26000, 2, 2, 0),
    (161, 1, 1, 2), (389, 1, 1, 2), (88, 2, 1, 3), (5684, 11, 2, 13), (5684, 14, 3, 25),
    (4500, 28, 4, 4),
]  # fmt: skip


@pytest.mark.parametrize(("port", "at", "size", "more"), LENGTHS)
def test_lengths_are_true(port: int, at: int, size: int, more: int) -> None:
    for key in range(20):
        payload = table.payloads(key)[port]
        assert int.from_bytes(payload[at : at + size], "big") + more == len(payload)


#: Port to the fields that do not depend on a key, as the specification has them: offset, bytes.
FIXED: dict[int, list[tuple[int, bytes]]] = {
    53: [(2, h("0100 0001 0000 0000 0000")), (12, b"\x07version\x04bind\x00\x00\x10\x00\x03")],
    69: [(0, b"\x00\x01nray-no-such-file\x00octet\x00")],
    111: [(4, h("00000000 00000002 000186a0 00000002 00000000") + bytes(16))],
    123: [(0, h("e3") + bytes(39))],
    137: [(2, h("0000 0001 0000 0000 0000 20") + b"CK" + b"A" * 30 + h("00 0021 0001"))],
    177: [(0, h("0001 0002 0001 00"))],
    443: [(0, h("c0 1a2a3a4a 08")), (14, h("08")), (23, h("00 4496"))],
    524: [(0, h("1111 00 ff 01 ff 00"))],
    623: [(0, h("0600ff06 000011be 80")), (10, h("0000"))],
    1434: [(0, h("03"))],
    1604: [(0, h("1e00 0130 02fd a8e3") + bytes(22))],
    2049: [(12, h("000186a3 00000003 00000000"))],
    3478: [(0, h("0001 0000 2112a442"))],
    3671: [(0, h("0610 0203 000e 0801 00000000 0000"))],
    5093: [(0, h("7a00 0000 0000"))],
    5351: [(0, h("0000"))],
    5683: [(0, h("4000"))],
    11211: [(2, h("0000 0001 0000") + b"version\r\n")],
    44818: [(0, h("6300 0000") + bytes(8)), (20, bytes(4))],
    47808: [(4, h("0104 0003")), (9, h("0c 0c 023fffff 19 4b"))],
}


@pytest.mark.parametrize("port", FIXED)
def test_fields_stand_where_the_specification_has_them(port: int) -> None:
    payload = table.payloads(11)[port]
    for at, field in FIXED[port]:
        assert payload[at : at + len(field)] == field
    at, field = FIXED[port][-1]
    assert at + len(field) == len(payload) or port in (123, 443, 2049, 3478, 5683)


def test_texts_are_well_formed() -> None:
    sent = table.payloads(4)
    envelope = ElementTree.fromstring(sent[3702])
    assert envelope.tag == "{http://www.w3.org/2003/05/soap-envelope}Envelope"
    for port in (1900, 5060):
        assert sent[port].endswith(b"\r\n\r\n")
        assert b"\n" not in sent[port].replace(b"\r\n", b"")


# ── what comes back ─────────────────────────────────────────────────────────────────────────


def test_every_check_has_a_right_answer_here() -> None:
    assert set(RIGHT) == {probe.ports[0] for probe in table.PROBES if probe.match is not None}


@each_probe
def test_right_answers_are_taken_and_others_refused(probe: Probe) -> None:
    payload = probe.payload(1)
    if probe.match is None:
        assert probe.answers(payload, b"anything") is None
        return
    answer = right(probe, payload)
    assert probe.answers(payload, answer) is True
    assert probe.answers(payload, b"") is False
    assert probe.answers(payload, b"\xff" * 64) is False
    if probe.protocol != "Echo":
        assert probe.answers(payload, payload) is False
    other = next((p for p in map(probe.payload, range(2, 9)) if p != payload), None)
    if other is not None:
        assert probe.answers(payload, right(probe, other)) is False
        assert probe.answers(other, right(probe, other)) is True


@each_probe
def test_an_identifier_of_the_target_s_own_is_as_good_and_not_another_s(probe: Probe) -> None:
    for key in range(4):
        place = own_of(probe, key)
        if place is None:
            continue
        payload = probe.payload(key)
        at, size = place
        for own in (bytes(8), b"\xff" * 8, b"\x5a\x00\xa5\xff\x80\x7f\x01\x02"):
            changed = payload[:at] + own[:size] + payload[at + size :]
            answer = right(probe, changed)
            steps = probe.steps(payload)
            assert _core.answers(changed, steps, answer) is True
            assert _core.answers(payload, steps, answer) is (changed == payload)


@each_probe
def test_an_answer_cut_anywhere_never_raises(probe: Probe) -> None:
    if probe.match is not None:
        payload = probe.payload(1)
        answer = right(probe, payload)
        for end in range(len(answer)):
            assert probe.answers(payload, answer[:end]) in (True, False)


@given(st.sampled_from(EVERY), st.binary(max_size=64), st.data())
def test_no_bytes_make_a_check_raise(probe: Probe, noise: bytes, data: st.DataObject) -> None:
    payload = probe.payload(1)
    assert probe.answers(payload, noise) in (None, True, False)
    if probe.match is not None:
        answer = bytearray(right(probe, payload))
        for at in data.draw(st.lists(st.integers(0, len(answer) - 1), max_size=3)):
            answer[at] ^= data.draw(st.integers(1, 255))
        assert probe.answers(payload, bytes(answer)) in (True, False)


def test_a_bacnet_answer_through_a_router_is_read() -> None:
    payload = table.payloads(1)[47808]
    routed = h("810a 001c 0128 0001 01 05 0002 01 06 ff 30") + payload[8:9] + h("0c")
    assert table.answers(47808, payload, routed) is True


def test_ports_without_a_payload_can_tell_nothing() -> None:
    assert table.answers(9, b"nray", b"nray") is None
    assert table.answers(53, table.payloads(1)[53], b"") is False


@pytest.fixture
def where(version: int, request: pytest.FixtureRequest) -> Iterator[str]:
    """An address of this machine that nobody else uses: of IPv6, in a namespace."""
    if version == 4:
        yield "127.77.5.68"
    else:
        with inside(request.getfixturevalue("alone")):
            yield "::1"


def test_a_real_service_gets_the_payload_of_the_seed(where: str) -> None:
    """CoAP, on a port of its own that needs no privilege."""
    asked: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        data, peer = sock.recvfrom(2048)
        asked.append(data)
        sock.sendto(RIGHT[5683](data), peer)

    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((where, 5683))
        sock.settimeout(60)
        thread = threading.Thread(target=serve, args=(sock,), daemon=True)
        thread.start()
        found = nray.scan(where, "5683", udp=True, seed=9, processes=1)
        thread.join(20)
    assert [event.result.port for event in found.events] == [5683]
    assert asked == [table.payloads(9)[5683]]
    assert table.answers(5683, asked[0], RIGHT[5683](asked[0])) is True


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
