"""Servers of games and of the talk beside them, and of peers that share files.

TeamSpeak has no probe: its protocol is not published.
"""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.probe import Echoed, Identifiers, Probe, byte, find, own, text

#: Out-of-band messages of Quake's descendants, Valve's among them.
OUT_OF_BAND = b"\xff\xff\xff\xff"

# ── Quake and Source ────────────────────────────────────────────────────────────────────────

NETFLAG_CTL, CCREQ_SERVER_INFO, NET_PROTOCOL_VERSION = 0x8000, 0x02, 3


def _quake(ids: Identifiers) -> bytes:
    body = bytes([CCREQ_SERVER_INFO]) + b"QUAKE\x00" + bytes([NET_PROTOCOL_VERSION])
    return struct.pack("!HH", NETFLAG_CTL, 4 + len(body)) + body


def _quakeworld(ids: Identifiers) -> bytes:
    """A2A_PING: answered by one letter."""
    return OUT_OF_BAND + b"k\n\x00"


def _quake2(ids: Identifiers) -> bytes:
    protocol = 34
    return OUT_OF_BAND + b"info %d\n" % protocol


def _quake3(ids: Identifiers) -> bytes:
    return OUT_OF_BAND + b"getinfo nray" + ids.text(8).encode() + b"\n\x00"


def _same_challenge(payload: bytes) -> Steps:
    """A table of ``\\key\\value``, our word in it."""
    at = payload.index(b"nray")
    return text(0, OUT_OF_BAND + b"infoR") + find(at, len(payload.rstrip(b"\n\x00")) - at)


def _source(ids: Identifiers) -> bytes:
    """A2S_INFO. Servers of today answer with a challenge of nine bytes."""
    return OUT_OF_BAND + b"TSource Engine Query\x00"


# ── Minecraft ───────────────────────────────────────────────────────────────────────────────

QUERY_MAGIC, QUERY_HANDSHAKE = b"\xfe\xfd", b"\x09"
RAKNET_PING, RAKNET_PONG = b"\x01", b"\x1c"
RAKNET_MAGIC = bytes.fromhex("00ffff00 fefefefe fdfdfdfd 12345678")


def _minecraft(ids: Identifiers) -> bytes:
    # Of each byte of a session's number the lower half counts.
    session = bytes(byte & 0x0F for byte in ids.octets(4))
    return QUERY_MAGIC + QUERY_HANDSHAKE + session


def _bedrock(ids: Identifiers) -> bytes:
    """Unconnected ping: a time of ours, which comes back, and a number that names us."""
    return RAKNET_PING + ids.octets(8) + RAKNET_MAGIC + ids.octets(8, at=8)


# ── others ──────────────────────────────────────────────────────────────────────────────────


def _mumble(ids: Identifiers) -> bytes:
    ping = 0
    return struct.pack("!I", ping) + ids.octets(8)


#: BEP 3's dictionaries, whose keys are in order. BEP 43: "ro" keeps us out of its routing table.
def _dht(ids: Identifiers) -> bytes:
    node, transaction = ids.octets(20, at=4), ids.octets(4)
    return (
        b"d1:ad2:id20:" + node + b"e1:q4:ping2:roi1e1:t4:" + transaction + b"1:y1:qe"
    )  # fmt: skip


def _same_token(payload: bytes) -> Steps:
    """A dictionary with our transaction."""
    at = payload.index(b"1:t4:")
    return byte(0, 255, ord("d")) + find(at, 9) + own(at + 5, 4)


TRACKER_MAGIC, TRACKER_CONNECT = 0x41727101980, 0


def _tracker(ids: Identifiers) -> bytes:
    return struct.pack("!QI", TRACKER_MAGIC, TRACKER_CONNECT) + ids.octets(4)


_ID_SOFTWARE = "source code of its server, as published by id Software"

PROBES = (
    Probe((26000,), "Quake", "about the server", _ID_SOFTWARE, _quake, None, ("quake",)),
    Probe((27500,), "QuakeWorld", "whether it is there (ping)", _ID_SOFTWARE, _quakeworld, None,
          ("quakeworld",)),
    Probe((27910,), "Quake II", "about the server", _ID_SOFTWARE, _quake2, None, ("quake2",)),
    Probe((27960, 28960), "Quake III", "about the server", _ID_SOFTWARE, _quake3, _same_challenge,
          ("quake3",), "quake3"),
    Probe((27015,), "Source engine", "about the server (A2S_INFO)",
          "Valve Developer Community, Server queries", _source),
    Probe((25565,), "Minecraft query", "for a challenge", "Minecraft Wiki, Query", _minecraft,
          Echoed(3, 1, 4, least=6, head=((0, 255, 9),))),
    Probe((19132,), "Minecraft Bedrock", "whether it is there (RakNet's ping)",
          "RakNet, unconnected ping", _bedrock, Echoed(1, 1, 8, least=33, head=((0, 255, 0x1C),),
          free=(1, 8)),
          ("raknet",), "raknet"),
    Probe((64738,), "Mumble", "about the server (ping)", "Mumble protocol documentation", _mumble,
          Echoed(4, 4, 8, least=24, free=(4, 8))),
    Probe((6881,), "BitTorrent DHT", "whether it is there (ping)", "BEP 5; BEP 43", _dht,
          _same_token, ("bt-dht",), "bt-dht"),
    Probe((6969,), "BitTorrent tracker", "for a connection's number", "BEP 15", _tracker,
          Echoed(12, 4, 4, least=8, head=((0, 255, 0), (1, 255, 0), (2, 255, 0)),
                 free=(12, 4))),
)  # fmt: skip
