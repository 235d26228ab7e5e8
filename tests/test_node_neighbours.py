"""ARP and neighbour discovery: frames as the RFCs have them, and who is asked when."""

from __future__ import annotations

import json
import logging
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from lab.namespaces import Namespace, require
from lab.nray import environment
from lab.wireshark import Recording, show, wrong
from nray.node import netlink
from nray.node.neighbours import AGAIN_S, TRIES_MAX, TRY_S, Neighbours, answer, request
from nray.node.netlink import Link, Neighbour

OURS, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
OTHER = bytes.fromhex("020000000003")
OWN4, PEER4 = ip_address("198.19.0.1").packed, ip_address("198.19.0.2").packed
OWN6, PEER6 = ip_address("2001:db8::1").packed, ip_address("2001:db8::12:3456").packed
ETH = Link(2, "eth0", 1, 0x1043, OURS, 1500)


# ── frames ──────────────────────────────────────────────────────────────────────────────────


def arp(mac: bytes, address: bytes, operation: int = 2) -> bytes:
    return (
        OURS + mac + bytes.fromhex("08060001080006 04".replace(" ", ""))
        + struct.pack("!H", operation) + mac + address + OURS + OWN4
    )  # fmt: skip


def ones_sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return total % 0xFFFF or 0xFFFF


def advertisement(mac: bytes, address: bytes, hops: int = 255, options: bytes = b"") -> bytes:
    options = options or bytes([2, 1]) + mac
    body = bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + address + options
    pseudo = address + OWN6 + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", 0xFFFF - ones_sum(pseudo + body)) + body[4:]
    header = bytes([0x60, 0, 0, 0]) + struct.pack("!HBB", len(body), 58, hops) + address + OWN6
    return OURS + mac + b"\x86\xdd" + header + body


#: Ours, and a neighbour's, by IP version.
OWN, PEER = {4: OWN4, 6: OWN6}, {4: PEER4, 6: PEER6}


def reply(mac: bytes, address: bytes) -> bytes:
    """What a neighbour answers, of either family."""
    return arp(mac, address) if len(address) == 4 else advertisement(mac, address)


def test_requests_byte_by_byte() -> None:
    assert request(OURS, OWN4, PEER4).hex() == (
        "ffffffffffff" "020000000001" "0806"
        "0001" "0800" "06" "04" "0001"
        "020000000001" "c6130001" "000000000000" "c6130002"
    )  # fmt: skip
    asked = request(OURS, OWN6, PEER6)
    assert asked[:14].hex() == "3333ff12345602000000000186dd"
    assert asked[14:22].hex() == "6000000000203aff"
    assert asked[22:38] == OWN6
    assert asked[38:54] == ip_address("ff02::1:ff12:3456").packed
    assert asked[54:56] == bytes([135, 0])
    assert asked[58:] == bytes(4) + PEER6 + bytes([1, 1]) + OURS
    pseudo = asked[22:54] + struct.pack("!II", 32, 58)
    assert ones_sum(pseudo + asked[54:]) == 0xFFFF


def test_answers_are_read() -> None:
    assert answer(arp(THEIRS, PEER4)) == (PEER4, THEIRS)
    assert answer(arp(THEIRS, PEER4) + bytes(18)) == (PEER4, THEIRS)  # padded to 60 bytes
    assert answer(arp(THEIRS, PEER4, operation=1)) == (PEER4, THEIRS)  # an announcement
    assert answer(advertisement(THEIRS, PEER6)) == (PEER6, THEIRS)
    other = bytes([14, 1]) + bytes(6) + bytes([2, 1]) + OTHER
    assert answer(advertisement(THEIRS, PEER6, options=other)) == (PEER6, OTHER)
    assert answer(advertisement(THEIRS, PEER6, options=bytes([14, 1]) + bytes(6))) == (
        PEER6,
        THEIRS,
    )


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(arp(THEIRS, PEER4)[:-1], id="cut"),
        pytest.param(arp(b"\xff" * 6, PEER4), id="a group's MAC"),
        pytest.param(arp(THEIRS, bytes(4)), id="a probe of RFC 5227"),
        pytest.param(advertisement(THEIRS, PEER6, hops=254), id="from behind a router"),
        pytest.param(advertisement(THEIRS, PEER6)[:-1], id="cut6"),
        pytest.param(advertisement(THEIRS, PEER6)[:-1] + b"\0", id="bad checksum"),
        pytest.param(advertisement(THEIRS, PEER6, options=bytes(8)), id="an option of no length"),
        pytest.param(advertisement(b"\x33" + THEIRS[1:], PEER6), id="a group's MAC, IPv6"),
        pytest.param(request(OURS, OWN6, PEER6), id="a question"),
    ],
)
def test_what_is_no_answer_is_passed_over(frame: bytes) -> None:
    assert answer(frame) is None


