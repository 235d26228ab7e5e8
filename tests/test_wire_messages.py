"""One table with a case for every message; the other tests of the wire take theirs from it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nray.events.model import Environment
from nray.wire import framing, rules
from nray.wire.errors import EXPLANATIONS, LocalFault, PeerFault, Reason, clip, refusal
from nray.wire.framing import FrameReader, encode_frame
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Counts,
    Heartbeat,
    Lease,
    NodeMessage,
    Pulse,
    Refused,
    Register,
    Registered,
    Report,
    Segment,
    ServerMessage,
    Settings,
    Shown,
    Stop,
    Welcome,
)

ENVIRONMENT = Environment("vantage", "Linux 6.18", 4711, "nray", "scan", "a CPU of eight cores")
SETTINGS = Settings(
    workers=250,
    ratelimit=1000.0,
    ratelimit_auto=True,
    host_rate=99.5,
    network_rate=1e4,
    udp_payload=b"\x00nray\xff",
    udp_payloads={19: b"A", 65535: b""},
    states=("closed", "open|filtered"),
    tarpits=True,
)
COUNTS = Counts(open=2, closed=90, filtered=7, error=1)

WELCOME = Welcome(PROTOCOL_VERSION, "0.1.0")
REGISTER = Register(
    PROTOCOL_VERSION, "0.1.0", "machine", "instance", "köln-1", -1, 2, ENVIRONMENT, (7, 2**40)
)
REGISTERED = Registered("node-1", 0, 1_767_323_045_123, 5.0, SETTINGS, "scan-1")

#: One message of each kind; every one of them may be sent in a fitting state of `PATHS`
#: (test_wire_states.py). The key is the tag that goes over the wire.
CASES: dict[str, ServerMessage | NodeMessage] = {
    "welcome": WELCOME,
    "refused": Refused("duplicate-machine", "there is one already", True),
    "registered": REGISTERED,
    "segment": Segment(1, bytes(range(256))),
    "lease": Lease(2**63 - 1, 0, 2**62, 2**62 - 1),
    "ack": Ack(1),
    "pulse": Pulse(True),
    "shown": Shown(b"\x04" + bytes(16) + b"\x06" + bytes(range(16))),
    "stop": Stop(False, "interrupted"),
    "register": REGISTER,
    "ask": Ask(4),
    "report": Report(2, 7, b"\x5a" * 64, True, COUNTS, {"EMFILE": 1}),
    "heartbeat": Heartbeat(123_456),
    "bye": Bye("out of memory"),
}

case = pytest.mark.parametrize("message", CASES.values(), ids=CASES)


def decode(message: ServerMessage | NodeMessage, body: bytes) -> ServerMessage | NodeMessage:
    if isinstance(message, ServerMessage):
        return framing.decode_server_message(body)
    return framing.decode_node_message(body)


def changed(message, **fields):
    """The same message with some fields set otherwise; a field within one as `counts__open`."""
    flat = {}
    for name, value in fields.items():
        outer, _, inner = name.partition("__")
        flat[outer] = (
            msgspec.structs.replace(getattr(message, outer), **{inner: value}) if inner else value
        )
    return msgspec.structs.replace(message, **flat)


def test_the_table_has_every_message():
    kinds = {kind for union in (ServerMessage, NodeMessage) for kind in union.__args__}
    assert {type(message) for message in CASES.values()} == kinds == set(rules.RULES)
    assert [m.__struct_config__.tag for m in CASES.values()] == list(CASES)


# ── there and back ──────────────────────────────────────────────────────────────────────────


@case
def test_round_trip(message):
    frame = encode_frame(message)
    reader = FrameReader()
    reader.feed(frame + b"\x00\x00")
    assert decode(message, reader.next()) == message
    assert reader.next() is None
    assert reader.pending == 2


@case
def test_byte_by_byte_and_truncated(message):
    frame = encode_frame(message)
    reader = FrameReader()
    for byte in frame[:-1]:
        reader.feed(bytes([byte]))
        assert reader.next() is None
    assert reader.pending == len(frame) - 1
    reader.feed(frame[-1:])
    assert decode(message, reader.next()) == message
    assert reader.pending == 0


@case
def test_a_body_cut_short_is_malformed(message):
    body = encode_frame(message)[4:]
    for length in range(len(body)):
        with pytest.raises(PeerFault) as caught:
            decode(message, body[:length])
        assert caught.value.reason is Reason.MALFORMED


@case
def test_a_message_keeps_the_rules(message):
    assert rules.trouble_in(message) is None


def test_the_frame_as_it_is_documented():
    """Made by hand from the msgpack specification, not by our encoder."""
    frame = b"\x00\x00\x00\x12" + b"\x82\xa4type\xa3ask\xa6leases\x02"
    assert encode_frame(Ask(2)) == frame
    assert framing.decode_node_message(frame[4:]) == Ask(2)


def test_a_field_that_we_do_not_know_is_passed_over():
    body = b"\x83\xa4type\xa3ask\xa6leases\x02\xa5later\x93\x01\x02\x03"
    assert framing.decode_node_message(body) == Ask(2)


# ── frames that are refused ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00\x00\x00", Reason.MALFORMED),
        (b"\x00\x00\x00\x0b", Reason.OVERSIZE),
        (b"\xff\xff\xff\xff", Reason.OVERSIZE),
        (b"GET / HTTP/1.1\r\n", Reason.OVERSIZE),
        (b"SSH-2.0-x\r\n", Reason.OVERSIZE),
        (b"\x16\x03\x01\x02\x00\x01", Reason.OVERSIZE),  # a TLS hello to a plain port
    ],
)
def test_a_bad_length_is_refused_before_its_body_and_for_ever(data, reason):
    reader = FrameReader(limit=10)
    reader.feed(data)
    for _ in range(2):
        with pytest.raises(PeerFault) as caught:
            reader.next()
        assert caught.value.reason is reason


def test_the_largest_frame_passes_and_one_byte_more_does_not():
    reader = FrameReader(limit=10)
    reader.feed(b"\x00\x00\x00\x0a" + b"0123456789" + b"\x00\x00\x00\x0b")
    assert reader.next() == b"0123456789"
    with pytest.raises(PeerFault):
        reader.next()


def test_the_buffer_is_bounded():
    reader = FrameReader(limit=10)
    reader.feed(b"\x00\x00\x00\x0a" + b"0123456789" + b"\x00")
    with pytest.raises(LocalFault):
        reader.feed(b"more")
    assert reader.next() == b"0123456789"
    reader.feed(b"\x00\x00\x01!")
    assert reader.next() == b"!"


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_bodies_do_not_depend_on_how_the_stream_was_cut(bodies, data):
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    reader, seen = FrameReader(limit=40), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[begin:end])
        while (body := reader.next()) is not None:
            seen.append(body)
    assert seen == bodies
    assert reader.pending == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\xc0",
        b"\x01",
        b"\x90",
        b"\x80",
        b"\xc1",
        b"\x81\xa4type\xa5nosuch",
        b"\x81\xa4type\xa4nope\x00",
        b"\x81\xa4type\x01",
        b"\x81\xa4type\xa7welcome",  # a server's word from a node
        b"\x81\xa4type\xa3ask",  # a field is missing
        b"\x82\xa4type\xa3ask\xa6leases\xa12",  # text for a number
        b"\x82\xa4type\xa3ask\xa6leases\xca\x40\x00\x00\x00",  # 2.0
        b"\x82\xa4type\xa3ask\xa6leases\xc3",  # true
        b"\x82\xa4type\xa3ask\xa6leases\x02\x00",  # and a byte behind it
        b"\x82\xa4type\xa3bye\xa6detail\xa2\xff\xfe",  # no UTF-8
        b"\x82\xa4type\xa3bye\xa6detail\xa3\xed\xa0\x80",  # half a surrogate pair
        b"\x82\xa4type\xa3bye\xa6detail\xdb\xff\xff\xff\xff",  # 4 GiB of text announced
        b"\x82\xa4type\xa3bye\xa1x" + b"\x91" * 10_000 + b"\xc0",  # deep
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_a_body_that_is_no_message_is_malformed(body):
    with pytest.raises(PeerFault) as caught:
        framing.decode_node_message(body)
    assert caught.value.reason is Reason.MALFORMED
    assert rules.trouble_in(caught.value.refusal) is None


@pytest.mark.parametrize(
    "message",
    [
        changed(REGISTER, name="x" * framing.GREETING_BYTES_MAX),
        changed(WELCOME, server_version="x" * framing.GREETING_BYTES_MAX),
        Report(1, 1, bytes(framing.NODE_FRAME_BYTES_MAX)),
        Segment(1, bytes(framing.SERVER_FRAME_BYTES_MAX)),
        Ask(2**64),
        Bye("\ud800"),
        Bye(object()),
    ],
    ids=["register", "welcome", "report", "segment", "number", "surrogate", "type"],
)
def test_we_do_not_write_what_does_not_fit(message):
    with pytest.raises(LocalFault):
        encode_frame(message)


# ── rules ───────────────────────────────────────────────────────────────────────────────────

FOUR_BYTES = "\U00010348"  # a letter of Gothic: what text of a given length takes at most
LONG = FOUR_BYTES * 256
LARGEST = {
    "register": Register(
        PROTOCOL_VERSION,
        *(LONG, LONG, LONG, FOUR_BYTES * 32),
        2**63 - 1,
        2**63 - 1,
        Environment(LONG, LONG, 2**63 - 1, LONG, LONG, LONG),
        tuple(range(2**63 - rules.HELD_MAX, 2**63)),
    ),
    "refused": Refused(LONG, LONG, True),
    "welcome": Welcome(2**63 - 1, LONG),
    "segment": Segment(2**63 - 1, bytes(rules.SEGMENT_BYTES_MAX)),
    "shown": Shown((b"\x06" + bytes(16)) * rules.SHOWN_MAX),
    "report": Report(
        2**63 - 1,
        2**63 - 1,
        bytes(rules.HITS_BYTES_MAX),
        True,
        Counts(*[2**63 - 1] * len(Counts.__struct_fields__)),
        {f"{i:03}{LONG[3:]}": 2**63 - 1 for i in range(rules.ERROR_KINDS_MAX)},
    ),
}


@pytest.mark.parametrize("message", LARGEST.values(), ids=LARGEST)
def test_the_largest_message_by_the_rules_fits_its_frame(message):
    assert rules.trouble_in(message) is None
    assert len(encode_frame(message)) <= framing.frame_bytes_max(message) + 4


BIG = 2**63
BROKEN = [
    ("welcome", {"protocol": -1}),
    ("welcome", {"server_version": "x" * 257}),
    ("refused", {"reason": ""}),
    ("refused", {"reason": "x" * 257}),
    ("refused", {"detail": "x" * 257}),
    ("registered", {"node_id": ""}),
    ("registered", {"pool": -1}),
    ("registered", {"server_time_ms": -1}),
    ("registered", {"heartbeat_s": 0.0}),
    ("registered", {"heartbeat_s": float("nan")}),
    ("registered", {"settings__workers": -1}),
    ("registered", {"settings__ratelimit": float("inf")}),
    ("registered", {"settings__ratelimit": -1.0}),
    ("registered", {"settings__host_rate": -1.0}),
    ("registered", {"settings__network_rate": float("nan")}),
    ("registered", {"settings__tcp_timeout_ms": 0}),
    ("registered", {"settings__udp_timeout_ms": 0}),
    ("registered", {"settings__udp_payload": bytes(65_508)}),
    ("registered", {"settings__udp_payloads": {0: b""}}),
    ("registered", {"settings__udp_payloads": {65_536: b""}}),
    ("registered", {"settings__udp_payloads": {1: bytes(65_508)}}),
    ("registered", {"settings__udp_checks": {0: ()}}),
    ("registered", {"settings__udp_checks": {1: ((0, 0, 0, 65_536),)}}),
    ("registered", {"settings__udp_checks": {1: ((0, 0, 0, -1),)}}),
    ("registered", {"settings__udp_checks": {1: ((0, 0, 0, 0),) * 97}}),
    ("registered", {"settings__udp_further": {65_536: ()}}),
    ("registered", {"settings__udp_further": {1: ((bytes(65_508), ()),)}}),
    ("registered", {"settings__udp_further": {1: ((b"", ((0, 0, 0, 65_536),)),)}}),
    ("registered", {"settings__udp_further": {1: ((b"", ()),) * 8}}),
    ("registered", {"settings__states": ("",)}),
    ("registered", {"settings__states": ("closed",) * 17}),
    ("registered", {"scan": "x" * 257}),
    ("segment", {"segment": -1}),
    ("segment", {"segment": BIG}),
    ("segment", {"body": bytes(rules.SEGMENT_BYTES_MAX + 1)}),
    ("shown", {"hosts": bytes(16)}),
    ("shown", {"hosts": b"\x05" + bytes(16)}),
    ("shown", {"hosts": b"\x04" + bytes(16) + b"\x00" + bytes(16)}),
    ("shown", {"hosts": (b"\x04" + bytes(16)) * (rules.SHOWN_MAX + 1)}),
    ("lease", {"lease": 0}),
    ("lease", {"lease": BIG}),
    ("lease", {"segment": -1}),
    ("lease", {"start": -1}),
    ("lease", {"count": 0}),
    ("lease", {"start": 1, "count": BIG - 1}),
    ("ack", {"report": 0}),
    ("stop", {"detail": "x" * 257}),
    ("register", {"protocol": BIG}),
    ("register", {"node_version": "x" * 257}),
    ("register", {"machine_id": ""}),
    ("register", {"instance": ""}),
    ("register", {"name": "x" * 33}),
    ("register", {"preferred_pool": -2}),
    ("register", {"processes": 0}),
    ("register", {"environment__pid": -1}),
    ("register", {"environment__hostname": "x" * 257}),
    ("register", {"environment__os": "x" * 257}),
    ("register", {"environment__processname": "x" * 257}),
    ("register", {"environment__username": "x" * 257}),
    ("register", {"environment__cpumodelname": "x" * 257}),
    ("register", {"leases": (0,)}),
    ("register", {"leases": (1, BIG)}),
    ("register", {"leases": (1, 2, 1)}),
    ("register", {"leases": tuple(range(1, rules.HELD_MAX + 2))}),
    ("ask", {"leases": 0}),
    ("ask", {"leases": 4097}),
    ("report", {"report": 0}),
    ("report", {"lease": 0}),
    ("report", {"lease": BIG}),
    ("report", {"hits": b"\x00" * 33}),
    ("report", {"hits": b"\x00" * 31}),
    ("report", {"hits": bytes(rules.HITS_BYTES_MAX + rules.HIT_BYTES)}),
    ("report", {"done": False}),
    ("report", {"counts__open": -1}),
    ("report", {"counts__addresses": BIG}),
    ("report", {"errors": {"x" * 257: 1}}),
    ("report", {"errors": {"EMFILE": -1}}),
    ("report", {"errors": {str(i): 1 for i in range(65)}}),
    ("heartbeat", {"sent": -1}),
    ("heartbeat", {"sent": BIG}),
    ("bye", {"detail": "x" * 257}),
]


@pytest.mark.parametrize(("tag", "fields"), BROKEN, ids=lambda v: str(v)[:40])
def test_a_broken_rule_names_message_and_field(tag, fields):
    trouble = rules.trouble_in(changed(CASES[tag], **fields))
    assert trouble is not None
    assert trouble.startswith(f"{tag}: ")
    field = list(fields)[-1].split("__")[-1]
    singular = {"states": "state", "done": "counts", "report": "report"}
    assert singular.get(field, field) in trouble
    assert clip(trouble) == trouble


@pytest.mark.parametrize("message", [Ask("4"), Ask(True), Bye(b""), Bye(None), Segment(1, "")])
def test_a_wrong_type_of_our_own_is_seen_too(message):
    assert rules.trouble_in(message) is not None


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def test_every_reason_is_explained_and_fits_a_refusal():
    assert list(EXPLANATIONS) == list(Reason)
    for reason in Reason:
        assert framing.decode_server_message(encode_frame(refusal(reason))[4:]).reason == reason


def test_a_refusal_says_whether_later_is_better():
    assert refusal(Reason.DUPLICATE_MACHINE).retry
    assert not refusal(Reason.VERSION).retry
    assert refusal(Reason.SHUTTING_DOWN, retry=True).retry


def test_a_fault_carries_its_refusal():
    fault = PeerFault(Reason.OVERSIZE, "x" * 1000)
    assert fault.refusal.reason == "oversize"
    assert rules.trouble_in(fault.refusal) is None
    assert str(fault).startswith("oversize: x")


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_clipped_text_can_be_sent(text):
    clipped = clip(text, 32)
    assert rules.trouble_in(changed(REGISTER, name=clipped)) is None
    encode_frame(Bye(clipped))
    assert clipped == text or len(text) > 32 or not text.isascii()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bodies_are_messages_or_malformed(body):
    for decoder in (framing.decode_server_message, framing.decode_node_message):
        try:
            rules.trouble_in(decoder(body))
        except PeerFault as fault:
            seen = fault.reason
        else:
            continue
        assert seen is Reason.MALFORMED
