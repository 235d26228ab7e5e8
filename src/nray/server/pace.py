"""How much of the server's loop is given to what brings the scan no further.

A report with new findings, or the end of a slice, is what the server is for: it is never slowed,
and sessions that all have some take turns, one message each. Everything else (heartbeats, asks,
findings told before, reads that complete no frame) is counted in *words*, and of those a node
has a purse. When it is empty the node is not read for a moment: its own line fills up, and
nothing is lost. Tokens are counted, not time measured, so that a run can be repeated.
"""

from __future__ import annotations

from typing import Final

#: Words a second that a node may say without bringing anything. One costs the loop some 150 us
#: (decrypt, decode, check, answer), so a node that does nothing else has about 2 % of it. An
#: honest one says two in ten seconds, and one for each slice, which the slice's end pays back.
WORDS_A_SECOND: Final = 100.0

#: Words that may come at once: asks for as many slices as a large node has processes, and what is
#: told again after a line was lost.
WORDS_AT_ONCE: Final = 1000.0

#: Findings told before that cost as much as a word: each is looked up, at 1 to 2 us.
OLD_HITS_A_WORD: Final = 100

#: A read of so many bytes is a good one, even if no frame ends with it. A frame in records of a
#: byte each would cost a thousand times what it costs whole.
READ_BYTES_FAIR: Final = 1024

#: What a smaller one costs, in words.
SMALL_READ_WORDS: Final = 0.25


class Bucket:
    """Tokens that come evenly in time and may be saved up. No clock of its own; begins full.

    Args:
        rate: tokens a second.
        most: that are kept.
    """

    def __init__(self, rate: float, most: float) -> None:
        self._rate = rate
        self._most = most
        self._level = most
        self._at: float | None = None

    def level(self, now: float) -> float:
        """Tokens that are there; below zero: owed."""
        if self._at is not None:
            self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def take(self, tokens: float, now: float) -> float:
        """Take tokens, also those that are not there; seconds until nothing is owed any more.

        A negative number gives tokens back.
        """
        self._level = min(self._most, self.level(now) - tokens)
        return max(0.0, -self._level / self._rate)


class Purse(Bucket):
    """What one line of a node may say without bringing anything, in words."""

    def __init__(self) -> None:
        super().__init__(WORDS_A_SECOND, WORDS_AT_ONCE)

    def word(self, now: float) -> float:
        """A heartbeat or an ask; seconds for which the node is not to be read."""
        return self.take(1.0, now)

    def report(self, hits: int, fresh: int, ended: bool, now: float) -> float:
        """A report with so many findings, so many of them new; the end of a slice pays for the
        ask that it came from."""
        cost = -1.0 if ended else 0.0 if fresh else 1.0
        return self.take(cost + (hits - fresh) / OLD_HITS_A_WORD, now)

    def read(self, size: int, now: float) -> float:
        """A read of so many bytes that completed no frame."""
        return self.take(SMALL_READ_WORDS, now) if size < READ_BYTES_FAIR else 0.0
