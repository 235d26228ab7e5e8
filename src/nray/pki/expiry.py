"""What ends soon, in words: certificates of our own, lists of revoked ones. No clock of its own."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509

#: With less time left than this an end is warned of: what is renewed by a machine is renewed
#: earlier, and people need a few days. The manual's leaves last a year.
WARNED_BEFORE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Ending:
    """Something that ends at a known time.

    Attributes:
        file: where it stands.
        what: it, with its article: ``the certificate``.
        end: when, UTC.
        ends: the verb for what comes: ``expires``.
        ended: what is so afterwards, and its consequence.
    """

    file: str
    what: str
    end: datetime.datetime
    ends: str
    ended: str

    def warning(self, now: datetime.datetime) -> str:
        """A sentence for the log; empty while there is time."""
        if now > self.end:
            return f"{self.file}: {self.what} {self.ended.format(self.end)}"
        if self.end - now >= WARNED_BEFORE:
            return ""
        return f"{self.file}: {self.what} {self.ends} on {self.end:%Y-%m-%d}, {left(self.end, now)}"

    def brief(self, now: datetime.datetime) -> str:
        """A clause for a status line; empty while there is time."""
        if now > self.end:
            return f"{self.what} has expired"
        if self.end - now >= WARNED_BEFORE:
            return ""
        return f"{self.what} expires {left(self.end, now)}"


def certificate_ending(file: str, certificate: x509.Certificate, what: str = "") -> Ending:
    """The end of a certificate that we show."""
    return Ending(
        file,
        what or "the certificate",
        certificate.not_valid_after_utc,
        "expires",
        "expired on {:%Y-%m-%d}; peers will refuse it",
    )


def left(end: datetime.datetime, now: datetime.datetime) -> str:
    """``in 3 days``, ``in 1 day``, ``in less than a day``."""
    days = (end - now).days
    if days < 1:
        return "in less than a day"
    return f"in {days} day{'' if days == 1 else 's'}"
