"""Both ends together: who gets in, who is told why not, and what strangers do to a server.

The other end is, by turns, ours, the standard library's `ssl` (another OpenSSL, another code
path), and bytes that are no TLS at all.
"""

from __future__ import annotations

import datetime
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from OpenSSL import SSL

import pki_lab as lab
from nray.pki import authority, contexts
from nray.pki.endpoint import AcceptedPeer, NodeTls, ServerTls, close_gently
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.keys import Identity
from nray.pki.stream import TlsError, TlsStream

TODAY = datetime.datetime.now(datetime.UTC)
TIME = {"begin": TODAY - lab.DAY, "end": TODAY + lab.DAY}
REFUSED = b"REFUSED: unknown-issuer"
VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])


def identity_of(made: lab.Made | authority.Pair, *chain: lab.Made) -> Identity:
    return (
        Identity(made[0], (), made[1])
        if isinstance(made, authority.Pair)
        else Identity(made.cert, tuple(one.cert for one in chain), made.key)
    )


class Lab:
    """An ordinary authority of ours, and an attacker's of the same subject."""

    def __init__(self) -> None:
        self.ca = authority.create_authority("lab", 1)
        self.trust = [self.ca.certificate]
        self.server = identity_of(authority.issue_server(self.ca, ["localhost", "127.0.0.1"], 1))
        self.node = identity_of(authority.issue_node(self.ca, "node 7", 1))
        evil = lab.make_ca(self.ca.certificate.subject, **TIME)
        self.evil_server = identity_of(
            lab.make(lab.cn("evil"), evil, san=lab.dns("localhost"), **TIME)
        )
        self.evil_node = identity_of(lab.make(lab.cn("evil"), evil, **TIME))


@pytest.fixture(scope="module")
def pki() -> Lab:
    return Lab()


def run(main: Callable[..., Awaitable[object]]) -> None:
    """On a clock that jumps: a hang is an error at once, and no test sleeps."""

    async def bounded() -> None:
        with trio.fail_after(3600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0.01))


def server_tls(pki: Lab, **other: object) -> ServerTls:
    arguments = {"identity": pki.server, "trust": pki.trust, "require_client": True, **other}
    return ServerTls(**arguments)


def node_tls(pki: Lab, version: int | None = None, **other: object) -> NodeTls:
    arguments = {
        "trust": pki.trust, "insecure": False, "identity": pki.node, "server_name": None, **other
    }  # fmt: skip
    node = NodeTls(arguments.pop("trust"), **arguments)
    if version is not None:
        node._context.set_max_proto_version(version)
    return node


class Meeting:
    """What came of a server's accept and a node's connect: a result or an exception each."""

    accepted: AcceptedPeer
    connected: TlsStream
    server_error: Exception | None = None
    node_error: Exception | None = None


@asynccontextmanager
async def meeting(
    server: ServerTls, node: NodeTls, host: str = "localhost"
) -> AsyncIterator[Meeting]:
    ends = trio.testing.memory_stream_pair()
    met = Meeting()

    async def accept() -> None:
        try:
            met.accepted = await server.accept(ends[0], timeout_s=10)
        except (PeerRejected, TlsError) as error:
            met.server_error = error

    async def connect() -> None:
        try:
            met.connected = await node.connect(ends[1], host, timeout_s=10)
        except (PeerRejected, TlsError) as error:
            met.node_error = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(connect)
    yield met
    for end in ends:
        await trio.aclose_forcefully(end)


async def both_ways(met: Meeting) -> None:
    await met.accepted.stream.send_all(b"WELCOME")
    assert await met.connected.receive_some() == b"WELCOME"
    await met.connected.send_all(b"REGISTER")
    assert await met.accepted.stream.receive_some() == b"REGISTER"


# ── who gets in ─────────────────────────────────────────────────────────────────────────────


@VERSIONS
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST."])
def test_mutual(pki: Lab, version: int, host: str) -> None:
    async def main() -> None:
        async with meeting(server_tls(pki), node_tls(pki, version), host) as met:
            assert met.accepted.peer is not None
            assert met.accepted.peer.identity == "node 7"
            assert met.accepted.stream.verified_peer == met.accepted.peer
            assert met.connected.verified_peer is not None
            assert met.connected.verified_peer.identity == "localhost"
            sni = met.accepted.stream._connection.get_servername()
            assert sni == (None if host == "127.0.0.1" else b"localhost")
            await both_ways(met)

    run(main)


