"""What an answer to a UDP payload shows: the steps of its check, one by one, and bad ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_lab import bucket
from nray import _core
from nray._core import (
    STEP_BITS,
    STEP_BYTE,
    STEP_ELSE,
    STEP_FIND,
    STEP_LEAST,
    STEP_OWN,
    STEP_SAME,
    STEP_WHOLE,
    answers,
    steps_fault,
)

SENT = b"0123456789"


@pytest.mark.parametrize(
    ("steps", "good", "bad"),
    [
        ([(STEP_LEAST, 3, 0, 0)], [b"abc", b"abcd"], [b"", b"ab", SENT]),
        ([(STEP_BYTE, 1, 255, 0x62)], [b"ab", b"abc"], [b"", b"a", b"aa"]),
        ([(STEP_BYTE, 0, 0x0F, 1)], [b"\x11", b"\xf1"], [b"\x12", b"\x10"]),
        ([(STEP_SAME, 2, 1, 3)], [b"x234", b"x234y"], [b"x23", b"234", b"x235", SENT]),
        ([(STEP_SAME, 10, 0, 0)], [b"", b"x"], [SENT]),
        ([(STEP_BITS, 1, 0, 0xF0)], [b"1", b"9"], [b"", b"A"]),
        ([(STEP_FIND, 3, 4, 0)], [b"3456", b"xx3456", b"3456yy"], [b"", b"345", b"34x56", SENT]),
        ([(STEP_WHOLE, 0, 0, 0)], [SENT], [b"", SENT[:-1], SENT + b"x"]),
        (
            [(STEP_BYTE, 0, 255, 0x61), (STEP_ELSE, 0, 0, 0), (STEP_BYTE, 0, 255, 0x62)],
            [b"a", b"b"],
            [b"c", b""],
        ),
        ([(STEP_WHOLE, 0, 0, 0), (STEP_ELSE, 0, 0, 0), (STEP_LEAST, 1, 0, 0)], [SENT, b"x"], [b""]),
        ([(STEP_BYTE, 0, 255, 0x61), (STEP_BYTE, 1, 255, 0x62)], [b"ab"], [b"a", b"b", b"bb"]),
        ([(STEP_OWN, 2, 8, 0), (STEP_LEAST, 1, 0, 0)], [b"x"], [b"", SENT]),
    ],
)
def test_each_step(steps, good, bad):
    assert steps_fault(SENT, steps) == ""
    for answer in good:
        assert answers(SENT, steps, answer) is True
    for answer in bad:
        assert answers(SENT, steps, answer) is False


def test_without_a_comparison_nothing_can_be_told():
    assert answers(SENT, [], b"x") is None
    assert answers(SENT, [(STEP_OWN, 0, 2, 0)], b"x") is None


FAULTS = [
    ([(8, 0, 0, 0)], "no such kind"),
    ([(-1, 0, 0, 0)], "four numbers"),
    ([(STEP_LEAST, 65536, 0, 0)], "four numbers"),
    ([(STEP_LEAST, 1, 2)], "four numbers"),
    ([(STEP_BYTE, 0, 256, 0)], "255"),
    ([(STEP_BYTE, 0, 0, 256)], "255"),
    ([(STEP_SAME, 5, 0, 6)], "does not have"),
    ([(STEP_SAME, 65535, 0, 65535)], "does not have"),
    ([(STEP_BITS, 10, 0, 1)], "does not have"),
    ([(STEP_BITS, 0, 0, 256)], "255"),
    ([(STEP_FIND, 7, 4, 0)], "does not have"),
    ([(STEP_FIND, 7, 0, 0)], "does not have"),
    ([(STEP_OWN, 0, 9, 0)], "1 to 8"),
    ([(STEP_OWN, 0, 0, 0)], "1 to 8"),
    ([(STEP_OWN, 3, 8, 0)], "not within"),
    ([(STEP_LEAST, 0, 0, 0)] * 97, "at most 96"),
]


@pytest.mark.parametrize(("steps", "said"), FAULTS)
def test_steps_that_cannot_be(steps, said):
    assert said in steps_fault(SENT, steps)
    with pytest.raises(ValueError, match=said):
        _core.Engine(bucket(), payloads={53: SENT}, checks={53: steps})
    with pytest.raises(ValueError, match=said):
        _core.Engine(bucket(), payloads={53: b"x"}, further={53: [(SENT, steps)]})


def test_further_payloads_that_cannot_be():
    for further in ({54: [(b"x", [])]}, {53: [(b"x", [])] * 8}, {53: [(bytes(1401), [])]}):
        with pytest.raises(ValueError):
            _core.Engine(bucket(), payloads={53: b"x"}, further=further)


numbers = st.one_of(st.integers(0, 70), st.sampled_from((255, 256, 1400, 65535)))
steps = st.lists(st.tuples(st.integers(0, 8), numbers, numbers, numbers), max_size=8)


@given(steps, st.binary(max_size=64), st.binary(max_size=64))
def test_no_steps_read_beyond_the_bytes(given_steps, payload, answer):
    """What cannot be is refused in words; all else is answered. (Under a sanitizer: silently.)"""
    if steps_fault(payload, given_steps):
        with pytest.raises(ValueError):
            answers(payload, given_steps, answer)
    else:
        assert answers(payload, given_steps, answer) in (None, True, False)
