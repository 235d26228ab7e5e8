"""Where a probe leaves this machine, and from which address: the kernel's rules, made flat.

A SYN that is built by hand passes the kernel's routing by, so it is followed here: policy rules in
their order, in each table the longest prefix, then the lowest metric; of several next hops the
first. What comes out are ranges of addresses that do not overlap, each with its way. Ranges that
the kernel would refuse (unreachable, prohibited, broadcast …) or does not know have none: nothing
is ever sent "somewhere".

Pure: the tables are arguments (`kernel.read_snapshot`). Source addresses are those that the kernel
would choose: for IPv4 as its fib_semantics do, for IPv6 by RFC 6724 without the labels (section
5, rules 1 to 5 and 8), which its longest matching prefix makes up for in all but odd cases.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple, TypeVar

from nray.node import netlink
from nray.node.kernel import Snapshot
from nray.node.netlink import WIDTH, Address, Hop, Route, Rule
from nray.targets import ranges
from nray.targets.ranges import Range, Ranges

#: (link index, its name, whether frames have an Ethernet header, its address, MTU)
LinkRow = tuple[int, str, bool, bytes, int]
#: (family, first, last, index into the links, source address, gateway's MAC)
RouteRow = tuple[int, int, int, int, bytes, bytes]

#: What no probe may be sent to, whatever the tables say: the unspecified address, multicast
#: (RFC 5771, RFC 4291 2.7), limited broadcast, and IPv4 addresses in IPv6 dress (RFC 4291 2.5.5.2),
#: which would leave as IPv4.
_NEVER: dict[int, Ranges] = {
    4: ((0, 0), (0xE0000000, 0xEFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)),
    6: ((0, 0), (0xFFFF << 32, 0xFFFF << 32 | 0xFFFFFFFF), (0xFF << 120, (1 << 128) - 1)),
}
_FAMILY = {width: family for family, width in WIDTH.items()}
_LINK_LOCAL6: Range = (0xFE80 << 112, (0xFEC0 << 112) - 1)

_Value = TypeVar("_Value")


class Way(NamedTuple):
    """How a probe leaves: out of a link, from an address, to a gateway (empty: to all there)."""

    link: int
    source: bytes
    gateway: bytes


class Span(NamedTuple):
    """Addresses with one way, ``first`` to ``last``."""

    first: int
    last: int
    way: Way


class _Choice(NamedTuple):
    """What routing has decided for a range, before the source address."""

    link: int
    gateway: bytes
    source: bytes
    scope: int
    local: bool


@dataclass(frozen=True)
class Routes:
    """The ways out of this machine.

    Attributes:
        links: every interface, by index.
        spans: by family, 4 and 6; sorted, none overlaps another.
        notes: what was left aside, a sentence each.
        groups: by family: addresses that no host has, broadcast and multicast.
    """

    links: Mapping[int, netlink.Link]
    spans: Mapping[int, Sequence[Span]]
    notes: tuple[str, ...] = ()
    groups: Mapping[int, Ranges] = field(default_factory=dict)
    _firsts: dict[int, list[int]] = field(default_factory=dict, compare=False, repr=False)

    def find(self, family: int, address: int) -> Way | None:
        """The way to an address, or None."""
        spans = self.spans[family]
        if family not in self._firsts:
            self._firsts[family] = [span.first for span in spans]
        at = bisect_right(self._firsts[family], address) - 1
        return spans[at].way if at >= 0 and address <= spans[at].last else None

    def narrowed(self, wanted4: Ranges, wanted6: Ranges) -> Routes:
        """The same for these targets only, so that no gateway is asked for that is not used."""
        wanted = {4: wanted4, 6: wanted6}
        spans = {
            family: [
                Span(low, high, way)
                for first, last, way in spans
                for low, high in _common((first, last), wanted[family])
            ]
            for family, spans in self.spans.items()
        }
        return Routes(self.links, spans, self.notes, self.groups)

    def missing(self, family: int, wanted: Ranges) -> Ranges:
        """What of these targets has no way."""
        return ranges.subtract(
            wanted, ranges.merge((span.first, span.last) for span in self.spans[family])
        )

    def unrouted(self, family: int, wanted: Ranges) -> Ranges:
        """What of these targets has no way, `groups` left out."""
        return ranges.subtract(self.missing(family, wanted), self.groups.get(family, ()))

    def gateways(self) -> set[tuple[int, bytes, bytes]]:
        """(link, gateway, a source address) of gateways whose MACs are needed; one each."""
        return self._gateways(way for spans in self.spans.values() for _, _, way in spans)

    def gateways_to(self, addresses: Iterable[bytes]) -> set[tuple[int, bytes, bytes]]:
        """The same of those that these addresses, of 4 or 16 bytes, lie behind."""
        ways = (self.find(_FAMILY[len(each)], int.from_bytes(each, "big")) for each in addresses)
        return self._gateways(way for way in ways if way is not None)

    def _gateways(self, ways: Iterable[Way]) -> set[tuple[int, bytes, bytes]]:
        found = {
            (way.link, way.gateway): way.source
            for way in ways
            if way.gateway and is_ethernet(self.links[way.link])
        }
        return {(link, gateway, source) for (link, gateway), source in found.items()}

    def rows(self, macs: Mapping[tuple[int, bytes], bytes]) -> tuple[list[LinkRow], list[RouteRow]]:
        """Links and routes in the core's form; a way whose gateway has no MAC is left out.

        The links are the same, in the same order, whatever the MACs.
        """
        order: dict[int, int] = {}
        routes: list[RouteRow] = []
        for family in sorted(self.spans):
            for first, last, way in self.spans[family]:
                index = order.setdefault(way.link, len(order))
                mac = b""
                if way.gateway and is_ethernet(self.links[way.link]):
                    mac = macs.get((way.link, way.gateway), b"")
                    if not mac:
                        continue
                routes.append((family, first, last, index, way.source, mac))
        links = [self.links[index] for index in order]
        return [
            (
                link.index,
                link.name,
                is_ethernet(link),
                link.mac if is_ethernet(link) else b"",
                link.mtu,
            )
            for link in links
        ], routes


def is_ethernet(link: netlink.Link) -> bool:
    """Whether frames with MACs go over a link; else the kernel is given bare packets."""
    return (
        link.kind == netlink.ARPHRD_ETHER
        and not link.flags & (netlink.IFF_LOOPBACK | netlink.IFF_NOARP)
        and len(link.mac) == 6
    )


def routes_of(snapshot: Snapshot) -> Routes:
    """The ways out of a machine whose tables these are."""
    notes: list[str] = []
    links = {link.index: link for link in snapshot.links}
    loopback = next((link.index for link in snapshot.links if link.flags & netlink.IFF_LOOPBACK), 0)
    spans: dict[int, Sequence[Span]] = {}
    groups: dict[int, Ranges] = {}
    for family in (4, 6):
        groups[family] = ranges.merge(
            [*_NEVER[family], *(_ends(each) for each in snapshot.routes if _is_group(each, family))]
        )
        tables = _tables(snapshot.routes, family, loopback, links, notes)
        decided = _apply(snapshot.rules, tables, family, notes)
        sources = _Sources([each for each in snapshot.addresses if each.family == family])
        spans[family] = list(
            _joined(
                Span(first, last, Way(choice.link, source, choice.gateway))
                for first, last, choice in decided
                if choice is not None
                for low, high in ranges.subtract([(first, last)], _NEVER[family])
                for first, last, source in sources.of(low, high, choice)
            )
        )
    return Routes(links, spans, tuple(dict.fromkeys(notes)), groups)


def _is_group(route: Route, family: int) -> bool:
    kinds = (netlink.RTN_BROADCAST, netlink.RTN_MULTICAST)
    return route.family == family and route.kind in kinds


def _ends(route: Route) -> Range:
    """The first and the last address of a route."""
    return route.first, route.first | ((1 << (8 * WIDTH[route.family] - route.prefix)) - 1)


# ── flat from nested ────────────────────────────────────────────────────────────────────────


def flatten(prefixes: Iterable[tuple[int, int, _Value]]) -> list[tuple[int, int, _Value]]:
    """Disjoint (first, last, value) from prefixes, of which the longest one that holds an address
    decides; of equals the one that comes first."""
    flat: list[tuple[int, int, _Value]] = []
    outer: list[tuple[int, _Value]] = []
    at = 0

    def close(until: int) -> None:
        """Give the addresses before ``until`` to the innermost prefixes that hold them."""
        nonlocal at
        while outer and at < until:
            last, value = outer[-1]
            end = min(last, until - 1)
            if at <= end:
                flat.append((at, end, value))
                at = end + 1
            if last < until:
                outer.pop()

    seen: set[Range] = set()
    for first, last, value in sorted(prefixes, key=lambda each: (each[0], -each[1])):
        if (first, last) in seen:
            continue
        seen.add((first, last))
        close(first)
        outer = [each for each in outer if each[0] >= first]
        at = first
        outer.append((last, value))
    if outer:
        close(outer[0][0] + 1)
    return flat


def overlay(
    upper: Sequence[tuple[int, int, _Value]], lower: Sequence[tuple[int, int, _Value]]
) -> list[tuple[int, int, _Value]]:
    """``upper``, and of ``lower`` what it leaves free; each sorted and disjoint."""
    taken = [(first, last) for first, last, _ in upper]
    firsts = [first for first, _ in taken]
    found = list(upper)
    for first, last, value in lower:
        near = max(0, bisect_right(firsts, first) - 1)
        beyond = bisect_right(firsts, last)
        found += [(*each, value) for each in ranges.subtract([(first, last)], taken[near:beyond])]
    return sorted(found, key=lambda each: each[0])


def _common(one: Range, others: Ranges) -> Iterator[Range]:
    at = max(0, bisect_right(others, one[0], key=lambda each: each[0]) - 1)
    while at < len(others) and others[at][0] <= one[1]:
        low, high = max(one[0], others[at][0]), min(one[1], others[at][1])
        if low <= high:
            yield low, high
        at += 1


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Neighbours of one way as one span."""
    last: Span | None = None
    for span in spans:
        if last is not None and last.way == span.way and last.last + 1 == span.first:
            last = Span(last.first, span.last, last.way)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


