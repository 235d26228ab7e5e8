"""Addresses that no scan of the Internet should touch, and what makes a scan one of those.

The blocks are those of IANA's registries of special-purpose addresses (RFC 6890 and its
successors) that are not globally reachable, and multicast. They leave a scan only if it is
Internet-sized: who names 10.0.0.0/8 means it, who names 0.0.0.0/0 does not mean 10.0.0.0/8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from nray.targets import ranges
from nray.targets.ranges import Range, Ranges

BLOCKS4 = (
    "0.0.0.0/8",  # this network, RFC 791
    "10.0.0.0/8",  # private use, RFC 1918
    "100.64.0.0/10",  # shared address space, RFC 6598
    "127.0.0.0/8",  # loopback, RFC 1122
    "169.254.0.0/16",  # link local, RFC 3927
    "172.16.0.0/12",  # private use, RFC 1918
    "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
    "192.0.2.0/24",  # documentation, RFC 5737
    "192.88.99.0/24",  # 6to4 relays, withdrawn by RFC 7526
    "192.168.0.0/16",  # private use, RFC 1918
    "198.18.0.0/15",  # benchmarking, RFC 2544
    "198.51.100.0/24",  # documentation, RFC 5737
    "203.0.113.0/24",  # documentation, RFC 5737
    "224.0.0.0/4",  # multicast, RFC 5771
    "240.0.0.0/4",  # reserved, RFC 1112, and limited broadcast, RFC 919
)

BLOCKS6 = (
    "::/127",  # unspecified and loopback, RFC 4291
    "64:ff9b::/96",  # IPv4 through a translator, RFC 6052: excluded IPv4 addresses lie in there
    "64:ff9b:1::/48",  # the same with a prefix of one's own, RFC 8215
    "100::/64",  # discard, RFC 6666
    "100:0:0:1::/64",  # dummy prefix, RFC 9780
    "2001::/23",  # IETF protocol assignments, RFC 2928
    "2001:db8::/32",  # documentation, RFC 3849
    "2002::/16",  # 6to4, RFC 3056
    "3fff::/20",  # documentation, RFC 9637
    "5f00::/16",  # segment routing, RFC 9602
    "fc00::/7",  # unique local, RFC 4193
    "fe80::/10",  # link local, RFC 4291
    "fec0::/10",  # site local, withdrawn by RFC 3879
    "ff00::/8",  # multicast, RFC 4291
)

#: A scan of more IPv4 addresses than a /8 is Internet-sized: no single organisation's network
#: that is not reserved is larger.
WIDE4 = 1 << 24

#: For IPv6 addresses say nothing: one LAN has 2^64. What counts is how many /48 are touched, the
#: smallest network that the global routing table carries, as the /24 is for IPv4. A /8 has
#: 65,536 of those; so has a /32, the least that a registry gives to a provider.
WIDE6_SITES = 1 << 16
_SITE_SHIFT = 128 - 48


@cache
def reserved4() -> Ranges:
    """The reserved IPv4 addresses."""
    return _read(BLOCKS4)[0]


@cache
def reserved6() -> Ranges:
    """The reserved IPv6 addresses; IPv4-mapped ones are IPv4 addresses to us."""
    return _read(BLOCKS6)[1]


def is_wide(ranges4: Sequence[Range], ranges6: Sequence[Range]) -> bool:
    """Whether these targets are Internet-sized.

    Targets that lie within a reserved block do not count: all private networks together are
    more than a /8, and no part of the Internet.
    """
    if ranges.count(ranges4) > WIDE4 and ranges.count(_outside(ranges4, reserved4())) > WIDE4:
        return True
    return _sites(ranges6) > WIDE6_SITES and _sites(_outside(ranges6, reserved6())) > WIDE6_SITES


def _outside(given: Sequence[Range], blocks: Sequence[Range]) -> list[Range]:
    """Those of the given ranges that lie in no single block."""
    kept = []
    at = 0
    for first, last in given:
        while at < len(blocks) and blocks[at][1] < first:
            at += 1
        if at == len(blocks) or not blocks[at][0] <= first <= last <= blocks[at][1]:
            kept.append((first, last))
    return kept


def _sites(ranges6: Sequence[Range]) -> int:
    """How many /48 networks hold at least one of the addresses."""
    return ranges.count(
        ranges.merge([(first >> _SITE_SHIFT, last >> _SITE_SHIFT) for first, last in ranges6])
    )


def _read(blocks: Sequence[str]) -> tuple[Ranges, Ranges]:
    # here, because most scans are not wide and need no table
    from nray.targets.networks import parse_targets

    read = parse_targets(blocks, source="reserved")
    return read.ranges4, read.ranges6
