"""The door: rooms for lines that are not registered, turns, purses, complaints, time limits.

All on a mock clock, but for the sockets of loopback that a few need.
"""

from __future__ import annotations

import errno
import logging
import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import hit, in_trio, line_pair, registration, run_in_trio, segment_of, serve
from nray.pki.stream import HANDSHAKE_READS_MAX
from nray.server.accept import (
    CLOSED_A_SECOND,
    CLOSED_TOGETHER,
    ENTRIES_A_SECOND,
    ENTRIES_AT_ONCE,
    _close_waiting,
    accept_lines,
)
from nray.server.complaints import TOGETHER_S, TOLD_IN_FULL, Complaints
from nray.server.door import (
    ADDRESS_PART,
    DESCRIPTORS_PART,
    LINES_MAX,
    Guest,
    Lobby,
    Stage,
    group_of_address,
)
from nray.server.pace import WORDS_A_SECOND, WORDS_AT_ONCE, Bucket, Purse
from nray.server.tls import FIRST_WORD_S, HANDSHAKE_S, TURN_S, TlsDoorman
from nray.server.turns import ASSUMED_S, OWED_S_MAX, SAVED_S, SHARE, Turns
from nray.wire.channel import ChannelBroken, ChannelEnded
from nray.wire.framing import encode_frame
from nray.wire.messages import Ack, Ask, Counts, Heartbeat, Lease, Pulse

