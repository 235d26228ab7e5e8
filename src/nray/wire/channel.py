"""Messages over a trio stream. All judgement is in `states`; this moves bytes.

A `Channel` owns its stream: closing the channel closes the stream, and nobody else reads from
or writes to it meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import trio

from nray.wire.errors import PeerFault, Reason, refusal
from nray.wire.framing import FrameReader, encode_frame
from nray.wire.messages import Message, NodeMessage, ServerMessage
from nray.wire.states import End, State

#: Bytes asked of the stream at a time: four TLS records; a Segment of 16 MiB takes 256 turns.
RECEIVE_BYTES: Final = 64 * 1024

#: Seconds for a refusal to be sent and read, after which the peer is left to itself. A frame
#: and its answer cross any path in use within it; a peer that stalls holds a task no longer.
REFUSE_S: Final = 2.0

#: Bytes that a refused peer may still have under way before we stop reading them: what two full
#: socket buffers and a frame or two hold.
DRAIN_BYTES_MAX: Final = 8 * 1024 * 1024

_Out = TypeVar("_Out", bound=Message)
_In = TypeVar("_In", bound=Message)


class ChannelEnded(Exception):
    """The other end closed between two frames, or this talk was already over.

    Attributes:
        state: how far it had come: ended in LEAVING or DRAINING is as it should be.
    """

    def __init__(self, state: State) -> None:
        super().__init__(f"the other end closed the connection (state: {state.value})")
        self.state = state


class ChannelBroken(trio.BrokenResourceError):
    """The connection was lost: cut within a frame, reset, or a send of ours was cut short."""


class Channel(trio.abc.AsyncResource, Generic[_Out, _In]):
    """Whole messages over a stream, for a server with `ServerEnd`, for a node with `NodeEnd`.

    Any number of tasks may send; one task receives. Use it as an asynchronous context manager,
    or call `aclose`.

    Args:
        stream: owned by the channel from now on.
        end: the state machine of this end, new.
        unfinished: awaited after each read that completed no frame, with its bytes: a peer that
            sends crumbs can be held back here. It may be cancelled; nothing is lost.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        end: End[_Out, _In],
        unfinished: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._stream = stream
        self._end = end
        self._unfinished = unfinished
        self._reader = FrameReader()
        self._send_lock = trio.Lock()
        self._send_broken = False
        self._fault: PeerFault | None = None
        self._closed = False

    @property
    def state(self) -> State:
        """How far the talk has come, as this end knows it."""
        return self._end.state

    @property
    def stream(self) -> trio.abc.Stream:
        """What it talks over: to ask who is at the other end, not to be read or written."""
        return self._stream

    @property
    def credit(self) -> int:
        """Slices that the node asked for and has not been leased."""
        return self._end.credit

    async def send(self, message: _Out) -> None:
        """Send one message whole; sends of several tasks go one after the other, in order.

        Cancelled while it waits for its turn, nothing was sent and the channel is as before.
        Cancelled later, half a frame may be out: every further send raises `ChannelBroken`.
        Receiving goes on working either way: a lost peer may have left a reason behind.

        Raises:
            LocalFault: it may not be sent now, or does not fit a frame. Nothing was sent.
            ChannelEnded: a Refused has passed, either way.
            ChannelBroken: the connection is lost, now or by an earlier send.
            trio.ClosedResourceError: the channel was closed on this end.
        """
        async with self._send_lock:
            self._check_open()
            if self._send_broken:
                raise ChannelBroken("an earlier send failed or was cut short")
            frame = encode_frame(message)
            self._end.send(message)
            try:
                await self._stream.send_all(frame)
            except BaseException as error:
                self._send_broken = True
                if isinstance(error, trio.BrokenResourceError):
                    raise ChannelBroken("the connection was lost while sending") from error
                raise

    async def receive(self) -> _In:
        """The next message. Cancellation loses nothing: call it again.

        After a `PeerFault` the same fault is raised for ever; close, or `refuse` and close.

        Raises:
            ChannelEnded: the peer closed between two frames, or a Refused has passed.
            ChannelBroken: the connection was lost, or ended within a frame.
            PeerFault: the peer sent what it may not.
            trio.BusyResourceError: another task receives.
            trio.ClosedResourceError: the channel was closed on this end.
        """
        await trio.lowlevel.checkpoint()
        message = self._take()
        while message is None:
            try:
                chunk = await self._stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise ChannelBroken("the connection was lost") from error
            if not chunk:
                raise self._end_of_stream()
            self._reader.feed(chunk)
            message = self._take()
            if message is None and self._unfinished is not None:
                await self._unfinished(len(chunk))
        return message

    def _take(self) -> _In | None:
        """The next message that is here in full; the logic of `receive`, without its waiting."""
        if self._fault is not None:
            raise PeerFault(self._fault.reason, self._fault.detail)
        self._check_open()
        try:
            self._reader.limit = self._end.receive_limit
            body = self._reader.next()
            if body is None:
                return None
            message = self._end.decode(body)
            self._end.receive(message)
        except PeerFault as fault:
            self._fault = fault
            raise
        return message

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed")
        if self._end.state is State.CLOSED:
            raise ChannelEnded(State.CLOSED)

    def _end_of_stream(self) -> Exception:
        if self._reader.pending:
            return ChannelBroken(f"it ended within a frame, after {self._reader.pending} bytes")
        return ChannelEnded(self._end.state)

    async def refuse(
        self: Channel[ServerMessage, NodeMessage],
        reason: Reason,
        detail: str = "",
        retry: bool | None = None,
    ) -> None:
        """Tell the peer why it is not wanted, as well as that can be done in `REFUSE_S`.

        Sends Refused, ends our direction where the stream can, and reads away what the peer has
        under way: a socket that is closed with bytes unread resets, and the reason would be
        lost. A lost connection is no error here. Call it from the task that receives, and
        `aclose` afterwards; the channel is of no other use. Cancelled, it is the same.

        Args:
            retry: whether trying later helps; left out, the reason decides (`RETRY_HELPS`).

        Raises:
            LocalFault: on a node's end, which has no Refused.
        """
        if self._end.state is State.CLOSED:
            return  # refused or closed before
        with trio.move_on_after(REFUSE_S):
            try:
                await self.send(refusal(reason, detail, retry))
                if isinstance(self._stream, trio.abc.HalfCloseableStream):
                    await self._stream.send_eof()
                await self._drain()
            except (trio.BrokenResourceError, trio.ClosedResourceError, ChannelEnded):
                pass  # gone already
            except trio.BusyResourceError:
                pass  # another task receives: then what is under way may cost the peer the reason

    async def _drain(self) -> None:
        left = DRAIN_BYTES_MAX
        while left > 0:
            chunk = await self._stream.receive_some(RECEIVE_BYTES)
            if not chunk:
                return
            left -= len(chunk)

    async def aclose(self) -> None:
        """Close the stream; a task that waits in `receive` gets `trio.ClosedResourceError`.

        Cancelled, the stream is closed all the same, without its farewell.
        """
        self._closed = True
        self._end.close()
        await self._stream.aclose()
