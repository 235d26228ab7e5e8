"""What a node says of the machine that it runs on."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import sys
from pathlib import Path

from nray.wire.errors import clip
from nray.wire.messages import Environment

_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
#: What systemd leaves in the file of an image that has not been started yet.
_NO_ID = "uninitialized"


def machine_id() -> str:
    """The same for every process of a machine, and no other's (but that of a copied machine).

    A hash, as machine-id(5) asks for: the id itself is not for the network to know.
    """
    for path in _ID_FILES:
        try:
            text = Path(path).read_text(errors="replace").strip()
        except OSError:
            continue
        if text and text != _NO_ID:
            break
    else:
        text = f"{platform.node()} {os.stat('/').st_ino}"
    return hashlib.sha256(f"nray machine {text}".encode()).hexdigest()[:32]


def environment() -> Environment:
    """Host, operating system, process, user and processor of this node."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Environment(
        hostname=clip(platform.node()),
        os=clip(f"{platform.system()} {platform.release()}"),
        pid=os.getpid(),
        processname=clip(os.path.basename(sys.argv[0]) or "nray"),
        username=clip(user),
        cpumodelname=clip(_cpu_model()),
    )


def default_name() -> str:
    """The name of a node that was given none."""
    return platform.node()[:32] or "node"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
