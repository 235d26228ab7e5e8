"""What workers that make their own packets are told, and what stands in the way, in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

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
from test_node_neighbours import OTHER, THEIRS, FakeWire, arp
from test_node_routes import ETH, address, number, packed, route, snapshot
from test_node_supervisor import Bench, closed, leases

GATEWAY = packed("198.19.0.1")
OWN = packed("198.19.0.7")
SYN = Settings(tcp_method="syn", retries=3)
PERMANENT = Neighbour(ETH.index, GATEWAY, THEIRS, netlink.NUD_PERMANENT)


def tables() -> Snapshot:
    """198.18.0.0/16 behind a gateway, 198.19.0.0/16 on the link, and lo."""
    return snapshot(
        [
            route("198.18.0.0/16", (2, "198.19.0.1")),
            route("198.19.0.0/16", (2, "")),
            route("198.19.255.255/32", (2, ""), table=255, kind=netlink.RTN_BROADCAST),
            route("127.0.0.0/8", (1, ""), table=255, kind=netlink.RTN_LOCAL,
                  source=packed("127.0.0.1")),
        ],
        [address(2, "198.19.0.7/16")],
    )  # fmt: skip


class Wired(RawNet):
    """A `RawNet` on a wire that a test holds."""

    def __init__(self, *known: Neighbour) -> None:
        self.wire = FakeWire()
        super().__init__(routes_of(tables()), self.wire, known)


def heard(bench: Bench, kind: type) -> list[list[object]]:
    """What each worker, dead or alive, has heard of a kind."""
    return [[m for m in worker.heard if isinstance(m, kind)] for worker in bench.forks.workers]


# ── workers ─────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_each_worker_is_told_its_share_and_the_ways_out() -> None:
    async with trio.open_nursery() as nursery:
        net = Wired(PERMANENT)
        bench = Bench(nursery, closed, leases(6), settings=SYN, raw=net)
        await bench.until_done(6)
        told = [configure for [configure] in heard(bench, protocol.Configure)]
        raws = sorted((each.raw for each in told), key=lambda each: each.shard)
        assert [(each.shard, each.shards, each.retries) for each in raws] == [(0, 2, 3), (1, 2, 3)]
        assert [len(each.key) for each in raws] == [16, 16]
        assert raws[0].key != raws[1].key
        links = [(1, "lo", False, b"", 65536), (2, "eth0", True, ETH.mac, 1500)]
        first = [packed(f"198.{n}.0.0") for n in (18, 19)]
        last = [packed(text) for text in ("198.18.255.255", "198.19.255.254")]
        for each in raws:
            assert each.links == links
            assert each.routes == [
                (4, packed("127.0.0.0"), packed("127.255.255.255"), 0, packed("127.0.0.1"), b""),
                (4, first[0], last[0], 1, OWN, THEIRS),
                (4, first[1], last[1], 1, OWN, b""),
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
        bench = Bench(nursery, closed, [], settings=SYN, raw=Wired(PERMANENT), processes=600)
        await until(lambda: bench.forks.spawned == SHARDS_MAX)
        await trio.sleep(1)
        assert bench.forks.spawned == SHARDS_MAX
        await bench.stop()


@in_trio
async def test_workers_wait_for_gateways_and_do_without_those_that_are_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with trio.open_nursery() as nursery:
        net = Wired()
        before = trio.current_time()
        bench = Bench(nursery, closed, leases(2), settings=SYN, raw=net)
        await bench.until_done(2)
        assert trio.current_time() - before >= TRIES_MAX * TRY_S
        [[configure], _] = heard(bench, protocol.Configure)
        assert [row[1] for row in configure.raw.routes] == [
            packed("127.0.0.0"),
            packed("198.19.0.0"),
        ]
        assert "gateway 198.19.0.1 on eth0 does not answer" in caplog.text
        await net.wire.hear(arp(THEIRS, GATEWAY))
        assert "gateway 198.19.0.1 on eth0 answers now" in caplog.text
        await bench.stop()


@in_trio
async def test_no_gateway_is_asked_for_before_a_target_behind_it_is_known() -> None:
    here, away = segment_of("127.0.0.1", "1-20"), replace(segment_of("198.18.0.0/28"), id=1)
    async with trio.open_nursery() as nursery:
        net = Wired()
        bench = Bench(nursery, closed, leases(2), settings=SYN, raw=net, segments=[])
        await trio.sleep(60)
        assert heard(bench, protocol.Configure) == []
        bench.supervisor.add_segment(here)
        await bench.until_done(2)
        assert net.wire.sent == []
        [[first], _] = heard(bench, protocol.Configure)
        assert [row[1] for row in first.raw.routes] == [packed("127.0.0.0"), packed("198.19.0.0")]

        # A slice of the second must not come to workers that do not know the way.
        bench.supervisor.add_segment(away)
        bench.office.waiting += [Given(3, 1, 0, 10)]
        bench.supervisor.ask_again()
        await until(lambda: net.wire.sent)
        assert net.wire.sent[0][1] == request(ETH.mac, OWN, GATEWAY)
        await net.wire.hear(arp(THEIRS, GATEWAY))
        await bench.until_done(3)
        told = heard(bench, protocol.Configure)
        assert [len(each) for each in told] == [1] * 4
        assert [len(configure.raw.routes) for [configure] in told] == [2, 2, 3, 3]
        slices = heard(bench, protocol.Slice)
        assert [each.lease for worker in slices[2:] for each in worker] == [3]
        await bench.stop()


#: What names mean here: this machine, a neighbour, nothing, and hosts behind the gateway.
NAMES = {
    "here.example": [packed("127.0.0.1")],
    "near.example": [packed("198.19.0.9"), packed("198.19.0.9")],
    "gone.example": [],
    "listed.example": [packed("198.18.0.3")],
    "excluded.example": [packed("198.18.0.4")],
    "alias.example": [packed("198.18.0.4"), packed("127.0.0.2")],
    "refused.example": [packed("198.18.7.7"), packed("2001:db8::7")],
    "far.example": [packed("127.0.0.3"), packed("198.18.0.9")],
}
LOCAL = ("here.example", "near.example", "gone.example", "listed.example", "alias.example")


def named(*names: str, number: int = 0) -> Segment:
    """A segment of names, one of 10 probes each."""
    excluded = ["198.18.0.3", "excluded.example"]
    return replace(segment_of(names, exclude=excluded), id=number)


def resolver(patch: pytest.MonkeyPatch) -> Resolver:
    patch.setattr(trio.to_thread, "run_sync", inline)
    return Resolver(NAMES.__getitem__)


#: A /24 of each of the three networks.
POLICY = Policy.of(
    tuple(
        (number(f"{each}.0"), number(f"{each}.255")) for each in ("127.0.0", "198.18.0", "198.19.0")
    ),
    (),
    (),
    (),
    [(6, 1, 65535)],
)


@in_trio
async def test_a_gateway_is_asked_for_when_a_name_has_turned_out_to_lie_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = named(*LOCAL, "refused.example")
    async with trio.open_nursery() as nursery:
        net = Wired()
        # fmt: off
        bench = Bench(
            nursery, closed, leases(6), settings=SYN, raw=net, segments=[local], processes=2,
            resolver=resolver(monkeypatch), policy=POLICY,
        )
        # fmt: on
        await bench.until_done(6)
        assert net.wire.sent == []
        assert bench.forks.spawned == 2

        bench.supervisor.add_segment(named(*LOCAL, "far.example", number=1))
        bench.office.waiting += [Given(7 + n, 1, n * 10, 10) for n in range(6)]
        bench.supervisor.ask_again()
        await until(lambda: net.wire.sent)
        assert {frame for _, frame in net.wire.sent} == {request(ETH.mac, OWN, GATEWAY)}
        await net.wire.hear(arp(THEIRS, GATEWAY))
        await bench.until_done(12)
        told = heard(bench, protocol.Configure)
        assert [len(configure.raw.routes) for [configure] in told] == [2, 2, 3, 3]
        # What lies behind the gateway came to one that knows it.
        came = {
            each.lease: number
            for number, worker in enumerate(heard(bench, protocol.Slice))
            for each in worker
            if NAMES["far.example"] in each.addresses.values()
        }
        assert came
        assert all(number >= 2 for number in came.values())
        await bench.stop()


@in_trio
async def test_names_that_need_one_gateway_at_once_begin_again_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        net = Wired()
        # fmt: off
        bench = Bench(
            nursery, closed, leases(4, 2), settings=SYN, raw=net, processes=2,
            segments=[named("far.example")], resolver=resolver(monkeypatch),
        )
        # fmt: on
        await bench.until_done(4)  # nobody answers
        assert bench.forks.spawned == 4
        assert {frame for _, frame in net.wire.sent} == {request(ETH.mac, OWN, GATEWAY)}
        assert all(not worker for worker in heard(bench, protocol.Slice)[:2])
        await bench.stop()
    assert caplog.text.count("gateway 198.19.0.1 on eth0 does not answer") == 1
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
    settings: Settings, targets: list[str]
) -> None:
    away, here = segment_of(targets), replace(segment_of("127.0.0.1"), id=1)
    given = [Given(1, 0, 0, 10), Given(2, 1, 0, 10)]
    async with trio.open_nursery() as nursery:
        net = Wired()
        # fmt: off
        bench = Bench(
            nursery, closed, given, settings=settings, raw=net, segments=[away, here],
            policy=POLICY,
        )
        # fmt: on
        await bench.until_done(2)
        assert net.wire.sent == []
        await bench.stop()


@in_trio
async def test_what_a_worker_wonders_about_is_found_and_told() -> None:
    async def wonders(worker, work):
        await worker._say(protocol.Wonder([(1, packed("198.19.3.3")), (1, packed("198.19.4.4"))]))
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        net = Wired(PERMANENT)
        bench = Bench(nursery, wonders, leases(1), settings=SYN, raw=net)
        await until(lambda: len(net.wire.sent) == 2)
        assert net.wire.sent[0][1] == request(ETH.mac, OWN, packed("198.19.3.3"))
        await net.wire.hear(arp(OTHER, packed("198.19.3.3")))
        net.ask([(1, GATEWAY)])  # a target like others, and no news
        assert not net.moved.is_set()
        await trio.sleep(TRIES_MAX * TRY_S + 1)
        for told in heard(bench, protocol.Neighbours):
            assert [each for message in told for each in message.told if each[1] != GATEWAY] == [
                (1, packed("198.19.3.3"), OTHER),
                (1, packed("198.19.4.4"), None),
            ]
        await bench.stop()


@in_trio
async def test_work_begins_again_where_a_gateway_has_moved_but_not_at_each_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def slow(worker, work):
        await trio.sleep(10)
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        net = Wired()
        bench = Bench(nursery, slow, leases(2), settings=SYN, raw=net)
        await until(lambda: net.wire.sent)
        await net.wire.hear(arp(THEIRS, GATEWAY))
        await until(lambda: all(worker.heard for worker in bench.forks.workers))
        await trio.sleep(AGAIN_S)
        bench.office.waiting += [Given(number, 0, number * 10, 10) for number in (3, 4)]
        bench.supervisor.ask_again()
        await until(lambda: len(bench.supervisor.leases) == 2)
        for mac in (OTHER, THEIRS, OTHER):  # two machines that quarrel about an address
            await net.wire.hear(arp(mac, GATEWAY))
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
            Bench(nursery, unfit, leases(1), settings=SYN, raw=Wired(PERMANENT))
    assert caught.group_contains(WorkersFail, match="No buffer space")


@in_trio
async def test_lost_answers_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def loses(worker, work):
        counts = (0, work.count, 0, 0, 0, 0, 0, 0, 0)
        await worker._say(protocol.Found(work.lease, b"", True, counts, {}, 10, 7))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, loses, leases(4), settings=SYN, raw=Wired(PERMANENT))
        await bench.until_done(4)
        await bench.stop()
    assert caplog.text.count("answers were lost on this machine") == 1


# ── what stands in the way ──────────────────────────────────────────────────────────────────


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the tables above, whose user may do all."""
    monkeypatch.setattr(raw, "read_snapshot", tables)
    monkeypatch.setattr(raw, "read_neighbours", list)
    monkeypatch.setattr(raw, "demand_right", lambda **_: None)


