"""Routes made flat: by an independent lookup, by recorded bytes, and by the kernel's own word."""

from __future__ import annotations

import itertools
import json
import random
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.namespaces import Namespace, require
from lab.nray import environment
from nray import UserError
from nray.node import kernel, netlink
from nray.node.kernel import Snapshot, read_snapshot
from nray.node.netlink import Address, Hop, Link, Route, Rule
from nray.node.routes import Way, flatten, overlay, routes_of

RECORDED = Path(__file__).parent / "data" / "rtnetlink.json"

LO = Link(1, "lo", 772, netlink.IFF_LOOPBACK, bytes(6), 65536)
ETH = Link(2, "eth0", 1, 0x1043, bytes.fromhex("020000000001"), 1500)
ETH2 = Link(3, "eth1", 1, 0x1043, bytes.fromhex("020000000002"), 1280)
TUN = Link(4, "tun0", 65534, 0x10D1, b"", 1420)
LINKS = (LO, ETH, ETH2, TUN)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def number(text: str) -> int:
    return int(ip_address(text))


def address(link: int, text: str, scope: int = 0, flags: int = 0) -> Address:
    host, _, prefix = text.partition("/")
    return Address(link, ip_address(host).version, packed(host), int(prefix), scope, flags)


def route(text: str, *hops: tuple[int, str], **more: object) -> Route:
    network = ip_network(text)
    made = Route(
        family=network.version,
        table=254,
        kind=netlink.RTN_UNICAST,
        scope=0 if hops and hops[0][1] else netlink.SCOPE_LINK,
        first=int(network.network_address),
        prefix=network.prefixlen,
        metric=0,
        preference=1,
        source=b"",
        hops=tuple(Hop(link, packed(gateway) if gateway else b"") for link, gateway in hops),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def rule(priority: int, table: int, **more: object) -> Rule:
    made = Rule(4, priority, netlink.FR_ACT_TO_TBL, table, False, None, False, 0, 0, "", "", -1)
    return replace(made, **more)  # type: ignore[arg-type]


def of(version: int, text: str) -> str:
    """An address or network of IPv4, or the one of IPv6 that stands for it: its last 32 bits are
    the same, and prefixes are as much longer."""
    if version == 4:
        return text
    host, slash, prefix = text.partition("/")
    if host == "0.0.0.0":
        return "::/0"
    mapped = ip_address(number("2001:db8::") + number(host))
    return f"{mapped}{slash}{int(prefix) + 96 if slash else ''}"


RULES = tuple(
    rule(priority, table, family=family)
    for family in (4, 6)
    for priority, table in ((0, 255), (32766, 254))
)


def snapshot(
    routes: Sequence[Route], addresses: Sequence[Address], rules: Sequence[Rule] = RULES
) -> Snapshot:
    return Snapshot(LINKS, tuple(addresses), tuple(routes), tuple(rules))


# ── flat from nested ────────────────────────────────────────────────────────────────────────

PREFIXES = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 8), st.integers(0, 5)), max_size=24
)


@given(PREFIXES)
def test_flat_ranges_say_what_the_longest_prefix_says(made: list[tuple[int, int, int]]) -> None:
    prefixes = []
    for at, length, value in made:
        below = 8 - length
        first = at >> below << below
        prefixes.append((first, first + (1 << below) - 1, value))
    flat = flatten(prefixes)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(flat))
    for each in range(256):
        holding = [(last - first, n) for n, (first, last, _) in enumerate(prefixes)
                   if first <= each <= last]  # fmt: skip
        wanted = prefixes[min(holding)[1]][2] if holding else None
        found = [value for first, last, value in flat if first <= each <= last]
        assert found == ([wanted] if holding else [])


DISJOINT = st.lists(st.integers(0, 80), max_size=12, unique=True).map(
    lambda cuts: [
        (a, b - 1, a % 7) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)
    ]
)


@given(DISJOINT, DISJOINT)
def test_an_overlay_wins_where_it_has_something(
    upper: list[tuple[int, int, int]], lower: list[tuple[int, int, int]]
) -> None:
    both = overlay(upper, lower)
    for each in range(81):
        by = [[v for a, b, v in ranges if a <= each <= b] for ranges in (upper, lower, both)]
        assert by[2] == (by[0] or by[1])


