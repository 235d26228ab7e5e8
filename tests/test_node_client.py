"""A node in memory: against servers that follow a script, and against the real one.

The last part is a simulation. Lines are cut, nodes and workers die, sinks stand still, all at
moments drawn from a seed; in the end each open port must have made one event, none lost.
"""

from __future__ import annotations

import logging
import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from fakes import (
    Dies,
    FakeForkServer,
    MemoryListener,
    MemoryNode,
    finds,
    hit,
    in_trio,
    registration,
    segment_of,
    serve,
    until,
)
from nray import UserError
from nray.node import client as module
from nray.node.client import (
    BEATS_MISSED_MAX,
    GREETING_S,
    REST_S,
    RETRY_FIRST_S,
    RETRY_FIRST_TIMES,
    RETRY_LAST_S,
    Node,
    NodeOptions,
    ServerRefuses,
)
from nray.node.reports import UNACKNOWLEDGED_MAX
from nray.server.summary import exit_status
from nray.targets.findings import expand
from nray.wire.channel import Channel
from nray.wire.errors import EXPLANATIONS, Reason, refusal
from nray.wire.framing import encode_frame
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Lease,
    Pulse,
    Register,
    Registered,
    Report,
    Settings,
    Shown,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.rules import HELD_MAX, trouble_in
from nray.wire.states import ServerEnd

SEGMENT = segment_of("198.18.0.0/28", "1-20")


async def closed(worker, work):
    await worker.found(work)


class Script:
    """The server's end of one line, moved by hand."""

    def __init__(self, line):
        self.line = line
        self.channel = Channel(line, ServerEnd())
        self.next_lease = 1

    async def hear(self, *kinds):
        while True:
            message = await self.channel.receive()
            if not kinds or isinstance(message, kinds):
                return message

    async def let_in(self, scan="s", **changes):
        await self.channel.send(Welcome(PROTOCOL_VERSION, "x"))
        register = await self.hear()
        assert isinstance(register, Register)
        known = {
            "node_id": "node-1",
            "pool": 0,
            "server_time_ms": 0,
            "heartbeat_s": 5.0,
            "settings": Settings(),
            "scan": scan,
        }
        await self.channel.send(Registered(**{**known, **changes}))
        return register

    async def asked(self, count):
        """Wait until so many slices were asked for on this line; more would be too many."""
        while count:
            count -= (await self.hear(Ask)).leases
            assert count >= 0

    async def lease(self, number, start, count, *, announce=False):
        if announce:
            await self.channel.send(SegmentMessage(0, SEGMENT.pack()))
        await self.channel.send(Lease(number, 0, start, count))

    async def dismiss(self, done=True):
        """Stop, and hear all that comes until Bye; acknowledges. Returns the reports."""
        await self.channel.send(Stop(done))
        reports = []
        while not isinstance(message := await self.channel.receive(), Bye):
            if isinstance(message, Report):
                reports.append(message)
                await self.channel.send(Ack(message.report))
        await self.channel.aclose()
        return reports


class Site:
    """A node and where it dials; ``errors`` holds what its run raised."""

    def __init__(self, nursery, behave=closed, **changes):
        self.listener = MemoryListener()
        self.forks = FakeForkServer(nursery, behave)
        self.node = MemoryNode(self.listener, self.forks, **changes)
        self.errors = []
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _run(self):
        with self.scope:
            try:
                await self.node.run()
            except BaseExceptionGroup as group:
                mendable, other = group.split(UserError)
                if other is not None:
                    raise
                while isinstance(mendable, BaseExceptionGroup):
                    mendable = mendable.exceptions[0]
                self.errors.append(mendable)

    async def accept(self):
        return Script(await self.listener.accept())

    async def ended(self):
        """Wait for the end of the node and of its workers."""
        await until(lambda: self.node.ended or self.errors)
        await until(lambda: not self.forks.alive)


@asynccontextmanager
async def site(behave=closed, **changes):
    async with trio.open_nursery() as nursery:
        made = Site(nursery, behave, **changes)
        yield made
        made.scope.cancel()
        await until(lambda: not made.forks.alive)
        nursery.cancel_scope.cancel()


# ── with a script ───────────────────────────────────────────────────────────────────────────


