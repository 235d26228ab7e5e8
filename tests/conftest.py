"""Fixtures of the acceptance tests; nothing here runs unless a test asks for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
