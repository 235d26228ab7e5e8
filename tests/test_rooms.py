"""Every module stands in a room of DESIGN.md and imports only what its room may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "nray"

EVERYTHING = {
    "api", "cli", "config", "targets", "wire", "pki", "ledger", "server", "node", "worker",
    "grab", "events", "_core",
}  # fmt: skip

#: DESIGN.md's table. The root package itself (version, UserError) is for all.
MAY_IMPORT: dict[str, set[str]] = {
    "cli": EVERYTHING,
    "api": EVERYTHING - {"cli"},
    "config": set(),
    "targets": {"config", "_core"},
    "wire": {"events"},
    "pki": set(),
    "ledger": {"targets", "events"},
    "server": {"wire", "pki", "targets", "events", "ledger", "config"},
    "node": {"wire", "pki", "targets", "worker"},
    "worker": {"_core", "grab"},
    "grab": set(),
    "events": {"config"},
}

#: Files that are no room: the package itself, ``python -m nray``, the extension's typed face.
OUTSIDE = {"__init__.py", "__main__.py", "_core.pyi"}


def imports_of(source: str, package: list[str]) -> set[str]:
    """The rooms that a module's imports name, also inside of functions and TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0]
            text = first.values[0] if isinstance(first, ast.JoinedStr) else first
            names = [str(text.value)] if isinstance(text, ast.Constant) else []
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "nray" and len(parts) > 1 and parts[1] in EVERYTHING:
                found.add(parts[1])
    return found


def modules() -> list[Path]:
    return sorted(
        path
        for path in SOURCE.rglob("*.py*")
        if path.suffix in (".py", ".pyi", ".pyx") and path.relative_to(SOURCE).parts[0] != "core"
    )


def test_every_module_has_a_room() -> None:
    homeless = [
        str(path.relative_to(SOURCE))
        for path in modules()
        if (len(path.relative_to(SOURCE).parts) == 1 and path.name not in OUTSIDE | {"_core.pyx"})
        or (
            len(path.relative_to(SOURCE).parts) > 1
            and path.relative_to(SOURCE).parts[0] not in MAY_IMPORT
        )
    ]
    assert homeless == []


def test_there_are_modules_in_every_room() -> None:
    assert {path.relative_to(SOURCE).parts[0] for path in modules()} >= set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    trespassers = {
        str(path.relative_to(SOURCE)): sorted(more)
        for path in (SOURCE / room).rglob("*.py")
        if (more := imports_of(path.read_text(), ["nray", *path.relative_to(SOURCE).parts[:-1]])
            - allowed)
    }  # fmt: skip
    assert trespassers == {}


def test_the_core_imports_nothing_of_ours() -> None:
    for path in [*(SOURCE / "core").iterdir(), SOURCE / "_core.pyx"]:
        lines = [line.strip() for line in path.read_text().splitlines()]
        ours = [
            line for line in lines if line.startswith(("from nray", "import nray", "cimport nray"))
        ]
        assert ours == [], path


def test_only_known_modules_of_the_root_are_used() -> None:
    """``from nray import X`` must be one of what the root holds, or a room."""
    for path in modules():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "nray":
                names = {alias.name for alias in node.names}
                assert names <= {"UserError", "__version__", "_core"}, path


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from nray.pki import keys", {"pki"}),
        ("import nray.server.server", {"server"}),
        ("from nray import _core", {"_core"}),
        ("def f():\n    from ..ledger import x", {"ledger"}),
        ("from . import neighbour", {"node"}),
        ("import importlib\nimportlib.import_module(f'nray.cli.{x}')", {"cli"}),
        ("import os\nfrom nray import UserError", set()),
    ],
)
def test_the_judge_sees_imports(source: str, rooms: set[str]) -> None:
    assert imports_of(source, ["nray", "node"]) == rooms