@in_trio
async def test_it_registers_asks_scans_reports_and_says_bye():
    async with site(name="nyc1", processes=2, preferred_pool=3) as made:
        server = await made.accept()
        register = await server.let_in()
        assert (register.name, register.processes, register.preferred_pool) == ("nyc1", 2, 3)
        assert register.leases == ()
        assert trouble_in(register) is None
        await server.asked(2 * 2 + 2)
        await server.lease(1, 0, 10, announce=True)
        report = await server.hear(Report)
        assert (report.report, report.lease, report.done) == (1, 1, True)
        assert report.counts.closed == 10
        await server.channel.send(Ack(1))
        assert await server.dismiss() == []
        await made.ended()
    assert made.errors == []


@in_trio
async def test_it_beats_as_often_as_it_is_told():
    async with site() as made:
        server = await made.accept()
        await server.let_in(heartbeat_s=2.0)
        await server.hear(Heartbeat)
        before = trio.current_time()
        for _ in range(3):
            await server.channel.send(Pulse())
            await server.hear(Heartbeat)
        assert trio.current_time() - before == pytest.approx(6, abs=0.1)


@in_trio
async def test_a_server_that_falls_silent_is_left_and_found_again():
    async with site() as made:
        server = await made.accept()
        first = await server.let_in(heartbeat_s=2.0)
        before = trio.current_time()
        again = await made.accept()
        waited = trio.current_time() - before
        assert waited == pytest.approx(BEATS_MISSED_MAX * 2.0, abs=0.5)
        assert (await again.let_in()).instance == first.instance


@in_trio
async def test_a_server_that_does_not_greet_is_left_too():
    async with site() as made:
        await made.accept()
        before = trio.current_time()
        await made.accept()
        assert trio.current_time() - before == pytest.approx(GREETING_S, abs=0.5)


@in_trio
async def test_what_was_not_acknowledged_is_sent_again_on_the_next_line():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(6)
        for number in (1, 2, 3):
            await server.lease(number, 10 * number, 10, announce=number == 1)
        reports = [await server.hear(Report) for _ in range(3)]
        await server.channel.send(Ack(1))
        await trio.sleep(0.1)
        server.line.cut()
        again = await made.accept()
        register = await again.let_in()
        assert register.leases == tuple(sorted(report.lease for report in reports[1:]))
        # The server's end checks that their numbers have no gaps.
        assert [await again.hear(Report) for _ in range(2)] == reports[1:]
        assert await again.dismiss() == []
        await made.ended()


@in_trio
async def test_work_goes_on_while_the_line_is_down_and_is_asked_for_anew():
    async def slow(worker, work):
        await trio.sleep(5)
        await worker.found(work, hit(SEGMENT, work.start))

    async with site(slow, processes=1) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(3)
        await server.lease(1, 0, 10, announce=True)
        await server.lease(2, 10, 10)
        await trio.sleep(1)
        server.line.cut()
        again = await made.accept()
        register = await again.let_in()
        assert register.leases == (1, 2)
        await again.asked(1)
        reports = [await again.hear(Report) for _ in range(2)]
        assert [report.lease for report in reports] == [1, 2]
        # A segment is announced again on every line; known already, it does no harm.
        await again.lease(3, 20, 10, announce=True)
        assert (await again.hear(Report)).lease == 3


@in_trio
async def test_a_server_with_another_scan_gets_nothing_of_the_old_one():
    async def never(worker, work):
        await trio.sleep_forever()

    async with site(never) as made:
        server = await made.accept()
        await server.let_in("one")
        await server.hear(Ask)
        await server.lease(7, 0, 10, announce=True)
        await trio.sleep(1)
        old = set(made.forks.alive)
        server.line.cut()
        again = await made.accept()
        assert (await again.let_in("two")).leases == (7,)
        await until(lambda: not old & set(made.forks.alive))
        assert await again.dismiss() == []
        await made.ended()


@in_trio
async def test_at_the_end_it_sends_what_it_has_and_drops_what_it_has_not_begun():
    async def behave(worker, work):
        await worker.found(work, hit(SEGMENT, work.start), done=False)
        await trio.sleep_forever()

    async with site(behave, processes=1) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(3)
        await server.lease(1, 0, 10, announce=True)
        await server.lease(2, 10, 10)
        await trio.sleep(1)
        reports = await server.dismiss(done=False)
        assert [(report.lease, report.done) for report in reports] == [(1, False)]
        await made.ended()
    assert made.errors == []


