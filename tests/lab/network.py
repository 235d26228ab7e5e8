"""Scanner and target: two namespaces, one veth pair, a target that answers as it is told.

The target answers for whole prefixes through ``local`` routes (AnyIP), behind a gateway address of
its own: the scanner resolves one neighbour only, so that a table of neighbours never runs full.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

from .namespaces import LabError, Namespace
from .truth import Truth, nftables

#: The prefixes that the target answers for.
TARGETS4 = "198.18.0.0/16"
TARGETS6 = "2001:db8:1::/64"
SCANNER4, TARGET4 = "198.19.255.1", "198.19.255.2"
SCANNER6, TARGET6 = "2001:db8:ffff::1", "2001:db8:ffff::2"
#: What further addresses of the scanner begin with.
PEERS = {4: "198.19.253.", 6: "2001:db8:fffc::"}
#: The name of the veth's end in either namespace.
INTERFACE = "lab0"
_MAC = {"scanner": "02:00:00:00:00:01", "target": "02:00:00:00:00:02"}
#: More ICMP messages a second than any lab scan provokes (the kernel's own limit is 1,000).
_MANY = 10_000_000
_ICMP_UNLIMITED = {
    "net.ipv4.icmp_msgs_per_sec": _MANY,
    "net.ipv4.icmp_msgs_burst": _MANY,
    "net.ipv4.icmp_ratelimit": 0,
    "net.ipv6.icmp.ratelimit": 0,
}
#: What a kernel begins with: of each second so many messages in all, and one to each peer.
_ICMP_LIMITED = {
    "net.ipv4.icmp_msgs_per_sec": 1000,
    "net.ipv4.icmp_msgs_burst": 50,
    "net.ipv4.icmp_ratelimit": 1000,
    "net.ipv6.icmp.ratelimit": 1000,
}
_PER_PEER = ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit")
_READY_TIMEOUT_S = 60.0

#: (protocol, address, port, manner); see `listener`.
Listener = tuple[str, str, int, str]


def listen(namespace: Namespace, listeners: Iterable[Listener]) -> subprocess.Popen[str]:
    """Start one process that listens on all of these, and wait until it does.

    Raises `LabError` with what it said if it cannot; it dies with the namespace.
    """
    return _program(namespace, "listener.py", stdin=json.dumps(list(listeners)))


def _program(
    namespace: Namespace, name: str, *arguments: str, stdin: str = ""
) -> subprocess.Popen[str]:
    """Start a program of this directory, and wait until it says that it is ready."""
    process = namespace.popen(
        [sys.executable, "-S", "-E", str(Path(__file__).with_name(name)), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(stdin)
    process.stdin.close()
    ready, _, _ = select.select([process.stdout], [], [], _READY_TIMEOUT_S)
    if not ready or process.stdout.readline() != "ready\n":
        process.kill()
        raise LabError(f"{name} did not come up: {process.stderr.read()[-2000:]}")
    return process


class Lab:
    """The pair of namespaces; a context manager that removes both.

    Attributes:
        scanner: where nray runs; its capture point is `INTERFACE`.
        target: where the listeners and nftables are.
        icmp_unlimited: whether this kernel let the target's ICMP limits be lifted.
    """

    def __init__(self) -> None:
        self.scanner = Namespace("scan")
        try:
            self.target = Namespace("target")
        except BaseException:
            self.scanner.close()
            raise
        self._listener: subprocess.Popen[str] | None = None
        self._peers = 0
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.target.close()
        self.scanner.close()

    def _join(self) -> None:
        # fmt: off
        self.scanner.ip(
            "link", "add", INTERFACE, "address", _MAC["scanner"], "type", "veth",
            "peer", "name", INTERFACE, "address", _MAC["target"], "netns", self.target.name,
        )
        # fmt: on
        ends = (
            (self.scanner, SCANNER4, SCANNER6, TARGET4, TARGET6, _MAC["target"]),
            (self.target, TARGET4, TARGET6, SCANNER4, SCANNER6, _MAC["scanner"]),
        )
        for namespace, own4, own6, peer4, peer6, peer_mac in ends:
            namespace.ip("link", "set", INTERFACE, "up")
            namespace.ip("address", "add", f"{own4}/30", "dev", INTERFACE)
            namespace.ip("address", "add", f"{own6}/64", "dev", INTERFACE, "nodad")
            # Known neighbours: the first probes do not wait for ARP, and none is lost to it.
            for peer in (peer4, peer6):
                # fmt: off
                namespace.ip(
                    "neighbour", "replace", peer, "lladdr", peer_mac,
                    "dev", INTERFACE, "nud", "permanent",
                )
                # fmt: on
        self.scanner.ip("route", "add", TARGETS4, "via", TARGET4)
        self.scanner.ip("-6", "route", "add", TARGETS6, "via", TARGET6)
        self._answer()

    def _answer(self) -> None:
        """Let the target answer for its prefixes, without limits of its own."""
        self.target.ip("route", "add", "local", TARGETS4, "dev", "lo")
        self.target.ip("-6", "route", "add", "local", TARGETS6, "dev", "lo")
        unknown = self.target.sysctl(_ICMP_UNLIMITED)
        self.icmp_unlimited = not unknown
        self.target.sysctl({"net.core.somaxconn": 65535, "net.ipv4.tcp_max_syn_backlog": 65535})

    def limit_icmp(self, on: bool) -> None:
        """Let the target limit its ICMP messages as Linux does by itself, or not at all."""
        self.target.sysctl(_ICMP_LIMITED if on else _ICMP_UNLIMITED)

    def limit_icmp_to_peers(self, every_ms: int) -> None:
        """Let the target tell each peer of one error in so many milliseconds, after a burst of six;
        all of them together of as many as they like."""
        self.target.sysctl(_ICMP_UNLIMITED | dict.fromkeys(_PER_PEER, every_ms))

    def fresh_peer(self, target: str) -> None:
        """Let the scanner reach this target from an address of its own: to the target it is
        somebody whom it never told anything."""
        self._peers += 1
        version = ip_address(target).version
        own = f"{PEERS[version]}{self._peers}"
        bits = 32 if version == 4 else 128
        at_once = ["nodad"] if version == 6 else []
        self.scanner.ip("address", "add", f"{own}/{bits}", "dev", INTERFACE, *at_once)
        # A route to the one address: Linux tells wider networks of more, in IPv6.
        for namespace, to, via, more in (
            (self.target, own, (SCANNER4, SCANNER6), []),
            (self.scanner, target, (TARGET4, TARGET6), ["src", own]),
        ):
            gateway = via[0 if version == 4 else 1]
            namespace.ip(f"-{version}", "route", "replace", f"{to}/{bits}", "via", gateway, *more)

    def keep_to(self, truth: Truth, manner: str = "hold", loss: float = 0.0) -> None:
        """Make the target answer so, in place of what it answered before. Raises `LabError`.

        Args:
            loss: share of packets lost on either way.
        """
        if self._listener is not None:
            self._listener.kill()
            self._listener.wait()
            self._listener = None
        self.target.call(["nft", "flush", "ruleset"])
        self.target.call(["nft", "-f", "-"], nftables(truth, loss))
        listeners = [
            (protocol, "dual", port, manner) for protocol, port in sorted(truth.listening())
        ]
        if listeners:
            self._listener = listen(self.target, listeners)


#: What answers every SYN, whatever the port: at once, and after a while. See `tarpit`.
TARPIT = {4: "198.19.64.0/24", 6: "2001:db8:7::/64"}
LATE = {4: "198.19.65.0/24", 6: "2001:db8:8::/64"}
_ROUTER = {
    "scanner": ("198.19.254.1", "2001:db8:fffe::1"),
    "target": (SCANNER4, SCANNER6),
}
_ROUTER_NEAR4, _ROUTER_NEAR6 = "198.19.254.2", "2001:db8:fffe::2"


class RoutedLab(Lab):
    """The same with a router in between, and neighbours that have to be asked for.

    Args:
        mtu: of the link between router and target.
    """

    def __init__(self, mtu: int = 1280) -> None:
        self._mtu = mtu
        self.router = Namespace("router")
        try:
            super().__init__()
        except BaseException:
            self.router.close()
            raise

    def close(self) -> None:
        super().close()
        self.router.close()

    def _join(self) -> None:
        self._connect(self.scanner, INTERFACE, self.router, "near")
        self._connect(self.router, "far", self.target, INTERFACE)
        for namespace, link, addresses in (
            (self.scanner, INTERFACE, _ROUTER["scanner"]),
            (self.router, "near", (_ROUTER_NEAR4, _ROUTER_NEAR6)),
            (self.router, "far", (SCANNER4, SCANNER6)),
            (self.target, INTERFACE, (TARGET4, TARGET6)),
        ):
            namespace.ip("address", "add", f"{addresses[0]}/30", "dev", link)
            namespace.ip("address", "add", f"{addresses[1]}/64", "dev", link, "nodad")
            namespace.ip("link", "set", link, "up")
        for namespace, link in ((self.router, "far"), (self.target, INTERFACE)):
            namespace.ip("link", "set", link, "mtu", str(self._mtu))
        self.router.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        self.scanner.ip("route", "add", "default", "via", _ROUTER_NEAR4)
        self.scanner.ip("-6", "route", "add", "default", "via", _ROUTER_NEAR6)
        self.router.ip("route", "add", TARGETS4, "via", TARGET4)
        self.router.ip("-6", "route", "add", TARGETS6, "via", TARGET6)
        self.target.ip("route", "add", "default", "via", SCANNER4)
        self.target.ip("-6", "route", "add", "default", "via", SCANNER6)
        self._answer()

    @staticmethod
    def _connect(one: Namespace, name: str, other: Namespace, peer: str) -> None:
        one.ip(
            "link", "add", name, "type", "veth", "peer", "name", peer, "netns", other.name
        )  # fmt: skip


def tarpit(
    lab: Lab, networks: Mapping[int, str] = TARPIT, delay_s: float = 0.0
) -> subprocess.Popen[str]:
    """Let networks, by IP version, answer every SYN to every port; it dies with the lab.

    Args:
        delay_s: so late. (Kernels without netem cannot delay what real listeners say.)
    """
    device = f"tar{len(lab.target.ip('link', 'show', 'type', 'tun').splitlines()) // 2}"
    lab.target.ip("tuntap", "add", device, "mode", "tun")
    # What a slow program has not yet read waits: a queue that runs over looks like a filter.
    lab.target.ip("link", "set", device, "txqueuelen", "10000", "up")
    lab.target.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    for version, gateway in ((4, TARGET4), (6, TARGET6)):
        lab.target.ip(f"-{version}", "route", "add", networks[version], "dev", device)
        if not isinstance(lab, RoutedLab):
            lab.scanner.ip(f"-{version}", "route", "add", networks[version], "via", gateway)
    return _program(lab.target, "tarpit.py", device, str(delay_s))
