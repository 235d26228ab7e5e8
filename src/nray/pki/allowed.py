"""Which verified nodes a server takes: patterns over their identity (``TLS.allowedNodes``).

A trusted authority says who somebody is; this says who of them may scan. It is asked after the
verification, and only then: names of unverified certificates match nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from nray.pki.errors import PeerRejected
from nray.pki.names import printable
from nray.pki.verify import VerifiedPeer


class AllowedNodes:
    """Patterns as a shell has them, over `VerifiedPeer.identity`: the whole of it, in any case.

    ``*`` is any text, dots and slashes included, ``?`` one character, ``[ab]`` and ``[!ab]`` one
    of a set or none of it.

    Args:
        patterns: one that matches is enough; none lets nobody in.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(pattern.lower() for pattern in patterns)

    def demand(self, peer: VerifiedPeer) -> None:
        """Returns if the node may take part.

        Raises:
            PeerRejected: no pattern matches.
        """
        identity = peer.identity.lower()
        if not any(fnmatch.fnmatchcase(identity, pattern) for pattern in self._patterns):
            shown = ", ".join(printable(pattern) for pattern in self._patterns[:8])
            raise PeerRejected(
                "not-allowed", f"{peer.identity} matches no pattern of TLS.allowedNodes ({shown})"
            )
