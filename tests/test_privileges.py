"""What processes may do beyond their user, read from the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_lab import command_line, free_port, own_address, started, until
from lab.certs import Credentials
from nray.worker import privileges

NET_RAW = 1 << 13
FILES = 0b1111
LOW_PORTS = 1 << 10

CONFIGURATION = """\
listen: {port}
TLS: {{CA: {c.ca}, cert: {c.server}, key: {c.server_key}, forceClientAuth: true}}
targetgenerator.standard: {{targets: [{address}], tcpports: [1-65535], udpports: []}}
scannerconfig.ratelimit: 50
events.json-file.filename: out.json
"""


def status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def in_a_child(act: Callable[[], None]) -> dict[str, str]:
    """The status of a forked process after it has done this; fails if it could not."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os.write(writing, Path("/proc/thread-self/status").read_bytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    assert text, "it failed"
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def capabilities(found: dict[str, str], *sets: str) -> list[int]:
    return [int(found[each], 16) for each in sets]


def test_what_is_kept_is_kept_and_nothing_else() -> None:
    before = int(status("self")["CapEff"], 16)
    found = in_a_child(lambda: privileges.drop(keep_net_raw=True))
    assert capabilities(found, "CapEff", "CapPrm") == [before & NET_RAW] * 2
    assert capabilities(found, "CapInh", "CapAmb") == [0, 0]
    assert found["NoNewPrivs"] == "1"
    found = in_a_child(lambda: privileges.drop(keep_net_raw=False))
    assert capabilities(found, "CapEff", "CapPrm") == [0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_bounding_set_goes_too() -> None:
    found = in_a_child(lambda: privileges.drop(keep_net_raw=False, keep=privileges.FILES))
    assert capabilities(found, "CapBnd", "CapEff") == [FILES, FILES]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be nobody")
def test_a_user_without_any_loses_nothing() -> None:
    def act() -> None:
        os.setresuid(65534, 65534, 65534)
        privileges.drop(keep_net_raw=True)
        privileges.guard_keys()

    found = in_a_child(act)
    assert found["NoNewPrivs"] == "1"
    assert capabilities(found, "CapEff") == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others have nothing to give up")
def test_real_processes_keep_what_their_part_needs(
    tmp_path: Path, credentials: Credentials
) -> None:
    port = free_port()
    text = CONFIGURATION.format(port=port, c=credentials, address=own_address(7))
    (tmp_path / "conf.yaml").write_text(text)
    flags = (
        *("--tls-ca-cert", str(credentials.ca), "--tls-client-cert", str(credentials.node)),
        *("--tls-client-key", str(credentials.node_key), "--processes", "1"),
    )
    serve = command_line("server", "-c", "conf.yaml")
    attend = command_line("node", "-s", "127.0.0.1", "-p", str(port), *flags)
    with (
        started(serve, tmp_path, "server") as server,
        started(attend, tmp_path, "node") as node,
    ):
        until(lambda: "waiting for nodes" in server.said, why=lambda: server.said)
        until(lambda: len(node._members()) == 3, why=lambda: node.said)
        others = [pid for pid in node._members() if pid != node.popen.pid]

        def settled() -> bool:
            return all(status(pid)["NoNewPrivs"] == "1" for pid in [*others, node.popen.pid])

        until(settled)
        for pid in [server.popen.pid, node.popen.pid]:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found = status(f"{pid}/task/{task.name}")
                kept = FILES | (LOW_PORTS if pid == server.popen.pid else NET_RAW)
                assert capabilities(found, "CapEff", "CapPrm", "CapBnd") == [kept] * 3
                assert found["NoNewPrivs"] == "1"
        for pid in others:  # the fork server and its worker
            assert capabilities(status(pid), "CapEff", "CapPrm", "CapBnd") == [NET_RAW] * 3
