"""Ctrl+C at any time: status 130, no traceback, whole outputs, no process left."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_lab import Process, command_line, free_port, listening, own_address, started, until

ADDRESS = own_address(2)

CONFIGURATION = """\
listen: {port}
targetgenerator.standard:
  targets: [{address}]
  tcpports: ["21000-21100"]
  udpports: []
scannerconfig.ratelimit: 20
events:
  json-file:
    filename: out.json
    filter: {{result.portscan.open: true}}
"""


@pytest.fixture(scope="module")
def ports() -> Iterator[set[int]]:
    with listening(ADDRESS, 14) as found:
        yield found


def whole_lines(path: Path) -> int:
    text = path.read_text()
    assert text.endswith("\n")
    return len([json.loads(line) for line in text.splitlines()])


def gone(process: Process, status: int = 130) -> None:
    assert process.end() == status, process.said
    assert "Traceback" not in process.said
    assert process.left() == []


def test_a_scan(tmp_path: Path, ports: set[int]) -> None:
    arguments = ["scan", "-t", ADDRESS, "-p", "21000-21100", "--rate", "20", "-o", "out.json"]
    with started(command_line(*arguments), tmp_path) as scan:
        until(lambda: scan.out.stat().st_size)
        scan.interrupt()
        gone(scan)
        assert "not finished: " in scan.said
        assert whole_lines(scan.out) == whole_lines(tmp_path / "out.json") > 0


#: Our modules that run before SIGINT is handled.
UNTIL_HANDLED = {"__init__", "__main__", "api/__init__", "api/interrupts", "cli/__init__"}


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2])
def test_a_scan_that_is_just_starting(after_s: float, tmp_path: Path) -> None:
    slow = command_line("scan", "-t", ADDRESS, "-p", "1-60000", "--rate", "9")
    with started(slow, tmp_path) as scan:
        until(lambda: catches_interrupts(scan.popen.pid))
        time.sleep(after_s)
        scan.interrupt()
        # Until our code runs CPython may tell of an interrupt and go on: press again.
        until(lambda: scan.popen.poll() is not None or "KeyboardInterrupt" in scan.said)
        if scan.popen.poll() is None:
            scan.interrupt()
        status = scan.end()
        assert scan.left() == []
        # And it may answer with a traceback, that names none of our code but what leads to a
        # handler of our own.
        if "KeyboardInterrupt" not in scan.said:
            assert status == 130, scan.said
        named = set(re.findall(r"/nray/([\w/]+)\.py", scan.said))
        assert named <= UNTIL_HANDLED, scan.said


def catches_interrupts(pid: int) -> bool:
    """Whether the process has a handler for SIGINT: Python has started."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) & 1 << signal.SIGINT - 1)


def test_a_list_into_a_full_pipe(tmp_path: Path) -> None:
    import subprocess

    listing = command_line("scan", "-t", "0.0.0.0/0", "-p", "1-100", "--list")
    with started(listing, tmp_path, stdout=subprocess.PIPE) as process:
        assert process.popen.stdout is not None
        process.popen.stdout.read(1000)
        # Asleep in write(): the pipe is full.
        stat = Path(f"/proc/{process.popen.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
        process.interrupt()
        gone(process)
        process.popen.stdout.close()


def test_server_and_node(tmp_path: Path, ports: set[int]) -> None:
    port = free_port()
    (tmp_path / "conf.yaml").write_text(CONFIGURATION.format(port=port, address=ADDRESS))
    out = tmp_path / "out.json"
    with (
        started(command_line("server", "-c", "conf.yaml"), tmp_path, "server") as server,
        started(command_line("node", "-p", str(port)), tmp_path, "node1") as first,
    ):
        until(lambda: out.exists() and out.stat().st_size, why=lambda: server.said + first.said)
        first.interrupt()
        gone(first)
        assert "interrupted" in first.said
        with started(command_line("node", "-p", str(port)), tmp_path, "node2") as second:
            until(lambda: "registered" in second.said)
            server.interrupt()
            gone(server)
            gone(second, 0)
            assert "stopped: the server was interrupted" in second.said
        assert "interrupted: stopping the nodes" in server.said
        assert "not finished: " in server.said
        assert whole_lines(out) > 0


def test_a_node_without_a_server(tmp_path: Path) -> None:
    port = free_port()
    with started(command_line("node", "-p", str(port)), tmp_path) as node:
        until(lambda: "trying again" in node.said)
        assert f"no server at localhost:{port} yet (Connection refused)" in node.said
        node.interrupt()
        gone(node)
        assert node.said.count("no server at") == 1


def test_a_server_without_nodes(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "conf.yaml").write_text(CONFIGURATION.format(port=port, address=ADDRESS))
    with started(command_line("server", "-c", "conf.yaml"), tmp_path) as server:
        until(lambda: "waiting for nodes" in server.said)
        assert f"listening on 127.0.0.1:{port} (without TLS)" in server.said
        assert "101 probes: 1 host, 101 ports; seed " in server.said
        # The port is taken now: a second one says by whom to ask, and leaves no file behind.
        (tmp_path / "out.json").unlink()
        other = (tmp_path / "conf.yaml").read_text() + "ledger: none\n"
        (tmp_path / "other.yaml").write_text(other)
        with started(command_line("server", "-c", "other.yaml"), tmp_path, "second") as second:
            gone(second, 2)
            assert f"port {port} of 127.0.0.1 is taken by another program\n" in second.said
            assert f"ss -ltnp 'sport = :{port}'" in second.said
            assert not (tmp_path / "out.json").exists()
        server.interrupt()
        gone(server)


def test_a_signal_pauses_a_server_and_another_lets_it_go_on(tmp_path: Path) -> None:
    port = free_port()
    settings = CONFIGURATION.format(port=port, address=ADDRESS)
    # Without a ledger: what keeps nothing runs as well.
    settings += "statusPrintInterval: 200ms\nledger: none\n"
    (tmp_path / "conf.yaml").write_text(settings)
    with started(command_line("server", "-c", "conf.yaml"), tmp_path) as server:
        until(lambda: "waiting for nodes" in server.said)
        os.kill(server.popen.pid, signal.SIGUSR1)
        until(lambda: "paused; SIGUSR1 again to go on" in server.said)
        node_line = command_line("node", "-s", "127.0.0.1", "-p", str(port))
        with started(node_line, tmp_path, "node") as node:
            until(lambda: "registered" in node.said)
            until(lambda: "paused; 0.0 % done" in server.said and "1 node," in server.said)
            os.kill(server.popen.pid, signal.SIGUSR1)
            gone(server, 0)
            gone(node, 0)
    assert "going on" in server.said