# ── addresses ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("198.18.0.1", "198.18.0.1"),
        ("::ffff:198.18.0.1", "198.18.0.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::9", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::9", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_counts_as_one_address(address, group):
    assert group_of_address(address) == group


# ── rooms ───────────────────────────────────────────────────────────────────────────────────


class Lines:
    """A lobby whose lines have made-up addresses."""

    def __init__(self, descriptors=100_000):
        self.lobby = Lobby(Complaints(), descriptors)
        self.closed: list[Guest] = []

    def enter(self, address, stage=Stage.SILENT, at=0.0):
        guest = Guest(self.lobby, address, address, at, lambda: self.closed.append(guest))
        self.lobby._add(guest)
        if stage is not Stage.SILENT:
            guest.advance(stage)
        return guest


@pytest.mark.parametrize("stage", Stage)
def test_an_address_that_has_its_share_pushes_out_its_own_oldest(stage):
    lines = Lines()
    share = LINES_MAX[stage] // ADDRESS_PART
    other = lines.enter("b", stage)
    flood = [lines.enter("a", stage) for _ in range(share + 3)]
    assert lines.closed == flood[:3]
    assert all(guest.evicted and not guest.here for guest in flood[:3])
    assert other.here
    assert lines.lobby.count(stage) == share + 1


def test_a_full_room_makes_room_from_the_address_with_most():
    lines = Lines()
    most = LINES_MAX[Stage.WAITING]
    first = lines.enter("first", Stage.WAITING)
    many = [lines.enter("many", Stage.WAITING) for _ in range(most // 2)]
    while lines.lobby.count(Stage.WAITING) < most:
        lines.enter(f"one {lines.lobby.count(Stage.WAITING)}", Stage.WAITING)
    late = lines.enter("late", Stage.WAITING)
    assert lines.closed == [many[0]]
    assert first.here
    assert late.here


def test_a_room_full_of_single_lines_lets_the_first_one_go():
    lines = Lines()
    guests = [lines.enter(str(n)) for n in range(LINES_MAX[Stage.SILENT] + 1)]
    assert lines.closed == [guests[0]]


def test_who_was_pushed_out_comes_no_further_and_leaves_once():
    lines = Lines(descriptors=16)
    guests = [lines.enter("a") for _ in range(3)]
    gone = lines.closed[0]
    assert gone is guests[0]
    gone.advance(Stage.ADMITTED)
    gone.leave()
    guests[-1].leave()
    guests[-1].leave()
    assert len(lines.lobby) == sum(guest.here for guest in guests)


def test_rooms_are_smaller_where_descriptors_are_few():
    lines = Lines(descriptors=64)
    for stage in reversed(Stage):
        for number in range(50):
            lines.enter(str(number), stage)
    assert len(lines.lobby) == len(Stage) * (64 // DESCRIPTORS_PART) == 32


def test_without_descriptors_the_earliest_goes_first():
    lines = Lines()
    admitted, silent = lines.enter("a", Stage.ADMITTED), lines.enter("b")
    lines.lobby.shed()
    lines.lobby.shed()
    lines.lobby.shed()  # nobody is left
    assert lines.closed == [silent, admitted]


def test_only_young_lines_that_have_spoken_are_still_coming():
    lines = Lines()
    lines.enter("a", at=10.0)
    lines.enter("b", Stage.WAITING, at=8.9)
    assert not lines.lobby.coming(10.0, 1.0)
    lines.enter("c", Stage.SHAKING, at=9.5)
    assert lines.lobby.coming(10.0, 1.0)
    assert not lines.lobby.coming(10.6, 1.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "advance", "leave"]), st.integers(0, 5)),
        max_size=200,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_order_of_events_breaks_a_bound_or_pushes_out_the_newcomer(steps):
    lines = Lines(descriptors=48)  # rooms of six
    there: list[Guest] = []
    for what, number in steps:
        there = [guest for guest in there if guest.here]
        closed = len(lines.closed)
        if what == "enter":
            there.append(lines.enter(str(number)))
            moved = there[-1]
        elif not there:
            continue
        else:
            moved = there[number % len(there)]
            if what == "leave":
                moved.leave()
                continue
            if moved.stage is Stage.ADMITTED:
                continue
            moved.advance(Stage(moved.stage + 1))
        assert moved.here
        assert len(lines.closed) <= closed + 1
        for victim in lines.closed[closed:]:
            rivals = [each for each in there if each.here and each.stage is victim.stage]
            counts = [sum(r.address == each.address for r in rivals) for each in rivals]
            own = sum(each.address == victim.address for each in rivals)
            assert own + 1 >= max(counts)  # nobody has more than it had
        held = list(lines.lobby)
        assert len(held) == len(lines.lobby) == sum(guest.here for guest in there)
        for stage in Stage:
            inside = [guest.address for guest in held if guest.stage is stage]
            assert len(inside) == lines.lobby.count(stage) <= 6
            assert all(inside.count(address) <= 3 for address in inside)


# ── turns ───────────────────────────────────────────────────────────────────────────────────


async def shake(turns, address, order, cost=ASSUMED_S):
    async with turns.turn(address) as spent:
        order.append((address, trio.current_time()))
        spent(cost)


@in_trio
async def test_a_fleet_gets_in_at_once_and_then_as_the_share_allows():
    turns, order = Turns(), []
    begun = trio.current_time()
    saved = round(SAVED_S / ASSUMED_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with trio.open_nursery() as nodes:
            for _ in range(saved + 100):
                nodes.start_soon(shake, turns, "a", order)
        nursery.cancel_scope.cancel()
    times = sorted(at - begun for _, at in order)
    assert times[saved // 2] == 0
    # All was saved and spent; what is left waits for the share.
    assert times[-1] == pytest.approx(100 * ASSUMED_S / SHARE, rel=0.1)
    assert turns.waiting == 0


@in_trio
async def test_addresses_take_turns_however_many_come_from_one():
    turns, order = Turns(saved_s=0.0), []
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(shake, turns, "flood", order)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(shake, turns, "honest", order)
        await trio.testing.wait_all_tasks_blocked()
        assert turns.waiting == 51
        nursery.start_soon(turns.run)
        while len(order) < 3:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert "honest" in [address for address, _ in order[:2]]


@in_trio
async def test_who_stops_waiting_takes_nobody_s_turn():
    turns, order = Turns(saved_s=0.0), []
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await shake(turns, "a", order)
        assert (order, turns.waiting) == ([], 0)
        nursery.start_soon(turns.run)
        await shake(turns, "b", order)
        nursery.cancel_scope.cancel()
    assert [address for address, _ in order] == ["b"]


@in_trio
async def test_a_costly_handshake_closes_the_door_for_a_bounded_time():
    turns, order = Turns(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await shake(turns, "bomb", order, cost=1000.0)
        await shake(turns, "next", order)
        nursery.cancel_scope.cancel()
    assert 0 < order[1][1] - order[0][1] <= OWED_S_MAX / SHARE


# ── purses ──────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_is_full_at_first_fills_evenly_and_can_owe():
    bucket = Bucket(10.0, 5.0)
    assert bucket.take(5.0, 100.0) == 0
    assert bucket.take(3.0, 100.0) == pytest.approx(0.3)
    assert bucket.level(100.5) == pytest.approx(2.0)
    assert bucket.level(200.0) == 5.0
    bucket.take(-100.0, 200.0)
    assert bucket.level(200.0) == 5.0


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 28_672)), max_size=50))
@settings(max_examples=50, deadline=None)
def test_who_brings_something_never_waits_however_fast(slices):
    purse = Purse()
    for _ in range(100):
        for reports, hits in slices:  # all at one moment
            assert purse.word(1.0) == 0
            for _ in range(reports):
                assert purse.report(hits, hits, False, 1.0) == 0
            assert purse.report(0, 0, True, 1.0) == 0


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda purse, now: purse.word(now), 1),
        (lambda purse, now: purse.report(0, 0, False, now), 1),
        (lambda purse, now: purse.report(900, 0, False, now), 10),
        (lambda purse, now: purse.report(1000, 100, False, now), 9),
        (lambda purse, now: purse.read(1, now), 0.25),
    ],
)
def test_who_brings_nothing_has_a_rate(say, words):
    purse, now, said = Purse(), 0.0, 0
    while now < 100:
        now += say(purse, now)
        said += 1
    expected = (WORDS_AT_ONCE + 100 * WORDS_A_SECOND) / words
    assert said == pytest.approx(expected, rel=0.01)


