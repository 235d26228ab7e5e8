"""The small parts of `nray.api`: errors out of groups, calls for events, flags, caps."""

from __future__ import annotations

import pytest
import trio

from nray import UserError
from nray.api import loop
from nray.api.attend import NodeTlsFiles, attend, is_loopback
from nray.api.collect import CallSink
from nray.api.scan import settings_for
from nray.api.serve import settings_of, slice_cap
from nray.api.workers import NoWorkers, ask_for_workers
from nray.config.kinds import AUTO_RATE
from nray.config.schema import Config, ScannerConfig, Tcp
from nray.events.model import port_event
from nray.node.pacing import CAP

# ── errors out of groups ────────────────────────────────────────────────────────────────────


class Mine(UserError):
    exit_status = 1


def raising(*errors, depth=1):
    """A coroutine function that raises these, each in a task, in nurseries of such a depth."""

    async def fail(error):
        raise error

    async def main(left=depth):
        async with trio.open_nursery() as nursery:
            if left > 1:
                nursery.start_soon(main, left - 1)
            else:
                for error in errors:
                    nursery.start_soon(fail, error)

    return main


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_users_error_comes_out_as_itself(depth):
    error = Mine("message", "hint")
    with pytest.raises(Mine) as raised:
        loop.run(raising(error, depth=depth))
    assert raised.value is error


def test_of_several_errors_of_the_user_one_comes_out():
    with pytest.raises(UserError):
        loop.run(raising(Mine("one"), UserError("two")))


@pytest.mark.parametrize("worse", [ValueError("bug"), KeyboardInterrupt()])
def test_with_something_worse_nothing_is_hidden(worse):
    with pytest.raises(BaseExceptionGroup) as raised:
        loop.run(raising(Mine("message"), worse))
    assert raised.value.split(type(worse))[0] is not None


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_an_interrupt_that_nobody_watched_for_comes_out_as_itself(depth):
    with pytest.raises(KeyboardInterrupt):
        loop.run(raising(KeyboardInterrupt(), depth=depth))


def test_results_and_plain_errors_pass():
    async def give():
        return 7

    async def fail():
        raise Mine("plain")

    assert loop.run(give) == 7
    with pytest.raises(Mine, match="plain"):
        loop.run(fail)


# ── events to a function ────────────────────────────────────────────────────────────────────


def event(port):
    return port_event(
        node_id="n",
        node_name="n",
        timestamp_ms=0,
        target="127.0.0.1",
        address="127.0.0.1",
        port=port,
        state="open",
        reason="syn-ack",
        timeout_ms=1000,
    )


def test_a_function_gets_each_event_in_order():
    taken = []
    sink = CallSink(lambda each: taken.append(each.result.port))
    sink.open()
    sink.write([event(3), event(1)])
    sink.write([event(2)])
    sink.sync()
    sink.close()
    assert taken == [3, 1, 2]
    assert sink.sync_due_s() == float("inf")


# ── nodes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("198.18.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_what_can_only_mean_this_machine(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, False),
        ({"use": True}, True),
        ({"insecure": True}, True),
        ({"ca_cert": "ca.pem"}, True),
        ({"client_cert": "c.pem"}, True),
        ({"client_key": "k.pem"}, True),
        ({"server_name": "s"}, True),
    ],
)
def test_any_flag_of_tls_turns_it_on(flags, wanted):
    assert NodeTlsFiles(**flags).wanted is wanted


def be_node(host="127.0.0.1", **flags):
    return attend(
        host=host,
        port=9,
        name=None,
        preferred_pool=-1,
        processes=1,
        stay=False,
        allow_plaintext=False,
        tls=NodeTlsFiles(**flags),
    )


