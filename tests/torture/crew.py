"""The processes of a trial: a server that is started again, nodes that come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import cluster
from lab.certs import Credentials
from lab.cluster import PORT
from lab.measure import descendants
from lab.namespaces import Namespace
from lab.nray import environment, nray, workers_of

from .ground import PORTS, SEED, SERVER, TARGETS, Ground
from .plan import EXPIRY_S, FAR

#: Probes a second of each node: a scan of 6,000 takes both some 1.2 seconds.
RATE = 2500


def configuration(
    directory: Path, credentials: Credentials, changes: Mapping[str, Any] | None = None
) -> Path:
    """Write the server's configuration; its path.

    Every probe makes an event: one that is lost shows, wherever it was.

    Args:
        changes: sections to be replaced.
    """
    events = {
        "filename": str(directory / "out.json"),
        "overwriteExisting": True,
        "states": ["closed", "filtered", "error"],
    }
    return cluster.configuration(
        directory,
        credentials,
        {
            "targets": list(TARGETS),
            "tcpports": [f"{PORTS.start}-{PORTS.stop - 1}"],
            "udpports": [],
        },
        {"ratelimit": RATE, "tcp": {"timeout": "1500ms"}},
        {
            "host": SERVER,
            "seed": SEED,
            "internal": {"nodeExpiryTime": EXPIRY_S, "nodeExpiryCheckInterval": 1},
            "events": {"json-file": events},
            **(changes or {}),
        },
    )


class Process:
    """One process with its errors in a file."""

    def __init__(
        self, name: str, command: list[str], namespace: Namespace, directory: Path
    ) -> None:
        self.name = name
        self.err = directory / f"{name}.err"
        with (directory / f"{name}.out").open("wb") as out, self.err.open("wb") as err:
            self.popen = namespace.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=directory,
                env=environment(),
            )
        self.killed = False
        #: Whether a blow has hit it otherwise.
        self.troubled = False

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def kill(self) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def signal(self, number: int, *, below: bool = False) -> None:
        """Send a signal, to what is below as well if asked."""
        for pid in [self.popen.pid, *(descendants(self.popen.pid) if below else ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_worker(self, number: int = 0) -> bool:
        """Kill one worker; False if there is none."""
        workers = workers_of(self.popen.pid)
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[number % len(workers)], signal.SIGKILL)
        return bool(workers)


class Crew:
    """Server and nodes on the ground. What still runs at the end is killed by `close`."""

    def __init__(
        self,
        ground: Ground,
        directory: Path,
        credentials: Credentials,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self._ground = ground
        self._credentials = credentials
        self.directory = directory
        self.output = directory / "out.json"
        self.configuration = configuration(directory, credentials, changes)
        self.ledger = directory / "conf.yaml.ledger"
        self.servers: list[Process] = []
        self.nodes: list[Process] = []
        #: By place, who is there now.
        self.at: dict[str, Process] = {}

    @property
    def server(self) -> Process:
        return self.servers[-1]

    def start_server(self, *more: str) -> Process:
        """The server, or the next one; it goes on with the ledger where there is one."""
        resume = ["--resume"] if self.servers and self.ledger.exists() else []
        command = nray("server", "-c", str(self.configuration), *resume, *more)
        process = Process(f"server-{len(self.servers)}", command, self._ground.hub, self.directory)
        self.servers.append(process)
        return process

    def start_node(self, place: str, *more: str) -> Process:
        """A node at a place, ``near`` or ``far``."""
        credentials = self._credentials
        name = f"{place}-{len(self.nodes)}"
        # fmt: off
        command = nray(
            "node", "-s", SERVER, "-p", str(PORT), "--node-name", name, "--processes", "2",
            "--use-tls", "--tls-server-SAN", "localhost", "--tls-ca-cert", str(credentials.ca),
            "--tls-client-cert", str(credentials.node),
            "--tls-client-key", str(credentials.node_key), *more,
        )
        # fmt: on
        namespace = self._ground.far if place == FAR else self._ground.hub
        process = Process(name, command, namespace, self.directory)
        self.nodes.append(process)
        self.at[place] = process
        return process

    def said(self) -> str:
        """What everybody said, for error messages."""
        everybody = [*self.servers, *self.nodes]
        return "\n".join(f"── {each.name}: {each.said[-1500:]}" for each in everybody)

    def close(self) -> None:
        """Kill whatever is left."""
        for each in [*self.servers, *self.nodes]:
            if each.running:
                each.signal(signal.SIGKILL, below=True)
                each.popen.wait()
