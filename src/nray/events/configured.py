"""From the `events` section of the configuration to sinks."""

from __future__ import annotations

from collections.abc import Callable

from nray import UserError
from nray.config.schema import Events, JsonFile, Terminal
from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink, json_file_name
from nray.events.sink import Sink
from nray.events.terminal import TerminalSink

#: How many bytes of an output, by its sink's name, hold what it was given before; None where a
#: scan begins.
Resume = Callable[[str], int] | None


def sinks_from_config(
    events: Events, *, where: str = "events", resume: Resume = None
) -> list[SinkPort]:
    """The sinks that the configuration asks for, not yet opened; the terminal comes first.

    Args:
        where: what error messages put before the key: ``conf.yaml: events``, say.
        resume: for a scan that goes on.

    Raises:
        FilterError: for a filter or a state that cannot mean anything.
        UserError: for elasticsearch, which is not there yet.
    """
    ports: list[SinkPort] = []
    if (terminal := events.terminal) is not None and terminal.enabled:
        ports.append(_port(TerminalSink(terminal.format), terminal, f"{where}.terminal"))
    if (file := events.json_file) is not None and file.enabled:
        sink = JsonFileSink(
            file.filename,
            file.overwrite_existing,
            file.internal.synctimer_s,
            resume_at=resume(json_file_name(file.filename)) if resume else None,
        )
        ports.append(_port(sink, file, f"{where}.json-file"))
    if events.elasticsearch is not None and events.elasticsearch.enabled:
        raise UserError(
            f"{where}.elasticsearch: writing to Elasticsearch is not built yet",
            "use events.json-file and load the file, or set enabled: false",
        )
    return ports


def _port(sink: Sink, section: Terminal | JsonFile, where: str) -> SinkPort:
    # A channel of size 0 hands one event over at a time in the first nray; so does one of 1 here.
    size = max(1, section.internal.channelsize)
    return SinkPort(sink, section.filter, section.states, size, where)
