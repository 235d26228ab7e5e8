"""Durations: Go's grammar, exact round trips, and what is refused with what would be right."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.config.durations import (
    DURATION_MAX_S,
    DurationError,
    format_duration,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("2500ms", 2.5),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("100us", 0.0001),
        ("100µs", 0.0001),
        ("100μs", 0.0001),
        ("7ns", 7e-9),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("1h1m1s1ms", 3661.001),
        ("30s1m", 90.0),
        ("0", 0.0),
        ("0s", 0.0),
        (" 5s ", 5.0),
        ("720h", DURATION_MAX_S),
    ],
)
def test_reads_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "2500ms"),
        ("5", "write 5s or 5ms"),
        ("2.5", "write 2.5s"),
        ("5 s", "number and a unit"),
        ("1d", "ns, us, ms, s, m, h"),
        ("5S", "number and a unit"),
        ("s", "number and a unit"),
        (".s", "number and a unit"),
        ("1s2", "number and a unit"),
        ("-5s", "number and a unit"),
        ("+5s", "number and a unit"),
        ("1e3s", "number and a unit"),
        ("٣s", "number and a unit"),
        ("720h1ns", "720h"),
        ("9" * 60 + "h", "720h"),
        ("1s" * 40, "number and a unit"),
        ("inf", "number and a unit"),
    ],
)
def test_refuses_the_rest_and_says_what_would_be_right(text: str, right: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert isinstance(refused.value, DurationError)
    assert right in str(refused.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5, "2500ms"),
        (1.0, "1s"),
        (15.0, "15s"),
        (90.0, "1m30s"),
        (3600.0, "1h"),
        (5400.0, "1h30m"),
        (65.5, "1m5.5s"),
        (0.0015, "1.5ms"),
        (0.0001, "100us"),
        (7e-9, "7ns"),
        (0.0, "0s"),
    ],
)
def test_writes_the_short_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, DURATION_MAX_S + 1])
def test_writes_no_impossible_duration(seconds: float) -> None:
    with pytest.raises(ValueError):
        format_duration(seconds)


@given(st.integers(0, int(DURATION_MAX_S) * 10**9))
def test_what_is_written_reads_back_exactly(nanoseconds: int) -> None:
    seconds = parse_duration(f"{nanoseconds}ns")
    assert round(seconds * 10**9) == nanoseconds
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(alphabet="0123456789.nsuµmh-+ e", max_size=12))
def test_any_text_reads_or_raises_the_one_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except DurationError:
        return
    assert 0 <= seconds <= DURATION_MAX_S
