"""Our ends against OpenSSL's own programs, over loopback: the table of attacks by another hand,
and what else `openssl s_client` and plain sockets can throw at a server.

The other end runs at security level 0 and checks nothing: an attacker does neither.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio

import pki_lab as lab
from nray.pki.allowed import AllowedNodes
from nray.pki.endpoint import AcceptedPeer, NodeTls, ServerTls
from nray.pki.errors import PeerRejected
from nray.pki.keys import Identity
from nray.pki.stream import TlsError
from nray.server.server import reason_for
from nray.server.tls import TlsDoorman
from pki_attacks import CASES, Case, Shown, guest_on, leaf, root

if shutil.which("openssl") is None:
    if os.environ.get("CI") == "true":
        raise RuntimeError("openssl is missing; in CI it must be there")
    pytest.skip("openssl is not installed", allow_module_level=True)

T = TypeVar("T")

#: Far more than anything here takes.
PATIENCE_S = 120.0
VERSIONS = ("-tls1_2", "-tls1_3")
LAX = ["-cipher", "ALL:@SECLEVEL=0"]
WELCOME = b"WELCOME-of-the-server"
REGISTER = b"REGISTER-of-the-node"


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        with trio.fail_after(PATIENCE_S):
            return await main()

    return trio.run(bounded)


def own(made: lab.Made) -> Identity:
    return Identity(made.cert, (), made.key)


@pytest.fixture(autouse=True)
def at_the_time_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nray.pki.endpoint._now", lambda: lab.NOW)
    # A busy machine may take long to start a program that is to say something.
    monkeypatch.setattr("nray.server.tls.FIRST_WORD_S", PATIENCE_S)


def files(directory: Path, shown: Shown) -> list[str]:
    """Options by which OpenSSL shows what the case says."""
    cert, key = lab.write(directory, "shown", shown.leaf)
    options = ["-cert", str(cert), "-key", str(key)]
    if shown.others:
        chain = directory / "chain.pem"
        chain.write_bytes(lab.pem(*shown.others))
        options += ["-cert_chain", str(chain)]
    return options


class Listening(ServerTls):
    """A server's end that keeps what came of each connection.

    Attributes:
        accepted: peers; None for one without certificate.
        errors: of those that were not.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.accepted: list[object] = []
        self.errors: list[Exception] = []
        self.renegotiations = 0

    async def accept(
        self, transport: trio.abc.Stream, *, timeout_s: float, spent: object = None
    ) -> AcceptedPeer:
        try:
            accepted = await super().accept(transport, timeout_s=self.time_limit_s)
        except (PeerRejected, TlsError) as error:
            self.errors.append(error)
            raise
        self.accepted.append(accepted.peer)
        return accepted

    time_limit_s = PATIENCE_S


async def served(
    server: Listening,
    visit: Callable[[int], Awaitable[T]],
    connections: int = 1,
    talk: Callable[[trio.abc.Stream], Awaitable[None]] | None = None,
) -> T:
    """What a visitor of the port says; the door serves so many connections."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        async with listener:
            for _ in range(connections):
                line = await listener.accept()
                admitted = await TlsDoorman(server).admit(line, guest_on(line))
                if admitted is None:
                    continue
                stream, _ = admitted
                try:
                    await stream.send_all(WELCOME)
                    if talk is not None:
                        await talk(stream)
                except trio.BrokenResourceError as error:
                    server.errors.append(error)
                finally:
                    with trio.move_on_after(1, shield=True):
                        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        return await visit(listener.socket.getsockname()[1])


async def s_client(
    port: int, *options: str, stdin: bytes = b"", quiet: bool = True
) -> tuple[str, str]:
    """Standard output and error of `openssl s_client`. It ends when the server does."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    command += ["-quiet"] if quiet else ["-ign_eof"]
    done = await trio.run_process(
        command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
    )
    return done.stdout.decode("latin1"), done.stderr.decode("latin1")


def server_for(shown: Shown, **more: object) -> Listening:
    return Listening(
        trusted_server(),
        [one.cert for one in shown.trust],
        more.get("required", True),
        AllowedNodes(shown.allowed),
        shown.revocations,
    )


@functools.cache
def trusted_server() -> Identity:
    return own(leaf())


def cases(end: str) -> list:
    """Each in one version, by turns; `test_pki_attacks` drives it in the other one."""
    chosen = [case for case in CASES if end in case.ends]
    return [
        pytest.param(case, VERSIONS[number % 2], id=f"{case.title}{VERSIONS[number % 2]}")
        for number, case in enumerate(chosen)
    ]


