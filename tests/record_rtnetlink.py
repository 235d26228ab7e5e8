"""Records what a kernel says over rtnetlink in a namespace, beside what ``ip -json`` says of it.

.venv/bin/python tests/record_rtnetlink.py    # as root; writes tests/data/rtnetlink.json
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab.namespaces import Namespace
from nray.node import netlink

INSIDE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from record_rtnetlink import dumps
print(json.dumps(dumps()))
"""
SET_UP = """
link add a0 address 02:00:00:00:00:01 type veth peer name a1
link add b0 address 02:00:00:00:00:02 type veth peer name b1
link set a0 up
link set a1 up
link set b0 up
link set b1 up
address add 198.19.0.7/24 dev a0
address add 198.19.2.7/24 dev b0
-6 address add 2001:db8:a::7/64 dev a0 nodad
route add default via 198.19.0.1
route add 198.18.1.0/24 via 198.19.2.1 metric 50 src 198.19.0.7
route add 198.18.1.0/24 dev a0 metric 60
route add 198.18.2.0/24 nexthop via 198.19.0.1 nexthop via 198.19.2.1
route add 198.18.3.0/24 via inet6 2001:db8:a::1 dev a0
route add blackhole 198.18.4.0/24
route add prohibit 198.18.5.0/24 table 77
-6 route add 2001:db8:1::/64 via 2001:db8:a::1
-6 route add unreachable 2001:db8:2::/64
rule add priority 100 to 198.18.64.0/18 lookup 77
rule add priority 200 not fwmark 0xcafe lookup 77
rule add priority 300 lookup main suppress_prefixlength 0
neighbour add 198.19.0.1 lladdr 02:00:00:00:00:99 dev a0 nud permanent
"""


def dumps() -> list[dict[str, object]]:
    """Every dump that nray asks for, as it comes."""
    found: list[dict[str, object]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for sequence, (kind, family) in enumerate(
            (
                (netlink.GETRULE, 4), (netlink.GETROUTE, 4), (netlink.GETROUTE, 6),
                (netlink.GETLINK, 0), (netlink.GETADDR, 0), (netlink.GETNEIGH, 0),
            ), 1,
        ):  # fmt: skip
            sock.sendto(netlink.dump_request(kind, family, sequence), (0, 0))
            datagrams = []
            done = False
            while not done:
                data = sock.recv(netlink.RECEIVE_BYTES)
                datagrams.append(data.hex())
                done = netlink.read(data, sequence)[1]
            found.append({"sequence": sequence, "datagrams": datagrams})
    return found


def main() -> None:
    with Namespace("record") as namespace:
        for line in SET_UP.strip().splitlines():
            namespace.ip(*line.split())
        here = str(Path(__file__).parent)
        recorded = {
            "dumps": json.loads(namespace.call([sys.executable, "-c", INSIDE, here])),
            "links": json.loads(namespace.ip("-json", "link", "show", "type", "veth")),
            "routes": [
                route | {"table": table}
                for family, table in (("-4", 254), ("-6", 254), ("-4", 77))
                for route in json.loads(
                    namespace.ip(family, "-json", "-N", "route", "show", "table", str(table))
                )
                if not route["dst"].startswith("fe80:")
            ],
        }
    for route in recorded["routes"]:
        if route["dst"] != "default" and "/" not in route["dst"]:
            route["dst"] += "/128" if ":" in route["dst"] else "/32"
    path = Path(__file__).parent / "data" / "rtnetlink.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
