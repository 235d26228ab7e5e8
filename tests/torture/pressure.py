"""An output that stands still under full load: memory stays flat, and no event is missing.

The json-file is a named pipe, and its reader is stopped. From then on every queue between the
sockets of the workers and that pipe fills up, and the scan has to stand: no connection is opened
any more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lab.certs import Credentials
from lab.measure import descendants

from .crew import Crew
from .ground import Ground
from .plan import FAR, NEAR

NETWORK, HOSTS = "198.18.8.0/24", 256
PORTS = 2000
#: Before the reader is stopped: long enough for the load to be full.
WARM_S = 1.0
SAMPLE_EVERY_S = 0.1
#: A scan that opens no connection for so long stands, and by then at the latest it has to.
STILL_S = 1.0
STANDS_WITHIN_S = 60.0
END_S = 180.0


@dataclass
class Pressed:
    """What came of it; sums of PSS of server and nodes with all that is below them, in bytes.

    Attributes:
        before: the most before the reader was stopped. held: while it was. after: until the end.
        rate: events a second before. stood: bytes that came out while it was stopped.
        asked: probes that had left when the scan stood.
    """

    faults: list[str] = field(default_factory=list)
    events: int = 0
    rate: float = 0.0
    before: int = 0
    held: int = 0
    after: int = 0
    stood: int = 0
    asked: int = 0

    @property
    def grown(self) -> int:
        return max(self.held, self.after) - self.before


def press(
    ground: Ground, directory: Path, credentials: Credentials, hold_s: float, ports: int = PORTS
) -> Pressed:
    """Scan at full speed into a pipe whose reader stops until the scan stands, and for so many
    seconds at least."""
    pipe, output = directory / "pipe", directory / "read.json"
    os.mkfifo(pipe)
    json_file = {
        "filename": str(pipe),
        "overwriteExisting": True,
        "states": ["closed", "filtered", "error"],
    }
    standard = {
        "enabled": True,
        "targets": [NETWORK],
        "tcpports": [f"1-{ports}"],
        "udpports": [],
    }
    crew = Crew(
        ground,
        directory,
        credentials,
        {
            "events": {"json-file": json_file},
            "scannerconfig": {"tcp": {"timeout": "2500ms"}},
            "targetgenerator": {"standard": standard},
        },
    )
    with output.open("wb") as out:
        reader = subprocess.Popen(["cat", str(pipe)], stdout=out)
    pressed = Pressed()
    try:
        crew.start_server()
        nodes = [crew.start_node(NEAR), crew.start_node(FAR)]
        while output.stat().st_size == 0:
            assert crew.server.running, crew.said()
            time.sleep(0.01)
        begun = time.monotonic()
        pressed.before = _watch(crew, WARM_S)
        reader.send_signal(signal.SIGSTOP)
        at_stop = output.stat().st_size
        pressed.rate = _lines(output) / (time.monotonic() - begun)
        pressed.held = _watch(crew, hold_s)
        deadline = time.monotonic() + STANDS_WITHIN_S
        while True:
            pressed.asked = _opened(ground)
            pressed.held = max(pressed.held, _watch(crew, STILL_S))
            if _opened(ground) == pressed.asked:
                break
            if time.monotonic() > deadline:
                pressed.faults.append("the scan goes on without its output")
                break
        if pressed.asked >= HOSTS * ports:
            pressed.faults.append("every probe has left without the output")
        if not crew.server.running:
            pressed.faults.append("the server has ended without its output")
        pressed.stood = output.stat().st_size - at_stop
        reader.send_signal(signal.SIGCONT)
        pressed.after = _watch(crew, END_S)
        for each in [crew.server, *nodes]:
            if each.popen.wait(END_S) != 0:
                pressed.faults.append(f"{each.name}: exit {each.popen.returncode}: {each.said}")
        reader.wait(END_S)
    finally:
        reader.kill()
        reader.wait()
        crew.close()
    _judge(output, pressed, HOSTS * ports)
    return pressed


def _opened(ground: Ground) -> int:
    """TCP connections that were ever begun on the ground (RFC 4022, tcpActiveOpens)."""
    total = 0
    for namespace in (ground.hub, ground.far):
        head, values = [
            line.split()
            for line in namespace.call(["cat", "/proc/net/snmp"]).splitlines()
            if line.startswith("Tcp:")
        ]
        total += int(values[head.index("ActiveOpens")])
    return total


def _watch(crew: Crew, seconds: float) -> int:
    """The largest sum of PSS for so long, or until the server ends; bytes."""
    peak = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and crew.server.running:
        peak = max(peak, _memory(crew))
        time.sleep(SAMPLE_EVERY_S)
    return peak


def _memory(crew: Crew) -> int:
    total = 0
    for each in (crew.server, *crew.nodes):
        for pid in (each.popen.pid, *descendants(each.popen.pid)):
            total += _pss(pid)
    return total


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # it has just ended
    return 0


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _judge(output: Path, pressed: Pressed, probes: int) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    with output.open("rb") as file:
        for line in file:
            result = json.loads(line).get("result")
            if result:
                seen[result["target"], result["port"]] += 1
    pressed.events = seen.total()
    if len(seen) != probes:
        pressed.faults.append(f"{len(seen)} of {probes} probes have an event")
    twice = [pair for pair, times in seen.items() if times > 1]
    if twice:
        pressed.faults.append(f"{len(twice)} events twice, e.g. {twice[:3]}")
