"""The largest listing of the acceptance tests: all of IPv4, 100 ports, 10,000 networks excluded."""

from __future__ import annotations

import ipaddress
import random

COMMAND = ["-t", "0.0.0.0/0", "-p", "1-100"]
NETWORKS = 10_000


def draw_networks(seed: int = 5) -> list[str]:
    """Networks from /16 to /32, some within others, none of it in reserved space (RFC 6890).

    11.0.0.0 to 99.255.255.255 holds no reserved range, so the arithmetic stays the same whether or
    not those are left out of so wide a scan.
    """
    chance = random.Random(seed)
    first, last = int(ipaddress.ip_address("11.0.0.0")), int(ipaddress.ip_address("99.255.255.255"))
    networks = []
    for _ in range(NETWORKS):
        length = chance.choice((16, 20, 22, 24, 24, 24, 28, 32))
        address = chance.randint(first, last) & ~((1 << 32 - length) - 1)
        networks.append(f"{ipaddress.IPv4Address(address)}/{length}")
    return networks


def size(networks: list[str]) -> int:
    """Addresses in the union."""
    collapsed = ipaddress.collapse_addresses(map(ipaddress.IPv4Network, networks))
    return sum(network.num_addresses for network in collapsed)
