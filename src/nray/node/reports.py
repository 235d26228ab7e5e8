"""Reports that a server has not yet acknowledged: kept, numbered, sent again after a reconnect."""

from __future__ import annotations

from collections import deque

from nray.node.supervisor import Outcome
from nray.wire.messages import Counts, Report

#: Reports under way at most. A worker's report holds at most 256 KiB of hits and most hold a few
#: records, so this bounds the memory and still covers a round trip.
UNACKNOWLEDGED_MAX = 64


class ReportBook:
    """Numbers reports from 1 and keeps each until it is acknowledged."""

    def __init__(self) -> None:
        self._kept: deque[Report] = deque()
        self._next = 1
        self._sent = 0

    @property
    def full(self) -> bool:
        """Whether nothing more should be added for now."""
        return len(self._kept) >= UNACKNOWLEDGED_MAX

    @property
    def empty(self) -> bool:
        """Whether all was acknowledged."""
        return not self._kept

    def add(self, outcome: Outcome) -> Report:
        """A finding as a report, from now on kept."""
        report = Report(
            self._next,
            outcome.lease,
            outcome.hits,
            outcome.done,
            Counts(*outcome.counts) if outcome.done else Counts(),
            outcome.errors if outcome.done else {},
        )
        self._next += 1
        self._kept.append(report)
        return report

    def unsent(self) -> list[Report]:
        """Reports that were not yet sent on this connection, in order; they count as sent now."""
        waiting = [report for report in self._kept if report.report > self._sent]
        if waiting:
            self._sent = waiting[-1].report
        return waiting

    def reconnected(self) -> None:
        """A new connection: all that is kept is to be sent again."""
        self._sent = self._kept[0].report - 1 if self._kept else self._next - 1

    def acknowledge(self, report: int) -> None:
        """The server has all up to this number."""
        while self._kept and self._kept[0].report <= report:
            self._kept.popleft()

    @property
    def leases_done(self) -> set[int]:
        """Leases whose end is reported and not acknowledged."""
        return {report.lease for report in self._kept if report.done}
