"""The laboratory itself, tried with plain sockets: what nray is judged by must be right first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.measure import measure
from lab.namespaces import Namespace, alive
from lab.network import INTERFACE, Lab, listen
from lab.truth import ADMIN, OPEN, SILENT, draw_ports

pytestmark = pytest.mark.lab

#: Connects to each (address, port) of argv[1] and prints what became of it.
CONNECT = """
import json, socket, sys
for address, port in json.loads(sys.argv[1]):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(0.2)
    sock.setsockopt(*((0, 11, 1) if sock.family == socket.AF_INET else (41, 25, 1)))  # RECVERR
    try:
        sock.connect((address, port))
        print("open")
    except TimeoutError:
        print("timeout")
    except OSError as error:
        print(error.errno)
"""
ADDRESSES = ("198.18.5.5", "2001:db8:1::5")


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_target_keeps_to_the_truth_and_the_capture_sees_it(
    lab: Lab, address: str, tmp_path: Path
) -> None:
    truth = draw_ports(7, address, {OPEN: 3, SILENT: 2, ADMIN: 3})
    lab.keep_to(truth)
    wanted = {probe[1:]: fate.name for probe, fate in truth.fates.items()}
    wanted[(address, 65535)] = "closed"
    other = ADDRESSES[1 - ADDRESSES.index(address)]
    listening = next(iter(truth.having(OPEN)))[2]
    wanted[(other, listening)] = "closed"
    with Capture(lab.scanner, INTERFACE, tmp_path / "capture") as capture:
        out = lab.scanner.call([sys.executable, "-S", "-c", CONNECT, json.dumps(list(wanted))])
    # EACCES and EHOSTUNREACH: how Linux puts ICMPv6 and ICMP admin-prohibited into errno.
    meant = {"open": "open", "timeout": "silent", "13": "admin", "113": "admin", "111": "closed"}
    assert {pair: meant[word] for pair, word in zip(wanted, out.split(), strict=True)} == wanted
    assert {packet[1:3] for packet in capture.probes()} == set(wanted)


def test_nothing_is_left_of_a_namespace(tmp_path: Path) -> None:
    with Namespace("gone") as namespace:
        process = listen(namespace, [("tcp", "127.0.0.1", 80, "hold")])
        inside = namespace.popen(["sh", "-c", "sleep 60 & sleep 60"])
        pids = [process.pid, inside.pid, *namespace.pids()]
        name = namespace.name
    assert not any(alive(pid) for pid in pids)
    shown = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    assert name not in shown.stdout


def test_measure_counts_orphans_and_kills_what_stays(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    orphan = f"{sys.executable} -S -c '{spin}' & exit 3"
    weighed = measure([["sh", "-c", orphan], ["true"]], tmp_path)
    assert weighed.statuses == [3, 0]
    assert weighed.cpu_s >= 0.2
    assert weighed.gone_s >= weighed.wall_s + 0.1
    assert weighed.left == 0


def test_measure_gives_up_in_time(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        measure([["sleep", "60"]], tmp_path, timeout_s=0.2)


def test_measure_weighs_the_command_and_not_its_parent(tmp_path: Path) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 64)
    small = measure([["true"]], tmp_path, memory=True)
    large = measure(
        [[sys.executable, "-S", "-c", "x = b'x' * (80 << 20); import time; time.sleep(.2)"]],
        tmp_path,
        memory=True,
    )
    assert small.maxrss_bytes < len(ballast) // 2
    assert large.maxrss_bytes > 80 << 20
    assert large.memory_bytes > 80 << 20
