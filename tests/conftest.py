"""Fixtures of the acceptance tests, and the order of tests that run in several processes.

``make test`` runs the suite in several processes of pytest-xdist, which wait side by side. A test
that measures time is marked ``alone``: while it runs, no other one does, in whatever process. In
one process (plain ``pytest``) all of this does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# The laboratory is a package beside the tests; bench/ imports it the same way.
sys.path.insert(0, str(Path(__file__).parent))

from lab.certs import Credentials, make_credentials
from lab.namespaces import Namespace, require
from lab.network import Lab


@pytest.fixture
def alone() -> Iterator[Namespace]:
    """A namespace with nothing but ``lo``."""
    require("ss")
    with Namespace("alone") as namespace:
        yield namespace


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def version(request: pytest.FixtureRequest) -> int:
    """Of IP: whoever asks for it is tried with both."""
    return int(request.param)


@pytest.fixture(params=["raw", "connect"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of engine: whoever asks for it is tried with both."""
    return str(request.param)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Scanner and target, one pair for all tests of a module."""
    require("nft")
    with Lab() as made:
        yield made


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """An authority with a server's and a node's certificate."""
    return make_credentials(tmp_path_factory.mktemp("credentials"))


# A session that a shell runs in its background ignores Ctrl+C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ── several processes ───────────────────────────────────────────────────────────────────────

#: Set by pytest-xdist in each of its processes.
SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
#: Files that all processes lock; they are there anyhow.
DOOR, ROOM = Path(__file__), Path(__file__).parent
#: These begin: whatever takes long must not be what the others wait for at the end.
FIRST = ("test_torture.py", "test_accept_resume.py")


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, kind)
    try:
        yield
    finally:
        # Closing alone would not do: what a test has forked may have the descriptor, too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let one test that is to be alone run, or any number of others."""
    if not SEVERAL:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with contextlib.ExitStack() as held:
        # Whoever is to be alone waits in the door, so that nobody comes in after him.
        with _locked(DOOR, fcntl.LOCK_EX):
            held.enter_context(_locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes: the longest first, and last those that nobody may run beside."""
    if SEVERAL:
        items.sort(
            key=lambda item: (
                item.get_closest_marker("alone") is not None,
                item.path.name not in FIRST,
            )
        )
