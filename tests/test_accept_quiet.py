"""Who scans this machine alone says nothing on its links, whatever the routes are."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.namespaces import Namespace, require
from lab.nray import scan

pytestmark = pytest.mark.lab

LINK, FAR = "quiet0", "quiet1"
OWN = {4: "198.19.0.7/24", 6: "2001:db8:ffff::7/64"}
GATEWAY = {4: "198.19.0.1", 6: "2001:db8:ffff::1"}
BEYOND = {4: "198.18.0.1", 6: "2001:db8:1::1"}
#: All that comes over the link, but what the scanner's kernel says of itself: RFC 3810 and 4861.
COUNTED = f"""
    table netdev quiet {{
      counter came {{ }}
      chain come {{
        type filter hook ingress device {FAR} priority 0; policy accept;
        icmpv6 type {{ mld2-listener-report, nd-router-solicit }} accept
        counter name came
      }}
    }}"""


class Quiet:
    """A machine with a link and default routes over it, and a far end that only counts."""

    def __init__(self, here: Namespace, far: Namespace) -> None:
        self.here, self._far = here, far
        # No addresses but ours: the kernel asks whether anybody has those that it makes.
        for namespace in (here, far):
            namespace.sysctl({"net.ipv6.conf.default.addr_gen_mode": 1})
        here.ip("link", "add", LINK, "type", "veth", "peer", "name", FAR, "netns", far.name)
        far.ip("link", "set", FAR, "up")
        here.ip("link", "set", LINK, "up")
        for version, more in ((4, ()), (6, ("nodad",))):
            here.ip("address", "add", OWN[version], "dev", LINK, *more)
            here.ip(f"-{version}", "route", "add", "default", "via", GATEWAY[version])
        far.call(["nft", "-f", "-"], COUNTED)

    def came(self) -> int:
        """Frames from the scanner so far."""
        listed = json.loads(self._far.call(["nft", "-j", "list", "counters"]))["nftables"]
        [counter] = [each["counter"] for each in listed if "counter" in each]
        return int(counter["packets"])


@pytest.fixture(scope="module")
def quiet() -> Iterator[Quiet]:
    require("nft")
    with Namespace("quiet") as here, Namespace("far") as far:
        yield Quiet(here, far)


@pytest.mark.parametrize(
    "words",
    [
        ["--syn", "-t", "localhost"],
        ["--syn", "--discovery", "auto", "-t", "127.0.0.1,localhost"],
        ["--discovery", "ping", "-t", "localhost,::1"],
    ],
    ids=["syn", "discovery", "pings"],
)
def test_a_scan_of_localhost_sends_nothing_on_any_link(quiet: Quiet, words: list[str]) -> None:
    before = quiet.came()
    done = scan(quiet.here, *words, "-p", "9", "--show", "closed", "--timeout", "200ms").expect(0)
    assert {event["result"]["portscan"]["state"] for event in done.events} == {"closed"}
    assert quiet.came() == before


def test_a_target_behind_a_gateway_has_that_one_asked_for(quiet: Quiet) -> None:
    """What the other tests count is there to be counted; and it is of one family alone."""
    for version in (4, 6):
        before = quiet.came()
        words = ["-t", f"{BEYOND[version]},localhost", "-p", "9", "--timeout", "200ms"]
        done = scan(quiet.here, "--syn", *words).expect(3)
        assert f"gateway {GATEWAY[version]} on {LINK} does not answer" in done.stderr
        assert GATEWAY[10 - version] not in done.stderr
        assert quiet.came() - before == 3  # TRIES_MAX
