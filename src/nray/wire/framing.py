"""Messages as frames: four bytes of length, most significant first, then that many of msgpack.

    00 00 00 0f  82 a4 't''y''p''e' a3 'a''s''k' a6 'l''e''a''s''e''s' 02

`FrameReader` cuts a stream into bodies; `decode_*` turns a body into a message; `encode_frame`
does both the other way. No I/O. Whatever bytes come in, the only exception that goes out is
`PeerFault`.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from nray.wire.errors import LocalFault, PeerFault, Reason, clip
from nray.wire.messages import (
    Message,
    NodeMessage,
    Refused,
    Register,
    ServerMessage,
    Welcome,
)

HEADER_BYTES: Final = 4

#: Before registration, and for a server's very first frame. The largest honest one is a Register
#: with long texts in a four-byte script (9 KiB) that comes back with all the leases a node may
#: hold (36 KiB). What a port scanner, a browser or a lost TLS hello sends reads as a length far
#: above it, so it is refused after four bytes.
GREETING_BYTES_MAX: Final = 64 * 1024

#: Node to server, once registered. A report of 28,672 hits fits; a server with 1,000 nodes that
#: all stop within a frame holds 1 GiB at worst, and 16 times less while they only register.
NODE_FRAME_BYTES_MAX: Final = 1024 * 1024

#: Server to node, once welcomed. Larger for the sake of Segment, whose body may list names or
#: networks by the hundred thousand; a node has one server, so it holds one such frame at most.
SERVER_FRAME_BYTES_MAX: Final = 16 * 1024 * 1024

_M = TypeVar("_M", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_server_messages: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
_node_messages: msgspec.msgpack.Decoder[NodeMessage] = msgspec.msgpack.Decoder(NodeMessage)


def frame_bytes_max(message: Message) -> int:
    """The largest body in bytes that the other end takes for a message of this kind."""
    if isinstance(message, Welcome | Refused | Register):
        return GREETING_BYTES_MAX
    return NODE_FRAME_BYTES_MAX if isinstance(message, NodeMessage) else SERVER_FRAME_BYTES_MAX


def encode_frame(message: Message) -> bytes:
    """One whole frame.

    Raises:
        LocalFault: the message does not fit its frame, or holds what msgpack cannot.
    """
    kind = message.__struct_config__.tag
    try:
        body = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalFault(f"{kind} cannot be written: {error}") from error
    most = frame_bytes_max(message)
    if len(body) > most:
        raise LocalFault(f"{kind} takes {len(body)} bytes, more than {most}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def decode_server_message(body: bytes) -> ServerMessage:
    """What a server said.

    Raises:
        PeerFault: the body is no message of a server.
    """
    return _decode(_server_messages, body)


def decode_node_message(body: bytes) -> NodeMessage:
    """What a node said.

    Raises:
        PeerFault: the body is no message of a node.
    """
    return _decode(_node_messages, body)


def _decode(decoder: msgspec.msgpack.Decoder[_M], body: bytes) -> _M:
    try:
        return decoder.decode(body)
    # ValueError: msgspec's own errors and bad UTF-8. RecursionError: nested too deep.
    except (ValueError, RecursionError) as error:
        raise PeerFault(Reason.MALFORMED, clip(str(error))) from error


class FrameReader:
    """Cuts a stream of bytes into frames.

    Call `feed` with what arrived, then `next` until it returns None, then `feed` again. It never
    holds more than one unfinished frame and one chunk beyond it. Each byte is copied twice
    (in and out), however the stream was cut: bytearray drops its front without moving the rest.

    Attributes:
        limit: bytes of the largest body taken now; set it before `next` as the talk goes on.
    """

    def __init__(self, limit: int = GREETING_BYTES_MAX) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes held that are not yet a frame handed out; above 0 at the end: it was cut off."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """Take what arrived.

        Raises:
            LocalFault: a whole frame is still to be fetched; without this check a caller that
                never fetches would fill the memory.
        """
        if len(self._buffer) >= HEADER_BYTES + self.limit:
            raise LocalFault("fed before the frames of the last chunk were fetched")
        self._buffer += data

    def next(self) -> bytes | None:
        """The body of the next frame, or None if it is not here in full.

        Raises:
            PeerFault: a frame of no bytes or of more than `limit` was announced. The stream has
                lost its sense then: the same is raised for ever.
        """
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length == 0:
            raise PeerFault(Reason.MALFORMED, "a frame of no bytes")
        if length > self.limit:
            detail = f"a frame of {length} bytes was announced; {self.limit} are allowed here"
            raise PeerFault(Reason.OVERSIZE, detail)
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = view[HEADER_BYTES:end].tobytes()
        del self._buffer[:end]
        return body
