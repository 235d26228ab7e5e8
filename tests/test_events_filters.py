"""Filters: their meaning, and that what cannot mean anything is refused with the right path."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import UserError
from nray.events import model
from nray.events.filters import FilterError, compile_filter, compile_states


def event(**changes: Any) -> model.Event:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "node_name": "node-a",
        "timestamp_ms": 1767323045123,
        "target": "localhost",
        "address": "127.0.0.1",
        "port": 25,
        "state": "open",
        "reason": "syn-ack",
        "timeout_ms": 1000,
        "rtt_us": 1500,
    }
    return model.port_event(**(fields | changes))


OPEN = event()
CLOSED = event(port=80, state="closed", reason="conn-refused", identity="a.example")
JOINED = model.environment_event(
    node_id="n1",
    node_name="node-a",
    timestamp_ms=1767323045123,
    environment=model.Environment(hostname="h", os="linux", pid=7),
)
FINDING = model.Event(
    "n1",
    "node-a",
    "2026-01-02T03:04:05.123Z",
    "zgrab",
    model.Result(
        "localhost",
        22,
        zgrabscan=model.ZgrabScan({"ssh": {"Banner": "SSH-2.0-x", "n": 2, "tags": ["a", 5]}}),
    ),
)
ALL = (OPEN, CLOSED, JOINED, FINDING)


@pytest.mark.parametrize(
    ("filter_", "passing"),
    [
        ({"environment": None}, [JOINED]),
        ({"environment": {}}, [JOINED]),
        ({"result.port": 25}, [OPEN]),
        ({"result": {"port": 25}}, [OPEN]),
        ({"RESULT": {"Port": "25"}}, [OPEN]),
        ({"result.portscan.open": True}, [OPEN]),
        ({"result.portscan.open": "false"}, [CLOSED]),
        ({"result": {"portscan.open": False}}, [CLOSED]),
        ({"result.port": [22, "80"]}, [CLOSED, FINDING]),
        ({"result": None}, [OPEN, CLOSED, FINDING]),
        ({"result.portscan": None}, [OPEN, CLOSED]),
        ({"result.portscan.rtt": 1.5}, [OPEN, CLOSED]),
        ({"result.portscan.rtt": None}, [OPEN, CLOSED]),
        ({"result.portscan.ttl": None}, []),
        ({"result.portscan.state": "closed"}, [CLOSED]),
        ({"identity": None}, [CLOSED]),
        ({"identity": "a.example"}, [CLOSED]),
        ({"pool": 0}, [OPEN, CLOSED, JOINED]),
        ({"nodename": "node-a"}, list(ALL)),
        ({"nodeName": 5}, []),
        ({"result.address": "127.0.0.1", "environment": None}, [OPEN, CLOSED, JOINED]),
        ({"result.port": 80, "RESULT.PORT": 25}, [OPEN, CLOSED]),
        ({"environment.pid": 7.0}, [JOINED]),
        ({"result.zgrabscan": None}, [FINDING]),
        ({"result.zgrabscan.jsonResult.ssh": None}, [FINDING]),
        ({"result.zgrabscan.jsonresult.SSH.banner": "SSH-2.0-x"}, [FINDING]),
        ({"result": {"zgrabscan": {"jsonResult": {"ssh": {"n": "2"}}}}}, [FINDING]),
        ({"result.zgrabscan.jsonResult.ssh.tags": "5"}, [FINDING]),
        ({"result.zgrabscan.jsonResult.ssh.tags": "6"}, []),
        ({"result.zgrabscan.jsonResult.http": None}, []),
        ({"result.zgrabscan.jsonResult.ssh.n.deeper": 2}, []),
    ],
)
def test_meaning(filter_: dict[str, Any], passing: list[model.Event]) -> None:
    predicate = compile_filter(filter_)
    assert predicate is not None
    assert [e for e in ALL if predicate(e)] == passing


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_filter_passes_everything(nothing: dict[str, Any] | None) -> None:
    assert compile_filter(nothing) is None


@pytest.mark.parametrize(
    ("filter_", "hint"),
    [
        ({"result.prot": 25}, "result.port"),
        ({"portscan.open": True}, "result.portscan.open"),
        ({"portscan.opne": True}, "result.portscan.open"),
        ({"port": 25}, "result.port"),
        ({"result": {"portscan": {"opne": True}}}, "result.portscan.open"),
        ({"enviroment": None}, "environment"),
        ({"node_id": "x"}, "nodeID"),
        ({"result.port.foo": 1}, "result.port"),
        ({"xxxxxxxx": 1}, "nodeID"),  # nothing is near: the parts are listed
    ],
)
def test_an_unknown_path_names_the_nearest(filter_: dict[str, Any], hint: str) -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter(filter_, "conf.yaml: events.terminal.filter")
    assert hint in caught.value.hint
    assert "conf.yaml: events.terminal.filter" in caught.value.message


@pytest.mark.parametrize(
    "filter_",
    [
        {"result.port": "http"},
        {"result.port": True},
        {"result.port": 25.5},
        {"result.port": float("nan")},
        {"result.port": [25, None]},
        {"result.port": [[25]]},
        {"result.port": []},
        {"result.port": ""},
        {"result.portscan.open": 1},
        {"result.portscan.open": "yes"},
        {"result.portscan.state": "opened"},
        {"nodeName": True},
        {"nodeName": {1: 2}},
        {"result": 25},
        {"result.portscan": True},
        {"result.zgrabscan.jsonResult": "x"},
        {"result.zgrabscan.jsonResult.a": [{"b": 1}]},
        {None: 1},
        {"": 1},
        {".": 1},
        "result.port",
        ["result.port"],
        25,
    ],
)
def test_what_cannot_match_is_refused(filter_: Any) -> None:
    with pytest.raises(UserError):
        compile_filter(filter_)


def test_a_filter_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["result"] = endless
    with pytest.raises(FilterError, match="too deep"):
        compile_filter(endless)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
paths = st.sampled_from(
    [
        "result",
        "result.port",
        "RESULT.portscan.rtt",
        "result.portscan.open",
        "result.portscan.state",
        "result.zgrabscan.jsonResult.ssh",
        "environment",
        "nodeID",
        "pool",
    ]
)


@given(st.dictionaries(paths | st.text(), anything, max_size=4) | anything)
def test_a_filter_is_refused_or_never_raises(filter_: Any) -> None:
    try:
        predicate = compile_filter(filter_)
    except FilterError:
        pass
    else:
        assert predicate is None or all(predicate(e) in (True, False) for e in ALL)


good_items = st.sampled_from(
    [
        ("result.port", 25),
        ("result.portscan.open", False),
        ("result.portscan.reason", "syn-ack"),
        ("environment", None),
        ("environment.os", "linux"),
        ("identity", None),
    ]
)


@given(st.lists(good_items, min_size=1, unique_by=lambda item: item[0]))
def test_a_filter_passes_what_any_of_its_entries_passes(items: list[tuple[str, Any]]) -> None:
    whole = compile_filter(dict(items))
    singles = [compile_filter({path: value}) for path, value in items]
    for e in ALL:
        assert whole is not None
        assert whole(e) == any(single is not None and single(e) for single in singles)


@given(st.lists(good_items, min_size=1, unique_by=lambda item: item[0]), st.randoms())
def test_flat_nested_and_any_case_mean_the_same(items: list[tuple[str, Any]], random: Any) -> None:
    nested: dict[str, Any] = {}
    for path, value in items:
        section = nested
        *above, last = ("".join(random.choice((c, c.upper())) for c in path)).split(".")
        for part in above:
            section = section.setdefault(part, {})
            if section is None:  # the same part is already there without a value
                return
        section[last] = value
    flat, deep = compile_filter(dict(items)), compile_filter(nested)
    assert flat is not None
    assert deep is not None
    assert [flat(e) for e in ALL] == [deep(e) for e in ALL]


@pytest.mark.parametrize(
    ("states", "passing"),
    [
        ((), [OPEN, JOINED, FINDING]),
        (("open",), [OPEN, JOINED, FINDING]),
        (("closed",), list(ALL)),
        (("filtered", "open|filtered", "error"), [OPEN, JOINED, FINDING]),
    ],
)
def test_states(states: tuple[str, ...], passing: list[model.Event]) -> None:
    shown = compile_states(states)
    assert [e for e in ALL if shown(e)] == passing


def test_an_event_of_the_first_nray_has_no_state_but_is_judged_by_open() -> None:
    shown = compile_states(())
    scan = model.PortScan("h", 1, False, "tcpconnect", 1000)
    old = msgspec.structs.replace(OPEN, result=model.Result("h", 1, scan))
    assert not shown(old)


def test_an_unknown_state_is_refused_with_those_there_are() -> None:
    with pytest.raises(FilterError) as caught:
        compile_states(["clsoed"], "events.terminal.states")
    assert "closed" in caught.value.hint
