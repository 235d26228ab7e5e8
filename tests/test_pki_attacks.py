"""The table of attacks between two ends of ours, over sockets on loopback.

What is looked at is what a user sees: the reason at the end that refuses, and at the other end
the words. And that no byte of the application got across.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from OpenSSL import SSL

from nray import UserError
from nray.api.attend import NodeTlsFiles, attend
from nray.api.serve import _demand_loopback
from nray.config.reader import loads
from nray.node.client import _refusal
from nray.pki.allowed import AllowedNodes
from nray.pki.endpoint import NodeTls, ServerTls
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.keys import Identity
from nray.pki.stream import TlsError, TlsStream
from nray.server.server import reason_for
from nray.server.tls import TlsDoorman
from nray.wire.channel import Channel
from nray.wire.errors import EXPLANATIONS, RETRY_HELPS
from nray.wire.messages import Refused
from nray.wire.states import NodeEnd
from pki_attacks import CASES, Case, Shown, guest_on, leaf

VERSIONS = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION)
#: Far more than anything here takes.
PATIENCE_S = 120.0


@functools.cache
def trusted_server() -> Identity:
    """Of an end that is not in question."""
    made = leaf()
    return Identity(made.cert, (), made.key)


def shown_by(shown: Shown) -> Identity:
    return Identity(shown.leaf.cert, tuple(one.cert for one in shown.others), shown.leaf.key)


@dataclass
class Met:
    """What each end made of the other.

    Attributes:
        rejected: what the end that judges said; None if it took the peer, or never saw one.
        error: of TLS itself, at either end.
        peer: who was taken.
        got: application bytes that the end under judgement got.
        refused: what a node was told.
    """

    rejected: PeerRejected | None = None
    error: TlsError | None = None
    peer: object = None
    got: bytes = b""
    refused: Refused | None = None


def run(main: Callable[[], Awaitable[Met]]) -> Met:
    async def bounded() -> Met:
        with trio.fail_after(PATIENCE_S):
            return await main()

    return trio.run(bounded)


async def over_loopback(
    accept: Callable[[trio.SocketStream], Awaitable[None]],
    connect: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with listener:
                await accept(await listener.accept())

        nursery.start_soon(serve)
        await connect(await trio.open_tcp_stream(*listener.socket.getsockname()))


async def a_server_is_judged(case: Case, version: int) -> Met:
    shown = case.make()
    met = Met()
    server = ServerTls(shown_by(shown), None, False)
    node = NodeTls(
        [one.cert for one in shown.trust] or None,
        insecure=False,
        identity=None,
        server_name=shown.name,
        revocations=shown.revocations,
    )
    node._context.set_max_proto_version(version)

    async def accept(stream: trio.SocketStream) -> None:
        try:
            secured = (await server.accept(stream, timeout_s=PATIENCE_S)).stream
            met.got = await secured.receive_some()
            await secured.aclose()
        except (TlsError, trio.BrokenResourceError):
            pass  # the node broke off

    async def connect(stream: trio.SocketStream) -> None:
        try:
            secured = await node.connect(stream, "nowhere.example", timeout_s=PATIENCE_S)
            met.peer = secured.verified_peer
            await secured.send_all(b"REGISTER")
            await secured.aclose()
        except PeerRejected as rejected:
            met.rejected = rejected
        except TlsError as error:
            met.error = error

    await over_loopback(accept, connect)
    return met


class Seen(ServerTls):
    """Keeps what it said."""

    met: Met

    async def accept(self, transport, *, timeout_s, spent=None):
        try:
            return await super().accept(transport, timeout_s=timeout_s)
        except PeerRejected as rejected:
            self.met.rejected = rejected
            raise
        except TlsError as error:
            self.met.error = error
            raise


async def a_node_is_judged(case: Case, version: int) -> Met:
    """By the whole door of a server, and told by the whole end of a node."""
    shown = case.make()
    met = Met()
    server = Seen(
        trusted_server(),
        [one.cert for one in shown.trust],
        True,
        AllowedNodes(shown.allowed),
        shown.revocations,
    )
    server.met = met
    node = NodeTls(None, insecure=True, identity=shown_by(shown), server_name=None)
    node._context.set_max_proto_version(version)

    async def accept(stream: trio.SocketStream) -> None:
        admitted = await TlsDoorman(server).admit(stream, guest_on(stream))
        if admitted is not None:
            secured, _ = admitted
            assert isinstance(secured, TlsStream)
            met.peer = secured.verified_peer
            await secured.send_all(b"WELCOME")
            await secured.aclose()

    async def connect(stream: trio.SocketStream) -> None:
        try:
            secured = await node.connect(stream, "127.0.0.1", timeout_s=PATIENCE_S)
        except TlsError:
            return
        try:
            if case.reason is None:
                met.got = await secured.receive_some()
            else:
                message = await Channel(secured, NodeEnd()).receive()
                assert isinstance(message, Refused), message
                met.refused = message
        except trio.BrokenResourceError:
            pass  # an alert in place of words
        finally:
            await secured.aclose()

    await over_loopback(accept, connect)
    return met


def drive(
    case: Case,
    version: int,
    meeting: Callable[[Case, int], Awaitable[Met]],
    monkeypatch: pytest.MonkeyPatch,
    words: bytes,
) -> None:
    shown = case.make()
    if shown.leaf.key is None:
        pytest.skip("nobody holds its key: judged without a socket (test_pki_verify)")
    if not shown.trust:
        pytest.skip("an end that trusts nobody is not made (test_pki_endpoint)")
    monkeypatch.setattr("nray.pki.endpoint._now", lambda: shown.now)
    try:
        met = run(lambda: meeting(case, version))
    except PkiError as error:
        # OpenSSL does not even take it for our own.
        assert case.reason == "weak", error.message  # noqa: PT017
        return
    if case.reason is None:
        assert met.rejected is None
        assert met.error is None
        assert met.peer.serial == shown.leaf.cert.serial_number
        assert met.got == words
        return
    assert met.peer is None
    assert met.got == b""
    if met.rejected is None:
        # There was no handshake: OpenSSL itself signs nothing with a key that is too weak,
        # nor, in TLS 1.2, with one whose certificate does not say that it may sign.
        assert met.error is not None
        assert case.reason == "weak" or version == SSL.TLS1_2_VERSION
        return
    if met.rejected.reason == "none-shown":
        assert case.reason == "weak"  # OpenSSL kept it back
        return
    assert met.rejected.reason == case.reason
    assert case.detail in met.rejected.detail
    if meeting is a_node_is_judged:
        reason = reason_for(case.reason)
        assert met.refused == Refused(reason.value, "", reason in RETRY_HELPS)
        assert EXPLANATIONS[reason] in _refusal(met.refused).message


def cases(end: str) -> list:
    """Each in one version, by turns; `test_pki_foreign` drives it in the other one."""
    chosen = [case for case in CASES if end in case.ends]
    return [
        pytest.param(case, VERSIONS[(number + 1) % 2], id=case.title)
        for number, case in enumerate(chosen)
    ]


@pytest.mark.parametrize(("case", "version"), cases("s"))
def test_servers_before_a_node(case: Case, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(case, version, a_server_is_judged, monkeypatch, b"REGISTER")


@pytest.mark.parametrize(("case", "version"), cases("c"))
def test_nodes_before_a_server(case: Case, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(case, version, a_node_is_judged, monkeypatch, b"WELCOME")


# ── without TLS ─────────────────────────────────────────────────────────────────────────────


def test_without_tls_a_server_stays_on_loopback(caplog: pytest.LogCaptureFixture) -> None:
    open_to_all = loads("host: 0.0.0.0")
    with pytest.raises(UserError, match="read the findings and pose as a node") as caught:
        _demand_loopback(open_to_all, "conf.yaml", False)
    assert "TLS.enabled: true" in caught.value.hint
    assert "--allow-plaintext" in caught.value.hint
    _demand_loopback(open_to_all, "conf.yaml", True)
    (record,) = caplog.records
    assert "anybody there can read the findings and pose as a node" in record.getMessage()
    _demand_loopback(loads("host: '::1'"), "conf.yaml", False)
    assert len(caplog.records) == 1


def test_without_tls_a_node_stays_on_loopback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent: what comes after the question is cut off."""

    class Reached(Exception):
        pass

    def reached() -> None:
        raise Reached

    monkeypatch.setattr("nray.api.attend.start_fork_server", reached)
    node = functools.partial(
        attend, port=9, name=None, preferred_pool=-1, processes=1, stay=False, tls=NodeTlsFiles()
    )
    with pytest.raises(UserError, match="everybody on the way to 198"):
        node(host="198.18.0.1", allow_plaintext=False)
    with pytest.raises(Reached):
        node(host="127.0.0.1", allow_plaintext=False)
    assert not caplog.records
    with pytest.raises(Reached):
        node(host="198.18.0.1", allow_plaintext=True)
    (record,) = caplog.records
    assert "read the findings" in record.getMessage()
    assert "make this node scan what they like" in record.getMessage()
