"""What workers that make their own packets are told, and what stands in the way, in words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio

from core_lab import own
from fakes import Given, in_trio, inline, registration, segment_of, serve, until
from lab.namespaces import Namespace, require
from lab.nray import SOURCE, nray, run
from nray import UserError, _core
from nray.api.scan import settings_for
from nray.node import client, netlink, raw
from nray.node.kernel import Snapshot
from nray.node.neighbours import AGAIN_S, TRIES_MAX, TRY_S, PacketWire, request
from nray.node.netlink import Neighbour
from nray.node.policy import Policy
from nray.node.raw import NoRight, NoRoute, RawNet, demand_right, net_for
from nray.node.resolver import Resolver
from nray.node.routes import routes_of
from nray.node.supervisor import SHARDS_MAX, WorkersFail
from nray.targets.segment import Segment
from nray.wire.errors import Reason
from nray.wire.messages import Bye, Refused, Settings, Welcome
from nray.worker import protocol
from test_node_client import site
from test_node_neighbours import OTHER, THEIRS, FakeWire, reply
from test_node_routes import ETH, address, number, of, packed, route, snapshot
from test_node_supervisor import Bench, closed, leases

GATEWAY = {version: packed(of(version, "198.19.0.1")) for version in (4, 6)}
OWN = {version: packed(of(version, "198.19.0.7")) for version in (4, 6)}
SYN = Settings(tcp_method="syn", retries=3)
PERMANENT = {
    version: Neighbour(ETH.index, gateway, THEIRS, netlink.NUD_PERMANENT)
    for version, gateway in GATEWAY.items()
}
LOOPBACK = {4: ip_network("127.0.0.0/8"), 6: ip_network("::1/128")}


def tables(version: int = 4) -> Snapshot:
    """198.18.0.0/16 behind a gateway, 198.19.0.0/16 on the link, and lo; or as much of IPv6."""
    own_kind = {"table": 255, "kind": netlink.RTN_LOCAL, "source": packed(own(version))}
    routes = [
        route(of(version, "198.18.0.0/16"), (2, of(version, "198.19.0.1"))),
        route(of(version, "198.19.0.0/16"), (2, "")),
        route(str(LOOPBACK[version]), (1, ""), **own_kind),
    ]
    if version == 4:  # the other one has no broadcasts
        routes.append(route("198.19.255.255/32", (2, ""), table=255, kind=netlink.RTN_BROADCAST))
    return snapshot(routes, [address(2, of(version, "198.19.0.7/16"))])


class Wired(RawNet):
    """A `RawNet` on a wire that a test holds."""

    def __init__(self, *known: Neighbour, version: int = 4) -> None:
        self.wire = FakeWire()
        super().__init__(routes_of(tables(version)), self.wire, known)


def certain(version: int = 4) -> Wired:
    """With a gateway whose MAC is known for good."""
    return Wired(PERMANENT[version], version=version)


def target(version: int, text: str) -> bytes:
    return packed(of(version, text))


def behind(version: int) -> list[Segment]:
    """Targets that lie behind the gateway."""
    return [segment_of(of(version, "198.18.0.0/24"))]


def heard(bench: Bench, kind: type) -> list[list[object]]:
    """What each worker, dead or alive, has heard of a kind."""
    return [[m for m in worker.heard if isinstance(m, kind)] for worker in bench.forks.workers]


# ── workers ─────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_each_worker_is_told_its_share_and_the_ways_out(version: int) -> None:
    async with trio.open_nursery() as nursery:
        net = certain(version)
        bench = Bench(nursery, closed, leases(6), settings=SYN, raw=net, segments=behind(version))
        await bench.until_done(6)
        told = [configure for [configure] in heard(bench, protocol.Configure)]
        raws = sorted((each.raw for each in told), key=lambda each: each.shard)
        assert [(each.shard, each.shards, each.retries) for each in raws] == [(0, 2, 3), (1, 2, 3)]
        assert [len(each.key) for each in raws] == [16, 16]
        assert raws[0].key != raws[1].key
        links = [(1, "lo", False, b"", 65536), (2, "eth0", True, ETH.mac, 1500)]
        first = [target(version, f"198.{n}.0.0") for n in (18, 19)]
        last = [target(version, f"198.{n}.255.255") for n in (18, 19)]
        if version == 4:  # the last of all is a broadcast
            last[1] = packed("198.19.255.254")
        for each in raws:
            assert each.links == links
            assert each.routes == [
                (
                    version,
                    LOOPBACK[version][0].packed,
                    LOOPBACK[version][-1].packed,
                    0,
                    packed(own(version)),
                    b"",
                ),
                (version, first[0], last[0], 1, OWN[version], THEIRS),
                (version, first[1], last[1], 1, OWN[version], b""),
            ]
        # What a worker hears before it is told how to scan would break it.
        assert all(
            isinstance(worker.heard[0], protocol.Configure) for worker in bench.forks.workers
        )
        await bench.stop()
        assert net.wire.closed


@in_trio
async def test_there_are_no_more_workers_than_shares_of_the_source_ports() -> None:
    shards = {"key": bytes(16), "links": [], "routes": []}
    with open(os.memfd_create("rate"), "r+b") as memory:
        os.ftruncate(memory.fileno(), _core.Bucket.BYTES)
        bucket = _core.Bucket(memory.fileno())
        with pytest.raises(ValueError, match="shard"):
            _core.RawEngine(bucket, shards=SHARDS_MAX + 1, **shards)
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, [], settings=SYN, raw=certain(), processes=600)
        await until(lambda: bench.forks.spawned == SHARDS_MAX)
        await trio.sleep(1)
        assert bench.forks.spawned == SHARDS_MAX
        await bench.stop()


@in_trio
async def test_workers_wait_for_gateways_and_do_without_those_that_are_silent(
    version: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        before = trio.current_time()
        bench = Bench(nursery, closed, leases(2), settings=SYN, raw=net, segments=behind(version))
        await bench.until_done(2)
        assert trio.current_time() - before >= TRIES_MAX * TRY_S
        [[configure], _] = heard(bench, protocol.Configure)
        assert [row[1] for row in configure.raw.routes] == [
            LOOPBACK[version][0].packed,
            target(version, "198.19.0.0"),
        ]
        assert f"gateway {of(version, '198.19.0.1')} on eth0 does not answer" in caplog.text
        await net.wire.hear(reply(THEIRS, GATEWAY[version]))
        assert f"gateway {of(version, '198.19.0.1')} on eth0 answers now" in caplog.text
        await bench.stop()


@in_trio
async def test_no_gateway_is_asked_for_before_a_target_behind_it_is_known(version: int) -> None:
    here, away = (
        segment_of(own(version), "1-20"),
        replace(segment_of(of(version, "198.18.0.0/28")), id=1),
    )
    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        bench = Bench(nursery, closed, leases(2), settings=SYN, raw=net, segments=[])
        await trio.sleep(60)
        assert heard(bench, protocol.Configure) == []
        bench.supervisor.add_segment(here)
        await bench.until_done(2)
        assert net.wire.sent == []
        [[first], _] = heard(bench, protocol.Configure)
        assert [row[1] for row in first.raw.routes] == [
            LOOPBACK[version][0].packed,
            target(version, "198.19.0.0"),
        ]

        # A slice of the second must not come to workers that do not know the way.
        bench.supervisor.add_segment(away)
        bench.office.waiting += [Given(3, 1, 0, 10)]
        bench.supervisor.ask_again()
        await until(lambda: net.wire.sent)
        assert net.wire.sent[0][1] == request(ETH.mac, OWN[version], GATEWAY[version])
        await net.wire.hear(reply(THEIRS, GATEWAY[version]))
        await bench.until_done(3)
        told = heard(bench, protocol.Configure)
        assert [len(each) for each in told] == [1] * 4
        assert [len(configure.raw.routes) for [configure] in told] == [2, 2, 3, 3]
        slices = heard(bench, protocol.Slice)
        assert [each.lease for worker in slices[2:] for each in worker] == [3]
        await bench.stop()


def names(version: int) -> dict[str, list[bytes]]:
    mine = packed(own(version))
    # Of the family that the policy lets nothing through of.
    other = packed({4: "2001:db8::7", 6: "203.0.113.7"}[version])
    return {
        "here.example": [mine],
        "near.example": [target(version, "198.19.0.9"), target(version, "198.19.0.9")],
        "gone.example": [],
        "listed.example": [target(version, "198.18.0.3")],
        "excluded.example": [target(version, "198.18.0.4")],
        "alias.example": [target(version, "198.18.0.4"), mine],
        "refused.example": [target(version, "198.18.7.7"), other],
        "far.example": [mine, target(version, "198.18.0.9")],
    }


#: What names mean here: this machine, a neighbour, nothing, and hosts behind the gateway.
NAMES = {version: names(version) for version in (4, 6)}
LOCAL = ("here.example", "near.example", "gone.example", "listed.example", "alias.example")


def named(version: int, *names: str, number: int = 0) -> Segment:
    """A segment of names, one of 10 probes each."""
    excluded = [of(version, "198.18.0.3"), "excluded.example"]
    return replace(segment_of(names, exclude=excluded), id=number)


def resolver(patch: pytest.MonkeyPatch, version: int) -> Resolver:
    patch.setattr(trio.to_thread, "run_sync", inline)
    return Resolver(NAMES[version].__getitem__)


def policy_of(version: int) -> Policy:
    """256 addresses of each of the three networks; of IPv6 one is this machine's."""
    near = [(number(own(version)), number(own(version)) + (254 if version == 4 else 0))]
    for each in ("198.18.0", "198.19.0"):
        near.append((number(of(version, f"{each}.0")), number(of(version, f"{each}.255"))))
    ranges = {4: (), 6: ()} | {version: tuple(near)}
    return Policy.of(ranges[4], ranges[6], (), (), [(6, 1, 65535)])


