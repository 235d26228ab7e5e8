"""What a UDP probe carries where the port's usual service answers only to its own language.

Each payload was written from the protocol's specification; none asks for a change of anything.
"""

from __future__ import annotations

#: UDP port to payload.
KNOWN: dict[int, bytes] = {
    # DNS (RFC 1035): recursion desired, one question, version.bind TXT in class CHAOS. Servers
    # that do not tell their version still answer, with REFUSED or NOTIMP.
    53: bytes.fromhex("6e72 0100 0001 0000 0000 0000")
    + b"\x07version\x04bind\x00"
    + bytes.fromhex("0010 0003"),
    # ONC RPC (RFC 5531): xid, CALL, RPC version 2, program 100000 (portmapper, RFC 1833)
    # version 2, procedure 0 (NULL), no credentials, no verifier.
    111: bytes.fromhex(
        "6e726179 00000000 00000002 000186a0 00000002 00000000 00000000 00000000 00000000 00000000"
    ),
    # NTP (RFC 5905): leap unknown, version 4, client; the rest is for the server to fill in.
    123: bytes([0b11_100_011]) + bytes(47),
    # NetBIOS name service (RFC 1002, section 4.2.17): NODE STATUS REQUEST for the name "*", in
    # the half-ASCII of RFC 1001 section 14.1.
    137: bytes.fromhex("6e72 0000 0001 0000 0000 0000")
    + b"\x20CK"
    + b"A" * 30
    + b"\x00"
    + bytes.fromhex("0021 0001"),
    # SNMP version 1 (RFC 1157): GetRequest by community "public" for sysDescr.0 (RFC 1213).
    161: bytes.fromhex("3029 020100 0406")
    + b"public"
    + bytes.fromhex("a01c 02046e726179 020100 020100 300e 300c 06082b06010201010100 0500"),
    # NetWare Core Protocol: request type 0x1111 (create a service connection), sequence 0,
    # connection 0xffff (none yet), task 1, function 0.
    524: bytes.fromhex("1111 00 ff 01 ff 00"),
    # SQL Server Resolution Protocol ([MS-SQLR] 2.2.2): CLNT_UCAST_EX, "which instances are there".
    1434: b"\x03",
    # Citrix ICA browser: a request for the master browser, 30 bytes with their length in front.
    1604: bytes.fromhex("1e00 0130 02fd a8e3") + bytes(22),
    # Sentinel licence manager: the smallest request that it answers.
    5093: bytes.fromhex("7a00 0000 0000"),
}
