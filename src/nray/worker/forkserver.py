"""Starts worker processes from a small clean process, so that none is forked from a trio loop.

`ForkServer` is the node's end. It starts one fresh interpreter that imports the core and
nothing else of weight, and then forks a worker at each request: a millisecond and little memory
of its own for each. Why not multiprocessing's: that one starts a resource tracker beside it and
runs the main program's imports again in every child, which together cost more than a scan of a
whole host may take.

Who ends what: the fork server ends when the node's end of its socket is closed, also by the
node's death; each worker ends at the end of its own socket. None outlives the node.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nray import _core

#: A request is one byte with the worker's two descriptors; a notice of an end is (pid, status).
_REQUEST = b"w"
_NOTICE = struct.Struct("<iI")
#: Signals that go to the whole group of a terminal: what ends by them is the node's to say.
NODE_DECIDES = frozenset({signal.SIGINT, signal.SIGHUP})


class ForkServer:
    """The process that forks workers, and the memory that they share.

    Attributes:
        bucket_fd: that memory: the rate, and behind it the set of hosts, open until `close`.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self) -> None:
        self.bucket_fd = os.memfd_create("nray-rate", os.MFD_CLOEXEC)
        os.ftruncate(self.bucket_fd, 4096)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A signal that comes while the interpreter still starts must find it deaf already: a
        # blocked one stays so through exec, until `serve` ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NODE_DECIDES)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, *_interpreter_flags(), "-P", "-c", _program(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
        except BaseException:
            self._socket.close()
            os.close(self.bucket_fd)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        """Of the fork server itself."""
        return self._process.pid

    def set_rate(self, per_second: float) -> None:
        """Let all workers together start so many probes each second; 0 for no limit."""
        self.bucket().set_rate(per_second)

    def bucket(self) -> _core.Bucket:
        """The shared rate, and what workers count beside it."""
        from nray import _core

        return _core.Bucket(self.bucket_fd)

    def shown(self) -> _core.HostSet:
        """The hosts of which an open port is known. To be asked for before workers are told that
        there are such: only then there is memory for it (a limit of file sizes counts it)."""
        from nray import _core

        size = _core.HostSet.OFFSET + _core.HostSet.BYTES
        if os.fstat(self.bucket_fd).st_size < size:
            os.ftruncate(self.bucket_fd, size)
        return _core.HostSet(self.bucket_fd)

    def spawn(self) -> socket.socket:
        """Ask for one worker; returns the socket to it, at once.

        The worker's first message names its pid. The caller owns the socket; closing it ends
        the worker.

        Raises:
            OSError: the fork server is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._socket, [_REQUEST], [theirs.fileno(), self.bucket_fd])
            except OSError:
                ours.close()
                raise
        return ours

    def ended(self) -> dict[int, str]:
        """How workers have ended since the last call: pid to words. Never waits."""
        found: dict[int, str] = {}
        while True:
            try:
                data = self._socket.recv(_NOTICE.size, socket.MSG_DONTWAIT)
            except OSError:
                return found
            if not data:
                return found
            pid, status = _NOTICE.unpack(data)
            found[pid] = _words(status)

    def close(self) -> None:
        """End the fork server and wait for it: milliseconds. Workers end by their own sockets.

        Harmless when called again.
        """
        if self.bucket_fd < 0:
            return
        self._socket.close()
        os.close(self.bucket_fd)
        self.bucket_fd = -1
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _interpreter_flags() -> list[str]:
    # The same warnings, -E, -I, -X … as this interpreter has: a worker must find the same code.
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]


def _program(fd: int) -> str:
    # Modules come from where this interpreter finds them, and never (-P) from the directory that
    # the user happens to be in.
    return (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from nray.worker.forkserver import serve; serve({fd})"
    )


def _words(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


# ── in the fork server ──────────────────────────────────────────────────────────────────────


def serve(fd: int) -> None:
    """Be the fork server on this socket; returns at its end (and never in a worker)."""
    import gc
    import select

    import nray.worker.main as worker
    from nray.worker import privileges

    # Workers are forked from here and have no more than this process.
    privileges.drop(keep_net_raw=True)

    for ignored in NODE_DECIDES:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NODE_DECIDES)
    requests = socket.socket(fileno=fd)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 512)
            _tell_ended(requests)
        if requests.fileno() in ready:
            try:
                data, fds, _, _ = socket.recv_fds(requests, 1, 2)
            except OSError:
                return
            if not data:
                return
            try:
                if os.fork() == 0:
                    _become_worker(worker.run, fds, (requests.fileno(), woken, wake))
            except OSError as error:
                # No process to be had now; the node sees the worker's socket end, and asks again.
                print(f"nray: no worker: {error.strerror}", file=sys.stderr)
            for each in fds:
                os.close(each)


def _become_worker(run: object, fds: list[int], drop: tuple[int, ...]) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in drop:
            os.close(each)
        run(*fds)  # type: ignore[operator]
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _tell_ended(requests: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        try:
            requests.send(_NOTICE.pack(pid, status), socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody listens: that worker is "gone", and still no zombie