def test_large_reads_cost_nothing():
    purse = Purse()
    assert not any(purse.read(1460, 0.0) for _ in range(100_000))


# ── complaints ──────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_flood_of_complaints_is_a_handful_and_a_number(caplog):
    caplog.set_level(logging.INFO)
    complaints = Complaints()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(complaints.run)
        for number in range(10_000):
            complaints.say("bad peers", "bad peer %d", number)
        complaints.say("others", "another", level=logging.INFO)
        await trio.sleep(TOGETHER_S + 1)
        said = caplog.messages
        assert said == [
            *(f"bad peer {n}" for n in range(TOLD_IN_FULL)),
            "another",
            f"bad peers: {10_000 - TOLD_IN_FULL:,} more",
        ]
        for _ in range(TOLD_IN_FULL + 1):  # a new period
            complaints.say("bad peers", "again")
        nursery.cancel_scope.cancel()
    assert caplog.messages[len(said) :] == ["again"] * TOLD_IN_FULL + ["bad peers: 1 more"]


# ── accepting ───────────────────────────────────────────────────────────────────────────────


class Broken(trio.abc.Listener):
    """Gives what it is told to."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.closed = False

    async def accept(self):
        await trio.lowlevel.checkpoint()
        if not self.outcomes:
            await trio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self):
        self.closed = True
        await trio.lowlevel.checkpoint()


@in_trio
async def test_without_descriptors_lines_are_shed_and_accepting_goes_on(caplog):
    lines = Lines()
    silent = lines.enter("a")
    ours, _ = line_pair()
    listener = Broken(*[OSError(errno.EMFILE, "")] * 20, ours)
    handled = []

    async def handle(stream):
        handled.append(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_lines, listener, handle, nursery, lines.lobby)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert handled == [ours]
    assert lines.closed == [silent]
    assert listener.closed
    assert caplog.text.count("Too many open files") == TOLD_IN_FULL


class Closes:
    """A line of which only the end is of interest."""

    def __init__(self):
        self.closed_at = None

    async def aclose(self):
        self.closed_at = trio.current_time()
        await trio.lowlevel.checkpoint()


@in_trio
async def test_lines_are_let_in_at_a_pace_and_others_closed_at_one(caplog):
    seconds = 4
    flood = [Closes() for _ in range(int(ENTRIES_AT_ONCE + seconds * CLOSED_A_SECOND))]
    let_in = []

    async def handle(line):
        let_in.append(line)

    async with trio.open_nursery() as nursery:
        begun = trio.current_time()
        nursery.start_soon(accept_lines, Broken(*flood), handle, nursery, Lines().lobby)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert let_in[: int(ENTRIES_AT_ONCE)] == flood[: int(ENTRIES_AT_ONCE)]
    # Those that were let in did not slow the rest down.
    closed = [line.closed_at - begun for line in flood if line.closed_at is not None]
    assert len(closed) + len(let_in) == len(flood)
    assert len(closed) / (closed[-1] or 1) == pytest.approx(CLOSED_A_SECOND, rel=0.05)
    entered = (len(let_in) - ENTRIES_AT_ONCE) / closed[-1]
    assert entered == pytest.approx(ENTRIES_A_SECOND, rel=0.05)
    assert caplog.text.count("too many lines come") == TOLD_IN_FULL


def test_lines_that_wait_in_the_kernel_are_closed_many_at_a_time():
    async def main():
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            where = listener.socket.getsockname()
            lines = [socket.create_connection(where) for _ in range(CLOSED_TOGETHER + 3)]
            assert _close_waiting(listener) == CLOSED_TOGETHER
            assert _close_waiting(listener) == 3
            assert _close_waiting(listener) == 0
            for line in lines:
                line.settimeout(60)
                assert line.recv(1) == b""
                line.close()
            with socket.create_connection(where):  # it is still good
                await (await listener.accept()).aclose()

    trio.run(main)


# ── time limits of the door of TLS ──────────────────────────────────────────────────────────


class Never:
    """In place of `ServerTls`: a handshake that takes all the time it is given."""

    async def accept(self, stream, *, timeout_s, spent):
        from nray.pki.stream import TlsError

        await trio.sleep(timeout_s)
        raise TlsError("no TLS handshake in time")


async def admit(doorman, first=b"x"):
    """How long a line over loopback stays, and the stages that it came to."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as theirs:
            ours = await listener.accept()
            if first:
                await theirs.send_all(first)
            guest = Lobby(Complaints()).enter(ours, lambda: None)
            assert guest.address == "127.0.0.1"
            begun = trio.current_time()
            if first is None:
                await theirs.aclose()
            assert await doorman.admit(ours, guest) is None
            await ours.aclose()
            return trio.current_time() - begun, guest.stage


