"""Issue 14: UDP scans against a truth drawn from a seed, hosts that limit their ICMP, and nmap."""

from __future__ import annotations

import pytest

from lab.namespaces import require
from lab.network import Lab
from lab.nray import scan, states
from lab.truth import OPEN, SILENT, Truth, draw_ports

pytestmark = pytest.mark.lab

HOST = {4: "198.18.64.9", 6: "2001:db8:1::9:9"}
SHOW = ("--show", "closed,filtered,open|filtered")
#: How often the target's kernel tells a peer of an error: once in so many ms, after a burst of six.
#: Linux by itself does so once a second, and then this takes 20 s and more.
OFTEN_MS, USUAL_MS = 30, 1000


def flags(method: str) -> list[str]:
    return ["--syn"] if method == "syn" else []


@pytest.mark.parametrize(
    ("version", "method", "every_ms"),
    [
        (4, "connect", OFTEN_MS),
        (6, "syn", OFTEN_MS),
        pytest.param(6, "connect", USUAL_MS, marks=pytest.mark.slow),
        pytest.param(4, "syn", USUAL_MS, marks=pytest.mark.slow),
    ],
)
def test_what_a_limit_on_icmp_hid_is_found_closed(
    lab: Lab, version: int, method: str, every_ms: int
) -> None:
    """20 closed ports, of which the target tells six at once."""
    require("nft")
    host = HOST[version]
    truth = draw_ports(200 + version, host, {OPEN: 3, SILENT: 2}, range(2000, 2025), "udp")
    lab.keep_to(truth)
    lab.limit_icmp(True, every_ms)
    try:
        # fmt: off
        done = scan(
            lab.scanner, *flags(method), "-t", host, "-p", "U:2000-2024", "--rate", "2000",
            "--timeout", "300ms", "--processes", "1", *SHOW,
        ).expect(0)
        # fmt: on
    finally:
        lab.limit_icmp(False)
        lab.keep_to(Truth())
    wanted = {(host, port): ("closed", "port-unreach") for port in range(2000, 2025)}
    wanted |= dict.fromkeys(truth.open_pairs("udp"), ("open", "udp-response"))
    wanted |= {probe[1:]: ("open|filtered", "no-response") for probe in truth.having(SILENT)}
    assert states(done.events) == wanted
