"""A node from its flags: what ``nray node`` calls."""

from __future__ import annotations

import ipaddress
import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nray import UserError
from nray.api.workers import ask_for_workers, start_fork_server

if TYPE_CHECKING:
    import trio

    from nray.node.client import Node, Secure
    from nray.node.policy import Policy
    from nray.pki.endpoint import NodeTls

log = logging.getLogger("nray.node")

EXIT_INTERRUPTED = 130

#: A server speaks first. One that is silent for so long waits for something else.
SILENCE_S = 3.0


@dataclass(frozen=True)
class NodeTlsFiles:
    """The ``--use-tls`` and ``--tls-…`` flags, and ``--bundle``, which stands for three of them.
    TLS is on if any is given."""

    use: bool = False
    insecure: bool = False
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    server_name: str | None = None
    bundle: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether to talk over TLS."""
        return bool(
            self.use
            or self.insecure
            or self.ca_cert
            or self.client_cert
            or self.client_key
            or self.server_name
            or self.bundle
        )

    @property
    def shown(self) -> str | None:
        """The file of this node's certificate."""
        return self.bundle or self.client_cert


def attend(
    *,
    host: str,
    port: int,
    name: str | None,
    preferred_pool: int,
    processes: int,
    stay: bool,
    allow_plaintext: bool,
    tls: NodeTlsFiles,
    policy: str | None = None,
) -> int:
    """Be a node until the scan is over; returns the exit status.

    Args:
        policy: a file that says what this node will ever do. Read once; without a good one
            nothing starts.

    Raises:
        UserError: flags that do not fit, a certificate that cannot be used or was refused.
    """
    keep_to = _policy(policy) if policy is not None else None
    if not tls.wanted:
        _demand_loopback(host, allow_plaintext)
    fork_server = start_fork_server()
    try:
        from nray.node.machine import default_name, processors

        count = processes or processors()
        primed = ask_for_workers(fork_server, count)
        from nray.node.client import Node, NodeOptions

        options = NodeOptions(
            host=host.strip("[]"),
            port=port,
            name=(name or default_name())[:32],
            preferred_pool=preferred_pool,
            processes=count,
            stay=stay,
            policy=keep_to,
        )
        node = Node(options, fork_server, _secure(tls), primed)
        try:
            return _run(node)
        except UserError as error:
            raise _with_file(error, tls.shown) from error
    finally:
        fork_server.close()


def _policy(path: str) -> Policy:
    from nray.api.policy import read_policy

    read = read_policy(path)
    log.info("policy of this node, whatever the server says: %s", read.words())
    return read


def _run(node: Node) -> int:
    import trio

    from nray.api import loop

    status = 0

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal status
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                status = EXIT_INTERRUPTED
                log.info("interrupted: what this node has not finished goes to others")
                scope.cancel()
                return

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await node.run()
            nursery.cancel_scope.cancel()

    loop.run(main)
    return status


def _with_file(error: UserError, client_cert: str | None) -> UserError:
    """A refusal of this node's certificate also says which file that is."""
    if client_cert is None or "refuses this node: the certificate" not in error.message:
        return error
    return type(error)(
        error.message,
        f"this node showed {client_cert}; the server takes what the authority in its TLS.CA issued",
    )


def _demand_loopback(host: str, allowed: bool) -> None:
    """Plain TCP leaves the machine only if its user insists."""
    if is_loopback(host):
        return
    if not allowed:
        raise UserError(
            f"without TLS everybody on the way to {host} could read and change the scan",
            "use --use-tls --tls-ca-cert ca.pem, or insist with --allow-plaintext",
        )
    log.warning(
        "talking to %s without TLS: everybody on the way can read the findings, and make this "
        "node scan what they like",
        host,
    )


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine."""
    text = host.strip("[]").rstrip(".").lower()
    if text == "localhost" or text.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


async def _plain(stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
    """Plain TCP: the stream as it is, with a word if the other end seems to want TLS."""
    import trio

    if isinstance(stream, trio.SocketStream):
        with trio.move_on_after(SILENCE_S) as silence:
            await trio.lowlevel.wait_readable(stream.socket)
        if silence.cancelled_caught:
            log.warning("%s is there and says nothing: does it want TLS (--use-tls)?", host)
    return stream


def _secure(tls: NodeTlsFiles) -> Secure:
    """What makes a connection secure, from the flags."""
    if not tls.wanted:
        return _plain
    if tls.bundle:
        _demand_bundle_alone(tls)
    if bool(tls.client_cert) != bool(tls.client_key):
        missing = "--tls-client-key" if tls.client_cert else "--tls-client-cert"
        raise UserError(
            f"{missing} is missing: a node's certificate and its key go together",
            "give both, or neither for a server that does not ask for certificates",
        )

    from nray.node.client import ServerRefuses
    from nray.pki.errors import PeerRejected
    from nray.pki.stream import TlsError

    end = _end(tls)

    async def secure(stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        try:
            return await end.connect(stream, host, timeout_s=HANDSHAKE_S)
        except PeerRejected as rejected:
            raise ServerRefuses(
                f"the server's certificate is refused ({rejected.reason}): {rejected.detail}",
                _advice(rejected.reason),
            ) from rejected
        except TlsError as error:
            if not error.reason:
                raise  # cut or too slow: worth another try
            raise ServerRefuses(f"no TLS with {host}: {error}", "") from error

    return secure


def _end(tls: NodeTlsFiles) -> NodeTls:
    """This end of TLS, from what stands in the files."""
    from nray.pki.bundle import load_bundle
    from nray.pki.endpoint import NodeTls
    from nray.pki.keys import load_identity, load_trust

    identity, trust, server_name = None, None, tls.server_name
    if tls.bundle:
        bundle = load_bundle(tls.bundle)
        identity, trust = bundle.identity, list(bundle.trust)
        server_name = server_name or bundle.server_name
    elif tls.client_cert and tls.client_key:
        identity = load_identity(tls.client_cert, tls.client_key)
    for warning in identity.warnings if identity else ():
        log.warning("%s", warning)
    if tls.ca_cert:
        trust = load_trust(tls.ca_cert)
    if tls.insecure:
        unused = " (--tls-ca-cert is not used)" if trust else ""
        log.warning("--tls-insecure: the server is not checked, it can be anybody%s", unused)
    return NodeTls(trust, insecure=tls.insecure, identity=identity, server_name=server_name)


def _demand_bundle_alone(tls: NodeTlsFiles) -> None:
    """A bundle says whom to believe and what to show: a second word on it is a mistake."""
    for flag, given in (
        ("--tls-insecure", tls.insecure),
        ("--tls-ca-cert", tls.ca_cert),
        ("--tls-client-cert", tls.client_cert),
        ("--tls-client-key", tls.client_key),
    ):
        if given:
            raise UserError(
                f"--bundle and {flag} cannot go together: the bundle holds the node's certificate,"
                " its key and the authority",
                "give one of them; --tls-server-SAN may stand beside --bundle",
            )


HANDSHAKE_S = 10.0


def _advice(reason: str) -> str:
    return {
        "wrong-name": "dial a name that it holds, or give one of them with --tls-server-SAN",
        "unknown-issuer": "--tls-ca-cert must hold the authority that issued it",
        "expired": "the server needs a new certificate (or this machine's clock is wrong)",
        "not-yet-valid": "is this machine's clock right?",
    }.get(reason, "")
