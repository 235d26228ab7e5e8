"""ONC RPC (RFC 5531): every program has a procedure 0 that takes nothing and gives nothing."""

from __future__ import annotations

import struct
from functools import partial

from nray.targets.udp.probe import Echoed, Identifiers, Probe

CALL, RPC_VERSION, NULL_PROCEDURE = 0, 2, 0
AUTH_NONE = struct.pack("!2I", 0, 0)

PORTMAPPER, NFS, MOUNT, LOCK_MANAGER = 100000, 100003, 100005, 100021
#: VxWorks' debug agent.
WDB = 0x55555555

#: The transaction's identifier, then 1 for a reply.
_SAME_XID = Echoed(
    0, 0, 4, least=8, head=((4, 255, 0), (5, 255, 0), (6, 255, 0), (7, 255, 1)), free=(0, 4)
)


def null_call(ids: Identifiers, program: int, version: int) -> bytes:
    """A call of a program's procedure 0, with no credentials and no verifier."""
    xid = ids.number(32)
    call = struct.pack("!6I", xid, CALL, RPC_VERSION, program, version, NULL_PROCEDURE)
    return call + AUTH_NONE + AUTH_NONE


def _probe(ports: tuple[int, ...], name: str, source: str, program: int, version: int) -> Probe:
    build = partial(null_call, program=program, version=version)
    return Probe(ports, name, "its null procedure", source, build, _SAME_XID, ("rpc",))


PROBES = (
    # 32771 is where Solaris' rpcbind listens as well.
    _probe((111, 32771), "RPC portmapper", "RFC 5531; RFC 1833", PORTMAPPER, 2),
    _probe((2049,), "NFS version 3", "RFC 5531; RFC 1813", NFS, 3),
    _probe((20048,), "RPC mount", "RFC 5531; RFC 1813, appendix I", MOUNT, 3),
    _probe((4045,), "RPC lock manager", "RFC 5531; RFC 1813, appendix II", LOCK_MANAGER, 4),
    _probe((17185,), "VxWorks WDB", "RFC 5531; program 0x55555555", WDB, 1),
)
