"""A server and its nodes in one namespace, over mutual TLS."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .certs import Credentials
from .namespaces import Namespace
from .nray import environment, nray, read_events

PORT = 8601
#: Between two looks at a file that a process writes.
LOOK_EVERY_S = 0.02


def configuration(
    directory: Path,
    credentials: Credentials,
    targets: Mapping[str, Any],
    scanner: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a server's configuration (JSON is YAML too); its path.

    Args:
        targets: keys of ``targetgenerator.standard`` beside ``enabled``.
        scanner: the section ``scannerconfig``.
        more: further sections, and those that are to be others.
    """
    content: dict[str, Any] = {
        "listen": [PORT],
        "host": "127.0.0.1",
        "allowMultipleNodesPerHost": True,
        "TLS": {
            "enabled": True,
            "CA": str(credentials.ca),
            "cert": str(credentials.server),
            "key": str(credentials.server_key),
            "forceClientAuth": True,
        },
        "targetgenerator": {"standard": {"enabled": True, **targets}},
        "scannerconfig": dict(scanner),
        "events": {
            "json-file": {"filename": str(directory / "out.json"), "overwriteExisting": True}
        },
    }
    content.update(more or {})
    path = directory / "conf.yaml"
    path.write_text(json.dumps(content, indent=2))
    return path


def server_command(configuration: Path) -> list[str]:
    return nray("server", "-c", str(configuration))


def node_command(credentials: Credentials, name: str, *more: str) -> list[str]:
    # fmt: off
    return nray(
        "node", "-s", "127.0.0.1", "-p", str(PORT), "--node-name", name, "--use-tls",
        "--tls-ca-cert", str(credentials.ca), "--tls-client-cert", str(credentials.node),
        "--tls-client-key", str(credentials.node_key), *more,
    )
    # fmt: on


class Cluster:
    """Server and nodes, each writing to files of its name in the directory.

    Nothing is started by the constructor. What still runs at the end dies with the namespace.
    """

    def __init__(self, namespace: Namespace, directory: Path, credentials: Credentials) -> None:
        self._namespace = namespace
        self._directory = directory
        self._credentials = credentials
        self.processes: dict[str, subprocess.Popen[Any]] = {}

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[Any]:
        with contextlib.ExitStack() as files:
            out = files.enter_context((self._directory / f"{name}.out").open("wb"))
            err = files.enter_context((self._directory / f"{name}.err").open("wb"))
            process = self._namespace.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self._directory,
                env=environment(),
            )
        self.processes[name] = process
        return process

    def start_server(
        self,
        targets: Mapping[str, Any],
        scanner: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
    ) -> subprocess.Popen[Any]:
        path = configuration(self._directory, self._credentials, targets, scanner, more)
        return self._start("server", server_command(path))

    def start_node(self, name: str, *more: str) -> subprocess.Popen[Any]:
        return self._start(name, node_command(self._credentials, name, *more))

    def said(self, name: str) -> str:
        """Standard error of a process so far."""
        return (self._directory / f"{name}.err").read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """What the server has written so far, an unfinished last line left out."""
        path = self._directory / "out.json"
        if not path.exists():
            return []
        return read_events(path.read_text().rpartition("\n")[0])

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for it; AssertionError with what everybody said if it does not come."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come about in {timeout_s} s\n{self._all_said()}")
            time.sleep(LOOK_EVERY_S)

    def statuses(self, timeout_s: float = 180.0) -> dict[str, int]:
        """Wait for all; the exit status of each by name."""
        deadline = time.monotonic() + timeout_s
        try:
            return {
                name: process.wait(max(0.0, deadline - time.monotonic()))
                for name, process in self.processes.items()
            }
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {timeout_s} s\n{self._all_said()}") from None

    def expect_end(self, timeout_s: float = 180.0, killed: str = "") -> None:
        """All end with status 0 and without a traceback, but for the one that was killed."""
        for name, status in self.statuses(timeout_s).items():
            if name != killed:
                assert status == 0, f"{name}: exit {status}\n{self._all_said()}"
                assert "Traceback" not in self.said(name), self._all_said()

    def _all_said(self) -> str:
        return "\n".join(f"── {name}: {self.said(name)[-1500:]}" for name in self.processes)
