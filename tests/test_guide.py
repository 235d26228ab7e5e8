"""The guide of the first nray's manual (seed/tls-setup.md), followed to the letter.

Authority, keys and certificates by cfssl, the server's and the nodes' command lines as they stand
there, in the guide's three modes; what was found is compared with what listens. Then the same with
those who must be refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import pki_lab
from cli_lab import Process, command_line, free_port, listening, own_address, started, until

ADDRESS = own_address(4)
SUBJECT = "O=nray-scanner,L=Munich,C=DE"

#: The keys as the guide writes them; the rest is what to scan.
CONFIGURATION = """\
listen: {port}
TLS.enabled: true
TLS.CA: "{files}/ca.pem"
TLS.cert: {files}/server.pem
TLS.key: {files}/server-key.pem
{more}
allowMultipleNodesPerHost: true
targetgenerator.standard:
  targets: [{address}]
  tcpports: ["21000-21100"]
  udpports: []
events.json-file.filename: found.json
"""


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cfssl") is None or shutil.which("cfssljson") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("cfssl is missing (Debian: golang-cfssl); in CI it must be there")
        pytest.skip("cfssl is not installed (Debian: golang-cfssl)")
    directory = tmp_path_factory.mktemp("guide")
    pki_lab.cfssl_guide(directory)
    return directory


@pytest.fixture(scope="module")
def others(guide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide followed by somebody else: the very same subject, other keys."""
    directory = tmp_path_factory.mktemp("others")
    pki_lab.cfssl_guide(directory)
    return directory


@pytest.fixture(scope="module")
def ports() -> Iterator[set[int]]:
    with listening(ADDRESS, 9) as found:
        yield found


class Scan:
    """A server that waits, in a folder of its own, and its nodes."""

    def __init__(self, directory: Path, files: Path, more: str) -> None:
        self.directory = directory
        self.files = files
        self.port = free_port()
        text = CONFIGURATION.format(port=self.port, files=files, more=more, address=ADDRESS)
        (directory / "conf.yaml").write_text(text)
        self.stack = ExitStack()
        self.server: Process

    def serve(self) -> None:
        line = command_line("server", "-c", "conf.yaml")
        self.server = self.stack.enter_context(started(line, self.directory, "server"))

    def node(self, flags: str, *, name: str = "node", program: str = "nray node") -> Process:
        """Start a node with the flags of the guide; ``guide/`` is where the files lie."""
        words = [*program.split(), "-s", "127.0.0.1", "-p", str(self.port), *flags.split()]
        line = command_line(*words[1:], program=words[0])
        return self.stack.enter_context(started(line, self.directory, name))

    def expect(self, found: set[int], *nodes: Process) -> list[dict[str, str]]:
        """All end with 0, each open port was reported once; who registered."""
        for process in (*nodes, self.server):
            assert process.end() == 0, self.server.said + process.said
            assert "Traceback" not in process.said
            assert process.left() == []
        lines = (self.directory / "found.json").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        results = [event["result"] for event in events if "result" in event]
        assert {result["target"] for result in results} == {ADDRESS}
        assert sorted(result["port"] for result in results) == sorted(found)
        return [event for event in events if "environment" in event]


@contextmanager
def scan(directory: Path, files: Path, more: str = "", later: bool = False) -> Iterator[Scan]:
    """A scan with more lines in its configuration; its server is started now or later."""
    made = Scan(directory, files, more)
    with made.stack:
        if not later:
            made.serve()
        yield made


