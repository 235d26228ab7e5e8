"""What a process of nray may do beyond its user, and giving up what it has no use for.

Whatever is run as root, or with file capabilities, keeps only what its part needs: workers, which
read what targets send, at most raw sockets. Capabilities belong to threads, so a process calls
this before it starts any.
"""

from __future__ import annotations

from nray import _core

# Numbers of linux/capability.h.
_CHOWN, _DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER = 0, 1, 2, 3
_NET_BIND_SERVICE, _NET_RAW = 10, 13

#: Files of others: a root who serves from a user's directory reads certificates and writes the
#: ledger and outputs there, to the end.
FILES = (_CHOWN, _DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER)
#: Listening on ports below 1024.
LOW_PORTS = (_NET_BIND_SERVICE,)


def drop(keep_net_raw: bool, *, keep: tuple[int, ...] = ()) -> None:
    """Give up all capabilities but these, for good; nothing run from here gets any back.

    Args:
        keep_net_raw: whether raw sockets stay possible, where they were.
        keep: more that stay, of those above.

    Raises:
        OSError: the kernel refuses; nothing may be relied on then.
    """
    bits = {*keep, _NET_RAW} if keep_net_raw else set(keep)
    _core.keep_capabilities(sum(1 << bit for bit in bits))


def guard_keys() -> None:
    """For a process that holds private keys: it leaves no core dump, and its own user's other
    processes cannot read its memory."""
    _core.refuse_dumps()
