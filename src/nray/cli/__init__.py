"""The command line: ``nray`` and ``nray-node``. Commands parse, call and print; no logic.

Each command is a module of this package, imported when it is called: a scan should not wait for
what only a server needs.
"""

from __future__ import annotations

import os
import sys

from nray.api.interrupts import EXIT_INTERRUPTED, end_at_once


def main() -> None:
    """The ``nray`` command."""
    _run("nray")


def node_main() -> None:
    """The ``nray-node`` command: the same as ``nray node``."""
    _run("nray-node")


def _run(program: str) -> None:
    end_at_once()
    try:
        from nray.cli.root import run

        run(sys.argv[1:], program)
    except KeyboardInterrupt:  # at its very end
        os._exit(EXIT_INTERRUPTED)
