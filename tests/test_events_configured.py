"""From the configuration's `events` section to sinks."""

import pytest

from nray import UserError
from nray.config.reader import loads
from nray.config.schema import Elasticsearch, Events, JsonFile, Terminal, TerminalInternal
from nray.events import model
from nray.events.configured import sinks_from_config
from nray.events.filters import FilterError
from nray.events.json_file import JsonFileSink
from nray.events.terminal import TerminalSink


@pytest.mark.parametrize(
    "events",
    [
        Events(),
        Events(
            terminal=Terminal(enabled=False),
            json_file=JsonFile(enabled=False),
            elasticsearch=Elasticsearch(enabled=False),
        ),
    ],
)
def test_what_is_off_makes_no_sink(events: Events) -> None:
    assert sinks_from_config(events) == []


def test_defaults() -> None:
    terminal, file = sinks_from_config(Events(terminal=Terminal(), json_file=JsonFile()))
    assert isinstance(terminal.sink, TerminalSink)
    assert (terminal.sink.format, terminal.channelsize) == ("auto", 1000)
    assert isinstance(file.sink, JsonFileSink)
    assert (file.sink.filename, file.sink.overwrite_existing) == ("nray-output.json", False)
    assert (file.sink.synctimer_s, file.channelsize) == (10.0, 10000)


def test_a_file_as_people_write_it() -> None:
    text = """
        events:
          terminal:
            format: json
            filter:
              environment:
              result.portscan.open: true
            internal: {channelsize: 77}
          json-file:
            filename: x.json
            overwriteExisting: true
            states: [closed]
            filter: {RESULT: {port: "25"}, result.portscan.rtt: 1.5}
            internal.synctimer: 2500ms
    """
    terminal, file = sinks_from_config(loads(text).events)
    assert isinstance(terminal.sink, TerminalSink)
    assert (terminal.sink.format, terminal.channelsize) == ("json", 77)
    assert isinstance(file.sink, JsonFileSink)
    assert (file.sink.filename, file.sink.overwrite_existing) == ("x.json", True)
    assert file.sink.synctimer_s == 2.5
    joined = model.environment_event(
        node_id="n", node_name="n", timestamp_ms=0, environment=model.Environment()
    )
    ports = [
        model.port_event(
            node_id="n",
            node_name="n",
            timestamp_ms=0,
            target="198.18.0.1",
            address="198.18.0.1",
            port=port,
            state=state,
            reason="syn-ack",
            rtt_us=1500 if port == 80 else 900,
            timeout_ms=1000,
        )
        for port, state in [(80, "open"), (25, "closed"), (22, "open"), (25, "filtered")]
    ]
    assert terminal.select([joined, *ports]) == [joined, ports[0], ports[2]]
    assert file.select([joined, *ports]) == [ports[0], ports[1]]


def test_a_channel_of_size_0_holds_one() -> None:
    section = Terminal(internal=TerminalInternal(channelsize=0))
    (terminal,) = sinks_from_config(Events(terminal=section))
    assert terminal.channelsize == 1


def test_errors_name_file_and_key() -> None:
    bad = Events(terminal=Terminal(filter={"result.prot": 1}))
    with pytest.raises(FilterError, match=r"conf\.yaml: events\.terminal\.filter: no event"):
        sinks_from_config(bad, where="conf.yaml: events")


def test_elasticsearch_is_refused_as_long_as_it_is_not_built() -> None:
    with pytest.raises(UserError, match="not built yet") as caught:
        sinks_from_config(Events(elasticsearch=Elasticsearch(enabled=True)))
    assert "json-file" in caught.value.hint
