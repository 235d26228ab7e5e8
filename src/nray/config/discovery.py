"""How hosts are looked for before a scan: ``none``, ``ping``, ``arp``, ``auto``, ``syn:80,443``.

Read alike from a configuration and from the command line; what is probed for each stands in
`nray.targets.discovery`.
"""

from __future__ import annotations

import re

#: Those that are a word; ``syn:`` is followed by ports.
WORDS = ("none", "ping", "arp", "auto")
SYN = "syn"

PORT_MAX = 65535
#: More ports than that are a scan of their own, to be asked of every host that is not there.
PORTS_MAX = 64

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


class DiscoveryError(ValueError):
    """What was written says not how hosts are to be looked for; the text says what would."""


def parse_discovery(text: str) -> tuple[str, tuple[int, ...]]:
    """The word (`WORDS`, or `SYN`), and the TCP ports of ``syn:``, ascending.

    Raises:
        DiscoveryError
    """
    word, colon, listed = text.strip().partition(":")
    word = word.strip().lower()
    if word in WORDS and not colon:
        return word, ()
    if word != SYN:
        raise DiscoveryError(f"it is one of {', '.join(WORDS)}, syn:PORTS")
    ports = [part.strip() for part in listed.split(",") if part.strip()]
    if not ports:
        raise DiscoveryError("name the ports to be asked: syn:80,443")
    numbers = set()
    for port in ports:
        if not _PORT.fullmatch(port) or not 1 <= int(port) <= PORT_MAX:
            raise DiscoveryError(f"{port[:20]!r} is no port: syn:80,443 asks those two")
        numbers.add(int(port))
    if len(numbers) > PORTS_MAX:
        raise DiscoveryError(f"at most {PORTS_MAX} ports are asked, not {len(numbers)}")
    return word, tuple(sorted(numbers))


def format_discovery(word: str, ports: tuple[int, ...]) -> str:
    """The inverse of `parse_discovery`."""
    return f"{word}:{','.join(map(str, ports))}" if ports else word