@given(st.sampled_from([arp(THEIRS, PEER4), advertisement(THEIRS, PEER6)]), st.data())
def test_broken_frames_never_crash(frame: bytes, data: st.DataObject) -> None:
    broken = bytearray(frame)
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    answer(bytes(broken[: data.draw(st.integers(0, len(broken)))]))


# ── asking ──────────────────────────────────────────────────────────────────────────────────


class FakeWire:
    """Notes what is sent, with the time, and gives what a test puts in."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, bytes]] = []
        self.closed = False
        self._give, self._take = trio.open_memory_channel[tuple[int, bytes]](100)

    def send(self, link: int, frame: bytes) -> None:
        assert link == ETH.index
        self.sent.append((trio.current_time(), frame))

    async def receive(self) -> list[tuple[int, bytes]]:
        return [await self._take.receive()]

    def close(self) -> None:
        self.closed = True

    async def hear(self, frame: bytes) -> None:
        self._give.send_nowait((ETH.index, frame))
        await wait_all_tasks_blocked()


class Told:
    """A `Neighbours` at work, and what it has told."""

    def __init__(self, *known: Neighbour) -> None:
        self.wire = FakeWire()
        self.said: list[tuple[int, bytes, bytes | None]] = []
        self.neighbours = Neighbours(
            {ETH.index: ETH}, self.wire, known, lambda *each: self.said.append(each)
        )

    def ask(self, address: bytes, *, keep: bool = False) -> None:
        self.neighbours.ask(ETH.index, address, OWN[4 if len(address) == 4 else 6], keep=keep)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.neighbours.run)
            await wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


def in_trio(function: object, *arguments: object) -> None:
    trio.run(function, *arguments, clock=MockClock(autojump_threshold=0.001))  # type: ignore[arg-type]


@pytest.fixture
def peer(version: int) -> bytes:
    return PEER[version]


def test_an_answer_is_told_once(peer: bytes) -> None:
    async def main() -> None:
        told = Told()
        async with told.running():
            told.ask(peer)
            told.ask(peer)
            await wait_all_tasks_blocked()
            assert [frame for _, frame in told.wire.sent] == [
                request(OURS, OWN[4 if peer is PEER4 else 6], peer)
            ]
            await told.wire.hear(reply(THEIRS, peer))
            await told.wire.hear(reply(THEIRS, peer))
            assert told.said == [(2, peer, THEIRS)]
            told.ask(peer)  # another worker
            assert told.said == [(2, peer, THEIRS)] * 2
            await trio.sleep(2 * AGAIN_S)
            assert len(told.wire.sent) == 1

    in_trio(main)


def test_silence_is_told_after_the_last_try(peer: bytes) -> None:
    async def main() -> None:
        told = Told()
        async with told.running():
            begun = trio.current_time()
            told.ask(peer)
            assert await told.neighbours.settle([(2, peer)]) == {}
            assert trio.current_time() - begun == pytest.approx(TRIES_MAX * TRY_S)
            times = [time - begun for time, _ in told.wire.sent]
            assert times == pytest.approx([n * TRY_S for n in range(TRIES_MAX)])
            assert told.said == [(2, peer, None)]
            await told.wire.hear(reply(THEIRS, peer))  # it has come up meanwhile
            assert told.said[1:] == [(2, peer, THEIRS)]

    in_trio(main)


def test_a_gateway_is_asked_again_and_its_move_is_told(
    peer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        told = Told()
        async with told.running():
            told.ask(peer, keep=True)
            await wait_all_tasks_blocked()
            await told.wire.hear(reply(THEIRS, peer))
            await trio.sleep(AGAIN_S + TRY_S / 2)
            assert len(told.wire.sent) == 2
            await told.wire.hear(reply(OTHER, peer))
            assert told.said == [(2, peer, THEIRS), (2, peer, OTHER)]
            await trio.sleep(AGAIN_S + TRIES_MAX * TRY_S + TRY_S)
            # Silent now: what it said last is kept, and it is asked on.
            assert len(told.wire.sent) == 2 + TRIES_MAX
            assert len(told.said) == 2
            await trio.sleep(AGAIN_S)
            assert len(told.wire.sent) == 2 + 2 * TRIES_MAX

    with caplog.at_level(logging.WARNING):
        in_trio(main)
    assert f"{ip_address(peer)} on eth0 does not answer any more" in caplog.text


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        (netlink.NUD_PERMANENT, 0),
        (netlink.NUD_NOARP, 0),
        (netlink.NUD_REACHABLE, 0),
        (0x04, 1),  # stale
        (0x20, 1),  # failed
    ],
)
def test_the_kernel_s_word_is_taken_where_it_is_certain(
    peer: bytes, state: int, asked: int
) -> None:
    async def main() -> None:
        told = Told(Neighbour(2, peer, THEIRS, state))
        async with told.running():
            told.ask(peer, keep=True)
            await wait_all_tasks_blocked()
            assert len(told.wire.sent) == asked
            assert told.said == ([] if asked else [(2, peer, THEIRS)])
            if state == netlink.NUD_PERMANENT:
                await trio.sleep(2 * AGAIN_S)
                await told.wire.hear(reply(OTHER, peer))
                assert told.wire.sent == []
                assert len(told.said) == 1

    in_trio(main)


def test_many_are_asked_at_once(peer: bytes) -> None:
    async def main() -> None:
        told = Told()
        async with told.running():
            first = int.from_bytes(peer, "big")
            peers = [(first + n).to_bytes(len(peer), "big") for n in range(1000)]
            for each in peers:
                told.ask(each)
            begun = trio.current_time()
            await told.neighbours.settle([(2, each) for each in peers])
            assert len(told.wire.sent) == TRIES_MAX * 1000
            assert trio.current_time() - begun < TRIES_MAX * TRY_S + 0.1

    in_trio(main)


# ── for real ────────────────────────────────────────────────────────────────────────────────

INSIDE = """
import json, sys, trio
from ipaddress import ip_address
from nray.node.kernel import read_neighbours, read_snapshot
from nray.node.neighbours import Neighbours, PacketWire
from nray.node.routes import routes_of

