"""The manual's guide, run to the letter by cfssl, in its three modes, on both ends.

Its three certificates bear one subject and no authority key identifier; OpenSSL by itself takes
each leaf for self-signed and refuses it.
"""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

import pki_lab as lab
from nray.pki.endpoint import AcceptedPeer, NodeTls, ServerTls
from nray.pki.errors import PeerRejected
from nray.pki.keys import load_identity, load_trust
from nray.pki.stream import TlsError, TlsStream
from nray.pki.verify import peer_name, verify_node, verify_server

MISSING = shutil.which("cfssl") is None or shutil.which("cfssljson") is None


@pytest.fixture(scope="session")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        if os.environ.get("CI") == "true":
            pytest.fail("cfssl is missing (Debian: golang-cfssl); in CI it must be there")
        pytest.skip("cfssl is not installed (Debian: golang-cfssl)")
    directory = tmp_path_factory.mktemp("guide")
    lab.cfssl_guide(directory)
    return directory


@pytest.fixture(scope="session")
def others(guide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide followed by somebody else: the very same subject, other keys."""
    directory = tmp_path_factory.mktemp("others")
    lab.cfssl_guide(directory)
    return directory


def server_of(directory: Path, trust: Path | None, *, force: bool = False) -> ServerTls:
    identity = load_identity(directory / "server.pem", directory / "server-key.pem")
    return ServerTls(identity, load_trust(trust / "ca.pem") if trust else None, force)


def node_of(trust: Path | None, show: Path | None = None, **other: object) -> NodeTls:
    identity = load_identity(show / "client.pem", show / "client-key.pem") if show else None
    certificates = load_trust(trust / "ca.pem") if trust else None
    arguments = {"insecure": False, "server_name": None, **other}
    return NodeTls(certificates, identity=identity, **arguments)


def meet(
    server: ServerTls, node: NodeTls, host: str = "127.0.0.1"
) -> tuple[AcceptedPeer | Exception, TlsStream | Exception]:
    """Both ends to their result; where both got in, a word passes each way."""

    async def main() -> tuple:
        ends = trio.testing.memory_stream_pair()
        results: dict[str, object] = {}

        async def keep(name: str, call, *arguments: object) -> None:
            try:
                results[name] = await call(*arguments, timeout_s=60)
            except (PeerRejected, trio.BrokenResourceError) as error:
                results[name] = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "server", server.accept, ends[0])
            nursery.start_soon(keep, "node", node.connect, ends[1], host)
        accepted, connected = results["server"], results["node"]
        if isinstance(accepted, AcceptedPeer) and isinstance(connected, TlsStream):
            await accepted.stream.send_all(b"WELCOME")
            assert await connected.receive_some() == b"WELCOME"
            await connected.send_all(b"REGISTER")
            assert await accepted.stream.receive_some() == b"REGISTER"
        elif isinstance(connected, TlsStream) and getattr(accepted, "stream", None) is None:
            with pytest.raises(TlsError) as told:
                await connected.receive_some()
            connected = told.value
        return accepted, connected

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_the_guide_makes_what_the_facts_say(guide: Path) -> None:
    """If cfssl ever changes, this test says so rather than the others passing for nothing."""
    ca, server, client = (
        x509.load_pem_x509_certificate((guide / f"{stem}.pem").read_bytes())
        for stem in ("ca", "server", "client")
    )
    assert ca.subject == server.subject == client.subject == lab.GUIDE
    for leaf in (server, client):
        with pytest.raises(x509.ExtensionNotFound):
            leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    with pytest.raises(x509.ExtensionNotFound):
        client.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_its_files_load_without_a_warning(guide: Path) -> None:
    for stem in ("server", "client"):
        identity = load_identity(guide / f"{stem}.pem", guide / f"{stem}-key.pem")
        assert identity.warnings == ()
    late = datetime.datetime.now(datetime.UTC) + 360 * lab.DAY
    identity = load_identity(guide / "server.pem", guide / "server-key.pem", now=late)
    assert "expires" in identity.warnings[0]


def test_mode_1_trust_every_server(guide: Path, others: Path) -> None:
    for trust in (guide, None):
        for shown in (guide, others):
            accepted, connected = meet(server_of(shown, trust), node_of(None, insecure=True))
            assert isinstance(accepted, AcceptedPeer)
            assert accepted.peer is None
            assert isinstance(connected, TlsStream)


def test_mode_2_trust_this_server(guide: Path, others: Path) -> None:
    node = node_of(guide, server_name="localhost")
    accepted, connected = meet(server_of(guide, guide), node)
    assert isinstance(accepted, AcceptedPeer)
    assert isinstance(connected, TlsStream)
    assert connected.verified_peer is not None
    assert connected.verified_peer.identity == "localhost"
    # The name need not be given where it is the one dialled ...
    _, connected = meet(server_of(guide, guide), node_of(guide), "localhost")
    assert isinstance(connected, TlsStream)
    # ... and must be where it is not.
    _, refused = meet(server_of(guide, guide), node_of(guide), "127.0.0.1")
    assert isinstance(refused, PeerRejected)
    assert refused.reason == "wrong-name"
    assert "DNS:localhost, not for 127.0.0.1" in refused.detail
    # Another authority of the same subject.
    _, refused = meet(server_of(others, guide), node)
    assert isinstance(refused, PeerRejected)
    assert refused.reason == "unknown-issuer"


def test_mode_3_client_authentication(guide: Path, others: Path) -> None:
    for force in (True, False):
        server = server_of(guide, guide, force=force)
        accepted, connected = meet(server, node_of(guide, guide, server_name="localhost"))
        assert isinstance(accepted, AcceptedPeer)
        assert accepted.peer is not None
        assert accepted.peer.identity == "O=nray-scanner,L=Munich,C=DE"
        assert isinstance(connected, TlsStream)
        # A node of another authority of the same subject.
        rejected, _ = meet(server, node_of(guide, others, server_name="localhost"))
        assert isinstance(rejected, PeerRejected)
        assert rejected.reason == "unknown-issuer"


def test_mode_3_a_node_without_certificate(guide: Path) -> None:
    node = node_of(guide, server_name="localhost")
    rejected, told = meet(server_of(guide, guide, force=True), node)
    assert isinstance(rejected, PeerRejected)
    assert rejected.reason == "none-shown"
    assert "--tls-client-cert" in str(told)


def test_a_node_cannot_pose_as_the_server(guide: Path) -> None:
    client = x509.load_pem_x509_certificate((guide / "client.pem").read_bytes())
    trust, now = load_trust(guide / "ca.pem"), client.not_valid_after_utc
    with pytest.raises(PeerRejected) as caught:
        verify_server(client, [], trust, peer_name("localhost"), now)
    assert caught.value.reason == "wrong-name"


def test_its_leaves_end_after_a_year(guide: Path) -> None:
    client = x509.load_pem_x509_certificate((guide / "client.pem").read_bytes())
    trust = load_trust(guide / "ca.pem")
    verify_node(client, [], trust, client.not_valid_after_utc)
    with pytest.raises(PeerRejected) as caught:
        verify_node(client, [], trust, client.not_valid_after_utc + lab.DAY)
    assert caught.value.reason == "expired"
