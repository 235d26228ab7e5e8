"""The walk-through of docs/certs.md with real processes: certificates, a server, a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certs_lab import good
from cli_lab import Process, command_line, free_port, listening, own_address, started, until

ADDRESS = own_address(9)

CONFIGURATION = """\
listen: {port}
TLS.CA: nray-ca/ca.pem
TLS.cert: server.pem
TLS.key: server-key.pem
TLS.forceClientAuth: true
TLS.crl: nray-ca/crl.pem
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


def scanned(here: Path, server: Process, process: Process) -> list[dict[str, Any]]:
    """Node and server end well; the events."""
    try:
        assert process.end() == 0, process.said
        assert server.end() == 0, server.said
    finally:
        process.kill()
    return [json.loads(line) for line in (here / "found.json").read_text().splitlines()]


def test_a_node_with_its_bundle_scans(here: Path, served: tuple[Process, int]) -> None:
    server, port = served
    with listening(ADDRESS, 5) as ports:
        events = scanned(here, server, node(here, port, "--bundle", "nyc1.nray"))
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


def test_a_node_that_was_revoked_is_refused_and_another_is_not(
    here: Path, served: tuple[Process, int]
) -> None:
    """The server is running meanwhile: it must see the new list by itself."""
    server, port = served
    good("issue", "node", "fra1", "--bundle", "fra1.nray", "--server-name", "scan.example.org")
    until(lambda: "waiting for nodes" in server.said)
    good("revoke", "nyc1")
    process = node(here, port, "--bundle", "nyc1.nray")
    try:
        assert process.end() == 1, process.said
        assert "the server refuses this node: the certificate was revoked" in process.said
        assert "Traceback" not in process.said
        assert "waiting" in server.said
        assert "was revoked" in server.said
    finally:
        process.kill()
    with listening(ADDRESS, 3):
        events = scanned(here, server, node(here, port, "--bundle", "fra1.nray"))
    assert {event["identity"] for event in events} == {"fra1"}


def test_a_bundle_that_is_renewed_in_its_place_is_taken_up(
    here: Path, served: tuple[Process, int]
) -> None:
    """What was there before is revoked at once; the same file serves."""
    server, port = served
    good("renew", "nyc1", "--replace", "--revoke-old")
    with listening(ADDRESS, 3):
        assert scanned(here, server, node(here, port, "--bundle", "nyc1.nray"))
