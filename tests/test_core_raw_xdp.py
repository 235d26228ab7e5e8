"""Frames by AF_XDP: the same frames, each once, and a way back where a device cannot."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from core_lab import ACK, RST, Drive, inside, run, space, tcp
from lab.namespaces import Namespace
from lab.network import INTERFACE, Lab
from lab.nray import open_pairs, scan
from lab.truth import CLOSED, OPEN, draw_space
from nray import _core
from nray.cli.scan import scan as command
from nray.node import raw
from raw_lab import NEXT_MAC, FarEnd, target_of, tcp_answer

pytestmark = pytest.mark.lab

BASE = {4: "198.18.0.", 6: "2001:db8:1::"}
ETH_P_ALL = 3


@pytest.fixture
def tap(alone: Namespace) -> Iterator[FarEnd]:
    try:
        socket.socket(raw._AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        pytest.skip(f"needs AF_XDP: {error}")
    with inside(alone), FarEnd(alone, True) as made:
        yield made


def hosts(version: int, last: int, *ports: int) -> _core.Space:
    return space([f"{BASE[version]}1-{BASE[version]}{last}"], tcp(*ports))


def test_the_frames_are_those_of_the_other_way(tap: FarEnd, version: int) -> None:
    where = hosts(version, 4, *range(1, 41))

    def sent(xdp: bool) -> dict[tuple[str, int], bytes]:
        engine = tap.engine(xdp=xdp, tcp_timeout_s=0.02)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as capture:
            capture.bind((tap.name, 0))
            capture.setblocking(False)
            probes = tap.start(Drive(engine), where)
            # What tells the two ways apart: a capture here sees those of one alone.
            seen = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    seen += tap.is_probe(capture.recv(2000))
            assert seen == (0 if xdp else len(probes))
        assert engine.no_xdp == {}
        assert {probe[:6] for probe in probes} == {NEXT_MAC}
        return {target_of(probe): probe for probe in probes}

    assert sent(True) == sent(False)


def test_more_frames_than_the_ring_holds_leave_once_each(tap: FarEnd, version: int) -> None:
    where = hosts(version, 5, *range(1, 1001))
    engine = tap.engine(xdp=True)
    drive = Drive(engine)
    probes = tap.start(drive, where)
    assert len(probes) == len({target_of(probe) for probe in probes}) == where.total == 5000
    assert drive.to_end().counts["filtered"] == 5000
    assert tap.probes() == []
    assert engine.sent == 5000


def test_an_interface_that_is_down_is_no_silence(
    tap: FarEnd, alone: Namespace, version: int
) -> None:
    engine = tap.engine(xdp=True)
    alone.ip("link", "set", tap.name, "down")
    ended = run(engine, hosts(version, 2, 80))
    assert ended.errors == {"no-route-from-here": 2}
    assert engine.sent == 0


def test_an_interface_that_comes_up_again_gets_each_once(
    tap: FarEnd, alone: Namespace, version: int
) -> None:
    where = hosts(version, 2, 80)
    drive = Drive(tap.engine(xdp=True, tcp_timeout_s=0.05))
    alone.ip("link", "set", tap.name, "down")
    drive.engine.add_slice(1, 0, where.total, where, None)
    for _ in range(3):
        drive.pump(0.02)
    alone.ip("link", "set", tap.name, "up")
    probes = tap.gather(drive, 2)
    for probe in probes:
        tap.put(tcp_answer(probe, RST | ACK))
    assert drive.to_end().counts["closed"] == 2
    assert len(probes) == 2
    assert tap.probes() == []


def test_a_device_s_queue_serves_one_engine_and_others_go_the_other_way(
    tap: FarEnd, version: int
) -> None:
    first = tap.engine(xdp=True)
    assert first.no_xdp == {}
    # Another program's, as it is no engine of the same shard; and there is one queue alone.
    busy = tap.engine(xdp=True)
    assert busy.no_xdp == {0: errno.EBUSY}
    beyond = tap.engine(xdp=True, shard=1, shards=2)
    assert beyond.no_xdp == {0: errno.EINVAL}
    for engine in (busy, beyond):
        where = hosts(version, 3, 80)
        probes = tap.start(Drive(engine), where)
        assert len(probes) == 3


def test_a_queue_is_free_again_when_its_engine_is_gone(tap: FarEnd) -> None:
    for _ in range(3):
        engine = tap.engine(xdp=True)
        assert engine.no_xdp == {}
        del engine


def test_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_AF_XDP", 43)
    with pytest.raises(raw.NoRight, match="AF_XDP") as raised:
        raw.demand_xdp()
    assert "--xdp" in (raised.value.hint or "")


def test_it_goes_with_syn_alone() -> None:
    done = CliRunner().invoke(command, ["-t", "198.18.0.1", "-p", "80", "--xdp"])
    assert done.exit_code == 2
    assert "--xdp goes with --syn" in done.output


def test_a_whole_scan_finds_what_is_there(lab: Lab, version: int) -> None:
    network = {4: "198.18.0.0/24", 6: "2001:db8:1::/120"}[version]
    truth = draw_space(1414 + version, network, (80, 443), {OPEN: 0.3, CLOSED: 0.7})
    lab.keep_to(truth)
    done = scan(
        lab.scanner, "--syn", "--xdp", "-t", network, "-p", "80,443", "--rate", "5000",
        "--processes", "2",
    )  # fmt: skip
    done.expect(0)
    assert set(open_pairs(done.events)) == set(truth.open_pairs())
    # The lab's devices have one queue; the second process says that it goes the other way.
    assert f"process 2 of 2 sends over {INTERFACE} without AF_XDP" in done.stderr
    assert "process 1 of 2" not in done.stderr