# ── decisions ───────────────────────────────────────────────────────────────────────────────


def test_a_plain_machine() -> None:
    """Of IPv4, with its broadcasts; of IPv6 below."""
    routes = routes_of(
        snapshot(
            [
                route("0.0.0.0/0", (2, "198.18.0.1")),
                route("198.18.0.0/24", (2, ""), source=packed("198.18.0.7")),
                route("198.18.0.7/32", (2, ""), table=255, kind=netlink.RTN_LOCAL,
                      source=packed("198.18.0.7")),
                route("198.18.0.255/32", (2, ""), table=255, kind=netlink.RTN_BROADCAST),
                route("127.0.0.0/8", (1, ""), table=255, kind=netlink.RTN_LOCAL,
                      source=packed("127.0.0.1"), scope=netlink.SCOPE_HOST),
            ],
            [address(1, "127.0.0.1/8", netlink.SCOPE_HOST), address(2, "198.18.0.7/24")],
        )
    )  # fmt: skip
    own = packed("198.18.0.7")
    wanted = {
        "203.0.113.9": Way(2, own, packed("198.18.0.1")),
        "198.18.0.200": Way(2, own, b""),
        "198.18.0.7": Way(1, own, b""),
        "127.0.0.1": Way(1, packed("127.0.0.1"), b""),
        "127.9.9.9": Way(1, packed("127.0.0.1"), b""),
        "198.18.0.255": None,
        "224.0.0.1": None,
        "255.255.255.255": None,
        "0.0.0.0": None,
    }
    assert {text: routes.find(4, number(text)) for text in wanted} == wanted
    assert routes.gateways() == {(2, packed("198.18.0.1"), own)}
    assert routes.notes == ()
    assert routes.find(6, number("2001:db8::1")) is None


def test_a_plain_machine_of_ipv6() -> None:
    own = packed("2001:db8::7")
    routes = routes_of(
        snapshot(
            [
                route("::/0", (2, "fe80::1")),
                route("2001:db8::/64", (2, ""), source=own),
                route("2001:db8::7/128", (1, ""), table=255, kind=netlink.RTN_LOCAL),
                route("ff00::/8", (2, ""), table=255, kind=netlink.RTN_MULTICAST),
                route("::1/128", (1, ""), table=255, kind=netlink.RTN_LOCAL),
            ],
            [address(1, "::1/128", netlink.SCOPE_HOST), address(2, "2001:db8::7/64")],
        )
    )
    wanted = {
        "2001:db8:1::9": Way(2, own, packed("fe80::1")),
        "2001:db8::200": Way(2, own, b""),
        "2001:db8::7": Way(1, own, b""),
        "::1": Way(1, packed("::1"), b""),
        "ff02::1": None,
        "::": None,
    }
    assert {text: routes.find(6, number(text)) for text in wanted} == wanted
    assert routes.gateways() == {(2, packed("fe80::1"), own)}
    assert routes.notes == ()
    assert routes.find(4, number("198.18.0.1")) is None


def test_rows_leave_out_a_gateway_that_is_not_there(version: int) -> None:
    routes = routes_of(
        snapshot(
            [
                route(of(version, "198.18.0.0/24"), (3, of(version, "198.19.0.1"))),
                route(of(version, "198.18.1.0/24"), (4, of(version, "198.19.0.1"))),
                route(of(version, "198.18.2.0/24"), (2, of(version, "198.19.0.2"))),
                route(of(version, "198.18.3.0/24"), (2, "")),
            ],
            [
                address(2, of(version, "198.19.0.7/16")),
                address(3, of(version, "198.19.1.7/16")),
                address(4, of(version, "198.19.2.7/32")),
            ],
        )
    )
    mac = bytes.fromhex("0200000000aa")
    links, rows = routes.rows({(3, packed(of(version, "198.19.0.1"))): mac})
    assert links == [
        (3, "eth1", True, ETH2.mac, 1280),
        (4, "tun0", False, b"", 1420),
        (2, "eth0", True, ETH.mac, 1500),
    ]
    at = [number(of(version, f"198.18.{n}.0")) for n in range(4)]
    assert rows == [
        (version, at[0], at[0] + 255, 0, packed(of(version, "198.19.1.7")), mac),
        (version, at[1], at[1] + 255, 1, packed(of(version, "198.19.2.7")), b""),
        (version, at[3], at[3] + 255, 2, packed(of(version, "198.19.0.7")), b""),
    ]


