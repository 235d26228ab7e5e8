"""Targets as users write them: every form, and what is none."""

from __future__ import annotations

import ipaddress
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nray import UserError
from nray.targets.networks import MAPPED, OCTET_RANGES_MAX, Targets, is_name, parse_targets
from nray.targets.ranges import count


def ip(text: str) -> int:
    return int(ipaddress.ip_address(text))


def both(first: str, last: str) -> tuple[int, int]:
    return ip(first), ip(last)


def addresses(targets: Targets) -> set[int]:
    return {n for first, last in targets.ranges4 for n in range(first, last + 1)}


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255", "255.255.255.255"),
        ("10.0.0.0/24", "10.0.0.0", "10.0.0.255"),
        ("192.168.178.1/28", "192.168.178.0", "192.168.178.15"),
        ("10.0.0.77/32", "10.0.0.77", "10.0.0.77"),
        ("1.2.3.4/0", "0.0.0.0", "255.255.255.255"),
        ("10.0.0.5-10.0.0.90", "10.0.0.5", "10.0.0.90"),
        ("10.0.0.5-10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("9.255.255.250-10.0.1.2", "9.255.255.250", "10.0.1.2"),
        ("10.0.0.5-90", "10.0.0.5", "10.0.0.90"),
        ("10.0.0.*", "10.0.0.0", "10.0.0.255"),
        ("10.0.0.-", "10.0.0.0", "10.0.0.255"),
        ("10.0.0.250-", "10.0.0.250", "10.0.0.255"),
        ("10.0.0.-7", "10.0.0.0", "10.0.0.7"),
        ("10.0-3.*.*", "10.0.0.0", "10.3.255.255"),
        ("10.*.*.*", "10.0.0.0", "10.255.255.255"),
        ("*.*.*.*", "0.0.0.0", "255.255.255.255"),
        ("0-255.-.*.0-255", "0.0.0.0", "255.255.255.255"),
    ],
)
def test_ipv4_forms(text: str, first: str, last: str) -> None:
    assert parse_targets([text]) == Targets(ranges4=(both(first, last),))


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("::1", "::1", "::1"),
        ("[::1]", "::1", "::1"),
        ("2001:DB8::00ff", "2001:db8::ff", "2001:db8::ff"),
        ("2001:db8::/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
        ("[2001:db8::]/126", "2001:db8::", "2001:db8::3"),
        ("2001:db8::77/127", "2001:db8::76", "2001:db8::77"),
        ("::2/128", "::2", "::2"),
        ("2001:db8::1-2001:db8::ff", "2001:db8::1", "2001:db8::ff"),
        ("[2001:db8::1]-[2001:db8::ff]", "2001:db8::1", "2001:db8::ff"),
        ("2001:db8::10.0.0.1", "2001:db8::a00:1", "2001:db8::a00:1"),
    ],
)
def test_ipv6_forms(text: str, first: str, last: str) -> None:
    assert parse_targets([text]) == Targets(ranges6=(both(first, last),))


def test_octet_ranges_are_their_product() -> None:
    targets = parse_targets(["10.0.0-3.1-20"])
    assert addresses(targets) == {
        ip(f"10.0.{third}.{fourth}") for third, fourth in product(range(4), range(1, 21))
    }
    assert len(targets.ranges4) == 4
    assert len(parse_targets(["10-11.5.0-255.7-9"]).ranges4) == 512


octets = st.one_of(
    st.integers(0, 255).map(lambda n: (str(n), range(n, n + 1))),
    st.tuples(st.integers(0, 255), st.integers(0, 2)).map(
        lambda t: (f"{t[0]}-{min(t[0] + t[1], 255)}", range(t[0], min(t[0] + t[1], 255) + 1))
    ),
)


@given(st.tuples(octets, octets, octets, octets))
def test_any_octet_range_is_its_product(parts: tuple[tuple[str, range], ...]) -> None:
    targets = parse_targets([".".join(text for text, _ in parts)])
    wanted = {int.from_bytes(bytes(four), "big") for four in product(*(r for _, r in parts))}
    assert addresses(targets) == wanted
    assert targets.hosts == len(wanted)


def test_octet_ranges_are_bounded() -> None:
    assert len(parse_targets(["10.0-255.0-255.1-20"]).ranges4) == OCTET_RANGES_MAX
    with pytest.raises(UserError, match="16777216 ranges"):
        parse_targets(["0-255.0-255.0-255.1"])


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_ipv4_networks_as_ipaddress_has_them(number: int, prefix: int) -> None:
    text = f"{ipaddress.IPv4Address(number)}/{prefix}"
    network = ipaddress.ip_network(text, strict=False)
    ends = (int(network.network_address), int(network.broadcast_address))
    assert parse_targets([text]).ranges4 == (ends,)