def test_without_tls_a_node_talks_to_this_machine_only():
    with pytest.raises(UserError, match="without TLS") as raised:
        be_node("198.18.0.1")
    assert "--use-tls" in raised.value.hint
    assert "--allow-plaintext" in raised.value.hint


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({"client_cert": "c.pem"}, "--tls-client-key"),
        ({"client_key": "k.pem"}, "--tls-client-cert"),
    ],
)
def test_a_certificate_and_its_key_go_together(flags, missing):
    with pytest.raises(UserError, match=f"{missing} is missing"):
        be_node(**flags)


def test_tls_without_an_authority_is_refused():
    with pytest.raises(UserError, match="no authority"):
        be_node(use=True)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"gone/ca\.pem"):
        be_node(ca_cert="gone/ca.pem")


class Full:
    """A fork server of a process that may open two more files."""

    def __init__(self):
        self.sockets = []

    def spawn(self):
        import socket

        if len(self.sockets) == 2:
            raise OSError(24, "Too many open files")
        ours, theirs = socket.socketpair()
        theirs.close()
        self.sockets.append(ours)
        return ours


def test_too_few_files_for_the_workers_is_told_and_none_is_left_open():
    full = Full()
    with pytest.raises(NoWorkers, match="cannot start 5 worker processes") as raised:
        ask_for_workers(full, 5)
    assert "ulimit -n" in raised.value.hint
    assert [each.fileno() for each in full.sockets] == [-1, -1]


# ── a server's configuration ────────────────────────────────────────────────────────────────


def config(**standard):
    known = Config()
    made = known.targetgenerator.standard.__class__(**standard)
    return known.__class__(targetgenerator=known.targetgenerator.__class__(standard=made))


@pytest.mark.parametrize(
    ("keys", "cap"),
    [
        ({}, 0),
        ({"max_hosts_per_batch": 1, "max_tcp_ports_per_batch": 1}, 1),
        ({"max_hosts_per_batch": 150, "max_tcp_ports_per_batch": 25}, 3750),
        (
            {
                "max_hosts_per_batch": 10,
                "max_tcp_ports_per_batch": 5,
                "max_udp_ports_per_batch": 3,
            },
            80,
        ),
        ({"max_hosts_per_batch": 2}, 2 * 2 * 65535),
    ],
)
def test_the_batch_keys_cap_a_slice_at_their_product(keys, cap):
    assert slice_cap(config(**keys)) == cap


def test_a_cap_stays_a_number_that_the_wire_can_carry():
    assert slice_cap(config(max_tcp_ports_per_batch=65535)) < 2**63


def test_what_auto_is_told_as():
    """A cap for packets of our own; for connects no limit, as what is in flight adapts itself."""
    connects = ScannerConfig(ratelimit=AUTO_RATE)
    made = settings_of(Config(scannerconfig=connects), 1)
    assert (made.ratelimit, made.ratelimit_auto) == (0.0, False)
    syns = ScannerConfig(ratelimit=AUTO_RATE, tcp=Tcp(method="syn"))
    made = settings_of(Config(scannerconfig=syns), 1)
    assert (made.ratelimit, made.ratelimit_auto) == (CAP, True)
    fixed = settings_of(Config(scannerconfig=ScannerConfig(ratelimit=5.0, tcp=syns.tcp)), 1)
    assert (fixed.ratelimit, fixed.ratelimit_auto) == (5.0, False)
    told = settings_for(timeout_s=1, rate="auto", method="syn")
    assert (told.ratelimit, told.ratelimit_auto) == (CAP, True)
    assert settings_for(timeout_s=1, rate="auto").ratelimit == 0


def test_how_a_configuration_scans():
    made = settings_of(Config(), 1)
    assert (made.workers, made.ratelimit) == (0, 0.0)
    assert (made.tcp_timeout_ms, made.udp_timeout_ms) == (2500, 2500)
    assert made.states == ()
    assert 53 in made.udp_payloads
    assert made.udp_payloads != settings_of(Config(), 2).udp_payloads
    assert made.udp_payloads == settings_of(Config(), 1).udp_payloads