POLICY = {version: policy_of(version) for version in (4, 6)}


@in_trio
async def test_a_gateway_is_asked_for_when_a_name_has_turned_out_to_lie_behind_it(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = named(version, *LOCAL, "refused.example")
    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        # fmt: off
        bench = Bench(
            nursery, closed, leases(6), settings=SYN, raw=net, segments=[local], processes=2,
            resolver=resolver(monkeypatch, version), policy=POLICY[version],
        )
        # fmt: on
        await bench.until_done(6)
        assert net.wire.sent == []
        assert bench.forks.spawned == 2

        bench.supervisor.add_segment(named(version, *LOCAL, "far.example", number=1))
        bench.office.waiting += [Given(7 + n, 1, n * 10, 10) for n in range(6)]
        bench.supervisor.ask_again()
        await until(lambda: net.wire.sent)
        assert {frame for _, frame in net.wire.sent} == {
            request(ETH.mac, OWN[version], GATEWAY[version])
        }
        await net.wire.hear(reply(THEIRS, GATEWAY[version]))
        await bench.until_done(12)
        told = heard(bench, protocol.Configure)
        assert [len(configure.raw.routes) for [configure] in told] == [2, 2, 3, 3]
        # What lies behind the gateway came to one that knows it.
        came = {
            each.lease: number
            for number, worker in enumerate(heard(bench, protocol.Slice))
            for each in worker
            if NAMES[version]["far.example"] in each.addresses.values()
        }
        assert came
        assert all(number >= 2 for number in came.values())
        await bench.stop()


@in_trio
async def test_names_that_need_one_gateway_at_once_begin_again_once(
    version: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        # fmt: off
        bench = Bench(
            nursery, closed, leases(4, 2), settings=SYN, raw=net, processes=2,
            segments=[named(version, "far.example")], resolver=resolver(monkeypatch, version),
        )
        # fmt: on
        await bench.until_done(4)  # nobody answers
        assert bench.forks.spawned == 4
        assert {frame for _, frame in net.wire.sent} == {
            request(ETH.mac, OWN[version], GATEWAY[version])
        }
        assert all(not worker for worker in heard(bench, protocol.Slice)[:2])
        await bench.stop()
    assert caplog.text.count(f"gateway {of(version, '198.19.0.1')} on eth0 does not answer") == 1
    assert "begin again" not in caplog.text  # no deaths


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        (Settings(pings=True), ["198.18.0.0/24"]),  # by connecting: hosts alone are pinged
        (SYN, ["127.0.0.1", "198.18.7.0/24"]),
        (SYN, ["198.18.7.0/24"]),
    ],
    ids=["not-raw", "refused-in-part", "refused"],
)
@in_trio
async def test_workers_begin_where_nothing_goes_to_a_gateway(
    version: int, settings: Settings, targets: list[str]
) -> None:
    away, here = (
        segment_of(
            [own(version) if each == "127.0.0.1" else of(version, each) for each in targets]
        ),
        replace(segment_of(own(version)), id=1),
    )
    given = [Given(1, 0, 0, 10), Given(2, 1, 0, 10)]
    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        # fmt: off
        bench = Bench(
            nursery, closed, given, settings=settings, raw=net, segments=[away, here],
            policy=POLICY[version],
        )
        # fmt: on
        await bench.until_done(2)
        assert net.wire.sent == []
        await bench.stop()


