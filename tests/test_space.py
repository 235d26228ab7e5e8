"""The numbered space, its permutation and the exclusions of the compiled core."""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nray._core import Exclusions, Space

KEY = bytes(16)
NONE = Exclusions([], [])
TCP, UDP = 6, 17
FULL4 = [(0, 2**32 - 1)]

sizes = st.one_of(
    st.integers(1, 2**63),
    st.integers(0, 62).flatmap(lambda bits: st.sampled_from([2**bits, 2**bits + 1, 2**bits - 1])),
).filter(lambda size: size >= 1)
keys = st.binary(min_size=16, max_size=40)


def of_size(size: int, key: bytes = KEY) -> Space:
    """A space of as many probes as asked for: addresses from :: on, one port."""
    return Space([], [(0, size - 1)], 0, [(TCP, 80)], key)


def model_index(size: int, key: bytes, position: int) -> int:
    """The same permutation written from Black and Rogaway's paper, with Python's whole numbers."""
    stream = hashlib.shake_256(b"nray order 1\0" + key).digest(48)
    rounds = struct.unpack("<6Q", stream)
    a = 1 << (size.bit_length() - 1) // 2
    b = -(-size // a)

    def hashed(half: int, k: int) -> int:
        h = (half ^ k) * 0xFF51AFD7ED558CCD % 2**64
        return (h ^ h >> 32) * 0xC4CEB9FE1A85EC53 % 2**64

    while True:
        right, left = divmod(position, a)
        for even, odd in zip(rounds[::2], rounds[1::2], strict=True):
            right = (right + hashed(left, even) * b // 2**64) % b
            left = (left + hashed(right, odd) // 2**32) % a
        position = a * right + left
        if position < size:
            return position


# ── the permutation ─────────────────────────────────────────────────────────────────────────


def test_the_worked_example_of_feistel_h() -> None:
    assert [of_size(11).index(i) for i in range(11)] == [4, 9, 6, 10, 8, 1, 7, 3, 0, 5, 2]


@pytest.mark.parametrize("size", [*range(1, 130), 255, 256, 257, 1000, 4095, 4096, 4097, 10007])
def test_every_index_comes_up_exactly_once(size: int) -> None:
    space = of_size(size, hashlib.sha256(bytes([size % 256])).digest())
    indices = [space.index(position) for position in range(size)]
    assert sorted(indices) == list(range(size))
    assert [space.position(index) for index in indices] == list(range(size))


@given(sizes, keys, st.data())
def test_the_inverse_undoes_it_whatever_the_size(
    size: int, key: bytes, data: st.DataObject
) -> None:
    space = of_size(size, key)
    number = data.draw(st.integers(0, size - 1))
    index = space.index(number)
    assert 0 <= index < size
    assert space.position(index) == number
    assert space.index(space.position(number)) == number


@given(sizes, keys, st.data())
def test_it_is_the_construction_of_the_paper(size: int, key: bytes, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, size - 1))
    assert of_size(size, key).index(number) == model_index(size, key, number)


def test_the_order_hangs_on_every_byte_of_the_key() -> None:
    orders = set()
    for at in range(33):
        key = bytearray(33)
        key[at - 1] = at
        orders.add(tuple(of_size(1000, bytes(key)).index(i) for i in range(8)))
    assert len(orders) == 33


@pytest.mark.parametrize("size", [2**24, 2**32, 3 * 2**32 + 5, 100 * 2**32, 2**63])
def test_consecutive_positions_are_strangers(size: int) -> None:
    # Of 2,000 probes, each pair of neighbours shares one of 65,536 parts of the space with
    # chance 1/65,536: 0.03 such pairs are expected, and 4 would come once in 10^7 keys.
    space = of_size(size, b"spread of neighbours")
    part = [space.index(position) * 65536 // size for position in range(2000)]
    assert sum(one == other for one, other in pairwise(part)) < 4
    # 2,000 balls into 65,536 boxes: 30 meet, give or take 5.5
    assert 5 < len(part) - len(set(part)) < 65


@pytest.mark.parametrize("size", [2**20, 10**6 + 3, 2**32, 2**40 + 1])
def test_a_slice_is_spread_evenly(size: int) -> None:
    # chi-squared with 63 degrees of freedom: mean 63, standard deviation 11.2; six of them
    space = of_size(size, b"spread of a slice")
    boxes = Counter(space.index(position) * 64 // size for position in range(6400))
    assert sum((boxes[box] - 100) ** 2 / 100 for box in range(64)) < 63 + 6 * 11.2


def test_a_whole_internet_does_not_visit_one_slash_24_in_a_row() -> None:
    space = Space(FULL4, [], 0, [(TCP, port) for port in range(1, 101)], KEY)
    nets = [space.at(position)[1] >> 8 for position in range(3000)]
    # 3,000 of 2^24 networks: 0.27 pairs are expected to meet
    assert len(nets) - len(set(nets)) < 6


# ── the space ───────────────────────────────────────────────────────────────────────────────


def test_totals() -> None:
    space = Space([(1, 10)], [(5, 5)], 2, [(TCP, 80), (TCP, 443), (UDP, 53)], KEY)
    assert (space.hosts, space.ports, space.total) == (13, 3, 39)


def test_hosts_are_numbered_ipv4_ipv6_names() -> None:
    space = Space([(10, 11), (20, 20)], [(2**64, 2**64)], 1, [(UDP, 53), (TCP, 22)], KEY)
    probes = [space.at(space.position(index)) for index in range(space.total)]
    assert probes == [
        (4, 10, UDP, 53),
        (4, 10, TCP, 22),
        (4, 11, UDP, 53),
        (4, 11, TCP, 22),
        (4, 20, UDP, 53),
        (4, 20, TCP, 22),
        (6, 2**64, UDP, 53),
        (6, 2**64, TCP, 22),
        (0, 0, UDP, 53),
        (0, 0, TCP, 22),
    ]


def range_sets(top: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Sorted disjoint ranges, small, all over an address family and at its ends."""

    def disjoint(numbers: set[int]) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for first in sorted(numbers):
            if not found or first > found[-1][1]:
                found.append((first, min(first + first % 5, top)))
        return found

    return st.sets(
        st.one_of(st.integers(0, 60), st.integers(top - 60, top), st.integers(0, top)), max_size=12
    ).map(disjoint)


def expanded(ranges: list[tuple[int, int]]) -> list[int]:
    return [address for first, last in ranges for address in range(first, last + 1)]


services = st.lists(
    st.tuples(st.sampled_from([TCP, UDP]), st.integers(1, 65535)),
    min_size=1,
    max_size=7,
    unique=True,
)


@given(range_sets(2**32 - 1), range_sets(2**128 - 1), st.integers(0, 4), services, keys)
def test_every_host_and_port_exactly_once(
    ranges4: list[tuple[int, int]],
    ranges6: list[tuple[int, int]],
    names: int,
    ports: list[tuple[int, int]],
    key: bytes,
) -> None:
    hosts = [(4, address) for address in expanded(ranges4)]
    hosts += [(6, address) for address in expanded(ranges6)]
    hosts += [(0, name) for name in range(names)]
    if not hosts:
        with pytest.raises(ValueError, match="no probe"):
            Space(ranges4, ranges6, names, ports, key)
        return
    space = Space(ranges4, ranges6, names, ports, key)
    assert space.total == len(hosts) * len(ports)
    seen = [space.at(position) for position in range(space.total)]
    assert sorted(seen) == sorted((*host, *service) for host in hosts for service in ports)


@settings(max_examples=15)
@given(st.integers(1, 131070), st.data())
def test_the_division_by_ports_is_exact(ports: int, data: st.DataObject) -> None:
    chosen = [(TCP, port) for port in range(1, 65536)] + [(UDP, port) for port in range(1, 65536)]
    hosts = 2**63 // ports
    space = Space([], [(0, hosts - 1)], 0, chosen[:ports], KEY)
    near = st.integers(0, hosts - 1).map(lambda host: host * ports)
    edge = data.draw(near)
    for index in {0, edge, max(edge - 1, 0), edge + ports - 1, space.total - 1}:
        _, host, protocol, port = space.at(space.position(index))
        assert (host, (protocol, port)) == (index // ports, chosen[index % ports])


def test_many_ranges_clustered_and_far_apart() -> None:
    # the lookup table is even, these ranges are not
    ranges = [(2 * i, 2 * i) for i in range(3000)] + [(10**6, 2**31), (2**32 - 2, 2**32 - 1)]
    space = Space(ranges, [], 0, [(TCP, 1)], KEY)
    starts = 0
    for first, last in ranges:
        for address in {first, last, (first + last) // 2}:
            position = space.position(starts + address - first)
            assert space.at(position) == (4, address, TCP, 1)
        starts += last - first + 1


def test_the_largest_space_and_one_more() -> None:
    space = Space([], [(0, 2**63 - 1)], 0, [(TCP, 1)], KEY)
    assert space.total == 2**63
    assert space.position(space.index(2**63 - 1)) == 2**63 - 1
    with pytest.raises(OverflowError, match=str(2**63 + 1)):
        Space([], [(0, 2**63)], 0, [(TCP, 1)], KEY)
    with pytest.raises(OverflowError):
        Space(FULL4, [(0, 2**128 - 1)], 0, [(TCP, 1), (UDP, 1)], KEY)


@pytest.mark.parametrize(
    ("ranges4", "ranges6", "names", "ports", "key"),
    [
        ([(5, 4)], [], 0, [(TCP, 1)], KEY),
        ([(5, 9), (9, 12)], [], 0, [(TCP, 1)], KEY),
        ([(5, 9), (1, 2)], [], 0, [(TCP, 1)], KEY),
        ([(-1, 9)], [], 0, [(TCP, 1)], KEY),
        ([(0, 2**32)], [], 0, [(TCP, 1)], KEY),
        ([], [(0, 2**128)], 0, [(TCP, 1)], KEY),
        ([(1, 1)], [], -1, [(TCP, 1)], KEY),
        ([(1, 1)], [], 2**32, [(TCP, 1)], KEY),
        ([(1, 1)], [], 0, [], KEY),
        ([], [], 0, [(TCP, 1)], KEY),
        ([(1, 1)], [], 0, [(TCP, 0)], KEY),
        ([(1, 1)], [], 0, [(TCP, 65536)], KEY),
        ([(1, 1)], [], 0, [(1, 80)], KEY),
        ([(1, 1)], [], 0, [(TCP, 1)] * 131071, KEY),
        ([(1, 1)], [], 0, [(TCP, 1)], KEY[:15]),
    ],
)
def test_a_space_that_cannot_be(ranges4, ranges6, names, ports, key) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        Space(ranges4, ranges6, names, ports, key)


@pytest.mark.parametrize("number", [-1, 13, 2**63, 2**64, 2**70])
def test_outside_of_the_space_there_is_nothing(number: int) -> None:
    space = of_size(13)
    for question in (space.index, space.position, space.at):
        with pytest.raises(IndexError):
            question(number)


# ── the listing ─────────────────────────────────────────────────────────────────────────────


@given(range_sets(2**32 - 1), range_sets(2**128 - 1), services, keys)
def test_a_listing_reads_as_ipaddress_prints(
    ranges4: list[tuple[int, int]],
    ranges6: list[tuple[int, int]],
    ports: list[tuple[int, int]],
    key: bytes,
) -> None:
    space = Space(ranges4, ranges6, 1, ports, key)
    lines = []
    for position in range(space.total):
        family, address, protocol, port = space.at(position)
        host: object = "a.example"
        if family:
            host = ipaddress.IPv4Address(address) if family == 4 else ipaddress.IPv6Address(address)
        lines.append(f"{host} {port}/{'tcp' if protocol == TCP else 'udp'}\n")
    assert space.listing(0, space.total, ["a.example"]).decode() == "".join(lines)


@given(st.lists(st.sampled_from([0, 0, 1, 0x10, 0xABC, 0xFFFF]), min_size=8, max_size=8))
def test_ipv6_text_of_rfc_5952(groups: list[int]) -> None:
    number = int.from_bytes(struct.pack(">8H", *groups), "big")
    text = Space([], [(number, number)], 0, [(TCP, 1)], KEY).listing(0, 1).decode()
    # Python 3.13 prints mapped addresses dotted; they never get into a space (see networks)
    if number >> 32 != 0xFFFF:
        assert text == f"{ipaddress.IPv6Address(number)} 1/tcp\n"


def test_a_listing_of_slices_is_the_listing() -> None:
    space = Space([(0, 99)], [], 2, [(TCP, 1), (UDP, 2)], KEY)
    names = ["localhost", "x" * 200 + ".example"]
    whole = space.listing(0, 10**9, names)
    assert whole.count(b"\n") == space.total == 204
    parts = [space.listing(start, 7, names) for start in range(0, space.total, 7)]
    assert b"".join(parts) == whole
    assert space.listing(space.total, 5, names) == b""
    assert space.listing(2**80, 2**90, names) == b""


def test_a_listing_that_cannot_be() -> None:
    space = Space([], [], 2, [(TCP, 1)], KEY)
    with pytest.raises(ValueError, match="names"):
        space.listing(0, 1, ["one"])
    with pytest.raises(IndexError):
        space.listing(-1, 1, ["one", "two"])
    with pytest.raises(IndexError):
        space.listing(0, -1, ["one", "two"])


# ── exclusions ──────────────────────────────────────────────────────────────────────────────


@given(range_sets(2**32 - 1), range_sets(2**128 - 1), st.data())
def test_exclusions_cover_what_their_ranges_hold(
    ranges4: list[tuple[int, int]], ranges6: list[tuple[int, int]], data: st.DataObject
) -> None:
    exclusions = Exclusions(ranges4, ranges6)
    for family, ranges, top in ((4, ranges4, 2**32 - 1), (6, ranges6, 2**128 - 1)):
        inside = set(expanded(ranges))
        near = {n for n in {a + d for a in inside for d in (-1, 0, 1)} if 0 <= n <= top}
        for address in near | {0, top, data.draw(st.integers(0, top))}:
            if family == 6 and address >> 32 == 0xFFFF:
                continue
            assert exclusions.covers(family, address) == (address in inside)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 1000])
def test_exclusions_of_every_number_of_ranges(count: int) -> None:
    exclusions = Exclusions([(10 * i + 3, 10 * i + 5) for i in range(count)], [])
    for address in range(10 * count + 10):
        assert exclusions.covers(4, address) == (address % 10 in (3, 4, 5) and address < 10 * count)


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    exclusions = Exclusions([(1, 1)], [])
    assert exclusions.covers(6, 0xFFFF << 32 | 1)
    assert not exclusions.covers(6, 0xFFFF << 32 | 2)
    assert not exclusions.covers(6, 1)
    assert not NONE.covers(4, 1)


@pytest.mark.parametrize(("family", "address"), [(5, 1), (0, 1), (4, 2**32), (6, 2**128), (4, -1)])
def test_what_is_no_address_is_refused(family: int, address: int) -> None:
    with pytest.raises(ValueError):
        NONE.covers(family, address)


@pytest.mark.parametrize("ranges", [[(2, 1)], [(1, 5), (5, 6)], [(-5, 1)], [(0, 2**32)]])
def test_exclusions_that_cannot_be(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError):
        Exclusions(ranges, [])


# ── hits ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_decode_takes_garbage_or_says_so(packed: bytes) -> None:
    space = Space([(0, 200)], [(1, 9)], 3, [(TCP, 80)], KEY)
    try:
        assert len(space.decode(packed, NONE)) * 32 == len(packed)
    except ValueError:
        pass
