"""What each message may hold, whoever sends it and whenever: ranges, lengths, sizes.

One line in `RULES` for each message. The same rule is asked on the way out (where a broken one
is our bug) and on the way in (where it is the peer's), and no message that keeps its rule is
too large for its frame, `Registered` with huge user-given payloads excepted.

Rules that depend on what was said before are in `states`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from nray.wire.errors import TEXT_CHARS_MAX
from nray.wire.messages import (
    Ack,
    Ask,
    Bye,
    Counts,
    Heartbeat,
    Lease,
    Message,
    Pulse,
    Refused,
    Register,
    Registered,
    Report,
    Segment,
    Settings,
    Shown,
    Steps,
    Stop,
    Welcome,
)

#: Every whole number on the wire is below this: what SQLite and C's int64 hold, and the largest
#: space (DESIGN.md, contract 1).
NUMBER_END: Final = 2**63

#: Bytes of one packed hit. Must equal the size of `nray._core`'s record; this room may not
#: import it, so a test of the whole compares the two.
HIT_BYTES: Final = 32

#: Most bytes of hits in one report: 28,672 hits. With all else that a report may hold (errors:
#: about 66 KiB) it stays below a node's 1 MiB frame; a slice with more is told in several.
HITS_BYTES_MAX: Final = 896 * 1024

#: Bytes of a packed host, as `HIT_BYTES`.
HOST_BYTES: Final = 17

#: Most hosts in one `Shown`: some 70 kB, a moment's work for either end.
SHOWN_MAX: Final = 4096

#: Largest packed segment; the rest of the 16 MiB frame is for the map around it. Some 800,000
#: names or 900,000 networks; a list beyond that is cut into several segments.
SEGMENT_BYTES_MAX: Final = 16 * 1024 * 1024 - 1024

#: Most slices that a node may have asked for and not got: two each for 2,048 processes.
ASKED_MAX: Final = 4096

#: Most leases that a node may bring back when it registers again: as many as it could ask for.
HELD_MAX: Final = ASKED_MAX

#: Characters of a node's name, as in the first nray.
NAME_CHARS_MAX: Final = 32

#: Different causes of errors in one report. errno has some 130 values, a connect gives about 20.
ERROR_KINDS_MAX: Final = 64

#: Reported states besides open: there are four today.
STATES_MAX: Final = 16

#: Ways to probe TCP that a node knows: there are two today.
METHODS_MAX: Final = 16

#: The largest UDP payload over IPv4: 65,535 less 20 (IP) and 8 (UDP). RFC 768, RFC 791.
UDP_PAYLOAD_BYTES_MAX: Final = 65_507

#: Steps of one check, and payloads of one port: a node's core knows no more.
STEPS_MAX: Final = 96
FURTHER_MAX: Final = 7

Trouble = str | None


def _number(name: str, value: Any, low: int = 0, high: int = NUMBER_END - 1) -> Trouble:
    if type(value) is not int:
        return f"{name} is no whole number"
    if not low <= value <= high:
        return f"{name} is {value}, not {low} to {high}"
    return None


def _seconds_or_rate(name: str, value: Any, above_zero: bool) -> Trouble:
    if type(value) not in (int, float) or not math.isfinite(value):
        return f"{name} is no finite number"
    if value < 0 or (above_zero and value == 0):
        return f"{name} is {value}, not above zero" if above_zero else f"{name} is negative"
    return None


def _text(name: str, value: Any, chars: int = TEXT_CHARS_MAX, empty: bool = True) -> Trouble:
    if not isinstance(value, str):
        return f"{name} is no text"
    if len(value) > chars:
        return f"{name} has {len(value)} characters, more than {chars}"
    if not value and not empty:
        return f"{name} is empty"
    return None


def _octets(name: str, value: Any, most: int, multiple_of: int = 1) -> Trouble:
    if not isinstance(value, bytes):
        return f"{name} is no bytes"
    if len(value) > most:
        return f"{name} has {len(value)} bytes, more than {most}"
    if len(value) % multiple_of:
        return f"{name} has {len(value)} bytes, not a multiple of {multiple_of}"
    return None


def _welcome(m: Welcome) -> Iterator[Trouble]:
    yield _number("protocol", m.protocol)
    yield _text("server_version", m.server_version)


def _refused(m: Refused) -> Iterator[Trouble]:
    # Any text is taken as a reason: a newer server may know more of them, and it ends anyway.
    yield _text("reason", m.reason, empty=False)
    yield _text("detail", m.detail)


def _settings(s: Settings) -> Iterator[Trouble]:
    yield _number("workers", s.workers)
    for name in ("ratelimit", "host_rate", "network_rate"):
        yield _seconds_or_rate(name, getattr(s, name), above_zero=False)
    yield _number("tcp_timeout_ms", s.tcp_timeout_ms, low=1)
    yield _number("udp_timeout_ms", s.udp_timeout_ms, low=1)
    yield _octets("udp_payload", s.udp_payload, UDP_PAYLOAD_BYTES_MAX)
    for port, payload in s.udp_payloads.items():
        yield _number("a port of udp_payloads", port, 1, 65_535)
        yield _octets(f"udp_payloads of {port}", payload, UDP_PAYLOAD_BYTES_MAX)
    for port, steps in s.udp_checks.items():
        yield _number("a port of udp_checks", port, 1, 65_535)
        yield from _steps(f"udp_checks of {port}", steps)
    for port, further in s.udp_further.items():
        yield _number("a port of udp_further", port, 1, 65_535)
        if len(further) > FURTHER_MAX:
            yield f"udp_further of {port} are {len(further)}, more than {FURTHER_MAX}"
        for payload, steps in further:
            yield _octets(f"udp_further of {port}", payload, UDP_PAYLOAD_BYTES_MAX)
            yield from _steps(f"udp_further of {port}", steps)
    if len(s.states) > STATES_MAX:
        yield f"states are {len(s.states)}, more than {STATES_MAX}"
    for state in s.states:
        yield _text("a state", state, empty=False)
    yield _text("tcp_method", s.tcp_method, empty=False)
    yield _number("retries", s.retries)


def _steps(name: str, steps: Steps) -> Iterator[Trouble]:
    if len(steps) > STEPS_MAX:
        yield f"{name} has {len(steps)} steps, more than {STEPS_MAX}"
    for step in steps:
        for number in step:
            yield _number(f"a step of {name}", number, 0, 65_535)


def _registered(m: Registered) -> Iterator[Trouble]:
    yield _text("node_id", m.node_id, empty=False)
    yield _number("pool", m.pool)
    yield _number("server_time_ms", m.server_time_ms)
    yield _seconds_or_rate("heartbeat_s", m.heartbeat_s, above_zero=True)
    yield _text("scan", m.scan)
    yield from _settings(m.settings)


def _segment(m: Segment) -> Iterator[Trouble]:
    yield _number("segment", m.segment)
    yield _octets("body", m.body, SEGMENT_BYTES_MAX)


def _lease(m: Lease) -> Iterator[Trouble]:
    yield _number("lease", m.lease, low=1)
    yield _number("segment", m.segment)
    yield _number("start", m.start)
    yield _number("count", m.count, low=1)
    yield _number("start + count", m.start + m.count)


def _ack(m: Ack) -> Iterator[Trouble]:
    yield _number("report", m.report, low=1)


def _pulse(m: Pulse) -> Iterator[Trouble]:
    yield from ()


def _shown(m: Shown) -> Iterator[Trouble]:
    yield _octets("hosts", m.hosts, HOST_BYTES * SHOWN_MAX, multiple_of=HOST_BYTES)
    if not set(m.hosts[::HOST_BYTES]) <= {4, 6}:
        yield "hosts are of another family than 4 and 6"


def _stop(m: Stop) -> Iterator[Trouble]:
    yield _text("detail", m.detail)


def _register(m: Register) -> Iterator[Trouble]:
    yield _number("protocol", m.protocol)
    yield _text("node_version", m.node_version)
    yield _text("machine_id", m.machine_id, empty=False)
    yield _text("instance", m.instance, empty=False)
    yield _text("name", m.name, NAME_CHARS_MAX)
    yield _number("preferred_pool", m.preferred_pool, low=-1)
    yield _number("processes", m.processes, low=1)
    yield _number("environment.pid", m.environment.pid)
    for field in ("hostname", "os", "processname", "username", "cpumodelname"):
        yield _text(f"environment.{field}", getattr(m.environment, field))
    if len(m.leases) > HELD_MAX:
        yield f"leases are {len(m.leases)}, more than {HELD_MAX}"
    if len(set(m.leases)) < len(m.leases):
        yield "leases name one twice"
    for lease in m.leases:
        yield _number("one of leases", lease, low=1)
    yield _text("policy", m.policy)
    if len(m.methods) > METHODS_MAX:
        yield f"methods are {len(m.methods)}, more than {METHODS_MAX}"
    for method in m.methods:
        yield _text("a method", method, empty=False)


def _ask(m: Ask) -> Iterator[Trouble]:
    yield _number("leases", m.leases, 1, ASKED_MAX)


def _report(m: Report) -> Iterator[Trouble]:
    yield _number("report", m.report, low=1)
    yield _number("lease", m.lease, low=1)
    yield _octets("hits", m.hits, HITS_BYTES_MAX, multiple_of=HIT_BYTES)
    for field in Counts.__struct_fields__:
        yield _number(f"counts.{field}", getattr(m.counts, field))
    if not m.done and m.counts != Counts():
        yield "counts are set in a report that does not end its slice"
    if len(m.errors) > ERROR_KINDS_MAX:
        yield f"errors are of {len(m.errors)} kinds, more than {ERROR_KINDS_MAX}"
    for cause, times in m.errors.items():
        yield _text("a key of errors", cause)
        yield _number("a count of errors", times)


def _heartbeat(m: Heartbeat) -> Iterator[Trouble]:
    yield _number("sent", m.sent)


def _bye(m: Bye) -> Iterator[Trouble]:
    yield _text("detail", m.detail)


RULES: Final[dict[type[Message], Callable[[Any], Iterator[Trouble]]]] = {
    Welcome: _welcome,
    Refused: _refused,
    Registered: _registered,
    Segment: _segment,
    Lease: _lease,
    Ack: _ack,
    Pulse: _pulse,
    Shown: _shown,
    Stop: _stop,
    Register: _register,
    Ask: _ask,
    Report: _report,
    Heartbeat: _heartbeat,
    Bye: _bye,
}


def trouble_in(message: Message) -> str | None:
    """The first rule that a message breaks, in words, or None if it keeps them all."""
    for trouble in RULES[type(message)](message):
        if trouble is not None:
            return f"{message.__struct_config__.tag}: {trouble}"
    return None
