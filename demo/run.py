"""The main job for real, in a few seconds: an authority, a server, two nodes on mutual TLS.

Everything happens on 127.0.0.0/8 and in a folder that is removed afterwards. The targets are
live listeners that this script opens; what was found is compared with them.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nray.pki import authority

NETWORK = "127.77.0.0/26"
HOSTS = [f"127.77.0.{last}" for last in range(64)]
PORTS = "1-2000"
LISTENERS = 60
LIMIT_S = 120

CONFIGURATION = """\
host: 127.0.0.1
listen: {port}
allowMultipleNodesPerHost: true   # both nodes are on this machine
TLS:
  enabled: true
  CA: ca.pem
  cert: server.pem
  key: server-key.pem
  forceClientAuth: true
targetgenerator:
  standard:
    targets: ["{network}"]
    tcpports: ["{ports}"]
    udpports: []
events:
  json-file:
    filename: found.json
    filter:
      result.portscan.open: true
"""


def main() -> int:
    random.seed(2026)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=Path(__file__).parent))
    try:
        with listeners() as expected:
            return demonstrate(folder, expected)
    finally:
        shutil.rmtree(folder)


def demonstrate(folder: Path, expected: set[tuple[str, int]]) -> int:
    port = free_port()
    make_certificates(folder)
    (folder / "conf.yaml").write_text(CONFIGURATION.format(port=port, network=NETWORK, ports=PORTS))
    say(f"an authority, and certificates for a server and two nodes, in {folder.name}/")
    say(f"{len(expected)} listeners on addresses of {NETWORK}; the scan covers ports {PORTS}")
    begun = time.monotonic()
    server = start(folder, "server", "server", "-c", "conf.yaml")
    nodes = [
        start(
            folder, name, "node", "-s", "127.0.0.1", "-p", str(port), "--node-name", name,
            "--use-tls", "--tls-ca-cert", "ca.pem", "--tls-client-cert", f"{name}.pem",
            "--tls-client-key", f"{name}-key.pem",
        )
        for name in ("nyc1", "fra1")
    ]  # fmt: skip
    say(f"started: nray server (pid {server.pid}), nray node nyc1 and fra1, on mutual TLS")
    try:
        statuses = [process.wait(timeout=LIMIT_S) for process in (server, *nodes)]
    finally:
        for process in (server, *nodes):
            process.kill()
    seconds = time.monotonic() - begun
    log = (folder / "server.log").read_text()
    return judge(folder, expected, statuses, seconds, log)


def judge(
    folder: Path,
    expected: set[tuple[str, int]],
    statuses: list[int],
    seconds: float,
    log: str,
) -> int:
    found = set()
    by_node: dict[str, int] = {}
    sample = ""
    for line in (folder / "found.json").read_text().splitlines():
        event = json.loads(line)
        found.add((event["result"]["target"], event["result"]["port"]))
        by_node[event["identity"]] = by_node.get(event["identity"], 0) + 1
        sample = line
    if any(statuses) or found != expected:
        say(
            f"FAILED: exit statuses {statuses}, {len(found & expected)} of {len(expected)} found, "
            f"{len(found - expected)} that are not there"
        )
        sys.stdout.write(log)
        for name in ("nyc1", "fra1"):
            sys.stdout.write((folder / f"{name}.log").read_text())
        return 1
    for line in log.splitlines():
        if "registered" in line or "probes in" in line:
            say(f"server: {line}")
    shares = ", ".join(f"{name} {count}" for name, count in sorted(by_node.items()))
    say(f"found: {len(found)} open ports, exactly those that listen ({shares})")
    say(f"one of them: {sample}")
    say(f"everything ended with status 0, {seconds:.1f} s after the start")
    return 0


def make_certificates(folder: Path) -> None:
    root = authority.create_authority("nray demo authority", 7)
    authority.write_pair(folder, "ca", *root)
    server = authority.issue_server(root, ["localhost", "127.0.0.1"], 7)
    authority.write_pair(folder, "server", *server)
    for name in ("nyc1", "fra1"):
        authority.write_pair(folder, name, *authority.issue_node(root, name, 7))


def start(folder: Path, log: str, *arguments: str) -> subprocess.Popen[bytes]:
    with open(folder / f"{log}.log", "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "nray", *arguments],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip


@contextmanager
def listeners() -> Iterator[set[tuple[str, int]]]:
    """Listeners on random addresses and ports; nothing else listens in the network."""
    others = offered_everywhere()
    free = [(h, p) for h in HOSTS for p in range(1024, 2001) if (h, p) not in others]
    wanted = random.sample(free, LISTENERS)
    sockets = []
    try:
        for address in wanted:
            sock = socket.socket()
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(64)
        yield set(wanted) | others
    finally:
        for sock in sockets:
            sock.close()


def offered_everywhere() -> set[tuple[str, int]]:
    """What other programs of this machine offer on every address, in the ports scanned."""
    found = set()
    for port in range(1, 2001):
        with socket.socket() as probe:
            if probe.connect_ex(("127.88.0.1", port)) == 0:
                found |= {(host, port) for host in HOSTS}
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
