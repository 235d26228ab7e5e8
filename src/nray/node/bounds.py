"""What a server may demand of a node, so that a malicious one cannot break it.

`wire.rules` holds what any message may hold; here is what this node can do with it. Whatever goes
beyond is the server's fault and is told in words: no worker ever sees it. What a node *wants* to
do is another matter, see `policy`.
"""

from __future__ import annotations

from nray.node.orders import METHODS, goes_raw, needs_raw
from nray.targets.segment import Segment
from nray.wire.errors import PeerFault, Reason
from nray.wire.messages import Lease, Settings
from nray.worker.protocol import PAYLOAD_BYTES_MAX, STATES, steps_fault

#: Probes in flight: what C's int and the schema's ``workers`` hold.
WORKERS_MAX = 2**31 - 1
#: Milliseconds that an answer is waited for: some 25 days, and far below an overflow of ns.
TIMEOUT_MS_MAX = 2**31 - 1
#: Times that a silent port is probed again: beyond this a scan only lasts and bothers.
RETRIES_MAX = 10
#: Packed bytes of all segments of a scan. Unpacked and in every worker they take up to twenty
#: times as much; four frames of the largest size still fit, some three million names.
SEGMENTS_BYTES_MAX = 64 * 1024 * 1024
#: What a segment costs beyond its bytes: its objects here and its space in a worker.
SEGMENT_BYTES = 4096
#: Positions of a slice of names are walked one by one, and each name is looked up. Servers lease
#: at most 4,096.
NAMES_LEASE_MAX = 65_536
#: Seconds between two heartbeats; more often than this would only keep both ends busy, and
#: longer than a day is no heartbeat.
HEARTBEAT_LEAST_S = 0.02
HEARTBEAT_MOST_S = 86_400.0


def check_settings(settings: Settings) -> None:
    """Raises PeerFault for settings that workers cannot be run with."""
    if settings.workers > WORKERS_MAX:
        raise _fault(f"workers are {settings.workers}, more than {WORKERS_MAX}")
    for name in ("tcp_timeout_ms", "udp_timeout_ms"):
        value = getattr(settings, name)
        if value > TIMEOUT_MS_MAX:
            raise _fault(f"{name} is {value}, more than {TIMEOUT_MS_MAX}")
    payloads = [("udp_payload", settings.udp_payload)]
    payloads += [
        (f"the payload of UDP port {port}", data) for port, data in settings.udp_payloads.items()
    ]
    for name, payload in payloads:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise _fault(f"{name} has {len(payload)} bytes, more than {PAYLOAD_BYTES_MAX}")
    questions = [
        (port, settings.udp_payloads.get(port, b""), steps)
        for port, steps in settings.udp_checks.items()
    ]
    for port, further in settings.udp_further.items():
        if port not in settings.udp_payloads:
            raise _fault(f"UDP port {port} has further payloads and no first one")
        questions += [(port, payload, steps) for payload, steps in further]
    for port, payload, steps in questions:
        wrong = steps_fault(payload, steps)
        if wrong:
            raise _fault(f"questions of UDP port {port}: {wrong}")
    if settings.tcp_method not in METHODS:
        raise _fault(f"tcp_method {settings.tcp_method[:40]!r} is not known here")
    if settings.retries > RETRIES_MAX:
        raise _fault(f"retries are {settings.retries}, more than {RETRIES_MAX}")
    for state in settings.states:
        if state not in STATES:
            raise _fault(f"state {state[:40]!r} is not known here")


def heartbeat(asked_s: float) -> float:
    """Seconds between heartbeats, for what a server asks."""
    return min(max(asked_s, HEARTBEAT_LEAST_S), HEARTBEAT_MOST_S)


class Segments:
    """The segments of one scan, and what they cost in all.

    Args:
        settings: of the scan, by which workers were told what they need.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[int, Segment] = {}
        self._bytes = 0

    def __contains__(self, number: int) -> bool:
        return number in self._known

    def add(self, number: int, body: bytes) -> Segment:
        """A segment that is new here.

        Raises:
            PeerFault: it is none, or more than this node keeps.
        """
        self._bytes += len(body) + SEGMENT_BYTES
        if self._bytes > SEGMENTS_BYTES_MAX:
            raise _fault(
                f"segment {number} is one too many: a node keeps {SEGMENTS_BYTES_MAX >> 20} MiB"
            )
        try:
            segment = Segment.unpack(body)
        except (ValueError, OverflowError) as error:
            raise PeerFault(Reason.MALFORMED, f"segment {number}: {error}") from error
        if segment.id != number:
            raise PeerFault(Reason.MALFORMED, f"segment {number} calls itself {segment.id}")
        if goes_raw(self._settings, segment) and not needs_raw(self._settings):
            raise _fault(f"segment {number} is of pings, which the scan's settings do not have")
        self._known[number] = segment
        return segment

    def check(self, lease: Lease) -> None:
        """Raises PeerFault for a lease that is no slice of its segment."""
        segment = self._known[lease.segment]
        end = lease.start + lease.count
        if end > segment.probes:
            raise _fault(
                f"lease {lease.start}+{lease.count} of segment {segment.id}, "
                f"which has {segment.probes} probes"
            )
        if segment.names and lease.count > NAMES_LEASE_MAX:
            raise _fault(f"a lease of {lease.count} names, more than {NAMES_LEASE_MAX}")


def _fault(detail: str) -> PeerFault:
    return PeerFault(Reason.PROTOCOL, detail)