# ── tables and rules ────────────────────────────────────────────────────────────────────────


class _Throw:
    """A route that sends the search on to the next rule."""


#: A prefix of a table: first, last, length, and what it decides. None: nothing may be sent.
_Line = tuple[int, int, int, _Choice | _Throw | None]


def _tables(
    routes: Sequence[Route],
    family: int,
    loopback: int,
    links: Mapping[int, netlink.Link],
    notes: list[str],
) -> dict[int, list[_Line]]:
    """The routes of each table, the best of each prefix alone."""
    best: dict[tuple[int, int, int], Route] = {}
    for route in routes:
        if route.family != family:
            continue
        if route.odd:
            notes.append(f"a route {route.odd} is not followed: {_network(route)}")
            continue
        needs_hop = route.kind == netlink.RTN_UNICAST
        if needs_hop and not any(hop.link in links for hop in route.hops):
            continue  # its link is down
        key = (route.table, route.first, route.prefix)
        before = best.get(key)
        if before is None or (route.metric, route.preference) < (before.metric, before.preference):
            best[key] = route
    tables: dict[int, list[_Line]] = {}
    for route in best.values():
        decided = _decided(route, loopback, links)
        tables.setdefault(route.table, []).append((*_ends(route), route.prefix, decided))
    return tables