@pytest.mark.parametrize(
    ("first", "seconds", "stage"),
    [
        (b"", FIRST_WORD_S, Stage.SILENT),
        (None, 0.0, Stage.SILENT),
        (b"x", HANDSHAKE_S, Stage.SHAKING),
    ],
)
def test_each_stage_has_its_time(first, seconds, stage):
    async def main():
        took, reached = await admit(TlsDoorman(Never()), first)
        assert took == pytest.approx(seconds, abs=0.1)
        assert reached is stage

    run_in_trio(main)


@in_trio
async def test_who_gets_no_turn_in_time_is_let_go():
    doorman = TlsDoorman(Never())
    doorman._turns = Turns(saved_s=0.0)  # and nobody gives turns
    took, stage = await admit(doorman)
    assert took == pytest.approx(TURN_S, abs=0.1)
    assert stage is Stage.WAITING
    assert doorman._turns.waiting == 0


@in_trio
async def test_a_handshake_in_crumbs_is_cut_off_long_before_its_time():
    from OpenSSL import SSL

    from nray.pki.contexts import ClientCertificate, server_connection
    from nray.pki.stream import TlsError, TlsStream

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(ClientCertificate.REQUIRED.value, lambda *_: True)
    ours, theirs = line_pair()
    spent = []
    hello = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc" + bytes(5000)
    async with trio.open_nursery() as nursery:

        async def crumbs():
            for each in hello:
                await theirs.send_all(bytes([each]))
                await trio.sleep(0.001)

        nursery.start_soon(crumbs)
        with pytest.raises(TlsError, match="larger than any honest"):
            await TlsStream(ours, server_connection(context)).do_handshake(spent.append)
        nursery.cancel_scope.cancel()
    assert len(spent) == HANDSHAKE_READS_MAX + 1
    assert all(seconds >= 0 for seconds in spent)