@pytest.mark.usefixtures("here")
def test_targets_without_a_way_are_named(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(NoRoute, match=r"no route to 203\.0\.113\.0/24: there is nothing"):
            net_for([segment_of("203.0.113.0/24")])
        with pytest.raises(NoRoute, match=r"203\.0\.113\.1-203\.0\.113\.6"):
            net_for([segment_of("203.0.113.1-203.0.113.6")])
        with pytest.raises(NoRoute, match=r"no route to 2001:db8::/126, 2001:db8::7"):
            net_for([segment_of(["2001:db8::/126", "2001:db8::7"])])
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
        net = net_for([segment_of(["203.0.113.9", "198.18.0.0/24", "127.0.0.1"])])
        assert "no route to 203.0.113.9: probes to it count as errors" in caplog.text
        assert [span.last - span.first for span in net.routes.spans[4]] == [0, 255]
        assert len(net.routes.gateways()) == 1
        net = net_for([segment_of(["127.0.0.1"])])
        assert net.routes.gateways() == set()

    trio.run(main)


@pytest.mark.usefixtures("here")
def test_names_may_mean_anything(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        net = net_for([segment_of("localhost")])
        assert net.routes.find(4, number("198.18.0.1")) is not None
        assert net_for(None).routes.find(4, number("198.18.0.1")) is not None

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
            assert register.methods == ("connect", "syn", "discovery")
            bye = await server.hear(Bye)
            assert "CAP_NET_RAW" in bye.detail
            await made.ended()
    [error] = made.errors
    assert isinstance(error, NoRight)
    assert error.exit_status == 2


@in_trio
async def test_a_node_with_the_right_scans() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "net_for", lambda **_: Wired(PERMANENT))
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


def test_a_link_that_is_gone_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    gone = netlink.Link(77, "gone0", 1, 0x1043, ETH.mac, 1500)

    async def main() -> None:
        wire = PacketWire({77: gone})
        wire.send(77, request(ETH.mac, OWN, GATEWAY))
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