def _decided(
    route: Route, loopback: int, links: Mapping[int, netlink.Link]
) -> _Choice | _Throw | None:
    if route.kind == netlink.RTN_UNICAST:
        hop = next(hop for hop in route.hops if hop.link in links)
        return _Choice(*_out(hop, links), route.source, route.scope, local=False)
    if route.kind in (netlink.RTN_LOCAL, netlink.RTN_ANYCAST):
        # To one of its own addresses a machine talks from that very address.
        source = route.source
        if not source and route.prefix == 8 * WIDTH[route.family]:
            source = route.first.to_bytes(WIDTH[route.family], "big")
        return _Choice(loopback, b"", source, netlink.SCOPE_HOST, local=True)
    return _Throw() if route.kind == netlink.RTN_THROW else None


def _out(hop: Hop, links: Mapping[int, netlink.Link]) -> tuple[int, bytes]:
    return hop.link, hop.gateway if is_ethernet(links[hop.link]) else b""


def _apply(
    rules: Sequence[Rule],
    tables: Mapping[int, list[_Line]],
    family: int,
    notes: list[str],
) -> list[tuple[int, int, _Choice | None]]:
    """Follow the rules for a packet of ours: unmarked, from nowhere in particular yet."""
    everything = (0, (1 << 8 * WIDTH[family]) - 1)
    decided: list[tuple[int, int, _Choice | None]] = []
    for rule in sorted((each for each in rules if each.family == family), key=_priority):
        if rule.odd:
            if rule.odd != "l3mdev":  # says nothing about sockets outside of a VRF
                notes.append(f"policy rule {rule.priority} is not followed: it has {rule.odd}")
            continue
        where = _matches(rule, everything)
        if not where or rule.action == netlink.FR_ACT_NOP:
            continue
        found: list[tuple[int, int, _Choice | None]]
        if rule.action == netlink.FR_ACT_TO_TBL:
            lines = [
                (first, last, value)
                for first, last, prefix, value in tables.get(rule.table, ())
                if prefix > rule.suppress_prefix
            ]
            found = [
                (low, high, value)
                for first, last, value in flatten(lines)
                if not isinstance(value, _Throw)
                for low, high in _common((first, last), where)
            ]
        else:
            found = [(first, last, None) for first, last in where]
        decided = overlay(decided, found)
    return decided