def test_only_what_is_scanned_needs_gateways(version: int) -> None:
    routes = routes_of(
        snapshot(
            [
                route(of(version, "198.18.0.0/16"), (2, of(version, "198.19.0.1"))),
                route(of(version, "0.0.0.0/0"), (2, of(version, "198.19.0.2"))),
            ],
            [address(2, of(version, "198.19.0.7/16"))],
        )
    )
    first = number(of(version, "198.18.9.0"))
    scanned = ((first, first + 9), (first + 20, first + 29))
    narrow = routes.narrowed(*((scanned, ()) if version == 4 else ((), scanned)))
    assert [gateway for _, gateway, _ in narrow.gateways()] == [packed(of(version, "198.19.0.1"))]
    assert [(span.first, span.last) for span in narrow.spans[version]] == [
        (first, first + 9),
        (first + 20, first + 29),
    ]
    assert narrow.missing(version, ((first + 5, first + 22),)) == ((first + 10, first + 19),)
    near = [packed(of(version, each)) for each in ("198.18.0.1", "198.18.0.2")]
    # Of the other family there is no way, and none to the unspecified address.
    near += [packed({4: "2001:db8::1", 6: "198.18.0.1"}[version])]
    near += [packed({4: "0.0.0.0", 6: "::"}[version])]
    found = {(2, packed(of(version, "198.19.0.1")), packed(of(version, "198.19.0.7")))}
    assert routes.gateways_to(near) == found
    assert len(routes.gateways_to([*near, packed(of(version, "198.20.0.1"))])) == 2
    assert routes.gateways_to([]) == set()


@pytest.mark.parametrize(
    "kind", [netlink.RTN_BLACKHOLE, netlink.RTN_UNREACHABLE, netlink.RTN_PROHIBIT]
)
def test_what_the_kernel_would_refuse_has_no_way(kind: int, version: int) -> None:
    routes = routes_of(
        snapshot(
            [
                route(of(version, "198.18.0.0/15"), (2, "")),
                route(of(version, "198.18.4.0/24"), kind=kind),
                route(of(version, "198.18.4.128/25"), (2, "")),
            ],
            [address(2, of(version, "198.19.0.7/16"))],
        )
    )
    found = [
        routes.find(version, number(of(version, f"198.18.{rest}"))) is None
        for rest in ("3.1", "4.1", "4.129")
    ]
    assert found == [False, True, False]


def test_the_lowest_metric_wins_and_of_equals_the_first(version: int) -> None:
    gateways = [of(version, "198.19.0.1"), of(version, "198.19.0.2"), of(version, "198.19.0.3")]
    routes = routes_of(
        snapshot(
            [
                route(of(version, "198.18.0.0/16"), (2, gateways[0]), metric=200),
                route(of(version, "198.18.0.0/16"), (2, gateways[1]), metric=100),
                route(of(version, "198.18.0.0/16"), (2, gateways[2]), metric=100),
                route(of(version, "198.18.128.0/17"), (9, gateways[0])),  # a link that is not there
            ],
            [address(2, of(version, "198.19.0.7/16"))],
        )
    )
    for text in (of(version, "198.18.0.1"), of(version, "198.18.200.1")):
        way = routes.find(version, number(text))
        assert way is not None
        assert way.gateway == packed(gateways[1])