# ── nodes that are in ───────────────────────────────────────────────────────────────────────

GONE = (ChannelEnded, ChannelBroken)


async def until_gone(peer):
    """Hear a line out."""
    try:
        while True:
            await peer.channel.receive()
    except GONE:
        pass


@in_trio
async def test_a_node_that_floods_is_slowed_others_are_not_and_nothing_is_lost(caplog):
    beats = int(WORDS_AT_ONCE + 4 * WORDS_A_SECOND)
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, slice_most=10)
        flood, honest = await served.peer("flood"), await served.peer("honest")

        async def answers():
            for _ in range(beats):
                assert await flood.hear() == Pulse()

        begun = trio.current_time()
        async with trio.open_nursery() as talk:
            talk.start_soon(answers)

            async def beat():
                for number in range(beats):
                    await flood.channel.send(Heartbeat(number))

            talk.start_soon(beat)
            await trio.sleep(2)
            before = trio.current_time()
            await honest.channel.send(Ask(1))
            lease = await honest.hear(Lease)
            await honest.report(lease)
            await honest.hear(Ack)
            assert trio.current_time() - before < 0.3  # a commit
        assert trio.current_time() - begun == pytest.approx(4, rel=0.05)
        assert caplog.text.count("(flood) says much and brings nothing") <= 3 * TOLD_IN_FULL
        assert "(honest) says" not in caplog.text
        assert len(served.server._sessions.connected()) == 2
        nursery.cancel_scope.cancel()


@in_trio
async def test_findings_told_again_and_again_slow_a_node_too():
    segment = segment_of("198.18.0.0/24", "1-100")
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], slice_most=5000)
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        hits = b"".join(hit(segment, lease.start + n) for n in range(lease.count))
        again = int(WORDS_AT_ONCE / (lease.count / 100))
        begun = trio.current_time()
        for _ in range(1 + 2 * again):
            await peer.report(lease, hits, done=False, counts=Counts())
            await peer.hear(Ack)
        took = trio.current_time() - begun
        assert took > WORDS_AT_ONCE / WORDS_A_SECOND - 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause_s", [1.0, None])
@in_trio
async def test_a_frame_that_does_not_end_ends_the_line(pause_s):
    """In the midst of it silence, or a byte a second: registered or not."""
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, node_expiry_s=30.0)
        peer, guest = await served.peer(), await served.peer(register=False)
        await guest.channel.receive()

        async def crumbs(channel):
            frame = encode_frame(Heartbeat(1)) + (1000).to_bytes(4, "big") + bytes(1000)
            for each in frame if pause_s else frame[:5]:
                try:
                    await channel._stream.send_all(bytes([each]))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                await trio.sleep(pause_s or 0)

        begun = trio.current_time()
        nursery.start_soon(crumbs, peer.channel)
        nursery.start_soon(crumbs, guest.channel)
        await until_gone(guest)
        assert trio.current_time() - begun < 15
        await until_gone(peer)
        assert trio.current_time() - begun < 90
        nursery.cancel_scope.cancel()


@in_trio
async def test_too_many_nodes_are_refused_and_those_that_are_in_come_back(monkeypatch):
    from nray.server import sessions as sessions_module
    from nray.wire.errors import Reason
    from nray.wire.messages import Refused

    monkeypatch.setattr(sessions_module, "NODES_MAX", 2)
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        first = await served.peer(instance="one", machine_id="one")
        await served.peer()
        third = await served.peer(register=False)
        await third.channel.receive()
        await third.channel.send(registration(instance="three", machine_id="three"))
        refused = await third.hear(Refused)
        assert (refused.reason, refused.retry) == (Reason.BUSY, True)
        first.cut()
        await served.peer(instance="one", machine_id="one")
        nursery.cancel_scope.cancel()
