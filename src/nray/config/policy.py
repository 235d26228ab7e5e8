"""Every key of a node's policy file: what the node will ever do, whatever its server says.

Read more strictly than a configuration: whatever is not understood, or left open, keeps the node
from starting. What the addresses and ports mean is `nray.targets`'s to say, so they are kept with
their lines.
"""

from __future__ import annotations

import os
import stat
from typing import Annotated, Any

from nray.config import kinds
from nray.config.errors import ConfigError, Problem, Wrong
from nray.config.kinds import Kind, PortExpression, Text
from nray.config.nodes import Mapping, Node, Scalar, describe
from nray.config.reader import decode, read_strictly, unreadable
from nray.config.schema import Key, Section
from nray.config.yamltext import TEXT_BYTES_MAX

#: (text, line)
Line = tuple[str, int]


class Lines(Kind):
    """A list of texts, each with its line; a single text is a list of one. None may be empty."""

    def __init__(self, item: Text) -> None:
        self._item = item
        self.name = f"list ({item.name})"

    def read(self, node: Node) -> tuple[Line, ...]:
        if isinstance(node, Mapping):
            raise Wrong(f"{describe(node)} is no list", "write a list: [one, two]")
        items = (node,) if isinstance(node, Scalar) else node.items
        found = []
        for item in items:
            if isinstance(item, Scalar) and (item.is_null or not item.text.strip()):
                raise Wrong("an entry without a value", "write [] for an empty list")
            found += [(word, item.line) for word in self._item.read(item).split()]
        return tuple(found)

    def write(self, value: tuple[Line, ...]) -> object:
        return [text for text, _ in value]


class _Network(Text):
    name = "network"


#: Every port of a protocol.
ALL_PORTS = "all"

_NETWORKS = Lines(_Network())
_PORTS = Lines(PortExpression())


class PolicyFile(Section, frozen=True, kw_only=True):
    """The whole file. ``workers``: 0 is ``auto``; ``ratelimit``: 0.0 is none."""

    networks: Annotated[tuple[Line, ...], Key("networks", _NETWORKS)] = ()
    never: Annotated[tuple[Line, ...], Key("never", _NETWORKS)] = ()
    tcp_ports: Annotated[tuple[Line, ...], Key("tcpports", _PORTS)] = ((ALL_PORTS, 0),)
    udp_ports: Annotated[tuple[Line, ...], Key("udpports", _PORTS)] = ((ALL_PORTS, 0),)
    ratelimit: Annotated[float, Key("ratelimit", kinds.RATE)] = 0.0
    workers: Annotated[int, Key("workers", kinds.COUNT_OR_AUTO)] = 0
    names: Annotated[bool, Key("names", kinds.BOOL)] = True
    modules: Annotated[
        tuple[str, ...], Key("modules", kinds.ListOf(kinds.Choice("ssh", "http")))
    ] = ()


def load_policy(path: str) -> PolicyFile:
    """The policy in a file that nobody but this user and root can change.

    Raises:
        ConfigError: the file cannot be read, is not this user's, others may write it, or holds
            anything but a policy.
    """
    try:
        with open(path, "rb") as file:
            _demand_own(os.fstat(file.fileno()), path)
            data = file.read(TEXT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return parse_policy(decode(data, path), path)


def parse_policy(text: str, name: str = "policy") -> PolicyFile:
    """The policy in a text; ``name`` stands for the file in messages.

    Raises:
        ConfigError: it is none, or says of no network that it may be scanned.
    """
    policy = read_strictly(text, name, PolicyFile)
    if not policy.networks:
        raise ConfigError(
            Problem(
                name,
                0,
                "networks",
                "missing: this policy lets nothing be scanned",
                'list what may be: [192.0.2.0/24, "2001:db8::/32"]',
            )
        )
    return policy


def _demand_own(status: Any, path: str) -> None:
    """What anybody can change is no policy. Asked of the open file, so nobody swaps it between."""
    if status.st_uid not in (0, os.geteuid()):
        seen = f"belongs to user {status.st_uid}, who can change it"
        raise ConfigError(Problem(path, 0, "", seen, f"chown it to root: chown root {path}"))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        seen = "can be changed by other users"
        raise ConfigError(Problem(path, 0, "", seen, f"take that from them: chmod go-w {path}"))
