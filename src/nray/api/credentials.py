"""Certificates, keys, trust and revocation lists of a running server or node: read again when
their files change, warned of before they end.

Files are looked at for each connection, every `LOOK_EVERY_S`, and at once where somebody asks
(SIGHUP). Certificate and key are one unit, trusted authorities another, lists a third: each takes
effect when it is good as a whole, whatever the others are like. No connection fails because a file
is bad.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio
from cryptography import x509

from nray.pki.allowed import AllowedNodes
from nray.pki.bundle import load_bundle
from nray.pki.endpoint import AcceptedPeer, NodeTls, ServerTls, usable
from nray.pki.errors import PeerRejected
from nray.pki.expiry import Ending, certificate_ending
from nray.pki.keys import Identity, load_identity, load_trust
from nray.pki.reload import Reloaded
from nray.pki.revocation import Revocations, load_revocations
from nray.pki.stream import TlsStream
from nray.pki.verify import VerifiedPeer

#: Between two looks at files while nobody connects, seconds: how long a node that was revoked
#: stays at most, without a signal.
LOOK_EVERY_S = 10.0
#: Between two warnings of the same end, seconds.
WARN_EVERY_S = 24 * 3600.0


@dataclass(frozen=True)
class TlsFiles:
    """Names of files; empty for none. A list needs a trust file, a certificate its key; a bundle
    stands for certificate, key and trust (`nray.pki.bundle`)."""

    certificate: str = ""
    key: str = ""
    trust: str = ""
    revocations: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class _Trust:
    certificates: list[x509.Certificate]
    #: The name of the server, where a bundle has it.
    server_name: str | None


class _Files:
    """What both ends have in common. Raises PkiError where a file is bad now."""

    def __init__(self, files: TlsFiles, log: logging.Logger) -> None:
        self._files = files
        self._log = log
        self._identity: Reloaded[Identity] | None = None
        self._trust: Reloaded[_Trust] | None = None
        self._lists: Reloaded[Revocations] | None = None
        if files.bundle or files.certificate:
            paths = [files.bundle] if files.bundle else [files.certificate, files.key]
            self._identity = Reloaded(paths, self._load_identity, log)
        if files.bundle or files.trust:
            self._trust = Reloaded([files.bundle or files.trust], self._load_trust, log)
            if files.revocations:
                self._lists = Reloaded([files.revocations], self._load_lists, log)
        self._news = trio.Event()

    def _load_identity(self) -> Identity:
        if self._files.bundle:
            return usable(load_bundle(self._files.bundle).identity)
        return usable(load_identity(self._files.certificate, self._files.key))

    def _load_trust(self) -> _Trust:
        if not self._files.bundle:
            return _Trust(load_trust(self._files.trust), None)
        bundle = load_bundle(self._files.bundle)
        return _Trust(list(bundle.trust), bundle.server_name)

    def _load_lists(self) -> Revocations:
        return load_revocations(self._files.revocations, self.trust or [])

    @property
    def identity(self) -> Identity | None:
        """What this end shows."""
        return self._identity.value if self._identity else None

    @property
    def trust(self) -> list[x509.Certificate] | None:
        """Who vouches for the other end."""
        return self._trust.value.certificates if self._trust else None

    @property
    def revocations(self) -> Revocations | None:
        """Who no longer counts."""
        return self._lists.value if self._lists else None

    def refresh(self, *, insist: bool = False) -> bool:
        """Read files again that have changed; whether anything is new. See `Reloaded.refresh`."""
        shown = self._identity is not None and self._identity.refresh(insist=insist)
        trust = self._trust is not None and self._trust.refresh(insist=insist)
        # Whose signature on a list counts is for the authorities of now.
        lists = self._lists is not None and self._lists.refresh(insist=insist, anew=trust)
        if not (shown or trust or lists):
            return False
        self._build()
        self.warn()
        self._news.set()
        self._news = trio.Event()
        return True

    def _build(self) -> None:
        raise NotImplementedError

    async def changed(self) -> None:
        """Wait until `refresh` has found something new."""
        await self._news.wait()

    def endings(self) -> list[Ending]:
        """All that ends one day."""
        found = []
        if self.identity is not None:
            file = self._files.bundle or self._files.certificate
            found.append(certificate_ending(file, self.identity.leaf))
            found += [
                certificate_ending(file, each, "a certificate that is sent along")
                for each in self.identity.chain
            ]
        if self.revocations is not None:
            found += self.revocations.endings()
        return found

    def briefly(self) -> list[str]:
        """What ends soon, for a status line."""
        return brief(self.endings(), _now())

    def warn(self) -> None:
        """Tell of what is odd or ends soon."""
        now = _now()
        found = [ending.warning(now) for ending in self.endings()]
        if self.identity is not None:
            found = [*self.identity.warnings, *found]
        if self.revocations is not None and self.trust is not None:
            found += self.revocations.warnings(self.trust, now)
        for warning in dict.fromkeys(found):
            if warning:
                self._log.warning("%s", warning)

    async def watch(self) -> None:
        """Look at the files now and then, and warn once a day; for ever."""
        warned_at = trio.current_time()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self.refresh()
            if trio.current_time() - warned_at >= WARN_EVERY_S:
                warned_at = trio.current_time()
                self.warn()


class ServerCredentials(_Files):
    """A server's end, by the files of now.

    Raises:
        PkiError: a file is bad, or they do not go together.
    """

    def __init__(
        self,
        files: TlsFiles,
        log: logging.Logger,
        *,
        require_client: bool,
        allowed: AllowedNodes | None = None,
    ) -> None:
        super().__init__(files, log)
        self._require_client = require_client
        self._allowed = allowed
        self._build()

    def _build(self) -> None:
        assert self.identity is not None
        self._tls = ServerTls(
            self.identity, self.trust, self._require_client, self._allowed, self.revocations
        )

    async def accept(
        self,
        transport: trio.abc.Stream,
        *,
        timeout_s: float,
        spent: Callable[[float], None] | None = None,
    ) -> AcceptedPeer:
        """See `ServerTls.accept`."""
        self.refresh()
        return await self._tls.accept(transport, timeout_s=timeout_s, spent=spent)

    def objection(self, peer: VerifiedPeer) -> PeerRejected | None:
        """See `ServerTls.objection`."""
        return self._tls.objection(peer)


class NodeCredentials(_Files):
    """A node's end, by the files of now.

    Raises:
        PkiError: a file is bad, or they do not go together.
    """

    def __init__(
        self, files: TlsFiles, log: logging.Logger, *, insecure: bool, server_name: str | None
    ) -> None:
        super().__init__(files, log)
        self._insecure = insecure
        self._server_name = server_name
        self._build()

    def _build(self) -> None:
        self._tls = NodeTls(
            self.trust,
            insecure=self._insecure,
            identity=self.identity,
            server_name=self._server_name
            or (self._trust.value.server_name if self._trust else None),
            revocations=self.revocations,
        )

    async def connect(
        self, transport: trio.abc.Stream, host: str, *, timeout_s: float
    ) -> TlsStream:
        """See `NodeTls.connect`."""
        self.refresh()
        return await self._tls.connect(transport, host, timeout_s=timeout_s)


def brief(endings: Iterable[Ending], now: datetime.datetime) -> list[str]:
    """Clauses on what ends soon."""
    return [words for words in (ending.brief(now) for ending in endings) if words]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