def test_rules_are_followed_in_order(version: int) -> None:
    bits = 24 if version == 4 else 120
    rules = [
        rule(0, 255),
        rule(10, 10, to=(number(of(version, "198.18.1.0")), bits)),
        rule(20, 20, mark=0xCAFE, mask=0xFFFFFFFF),
        rule(30, 30, mark=0xCAFE, mask=0xFFFFFFFF, invert=True),
        rule(40, 20, has_source=True),
        rule(50, 20, incoming="eth0"),
        rule(60, 20, outgoing="eth0"),
        rule(70, 0, action=netlink.FR_ACT_PROHIBIT, to=(number(of(version, "198.18.3.0")), bits)),
        rule(80, 254, suppress_prefix=0),
        rule(90, 20, odd="protocol"),
        rule(100, 20, odd="l3mdev"),
        rule(110, 40),
    ]
    rules = [replace(each, family=version) for each in rules]
    table = {n: of(version, f"198.19.0.{n}") for n in (10, 20, 30, 40, 254 - 200)}
    routes = routes_of(
        snapshot(
            [
                route(of(version, "0.0.0.0/0"), (2, table[10]), table=10),
                route(of(version, "0.0.0.0/0"), (2, table[20]), table=20),
                route(of(version, "198.18.2.0/24"), (2, table[30]), table=30),
                route(of(version, "198.18.5.0/24"), kind=netlink.RTN_THROW, table=30),
                route(of(version, "198.18.4.0/24"), (2, table[54])),
                route(of(version, "198.18.5.0/24"), (2, table[54])),
                route(of(version, "0.0.0.0/0"), (2, table[20])),
                route(of(version, "0.0.0.0/0"), (2, table[40]), table=40),
            ],
            [address(2, of(version, "198.19.0.7/16"))],
            rules,
        )
    )
    wanted = {"1.1": 10, "2.1": 30, "3.1": None, "4.1": 54, "5.1": 54, "6.1": 40}
    found = {rest: routes.find(version, number(of(version, f"198.18.{rest}"))) for rest in wanted}
    assert {rest: way and way.gateway[-1] for rest, way in found.items()} == wanted
    assert routes.notes == ("policy rule 90 is not followed: it has protocol",)


def test_odd_routes_are_left_out_and_named(version: int) -> None:
    routes = routes_of(
        snapshot(
            [
                route(of(version, "198.18.0.0/16"), (2, "")),
                route(of(version, "198.18.9.0/24"), (2, ""), odd="with encapsulation"),
            ],
            [address(2, of(version, "198.19.0.7/16"))],
        )
    )
    odd = of(version, "198.18.9.0/24")
    assert routes.notes == (f"a route with encapsulation is not followed: {odd}",)
    assert routes.find(version, number(of(version, "198.18.9.1"))) is not None  # by the wider route


def test_sources_of_ipv4() -> None:
    addresses = [
        address(1, "127.0.0.1/8", netlink.SCOPE_HOST),
        address(2, "169.254.1.1/16", netlink.SCOPE_LINK),
        address(2, "198.19.0.7/24"),
        address(2, "198.19.0.8/24", flags=netlink.IFA_F_SECONDARY),
        address(2, "198.19.1.7/24"),
    ]
    routes = routes_of(
        snapshot(
            [
                route("198.18.0.0/24", (2, "198.19.1.1")),
                route("198.18.1.0/24", (2, "198.19.9.1")),
                route("198.18.2.0/24", (2, "")),
                route("198.18.3.0/24", (3, "")),  # no address of its own
                route("198.18.4.0/24", (2, "198.19.0.1"), source=packed("198.19.0.8")),
                route("198.18.5.0/24", (1, ""), table=255, kind=netlink.RTN_LOCAL),
            ],
            addresses,
        )
    )
    wanted = ["198.19.1.7", "198.19.0.7", "169.254.1.1", "198.19.0.7", "198.19.0.8", "127.0.0.1"]
    for n, source in enumerate(wanted):
        way = routes.find(4, number(f"198.18.{n}.1"))
        assert way is not None
        assert str(ip_address(way.source)) == source, n
    assert routes_of(snapshot([route("198.18.0.0/24", (2, ""))], [])).spans[4] == []


