"""What ends soon, in words."""

from __future__ import annotations

import datetime

import pytest

import pki_lab as lab
from nray.pki.expiry import WARNED_BEFORE, certificate_ending, left


def made(days: float) -> lab.Made:
    return lab.make(lab.cn("x"), end=lab.NOW + days * lab.DAY)


@pytest.mark.parametrize(
    ("days", "warning", "brief"),
    [
        (400, "", ""),
        (7, "", ""),
        (6.99, "expires on 2026-06-08, in 6 days", "expires in 6 days"),
        (1.5, "in 1 day", "in 1 day"),
        (0.5, "in less than a day", "in less than a day"),
        (0, "in less than a day", "in less than a day"),
        (-0.001, "expired on 2026-06-01; peers will refuse it", "has expired"),
        (-3, "expired on 2026-05-29; peers will refuse it", "has expired"),
    ],
)
def test_a_certificates_end(days: float, warning: str, brief: str) -> None:
    ending = certificate_ending("own.pem", made(days).cert)
    for words, wanted in ((ending.warning(lab.NOW), warning), (ending.brief(lab.NOW), brief)):
        assert bool(words) == bool(wanted)
        assert words.endswith(wanted)
    assert not warning or ending.warning(lab.NOW).startswith("own.pem: the certificate ")


def test_a_week_is_warned_of() -> None:
    assert datetime.timedelta(days=7) == WARNED_BEFORE


def test_days_that_are_left() -> None:
    assert left(lab.NOW + 2 * lab.DAY, lab.NOW) == "in 2 days"
