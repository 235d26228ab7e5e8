"""``nray.scan`` with real workers on loopback: few scans, each for what only the whole shows."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager

import pytest

import nray
from nray import UserError
from nray.api import scan as module
from nray.api.collect import CallSink
from nray.events.hub import SinkPort
from nray.node import supervisor
from nray.node.resolver import Resolver
from nray.targets.plan import plan

NAMES = {"two.example": [bytes([127, 3, 0, 1]), bytes([127, 3, 0, 2])], "gone.example": []}


def lookup(name):
    if not NAMES.get(name):
        raise OSError("no such name")
    return NAMES[name]


@pytest.fixture
def names(monkeypatch):
    """Names mean what the table above says; nobody is asked."""
    monkeypatch.setattr(supervisor, "Resolver", lambda: Resolver(lookup))


@contextmanager
def listening(address="127.0.0.1"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=500) as listener:
        yield listener.getsockname()[1]


@contextmanager
def nothing_left():
    """No child of this process when it is over, dead or alive."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def found(scanned):
    return sorted((event.result.target, event.result.port) for event in scanned.events)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_probe(address):
    with listening(address) as port, nothing_left():
        scanned = nray.scan(address, str(port))
    assert found(scanned) == [(address, port)]
    assert scanned.complete
    (event,) = scanned.events
    assert (event.nodeID, event.result.portscan.state) == ("local", "open")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_open_and_closed_where_both_are_asked_for(address):
    with listening(address) as port, nothing_left():
        shut = port - 1 if port > 1 else port + 1
        scanned = nray.scan(address, [port, shut], show=["closed"], processes=1)
    states = {event.result.port: event.result.portscan.state for event in scanned.events}
    assert states == {port: "open", shut: "closed"}


@pytest.mark.parametrize("workers", [1, 3])
def test_few_probes_in_flight_cover_everything_too(workers):
    with listening("0.0.0.0") as port:
        scanned = nray.scan("127.5.0.0/26", str(port), workers=workers, processes=4)
    assert len(scanned.events) == 64
    assert scanned.complete


@pytest.mark.parametrize("rate", [20.0, 50.0])
def test_a_slow_rate_is_kept_by_all_workers_together(rate):
    count = 8
    begun = time.monotonic()
    scanned = nray.scan("127.0.0.1", f"1-{count}", rate=rate, processes=2)
    assert time.monotonic() - begun >= (count - 1) / rate
    assert scanned.complete


def test_what_is_excluded_is_not_scanned():
    with listening("0.0.0.0") as port:
        scanned = nray.scan("127.5.0.0/30", str(port), exclude="127.5.0.2")
    assert [target for target, _ in found(scanned)] == ["127.5.0.0", "127.5.0.1", "127.5.0.3"]


def test_a_name_is_probed_at_all_its_addresses_and_keeps_its_name(names):
    with listening("0.0.0.0") as port, nothing_left():
        scanned = nray.scan("two.example", str(port))
    assert found(scanned) == [("two.example", port)] * 2
    assert {event.result.address for event in scanned.events} == {"127.3.0.1", "127.3.0.2"}
    assert scanned.complete


def test_an_address_behind_a_name_is_excluded_here_after_all(names):
    with listening("0.0.0.0") as port:
        scanned = nray.scan("two.example", str(port), exclude="127.3.0.2")
    assert [event.result.address for event in scanned.events] == ["127.3.0.1"]
    assert scanned.complete


def test_an_address_is_excluded_by_a_name_that_means_it(names):
    with listening("0.0.0.0") as port:
        scanned = nray.scan("127.3.0.0/30", str(port), exclude="two.example")
    assert [target for target, _ in found(scanned)] == ["127.3.0.0", "127.3.0.3"]


def test_a_name_that_means_nothing_is_told_and_the_scan_not_complete(names):
    with listening("0.0.0.0") as port:
        scanned = nray.scan(["gone.example", "two.example", "127.3.0.9"], str(port))
    assert len(scanned.events) == 3
    assert not scanned.complete
    assert any("could not be resolved" in line for line in scanned.summary)


def test_only_names_that_mean_nothing(names):
    with nothing_left():
        scanned = nray.scan("gone.example", "1-200")
    assert scanned.events == []
    assert not scanned.complete


def test_no_hit_is_lost_to_a_slow_sink_at_the_end():
    """The last slice ends while hits of another still wait for room."""
    taken = []

    def take(event):
        time.sleep(0.0005)
        taken.append(event.result.target)

    with listening("0.0.0.0") as port:
        made = plan("127.5.0.0/24", tcp=str(port))
        settings = module.settings_for(timeout_s=1)
        sinks = [SinkPort(CallSink(take), channelsize=1)]
        result = module.run(made, settings, lambda: sinks, 2)
    assert sorted(taken) == sorted(f"127.5.0.{n}" for n in range(256))
    assert result.exit_status == 0
    assert (result.probes, result.tally.open) == (256, 256)


def test_what_a_caller_raises_ends_the_scan_with_its_words():
    def take(event):
        raise RuntimeError("enough")

    with listening() as port, nothing_left(), pytest.raises(UserError, match="enough"):
        nray.scan("127.0.0.1", str(port), on_event=take)


@pytest.mark.parametrize(
    ("targets", "ports", "words"),
    [("", "1", "no targets"), ("127.0.0.1", [], "no ports"), ("127.0.0.1", "99999", "99999")],
)
def test_what_cannot_be_scanned_is_refused_before_anything_is_started(targets, ports, words):
    with nothing_left(), pytest.raises(UserError, match=words):
        nray.scan(targets, ports)