def refused(node: Process, *words: str) -> None:
    """It ended with 1 and one error that says who refused, and why."""
    assert node.end() == 1, node.said
    errors = [line for line in node.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, node.said
    assert "Traceback" not in node.said
    for each in words:
        assert each in node.said
    assert node.left() == []


# ── the three modes ─────────────────────────────────────────────────────────────────────────


def test_trust_every_server_no_client_auth(guide: Path, ports: set[int], tmp_path: Path) -> None:
    with scan(tmp_path, guide) as made:
        node = made.node("--use-tls --tls-insecure")
        (registered,) = made.expect(ports, node)
        assert "identity" not in registered
        assert "the server is not checked" in node.said


def test_trust_only_this_server_no_client_auth(
    guide: Path, ports: set[int], tmp_path: Path
) -> None:
    with scan(tmp_path, guide) as made:
        node = made.node(f"--use-tls --tls-ca-cert {guide}/ca.pem --tls-server-SAN localhost")
        (registered,) = made.expect(ports, node)
        assert "identity" not in registered
        assert "not checked" not in node.said


def test_trust_only_this_server_client_authentication(
    guide: Path, ports: set[int], tmp_path: Path
) -> None:
    """Both programs of the guide at once; the guide's step 4 lets nodes share a certificate."""
    flags = (
        f"--use-tls --tls-ca-cert {guide}/ca.pem --tls-server-SAN localhost "
        f"--tls-client-cert {guide}/client.pem --tls-client-key {guide}/client-key.pem"
    )
    # Slow enough for both to take part: they knock every 100 ms.
    slow = "scannerconfig.ratelimit: 100"
    for force in ("", "TLS.forceClientAuth: true"):
        directory = tmp_path / (force or "not forced")
        directory.mkdir()
        with scan(directory, guide, f"{force}\n{slow}", later=True) as made:
            nodes = [
                made.node(f"{flags} --node-name one", name="one", program="nray-node"),
                made.node(f"{flags} --node-name two", name="two"),
            ]
            for node in nodes:
                until(lambda node=node: "trying again" in node.said)  # type: ignore[misc]
            made.serve()
            registered = made.expect(ports, *nodes)
            assert {event["nodeName"] for event in registered} == {"one", "two"}
            assert {event["identity"] for event in registered} == {SUBJECT}
            assert f"certificate of {SUBJECT}" in made.server.said


def test_a_server_dialled_by_its_name_needs_no_other(
    guide: Path, ports: set[int], tmp_path: Path
) -> None:
    with scan(tmp_path, guide) as made:
        line = command_line(
            "node", "-s", "localhost", "-p", str(made.port), "--use-tls", "--tls-ca-cert",
            str(guide / "ca.pem"),
        )  # fmt: skip
        with started(line, tmp_path, "node") as node:
            made.expect(ports, node)


# ── who is refused ──────────────────────────────────────────────────────────────────────────


def test_a_server_that_demands_certificates(
    guide: Path, others: Path, ports: set[int], tmp_path: Path
) -> None:
    right = f"--use-tls --tls-ca-cert {guide}/ca.pem"
    by_name = f"{right} --tls-server-SAN localhost"
    shown = f"--tls-client-cert {guide}/client.pem --tls-client-key {guide}/client-key.pem"
    foreign = f"--tls-client-cert {others}/client.pem --tls-client-key {others}/client-key.pem"
    with scan(tmp_path, guide, "TLS.forceClientAuth: true") as made:
        none_shown = made.node(by_name, name="none")
        insecure = made.node("--use-tls --tls-insecure", name="insecure")
        of_others = made.node(f"{by_name} {foreign}", name="others")
        wrong_name = made.node(f"{right} --tls-server-SAN nray.example {shown}", name="name")
        no_name = made.node(f"{right} {shown}", name="address")
        wrong_ca = made.node(
            f"--use-tls --tls-ca-cert {others}/ca.pem --tls-server-SAN localhost {shown}",
            name="ca",
        )
        for node in (none_shown, insecure):
            refused(node, "the server refuses this node", "--tls-client-cert")
        refused(
            of_others,
            "the server refuses this node",
            "comes from an authority that is not trusted here",
            f"this node showed {others}/client.pem",
        )
        refused(
            wrong_name,
            "the server's certificate is refused (wrong-name)",
            "DNS:localhost, not for nray.example",
            "--tls-server-SAN",
        )
        refused(no_name, "(wrong-name)", "DNS:localhost, not for 127.0.0.1", "--tls-server-SAN")
        refused(wrong_ca, "the server's certificate is refused (unknown-issuer)", "--tls-ca-cert")
        assert made.server.said.count("refused a node") == 3
        assert "no certificate was shown" in made.server.said
        # They have cost the server nothing: the right node still does the whole scan.
        (registered,) = made.expect(ports, made.node(f"{by_name} {shown}", name="right"))
        assert registered["identity"] == SUBJECT


def test_another_server(guide: Path, others: Path, ports: set[int], tmp_path: Path) -> None:
    """Somebody else's server, with a certificate of the same subject and name."""
    with scan(tmp_path, others) as made:
        flags = f"--use-tls --tls-ca-cert {guide}/ca.pem --tls-server-SAN localhost"
        refused(made.node(flags), "the server's certificate is refused (unknown-issuer)")
        until(lambda: "waiting for nodes" in made.server.said)
        assert " registered " not in made.server.said
