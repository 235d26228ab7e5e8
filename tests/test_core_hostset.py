"""The set of hosts that need no more probes: what is put in is found, and nothing else is."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_lab import in_child
from nray import _core
from nray._core import HostSet

ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(lambda each: (4, each.packed)),
    st.ip_addresses(v=6).map(lambda each: (6, each.packed)),
    # Few of them, and alike in both families, so that some come twice.
    st.tuples(st.just(4), st.integers(0, 3).map(lambda n: bytes([0, 0, 0, n]))),
    st.tuples(st.just(6), st.integers(0, 3).map(lambda n: bytes([0, 0, 0, n, *bytes(12)]))),
)
Address = tuple[int, bytes]


def packed(*hosts: Address) -> bytes:
    return b"".join(bytes([family]) + raw.ljust(16, b"\0") for family, raw in hosts)


def host(text: str) -> Address:
    address = ip_address(text)
    return address.version, address.packed


def hit(at: int, one: Address, state: int) -> bytes:
    return struct.pack(_core.HIT_FORMAT, at, one[1].ljust(16, b"\0"), 5, 0, state, 1, one[0])


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("test-hosts", os.MFD_CLOEXEC)
    os.ftruncate(fd, HostSet.OFFSET + HostSet.BYTES)
    yield fd
    os.close(fd)


@given(st.lists(ADDRESSES), st.lists(ADDRESSES))
def test_what_is_put_in_is_found_and_nothing_else(
    some: list[Address], asked: list[Address]
) -> None:
    known = HostSet()
    known.add(packed(*some))
    assert len(known) == len(set(some))
    for each in some + asked:
        assert known.has(packed(each)) == (each in some)
    in_order = list(dict.fromkeys(some))
    assert known.packed(0, len(known)) == packed(*in_order)
    assert known.packed(1, 3) == packed(*in_order[1:3])


@given(st.lists(ADDRESSES), st.lists(st.tuples(ADDRESSES, st.integers(1, 5))))
def test_of_a_host_the_first_open_hit_is_fresh(
    before: list[Address], found: list[tuple[Address, int]]
) -> None:
    known = HostSet()
    known.add(packed(*before))
    seen = set(before)
    wanted = []
    records = [hit(at, one, state) for at, (one, state) in enumerate(found)]
    for record, (one, state) in zip(records, found, strict=True):
        if state != 1 or one not in seen:
            wanted.append(record)
        if state == 1:
            seen.add(one)
    assert known.fresh(b"".join(records)) == b"".join(wanted)
    assert len(known) == len(seen)


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        ("add", bytes(16)),
        ("add", packed((5, bytes(4)))),
        ("has", packed(host("::1")) * 2),
        ("fresh", bytes(31)),
    ],
)
def test_what_is_no_host_is_refused_whole(what: str, bad: bytes) -> None:
    known = HostSet()
    with pytest.raises(ValueError, match=r"host|hits"):
        getattr(known, what)(bad)
    assert len(known) == 0


def test_it_is_shared_by_those_who_map_it(memory: int) -> None:
    one, other = HostSet(memory), HostSet(memory)
    one.add(packed(host("198.18.0.1"), host("2001:db8::1")))
    assert other.has(packed(host("2001:db8::1")))
    other.add(packed(host("198.18.0.1"), host("198.18.0.2")))
    assert len(one) == len(other) == 3
    private = HostSet()
    assert not private.has(packed(host("198.18.0.1")))


def test_what_was_before_it_was_begun_anew_is_nobody(memory: int) -> None:
    mine, late = HostSet(memory), HostSet(memory)
    old, new = packed(host("198.18.0.1")), packed(host("198.18.0.2"))
    mine.add(old)
    mine.renew()
    assert len(mine) == 0
    assert not mine.has(old)
    late.add(old)  # a process of the scan before, which has not ended yet
    mine.add(new)
    worker = HostSet(memory)
    for each in (mine, worker):
        assert each.has(new)
        assert not each.has(old)
    assert not late.has(new)


def test_processes_that_put_in_the_same_at_once_agree_who_was_first(memory: int) -> None:
    """Each of 30,000 hosts comes from four processes, in an order of its own: one finds it new."""
    HostSet(memory)  # its maker comes first

    def writer(number: int) -> list[int]:
        known = HostSet(memory)
        mine = []
        for k in range(30_000):
            n = (k * (7919 + 2 * number)) % 30_000
            if known.fresh(hit(n, (4, n.to_bytes(4, "big")), 1)):
                mine.append(n)
        return mine

    started = [in_child(lambda number=number: writer(number)) for number in range(4)]
    first = [n for _, wait in started for n in wait()]
    assert sorted(first) == sorted(set(first))
    known = HostSet(memory)
    everyone = [(4, n.to_bytes(4, "big")) for n in {*first}]
    assert all(known.has(packed(one)) for one in everyone)
    reached = {(k * (7919 + 2 * number)) % 30_000 for number in range(4) for k in range(30_000)}
    assert set(first) == reached
    told = known.packed(0, len(known))
    assert {told[at : at + 17] for at in range(0, len(told), 17)} == {packed(n) for n in everyone}
    assert len(told) == 17 * len(everyone)


def test_when_it_is_full_no_more_is_known_and_nothing_is_lost() -> None:
    known = HostSet()
    step = 1 << 18
    for first in range(0, HostSet.HOSTS_MAX, step):
        numbers = range(first, first + step)
        known.add(b"".join(b"\x04" + n.to_bytes(4, "big") + bytes(12) for n in numbers))
    assert len(known) == HostSet.HOSTS_MAX
    beyond = (4, HostSet.HOSTS_MAX.to_bytes(4, "big"))
    record = hit(0, beyond, 1)
    assert known.fresh(record + record) == record + record
    assert not known.has(packed(beyond))
    assert known.has(packed((4, bytes(4))))
    assert known.fresh(hit(0, (4, bytes(4)), 1)) == b""
