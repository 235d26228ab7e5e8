"""Starting the process that workers are forked from, and what to say where that fails."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from nray import UserError
from nray.worker.forkserver import ForkServer

if TYPE_CHECKING:
    from nray.node.orders import Primed


class NoWorkers(UserError):
    """No worker process can be started here."""

    exit_status = 1


def start_fork_server() -> ForkServer:
    """The fork server, and with it all workers, deaf to the SIGINT of a Ctrl+C.

    A terminal sends it to every process. They end when this one does; one that is still starting
    would print a traceback. What is blocked here stays blocked in what is started.

    Raises:
        NoWorkers: too many processes or files, or an interpreter that this user may not run.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return ForkServer()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise NoWorkers(
            f"cannot start worker processes: {error.strerror}{where}",
            "limits on processes and files: ulimit -u, ulimit -n",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ask_for_workers(fork_server: ForkServer, count: int) -> list[Primed]:
    """So many workers, asked for and not yet told anything. Whoever gets them closes them.

    Raises:
        NoWorkers: this process may not open so many files, or the fork server has ended.
    """
    from nray.node.orders import Primed  # not before the fork server is on its way

    workers: list[Primed] = []
    try:
        for _ in range(count):
            workers.append(Primed(fork_server.spawn()))
    except OSError as error:
        for each in workers:
            each.socket.close()
        raise NoWorkers(
            f"cannot start {count} worker processes: {error.strerror}",
            "fewer of them (--processes), or more files for this user (ulimit -n)",
        ) from error
    return workers
