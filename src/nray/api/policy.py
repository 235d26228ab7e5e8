"""A node's policy from its file: what ``nray node --policy`` calls."""

from __future__ import annotations

from nray.config.errors import ConfigError, Problem
from nray.config.policy import ALL_PORTS, Line, PolicyFile, load_policy
from nray.node.policy import Policy, Run
from nray.targets.errors import Notes, TargetError
from nray.targets.networks import Targets, read_targets
from nray.targets.ports import PORT_MAX, TCP, UDP, parse_ports
from nray.targets.ranges import merge

_FORMS = "write addresses: 192.0.2.0/24, 192.0.2.5-192.0.2.90, 192.0.2.*, 2001:db8::/32"


def read_policy(path: str) -> Policy:
    """The policy in a file.

    Raises:
        ConfigError: it cannot be used; a node must not start then.
    """
    return policy_of(load_policy(path), path)


def policy_of(read: PolicyFile, name: str) -> Policy:
    """A policy that was read from the file of this name. Raises ConfigError."""
    allowed = _addresses(read.networks, "networks", name)
    never = _addresses(read.never, "never", name)
    policy = Policy.of(
        allowed.ranges4,
        allowed.ranges6,
        never.ranges4,
        never.ranges6,
        _ports(read.tcp_ports, "tcpports", TCP, name)
        | _ports(read.udp_ports, "udpports", UDP, name),
        ratelimit=read.ratelimit,
        workers=read.workers,
        names=read.names,
        modules=read.modules,
    )
    if not (policy.networks4 or policy.networks6):
        if not read.never:
            seen = "0.0.0.0 and :: are this machine, which is not among them"
            line = read.networks[0][1]
            raise ConfigError(Problem(name, line, "networks", seen, "add 127.0.0.1, or ::1"))
        seen = "covers all networks, so nothing could be scanned"
        raise ConfigError(Problem(name, read.never[0][1], "never", seen, "leave some of them out"))
    if not policy.ports:
        seen = "empty, as is tcpports, so nothing could be scanned"
        raise ConfigError(Problem(name, 0, "udpports", seen, "allow some ports: [53], [all]"))
    return policy


def _addresses(lines: tuple[Line, ...], key: str, name: str) -> Targets:
    found = []
    for text, line in lines:
        try:
            one = read_targets([(text, key, 0)], Notes(strict=True))
        except TargetError as error:
            raise _problem(name, line, error, _FORMS) from None
        if one.names:
            raise ConfigError(
                Problem(
                    name,
                    line,
                    key,
                    f"{text} is a name, and what it means is for others to say",
                    _FORMS,
                )
            )
        found.append(one)
    return Targets(
        merge(each for one in found for each in one.ranges4),
        merge(each for one in found for each in one.ranges6),
    )


def _ports(lines: tuple[Line, ...], key: str, protocol: int, name: str) -> set[Run]:
    found: set[Run] = set()
    for text, line in lines:
        if text == ALL_PORTS:
            found.add((protocol, 1, PORT_MAX))
            continue
        try:
            services = parse_ports(text, protocol, source=key).services
        except TargetError as error:
            raise _problem(name, line, error) from None
        if any(kind != protocol for kind, _ in services):
            seen = f"{text} names ports of the other protocol"
            right = "tcpports is for TCP, udpports for UDP"
            raise ConfigError(Problem(name, line, key, seen, right))
        found.update((kind, port, port) for kind, port in services)
    return found


def _problem(name: str, line: int, error: TargetError, right: str = "") -> ConfigError:
    # The key stands in front of the message already.
    return ConfigError(Problem(name, line, "", error.message, right or error.hint))