@in_trio
async def test_after_stop_a_line_that_breaks_is_an_end_like_another():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.channel.send(Stop(True))
        await trio.sleep(0.01)
        server.line.cut()
        await made.ended()
    assert made.errors == []
    assert made.node.ended


@in_trio
async def test_a_server_that_stops_a_node_as_soon_as_it_registers():
    async with site() as made:
        server = await made.accept()
        before = trio.current_time()
        await server.let_in()
        await server.dismiss()
        await made.ended()
        assert trio.current_time() - before < 0.5


@in_trio
async def test_a_node_that_stays_takes_the_next_scan_and_rests_before():
    async with site(stay=True) as made:
        instances = []
        for scan in ("one", "two"):
            server = await made.accept()
            register = await server.let_in(scan)
            instances.append((register.instance, register.leases))
            await server.hear(Ask)
            await server.lease(1, 0, 10, announce=True)
            assert (await server.hear(Report)).report == 1
            await server.channel.send(Ack(1))
            stopped = trio.current_time()
            await server.dismiss()
            await until(lambda: not made.forks.alive)
        assert instances[0] == instances[1]
        await made.accept()
        assert trio.current_time() - stopped >= REST_S
        assert not made.node.ended


@in_trio
async def test_several_workers_that_wait_for_room_all_get_it():
    # Each used to wait for an event of its own, of which only the last was set.
    parts = UNACKNOWLEDGED_MAX

    async def talkative(worker, work):
        for _ in range(parts):
            await worker.found(work, hit(SEGMENT, work.start), done=False)
        await worker.found(work)

    async with site(talkative, processes=3) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(9)
        for number in range(3):
            await server.lease(number + 1, 10 * number, 10, announce=not number)
        for expected in range(1, UNACKNOWLEDGED_MAX + 1):
            assert (await server.hear(Report)).report == expected
        await trio.sleep(10)  # now it is full, and three workers wait
        ended = set()
        for number in range(1, 3 * (parts + 1) + 1):
            if number > UNACKNOWLEDGED_MAX:
                with trio.fail_after(1):
                    report = await server.hear(Report)
                ended |= {report.lease} if report.done else set()
            await server.channel.send(Ack(max(1, number - UNACKNOWLEDGED_MAX + 1)))
        assert ended == {1, 2, 3}


@in_trio
async def test_pause_is_passed_on_and_never_holds_the_line_up():
    async with site(processes=1) as made:
        server = await made.accept()
        await server.let_in()
        await server.channel.send(Pulse(pause=True))
        await trio.sleep(1)
        assert made.forks.alive[0].heard[-1].on is True
        await server.channel.send(Pulse())
        await trio.sleep(1)
        assert made.forks.alive[0].heard[-1].on is False


@in_trio
async def test_leases_beyond_what_a_message_holds_are_left_out():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.hear(Ask)
        scan = made.node._scan
        many = dict.fromkeys(range(1, HELD_MAX + 100))
        next(iter(scan.supervisor._hands)).holds.update(many)
        assert len(scan.leases) == HELD_MAX
        assert trouble_in(registration(leases=scan.leases)) is None


@pytest.mark.parametrize("name", ["n" * 100, "\udcff" * 40, "näme", ""])
@in_trio
async def test_any_name_is_made_fit_to_be_sent(name):
    async with site(name=name) as made:
        server = await made.accept()
        register = await server.let_in()
        assert len(register.name) <= 32
        assert register.name[:3] == name[:3].replace("\udcff", "?")


# ── servers that do not want it, and what is no server ──────────────────────────────────────


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("when", ["first", "registering", "active"])
@in_trio
async def test_refused_it_ends_with_the_reason_in_words(reason, when):
    async with site() as made:
        server = await made.accept()
        if when == "registering":
            await server.channel.send(Welcome(PROTOCOL_VERSION, "x"))
            await server.hear(Register)
        elif when == "active":
            await server.let_in()
        await server.channel.refuse(reason, "because of this")
        await made.ended()
    (error,) = made.errors
    assert isinstance(error, ServerRefuses)
    assert error.exit_status == 1
    assert EXPLANATIONS[reason] in error.message
    assert "because of this" in error.message
    assert bool(error.hint) == refusal(reason).retry


