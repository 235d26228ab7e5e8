"""Hostile peers, by the million: mutated sessions against the decoder and both ends.

Real sessions are recorded (`record`), mutated (`mutate`), and played to a server's or a node's
end: to `desk`, which holds the decoder, the state machine and the judgement of an end without a
loop, and, a share of them, to `ends`, where the whole `Server` or `Node` runs in memory on a mock
clock. What reaches new code is kept and mutated further (`coverage`, `fuzzer`). What must be true
of every input stands in `laws`; `plants` holds mistakes that the laws must find.

``make fuzz FRAMES=1000000 JOBS=2``. No packet leaves the process, no name is looked up.
"""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1])
if _TESTS not in sys.path:  # run as `python -m tests.fuzz`: the stand-ins lie beside us
    sys.path.insert(0, _TESTS)
