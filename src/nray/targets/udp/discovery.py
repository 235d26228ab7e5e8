"""Protocols by which devices are found on a local network, asked by unicast."""

from __future__ import annotations

import struct
import uuid

from nray.targets.udp import Steps
from nray.targets.udp.probe import Echoed, Identifiers, Probe, find

# ── text ────────────────────────────────────────────────────────────────────────────────────


def lines(*texts: str) -> bytes:
    """Lines in the manner of HTTP, with an empty one at the end."""
    return ("\r\n".join(texts) + "\r\n\r\n").encode()


def _ssdp(ids: Identifiers) -> bytes:
    # One answer, for the root device: ssdp:all would be given one for each service.
    return lines(
        "M-SEARCH * HTTP/1.1",
        "HOST: 239.255.255.250:1900",
        'MAN: "ssdp:discover"',
        "MX: 1",
        "ST: upnp:rootdevice",
    )


_WSD = "http://schemas.xmlsoap.org/ws/2005/04/discovery"


def _wsd(ids: Identifiers) -> bytes:
    """A Probe for devices (the version of April 2005, which printers and Windows speak)."""
    message = uuid.UUID(bytes=ids.octets(16), version=4).urn
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
        ' xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"'
        f' xmlns:d="{_WSD}"'
        ' xmlns:p="http://schemas.xmlsoap.org/ws/2006/02/devprof"><s:Header>'
        "<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>"
        f"<a:Action>{_WSD}/Probe</a:Action><a:MessageID>{message}</a:MessageID>"
        "</s:Header><s:Body><d:Probe><d:Types>p:Device</d:Types></d:Probe></s:Body></s:Envelope>"
    ).encode()


def _same_uuid(payload: bytes) -> Steps:
    """The answer relates to our message's identifier."""
    return find(payload.index(b"urn:uuid:"), 45)


# ── binary ──────────────────────────────────────────────────────────────────────────────────

SLP_VERSION, SLP_SERVICE_REQUEST = 2, 1
SLP_LANGUAGE = b"en"
_SLP_SAME_XID = Echoed(10, 10, 2, least=16, head=((0, 255, 2),), free=(10, 2))


def _slp(ids: Identifiers) -> bytes:
    """A request for the service agent itself (RFC 2608, section 11.2): no scope, no list."""

    def string(text: bytes) -> bytes:
        return struct.pack("!H", len(text)) + text

    previous, scopes, predicate, spi = b"", b"", b"", b""
    body = b"".join(map(string, (previous, b"service:service-agent", scopes, predicate, spi)))
    length = 14 + len(SLP_LANGUAGE) + len(body)
    flags, no_extension = 0, bytes(3)
    header = struct.pack("!BB", SLP_VERSION, SLP_SERVICE_REQUEST) + length.to_bytes(3, "big")
    header += struct.pack("!H", flags) + no_extension + struct.pack("!H", ids.number(16))
    return header + string(SLP_LANGUAGE) + body


def _nat_pmp(ids: Identifiers) -> bytes:
    """Which external address: version 0, opcode 0. A server of PCP alone answers with an error
    in the same format (RFC 6887, appendix A)."""
    return bytes([0, 0])


def _xdmcp(ids: Identifiers) -> bytes:
    """A Query without authentication names: "are you willing?". No session is begun."""
    version, opcode_query = 1, 2
    no_names = b"\x00"
    return struct.pack("!HHH", version, opcode_query, len(no_names)) + no_names


def _ubiquiti(ids: Identifiers) -> bytes:
    version, command, no_data = 1, 0, 0
    return struct.pack("!BBH", version, command, no_data)


PROBES = (
    Probe((427,), "SLP", "for its service agent", "RFC 2608", _slp, _SLP_SAME_XID, ("srvloc",)),
    Probe((177,), "XDMCP", "whether it is willing to manage a display",
          "X.Org, X Display Manager Control Protocol", _xdmcp, None, ("xdmcp",)),
    Probe((1900,), "SSDP", "for the root device", "UPnP Device Architecture 1.1, section 1.3",
          _ssdp, None, ("ssdp",)),
    Probe((3702,), "WS-Discovery", "for devices",
          "WS-Discovery (April 2005); Devices Profile for Web Services (February 2006)", _wsd,
          _same_uuid, ("xml",)),
    Probe((5351,), "NAT-PMP", "the external address", "RFC 6886; RFC 6887", _nat_pmp, None,
          ("portcontrol",)),
    Probe((10001,), "Ubiquiti discovery", "who it is",
          "none published; the request is a header of four bytes", _ubiquiti, None,
          ("ubdp",), "ubdp"),
)  # fmt: skip
