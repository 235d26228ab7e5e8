"""Every UDP payload is its protocol, by tshark's judgement: nothing malformed, nothing to warn of.

No packet is sent: tshark reads a file.
"""

from __future__ import annotations

import subprocess

import pytest

from lab.namespaces import require
from nray import _core
from nray.targets.udp import table
from nray.targets.udp.probe import Probe
from udp_lab import packet, write_pcap

CASES: list[tuple[int, Probe]] = [(port, probe) for probe in table.PROBES for port in probe.ports]
CASES += [(probe.ports[0], probe) for probe in table.FURTHER]


def own(payload: bytes, probe: Probe) -> bytes:
    """The payload as one target gets it, with an identifier that nobody would choose."""
    for kind, at, size, _ in probe.steps(payload):
        if kind == _core.STEP_OWN:
            payload = (
                payload[:at] + b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"[:size] + payload[at + size :]
            )
    return payload


#: tshark does not know these: the tests of the table read their bytes.
UNKNOWN = {
    "Quote of the day", "SQL Server browser", "Citrix ICA browser", "Sentinel licence manager",
    "Source engine", "Minecraft query", "Mumble", "BitTorrent tracker",
}  # fmt: skip
#: A QUIC packet of a version that cannot be has no keys to be decrypted with, so tshark tries
#: those of version 1. This is the one warning allowed, and for QUIC alone.
NO_KEYS = "Decryption failed: Decryption (checktag) failed: Checksum error"
#: Of tshark's severities: chats and notes lie below.
WARNING = 0x600000

FIELDS = ("frame.protocols", "_ws.malformed", "_ws.expert.severity", "udp.checksum.status",
          "ip.checksum.status", "_ws.expert.message")  # fmt: skip
OPTIONS = ("udp.check_checksum:TRUE", "ip.check_checksum:TRUE", "xml.heuristic_udp:TRUE",
           "rpc.dissect_unknown_programs:TRUE")  # fmt: skip


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    require("tshark")
    path = tmp_path_factory.mktemp("udp") / "payloads.pcap"
    # Each from a port of its own: no packet is to be read as the answer to another.
    sent = [
        packet(version, 40_000 + number, port, own(probe.payload(6), probe))
        for version in (4, 6)
        for number, (port, probe) in enumerate(CASES)
    ]
    write_pcap(path, sent)
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    command += ["--enable-heuristic", "xml_udp"]
    for field in FIELDS:
        command += ["-e", field]
    for option in OPTIONS:
        command += ["-o", option]
    for port, probe in dict(CASES).items():
        if probe.decode_as:
            command += ["-d", f"udp.port=={port},{probe.decode_as}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert len(rows) == 2 * len(CASES)
    return rows


@pytest.mark.parametrize("number", range(len(CASES)),
                         ids=[f"{probe.protocol}-{port}" for port, probe in CASES])  # fmt: skip
def test_a_payload_is_its_protocol(judged: list[list[str]], version: int, number: int) -> None:
    _, probe = CASES[number]
    row = judged[number if version == 4 else len(CASES) + number]
    protocols, malformed, severities, *sums, words = row
    assert set(probe.layers) <= set(protocols.split(":")), protocols
    assert malformed == ""
    if probe.layers != ("quic",) or words != NO_KEYS:
        assert all(int(each) < WARNING for each in severities.split(",") if each), words
    # The header of IPv6 has none.
    assert sums == ["1", "1" if version == 4 else ""]


def test_what_tshark_does_not_know_is_named() -> None:
    assert {probe.protocol for _, probe in CASES if not probe.layers} == UNKNOWN