@given(st.integers(2**64, 2**128 - 1), st.integers(0, 128))
def test_ipv6_networks_as_ipaddress_has_them(number: int, prefix: int) -> None:
    text = f"{ipaddress.IPv6Address(number)}/{prefix}"
    network = ipaddress.ip_network(text, strict=False)
    targets = parse_targets([text])
    assert targets.hosts == network.num_addresses
    if int(network.network_address) > MAPPED[1]:
        ends = (int(network.network_address), int(network.broadcast_address))
        assert targets.ranges6 == (ends,)


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    assert parse_targets("::ffff:10.0.0.1,10.0.0.1").ranges4 == (both("10.0.0.1", "10.0.0.1"),)
    network = parse_targets("::ffff:10.0.0.0/120")
    assert network == Targets(ranges4=(both("10.0.0.0", "10.0.0.255"),))
    around = parse_targets("::/79")
    assert around.ranges4 == (both("0.0.0.0", "255.255.255.255"),)
    assert around.ranges6 == ((0, MAPPED[0] - 1), (MAPPED[1] + 1, 2**49 - 1))
    assert around.hosts == 2**49
    edge = parse_targets("::fffe:ffff:ffff-::ffff:0:1")
    assert edge == Targets(ranges4=((0, 1),), ranges6=((MAPPED[0] - 1, MAPPED[0] - 1),))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("localhost", "localhost"),
        ("Scan.Example.COM", "Scan.Example.COM"),
        ("example.com.", "example.com"),
        ("_ldap._tcp.example.com", "_ldap._tcp.example.com"),
        ("a-b.example", "a-b.example"),
        ("3com.example", "3com.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("10.0.0.1.nip.io", "10.0.0.1.nip.io"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 49] * 5) + ".bcd", ".".join(["a" * 49] * 5) + ".bcd"),
    ],
)
def test_names(text: str, name: str) -> None:
    assert parse_targets([text]) == Targets(names=(name,))


def test_a_name_counts_once_whatever_its_case() -> None:
    targets = parse_targets("A.example,b.example,a.EXAMPLE,a.example.")
    assert targets.names == ("A.example", "b.example")


WRONG = [
    "http://example.com/",
    "https://example.com:8443/a?b",
    "example.com/24",
    "example.com/path",
    "example.com:80",
    "10.0.0.1:80",
    "[::1]:80",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/",
    "10.0.0.0/a",
    "10.0.0.0/8/8",
    "10.0.0.0/255.0.0.0",
    "10.0.0/8",
    "10.0.0-3.1/24",
    "::/129",
    "/24",
    "10.0.0.256",
    "10.0.0",
    "10",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "010.0.0.1",
    "10.0.0.01",
    "10.0.0.1.2",
    "10.0.0.1.",
    "10..0.1",
    "10.0.0.1234",
    "10.0.0.9-3",
    "10.0.0.1-300",
    "10.0.0.1-2-3",
    "10.0.0.90-10.0.0.5",
    "10.0.0.1-::1",
    "::1-10.0.0.1",
    "::9-::1",
    "::1-",
    "-::1",
    "fe80::1%eth0",
    "fe80::1%1/64",
    "fe80::%eth0-fe80::9%eth0",
    "::1::2",
    "12345::",
    "[::1",
    "::1]",
    "[10.0.0.1]",
    "[localhost]",
    "a..b",
    ".",
    "..",
    ".example",
    "-a.example",
    "a-.example",
    "a" * 64 + ".example",
    ".".join(["a" * 49] * 5) + ".bcde",
    "a\x00b",
    "a!b",
    "１0.0.0.1",
    "example.1",
    "bü" * 40 + ".example",
    "\udcff.example",
    "10.0.0.1\x00",
    "x" * 5000,
    "ü" * 5000,
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_target_is_an_error_or_a_warning(text: str) -> None:
    with pytest.raises(UserError, match=r"^targets: ") as caught:
        parse_targets([text])
    assert len(str(caught.value)) < 400
    lenient = parse_targets(["10.0.0.9", text, "a.example"], strict=False)
    assert lenient.ranges4 == (both("10.0.0.9", "10.0.0.9"),)
    assert lenient.names == ("a.example",)
    assert len(lenient.warnings) == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("http://example.com/x", "perhaps example.com"),
        ("http://me@10.0.0.1:80/x", "perhaps 10.0.0.1"),
        ("example.com:443", "perhaps example.com"),
        ("fe80::1%eth0", "leave out %"),
        ("10.0.0.0/33", "/0 to /32"),
        ("::/129", "/0 to /128"),
        ("10.0.0.9-10.0.0.1", "lower address"),
    ],
)
def test_errors_say_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_targets([text])
    assert hint in caught.value.hint


@pytest.mark.parametrize("value", [1.2, None, True, 5, b"10.0.0.1", ["10.0.0.1"]])
def test_a_value_must_be_text(value: object) -> None:
    with pytest.raises(UserError, match="no text"):
        parse_targets([value])


def test_overlap_counts_once() -> None:
    targets = parse_targets("10.0.0.0/24,10.0.0.128/25,10.0.0.200-10.0.1.3,10.0.1.3 10.0.1.4")
    assert targets.ranges4 == (both("10.0.0.0", "10.0.1.4"),)
    assert targets.hosts == 256 + 5


@given(
    st.one_of(
        st.text(max_size=40),
        st.text("0123456789abcdef.:-/*[]%,_ ", max_size=40),
        st.from_regex(r"[0-9.*-]{1,16}(/[0-9]{1,3})?", fullmatch=True),
        st.from_regex(r"\[?[0-9a-f:.]{1,24}\]?([-/%][0-9a-f:]{1,9})?", fullmatch=True),
    )
)
@example("0-255.0-255.0-255.0-254")
@example("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
def test_any_text_is_targets_or_a_user_error(text: str) -> None:
    try:
        targets = parse_targets([text])
    except UserError:
        return
    for ranges, top in ((targets.ranges4, 2**32 - 1), (targets.ranges6, 2**128 - 1)):
        before = -2
        for first, last in ranges:
            assert before + 1 < first <= last <= top
            before = last
    assert all(is_name(name) for name in targets.names)
    assert targets.hosts == count(targets.ranges4) + count(targets.ranges6) + len(targets.names)
