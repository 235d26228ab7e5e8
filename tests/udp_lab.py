"""Right answers to the known UDP payloads, written by hand after the specifications, and a pcap."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

from core_lab import UDP, host, ip_packet, summed

RAW_IP = 101
ENDS = {
    version: tuple(ip_address(host(version, number)).packed for number in (1, 2))
    for version in (4, 6)
}


def packet(version: int, source: int, port: int, payload: bytes) -> bytes:
    """A packet with correct checksums."""
    datagram = struct.pack("!4H", source, port, 8 + len(payload), 0) + payload
    return summed(ip_packet(*ENDS[version], UDP, datagram))


def write_pcap(path: Path, packets: Iterable[bytes]) -> None:
    records = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, RAW_IP)]
    for number, each in enumerate(packets):
        records.append(struct.pack("<4I", number, 0, len(each), len(each)) + each)
    path.write_bytes(b"".join(records))


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def t(tag: int, *parts: bytes) -> bytes:
    """A short BER element."""
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([tag, len(body)]) + body


def _integer_at(p: bytes, at: int) -> bytes:
    """The INTEGER that stands there, with its tag."""
    assert p[at] == 2
    return p[at : at + 2 + p[at + 1]]


def _dns(p: bytes) -> bytes:
    return p[:2] + h("8180 0001 0000 0000 0000") + p[12:]


def _rpc(p: bytes) -> bytes:
    return p[:4] + h("00000001 00000000 00000000 00000000 00000000")


def _snmp3(p: bytes) -> bytes:
    data = t(0x30, _integer_at(p, 7), h("020205c0 040100 020103"))
    usm = t(0x30, t(4, h("8000000001020304")), h("020101 020102 0400 0400 0400"))
    pdu = t(0xA8, h("020101 020100 020100 3000"))
    return t(0x30, h("020103"), data, t(4, usm), t(0x30, h("0400 0400"), pdu))


def _snmp(p: bytes) -> bytes:
    pdu = t(0xA2, _integer_at(p, 15), h("020100 020100 3000"))
    return t(0x30, p[2:5], t(4, b"public"), pdu)


def _quic(p: bytes) -> bytes:
    return h("8a 00000000 08") + p[15:23] + h("08") + p[6:14] + h("00000001")


def _ike(p: bytes) -> bytes:
    return p[:8] + b"RESPONSE" + h("29 20 22 20 00000000 00000024 0000 0008 0000 000e")


def _wsd(p: bytes) -> bytes:
    message = p.split(b"<a:MessageID>")[1].split(b"<")[0]
    return b"<Envelope><Header><RelatesTo>" + message + b"</RelatesTo></Header></Envelope>"


def _sip(p: bytes) -> bytes:
    kept = [
        each for each in p.split(b"\r\n") if each.split(b":")[0] in (b"Via", b"Call-ID", b"CSeq")
    ]
    return b"\r\n".join([b"SIP/2.0 483 Too Many Hops", *kept, b"", b""])


def _iax2(p: bytes) -> bytes:
    return (
        h("8005")
        + (struct.unpack("!H", p[:2])[0] & 0x7FFF).to_bytes(2, "big")
        + h("0" * 12 + "0603")
    )


def _quake3(p: bytes) -> bytes:
    word = p[4:].split()[1].rstrip(b"\x00")
    return p[:4] + b"infoResponse\n\\hostname\\x\\challenge\\" + word


#: Port to what its service answers to a payload.
RIGHT: dict[int, Callable[[bytes], bytes]] = {
    7: lambda p: p,
    53: _dns,
    111: _rpc,
    123: lambda p: b"\x24" + bytes(23) + p[40:48] + bytes(16),
    137: _dns,
    161: _snmp3,
    389: lambda p: t(0x30, _integer_at(p, 2), t(0x65, h("0a0100 0400 0400"))),
    427: lambda p: h("020b 000018 0000 000000") + p[10:12] + h("0002") + b"en" + bytes(8),
    443: _quic,
    500: _ike,
    520: lambda p: h("02020000") + p[4:20] + h("00000010"),
    521: lambda p: h("02010000") + p[4:22] + h("2010"),
    524: lambda p: h("3333 00 01 01 00 00 00"),
    623: lambda p: h("0600ff06 000011be 40") + p[9:10] + h("0010") + bytes(16),
    853: _quic,
    1194: lambda p: b"\x40" + b"12345678" + h("01 00000000") + p[1:9] + bytes(4),
    1701: lambda p: h("c802 0014") + p[-2:] + h("0000 0000 0001 8008 0000 0000 0002"),
    1812: lambda p: b"\x02" + p[1:2] + h("0014") + bytes(16),
    2049: _rpc,
    2123: lambda p: h("40 02 0009") + p[4:8] + h("03 0001 00 05"),
    2152: lambda p: h("32 02 0006 00000000") + p[8:12] + h("0e 00"),
    2427: lambda p: b"500 " + p.split()[1] + b" unknown endpoint\r\n",
    3130: lambda p: h("0302 0018") + p[4:8] + bytes(16),
    3389: lambda p: p[8:12] + h("0040 0005 01020304 046c 046c"),
    3478: lambda p: h("0101 0000") + p[4:20],
    3702: _wsd,
    4045: _rpc,
    4500: lambda p: bytes(4) + _ike(p[4:]),
    4569: _iax2,
    5060: _sip,
    5353: _dns,
    5355: _dns,
    5683: lambda p: h("7000") + p[2:4],
    6881: lambda p: b"d1:rd2:id20:" + b"x" * 20 + b"e1:t4:" + p.split(b"1:t4:")[1][:4] + b"1:y1:re",
    6969: lambda p: bytes(4) + p[12:16] + b"12345678",
    7000: lambda p: p[:20] + h("0d 00 00 00 0000 0000") + b"OpenAFS".ljust(65, b"\x00"),
    9600: lambda p: h("c00002 000000 000000") + p[9:10] + h("0501 0000"),
    11211: lambda p: p[:2] + h("0000 0001 0000") + b"VERSION 1.6.18\r\n",
    17185: _rpc,
    19132: lambda p: b"\x1c" + p[1:9] + bytes(8) + p[9:25] + h("0000"),
    20048: _rpc,
    25565: lambda p: b"\x09" + p[3:7] + b"9513307\x00",
    27960: _quake3,
    44818: lambda p: h("6300 0200 00000000 00000000") + p[12:20] + bytes(6),
    47808: lambda p: h("810a 0017 0100 30") + p[8:9] + h("0c 0c 02000001 19 4b 3e c4 02000001 3f"),
    64738: lambda p: h("00010204") + p[4:12] + bytes(12),
}

#: The same for the further payloads, by protocol.
RIGHT_FURTHER = {"SNMPv1": _snmp, "SNMPv2c": _snmp, "IKEv1": _ike}
