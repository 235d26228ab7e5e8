"""What a seed stands for: everything is drawn here, before anything runs, and can be told."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields

from nray.targets.segment import Segment

from .lines import EOF, RESET, SILENT, Quality
from .truth import Truth, make_segment, searched

#: Points at which a fault may strike, counted from the beginning of the run: up to which count
#: (runs pass most points about so often), and how often the point is drawn.
POINTS = {
    "commit": (20, 3),  # before a commit of the ledger
    "committed": (20, 3),  # after it, before anybody is told
    "file": (10, 2),  # in a write to the output
    "sync": (6, 1),  # before an fsync of the output
    "to-node": (60, 4),  # when a message has gone out
    "to-server": (60, 4),
    "lease": (16, 2),  # when a lease was given, before it is sent
    "stop": (3, 1),  # when a node has been told to stop
    "time": (0, 4),  # at a moment
}

#: What may happen, with how often it is drawn.
KINDS = {
    "kill-server": 6,
    "power-cut": 3,  # the server's machine: all that was not synced may be gone
    "freeze-server": 1,
    "interrupt": 1,  # a first Ctrl+C: an end in order, then --resume
    "pause": 1,
    "kill-node": 4,
    "freeze-node": 4,
    "kill-worker": 3,
    "cut": 8,
    "cut-all": 2,
    "stall": 4,  # a link is down, then up again
    "disk-full": 3,
    "slow-sink": 2,
    "clock-jump": 1,
}


@dataclass(frozen=True)
class NodePlan:
    """A machine with a node on it. ``rate``: probes a second of one worker."""

    name: str
    processes: int
    preferred: int
    rate: float
    stay: bool


@dataclass(frozen=True)
class Fault:
    """What happens the ``nth`` time that a point is passed (``time``: at that second).

    Attributes:
        node: the one it happens to, where the point does not say.
        seconds: how long it lasts.
        how: a line breaks (see `lines`), and what share of the bytes under way still arrives.
        then: what happens so many seconds later: trouble seldom comes alone.
    """

    point: str
    nth: float
    kind: str
    node: int = 0
    seconds: float = 0.0
    how: str = EOF
    keep_out: float = 1.0
    keep_back: float = 1.0
    then: tuple[tuple[float, Fault], ...] = ()

    def __str__(self) -> str:
        when = f"{self.nth:.3f} s" if self.point == "time" else f"{self.point} {self.nth:g}"
        later = "".join(f"; {after_s:g} s later: {each.words}" for after_s, each in self.then)
        return f"at {when}: {self.words}{later}"

    @property
    def words(self) -> str:
        """What happens, without when."""
        words = [self.kind]
        if self.kind in ("kill-node", "freeze-node", "kill-worker", "cut", "stall"):
            words.append(f"of node {self.node}")
        if self.kind in ("cut", "cut-all", "kill-server", "kill-node"):
            words.append(f"{self.how}, {self.keep_out:.2f}/{self.keep_back:.2f} still arrives")
        if self.seconds:
            words.append(f"{self.seconds:.2f} s")
        return ", ".join(words)


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        calm_s: no fault strikes later, and those that last have ended.
        limit_s: by then all must be done.
        commit_s, read_s: a commit of the ledger, and a read of its journal, take so long.
        write_s: the same for a write of the output, or a sync.
        terminal: whether there is a second output, which keeps nothing and takes
            ``terminal_event_s`` for each event.
        tail_s: the last answers of a slice come so much later than its last probes.
        first_open: whether hosts are probed up to their first open port.
    """

    seed: int
    pools: int
    segments: list[Segment] = field(repr=False)
    shapes: list[str]
    truth: Truth = field(repr=False)
    nodes: list[NodePlan]
    several_per_machine: bool
    expiry_s: float
    slice_most: int
    line: Quality
    commit_s: float
    read_s: float
    write_s: float
    sync_every_s: float
    channelsize: int
    terminal: bool
    terminal_event_s: float
    tail_s: float
    faults: list[Fault]
    calm_s: float
    limit_s: float
    first_open: bool

    def tell(self) -> str:
        """All of it, for people."""
        lines = [f"seed {self.seed}"]
        for each in fields(self):
            if each.name == "seed" or not each.repr:
                continue
            value = getattr(self, each.name)
            if isinstance(value, list):
                lines.append(f"  {each.name}:" if value else f"  {each.name}: none")
                lines += [f"    {one}" for one in value]
            else:
                lines.append(f"  {each.name}: {value:.4g}" if isinstance(value, float) else
                             f"  {each.name}: {value}")  # fmt: skip
        return "\n".join(lines)


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    pools = rng.choices([1, 2, 3], [6, 3, 1])[0]
    shapes, segments = _segments(rng, pools, seed)
    probes = sum(segment.probes for segment in segments)
    _look_for_hosts(seed, shapes, segments)
    count = max(pools, rng.choices([1, 2, 3, 4], [3, 4, 2, 1])[0])
    # About how long an undisturbed scan takes.
    wanted_s = rng.uniform(1.0, 6.0)
    nodes = _nodes(rng, count, pools, probes / wanted_s * pools / count)
    calm_s = rng.uniform(1.0, 2.5) * wanted_s + rng.choice([0.0, 2.0, 5.0])
    slowest = min(node.rate * node.processes for node in nodes)
    line = Quality(
        latency_s=rng.choice([0.0, 0.001, 0.02, 0.2]),
        window_bytes=rng.choice([65536, 65536, 1000, 200]),
        piece_bytes=rng.choice([0, 0, 0, 0, 100, 17]),
    )
    return Scenario(
        seed=seed,
        pools=pools,
        segments=segments,
        shapes=shapes,
        truth=Truth(segments, pools, rng.choice([0.01, 0.05, 0.15]), seed),
        nodes=nodes,
        several_per_machine=rng.random() < 0.5,
        expiry_s=rng.choice([2.0, 3.0, 6.0, 15.0]),
        slice_most=rng.choice([0, *[max(1, probes // n) for n in (3, 6, 8, 10, 15)]]),
        line=line,
        commit_s=rng.choice([0.0, 0.002, 0.05, 0.3]),
        read_s=rng.choice([0.0, 0.0, 0.002, 0.1]),
        write_s=rng.choice([0.0, 0.0, 0.01, 0.2]),
        sync_every_s=rng.choice([0.0, 0.5, 10.0]),
        channelsize=rng.choice([1, 5, 30, 1000]),
        terminal=rng.random() < 0.25,
        terminal_event_s=rng.choice([0.0, 0.01, 0.1]),
        tail_s=rng.choice([0.0, 0.1, 1.0]),
        faults=_faults(rng, count, calm_s),
        calm_s=calm_s,
        # What is left may be all of it, with the slowest node alone, after all were thought gone;
        # and a full disk, a stuck sink and a silent line have each to be noticed.
        limit_s=calm_s + 120.0 + 4 * probes / slowest,
        # Not drawn, so that all else of a seed is as it ever was.
        first_open=seed % 5 == 4,
    )


def _segments(rng: random.Random, pools: int, seed: int) -> tuple[list[str], list[Segment]]:
    shapes, segments = [], []
    for number in range(rng.choice([1, 1, 2])):
        kind = rng.choices(["4", "6", "names"], [6, 2, 2])[0]
        ports = rng.randrange(1, 9)
        hosts = max(1, rng.randrange(30, 300) // pools // ports)
        shapes.append(f"segment {number}: {hosts} hosts ({kind}) x {ports} ports")
        segments.append(make_segment(number, kind, hosts, ports, seed))
    return shapes, segments


def _look_for_hosts(seed: int, shapes: list[str], segments: list[Segment]) -> None:
    """In one run of four hosts are looked for first. Drawn apart, so that the rest is as ever."""
    if seed % 4 == 2:
        rng = random.Random(f"discovery {seed}")
        for number, segment in enumerate(segments):
            stages = rng.choice([0, 1, 1, 2, 2])
            if stages:
                segments[number] = searched(segment, stages)
                shapes[number] += f", of hosts found in {stages} stages"


def _nodes(rng: random.Random, count: int, pools: int, rate: float) -> list[NodePlan]:
    nodes = []
    stay = rng.random() < 0.15
    slow = rng.randrange(count) if rng.random() < 0.3 else -1
    for number in range(count):
        processes = rng.choice([1, 1, 2])
        each = rate / processes * rng.uniform(0.5, 2.0)
        nodes.append(
            NodePlan(
                name=f"n{number}",
                processes=processes,
                # Each pool has a node that is its own, or none might ever come to it.
                preferred=number if number < pools else -1,
                rate=max(1.0, each / 12 if number == slow else each),
                stay=stay,
            )
        )
    return nodes


def _faults(rng: random.Random, nodes: int, calm_s: float) -> list[Fault]:
    faults = [_fault(rng, nodes, calm_s) for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 12]))]
    return sorted(faults, key=lambda fault: (fault.point, fault.nth))


def _fault(rng: random.Random, nodes: int, calm_s: float) -> Fault:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    point = rng.choices(list(POINTS), [weight for _, weight in POINTS.values()])[0]
    most = POINTS[point][0]
    followers = rng.choices([0, 1, 2], [6, 3, 1])[0]
    return Fault(
        point=point,
        nth=rng.randint(1, most) if most else rng.uniform(0.0, calm_s),
        kind=kind,
        node=rng.randrange(nodes),
        seconds=_seconds(rng, kind),
        how=rng.choices([EOF, RESET, SILENT], [3, 3, 2])[0],
        keep_out=rng.choice([0.0, 1.0, rng.random()]),
        keep_back=rng.choice([0.0, 1.0, rng.random()]),
        then=tuple(
            (rng.choice([0.0, 0.01, 0.15, 0.5, 2.2]), _fault(rng, nodes, calm_s))
            for _ in range(followers)
        ),
    )


def _seconds(rng: random.Random, kind: str) -> float:
    """How long it lasts: at times nobody notices, at times longer than any patience."""
    if kind in ("kill-server", "power-cut", "interrupt"):
        return rng.choice([0.0, 0.3, 2.5])
    if kind == "kill-node":
        return rng.choice([0.0, 1.0, 4.0])
    if kind in ("freeze-node", "freeze-server", "stall", "slow-sink", "disk-full", "pause"):
        return rng.choice([0.2, 2.0, 5.0, 12.0])
    if kind == "clock-jump":
        return rng.choice([0.5, 5.0, 40.0])
    return 0.0
