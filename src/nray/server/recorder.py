"""Hits into events: the one place where packed findings become what users read."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nray.events.hub import Hub
from nray.events.model import Environment, Event, environment_event, port_event
from nray.targets.findings import Finding

SCANTYPES = {"tcp": "tcpconnect", "udp": "udp"}


@dataclass(frozen=True)
class Source:
    """Where findings come from: a node, its pool, the name in its certificate."""

    node_id: str
    node_name: str
    pool: int = 0
    identity: str | None = None


def now_ms() -> int:
    """The clock of events: ms since the epoch."""
    return time.time_ns() // 1_000_000


class Recorder:
    """Writes findings down through the hub.

    Args:
        hub: where events go; a slow one holds the scan.
        tcp_timeout_ms, udp_timeout_ms: told in each event.
    """

    def __init__(self, hub: Hub, tcp_timeout_ms: int, udp_timeout_ms: int) -> None:
        self._hub = hub
        self._timeouts = {"tcp": tcp_timeout_ms, "udp": udp_timeout_ms}

    async def findings(self, source: Source, findings: list[Finding]) -> None:
        """Bring findings to the sinks; waits while one of them is full."""
        moment = now_ms()
        await self._hub.publish([self._event(source, moment, each) for each in findings])

    def _event(self, source: Source, moment: int, finding: Finding) -> Event:
        return port_event(
            node_id=source.node_id,
            node_name=source.node_name,
            timestamp_ms=moment,
            target=finding.target,
            address=finding.address,
            port=finding.port,
            scantype=SCANTYPES[finding.protocol],
            timeout_ms=self._timeouts[finding.protocol],
            state=finding.state,
            reason=finding.reason,
            ttl=finding.ttl or None,
            rtt_us=round(finding.rtt_ms * 1000) or None,
            pool=source.pool,
            identity=source.identity,
        )

    async def registration(self, source: Source, environment: Environment) -> None:
        """A node has registered."""
        await self._hub.publish(
            [
                environment_event(
                    node_id=source.node_id,
                    node_name=source.node_name,
                    timestamp_ms=now_ms(),
                    environment=environment,
                    pool=source.pool,
                    identity=source.identity,
                )
            ]
        )

    async def flush(self) -> None:
        """Wait until all is written."""
        await self._hub.flush()