@VERSIONS
def test_a_node_without_certificate_where_it_is_optional_is_anonymous(
    pki: Lab, version: int
) -> None:
    async def main() -> None:
        node = node_tls(pki, version, identity=None)
        async with meeting(server_tls(pki, require_client=False), node) as met:
            assert met.accepted.peer is None
            await both_ways(met)

    run(main)


@VERSIONS
def test_a_server_that_does_not_ask_sees_no_certificate(pki: Lab, version: int) -> None:
    async def main() -> None:
        server = server_tls(pki, trust=None, require_client=False)
        for identity in (pki.node, pki.evil_node, None):
            async with meeting(server, node_tls(pki, version, identity=identity)) as met:
                assert met.accepted.peer is None
                assert met.accepted.stream.unverified_certificates() is None
                await both_ways(met)

    run(main)


@VERSIONS
def test_sub_authorities_are_sent_along_by_both_ends(pki: Lab, version: int) -> None:
    async def main() -> None:
        root = lab.make_ca(lab.GUIDE, **TIME)
        sub = lab.make_ca(lab.GUIDE, root, aki=False, **TIME)
        leaves = [
            lab.make(lab.GUIDE, sub, aki=False, san=lab.dns("localhost"), **TIME) for _ in range(2)
        ]
        server = ServerTls(identity_of(leaves[0], sub), [root.cert], True)
        node = node_tls(pki, version, trust=[root.cert], identity=identity_of(leaves[1], sub))
        async with meeting(server, node) as met:
            assert met.accepted.peer is not None
            await both_ways(met)

    run(main)


@VERSIONS
def test_insecure_takes_any_server(pki: Lab, version: int) -> None:
    async def main() -> None:
        server = server_tls(pki, identity=pki.evil_server)
        for host in ("localhost", "under_score", "10.9.8.7"):
            node = node_tls(pki, version, trust=None, insecure=True)
            async with meeting(server, node, host) as met:
                assert met.connected.verified_peer is None
                await both_ways(met)

    run(main)


def test_an_override_replaces_the_name_and_nothing_else(pki: Lab) -> None:
    async def main() -> None:
        override = node_tls(pki, server_name="localhost")
        async with meeting(server_tls(pki), override, "10.0.0.1") as met:
            assert met.accepted.stream._connection.get_servername() == b"localhost"
            await both_ways(met)
        async with meeting(server_tls(pki, identity=pki.evil_server), override) as met:
            assert isinstance(met.node_error, PeerRejected)
            assert met.node_error.reason == "unknown-issuer"
        wrong = node_tls(pki, server_name="other.org")
        async with meeting(server_tls(pki), wrong, "localhost") as met:
            assert isinstance(met.node_error, PeerRejected)
            assert met.node_error.reason == "wrong-name"
            assert "DNS:localhost, IP:127.0.0.1" in met.node_error.detail

    run(main)


# ── who does not ────────────────────────────────────────────────────────────────────────────


@VERSIONS
def test_a_node_turns_a_false_server_away(pki: Lab, version: int) -> None:
    async def main() -> None:
        server = server_tls(pki, identity=pki.evil_server, require_client=False)
        async with meeting(server, node_tls(pki, version, identity=None)) as met:
            assert isinstance(met.node_error, PeerRejected)
            assert met.node_error.reason == "unknown-issuer"
            # The server sees an end in order, and no byte of the application; or, if the node
            # was gone before the last of its own flight (1.3: tickets), a broken handshake.
            if met.server_error is None:
                assert await met.accepted.stream.receive_some() == b""
            else:
                assert "closed the connection in the handshake" in str(met.server_error)

    run(main)


@VERSIONS
@pytest.mark.parametrize("require_client", [True, False])
def test_a_false_node_is_told_so_in_a_last_frame(
    pki: Lab, version: int, require_client: bool
) -> None:
    """Also where certificates are optional: one that is shown must verify."""

    async def main() -> None:
        server = server_tls(pki, require_client=require_client)
        node = node_tls(pki, version, identity=pki.evil_node)
        async with meeting(server, node) as met:
            rejected = met.server_error
            assert isinstance(rejected, PeerRejected)
            assert rejected.reason == "unknown-issuer"
            assert rejected.stream is not None
            assert rejected.stream.verified_peer is None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_gently, rejected.stream, REFUSED, 5, 1000)
                assert await met.connected.receive_some() == REFUSED
                assert await met.connected.receive_some() == b""
                await met.connected.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await rejected.stream.send_all(b"x")

    run(main)


