"""Certificates that change while a server and its nodes run."""

from __future__ import annotations

import datetime
import logging
import os
import signal
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

import pki_lab as lab
from cli_lab import command_line, free_port, own_address, started, until
from fakes import Peer, in_trio, segment_of, serve
from nray.api import credentials
from nray.api.credentials import (
    LOOK_EVERY_S,
    WARN_EVERY_S,
    NodeCredentials,
    ServerCredentials,
    TlsFiles,
)
from nray.api.serve import _but_for_tls
from nray.api.standing import standing_lines
from nray.config.reader import loads
from nray.config.writer import to_yaml
from nray.pki.allowed import AllowedNodes
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.verify import verify_node
from nray.server.tls import TlsDoorman
from nray.wire.channel import Channel
from nray.wire.errors import Reason
from nray.wire.messages import Ask, Lease, Refused
from nray.wire.states import NodeEnd

TODAY = datetime.datetime.now(datetime.UTC)
TIME = {"begin": TODAY - lab.DAY, "end": TODAY + 30 * lab.DAY}
LOG = logging.getLogger("nray.test")


class Office:
    """An authority, its files, and those of a server and of nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = lab.make_ca(lab.cn("office"), **TIME)
        self.write("ca.pem", lab.pem(self.ca))
        self.revoke()
        self.server = self.issue("server", lab.SERVER_AUTH)
        self.node = self.issue("node", lab.CLIENT_AUTH)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, data: bytes) -> None:
        """Whole, as one should: under another name first."""
        draft = self.directory / f"{name}.new"
        draft.write_bytes(data)
        draft.replace(self.directory / name)

    def issue(self, stem: str, use: object, name: str = "", **odd: object) -> lab.Made:
        names = [*lab.dns(name or "localhost"), *lab.ip("127.0.0.1", own_address(9))]
        san = names if use == lab.SERVER_AUTH else lab.dns(name or f"{stem}.lab")
        arguments = {"san": san, "eku": [use], **TIME, **odd}
        made = lab.make(lab.cn(stem), self.ca, **arguments)
        lab.write(self.directory, stem, made)
        return made

    def revoke(self, *made: lab.Made, **odd: object) -> None:
        times = {"begin": TODAY - lab.DAY, "end": TODAY + 30 * lab.DAY, **odd}
        self.write("crl.pem", lab.crl_pem(lab.make_crl(self.ca, *made, **times)))

    def server_end(self, *, crl: bool = True, **more: object) -> ServerCredentials:
        files = TlsFiles(
            self.path("server.pem"),
            self.path("server-key.pem"),
            self.path("ca.pem"),
            self.path("crl.pem") if crl else "",
        )
        return ServerCredentials(files, LOG, require_client=True, **more)

    def node_end(self, stem: str = "node", *, crl: bool = True) -> NodeCredentials:
        files = TlsFiles(
            self.path(f"{stem}.pem"),
            self.path(f"{stem}-key.pem"),
            self.path("ca.pem"),
            self.path("crl.pem") if crl else "",
        )
        return NodeCredentials(files, LOG, insecure=False, server_name=None)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


async def meet(server: ServerCredentials, node: NodeCredentials) -> tuple[object, object]:
    """What came of it at either end: the peer's serial number, or the reason."""
    ends = trio.testing.memory_stream_pair()
    got: dict[str, object] = {}

    async def accept() -> None:
        try:
            accepted = await server.accept(ends[0], timeout_s=10)
            got["server"] = accepted.peer.serial
        except PeerRejected as rejected:
            got["server"] = rejected.reason
        except trio.BrokenResourceError:
            got["server"] = "cut"

    async def connect() -> None:
        try:
            stream = await node.connect(ends[1], "localhost", timeout_s=10)
            got["node"] = stream.verified_peer.serial
        except PeerRejected as rejected:
            got["node"] = rejected.reason

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(connect)
    for end in ends:
        await trio.aclose_forcefully(end)
    return got["server"], got["node"]


def serial(made: lab.Made) -> int:
    return made.cert.serial_number


@in_trio
async def test_a_new_certificate_of_either_end_is_shown_to_the_next_peer(office):
    server, node = office.server_end(), office.node_end()
    assert await meet(server, node) == (serial(office.node), serial(office.server))
    new_server = office.issue("server", lab.SERVER_AUTH)
    assert await meet(server, node) == (serial(office.node), serial(new_server))
    new_node = office.issue("node", lab.CLIENT_AUTH)
    assert await meet(server, node) == (serial(new_node), serial(new_server))


