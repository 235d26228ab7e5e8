"""TLS as a trio stream: pyOpenSSL over memory BIOs, and any trio stream beneath.

OpenSSL turns plain text into records and back in memory; this module carries the records. Rules
that it keeps, each of which was broken once to see why:

- What lies in the outgoing BIO is sent by one task at a time, who holds `_out`, until the BIO is
  empty. A reader that has something to send (an alert) and finds the lock taken leaves it to the
  holder. Were it to wait, two peers that both send much would wait for each other for ever.
- Only a close_notify is an end. A transport that ends without one was cut: an error.
- Who was cancelled, or failed, while sending has sent a part of a record, nobody knows which:
  nothing is sent after it.
- A handshake that fails leaves an alert for the peer in the BIO; it is sent too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
from cryptography import x509
from OpenSSL import SSL

from nray.pki.errors import PeerRejected
from nray.pki.names import printable
from nray.pki.verify import VerifiedPeer
from nray.pki.words import reason_of, words_for

#: Bytes asked of the transport at once: several whole records (16 KiB each, RFC 8446, 5.1), so
#: that bulk costs few system calls. It bounds what is held undecrypted.
RECEIVE_BYTES = 64 * 1024

#: Plain bytes encrypted before the records are sent; bounds the outgoing BIO.
SEND_BYTES = 64 * 1024

#: One read of the outgoing BIO: `SEND_BYTES` in records, and the records' own cost.
_BIO_READ_BYTES = SEND_BYTES + 4 * 1024

#: Largest piece of plain text returned: one record.
_RECORD_BYTES = 16 * 1024

#: Most bytes taken from a peer in the handshake. OpenSSL takes a chain of 100 KiB at most; the
#: rest is small. Without it a peer could feed records that lead nowhere until the time is up.
HANDSHAKE_RECEIVE_BYTES_MAX = 512 * 1024

#: Most reads of the transport in the handshake. An honest peer's few KiB come in two to five; a
#: chain of 100 KiB in segments of 1,460 bytes in 70. A handshake fed byte by byte would cost as
#: much as a hundred.
HANDSHAKE_READS_MAX = 128

#: Longest wait to get an alert or close_notify out to a peer that does not read, seconds. It is
#: a courtesy: the kernel's buffer nearly always takes those 30 bytes at once.
FAREWELL_TIMEOUT_S = 1.0


class TlsError(trio.BrokenResourceError):
    """TLS itself failed: the peer speaks something else, a record was tampered with, the
    connection was cut, the peer sent an alert. The message is for people.

    Attributes:
        reason: OpenSSL's own reason in lower case; empty where the fault is not OpenSSL's find.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class TlsStream(trio.abc.Stream):
    """A stream of application bytes over TLS.

    It owns `transport`: closing this closes that. One task may send while another receives.

    Attributes:
        verified_peer: who is at the other end, once it has been judged; None before, for an
            anonymous node, and for a server that was not checked (``--tls-insecure``).
    """

    def __init__(self, transport: trio.abc.Stream, connection: SSL.Connection) -> None:
        """
        Args:
            transport: where the records go, such as a `trio.SocketStream`.
            connection: over memory BIOs, its state set to accept or connect.
        """
        self.verified_peer: VerifiedPeer | None = None
        self._transport = transport
        self._connection = connection
        self._out = trio.Lock()
        self._sending = False
        self._receiving = False
        self._shaken = False
        self._closed = False
        #: Why nothing more can be sent; empty while it can.
        self._send_ended = ""
        self._transport_ended = False
        self._failure: TlsError | None = None

    # ── the handshake ───────────────────────────────────────────────────────────────────────

    async def do_handshake(self, spent: Callable[[float], None] | None = None) -> None:
        """Both ends agree on keys. The peer is **not verified** by this.

        Cancellation leaves a broken stream. The stream stays open whatever happens.

        Args:
            spent: told of each piece of processor time that it took, seconds.

        Raises:
            TlsError: the peer speaks no TLS, or none that we accept, or has gone.
            trio.BrokenResourceError: the transport broke.
        """
        self._demand_usable()
        received = reads = 0
        try:
            while not self._step(spent):
                await self._flush()
                received += await self._feed()
                reads += 1
                if received > HANDSHAKE_RECEIVE_BYTES_MAX or reads > HANDSHAKE_READS_MAX:
                    raise self._fail(TlsError("the handshake is larger than any honest one"))
            await self._flush()
        except SSL.Error as error:
            raise await self._translate(error, "in the handshake") from error
        self._shaken = True

    def _step(self, spent: Callable[[float], None] | None) -> bool:
        """As far as the handshake goes with what has come; whether it is done."""
        began = time.thread_time()
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        finally:
            if spent is not None:
                spent(time.thread_time() - began)
        return True

    def unverified_certificates(self) -> tuple[x509.Certificate, list[x509.Certificate]] | None:
        """What the peer showed: its leaf and all else that it sent. **Nothing of it is verified**
        but that the peer holds the leaf's key. None if it showed nothing.

        Raises:
            PeerRejected: a certificate cannot be read.
        """
        try:
            leaf = self._connection.get_peer_certificate(as_cryptography=True)
            if leaf is None:
                return None
            chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except (ValueError, TypeError) as error:
            raise PeerRejected(
                "malformed", f"a certificate cannot be read: {printable(str(error))}"
            ) from error
        # On a client OpenSSL's chain begins with the leaf, on a server it does not.
        return leaf, [certificate for certificate in chain if certificate != leaf]

    # ── sending ─────────────────────────────────────────────────────────────────────────────

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`. Cancellation leaves a stream that can send no more (the peer
        sees it cut), but can still receive.

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.BrokenResourceError, TlsError, trio.ClosedResourceError
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this TLS stream")
        self._sending = True
        try:
            await self._send_all(memoryview(data).cast("B"))
        finally:
            self._sending = False

    async def _send_all(self, data: memoryview) -> None:
        await trio.lowlevel.checkpoint()
        async with self._out:
            self._demand_usable()
            if self._send_ended:
                raise trio.BrokenResourceError(self._send_ended)
            for start in range(0, len(data), SEND_BYTES):
                self._encrypt(data[start : start + SEND_BYTES])
                await self._flush_held()

    def _encrypt(self, plain: memoryview) -> None:
        while plain:
            try:
                sent = self._connection.send(plain)
            except SSL.Error as error:
                raise self._fail(TlsError(words_for(error), reason_of(error))) from error
            plain = plain[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream` says. Cancellation leaves nothing behind."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this TLS stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            async with self._out:
                self._demand_usable()
                await self._transport.wait_send_all_might_not_block()
        finally:
            self._sending = False

    # ── receiving ───────────────────────────────────────────────────────────────────────────

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, at most `max_bytes` and one record; ``b""`` if, and only if, the peer
        ended the connection in order. Cancellation loses nothing.

        Raises:
            TlsError: the connection was cut or tampered with, or the peer sent an alert.
            trio.BusyResourceError: another task is receiving.
            trio.BrokenResourceError, trio.ClosedResourceError
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this TLS stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._receive(min(max_bytes or _RECORD_BYTES, _RECORD_BYTES))
        finally:
            self._receiving = False

    async def _receive(self, max_bytes: int) -> bytes:
        while True:
            self._demand_usable()
            try:
                return self._connection.recv(max_bytes)
            except SSL.ZeroReturnError:
                return b""
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                raise await self._translate(error, "without a TLS close") from error
            await self._flush_if_free()
            await self._feed()

    async def _feed(self) -> int:
        """Carries one piece of the transport to OpenSSL; returns its length."""
        if self._transport_ended:
            raise self._fail(TlsError("the connection was cut"))
        data = await self._transport.receive_some(RECEIVE_BYTES)
        if not data:
            # OpenSSL must be told, or it asks for more for ever.
            self._transport_ended = True
            self._connection.bio_shutdown()
            return 0
        fed = memoryview(data)
        while fed:
            fed = fed[self._connection.bio_write(fed) :]
        return len(data)

    # ── closing ─────────────────────────────────────────────────────────────────────────────

    async def aclose(self) -> None:
        """Send close_notify if that can be done soon (`FAREWELL_TIMEOUT_S`), and close the
        transport. It does not wait for the peer. Cancellation still closes everything."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.half_close()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            self._closed = True
            await self._transport.aclose()

    async def half_close(self) -> None:
        """Send close_notify; nothing can be sent after it. Does nothing where it cannot be
        sent: before the handshake, after a failure, or while another task is sending.

        Raises:
            trio.BrokenResourceError: the transport broke.
        """
        if not self._shaken or self._send_ended or self._failure or self._out.locked():
            await trio.lowlevel.checkpoint()
            return
        try:
            self._connection.shutdown()
        except SSL.Error:
            await trio.lowlevel.checkpoint()
            return
        await self._farewell()
        self._send_ended = self._send_ended or "this TLS stream was half-closed"

    async def end_and_drain(self, drain_bytes: int) -> None:
        """After `half_close`: say so on the transport as well, then throw away what the peer
        still sends, undecrypted, until it ends or `drain_bytes` have come.

        A socket that is closed with bytes unread sends a reset, and a reset makes the peer drop
        what it has not read yet: our last words. Set a time limit around it.

        Raises:
            trio.BrokenResourceError: the transport broke.
        """
        if isinstance(self._transport, trio.abc.HalfCloseableStream):
            await self._transport.send_eof()
        while drain_bytes > 0:
            data = await self._transport.receive_some(min(drain_bytes, RECEIVE_BYTES))
            if not data:
                return
            drain_bytes -= len(data)

    # ── the outgoing BIO ────────────────────────────────────────────────────────────────────

    async def _flush(self) -> None:
        async with self._out:
            await self._flush_held()

    async def _flush_if_free(self) -> None:
        if self._out.locked() or self._send_ended:
            return
        await self._flush()

    async def _flush_held(self) -> None:
        """Sends the BIO empty; `_out` must be held. Between the last look into the BIO and the
        release of the lock there is no checkpoint, so nothing is left lying."""
        while records := self._take_records():
            sent = False
            try:
                await self._transport.send_all(records)
                sent = True
            finally:
                if not sent:
                    self._send_ended = "an earlier send on this TLS stream was cut short"

    def _take_records(self) -> bytes:
        try:
            return self._connection.bio_read(_BIO_READ_BYTES)
        except SSL.WantReadError:
            return b""

    async def _farewell(self) -> None:
        """Sends an alert that lies in the BIO, if that can be done soon."""
        with trio.move_on_after(FAREWELL_TIMEOUT_S):
            await self._flush_if_free()

    # ── failures ────────────────────────────────────────────────────────────────────────────

    def _demand_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS stream is closed")
        if self._failure is not None:
            raise TlsError(str(self._failure), self._failure.reason)

    def _fail(self, failure: TlsError) -> TlsError:
        self._failure = failure
        return failure

    async def _translate(self, error: SSL.Error, where: str) -> TlsError:
        """The failure to raise for `error`, after the alert for it has been sent. From here on
        the stream is broken: OpenSSL allows no further use."""
        if isinstance(error, SSL.SysCallError | SSL.ZeroReturnError):
            failure = TlsError(f"the connection was cut {where}")
        else:
            failure = TlsError(words_for(error), reason_of(error))
        self._fail(failure)
        try:
            await self._farewell()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return failure
