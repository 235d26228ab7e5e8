"""The command line: ``nray`` and ``nray-node``. Commands parse, call and print; no logic.

Each command is a module of this package, imported when it is called: a scan should not wait for
what only a server needs.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The ``nray`` command."""
    from nray.cli.root import run

    run(sys.argv[1:])


def node_main() -> None:
    """The ``nray-node`` command: the same as ``nray node``."""
    from nray.cli.root import run

    run(["node", *sys.argv[1:]], "nray-node")