@in_trio
async def test_what_a_worker_wonders_about_is_found_and_told(version: int) -> None:
    async def wonders(worker, work):
        await worker._say(
            protocol.Wonder(
                [(1, target(version, "198.19.3.3")), (1, target(version, "198.19.4.4"))]
            )
        )
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        net = certain(version)
        bench = Bench(nursery, wonders, leases(1), settings=SYN, raw=net, segments=behind(version))
        await until(lambda: len(net.wire.sent) == 2)
        assert net.wire.sent[0][1] == request(ETH.mac, OWN[version], target(version, "198.19.3.3"))
        await net.wire.hear(reply(OTHER, target(version, "198.19.3.3")))
        net.ask([(1, GATEWAY[version])])  # a target like others, and no news
        assert not net.moved.is_set()
        await trio.sleep(TRIES_MAX * TRY_S + 1)
        for told in heard(bench, protocol.Neighbours):
            assert [
                each for message in told for each in message.told if each[1] != GATEWAY[version]
            ] == [
                (1, target(version, "198.19.3.3"), OTHER),
                (1, target(version, "198.19.4.4"), None),
            ]
        await bench.stop()


@in_trio
async def test_work_begins_again_where_a_gateway_has_moved_but_not_at_each_word(
    version: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(worker, work):
        await trio.sleep(10)
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        net = Wired(version=version)
        bench = Bench(nursery, slow, leases(2), settings=SYN, raw=net, segments=behind(version))
        await until(lambda: net.wire.sent)
        await net.wire.hear(reply(THEIRS, GATEWAY[version]))
        await until(lambda: all(worker.heard for worker in bench.forks.workers))
        await trio.sleep(AGAIN_S)
        bench.office.waiting += [Given(number, 0, number * 10, 10) for number in (3, 4)]
        bench.supervisor.ask_again()
        await until(lambda: len(bench.supervisor.leases) == 2)
        for mac in (OTHER, THEIRS, OTHER):  # two machines that quarrel about an address
            await net.wire.hear(reply(mac, GATEWAY[version]))
        await bench.until_done(4)
        told = heard(bench, protocol.Configure)
        assert [configure.raw.routes[1][5] for [configure] in told] == [THEIRS] * 2 + [OTHER] * 2
        shards = [configure.raw.shard for [configure] in told]
        assert [sorted(shards[:2]), sorted(shards[2:])] == [[0, 1], [0, 1]]
        await bench.stop()
    assert caplog.text.count("has another MAC now") == 1
    assert "begin again" not in caplog.text  # not a death


@in_trio
async def test_a_worker_that_cannot_ends_it_in_words() -> None:
    async def unfit(worker, work):
        await worker._say(protocol.Unfit("sockets for packets of its own: No buffer space"))

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            Bench(nursery, unfit, leases(1), settings=SYN, raw=certain())
    assert caught.group_contains(WorkersFail, match="No buffer space")


@in_trio
async def test_lost_answers_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def loses(worker, work):
        counts = (0, work.count, 0, 0, 0, 0, 0, 0, 0)
        await worker._say(protocol.Found(work.lease, b"", True, counts, {}, 10, 7))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, loses, leases(4), settings=SYN, raw=certain())
        await bench.until_done(4)
        await bench.stop()
    assert caplog.text.count("answers were lost on this machine") == 1


