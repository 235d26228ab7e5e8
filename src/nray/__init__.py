"""nray: a distributed port scanner.

The package root holds only what every room may use: the version and the one
exception that means "the user can mend this".
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes milliseconds in which a Ctrl+C would be Python's
if TYPE_CHECKING:
    from nray.api.scan import scan as scan

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake that its user can mend: a wrong flag, key, file, certificate or address.

    The command line prints it as ``error: MESSAGE`` with the hint on a line of its own, and
    ends with ``exit_status`` and without a traceback.

    Args:
        message: what is wrong, naming the file and the key or line where there is one.
        hint: what would be right, or what to try; empty if nothing useful can be said.
    """

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def __getattr__(name: str) -> object:
    # `nray.scan` is for scripts; the command line and the workers must not pay for its imports.
    if name == "scan":
        from nray.api.scan import scan

        return scan
    raise AttributeError(f"module 'nray' has no attribute {name!r}")