@in_trio
async def test_a_bundle_is_read_again_as_a_whole(office):
    def bundle(made: lab.Made) -> None:
        office.write("node.nray", lab.pem(made) + lab.key_pem(made.key) + lab.pem(office.ca))

    bundle(office.node)
    files = TlsFiles(bundle=office.path("node.nray"), revocations=office.path("crl.pem"))
    node = NodeCredentials(files, LOG, insecure=False, server_name=None)
    server = office.server_end(crl=False)
    assert await meet(server, node) == (serial(office.node), serial(office.server))
    new = office.issue("new", lab.CLIENT_AUTH)
    bundle(new)
    assert await meet(server, node) == (serial(new), serial(office.server))
    office.write("node.nray", lab.pem(new) + lab.key_pem(lab.ec_key()) + lab.pem(office.ca))
    assert await meet(server, node) == (serial(new), serial(office.server))
    office.revoke(office.server)
    assert (await meet(server, node))[1] == "revoked"


@in_trio
async def test_a_revoked_node_is_refused_from_the_next_connection_on(office):
    server, node = office.server_end(), office.node_end()
    office.revoke(office.node)
    assert (await meet(server, node))[0] == "revoked"
    office.revoke()
    assert (await meet(server, node))[0] == serial(office.node)


@in_trio
async def test_and_a_revoked_server(office):
    server, node = office.server_end(), office.node_end()
    office.revoke(office.server)
    assert (await meet(server, node))[1] == "revoked"
    assert (await meet(server, office.node_end(crl=False)))[1] == serial(office.server)


@in_trio
async def test_a_new_authority_counts_for_both_ends(office):
    server, node = office.server_end(crl=False), office.node_end(crl=False)
    other = lab.make_ca(lab.cn("other"), **TIME)
    office.write("ca.pem", lab.pem(other))
    assert (await meet(server, node))[1] == "unknown-issuer"
    office.write("ca.pem", lab.pem(office.ca, other))
    assert await meet(server, node) == (serial(office.node), serial(office.server))


def break_key(office: Office) -> None:
    office.write("server-key.pem", lab.key_pem(lab.ec_key()))


