"""What this machine's kernel knows of its network, read over rtnetlink: no right is needed."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TypeVar

from nray import UserError
from nray.node import netlink
from nray.node.netlink import Address, Entry, Interrupted, Link, Neighbour, Route, Rule

#: Dumps that were interrupted by a change in a row, before that is told.
TRIES_MAX = 8
#: The kernel answers at once; seconds until it is taken for dumb.
ANSWER_S = 5.0

_Kind = TypeVar("_Kind", bound=Entry)


@dataclass(frozen=True)
class Snapshot:
    """Links, addresses, routes and policy rules, each in the kernel's order."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]


def read_snapshot() -> Snapshot:
    """What there is now, in this process's network namespace.

    Raises:
        UserError: this kernel does not tell.
    """
    with _open() as sock:
        rules = _dump(sock, netlink.GETRULE, Rule, 4) + _dump(sock, netlink.GETRULE, Rule, 6)
        routes = _dump(sock, netlink.GETROUTE, Route, 4) + _dump(sock, netlink.GETROUTE, Route, 6)
        return Snapshot(
            tuple(_dump(sock, netlink.GETLINK, Link)),
            tuple(_dump(sock, netlink.GETADDR, Address)),
            tuple(routes),
            tuple(rules),
        )


def read_neighbours() -> list[Neighbour]:
    """The kernel's own table of neighbours. Raises UserError as `read_snapshot`."""
    with _open() as sock:
        return _dump(sock, netlink.GETNEIGH, Neighbour)


def _open() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except (AttributeError, OSError) as error:
        raise UserError(
            f"this machine does not tell its routes: {error}",
            "scanning with SYNs needs Linux's rtnetlink; scan by connecting instead (tcp method"
            " connect, without --syn)",
        ) from error
    sock.settimeout(ANSWER_S)
    return sock


def _dump(sock: socket.socket, kind: int, made: type[_Kind], family: int = 0) -> list[_Kind]:
    for sequence in range(kind << 16 | family << 8, (kind << 16 | family << 8) + TRIES_MAX):
        try:
            return _dump_once(
                sock, netlink.dump_request(kind, family, sequence), sequence, made, family
            )
        except Interrupted:
            continue
        except (OSError, ValueError) as error:
            if isinstance(error, netlink.NetlinkError) and family == 6:
                return []  # a kernel without IPv6
            raise UserError(f"this machine does not tell its routes: {error}") from error
    raise UserError("this machine's routes change faster than they can be read")


def _dump_once(
    sock: socket.socket, request: bytes, sequence: int, made: type[_Kind], family: int
) -> list[_Kind]:
    sock.sendto(request, (0, 0))
    found: list[_Kind] = []
    while True:
        entries, done = netlink.read(sock.recv(netlink.RECEIVE_BYTES), sequence)
        # Asked for a family that it does not have, a kernel answers for all that it has.
        found += [
            each
            for each in entries
            if isinstance(each, made) and family in (0, getattr(each, "family", 0))
        ]
        if done:
            return found
