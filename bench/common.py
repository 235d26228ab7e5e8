"""What the benchmark programs share: the laboratory, tables, and results kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
# The laboratory of the tests is the laboratory of the benchmarks.
sys.path.insert(0, str(ROOT / "tests"))

from lab.namespaces import missing  # noqa: E402
from lab.nray import nray  # noqa: E402


def need(*programs: str) -> None:
    """End with a reason where no laboratory can be made."""
    reason = missing(*programs)
    if reason:
        sys.exit(f"this benchmark cannot run here: {reason}")


def installed(*arguments: str) -> list[str]:
    """``nray`` as its user starts it: the installed script, else ``python -m nray``."""
    script = Path(sys.executable).with_name("nray")
    return [str(script), *arguments] if script.exists() else nray(*arguments)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range."""
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, which is readable as it is."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def keep(name: str, figures: Any) -> Path:
    """Store figures with the machine they were taken on; the path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }
    path.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    return path