def cut_certificate(office: Office) -> None:
    data = (office.directory / "server.pem").read_bytes()
    office.write("server.pem", data[: len(data) // 2])


def cut_list(office: Office) -> None:
    data = (office.directory / "crl.pem").read_bytes()
    office.write("crl.pem", data[: len(data) // 2])


def strange_list(office: Office) -> None:
    crl = lab.make_crl(lab.make_ca(lab.cn("office")), 7)
    office.write("crl.pem", lab.crl_pem(crl))


def empty_trust(office: Office) -> None:
    office.write("ca.pem", b"")


def no_list(office: Office) -> None:
    (office.directory / "crl.pem").unlink()


@pytest.mark.parametrize(
    ("harm", "file"),
    [
        (break_key, "server-key.pem"),
        (cut_certificate, "server.pem"),
        (cut_list, "crl.pem"),
        (strange_list, "crl.pem"),
        (empty_trust, "ca.pem"),
        (no_list, "crl.pem"),
    ],
)
@in_trio
async def test_bad_files_cost_one_warning_and_no_connection(office, caplog, harm, file):
    revoked = office.issue("gone", lab.CLIENT_AUTH)
    office.revoke(revoked)
    server = office.server_end()
    node, gone = office.node_end(crl=False), office.node_end("gone", crl=False)
    # The node looks at its own copies: here only the server's are harmed.
    office.write("own-ca.pem", lab.pem(office.ca))
    for end in (node, gone):
        end._trust = None
        end._tls._trust = [office.ca.cert]
    harm(office)
    for _ in range(3):
        assert await meet(server, node) == (serial(office.node), serial(office.server))
        assert (await meet(server, gone))[0] == "revoked"
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert office.path(file) in record.getMessage()
    assert "earlier files stay in use" in record.getMessage()


@in_trio
async def test_a_bad_certificate_does_not_keep_a_list_from_counting(office):
    server, node = office.server_end(), office.node_end()
    break_key(office)
    office.revoke(office.node)
    assert (await meet(server, node))[0] == "revoked"


@in_trio
async def test_nor_a_bad_trust_file_and_a_list_of_the_old_authority_stays(office, caplog):
    server, node = office.server_end(), office.node_end(crl=False)
    empty_trust(office)
    office.revoke(office.node)
    node._trust = None
    node._tls._trust = [office.ca.cert]
    assert (await meet(server, node))[0] == "revoked"
    assert "ca.pem: the file is empty" in caplog.text
    # A new authority, the list not yet: it counts, and those whom the old one revoked stay out.
    other = lab.make_ca(lab.cn("other"), **TIME)
    office.write("ca.pem", lab.pem(other))
    assert (await meet(server, node))[0] == "unknown-issuer"
    assert "crl.pem: the revocation list of" in caplog.text
    office.write("ca.pem", lab.pem(other, office.ca))
    assert (await meet(server, node))[0] == "revoked"


def test_a_bad_file_at_the_start_is_an_error(office):
    strange_list(office)
    with pytest.raises(PkiError, match=r"crl\.pem"):
        office.server_end()
    with pytest.raises(PkiError, match=r"crl\.pem"):
        office.node_end()


# ── nodes that are connected ────────────────────────────────────────────────────────────────


async def join(served, node: NodeCredentials, **changes) -> Peer:
    stream = await node.connect(await served.listener.dial(), "localhost", timeout_s=10)
    peer = Peer(Channel(stream, NodeEnd()))
    await peer.register(**changes)
    return peer


@in_trio
async def test_a_connected_node_that_is_revoked_is_turned_out_with_the_reason(office, caplog):
    server = office.server_end()
    other = office.issue("other", lab.CLIENT_AUTH)
    async with trio.open_nursery() as nursery:
        doorman = TlsDoorman(server)
        segments = [segment_of("198.18.0.1", "1-20")]
        served = await serve(nursery, segments, doorman=doorman, slice_most=10)
        first = await join(served, office.node_end(), instance="a")
        second = await join(served, office.node_end("other"), instance="b")
        await first.channel.send(Ask(2))
        leases = await first.leases(2)
        office.revoke(office.node)
        assert server.refresh(insist=True)
        refused = await first.hear(Refused)
        assert (refused.reason, refused.detail, refused.retry) == (Reason.REVOKED, "", False)
        assert "turned out a node" in caplog.text
        assert "broke the protocol" not in caplog.text
        # Its slices go to others at once, and the other one is still there.
        before = trio.current_time()
        await second.channel.send(Ask(2))
        again = await second.leases(2)
        assert [each.start for each in again] == [each.start for each in leases]
        assert trio.current_time() - before < 0.1
        assert server.objection(office_peer(other, office)) is None
        with pytest.raises(AssertionError, match="revoked"):
            await join(served, office.node_end(), instance="a")
        nursery.cancel_scope.cancel()


def office_peer(made: lab.Made, office: Office):
    return verify_node(made.cert, [], [office.ca.cert], TODAY)


@in_trio
async def test_one_that_registers_after_it_was_revoked_is_turned_out_too(office):
    """Verified before the list was read, registered after."""
    server = office.server_end()
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, doorman=TlsDoorman(server))
        stream = await office.node_end().connect(
            await served.listener.dial(), "localhost", timeout_s=10
        )
        peer = Peer(Channel(stream, NodeEnd()))
        await trio.sleep(1)
        office.revoke(office.node)
        server.refresh(insist=True)
        await peer.register()
        await peer.channel.send(Ask(1))
        assert (await peer.hear(Refused, Lease)).reason == Reason.REVOKED
        nursery.cancel_scope.cancel()


def test_what_counts_against_a_node_that_is_in(office):
    """Revocation, an authority that is trusted no more, a name; not that time has passed."""
    server = office.server_end(allowed=AllowedNodes(["*"]))
    peer = office_peer(office.node, office)
    assert server.objection(peer) is None
    server._tls._allowed = AllowedNodes(["other"])
    assert server.objection(peer).reason == "not-allowed"
    server._tls._allowed = None
    office.revoke(office.node)
    server.refresh(insist=True)
    assert server.objection(peer).reason == "revoked"
    other = lab.make_ca(lab.cn("other"), **TIME)
    office.write("ca.pem", lab.pem(other))
    crl = lab.make_crl(other, begin=TIME["begin"], end=TIME["end"])
    office.write("crl.pem", lab.crl_pem(crl))
    server.refresh(insist=True)
    assert server.objection(peer).reason == "unknown-issuer"


# ── in time ─────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_files_are_looked_at_while_nobody_connects(office):
    server = office.server_end()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch)
        await trio.sleep(1)
        office.revoke(office.node)
        before = trio.current_time()
        await server.changed()
        assert trio.current_time() - before <= LOOK_EVERY_S
        nursery.cancel_scope.cancel()


@in_trio
async def test_ends_are_warned_of_at_the_start_and_daily(office, caplog, monkeypatch):
    assert WARN_EVERY_S == 24 * 3600
    monkeypatch.setattr(credentials, "WARN_EVERY_S", 600.0)  # a test lasts an hour at most
    office.issue("server", lab.SERVER_AUTH, end=TODAY + 3.5 * lab.DAY)
    office.revoke(end=TODAY + 2.5 * lab.DAY)
    server = office.server_end()
    server.warn()
    assert "the certificate expires on" in caplog.text
    assert "in 3 days" in caplog.text
    assert 'the revocation list of "CN=office" is to be renewed on' in caplog.text
    assert server.briefly() == [
        "the certificate expires in 3 days",
        'the revocation list of "CN=office" expires in 2 days',
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch)
        await trio.sleep(2.5 * 600)
        nursery.cancel_scope.cancel()
    assert caplog.text.count("in 3 days") == 3


def test_a_stale_list_is_warned_of_and_still_counts(office, caplog):
    office.revoke(office.node, begin=TODAY - 9 * lab.DAY, end=TODAY - lab.DAY)
    server = office.server_end()
    server.warn()
    assert "whoever was revoked since is let in" in caplog.text
    assert server.objection(office_peer(office.node, office)).reason == "revoked"


# ── processes ───────────────────────────────────────────────────────────────────────────────


CONFIGURATION = """
listen: {port}
host: 127.0.0.1
statusPrintInterval: 200ms
TLS: {{CA: ca.pem, crl: crl.pem, cert: server.pem, key: server-key.pem, forceClientAuth: true}}
TLS.allowedNodes: [{nodes}]
targetgenerator.standard: {{targets: [127.0.0.1], tcpports: [1-60000], udpports: []}}
scannerconfig: {{workers: 10, ratelimit: 100}}
events.json-file.filename: out.json
"""


def node_arguments(port: int, stem: str = "node", *more: str) -> list[str]:
    return command_line(
        "node", "-s", "127.0.0.1", "-p", str(port), "--processes", "1", "--use-tls",
        "--tls-ca-cert", "ca.pem", "--tls-crl", "crl.pem", "--tls-client-cert", f"{stem}.pem",
        "--tls-client-key", f"{stem}-key.pem", *more,
    )  # fmt: skip


def test_processes_are_told_by_a_signal_and_users_in_words(office, tmp_path):
    port = free_port()
    (tmp_path / "conf.yaml").write_text(CONFIGURATION.format(port=port, nodes="'*.lab'"))
    shown = office.issue("server", lab.SERVER_AUTH, end=TODAY + 2.5 * lab.DAY)
    office.issue("foreign", lab.CLIENT_AUTH, "node.foreign")
    with (
        started(command_line("server", "-c", "conf.yaml"), tmp_path, "server") as server,
        started(node_arguments(port, "node", "--stay"), tmp_path, "node") as node,
    ):
        until(lambda: "registered at" in node.said, why=lambda: node.said)
        until(lambda: "certificate of node.lab" in server.said, why=lambda: server.said)
        until(lambda: "; the certificate expires in 2 days" in server.said)
        # A name that is not allowed.
        with started(node_arguments(port, "foreign"), tmp_path, "foreign") as foreign:
            assert foreign.end() == 1
            assert "takes no node of that name" in foreign.said
        assert "node.foreign matches no pattern of TLS.allowedNodes" in server.said
        # The whole group, workers too, as when a terminal hangs up.
        workers = set(node._members())
        assert len(workers) >= 3
        for process in (server, node):
            signal_group(process, signal.SIGHUP)
        until(lambda: "SIGHUP: certificates" in server.said and "SIGHUP: certificates" in node.said)
        assert server.popen.poll() is None
        assert node.popen.poll() is None
        assert workers <= set(node._members())
        office.revoke(office.node)
        server.popen.send_signal(signal.SIGHUP)
        assert node.end() == 1
        assert "the server refuses this node: the certificate was revoked" in node.said
        assert "node.pem; it needs a new one" in node.said
        assert "turned out a node" in server.said
        lines = standing_lines(str(tmp_path / "conf.yaml.ledger"))
        assert any("server.pem: the certificate expires on" in line for line in lines)
        # And a node of a server that was revoked.
        office.revoke(shown)
        office.issue("new", lab.CLIENT_AUTH)
        with started(node_arguments(port, "new"), tmp_path, "new") as new:
            assert new.end() == 1
            assert "the server's certificate is refused (revoked)" in new.said
            assert "needs a new certificate" in new.said
        server.interrupt()
        assert server.end() == 130


def test_tls_may_change_before_a_scan_goes_on_and_nothing_else(office):
    text = CONFIGURATION.format(port=1, nodes="'*'")
    before = loads(text)
    for change in ({"crl": "other.pem"}, {"allowed_nodes": ("a",)}, {"force_client_auth": False}):
        now = msgspec.structs.replace(before, tls=msgspec.structs.replace(before.tls, **change))
        assert _but_for_tls(to_yaml(before), now) == to_yaml(now)
    other = msgspec.structs.replace(before, pools=2)
    assert _but_for_tls(to_yaml(before), other) != to_yaml(other)
    assert _but_for_tls("no: such key", before) == "no: such key"


def signal_group(process, number: int) -> None:
    os.killpg(process.popen.pid, number)
