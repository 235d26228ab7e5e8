"""The process that forks workers: how it starts, what disturbs it, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.namespaces import alive
from nray import _core
from nray.worker import forkserver
from nray.worker.forkserver import ForkServer
from nray.worker.protocol import Started, Unpacker

LIMIT_S = 60.0


def started(sock: socket.socket) -> int:
    """The process id that a worker tells first."""
    sock.settimeout(LIMIT_S)
    (message,) = Unpacker(at_worker=False).feed(sock.recv(1000))
    assert isinstance(message, Started)
    return message.pid


def expect_gone(*pids: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.005)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_are_its_children_and_gone_without_a_trace() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    server = ForkServer()
    sockets = [server.spawn() for _ in range(20)]
    pids = [started(sock) for sock in sockets]
    assert len(set(pids)) == 20
    assert {parent(pid) for pid in pids} == {server.pid}
    for sock in sockets:
        sock.close()
    found: dict[int, str] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(found) < 20 and time.monotonic() < deadline:
        found |= server.ended()
        time.sleep(0.005)
    assert found == dict.fromkeys(pids, "exit status 0")
    assert children(server.pid) == []  # not even zombies
    assert server.ended() == {}
    server.close()
    expect_gone(server.pid)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_more_ends_than_anyone_reads_of_leave_no_zombie() -> None:
    """Notices that find no room are lost; the dead are still buried."""
    server = ForkServer()
    count = 400
    for _ in range(count):
        server.spawn().close()
    deadline = time.monotonic() + LIMIT_S
    with server.spawn() as last:
        last.settimeout(LIMIT_S)
        assert last.recv(1000)
        while len(children(server.pid)) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(children(server.pid)) == 1
        assert len(server.ended()) <= count
    server.close()


def test_closing_it_twice_is_harmless() -> None:
    server = ForkServer()
    server.close()
    server.close()


def test_a_worker_lives_by_its_own_socket() -> None:
    server = ForkServer()
    sock = server.spawn()
    pid = started(sock)
    server.close()
    expect_gone(server.pid)
    assert alive(pid)
    sock.close()
    expect_gone(pid)


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit()"])
def test_nothing_outlives_the_node(how: str) -> None:
    program = (
        "import os, sys; from nray.worker.forkserver import ForkServer; s = ForkServer();"
        "a, b = s.spawn(), s.spawn(); a.recv(100); b.recv(100);"
        "kids = open(f'/proc/{s.pid}/task/{s.pid}/children').read();"
        f"print(s.pid, kids, flush=True); {how}"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=LIMIT_S)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    expect_gone(*pids)


@pytest.mark.parametrize("delay_s", [0, 0.005, 0.02, 0.04, 0.08, 0.2])
def test_ctrl_c_does_not_disturb_it(delay_s: float) -> None:
    """Also while its interpreter still starts; it goes to the terminal's whole group."""
    server = ForkServer()
    time.sleep(delay_s)
    os.kill(server.pid, signal.SIGINT)
    with server.spawn() as sock:
        os.kill(server.pid, signal.SIGINT)
        pid = started(sock)
        os.kill(server.pid, signal.SIGINT)
        os.kill(pid, signal.SIGINT)
        with server.spawn() as second:
            started(second)
        assert alive(pid)
    server.close()


def test_starting_it_leaves_the_node_s_own_ctrl_c_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    server = ForkServer()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    server.close()
    status = Path("/proc/self/status").read_text()
    assert "SigBlk:\t0000000000000000" in status


def test_one_that_was_killed_is_told_by_spawn() -> None:
    server = ForkServer()
    with server.spawn() as sock:
        pid = started(sock)
        os.kill(server.pid, signal.SIGKILL)
        expect_gone(server.pid)
        assert server.ended() == {}
        with pytest.raises(OSError):
            server.spawn()
        assert alive(pid)
    server.close()
    expect_gone(pid)


def test_one_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(OSError):
        ForkServer()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_fork_that_fails_costs_one_worker_and_no_more() -> None:
    """As at the limit of processes: the node sees the socket's end, and may ask again."""
    program = (
        "import os, sys; fork, left = os.fork, [2]\n"
        "def failing():\n"
        "    left[0] -= 1\n"
        "    if left[0] >= 0: raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\n"
        "os.fork = failing\n"
        "from nray.worker.forkserver import serve; serve(int(sys.argv[1]))\n"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("test-rate")
    os.ftruncate(memory, _core.Bucket.BYTES)
    with ours, theirs:
        server = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
        )
        theirs.close()
        heard = []
        for _ in range(3):
            mine, its = socket.socketpair()
            with mine:
                with its:
                    socket.send_fds(ours, [b"w"], [its.fileno(), memory])
                mine.settimeout(LIMIT_S)
                heard.append(bool(mine.recv(100)))
        assert heard == [False, False, True]
    os.close(memory)
    _, said = server.communicate(timeout=LIMIT_S)
    assert server.returncode == 0
    assert said.count(b"no worker: Resource temporarily unavailable") == 2


@pytest.mark.parametrize("module", ["struct", "msgspec", "select", "nray"])
def test_modules_of_the_directory_that_one_is_in_are_not_run(tmp_path: Path, module: str) -> None:
    """``python -c`` looks there first, a command like ``nray`` does not: nor may its workers."""
    here = tmp_path / "here"
    here.mkdir()
    (here / f"{module}.py").write_text("open('/proc/self/fd/2', 'w').write('TAKEN OVER')")
    command = tmp_path / "command.py"
    command.write_text(
        "from nray.worker.forkserver import ForkServer; s = ForkServer(); w = s.spawn();"
        "assert w.recv(100); s.close()"
    )
    done = subprocess.run([sys.executable, command], cwd=here, capture_output=True, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_finds_the_code_that_its_maker_has(tmp_path: Path) -> None:
    """Where that came by a path of this process's own, too."""
    (tmp_path / "sitecustom_of_test.py").write_text("found = 1")
    program = (
        f"import sys; sys.path.append({str(tmp_path)!r});"
        "from nray.worker import forkserver as f;"
        "f._program = (lambda old: lambda fd: old(fd).replace("
        "'from nray', 'import sitecustom_of_test; from nray', 1))(f._program);"
        "s = f.ForkServer(); w = s.spawn(); assert w.recv(100); s.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_imports_nothing_of_weight() -> None:
    program = (
        "import nray.worker.forkserver, nray.worker.main, sys;"
        "print(*{'trio', 'cryptography', 'OpenSSL', 'yaml', 'asyncio', 'click', 'ssl',"
        " 'multiprocessing'}.intersection(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (1 << 8, "exit status 1"),
        (255 << 8, "exit status 255"),
        (9, "killed by SIGKILL"),
        (11 | 0x80, "killed by SIGSEGV"),
        (50, "killed by signal 50"),
    ],
)
def test_an_end_in_words(status: int, words: str) -> None:
    assert forkserver._words(status) == words