@in_trio
async def test_a_reason_of_a_newer_server_is_shown_as_it_is():
    async with site() as made:
        server = await made.accept()
        await server.line.send_all(encode_frame(refusal(Reason.BUSY).__class__("full-moon")))
        await made.ended()
    assert "full-moon" in made.errors[0].message


@in_trio
async def test_a_server_of_another_version_is_named_as_such():
    async with site() as made:
        server = await made.accept()
        await server.line.send_all(encode_frame(Welcome(PROTOCOL_VERSION + 1, "9.9")))
        await made.ended()
    (error,) = made.errors
    assert isinstance(error, ServerRefuses)
    assert f"protocol {PROTOCOL_VERSION + 1}" in error.message
    assert "another version" in error.hint


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
@in_trio
async def test_what_is_no_server_is_named_as_such(said):
    async with site() as made:
        server = await made.accept()
        await server.line.send_all(said)
        await made.ended()
    assert "does not talk as a nray server does" in made.errors[0].message


@pytest.mark.parametrize("body", [b"", b"junk", SEGMENT.pack()[:-1]])
@in_trio
async def test_a_segment_that_is_none_ends_it(body):
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.channel.send(SegmentMessage(0, body))
        await made.ended()
    assert isinstance(made.errors[0], ServerRefuses)


@in_trio
async def test_a_segment_under_another_number_ends_it():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.channel.send(SegmentMessage(5, SEGMENT.pack()))
        await made.ended()
    assert "calls itself 0" in made.errors[0].message


@in_trio
async def test_a_line_that_is_closed_without_a_word_hints_at_tls(caplog):
    async with site() as made:
        server = await made.accept()
        await server.channel.aclose()
        await made.accept()
    assert "--use-tls" in caplog.text


@in_trio
async def test_workers_that_cannot_live_end_the_node():
    async def dies(worker, work):
        raise Dies

    async with site(dies) as made:
        server = await made.accept()
        await server.let_in()
        await server.asked(6)
        for number in range(4):
            await server.lease(number + 1, 10 * number, 10, announce=not number)
        made.forks.gone = True
        await made.ended()
    assert made.errors[0].exit_status == 1


# ── dialling ────────────────────────────────────────────────────────────────────────────────


class Absent(MemoryNode):
    """A node whose server is not there for a while."""

    def __init__(self, fork_server, errors):
        super().__init__(MemoryListener(), fork_server)
        self.tries = []
        self._errors = list(errors)

    async def _connect_once(self):
        self.tries.append(trio.current_time())
        if self._errors:
            raise self._errors.pop(0)
        await trio.sleep_forever()


@in_trio
async def test_it_tries_again_ever_more_slowly_and_says_so_once(caplog):
    times = RETRY_FIRST_TIMES + 12
    refused = ConnectionRefusedError(111, "Connection refused")
    async with trio.open_nursery() as nursery:
        node = Absent(FakeForkServer(nursery, closed), [refused] * times)
        nursery.start_soon(node.run)
        await until(lambda: len(node.tries) == times + 1)
        nursery.cancel_scope.cancel()
    pauses = [round(two - one, 6) for one, two in zip(node.tries, node.tries[1:], strict=False)]
    assert pauses[:RETRY_FIRST_TIMES] == pytest.approx([RETRY_FIRST_S] * RETRY_FIRST_TIMES)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(RETRY_LAST_S)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "no server at memory:1 yet (Connection refused)" in said[0].getMessage()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (trio.TooSlowError(), "no answer within 10 s"),
        (trio.BrokenResourceError(), "the connection was cut"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError(113, "x"), "No route to host"),
    ],
)
@in_trio
async def test_why_there_is_no_server_is_told(error, words, caplog):
    async with trio.open_nursery() as nursery:
        node = Absent(FakeForkServer(nursery, closed), [error])
        nursery.start_soon(node.run)
        await until(lambda: len(node.tries) == 2)
        nursery.cancel_scope.cancel()
    assert words in caplog.text