def test_sources_of_ipv6() -> None:
    addresses = [
        address(1, "::1/128", netlink.SCOPE_HOST),
        address(2, "fe80::1/64", netlink.SCOPE_LINK),
        address(2, "2001:db8:1::1/64", flags=netlink.IFA_F_DEPRECATED),
        address(2, "2001:db8:2::1/64"),
        address(2, "2001:db8:2::9/64", flags=netlink.IFA_F_TENTATIVE),
        address(2, "2001:db8:2::8/64", flags=netlink.IFA_F_TEMPORARY),
        address(2, "fd00:1::1/64"),
        address(3, "2001:db8:3::1/64"),
        address(4, "fe80::4/64", netlink.SCOPE_LINK),
    ]
    routes = routes_of(
        snapshot(
            [
                route("::/0", (2, "fe80::ff")),
                route("2001:db8:3::/48", (3, "")),
                route("2001:db8:4::/48", (4, "")),
                route("fe80::/64", (2, "")),
                route("fe80:0:0:4::/64", (4, "")),
                route("::1/128", (1, ""), table=255, kind=netlink.RTN_LOCAL),
                route("2001:db8:5::/64", (1, ""), table=255, kind=netlink.RTN_LOCAL),
            ],
            addresses,
        )
    )
    wanted = {
        "2001:db8:2::77": (2, "2001:db8:2::1"),
        "2001:db8:1::77": (2, "2001:db8:2::1"),
        "fd99::1": (2, "fd00:1::1"),
        "2001:db8:3::5": (3, "2001:db8:3::1"),
        "2001:db8:4:1::1": (4, "2001:db8:2::1"),  # it has none but a local one
        "fe80::99": (2, "fe80::1"),
        "fe80:0:0:4::1": (4, "fe80::4"),
        "::1": (1, "::1"),
        "2001:db8:5::5": (1, "2001:db8:2::1"),
        "ff02::1": None,
        "::": None,
        "::ffff:1.2.3.4": None,
    }
    for text, meant in wanted.items():
        way = routes.find(6, number(text))
        assert (way and (way.link, str(ip_address(way.source)))) == meant, text


# ── bytes ───────────────────────────────────────────────────────────────────────────────────


def test_recorded_bytes_read_as_iproute2_showed_them() -> None:
    """Recorded by tests/record_rtnetlink.py in a namespace, with what ``ip`` said of it then."""
    recorded = json.loads(RECORDED.read_text())
    entries: list[netlink.Entry] = []
    for dump in recorded["dumps"]:
        for datagram in dump["datagrams"]:
            found, done = netlink.read(bytes.fromhex(datagram), dump["sequence"])
            entries += found
        assert done
    links = {each.index: each for each in entries if isinstance(each, Link)}
    routes = [each for each in entries if isinstance(each, Route)]
    assert {each.name: each.mac.hex(":") for each in links.values() if each.kind == 1} == {
        each["ifname"]: each["address"] for each in recorded["links"]
    }
    for shown in recorded["routes"]:
        family = 6 if ":" in shown["dst"] else shown.get("family", 4)
        wide = "::/0" if family == 6 else "0.0.0.0/0"
        network = ip_network(wide if shown["dst"] == "default" else shown["dst"])
        [one] = [
            each
            for each in routes
            if (each.family, each.first, each.prefix, each.metric, each.table)
            == (
                network.version,
                int(network.network_address),
                network.prefixlen,
                shown.get("metric", 0),
                shown["table"],
            )
        ]
        hops = shown.get("nexthops", [shown] if "dev" in shown else [])
        assert [
            (links[hop.link].name, str(ip_address(hop.gateway)) if hop.gateway else "")
            for hop in one.hops
        ] == [
            (hop["dev"], hop.get("gateway", hop.get("via", {}).get("host", ""))) for hop in hops
        ], shown
        assert (str(ip_address(one.source)) if one.source else None) == shown.get("prefsrc")
    rules = [each for each in entries if isinstance(each, Rule) and each.family == 4]
    assert [each.priority for each in rules] == [0, 100, 200, 300, 32766, 32767]
    assert rules[1].to == (number("198.18.64.0"), 18)
    assert (rules[2].invert, rules[2].mark) == (True, 0xCAFE)
    assert rules[3].suppress_prefix == 0
    neighbours = [each for each in entries if isinstance(each, netlink.Neighbour)]
    assert [
        (links[each.link].name, each.mac.hex(":"))
        for each in neighbours
        if each.address == packed("198.19.0.1")
    ] == [("a0", "02:00:00:00:00:99")]


def messages() -> list[tuple[int, bytes]]:
    recorded = json.loads(RECORDED.read_text())
    return [
        (dump["sequence"], bytes.fromhex(datagram))
        for dump in recorded["dumps"]
        for datagram in dump["datagrams"]
    ]


@given(st.data())
def test_broken_bytes_are_refused_or_read_and_never_crash(data: st.DataObject) -> None:
    sequence, whole = data.draw(st.sampled_from(messages()))
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        netlink.read(bytes(broken), sequence)
    except (ValueError, netlink.NetlinkError, netlink.Interrupted):
        pass


