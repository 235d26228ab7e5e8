"""What tshark thinks of frames that were sent: none malformed, every checksum right."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from .namespaces import LabError, Namespace, call

#: Frames that are wrong, and how tshark is told to look.
_WRONG = " || ".join(
    [
        "_ws.malformed",
        *(f"{name}.checksum.status == 0" for name in ("ip", "tcp", "udp", "icmp", "icmpv6")),
    ]
)
_CHECKED = [f"{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
_STOP_S = 60.0


class Recording:
    """Whole frames of an interface, written to a pcap file by tcpdump while the block runs."""

    def __init__(self, namespace: Namespace, interface: str, file: Path, only: str = "") -> None:
        self.file = file
        command = [
            "tcpdump",
            "-Z",
            "root",
            "--immediate-mode",
            "-B",
            "32768",
            "-i",
            interface,
            "-w",
            str(file),
        ]
        self._process = namespace.popen(
            [*command, *only.split()], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> Recording:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on" in line:
                return self
        raise LabError("tcpdump did not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # For what has left and did not yet arrive.
        time.sleep(0.2)
        if kind is None:
            self._catch_up()
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=_STOP_S)
        if kind is None and "0 packets dropped by kernel" not in said:
            raise LabError(f"the recording lost packets: {said}")

    def _catch_up(self) -> None:
        """Until all that the kernel has for it is written: a busy machine may let it wait."""
        assert self._process.stderr is not None
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline:
            self._process.send_signal(signal.SIGUSR1)  # it tells how far it is
            told = re.search(
                r"(\d+) packets? captured, (\d+) packets? received", self._process.stderr.readline()
            )
            if told and told[1] == told[2]:
                return
            time.sleep(0.05)
        raise LabError(f"tcpdump does not catch up within {_STOP_S} s")


def show(file: Path, which: str, *fields: str) -> list[list[str]]:
    """Fields of the frames that match a display filter."""
    options = [word for name in fields for word in ("-e", name)]
    out = call(["tshark", "-n", "-r", str(file), "-Y", which, "-T", "fields", *options])
    return [line.split("\t") for line in out.splitlines()]


def wrong(file: Path, which: str) -> list[str]:
    """Frames that match a filter and are malformed or have a bad checksum, in tshark's words."""
    options = [word for each in _CHECKED for word in ("-o", each)]
    command = ["tshark", "-n", "-r", str(file), *options, "-Y", f"({which}) && ({_WRONG})"]
    return call(command).splitlines()