# ── what stands in the way ──────────────────────────────────────────────────────────────────


@pytest.fixture
def here(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the tables above, whose user may do all."""
    monkeypatch.setattr(raw, "read_snapshot", lambda: tables(version))
    monkeypatch.setattr(raw, "read_neighbours", list)
    monkeypatch.setattr(raw, "demand_right", lambda **_: None)


@pytest.mark.usefixtures("here")
def test_targets_without_a_way_are_named(version: int, caplog: pytest.LogCaptureFixture) -> None:
    def there(text: str) -> str:
        return of(version, text)

    one, other = there("203.0.113.1"), there("203.0.113.6")
    # Of the family that has no way at all.
    beyond = {4: ["2001:db8::/126", "2001:db8::7"], 6: ["203.0.113.0/30", "203.0.113.7"]}[version]

    async def main() -> None:
        lost = there("203.0.113.0/24")
        with pytest.raises(NoRoute, match=f"no route to {re.escape(lost)}: there is nothing"):
            net_for([segment_of(lost)])
        with pytest.raises(NoRoute, match=re.escape(f"{one}-{other}")):
            net_for([segment_of(f"{one}-{other}")])
        with pytest.raises(NoRoute, match=f"no route to {re.escape(', '.join(beyond))}"):
            net_for([segment_of(beyond)])
        assert caplog.text == ""
        net = net_for([segment_of([there("203.0.113.9"), there("198.18.0.0/24"), own(version)])])
        assert f"no route to {there('203.0.113.9')}: probes to it count as errors" in caplog.text
        assert sorted(span.last - span.first for span in net.routes.spans[version]) == [0, 255]
        assert len(net.routes.gateways()) == 1
        net = net_for([segment_of([own(version)])])
        assert net.routes.gateways() == set()

    trio.run(main)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("version", [4])
def test_groups_of_hosts_are_no_targets(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        groups = (
            r"no host has the address 198\.19\.255\.255, 255\.255\.255\.255, ff02::1 \(broadcast"
        )
        with pytest.raises(NoRoute, match=groups):
            net_for([segment_of(["198.19.255.255", "255.255.255.255", "ff02::1"])])
        assert caplog.text == ""
        net_for([segment_of(["198.19.255.248/29"])])
        told = "no host has the address 198.19.255.255 (broadcast or multicast): probes to it count"
        assert told in caplog.text
        assert "no route" not in caplog.text

    trio.run(main)


@pytest.mark.usefixtures("here")
def test_names_may_mean_anything(version: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        net = net_for([segment_of("localhost")])
        assert net.routes.find(version, number(of(version, "198.18.0.1"))) is not None
        assert net_for(None).routes.find(version, number(of(version, "198.18.0.1"))) is not None

    trio.run(main)
    assert caplog.text == ""


def refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_without_the_right_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw.socket, "socket", refuse)
    with pytest.raises(NoRight) as caught:
        demand_right()
    assert caught.value.exit_status == 2
    assert "CAP_NET_RAW" in caught.value.message
    program = os.path.realpath(sys.executable)
    assert f"sudo setcap cap_net_raw+ep {program};" in caught.value.hint
    assert "connecting instead" in caught.value.hint


def test_a_machine_that_is_no_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(raw.socket, "AF_PACKET")
    with pytest.raises(NoRight, match="not possible on this machine"):
        demand_right()


@in_trio
async def test_a_node_without_the_right_tells_its_server_and_ends() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw.socket, "socket", refuse)
        async with site() as made:
            server = await made.accept()
            register = await server.let_in(settings=SYN)
            assert register.methods == ("connect", "syn", "discovery", "first-open")
            bye = await server.hear(Bye)
            assert "CAP_NET_RAW" in bye.detail
            await made.ended()
    [error] = made.errors
    assert isinstance(error, NoRight)
    assert error.exit_status == 2


@in_trio
async def test_a_node_with_the_right_scans() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "net_for", lambda **_: certain())
        async with site(processes=1) as made:
            server = await made.accept()
            await server.let_in(settings=SYN)
            await server.asked(1)  # workers wait for what they are to scan
            await server.lease(1, 0, 10, announce=True)
            await until(lambda: made.forks.workers and len(made.forks.workers[0].heard) >= 3)
            [configure] = [
                m for m in made.forks.workers[0].heard if isinstance(m, protocol.Configure)
            ]
            assert configure.raw is not None


@in_trio
async def test_a_server_lets_no_node_in_that_would_connect_where_it_should_not() -> None:
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, settings=SYN)
        peer = await served.peer(register=False)
        await peer.hear(Welcome)
        old = registration(node_version="0.0.9", machine_id="m2", instance="i2")
        assert old.methods == ("connect",)  # what a node that does not know the field is taken for
        await peer.channel.send(old)
        refused = await peer.hear()
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.NOT_ALLOWED
        assert "method is syn, which nray 0.0.9 on this node does not know" in refused.detail
        peer = await served.peer(methods=("connect", "syn"))
        assert peer.registered.settings == SYN
        nursery.cancel_scope.cancel()


def test_a_link_that_is_gone_is_no_end(version: int, caplog: pytest.LogCaptureFixture) -> None:
    gone = netlink.Link(77, "gone0", 1, 0x1043, ETH.mac, 1500)

    async def main() -> None:
        wire = PacketWire({77: gone})
        wire.send(77, request(ETH.mac, OWN[version], GATEWAY[version]))
        with trio.move_on_after(0.01):
            await wire.receive()
        wire.close()

    trio.run(main)


@pytest.mark.parametrize(("method", "retries"), [("fin", 1), ("syn", 11), ("syn", -1)])
def test_scripts_are_told_what_there_is(method: str, retries: int) -> None:
    with pytest.raises(UserError):
        settings_for(timeout_s=1.0, method=method, retries=retries)


# ── for real, as an unprivileged user ───────────────────────────────────────────────────────

NOBODY = 65534


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an interpreter that anybody may run, with packages that anybody may read."""
    require("setpriv", "setcap")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = next(
        (path for each in ("/usr/bin", "/usr/local/bin") if (path := Path(each) / name).exists()),
        None,
    )
    if found is None:
        pytest.skip(f"no {name} outside of root's own directories")
    # Not pytest's own directory, which only its user may enter.
    place = Path("/tmp") / f"nray-raw-{os.getpid()}"
    place.mkdir(mode=0o755)
    copy = place / name
    shutil.copy(os.path.realpath(found), copy)
    copy.chmod(0o755)
    if as_nobody(copy, "-c", "import msgspec, trio, nray._core").returncode:
        shutil.rmtree(place)
        pytest.skip("an unprivileged user cannot read the packages of this environment")
    return copy


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Iterator[None]:
    yield
    shutil.rmtree(f"/tmp/nray-raw-{os.getpid()}", ignore_errors=True)


def as_nobody(program: Path, *arguments: str, inside: Namespace | None = None):
    packages = [str(SOURCE), *(path for path in sys.path if path.endswith("site-packages"))]
    command = [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "env", "HOME=/tmp", f"PYTHONPATH={os.pathsep.join(packages)}", "PYTHONDONTWRITEBYTECODE=1",
        str(program), *arguments,
    ]  # fmt: skip
    if inside is not None:
        command = inside.inside(command)
    return subprocess.run(command, capture_output=True, text=True, timeout=180, cwd="/")


@pytest.mark.lab
def test_an_unprivileged_user_gets_one_sentence_and_with_the_command_in_it_a_scan(
    interpreter: Path, alone: Namespace
) -> None:
    scan = ["-m", "nray", "scan", "--syn", "-t", "127.0.0.1", "-p", "9", "--timeout", "200ms"]
    files = interpreter.parent / "files"
    files.mkdir()
    files.chmod(0o777)
    refused = as_nobody(
        interpreter, *scan, "-o", f"{files}/out", "--state", f"{files}/state", inside=alone
    )
    assert list(files.iterdir()) == []
    assert refused.returncode == 2
    assert refused.stdout == ""
    [said, hint] = refused.stderr.strip().splitlines()
    assert "scanning with SYNs needs the right to raw sockets (CAP_NET_RAW)" in said
    told = f"setcap cap_net_raw+ep {interpreter}"
    assert f"sudo {told};" in hint
    # The command as it is told, run.
    subprocess.run(told.split(), check=True)
    done = as_nobody(interpreter, *scan, inside=alone)
    if "CAP_NET_RAW" in done.stderr:
        pytest.skip("capabilities of files do not count here (a mount with nosuid?)")
    assert done.returncode == 0, done.stderr
    assert "1 closed" in done.stderr


@pytest.mark.lab
def test_root_scans_and_a_resumed_scan_is_a_syn_scan_still(
    alone: Namespace, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    done = run(alone, nray("scan", "--syn", "-t", "127.0.0.1,::1", "-p", "9", "--state", state))
    done.expect(0)
    assert "2 closed" in done.stderr
    again = run(alone, nray("scan", "--resume", state, "--syn"))
    assert again.status == 2
    assert "--syn is settled" in again.stderr
