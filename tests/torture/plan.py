"""What befalls a scan, drawn from a seed. Nothing here touches a process."""

from __future__ import annotations

import random
from dataclasses import dataclass

SERVER, NEAR, FAR = "server", "near", "far"
NODES = (NEAR, FAR)
#: A worker of that node, or all of them with the node.
WORKER_NEAR, WORKER_FAR = "worker of near", "worker of far"

#: ``nodeExpiryTime`` of the trials, seconds.
EXPIRY_S = 1.0

KINDS = {
    "kill server": 30,
    "kill node": 15,
    "kill worker": 15,
    "kill several": 15,
    "stop node": 10,
    "stop server": 5,
    "cut": 10,
}
#: How many blows a trial has, and how often.
BLOWS = {1: 40, 2: 40, 3: 20}
#: The share of blows that come by the clock, while processes are still starting.
EARLY = 0.1
EARLY_S = 1.0
JITTER_S = 0.03


@dataclass(frozen=True)
class Blow:
    """One thing that happens.

    Attributes:
        kind: one of `KINDS`.
        victims: who is hit.
        share: of the events that must be in the file before; 0 for at once.
        later_s: so long after that.
        for_s: until the server is started again, the stop ends, the link is back.
        replaced: whether a node that is killed gets a successor, so long after.
        workers_too: whether a node is stopped with its workers.
    """

    kind: str
    victims: tuple[str, ...]
    share: float
    later_s: float
    for_s: float
    replaced: bool = False
    workers_too: bool = False

    def __str__(self) -> str:
        when = f"at {self.share:.1%}" if self.share else f"at {self.later_s:.3f} s"
        more = ", with workers" if self.workers_too else ""
        return f"{self.kind} ({', '.join(self.victims)}{more}) {when} for {self.for_s:.2f} s"


@dataclass(frozen=True)
class Plan:
    """One trial."""

    seed: int
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ("; ".join(map(str, self.blows)) or "undisturbed")


UNDISTURBED = Plan(0, ())


def draw(seed: int) -> Plan:
    """The plan of a seed, which is above 0."""
    dice = random.Random(seed)
    count = dice.choices(list(BLOWS), list(BLOWS.values()))[0]
    moments = sorted((0.0 if dice.random() < EARLY else dice.random()) for _ in range(count))
    return Plan(seed, tuple(_blow(dice, moment) for moment in moments))


def _blow(dice: random.Random, share: float) -> Blow:
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    victims: tuple[str, ...]
    match kind:
        case "kill server" | "stop server":
            victims = (SERVER,)
        case "kill node" | "stop node":
            victims = (dice.choice(NODES),)
        case "kill worker":
            victims = (dice.choice((WORKER_NEAR, WORKER_FAR)),)
        case "cut":
            victims = (FAR,)
        case _:
            everybody = [SERVER, *NODES, WORKER_NEAR, WORKER_FAR]
            victims = tuple(dice.sample(everybody, dice.randint(2, len(everybody))))
    return Blow(
        kind,
        victims,
        share,
        dice.uniform(0, JITTER_S if share else EARLY_S),
        _lasts(dice, kind),
        replaced=dice.random() < 0.5,
        workers_too=dice.random() < 0.5,
    )


def _lasts(dice: random.Random, kind: str) -> float:
    match kind:
        case "stop node":
            return EXPIRY_S + dice.uniform(0.2, 0.6)
        case "stop server":
            return dice.uniform(0.1, 1.8)  # nodes give a silent server up after 1.3 s
        case "cut":
            return dice.uniform(0.1, EXPIRY_S + 1.0)
    return dice.uniform(0.0, 0.2)