async def main():
    routes = routes_of(read_snapshot())
    wire = PacketWire(routes.links)
    neighbours = Neighbours(routes.links, wire, read_neighbours())
    keys = []
    for text in sys.argv[1:]:
        each = ip_address(text)
        way = routes.find(each.version, int(each))
        neighbours.ask(way.link, each.packed, way.source)
        keys.append((way.link, each.packed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbours.run)
        found = await neighbours.settle(keys)
        nursery.cancel_scope.cancel()
    wire.close()
    print(json.dumps({str(ip_address(key[1])): mac.hex(":") for key, mac in found.items()}))

trio.run(main)
"""


@pytest.mark.lab
def test_real_neighbours_answer_and_nothing_but_questions_leaves(tmp_path: Path) -> None:
    require("tcpdump", "tshark")
    with Namespace("near") as here, Namespace("far") as there:
        here.ip("link", "add", "n0", "address", OURS.hex(":"), "type", "veth",
                "peer", "name", "n0", "address", THEIRS.hex(":"), "netns", there.name)  # fmt: skip
        for namespace, host in ((here, 1), (there, 2)):
            namespace.ip("address", "add", f"198.19.0.{host}/24", "dev", "n0")
            namespace.ip("-6", "address", "add", f"2001:db8::{host}/64", "dev", "n0", "nodad")
            namespace.ip("link", "set", "n0", "up")
        with Recording(there, "n0", tmp_path / "frames.pcap") as recording:
            out = here.call(
                ["env", f"PYTHONPATH={environment().get('PYTHONPATH', '')}", sys.executable,
                 "-c", INSIDE, "198.19.0.2", "2001:db8::2", "198.19.0.77", "2001:db8::77"],
            )  # fmt: skip
        mac = THEIRS.hex(":")
        assert json.loads(out) == {"198.19.0.2": mac, "2001:db8::2": mac}
        ours = f"eth.src == {OURS.hex(':')}"
        asked = "arp.opcode == 1 || icmpv6.type == 135"
        assert wrong(recording.file, ours) == []
        assert len(show(recording.file, f"{ours} && ({asked})", "frame.number")) >= 8
        # What the kernel says by itself on a new link: multicast reports, router solicitations.
        other = f"{ours} && !({asked}) && !(icmpv6.type in {{133, 136, 143}}) && arp.opcode != 2"
        assert show(recording.file, other, "frame.protocols") == []
