"""A node from its flags: what ``nray node`` calls."""

from __future__ import annotations

import ipaddress
import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nray import UserError
from nray.api.interrupts import EXIT_INTERRUPTED
from nray.api.workers import ask_for_workers, start_fork_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from logging import Logger

    import trio

    from nray.api.credentials import NodeCredentials, ServerCredentials
    from nray.node.client import Node, Secure
    from nray.node.policy import Policy

log = logging.getLogger("nray.node")

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
    crl: str | None = None

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
            or self.crl
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
    xdp: bool = False,
) -> int:
    """Be a node until the scan is over; returns the exit status.

    Args:
        xdp: send packets of its own making by AF_XDP, where a scan has such.
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
            xdp=xdp,
        )
        from nray.worker import privileges

        secure, credentials = _secure(tls)
        if credentials is not None:
            privileges.guard_keys()
        privileges.drop(keep_net_raw=True, keep=privileges.FILES)
        node = Node(options, fork_server, secure, primed)
        try:
            return _run(node, credentials, stay=stay)
        except UserError as error:
            raise _with_file(error, tls.shown) from error
    finally:
        fork_server.close()


def _policy(path: str) -> Policy:
    from nray.api.policy import read_policy

    read = read_policy(path)
    log.info("policy of this node, whatever the server says: %s", read.words())
    return read


def _run(node: Node, credentials: NodeCredentials | None, *, stay: bool) -> int:
    import trio

    from nray.api import loop

    status = 0

    async def heed(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        nonlocal status
        async for number in signals:
            if number == signal.SIGHUP:
                read_again(credentials, log)
                continue
            status = EXIT_INTERRUPTED
            log.info("interrupted: what this node has not finished goes to others")
            scope.cancel()
            return

    async def main() -> None:
        # A node of one scan ends with its terminal; one that stays is a service.
        more = [signal.SIGHUP] if stay else []
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *more) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(heed, signals, nursery.cancel_scope)
                if credentials is not None:
                    nursery.start_soon(credentials.watch)
                await node.run()
                nursery.cancel_scope.cancel()

    loop.run(main)
    return status


def read_again(credentials: ServerCredentials | NodeCredentials | None, to: Logger) -> None:
    """What SIGHUP asks for."""
    if credentials is None:
        to.info("SIGHUP: there is no TLS, so nothing to read again")
    elif not credentials.refresh(insist=True):
        to.info("SIGHUP: certificates, keys and lists are as before")


def _with_file(error: UserError, client_cert: str | None) -> UserError:
    """A refusal of this node's certificate also says which file that is."""
    if client_cert is None or "refuses this node: the certificate" not in error.message:
        return error
    right = "the server takes what the authority in its TLS.CA issued"
    if error.message.endswith(("was revoked", "no longer valid")):
        right = "it needs a new one"
    return type(error)(error.message, f"this node showed {client_cert}; {right}")


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


def _secure(tls: NodeTlsFiles) -> tuple[Secure, NodeCredentials | None]:
    """What makes a connection secure, from the flags, and the files that it goes by."""
    if not tls.wanted:
        return _plain, None
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

    return secure, end


def _end(tls: NodeTlsFiles) -> NodeCredentials:
    """This end of TLS, from what stands in the files."""
    from nray.api.credentials import NodeCredentials, TlsFiles

    ca_cert, crl = tls.ca_cert or "", tls.crl or ""
    if tls.insecure:
        unused = [flag for flag, file in (("--tls-ca-cert", ca_cert), ("--tls-crl", crl)) if file]
        log.warning(
            "--tls-insecure: the server is not checked, it can be anybody%s",
            f" ({' and '.join(unused)}: not used)" if unused else "",
        )
        ca_cert = crl = ""
    files = TlsFiles(
        certificate=tls.client_cert or "",
        key=tls.client_key or "",
        trust=ca_cert,
        revocations=crl,
        bundle=tls.bundle or "",
    )
    end = NodeCredentials(files, log, insecure=tls.insecure, server_name=tls.server_name)
    end.warn()
    return end


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
                "give one of them; --tls-server-SAN and --tls-crl may stand beside --bundle",
            )


HANDSHAKE_S = 10.0


def _advice(reason: str) -> str:
    return {
        "wrong-name": "dial a name that it holds, or give one of them with --tls-server-SAN",
        "unknown-issuer": "--tls-ca-cert must hold the authority that issued it",
        "expired": "the server needs a new certificate (or this machine's clock is wrong)",
        "revoked": "the server needs a new certificate; has somebody else got its key?",
        "not-yet-valid": "is this machine's clock right?",
    }.get(reason, "")
