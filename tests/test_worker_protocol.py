"""What a node and its workers say to each other, cut and joined in every way."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.worker.protocol import (
    Alive,
    Configure,
    Found,
    Neighbours,
    Pause,
    Raw,
    Slice,
    Space,
    Started,
    Unfit,
    Unpacker,
    Want,
    Wonder,
    pack,
    range_bytes,
    range_pairs,
)

CONFIGURE = Configure(
    window=7,
    tcp_timeout_s=1.25,
    udp_timeout_s=0.5,
    states=("closed", "open|filtered"),
    payload=b"\x00\xffnray",
    payloads={53: b"question", 65535: b""},
    udp_fast=True,
    adaptive=False,
    host_rate=12.5,
)
RAW = Raw(
    key=b"k" * 16,
    shard=1,
    shards=2,
    retries=3,
    links=[(2, "eth0", True, b"\x02" * 6, 1500), (1, "lo", False, b"", 65536)],
    routes=[(6, bytes(16), b"\xff" * 16, 0, b"\x20" * 16, b"")],
    samples=True,
)
SPACE = Space(
    segment=3,
    ranges4=b"\x7f\x00\x00\x01" * 2,
    ranges6=bytes(32),
    names=2**32 - 1,
    ports=[(6, 80), (17, 65535)],
    key=b"k" * 16,
    excluded4=b"",
    excluded6=bytes(32),
)
TO_WORKER = [
    CONFIGURE,
    SPACE,
    Slice(lease=2**63, segment=3, start=2**62, count=2**62),
    Slice(1, 3, 0, 2, {0: [b"\x7f\x00\x00\x01", bytes(16)], 1: []}),
    Pause(True),
    Pause(False),
    Neighbours([(0, bytes(4), b"\x02" * 6), (1, bytes(16), None)]),
    msgspec.structs.replace(CONFIGURE, raw=RAW),
]
FROM_WORKER = [
    Started(4_000_000),
    Want(2),
    Alive(2**40),
    Found(2**63, b"h" * 64, False, (), {}, 2**40),
    Found(1, b"", True, tuple(range(9)), {"local-error": 3}, 9),
    Found(1, b"", True, tuple(range(9)), {}, 9, drops=7),
    Wonder([(0, bytes(4)), (1, bytes(16))]),
    Unfit("no buffer space"),
]
ENDS = [(True, TO_WORKER), (False, FROM_WORKER)]


@pytest.mark.parametrize(("at_worker", "messages"), ENDS)
def test_all_at_once_and_byte_by_byte(at_worker: bool, messages: list[object]) -> None:
    stream = b"".join(pack(message) for message in messages)  # type: ignore[arg-type]
    assert list(Unpacker(at_worker=at_worker).feed(stream)) == messages
    unpacker = Unpacker(at_worker=at_worker)
    found = []
    for i in range(len(stream)):
        found += unpacker.feed(stream[i : i + 1])
    assert found == messages


@given(st.data())
def test_cut_anywhere(data: st.DataObject) -> None:
    at_worker, kinds = data.draw(st.sampled_from(ENDS))
    messages = data.draw(st.lists(st.sampled_from(kinds), max_size=20))
    stream = b"".join(map(pack, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    unpacker = Unpacker(at_worker=at_worker)
    found = []
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(stream)]):
        found += unpacker.feed(stream[begin:end])
    assert found == messages


def test_half_a_message_is_none_yet() -> None:
    stream = pack(CONFIGURE)
    unpacker = Unpacker(at_worker=True)
    assert list(unpacker.feed(stream[:-1])) == []
    assert list(unpacker.feed(b"")) == []
    assert list(unpacker.feed(stream[-1:])) == [CONFIGURE]


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x90", b"\x91\xa7unknown", b"\x91\xa5pause", b"\x92\xa5pause\x05"]
)
def test_what_is_no_message_raises(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        list(Unpacker(at_worker=True).feed(len(body).to_bytes(4, "little") + body))


@pytest.mark.parametrize(("at_worker", "messages"), ENDS)
def test_nobody_takes_his_own_words(at_worker: bool, messages: list[object]) -> None:
    for message in messages:
        with pytest.raises(msgspec.ValidationError):
            list(Unpacker(at_worker=not at_worker).feed(pack(message)))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [4, 16])
@given(data=st.data())
def test_ranges_come_back(width: int, data: st.DataObject) -> None:
    numbers = st.integers(0, 2 ** (8 * width) - 1)
    ranges = data.draw(st.lists(st.tuples(numbers, numbers), max_size=20))
    packed = range_bytes(ranges, width)
    assert len(packed) == 2 * width * len(ranges)
    assert range_pairs(packed, width) == ranges