@VERSIONS
def test_no_certificate_where_one_is_demanded(pki: Lab, version: int) -> None:
    async def main() -> None:
        node = node_tls(pki, version, identity=None)
        async with meeting(server_tls(pki), node) as met:
            assert isinstance(met.server_error, PeerRejected)
            assert met.server_error.reason == "none-shown"
            assert met.server_error.stream is None
            if version == SSL.TLS1_2_VERSION:
                assert "--tls-client-cert" in str(met.node_error)
            else:  # the node's handshake had ended before
                with pytest.raises(TlsError, match=r"asks for a certificate.*--tls-client-cert"):
                    await met.connected.receive_some()

    run(main)


def test_a_server_that_wants_a_certificate_needs_an_authority(pki: Lab) -> None:
    with pytest.raises(PkiError, match="no authority") as caught:
        server_tls(pki, trust=None)
    assert "TLS.CA" in caught.value.hint
    for required in (True, False):
        with pytest.raises(PkiError, match="no authority"):
            server_tls(pki, trust=[], require_client=required)


@pytest.mark.parametrize("trust", [None, []])
def test_a_node_needs_an_authority_or_the_word_insecure(pki: Lab, trust: list | None) -> None:
    with pytest.raises(PkiError) as caught:
        node_tls(pki, trust=trust)
    assert "--tls-ca-cert" in caught.value.hint


def test_names_that_cannot_be_checked_are_told_before_anything_is_sent(pki: Lab) -> None:
    with pytest.raises(PkiError, match="my_host"):
        node_tls(pki, server_name="my_host")

    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()
        with pytest.raises(PkiError, match="my_host"):
            await node_tls(pki).connect(here, "my_host", timeout_s=1)
        assert await there.receive_some() == b""  # closed, and nothing came

    run(main)


# ── the other end is the standard library's ─────────────────────────────────────────────────