def _priority(rule: Rule) -> int:
    return rule.priority


def _matches(rule: Rule, everything: Range) -> Ranges:
    """The targets for which a rule holds."""
    holds = (
        not rule.has_source
        and rule.mark & rule.mask == 0
        and rule.incoming in ("", "lo")
        and not rule.outgoing
    )
    where: Ranges = ()
    if holds:
        where = (everything,)
        if rule.to is not None:
            first, prefix = rule.to
            where = ((first, first | (everything[1] >> prefix)),)
    return ranges.subtract([everything], where) if rule.invert else where


def _network(route: Route) -> str:
    return f"{ip_address(route.first.to_bytes(WIDTH[route.family], 'big'))}/{route.prefix}"


# ── source addresses ────────────────────────────────────────────────────────────────────────


class _Sources:
    """Chooses source addresses out of those that the machine has in one family."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    def of(self, first: int, last: int, choice: _Choice) -> list[tuple[int, int, bytes]]:
        """The range cut by source address; empty where there is none to be had."""
        if choice.source:
            return [(first, last, choice.source)]
        if not self._addresses:
            return []
        if self._addresses[0].family == 4:
            source = self._of4(choice)
            return [(first, last, source)] if source else []
        return self._of6(first, last, choice)

    def _of4(self, choice: _Choice) -> bytes:
        """As inet_select_addr(): a primary address of the link, in the gateway's network if there
        is one, of no narrower scope than the route; else one of any link."""
        primary = [
            each
            for each in self._addresses
            if not each.flags & netlink.IFA_F_SECONDARY and each.scope <= choice.scope
        ]
        here = [each for each in primary if each.link == choice.link]
        if len(choice.gateway) == 4:
            near = [each for each in here if _shared(each.address, choice.gateway) >= each.prefix]
            here = near or here
        here = here or [each for each in primary if each.scope != netlink.SCOPE_LINK]
        return here[0].address if here else b""

    def _of6(self, first: int, last: int, choice: _Choice) -> list[tuple[int, int, bytes]]:
        """RFC 6724: a scope that fits, not deprecated, of the link itself, then the longest
        matching prefix, which may cut the range."""
        linked = _LINK_LOCAL6[0] <= first and last <= _LINK_LOCAL6[1]
        best: list[Address] = []
        rank_of_best: tuple[bool, ...] = ()
        for each in self._addresses:
            narrow = each.scope == netlink.SCOPE_LINK
            if (
                not _usable6(each)
                or (narrow and each.link != choice.link)
                or (each.scope == netlink.SCOPE_HOST and not choice.local)
            ):
                continue
            rank = (
                narrow != linked,
                each.scope == netlink.SCOPE_HOST,
                bool(each.flags & netlink.IFA_F_DEPRECATED),
                each.link != choice.link,
                bool(each.flags & netlink.IFA_F_TEMPORARY),
            )
            if not best or rank < rank_of_best:
                best, rank_of_best = [], rank
            if rank == rank_of_best:
                best.append(each)
        if len(best) < 2:
            return [(first, last, each.address) for each in best]
        lines = [line for each in best for line in _matching(each)]
        return [
            (low, high, source)
            for a, b, source in flatten(lines)
            for low, high in _common((a, b), ((first, last),))
        ]


def _usable6(address: Address) -> bool:
    tentative = address.flags & netlink.IFA_F_TENTATIVE
    return not address.flags & netlink.IFA_F_DADFAILED and not (
        tentative and not address.flags & netlink.IFA_F_OPTIMISTIC
    )


def _matching(address: Address) -> Iterator[tuple[int, int, bytes]]:
    """The networks around an address, down to its own prefix."""
    number = int.from_bytes(address.address, "big")
    for prefix in range(address.prefix + 1):
        below = 128 - prefix
        first = number >> below << below
        yield first, first | (1 << below) - 1, address.address


def _shared(one: bytes, other: bytes) -> int:
    """How many leading bits two addresses have in common."""
    differ = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return 8 * len(one) - differ.bit_length()
