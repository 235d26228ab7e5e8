"""Listens on many ports at once: a program of its own, with nothing but the standard library.

Standard input: a JSON list of ``[protocol, address, port, manner]``. It prints ``ready`` when all
are bound, and serves until it is killed. Manners of TCP:

- ``close``: accept and close at once;
- ``hold``: accept and keep the connection until the peer ends it.

UDP answers every datagram with the same bytes. An IPv6 socket is for IPv6 only, except that
``dual`` as address means ``::`` for both.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys

#: Enough for every probe of the largest lab scan that is open to wait its turn.
BACKLOG = 4096
#: Accepts and datagrams taken from one socket before the others get their turn.
TURNS = 64
IPV6_FREEBIND = 78


def bind(protocol: str, address: str, port: int) -> socket.socket:
    """A bound, non-blocking socket; listening if TCP. Raises OSError."""
    family = socket.AF_INET6 if ":" in address or address == "dual" else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "dual" else 1)
    sock.bind(("::" if address == "dual" else address, port))
    if protocol == "tcp":
        sock.listen(BACKLOG)
    else:
        # From an address that is only routed here (AnyIP) the answer must come from the one asked.
        level, option = (
            (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
            if family == socket.AF_INET6
            else (socket.IPPROTO_IP, getattr(socket, "IP_PKTINFO", 8))
        )
        sock.setsockopt(level, option, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(level, IPV6_FREEBIND, 1)  # IPv6 wants leave for such a source address.
    return sock


def answer(sock: socket.socket) -> None:
    """Send a datagram back, from the address that it was sent to."""
    try:
        data, control, _, peer = sock.recvmsg(2048, 256)
        sock.sendmsg([data], _source(control), 0, peer)
    except OSError:
        return


def _source(control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The received packet info, turned into one for sending."""
    turned = []
    for level, kind, data in control:
        if level == socket.IPPROTO_IP:  # in_pktinfo: index, local address, destination
            turned.append((level, kind, bytes(4) + data[8:12] + bytes(4)))
        else:  # in6_pktinfo: address, index
            turned.append((level, socket.IPV6_PKTINFO, data[:16] + bytes(4)))
    return turned


class Server:
    """All listeners on one epoll."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.listeners: dict[int, tuple[socket.socket, str]] = {}
        self.held: dict[int, socket.socket] = {}

    def add(self, protocol: str, address: str, port: int, manner: str) -> None:
        sock = bind(protocol, address, port)
        self.listeners[sock.fileno()] = (sock, "echo" if protocol == "udp" else manner)
        self.epoll.register(sock, select.EPOLLIN)

    def accept(self, listener: socket.socket, manner: str) -> None:
        for _ in range(TURNS):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if manner == "close":
                connection.close()
                continue
            connection.setblocking(False)
            self.held[connection.fileno()] = connection
            self.epoll.register(connection, select.EPOLLIN | select.EPOLLRDHUP)

    def hear(self, fd: int) -> None:
        """Read what a held connection sent; forget it at its end."""
        connection = self.held[fd]
        try:
            if connection.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.epoll.unregister(fd)
        del self.held[fd]
        connection.close()

    def run(self) -> None:
        while True:
            for fd, _ in self.epoll.poll():
                if fd not in self.listeners:
                    self.hear(fd)
                    continue
                sock, manner = self.listeners[fd]
                if manner == "echo":
                    answer(sock)
                else:
                    self.accept(sock, manner)


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server()
    for protocol, address, port, manner in json.load(sys.stdin):
        server.add(protocol, address, port, manner)
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main()