class NoNames(trio.abc.HostnameResolver):
    """No name leaves this machine."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        raise OSError(-2, "Name or service not known")

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "ab--\u00e4", "\udcff"])
def test_a_host_that_cannot_be_a_name_is_an_error_of_its_user(host):
    async def main():
        trio.socket.set_custom_hostname_resolver(NoNames())
        node = Node(NodeOptions(host, 9, "n"), None, None)
        with trio.fail_after(5):
            await node._connect()

    with pytest.raises(UserError, match="is no host name"):
        trio.run(main)


def test_where_the_server_is_in_words():
    assert NodeOptions("::1", 8601, "n").where == "[::1]:8601"
    assert NodeOptions("host", 8601, "n").where == "host:8601"


# ── with the real server ────────────────────────────────────────────────────────────────────


def truth(segment, opened):
    found = expand(segment, b"".join(hit(segment, position) for position in sorted(opened)))
    return sorted((finding.address, finding.port) for finding in found)


@pytest.mark.parametrize("nodes", [1, 2, 5])
@in_trio
async def test_server_and_nodes_find_everything_and_end(nodes):
    segment = segment_of()
    opened = {0: set(range(0, segment.probes, 37))}
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment])
        forks = FakeForkServer(nursery, finds([segment], opened, 0.05))
        made = [MemoryNode(served.listener, forks, f"n{number}") for number in range(nodes)]
        for node in made:
            nursery.start_soon(node.run)
        await served.finished.wait()
        await until(lambda: all(node.ended for node in made), 1)
        await until(lambda: not forks.alive, 1)
    assert sorted(served.hub.found) == truth(segment, opened[0])
    assert len(served.hub.registrations) == nodes
    assert exit_status(served.server.scheduler) == 0


@in_trio
async def test_a_node_that_comes_when_the_scan_is_over_ends_well_and_at_once():
    segment = segment_of("198.18.0.1", "1")
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment])
        forks = FakeForkServer(nursery, finds([segment], {0: set()}))
        holding = await served.peer()  # until it says Bye, the server stays
        first = MemoryNode(served.listener, forks, "first")
        nursery.start_soon(first.run)
        await until(lambda: served.server.scheduler.finished)
        late = MemoryNode(served.listener, forks, "late")
        nursery.start_soon(late.run)
        await until(lambda: late.ended, 1)
        await holding.hear(Stop)
        await holding.channel.send(Bye())
        await served.finished.wait()


@in_trio
async def test_a_scan_of_two_pools_is_done_twice():
    segment = segment_of("198.18.0.0/28", "1-4")
    opened = {0: {1, 33}}
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], pools=2)
        forks = FakeForkServer(nursery, finds([segment], opened))
        for number in range(2):
            nursery.start_soon(MemoryNode(served.listener, forks, f"n{number}").run)
        await served.finished.wait()
    assert sorted(served.hub.found) == sorted(truth(segment, opened[0]) * 2)


@in_trio
async def test_a_slice_that_ends_workers_makes_status_3_and_all_else_is_found():
    segment = segment_of("198.18.0.1", "1-100")
    honest = finds([segment], {0: {3, 99}})

    async def behave(worker, work):
        if work.start <= 50 < work.start + work.count:
            raise Dies
        await honest(worker, work)

    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], slice_most=10)
        forks = FakeForkServer(nursery, behave)
        nursery.start_soon(MemoryNode(served.listener, forks).run)
        await served.finished.wait()
    assert sorted(served.hub.found) == truth(segment, {3, 99})
    assert served.server.scheduler.pools[0].errors == {"worker-died": 10}
    assert exit_status(served.server.scheduler) == 3


class World:
    """Everything that may go wrong, at moments drawn from a seed."""

    def __init__(self, nursery, seed):
        self.rng = random.Random(seed)
        self.nursery = nursery
        self.segment = segment_of("198.18.0.0/26", "1-20")
        self.opened = {0: set(self.rng.sample(range(self.segment.probes), 90))}
        self.scopes = {}

    async def work(self, worker, work):
        """Find in parts, at any speed; sometimes die instead."""
        rng = self.rng
        inside = range(work.start, work.start + work.count)
        found = sorted(self.opened[0].intersection(inside))
        await trio.sleep(rng.expovariate(3))
        if rng.random() < 0.1:
            some = rng.sample(found, rng.randint(0, len(found)))
            await worker.found(work, b"".join(hit(self.segment, n) for n in some), done=False)
        if rng.random() < 0.03:
            raise Dies
        await trio.sleep(rng.expovariate(3))
        await worker.found(work, b"".join(hit(self.segment, n) for n in found))

    async def begin(self):
        self.served = await serve(
            self.nursery,
            [self.segment],
            slice_most=self.rng.choice([0, 5, 40]),
            pools=self.rng.choice([1, 1, 2]),
        )
        self.forks = FakeForkServer(self.nursery, self.work)
        # Deaths are from outside here, so that no slice is given up.
        self.forks.ended = lambda: {each.pid: "killed by SIGKILL" for each in self.forks.workers}
        for number in range(self.rng.randint(2, 4)):
            self.start_node(f"n{number}")

    def start_node(self, name):
        node = MemoryNode(self.served.listener, self.forks, name, processes=self.rng.randint(1, 3))
        scope = self.scopes[name] = trio.CancelScope()

        async def live():
            with scope:
                await node.run()

        self.nursery.start_soon(live)

    async def trouble(self):
        """Until the scan is done."""
        rng, served = self.rng, self.served
        while not served.server.scheduler.finished:
            await trio.sleep(rng.expovariate(1.0))
            match rng.randrange(6):
                case 0 | 1 if served.listener.ends:
                    rng.choice(served.listener.ends).cut()
                case 2 if self.forks.alive:
                    rng.choice(self.forks.alive).die()
                case 3:
                    name = rng.choice(list(self.scopes))
                    self.scopes.pop(name).cancel()  # a node is killed, and another one started
                    self.start_node(f"{name}'")
                case 4:
                    served.hub.stand_still()
                    await trio.sleep(rng.expovariate(0.2))
                    served.hub.go_on()


@pytest.mark.parametrize("seed", range(25))
@in_trio
async def test_whatever_happens_each_hit_makes_one_event_and_the_scan_ends(seed):
    async with trio.open_nursery() as nursery:
        world = World(nursery, seed)
        await world.begin()
        await world.trouble()
        await world.served.finished.wait()
        nursery.cancel_scope.cancel()
    pools = len(world.served.server.scheduler.pools)
    expected = sorted(truth(world.segment, world.opened[0]) * pools)
    assert sorted(world.served.hub.found) == expected
    assert world.served.done == pools * world.segment.probes
    assert exit_status(world.served.server.scheduler) == 0


def test_limits_fit_together():
    # A node gives the server up later than the server sends its pulses, and asks within bounds.
    assert module.BEATS_MISSED_MAX >= 2
    assert UNACKNOWLEDGED_MAX < HELD_MAX


# ── hosts that need no more probes ──────────────────────────────────────────────────────────

HOSTS = b"\x04\xc6\x12\x00\x07" + bytes(12) + b"\x06" + bytes(15) + b"\x01"


@in_trio
async def test_what_the_server_says_of_hosts_reaches_the_workers_of_this_scan_alone():
    spares = Settings(first_open=True)
    async with site(stay=True) as made:
        server = await made.accept()
        register = await server.let_in("a", settings=spares)
        assert "first-open" in register.methods
        await server.channel.send(Shown(HOSTS))
        await until(lambda: len(made.forks.hosts) == 2)
        assert made.forks.hosts.has(HOSTS[:17])
        assert made.forks.hosts.has(HOSTS[17:])
        server.line.cut()
        server = await made.accept()  # back to the same scan: they are still known
        await server.let_in("a", settings=spares)
        await trio.sleep(1)
        assert len(made.forks.hosts) == 2
        await server.dismiss()
        server = await made.accept()
        await server.let_in("b", settings=spares)
        await until(lambda: len(made.forks.hosts) == 0)
        await server.dismiss()


@in_trio
async def test_in_a_scan_that_probes_all_a_server_s_word_of_hosts_is_passed_over():
    async with site() as made:
        server = await made.accept()
        await server.let_in()
        await server.channel.send(Shown(HOSTS))
        await server.dismiss()
        await made.ended()
        assert not made.errors
        assert len(made.forks.hosts) == 0
