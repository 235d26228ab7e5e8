"""The walk-through of docs/certs.md with real processes: certificates, a server, a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs_lab import good
from cli_lab import Process, command_line, free_port, listening, own_address, started

ADDRESS = own_address(9)

CONFIGURATION = """\
listen: {port}
TLS.CA: nray-ca/ca.pem
TLS.cert: server.pem
TLS.key: server-key.pem
TLS.forceClientAuth: true
targetgenerator.standard:
  targets: [{address}]
  tcpports: ["21000-21100"]
  udpports: []
events.json-file.filename: found.json
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    good("init")
    good("issue", "server", "scan.example.org", "--out", "server")
    # The name in the bundle stands in for the address that is dialled.
    good("issue", "node", "nyc1", "--bundle", "nyc1.nray", "--server-name", "scan.example.org")
    return tmp_path


@pytest.fixture
def served(here: Path) -> Iterator[tuple[Process, int]]:
    port = free_port()
    (here / "conf.yaml").write_text(CONFIGURATION.format(port=port, address=ADDRESS))
    with started(command_line("server", "-c", "conf.yaml"), here, "server") as server:
        yield server, port


def node(here: Path, port: int, *flags: str) -> Process:
    return Process(command_line("node", "-s", "127.0.0.1", "-p", str(port), *flags), here, "node")


def test_a_node_with_its_bundle_scans(here: Path, served: tuple[Process, int]) -> None:
    server, port = served
    with listening(ADDRESS, 5) as ports:
        process = node(here, port, "--bundle", "nyc1.nray")
        try:
            assert process.end() == 0, process.said
            assert server.end() == 0, server.said
        finally:
            process.kill()
    events = [json.loads(line) for line in (here / "found.json").read_text().splitlines()]
    assert {event["identity"] for event in events} == {"nyc1"}
    assert sorted(e["result"]["port"] for e in events if "result" in e) == sorted(ports)


def test_a_name_on_the_command_line_wins_over_the_bundle(
    here: Path, served: tuple[Process, int]
) -> None:
    _, port = served
    process = node(here, port, "--bundle", "nyc1.nray", "--tls-server-SAN", "other.example.org")
    try:
        assert process.end() == 1
        assert "(wrong-name)" in process.said
    finally:
        process.kill()