def test_refusals_and_interrupted_dumps_are_told() -> None:
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -1)
    with pytest.raises(netlink.NetlinkError) as caught:
        netlink.read(refusal, 7)
    assert caught.value.errno == 1
    assert netlink.read(refusal, 8) == ([], False)
    with pytest.raises(netlink.Interrupted):
        netlink.read(struct.pack("=IHHII", 16, 3, 0x10, 7, 0), 7)
    with pytest.raises(ValueError, match="cut short"):
        netlink.read(struct.pack("=IHHII", 17, 24, 0, 7, 0), 7)
    body = struct.pack("=BBBBBBBBI", 2, 40, 0, 0, 254, 0, 0, 1, 0)
    with pytest.raises(ValueError, match="40 bits"):
        netlink.read(struct.pack("=IHHII", 16 + len(body), 24, 0, 7, 0) + body, 7)


def test_a_dump_that_is_always_interrupted_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise netlink.Interrupted

    monkeypatch.setattr(kernel, "_dump_once", interrupted)
    with pytest.raises(UserError, match="change faster"):
        read_snapshot()


@pytest.mark.parametrize("text", ["127.0.0.1", "::1"])
def test_this_machine_reaches_itself(text: str) -> None:
    routes = routes_of(read_snapshot())
    way = routes.find(ip_address(text).version, number(text))
    assert way is not None
    assert routes.links[way.link].name == "lo"
    assert way.source == packed(text)


# ── the kernel's own word ───────────────────────────────────────────────────────────────────

#: Prints the way to each address of standard input, as JSON.
ASK = """
import json, sys
from ipaddress import ip_address
from nray.node.kernel import read_snapshot
from nray.node.routes import routes_of
routes = routes_of(read_snapshot())
for text in sys.stdin.read().split():
    each = ip_address(text)
    way = routes.find(each.version, int(each))
    print(json.dumps(way and [routes.links[way.link].name, str(ip_address(way.source)),
                              str(ip_address(way.gateway)) if way.gateway else ""]))
"""


def furnish(namespace: Namespace, seed: int) -> None:
    """Interfaces, routes and rules of many kinds; no packet ever leaves."""
    chance = random.Random(seed)
    ip = namespace.ip
    for name, mac in (
        ("a0", "02:00:00:00:00:01"),
        ("b0", "02:00:00:00:00:02"),
        ("c0", "02:00:00:00:00:03"),
    ):
        ip("link", "add", name, "address", mac, "type", "veth", "peer", "name", f"{name}-far")
        ip("link", "set", name, "up")
        ip("link", "set", f"{name}-far", "up")
    ip("tuntap", "add", "t0", "mode", "tun")
    ip("link", "set", "t0", "up")
    for link, text in (
        ("a0", "198.19.0.7/24"), ("a0", "198.19.0.8/24"), ("a0", "198.19.1.7/25"),
        ("b0", "198.19.2.7/23"), ("t0", "198.19.4.1/32"), ("c0", "198.19.6.7/24"),
    ):  # fmt: skip
        ip("address", "add", text, "dev", link)
    for link, text in (
        ("a0", "2001:db8:a::7/64"), ("a0", "2001:db8:a:1::7/64"), ("b0", "2001:db8:b::7/48"),
    ):  # fmt: skip
        ip("-6", "address", "add", text, "dev", link, "nodad")
    words = {
        4: [
            ["via", "198.19.0.1"], ["via", "198.19.1.1"], ["via", "198.19.2.1"], ["dev", "b0"],
            ["dev", "a0", "src", "198.19.2.7"], ["dev", "t0"], ["dev", "a0"],
        ],
        6: [
            ["via", "2001:db8:a::1"], ["via", "2001:db8:b::1"], ["dev", "b0"], ["dev", "a0"],
            ["via", "fe80::1", "dev", "b0"], ["dev", "a0", "src", "2001:db8:b::7"],
        ],
    }  # fmt: skip
    wide = {4: ip_network("198.18.0.0/16"), 6: ip_network("2001:db8:c000::/34")}
    lines: dict[int, list[str]] = {4: [], 6: []}
    for version, network in wide.items():
        taken = set()
        for _ in range(120):
            length = chance.randint(network.prefixlen + 1, network.prefixlen + 14)
            first = int(network.network_address) | chance.getrandbits(
                network.max_prefixlen - network.prefixlen
            )
            prefix = ip_network((first, length), strict=False)
            how = chance.choice(words[version])
            if chance.random() < 0.2:
                how = []
                kind = chance.choice(["blackhole", "unreachable", "prohibit", "throw"])
            else:
                kind = "unicast"
            table = chance.choice(["main", "main", "main", "77"])
            metric = chance.choice([5, 6, 7])
            if (prefix, table, metric) in taken or (prefix, table, 0) in taken:
                continue
            taken.add((prefix, table, metric))
            told = " ".join([kind, str(prefix), *how, "table", table, "metric", str(metric)])
            lines[version].append(f"route add {told}")
    lines[4] += [
        "route add default via 198.19.0.1 table 88",
        # Of several hops that live the kernel takes one by a secret hash: here is one alone.
        "route add 198.18.77.0/24 nexthop via 198.19.6.1 nexthop via 198.19.2.1",
        "route add local 198.19.64.0/20 dev lo",
    ]
    lines[6] += [
        "route add default via fe80::1 dev b0 table 88",
        "route add local 2001:db8:4::/64 dev lo",
    ]
    for version, whole in wide.items():
        lines[version] += [
            f"rule add priority 100 to {next(whole.subnets(2))} lookup 77",
            "rule add priority 200 lookup main suppress_prefixlength 0",
            "rule add priority 300 not fwmark 0xcafe lookup 88",
        ]
        namespace.call(["ip", f"-{version}", "-batch", "-"], "\n".join(lines[version]))
    ip("link", "set", "c0", "down")  # its hop is dead from now on


