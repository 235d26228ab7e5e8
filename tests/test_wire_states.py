"""Who may say what when: every message in every state, on both ends."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nray.wire.errors import LocalFault, PeerFault, Reason
from nray.wire.framing import (
    GREETING_BYTES_MAX,
    NODE_FRAME_BYTES_MAX,
    SERVER_FRAME_BYTES_MAX,
    FrameReader,
    encode_frame,
)
from nray.wire.messages import (
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Lease,
    Pulse,
    Refused,
    Report,
    Segment,
    ServerMessage,
    Stop,
)
from nray.wire.rules import ASKED_MAX
from nray.wire.states import End, NodeEnd, ServerEnd, State
from test_wire_messages import CASES, REGISTER, REGISTERED, WELCOME, changed

#: What brings both ends into a state. ACTIVE is made so that each message of CASES fits it.
_BUSY = [WELCOME, REGISTER, REGISTERED, Ask(8), Segment(0, b""), Report(1, 7)]
PATHS = {
    State.NEW: [],
    State.WELCOMED: [WELCOME],
    State.REGISTERING: [WELCOME, REGISTER],
    State.ACTIVE: _BUSY,
    State.DRAINING: [*_BUSY, Stop(True)],
    State.LEAVING: [*_BUSY, Bye()],
    State.CLOSED: [*_BUSY, Refused("busy")],
}

#: The protocol once more, in other words than the tables of `states`.
ALLOWED = {
    State.NEW: "welcome refused",
    State.WELCOMED: "refused register",
    State.REGISTERING: "registered refused",
    State.ACTIVE: "segment lease ack pulse shown stop refused ask report heartbeat bye",
    State.DRAINING: "ack pulse shown refused ask report heartbeat bye",
    State.LEAVING: "segment lease ack pulse shown stop refused",
    State.CLOSED: "",
}

#: The state that follows, where it is another one.
NEXT = {
    "welcome": State.WELCOMED,
    "register": State.REGISTERING,
    "registered": State.ACTIVE,
    "bye": State.LEAVING,
    "refused": State.CLOSED,
}


def talk(messages) -> tuple[ServerEnd, NodeEnd]:
    """Both ends after these messages have gone from one to the other."""
    server, node = ServerEnd(), NodeEnd()
    for message in messages:
        if isinstance(message, ServerMessage):
            server.send(message)
            node.receive(message)
        else:
            node.send(message)
            server.receive(message)
    return server, node


def memory(end: End) -> dict:
    """All that an end knows, to be compared."""
    return {key: set(v) if isinstance(v, set) else v for key, v in vars(end).items()}


def speaker_and_hearer(message, ends) -> tuple[End, End]:
    server, node = ends
    return (server, node) if isinstance(message, ServerMessage) else (node, server)


def refused(end: End, verb: str, message) -> Exception:
    """The fault of a call that must fail and must change nothing."""
    before = memory(end)
    with pytest.raises(LocalFault if verb == "send" else PeerFault) as caught:
        getattr(end, verb)(message)
    assert memory(end) == before
    return caught.value


@pytest.mark.parametrize("tag", CASES)
@pytest.mark.parametrize("state", State, ids=lambda s: s.value)
def test_every_message_in_every_state(state, tag):
    message = CASES[tag]
    ends = talk(PATHS[state])
    assert [end.state for end in ends] == [state, state]
    speaker, hearer = speaker_and_hearer(message, ends)
    if tag in ALLOWED[state].split():
        speaker.send(message)
        hearer.receive(message)
        after = NEXT.get(tag, state)
        if tag == "stop" and state is State.ACTIVE:
            after = State.DRAINING
        assert [end.state for end in ends] == [after, after]
    else:
        refused(speaker, "send", message)
        fault = refused(hearer, "receive", message)
        assert fault.reason is Reason.UNEXPECTED
        assert tag in fault.detail
        assert state.value in fault.detail


@pytest.mark.parametrize("state", State, ids=lambda s: s.value)
@pytest.mark.parametrize("tag", CASES)
def test_nobody_says_the_words_of_the_other(state, tag):
    speaker, hearer = speaker_and_hearer(CASES[tag], talk(PATHS[state]))
    refused(hearer, "send", CASES[tag])
    refused(speaker, "receive", CASES[tag])


ACTIVE = PATHS[State.ACTIVE]
OUT_OF_ORDER = [
    (ACTIVE, Report(1, 7), "number 1 after 1"),
    (ACTIVE, Report(3, 7), "number 3 after 1"),
    (ACTIVE, Ack(2), "the last one here was 1"),
    ([*ACTIVE, Report(2, 7), Ack(2)], Ack(1), "after 2"),
    (PATHS[State.ACTIVE][:3], Ack(1), "the last one here was 0"),
    (ACTIVE, Lease(1, 5, 0, 1), "segment 5 was not announced"),
    ([*ACTIVE[:3], Segment(0, b"")], Lease(1, 0, 0, 1), "not asked for"),
    (
        [*ACTIVE[:3], Segment(0, b""), Ask(1), Lease(1, 0, 0, 1)],
        Lease(2, 0, 1, 1),
        "not asked for",
    ),
    (ACTIVE, Ask(ASKED_MAX), "slices asked for"),
    # and the rules of a single message hold too
    (ACTIVE, Report(2, 7, b"x" * 33), "multiple of 32"),
    (ACTIVE, Lease(0, 0, 0, 1), "lease is 0"),
    (ACTIVE, Heartbeat(-1), "sent is -1"),
    (PATHS[State.WELCOMED], changed(REGISTER, name="x" * 33), "name has 33"),
]


@pytest.mark.parametrize(("before", "message", "words"), OUT_OF_ORDER, ids=lambda v: str(v)[:50])
def test_out_of_order(before, message, words):
    speaker, hearer = speaker_and_hearer(message, talk(before))
    assert words in str(refused(speaker, "send", message))
    fault = refused(hearer, "receive", message)
    assert fault.reason is Reason.PROTOCOL
    assert words in fault.detail


IN_ORDER = {
    "reports go on where the last connection stopped": [*ACTIVE[:3], Report(41, 7), Report(42, 7)],
    "reports go on while draining": [*ACTIVE, Stop(False), Report(2, 7), Ack(2), Bye()],
    "an ack may be said twice": [*ACTIVE, Ack(1), Ack(1)],
    "an ack may leave numbers out": [*ACTIVE, Report(2, 7), Report(3, 7), Ack(3)],
    "the last ack comes after bye": [*ACTIVE, Bye(), Ack(1)],
    "a lease crosses bye": [*ACTIVE, Bye(), Lease(9, 0, 0, 1), Pulse(), Stop(True), Ack(1)],
    "a segment may be announced again": [*ACTIVE, Segment(0, b""), Lease(9, 0, 0, 1)],
    "credit comes back": [*ACTIVE[:3], Segment(0, b""), *([Ask(1), Lease(1, 0, 0, 1)] * 3)],
    "all credit at once": [*ACTIVE[:3], Ask(ASKED_MAX)],
}


@pytest.mark.parametrize("messages", IN_ORDER.values(), ids=IN_ORDER)
def test_in_order(messages):
    talk(messages)


def test_both_ends_count_alike():
    server, node = talk([*ACTIVE, Lease(1, 0, 0, 5), Report(2, 1), Ack(1)])
    assert (server.credit, server.reported, server.acked) == (7, 2, 1)
    assert memory(server) == memory(node)


@pytest.mark.parametrize("version", [0, 2, 2**62])
def test_another_version_is_called_so(version):
    server, node = talk(PATHS[State.WELCOMED])
    # Another version may have another idea of the rest.
    other = changed(REGISTER, protocol=version, name="x" * 99)
    assert refused(server, "receive", other).reason is Reason.VERSION
    refused(node, "send", other)
    fresh = NodeEnd()
    assert refused(fresh, "receive", changed(WELCOME, protocol=version)).reason is Reason.VERSION


def test_closing_ends_everything():
    for end in talk(ACTIVE):
        end.close()
        assert end.state is State.CLOSED
    refused(end, "send", Bye())


def test_how_large_a_frame_may_be_grows_with_trust():
    limits = {state: [e.receive_limit for e in talk(PATHS[state])] for state in State}
    assert limits[State.NEW] == [GREETING_BYTES_MAX, GREETING_BYTES_MAX]
    assert limits[State.WELCOMED] == [GREETING_BYTES_MAX, SERVER_FRAME_BYTES_MAX]
    assert limits[State.REGISTERING] == [GREETING_BYTES_MAX, SERVER_FRAME_BYTES_MAX]
    for state in (State.ACTIVE, State.DRAINING, State.LEAVING):
        assert limits[state] == [NODE_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX]


# ── laws ────────────────────────────────────────────────────────────────────────────────────

WORDS = [
    *(message for tag, message in CASES.items() if tag in ALLOWED[State.ACTIVE].split()),
    *(Report(number, 7) for number in range(3, 6)),
    *(Ack(number) for number in range(2, 6)),
    Lease(9, 1, 0, 1),
    Ask(ASKED_MAX - 8),
]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.lists(st.booleans() | st.sampled_from(WORDS), min_size=20, max_size=60))
def test_what_one_end_may_say_the_other_takes_however_messages_cross(steps):
    """A step says a word, if its speaker may, or delivers the oldest message of one direction."""
    server, node = talk(PATHS[State.ACTIVE])
    under_way = {True: deque(), False: deque()}
    for step in steps:
        if isinstance(step, bool):
            queue = under_way[step]
            hearer = node if step else server
            if queue:
                message = queue.popleft()
                if hearer.state is not State.CLOSED:  # a closed channel hears nothing
                    hearer.receive(message)
            continue
        speaker, _ = speaker_and_hearer(step, (server, node))
        try:
            speaker.send(step)
        except LocalFault:
            continue
        under_way[speaker is server].append(step)


def hear(end: End, data: bytes, cuts: list[int]) -> PeerFault | None:
    """Feed bytes cut into pieces as a channel would; the fault that ended it, if any did."""
    reader = FrameReader()
    for begin, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        reader.feed(data[begin:stop])
        while True:
            before = memory(end)
            reader.limit = end.receive_limit
            try:
                body = reader.next()
                if body is None:
                    break
                end.receive(end.decode(body))
            except PeerFault as fault:
                assert memory(end) == before
                encode_frame(fault.refusal)
                return fault
            if end.state is State.CLOSED:
                return None
    return None


@st.composite
def damaged(draw):
    """Frames of random messages, with bytes changed, put in, taken out."""
    data = bytearray()
    for message in draw(
        st.lists(st.sampled_from([*CASES.values(), *WORDS]), min_size=1, max_size=4)
    ):
        data += encode_frame(message)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    state=st.sampled_from(State),
    data=damaged() | st.binary(max_size=120),
    cuts=st.lists(st.integers(0, 200), max_size=4).map(sorted),
)
def test_whatever_comes_in_is_a_message_or_a_peer_fault(state, data, cuts):
    cuts = [cut for cut in cuts if cut <= len(data)]
    for end in talk(PATHS[state]):
        hear(end, data, cuts)


def test_the_fuzz_driver_sees_good_frames_and_bad_ones():
    """The judge judged: it takes whole talks, and does not swallow faults."""
    server, _ = talk(PATHS[State.ACTIVE])
    good = encode_frame(Report(2, 7)) + encode_frame(Bye())
    assert hear(server, good, [3, 9]) is None
    assert server.state is State.LEAVING
    server, _ = talk(PATHS[State.ACTIVE])
    assert hear(server, good.replace(b"bye", b"byx"), []) is not None
