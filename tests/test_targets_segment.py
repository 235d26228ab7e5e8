"""Segments: packed, unpacked, and what a hostile peer may send for one."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.targets.plan import plan
from nray.targets.segment import Segment, segment_key

KEY = segment_key(1, 0)
WHOLE = Segment(
    id=3,
    ranges4=((1, 5), (9, 9), (2**32 - 1, 2**32 - 1)),
    ranges6=((1, 2), (2**127, 2**127 + 5)),
    names=("A.example", "b.example"),
    ports=((6, 22), (6, 80), (17, 53)),
    key=KEY,
    excluded4=((6, 7),),
    excluded6=((2**128 - 1, 2**128 - 1),),
    excluded_names=("c.example",),
)


def test_a_segment_comes_back_as_it_was() -> None:
    back = Segment.unpack(WHOLE.pack())
    assert back == WHOLE
    assert back.listing(0, 10**6) == WHOLE.listing(0, 10**6)
    assert back.hosts == 7 + 8 + 2
    assert back.probes == back.space.total == 51


def test_its_packed_form_must_never_change() -> None:
    # a ledger of an older nray is resumed by a newer one
    small = Segment(0, ((1, 2),), (), ("a.example",), ((6, 80), (17, 53)), bytes(32))
    assert small.pack() == bytes.fromhex(
        "9b0100"
        "c420" + "00" * 32 + "c408"
        "0000000100000002"
        "c400"
        "91a9612e6578616d706c65"
        "c4020050"
        "c4020035"
        "c400"
        "c400"
        "90"
    )


def packed(**changes: object) -> bytes:
    """The fields of WHOLE as msgpack, some of them changed."""
    fields = ["version", "id", "key", "ranges4", "ranges6", "names", "tcp", "udp"]
    fields += ["excluded4", "excluded6", "excluded_names"]
    raw = dict(zip(fields, msgspec.msgpack.decode(WHOLE.pack()), strict=True))
    assert not changes.keys() - raw.keys()
    return msgspec.msgpack.encode(list((raw | changes).values()))


def four(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def sixteen(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(16, "big") for number in numbers)


def test_the_maker_of_wrong_segments_makes_right_ones() -> None:
    assert Segment.unpack(packed()) == WHOLE


WRONG = {
    "version": [0, 2, -1, "1", None],
    "id": [-1, 2**32, 1.5, "0"],
    "key": [b"", bytes(31), bytes(33), "k" * 32],
    "ranges4": [four(1), four(2, 1), four(1, 3, 3, 4), four(5, 6, 1, 2), b"x", four(5, 6), []],
    "ranges6": [sixteen(1), sixteen(2, 1), sixteen(0xFFFF << 32, 0xFFFF << 32), sixteen(0, 2**70)],
    "names": [
        ["a.example", "A.EXAMPLE"],
        ["127.1"],
        ["a b"],
        [""],
        ["-x"],
        ["ü.example"],
        ["x" * 300],
        ["C.example"],
        [1],
        "a.example",
    ],
    "tcp": [b"\0", b"\0\0", b"\0\1\0\1", b"\0\2\0\1", b"\0\1\0"],
    "udp": [b"\0", b"\0\0", b"\0\1\0\1"],
    "excluded4": [four(5, 5), four(0, 2**32 - 1), four(1), four(2, 1)],
    "excluded6": [sixteen(2, 3), sixteen(2, 1), sixteen(0, 2**128 - 1), b"123"],
    "excluded_names": [["C.example"], ["a.example"], ["c.example", "c.example"], ["0x1"]],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_segment_that_cannot_be(field: str, value: object) -> None:
    with pytest.raises(ValueError):
        Segment.unpack(packed(**{field: value}))


def test_segments_without_probes_or_with_too_many() -> None:
    for changes in (
        {"tcp": b"", "udp": b""},
        {"ranges4": b"", "ranges6": b"", "names": []},
        {"ranges6": sixteen(2**100, 2**100 + 2**63)},
    ):
        with pytest.raises(ValueError, match="probes"):
            Segment.unpack(packed(**changes))


def test_fields_too_few_or_too_many() -> None:
    raw = msgspec.msgpack.decode(WHOLE.pack())
    for wrong in (raw[:-1], [*raw, 1], [], {}, None, 5, WHOLE.pack()):
        with pytest.raises(ValueError):
            Segment.unpack(msgspec.msgpack.encode(wrong))
    with pytest.raises(ValueError):
        Segment.unpack(WHOLE.pack() + b"\0")
    with pytest.raises(ValueError):
        Segment.unpack(b"\x91" * 100_000)


@given(st.integers(0, 2**32), st.data())
def test_changed_bytes_are_a_segment_or_a_value_error(at: int, data: st.DataObject) -> None:
    body = bytearray(WHOLE.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    try:
        segment = Segment.unpack(bytes(body[:cut]))
    except ValueError:
        return
    # what passes is sound: it builds, and packs to what it came from
    assert segment.space.total == segment.probes
    assert Segment.unpack(segment.pack()) == segment
    assert segment.exclusions is not None


@given(st.binary(max_size=300))
def test_garbage_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        Segment.unpack(body)


def test_a_slash_0_with_10000_exclusions_stays_small() -> None:
    drawn = random.Random(1).sample(range(2**24), 10_000)
    away = [f"{net >> 16}.{net >> 8 & 255}.{net & 255}.0/24" for net in drawn]
    made = plan("0.0.0.0/0", tcp="1-100", exclude=away, seed=1)
    body = made.segments[0].pack()
    assert len(body) < 200_000
    assert Segment.unpack(body) == made.segments[0]


def test_ipv6_exclusions_and_names_travel_too() -> None:
    made = plan("2001:db8::/120,x.example", tcp=1, exclude="2001:db8::5,::1,y.example,9.9.9.9")
    back = Segment.unpack(made.segments[0].pack())
    assert back.exclusions.covers(6, 1)
    assert back.exclusions.covers(4, 0x09090909)
    assert back.excluded_names == ("y.example",)
    assert back.hosts == 255
    assert Segment.unpack(made.segments[1].pack()).names == ("x.example",)


def test_segments_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WHOLE.id = 4  # type: ignore[misc]