@pytest.mark.lab
@pytest.mark.parametrize("seed", [1, 2])
def test_ways_are_those_of_the_kernel(seed: int) -> None:
    require()
    chance = random.Random(seed)
    with Namespace("routes") as namespace:
        furnish(namespace, seed)
        asked = [
            str(ip_address(number(base) | chance.getrandbits(bits)))
            for base, bits, times in (
                ("198.18.0.0", 16, 400), ("198.19.0.0", 13, 200), ("203.0.113.0", 8, 3),
                ("2001:db8:c000::", 94, 400), ("2001:db8:a::", 81, 60), ("2001:db8:4::", 65, 20),
            )
            for _ in range(times)
        ]  # fmt: skip
        asked += [f"198.18.77.{n}" for n in range(1, 9)]
        asked += ["127.0.0.1", "127.1.2.3", "::1", "198.19.0.7", "198.19.0.255", "2001:db8:a::7"]
        ours = namespace.call(
            ["env", f"PYTHONPATH={environment().get('PYTHONPATH', '')}", sys.executable, "-c", ASK],
            "\n".join(asked),
        )
        told = {
            version: kernel_says(
                namespace, version, [t for t in asked if (":" in t) == (version == 6)]
            )
            for version in (4, 6)
        }
    found = {text: json.loads(line) for text, line in zip(asked, ours.splitlines(), strict=True)}
    assert sum(way is None for way in found.values()) > 30
    assert {text: (way, found[text]) for text, way in (told[4] | told[6]).items()
            if way != found[text]} == {}  # fmt: skip


def kernel_says(
    namespace: Namespace, version: int, asked: list[str]
) -> dict[str, list[str] | None]:
    """What ``ip route get`` says: [link, source, gateway], None for no way."""
    done = subprocess.run(
        namespace.inside(["ip", f"-{version}", "-oneline", "-force", "-batch", "-"]),
        input="".join(f"route get {text}\n" for text in asked),
        capture_output=True,
        text=True,
    )
    failed = {int(line.rpartition(":")[2]) for line in re.findall(r"failed -:\d+", done.stderr)}
    lines = iter(done.stdout.splitlines())
    found: dict[str, list[str] | None] = {}
    for line_number, text in enumerate(asked, 1):
        if line_number in failed:
            found[text] = None
            continue
        words = next(lines).replace("\\", " ").split()
        told = dict(itertools.pairwise(words))
        if words[0] in ("broadcast", "multicast", "unreachable", "prohibit", "blackhole"):
            found[text] = None
        else:
            gateway = told["via"] if "via" in told and told["dev"] != "t0" else ""
            found[text] = [told["dev"], told["src"], gateway.removeprefix("inet6 ")]
    assert list(lines) == []
    return found