def shown_by(case: Case, monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = case.make()
    if shown.leaf.key is None:
        pytest.skip("nobody holds its key: judged without a socket (test_pki_verify)")
    if not shown.trust:
        pytest.skip("an end that trusts nobody is not made (test_pki_endpoint)")
    monkeypatch.setattr("nray.pki.endpoint._now", lambda: shown.now)
    return shown


@pytest.mark.parametrize(("case", "version"), cases("c"))
def test_as_a_node(
    case: Case, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_by(case, monkeypatch)
    server = server_for(shown)
    options = [version, *LAX, *files(tmp_path, shown)]
    said, errors = run(lambda: served(server, lambda port: s_client(port, *options)))
    if case.reason is None:
        assert server.errors == []
        assert server.accepted[0].serial == shown.leaf.cert.serial_number
        assert said == WELCOME.decode()
        return
    assert server.accepted == []
    assert WELCOME.decode() not in said
    (error,) = server.errors
    if isinstance(error, TlsError) or error.reason == "none-shown":
        # OpenSSL kept back what it could not sign with, or found no way to.
        assert case.reason == "weak"
        return
    assert error.reason == case.reason
    assert case.detail in error.detail
    assert reason_for(case.reason).value in said, errors


@pytest.mark.parametrize(("case", "version"), cases("s"))
def test_as_a_server(
    case: Case, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_by(case, monkeypatch)
    node = NodeTls(
        [one.cert for one in shown.trust],
        insecure=False,
        identity=None,
        server_name=shown.name,
        revocations=shown.revocations,
    )
    options = [version, *LAX, *files(tmp_path, shown)]
    said, result = run(lambda: dial_s_server(node, options))
    if case.reason is None:
        assert result == shown.leaf.cert.serial_number
        assert REGISTER in said
        return
    assert REGISTER not in said
    if isinstance(result, TlsError):
        assert case.reason == "weak" or version == "-tls1_2"
        return
    assert isinstance(result, PeerRejected)
    assert result.reason == case.reason
    assert case.detail in result.detail


async def dial_s_server(node: NodeTls, options: Sequence[str]) -> tuple[bytes, object]:
    """Standard output of `openssl s_server`, and what a node made of it: a serial or an error."""
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", *options]
    process = await trio.lowlevel.open_process(
        # Left open: at its end the program would close the connection.
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    said = b""
    try:
        while b"ACCEPT 127.0.0.1:" not in said or not said.endswith(b"\n"):
            piece = await process.stdout.receive_some()
            assert piece, said
            said += piece
        port = int(said.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
        transport = await trio.open_tcp_stream("127.0.0.1", port)
        result: object
        try:
            stream = await node.connect(transport, "nowhere.example", timeout_s=PATIENCE_S)
            result = stream.verified_peer.serial if stream.verified_peer else None
            await stream.send_all(REGISTER)
            await stream.aclose()
        except (PeerRejected, TlsError) as error:
            result = error
        await trio.aclose_forcefully(transport)
        while piece := await process.stdout.receive_some():
            said += piece
        await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
    return said, result


# ── versions, and what TLS offers besides ───────────────────────────────────────────────────


def good_node(tmp_path: Path) -> tuple[Listening, list[str]]:
    shown = Shown(leaf(), [root()])
    return server_for(shown), [*LAX, *files(tmp_path, shown)]


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_of_a_client(version: str, tmp_path: Path) -> None:
    server, options = good_node(tmp_path)
    said, errors = run(lambda: served(server, lambda port: s_client(port, version, *options)))
    (error,) = server.errors
    assert "TLS 1.2 is the least" in str(error)
    assert "alert protocol version" in errors
    assert said == ""


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_of_a_server(version: str, tmp_path: Path) -> None:
    _, options = good_node(tmp_path)
    node = NodeTls([root().cert], insecure=False, identity=None, server_name="localhost")
    said, result = run(lambda: dial_s_server(node, [version, *options]))
    assert "TLS 1.2 is the least" in str(result)
    assert REGISTER not in said


@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_where_one_is_demanded(version: str) -> None:
    server = server_for(Shown(leaf(), [root()]))
    said, errors = run(lambda: served(server, lambda port: s_client(port, version, *LAX)))
    assert [error.reason for error in server.errors] == ["none-shown"]
    assert said == ""
    alert = "handshake failure" if version == "-tls1_2" else "certificate required"
    assert alert in errors


@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_where_it_is_optional(version: str) -> None:
    server = server_for(Shown(leaf(), [root()]), required=False)
    said, _ = run(lambda: served(server, lambda port: s_client(port, version, *LAX)))
    assert server.accepted == [None]
    assert said == WELCOME.decode()


def test_a_client_that_renegotiates(tmp_path: Path) -> None:
    """The letter R on a line of its own makes s_client do it."""
    server, options = good_node(tmp_path)

    async def talk(stream: trio.abc.Stream) -> None:
        try:
            while await stream.receive_some():
                pass
        finally:
            server.renegotiations = stream._connection.total_renegotiations()

    async def visit(port: int) -> bytes:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", *options]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said = b""
        while piece := await process.stdout.receive_some():
            said += piece
            if WELCOME in said and b"RENEGOTIATING" not in said:
                await process.stdin.send_all(b"R\n")
        await process.wait()
        return said

    said = run(lambda: served(server, visit, talk=talk))
    assert b"RENEGOTIATING" in said
    assert b"no renegotiation" in said
    assert server.renegotiations == 0
    assert len(server.accepted) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_no_compression_no_session_no_early_data(version: str, tmp_path: Path) -> None:
    server, options = good_node(tmp_path)
    session = tmp_path / "session.pem"

    async def visit(port: int) -> list[str]:
        first = await s_client(
            port, version, *options, "-comp", "-sess_out", str(session), quiet=False
        )
        seen = [first[0]]
        if session.exists():
            again = await s_client(port, version, *options, "-sess_in", str(session), quiet=False)
        else:
            again = await s_client(port, version, *options, quiet=False)
        return [*seen, again[0]]

    for said in run(lambda: served(server, visit, 2)):
        assert "Compression: NONE" in said
        assert "New, TLSv1." in said
        assert "Reused," not in said
        assert "Early data was accepted" not in said
        assert WELCOME.decode() in said
    assert len(server.accepted) == 2


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "NULL", "aNULL"])
def test_ciphers_that_are_not_taken(cipher: str, tmp_path: Path) -> None:
    server, options = good_node(tmp_path)
    options = ["-tls1_2", *options[2:], "-cipher", f"{cipher}:@SECLEVEL=0"]
    said, errors = run(lambda: served(server, lambda port: s_client(port, *options)))
    assert said == ""
    assert "handshake failure" in errors
    assert "no cipher in common" in str(server.errors[0])


# ── what is no TLS ──────────────────────────────────────────────────────────────────────────

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SSLV2_HELLO = bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0")
NOISE = random.Random(8601).randbytes(3000)


async def send_raw(port: int, data: bytes, *, reset: bool = False) -> bytes:
    """All that comes back for these bytes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    got = b""
    try:
        await stream.send_all(data)
        if reset:
            linger = struct.pack("ii", 1, 0)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            while piece := await stream.receive_some():
                got += piece
    except trio.BrokenResourceError:
        pass
    await trio.aclose_forcefully(stream)
    return got


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(HTTP, "plain HTTP", id="HTTP"),
        pytest.param(NOISE, "TLS", id="noise"),
        pytest.param(SSLV2_HELLO, "TLS", id="SSLv2 hello"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(70000), "TLS", id="oversize record"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "TLS", id="hello of 16 MiB"),
    ],
)
def test_strangers_are_sent_away_at_once(data: bytes, words: str) -> None:
    server = server_for(Shown(leaf(), [root()]))
    got = run(lambda: served(server, lambda port: send_raw(port, data)))
    (error,) = server.errors
    assert words in str(error)
    assert "within" not in str(error)  # it was not the time limit
    assert got == b"" or (got[0] == 21 and len(got) < 100)  # an alert at most


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00", b"\x16\x03\x01\x3f\xff\x01"])
def test_half_a_hello_waits_for_the_time_limit_and_no_longer(data: bytes) -> None:
    server = server_for(Shown(leaf(), [root()]))
    server.time_limit_s = 0.2
    assert run(lambda: served(server, lambda port: send_raw(port, data))) == b""
    assert [str(error) for error in server.errors] == ["no TLS handshake within 0.2 s"]


@pytest.mark.parametrize("data", [HTTP[:4], b"\x16\x03\x01\x02\x00\x01\x00"])
def test_who_resets_costs_nothing_more(data: bytes) -> None:
    server = server_for(Shown(leaf(), [root()]))
    run(lambda: served(server, lambda port: send_raw(port, data, reset=True)))
    assert len(server.errors) == 1
