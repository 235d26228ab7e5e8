"""Port expressions: the first nray's forms and nmap's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import UserError
from nray.targets.ports import TCP, UDP, parse_ports
from nray.targets.toplists import TOP_MAX, top_tcp, top_udp


def tcp(*ports: int) -> list[tuple[int, int]]:
    return [(TCP, port) for port in ports]


def udp(*ports: int) -> list[tuple[int, int]]:
    return [(UDP, port) for port in ports]


ALL = tcp(*range(1, 65536))


@pytest.mark.parametrize(
    ("expression", "services"),
    [
        ("22", tcp(22)),
        (22, tcp(22)),
        (" 22 ", tcp(22)),
        ("022", tcp(22)),
        ("1", tcp(1)),
        ("65535", tcp(65535)),
        ("8000-8003", tcp(8000, 8001, 8002, 8003)),
        ("8003-8000", tcp(8000, 8001, 8002, 8003)),
        ("5-5", tcp(5)),
        ("1 - 3", tcp(1, 2, 3)),
        ("-3", tcp(1, 2, 3)),
        ("65534-", tcp(65534, 65535)),
        ("-", ALL),
        ("all", ALL),
        ("ALL", ALL),
        ("1-65535", ALL),
        ("top3", tcp(80, 23, 443)),
        ("Top3", tcp(80, 23, 443)),
        ("top-3", tcp(80, 23, 443)),
        ("22,80,443", tcp(22, 80, 443)),
        ("22, 80,", tcp(22, 80)),
        ("80,22,80,20-23", tcp(80, 22, 20, 21, 23)),
        ("U:53,T:80", [*udp(53), *tcp(80)]),
        ("u:53,111,t:21-22,80", [*udp(53, 111), *tcp(21, 22, 80)]),
        ("443,U:top2", [*tcp(443), *udp(631, 161)]),
        ("U:1-2,T:1-2", [*udp(1, 2), *tcp(1, 2)]),
        ("U: 53", udp(53)),
        (["22", 80, "top1"], tcp(22, 80)),
        (["U:53", "53"], [*udp(53), *tcp(53)]),
        ([], []),
    ],
)
def test_what_expressions_mean(
    expression: str | int | list[str | int], services: list[tuple[int, int]]
) -> None:
    ports = parse_ports(expression)
    assert list(ports.services) == services
    assert ports.warnings == ()


def test_the_default_protocol_is_the_callers() -> None:
    assert list(parse_ports("53,T:80", UDP).services) == [*udp(53), *tcp(80)]
    assert list(parse_ports("top2", UDP).services) == udp(631, 161)
    assert len(parse_ports("U:-", TCP).services) == 65535


WRONG = [
    "",
    "  ",
    ",",
    "http",
    "0",
    0,
    -1,
    "65536",
    65536,
    "0-10",
    "70000-80000",
    "1-2-3",
    "5 5",
    "1.5",
    "0x16",
    "top",
    "top0",
    "top-",
    "top25x",
    "X:80",
    "S:80",
    ":80",
    "T:",
    "T:U:80",
    "22;80",
    "٢٢",
    "²",
    "9" * 30,
    "1" * 9 + "-" + "2" * 10,
    True,
    None,
    1.5,
    b"22",
]


@pytest.mark.parametrize("expression", WRONG)
def test_what_is_no_port_is_an_error_or_a_warning(expression: object) -> None:
    with pytest.raises(UserError, match=r"^tcpports: ") as caught:
        parse_ports([expression], source="tcpports")  # type: ignore[list-item]
    assert caught.value.hint or "empty" in caught.value.message
    lenient = parse_ports([80, expression, 443], strict=False, source="tcpports")  # type: ignore[list-item]
    assert list(lenient.services) == tcp(80, 443)
    assert len(lenient.warnings) == 1
    assert lenient.warnings[0].startswith("tcpports: ")


def test_one_wrong_piece_does_not_take_the_others_with_it() -> None:
    ports = parse_ports("22,http,X:25,U:53", strict=False)
    assert list(ports.services) == [*tcp(22), *udp(53)]
    assert len(ports.warnings) == 2


def test_top_lists_end_at_a_thousand() -> None:
    ports = parse_ports("top1001")
    assert len(ports.services) == TOP_MAX == 1000
    assert "1000" in ports.warnings[0]
    assert parse_ports("top1000").warnings == ()


@pytest.mark.parametrize("top", [top_tcp, top_udp])
def test_top_lists_are_ports_each_once(top) -> None:  # type: ignore[no-untyped-def]
    ports = top(TOP_MAX)
    assert len(set(ports)) == len(ports) == TOP_MAX
    assert all(1 <= port <= 65535 for port in ports)
    assert top(25) == ports[:25]


def test_top_25_is_what_nmap_takes_for_it() -> None:
    # `nmap --top-ports 25 -v -oG -` (7.93) prints the set
    assert set(top_tcp(25)) == {
        *(21, 22, 23, 25, 53, 80, 110, 111, 135, 139, 143, 199, 443, 445, 587, 993, 995, 1025),
        *(1720, 1723, 3306, 3389, 5900, 8080, 8888),
    }


def test_warnings_are_bounded() -> None:
    ports = parse_ports(["x"] * 10_000, strict=False)
    assert len(ports.warnings) < 100
    assert "9950 more" in ports.warnings[-1]


@given(st.one_of(st.text(max_size=30), st.text("0123456789-,:TUtop al", max_size=20)))
def test_any_text_is_ports_or_a_user_error(text: str) -> None:
    try:
        ports = parse_ports(text)
    except UserError:
        assert parse_ports(text, strict=False).warnings
    else:
        assert all(kind in (TCP, UDP) and 1 <= port <= 65535 for kind, port in ports.services)
        assert len(set(ports.services)) == len(ports.services)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_ranges_hold_both_ends_either_way_round(one: int, other: int) -> None:
    ports = parse_ports(f"{one}-{other}").services
    assert len(ports) == abs(one - other) + 1
    assert {ports[0], ports[-1]} == {(TCP, one), (TCP, other)}