def old_client(
    tmp_path: Path, made: lab.Made | None, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """A peer that checks nothing, at OpenSSL's security level 0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _at_level_0(context, version)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if made is not None:
        context.load_cert_chain(*lab.write(tmp_path, "peer", made))
    return context


def _at_level_0(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version or ssl.TLSVersion.TLSv1
    if version is not None:
        context.maximum_version = version


async def accept_foreign(server: ServerTls, context: ssl.SSLContext) -> Meeting:
    ends = trio.testing.memory_stream_pair()
    met = Meeting()

    async def connect() -> None:
        try:
            await trio.SSLStream(ends[1], context, server_hostname="localhost").do_handshake()
        except trio.BrokenResourceError as error:
            met.node_error = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        try:
            met.accepted = await server.accept(ends[0], timeout_s=10)
        except (PeerRejected, TlsError) as error:
            met.server_error = error
    return met


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_weak_leaves_pass_the_handshake_and_not_the_judge(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """An always-yes callback switches OpenSSL's security level off for the peer's chain."""
    ca = lab.make_ca(lab.cn("ca"), key=lab.rsa_key(0), **TIME)
    small = lab.rsa.generate_private_key(65537, 1024)
    weak = [lab.make(lab.cn("weak"), ca, key=small, **TIME)]
    weak.append(
        lab.signed_by_openssl(
            tmp_path, ca, "/CN=old", digest="sha1",
            extensions="basicConstraints=critical,CA:FALSE\nextendedKeyUsage=clientAuth",
        )
    )  # fmt: skip
    server_leaf = lab.make(lab.cn("server"), ca, **TIME)
    server = ServerTls(identity_of(server_leaf), [ca.cert], True)

    async def main() -> None:
        for made in weak:
            met = await accept_foreign(server, old_client(tmp_path, made, version))
            assert met.node_error is None
            assert isinstance(met.server_error, PeerRejected)
            assert met.server_error.reason == "weak"
            assert met.server_error.stream is not None
            await trio.aclose_forcefully(met.server_error.stream)

    run(main)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_foreign_client_that_is_in_order_gets_in(
    pki: Lab, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    made = lab.Made(pki.node.leaf, pki.node.key)

    async def main() -> None:
        met = await accept_foreign(server_tls(pki), old_client(tmp_path, made, version))
        assert met.accepted.peer is not None
        await trio.aclose_forcefully(met.accepted.stream)

    run(main)


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA"])
def test_no_cipher_without_forward_secrecy_or_with_cbc(tmp_path: Path, cipher: str) -> None:
    ca = lab.make_ca(lab.cn("ca"), key=lab.rsa_key(0), **TIME)
    leaf = lab.make(lab.cn("server"), ca, key=lab.rsa_key(1), **TIME)
    server = ServerTls(identity_of(leaf), None, False)

    async def main() -> None:
        context = old_client(tmp_path, None, ssl.TLSVersion.TLSv1_2)
        met = await accept_foreign(server, context)  # the control: with all ciphers
        await trio.aclose_forcefully(met.accepted.stream)
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")
        met = await accept_foreign(server, context)
        assert "no cipher in common" in str(met.server_error)

    run(main)


OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", OLD)
def test_old_clients_are_refused(pki: Lab, tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        met = await accept_foreign(server_tls(pki), old_client(tmp_path, None, version))
        assert isinstance(met.server_error, TlsError)
        assert "TLS 1.2 is the least" in str(met.server_error)
        assert "PROTOCOL_VERSION" in repr(met.node_error.__cause__)

    run(main)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", OLD)
def test_old_servers_are_refused(pki: Lab, tmp_path: Path, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _at_level_0(context, version)
    context.load_cert_chain(
        *lab.write(tmp_path, "server", lab.Made(pki.server.leaf, pki.server.key))
    )

    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()

        async def serve() -> None:
            # By hand: trio.SSLStream keeps the alert of a failed handshake to itself.
            coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
            old = context.wrap_bio(coming, going, server_side=True)
            coming.write(await there.receive_some())
            with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
                old.do_handshake()
            await there.send_all(going.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(TlsError, match=r"TLS 1\.2 is the least"):
                await node_tls(pki, insecure=True).connect(here, "localhost", timeout_s=10)

    run(main)


# ── the other end is no TLS at all ──────────────────────────────────────────────────────────

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SSLV2_HELLO = bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0")
NOISE = random.Random(8601).randbytes(3000)


async def outcome(server: ServerTls, data: bytes, *, then_end: bool = False) -> tuple[str, float]:
    """What `accept` says to these bytes, and after how many seconds; everything is closed."""
    here, there = trio.testing.memory_stream_pair()
    await there.send_all(data)
    if then_end:
        await there.send_eof()
    begin = trio.current_time()
    with pytest.raises(TlsError) as caught:
        await server.accept(here, timeout_s=10)
    with pytest.raises(trio.ClosedResourceError):
        await here.send_all(b"x")
    return str(caught.value), trio.current_time() - begin


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(HTTP, "plain HTTP", id="HTTP"),
        pytest.param(b"CONNECT x:1 HTTP/1.1\r\n\r\n", "HTTP proxy", id="HTTP proxy"),
        pytest.param(NOISE, "TLS", id="noise"),
        pytest.param(bytes(100), "TLS", id="zeroes"),
        pytest.param(b"\x00\x00\x00\x10" + b"\x81\xa4type" * 9, "TLS", id="our plain protocol"),
        pytest.param(SSLV2_HELLO, "TLS", id="SSLv2 hello"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(70000), "TLS", id="oversize record"),
        pytest.param(b"\x17\x03\x03\x00\x05hello", "TLS", id="data before a handshake"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "TLS", id="hello of 16 MiB"),
    ],
)
def test_strangers_are_an_error_at_once(pki: Lab, data: bytes, words: str) -> None:
    async def main() -> None:
        said, seconds = await outcome(server_tls(pki), data)
        assert words in said
        assert seconds == 0

    run(main)


def hello() -> bytes:
    connection = contexts.node_connection(contexts.node_context(None), "localhost")
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16", hello()[:100], b"\x16\x03\x01\x3f\xff\x01"],
    ids=["nothing", "one byte", "a part", "a header"],  # the hello has random bytes
)
def test_who_says_too_little_waits_for_the_time_limit(pki: Lab, data: bytes) -> None:
    async def main() -> None:
        said, seconds = await outcome(server_tls(pki), data)
        assert "no TLS handshake within 10 s" in said
        assert 9.9 <= seconds <= 10.1
        said, seconds = await outcome(server_tls(pki), data, then_end=True)
        assert "cut in the handshake" in said
        assert seconds == 0

    run(main)


def test_the_time_limit_holds_against_single_bytes_now_and_then(pki: Lab) -> None:
    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()

        async def drip() -> None:
            for byte in hello():
                await there.send_all(bytes([byte]))
                await trio.sleep(1.1)  # never at the very moment of the limit

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            with pytest.raises(TlsError, match="within 10 s"):
                await server_tls(pki).accept(here, timeout_s=10)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_node_at_a_server_without_tls_is_told_so(pki: Lab) -> None:
    async def main(answer: bytes) -> None:
        here, there = trio.testing.memory_stream_pair()
        await there.send_all(answer)
        with pytest.raises(TlsError) as caught:
            await node_tls(pki).connect(here, "localhost", timeout_s=10)
        assert "TLS (is it switched on there?)" in str(caught.value)

    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 60):
        run(lambda answer=answer: main(answer))


def test_a_node_at_a_silent_server_gives_up(pki: Lab) -> None:
    async def main() -> None:
        here, _ = trio.testing.memory_stream_pair()
        with pytest.raises(TlsError, match="within 3 s"):
            await node_tls(pki).connect(here, "localhost", timeout_s=3)
        with pytest.raises(trio.ClosedResourceError):
            await here.send_all(b"x")

    run(main)


def test_cancellation_closes_the_connection(pki: Lab) -> None:
    async def main() -> None:
        here, _ = trio.testing.memory_stream_pair()
        with trio.move_on_after(1):
            await server_tls(pki).accept(here, timeout_s=10)
        with pytest.raises(trio.ClosedResourceError):
            await here.send_all(b"x")
        here, _ = trio.testing.memory_stream_pair()
        with trio.move_on_after(1):
            await node_tls(pki).connect(here, "localhost", timeout_s=10)
        with pytest.raises(trio.ClosedResourceError):
            await here.send_all(b"x")

    run(main)


def test_an_error_of_ours_in_the_judgement_leaks_nothing(
    pki: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("nray.pki.endpoint.verify_node", fail)

    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: node_tls(pki).connect(there, "localhost", timeout_s=10))
            with pytest.raises(MemoryError):
                await server_tls(pki).accept(here, timeout_s=10)
        with pytest.raises(trio.ClosedResourceError):
            await here.send_all(b"x")

    run(main)


# ── last words ──────────────────────────────────────────────────────────────────────────────


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """A real TCP connection on loopback: memory knows no resets."""
    listener = socket.create_server(("127.0.0.1", 0))
    near = await trio.open_tcp_stream(*listener.getsockname())
    far, _ = listener.accept()
    listener.close()
    far.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(far)), near


@VERSIONS
@pytest.mark.parametrize("required", [True, False])
def test_the_reason_arrives_at_a_node_that_sends_early(
    pki: Lab, version: int, required: bool
) -> None:
    """An immediate close would answer the node's bytes with a reset, and lose the reason."""

    async def main() -> None:
        far, near = await socket_pair()
        identity = pki.evil_node if not required else None
        node = node_tls(pki, version, identity=identity)

        async def refuse() -> None:
            with pytest.raises(PeerRejected) as caught:
                await server_tls(pki, require_client=required).accept(far, timeout_s=5)
            if caught.value.stream is not None:
                await trio.sleep(0.02)  # let the early bytes arrive
                await close_gently(caught.value.stream, REFUSED, 5, 1 << 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            try:
                stream = await node.connect(near, "localhost", timeout_s=5)
                await stream.send_all(b"early" * 40_000)
                await trio.sleep(0.05)
                said = await stream.receive_some()
            except TlsError as error:
                said = str(error).encode()
                stream = None
            assert said == REFUSED if not required else b"--tls-client-cert" in said
            if stream is not None:
                await stream.aclose()
            else:
                await near.aclose()

    trio.run(main)


async def rejected_stream(pki: Lab) -> tuple[TlsStream, TlsStream]:
    server = server_tls(pki)
    async with meeting(server, node_tls(pki, identity=pki.evil_node)) as met:
        error = met.server_error
        assert isinstance(error, PeerRejected)
        assert error.stream is not None
        # The meeting closes its transports at the end; these go on with fresh ones.
        error.stream._transport, met.connected._transport = trio.testing.memory_stream_pair()
        return error.stream, met.connected


def test_a_gentle_close_has_a_bound_in_time(pki: Lab) -> None:
    async def main() -> None:
        stream, node = await rejected_stream(pki)
        begin = trio.current_time()
        await close_gently(stream, REFUSED, 3, 1000)  # the node never closes
        assert 2.9 <= trio.current_time() - begin <= 3.1
        with pytest.raises(trio.ClosedResourceError):
            await stream._transport.send_all(b"x")
        await node.aclose()

    run(main)


def test_a_gentle_close_has_a_bound_in_bytes(pki: Lab) -> None:
    async def main() -> None:
        stream, node = await rejected_stream(pki)
        begin = trio.current_time()
        await node.send_all(b"x" * 100_000)
        await close_gently(stream, REFUSED, 3, 50_000)
        assert trio.current_time() == begin

    run(main)


def test_a_gentle_close_of_a_broken_connection_is_quiet(pki: Lab) -> None:
    async def main() -> None:
        stream, node = await rejected_stream(pki)
        await trio.aclose_forcefully(node._transport)
        await close_gently(stream, REFUSED, 3, 50_000)
        await close_gently(stream, REFUSED, 3, 50_000)

    run(main)
